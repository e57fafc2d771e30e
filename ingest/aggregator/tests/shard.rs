//! The shard seen from outside: what goes in, what is decided, what survives a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ingest_aggregator::{
    Batch, KeptMemory, Limits, Observed, Resume, Settled, Shard, ShardConfig, Timing, Turn,
};
use ingest_otlp::Body;
use ingest_sampler::Policy;
use proptest::prelude::*;
use store_model::{
    BodyRange, Monotonic, Offset, PartitionId, Reason, SpanFlags, SpanId, SpanKind, SpanSummary, StatusCode,
    Symbol, Tenant, Threshold, TraceId, UnixNanos,
};

const SECOND: u64 = 1_000_000_000;

fn span(trace: u8, number: u8, flags: SpanFlags) -> SpanSummary {
    let trace_id = TraceId([trace; 16]);
    SpanSummary {
        trace_id,
        span_id: SpanId([number; 8]),
        parent_span_id: SpanId([0; 8]),
        start: UnixNanos(u64::from(trace) * SECOND + u64::from(number)),
        duration_ns: 5_000_000,
        randomness: trace_id.randomness(),
        threshold: Threshold::ALWAYS,
        service: Symbol(1),
        operation: Symbol(2),
        range: BodyRange { position: u32::from(number) * 10, length: 10 },
        kind: SpanKind::Server,
        status: StatusCode::Unset,
        flags,
    }
}

const PLAIN: SpanFlags = SpanFlags(0);

fn batch(offset: u64, summaries: Vec<SpanSummary>) -> Batch {
    Batch {
        partition: PartitionId(0),
        offset: Offset(offset),
        tenant: Tenant::default(),
        body: Body::unwalked(vec![0; 100].into()),
        holders: 1,
        refused: 0,
        spans: summaries.into_iter().collect(),
    }
}

fn config() -> ShardConfig {
    // Trace ids below 0x80.. are never kept by the head stage, the others always.
    let policy = Policy { head: Threshold::from_probability(0.5), ..Policy::default() };
    ShardConfig { partitions: 1, policy, ..ShardConfig::default() }
}

fn turn_at(shard: &mut Shard, seconds: u64) -> Turn {
    shard.end_turn(Monotonic(seconds * SECOND), UnixNanos(seconds)).unwrap_or_default()
}

fn kept_spans(turn: &Turn) -> Vec<usize> {
    turn.kept.iter().map(|trace| trace.spans.len()).collect()
}

#[test]
fn a_trace_is_decided_two_quiet_seconds_after_its_root() {
    let mut shard = Shard::new(config());
    shard.take(batch(0, vec![span(0xF0, 1, PLAIN), span(0x01, 1, SpanFlags::ROOT)]), Monotonic(0));
    shard.take(batch(1, vec![span(0xF0, 2, SpanFlags::ROOT)]), Monotonic(SECOND));
    assert!(turn_at(&mut shard, 1).kept.is_empty());
    let turn = turn_at(&mut shard, 2);
    assert_eq!((turn.kept.len(), turn.dropped().count()), (0, 1));
    assert_eq!(turn.watermark, [Offset(0)]);
    let turn = turn_at(&mut shard, 3);
    assert_eq!(kept_spans(&turn), [2]);
    assert_eq!((turn.kept[0].reason, turn.kept[0].complete), (Reason::Head, true));
    assert_eq!((turn.frontier[0], turn.watermark[0]), (Offset(2), Offset(2)));
}

#[test]
fn a_trace_without_root_waits_for_the_idle_timeout_and_a_busy_one_for_the_trace_timeout() {
    let mut shard = Shard::new(config());
    shard.take(batch(0, vec![span(0xF0, 1, PLAIN)]), Monotonic(0));
    let mut decided_at = BTreeMap::new();
    for second in 1..400 {
        shard.take(batch(second, vec![span(0xF1, 1, PLAIN)]), Monotonic(second * SECOND));
        for trace in turn_at(&mut shard, second).kept {
            decided_at.entry(trace.trace_id).or_insert((second, trace.complete));
        }
    }
    assert_eq!(decided_at[&TraceId([0xF0; 16])], (30, false));
    assert_eq!(decided_at[&TraceId([0xF1; 16])], (301, false));
}

#[test]
fn late_spans_follow_the_decision() {
    let mut shard = Shard::new(config());
    shard.take(batch(0, vec![span(0xF0, 1, SpanFlags::ROOT), span(0x01, 1, SpanFlags::ROOT)]), Monotonic(0));
    turn_at(&mut shard, 3);
    shard.take(batch(1, vec![span(0xF0, 2, PLAIN), span(0x01, 2, PLAIN)]), Monotonic(4 * SECOND));
    let turn = turn_at(&mut shard, 4);
    assert_eq!(turn.settled[0].counts.sampled_out, 1);
    assert!(turn.settled[0].dropped[0].late);
    let turn = turn_at(&mut shard, 6);
    assert_eq!(kept_spans(&turn), [1]);
    assert!(turn.kept[0].late);
    assert_eq!(turn.kept[0].trace_start, UnixNanos(0xF0 * SECOND + 1), "the sort key does not change");
}

#[test]
fn a_late_error_reopens_a_dropped_trace_and_upgrades_a_kept_one() {
    let mut shard = Shard::new(config());
    shard.take(batch(0, vec![span(0xF0, 1, SpanFlags::ROOT), span(0x01, 1, SpanFlags::ROOT)]), Monotonic(0));
    turn_at(&mut shard, 3);
    // The plain late span comes first in the same turn: it must be kept with the error that follows.
    let late = vec![span(0x01, 2, PLAIN), span(0x01, 3, SpanFlags::ERROR), span(0xF0, 2, SpanFlags::ERROR)];
    shard.take(batch(1, late), Monotonic(4 * SECOND));
    assert!(turn_at(&mut shard, 4).dropped().next().is_none());
    let mut kept = turn_at(&mut shard, 40).kept;
    kept.sort_by_key(|trace| trace.trace_id);
    assert_eq!(
        kept.iter().map(|trace| (trace.reason, trace.spans.len())).collect::<Vec<_>>(),
        [(Reason::Error, 2), (Reason::Error, 1)]
    );
    assert_eq!(kept[1].threshold, Threshold::ALWAYS);
}

#[test]
fn tenants_with_the_same_trace_id_never_meet() {
    let mut shard = Shard::new(config());
    let other = Tenant::new("other").unwrap();
    shard.take(batch(0, vec![span(0x01, 1, SpanFlags::ROOT)]), Monotonic(0));
    let theirs = Batch { tenant: other.clone(), ..batch(1, vec![span(0x01, 2, SpanFlags::ERROR)]) };
    shard.take(theirs, Monotonic(0));
    assert_eq!(shard.trace(&other, TraceId([1; 16])).unwrap().spans.len(), 1);
    let turn = turn_at(&mut shard, 3);
    assert_eq!(turn.dropped().next().unwrap().0, &Tenant::default());
    assert_eq!(turn_at(&mut shard, 40).kept[0].tenant, other);
}

#[test]
fn memory_pressure_decides_the_heaviest_first_and_counts_the_rest_as_shed() {
    let limits = Limits { live_bytes_max: 100_000, ..Limits::default() };
    let mut shard = Shard::new(ShardConfig { limits, ..config() });
    let mut shed = 0;
    for offset in 0..2_000u64 {
        let mut spans = vec![span(1, 1, PLAIN); 10];
        for span in &mut spans {
            span.trace_id.0[8..].copy_from_slice(&offset.to_be_bytes());
        }
        shard.take(batch(offset, spans), Monotonic(offset));
        if let Some(turn) = shard.end_turn(Monotonic(offset), UnixNanos(0)) {
            assert!(turn.dropped().all(|(_, trace)| trace.shed));
            shed += turn.settled.iter().map(|settled| settled.counts.shed).sum::<u64>();
        }
        assert!(shard.gauges().live_bytes < 100_000);
    }
    assert_eq!(shed + shard.gauges().live_spans as u64, 20_000);
}

#[test]
fn an_oversized_trace_is_decided_and_the_rest_follows() {
    let limits = Limits { trace_spans_max: 100, ..Limits::default() };
    let mut shard = Shard::new(ShardConfig { limits, ..config() });
    let mut kept = 0;
    for offset in 0..100 {
        shard.take(batch(offset, vec![span(0xF0, 1, PLAIN); 10]), Monotonic(0));
        kept += kept_spans(&turn_at(&mut shard, 0)).iter().sum::<usize>();
    }
    kept += kept_spans(&turn_at(&mut shard, 40)).iter().sum::<usize>();
    assert_eq!(kept, 1_000);
}

#[test]
fn spans_are_found_until_the_archive_has_them() {
    let mut shard = Shard::new(config());
    shard.take(batch(0, vec![span(0xF0, 1, SpanFlags::ROOT)]), Monotonic(0));
    let (tenant, id) = (Tenant::default(), TraceId([0xF0; 16]));
    assert!(shard.trace(&tenant, id).unwrap().verdict.is_none());
    let turn = turn_at(&mut shard, 3);
    assert!(shard.trace(&tenant, id).unwrap().verdict.is_some());
    assert_eq!(shard.bodies(&tenant).len(), 1);
    shard.forget_archived(turn.number);
    assert!(shard.trace(&tenant, id).is_none() && shard.bodies(&tenant).is_empty());
}

#[test]
fn partitions_share_the_budget_of_bodies() {
    let limits = Limits { body_bytes_max: 1_000, ..Limits::default() };
    let mut shard = Shard::new(ShardConfig { limits, partitions: 2, ..config() });
    let mut take = |partition, record: u8| {
        let spans = vec![span(0x10 + record, 1, PLAIN)];
        let batch = Batch { partition: PartitionId(partition), ..batch(record.into(), spans) };
        shard.take(batch, Monotonic(0));
        shard.gauges().body_bytes
    };
    let alone: Vec<_> = (0..12).map(|record| take(0, record)).collect();
    assert_eq!(alone[9..], [1_000; 3], "one may use all of it");
    // The other has its half whatever the first one holds, and the first one makes room with its next record.
    let beside: Vec<_> = (12..24).map(|record| take(1, record)).collect();
    assert_eq!(beside[4..], [1_500; 8]);
    assert_eq!(take(0, 24), 1_000);
}

#[test]
fn bodies_of_kept_traces_count_until_the_archive_has_them() {
    let limits = Limits { body_bytes_max: 1_000, ..Limits::default() };
    let mut shard = Shard::new(ShardConfig { limits, ..config() });
    let held = |shard: &Shard| (shard.gauges().body_bytes, shard.is_ahead());
    for record in 0..6 {
        let spans = [0x10 + record, 0xA0 + record].map(|trace| span(trace, 1, SpanFlags::ROOT));
        shard.take(batch(record.into(), spans.into()), Monotonic(0));
    }
    assert_eq!(held(&shard), (600, false));
    let turn = turn_at(&mut shard, 3);
    assert_eq!((turn.kept.len(), turn.dropped().count()), (6, 6));
    let span_bytes: usize = turn.kept.iter().map(|trace| trace.span_bytes()).sum();
    assert_eq!(turn.kept_bytes, span_bytes);
    assert!(span_bytes > 0);
    assert_eq!(held(&shard), (600, true));
    // What is undecided has what the others leave, and nothing holds the bodies of traces that are dropped.
    for record in 6..12 {
        shard
            .take(batch(record.into(), vec![span(0x10 + record, 1, SpanFlags::ROOT)]), Monotonic(3 * SECOND));
    }
    assert_eq!(held(&shard), (1_000, true));
    assert_eq!(turn_at(&mut shard, 6).dropped().count(), 6);
    assert_eq!(held(&shard), (600, true));
    shard.forget_archived(turn.number);
    assert_eq!(held(&shard), (0, false));
}

#[test]
fn kept_spans_are_named_by_record_and_range_in_order_of_arrival() {
    let mut shard = Shard::new(config());
    // A hundred traces come two spans in a row, in two records; nearly all of them are let go before the others.
    let kept_early = |trace: u8| trace.is_multiple_of(16);
    for offset in 0..2 {
        let spans = (0..100).flat_map(|trace| [(trace, 2 * trace), (trace, 2 * trace + 1)]);
        let spans = spans.map(|(trace, number)| {
            let flags = if kept_early(trace) {
                SpanFlags::ERROR
            } else {
                SpanFlags(SpanFlags::ERROR.0 | SpanFlags::ROOT.0)
            };
            span(trace, number, flags)
        });
        shard.take(batch(offset, spans.collect()), Monotonic(0));
    }
    let places = |trace: u8, kept: &[ingest_aggregator::KeptSpan]| {
        let place = |offset, number: u8| (Offset(offset), u32::from(number) * 10);
        let expected =
            [place(0, 2 * trace), place(0, 2 * trace + 1), place(1, 2 * trace), place(1, 2 * trace + 1)];
        let got: Vec<_> =
            kept.iter().map(|span| (span.location.offset, span.location.range.position)).collect();
        assert_eq!(got, expected, "trace {trace}");
    };
    let before = shard.gauges().live_bytes;
    let rooted = turn_at(&mut shard, 3).kept;
    assert_eq!(rooted.len(), 93);
    rooted.iter().for_each(|trace| places(trace.trace_id.0[0], &trace.spans));
    assert!(shard.gauges().live_bytes < before / 8, "what is settled is not held");
    let live = shard.trace(&Tenant::default(), TraceId([16; 16])).unwrap();
    places(16, &live.spans);
    let rootless = turn_at(&mut shard, 31).kept;
    assert_eq!(rootless.len(), 7);
    rootless.iter().for_each(|trace| places(trace.trace_id.0[0], &trace.spans));
    assert_eq!(shard.gauges().live_bytes, 0);
}

#[test]
fn an_error_in_the_middle_of_late_spans_takes_those_before_it_along() {
    let mut shard = Shard::new(config());
    shard.take(batch(0, vec![span(0x01, 1, SpanFlags::ROOT)]), Monotonic(0));
    turn_at(&mut shard, 3);
    let late = vec![span(0x01, 2, PLAIN), span(0x01, 3, SpanFlags::ERROR), span(0x01, 4, PLAIN)];
    shard.take(batch(1, late), Monotonic(4 * SECOND));
    turn_at(&mut shard, 4);
    let kept = turn_at(&mut shard, 40).kept;
    let mut positions: Vec<u32> = kept[0].spans.iter().map(|span| span.location.range.position).collect();
    positions.sort_unstable();
    assert_eq!(positions, [20, 30, 40]);
    assert_eq!(shard.gauges().live_bytes, 0);
}

/// What settlement records keep of a turn.
fn observed(turn: &Turn) -> Observed {
    let memory = |t: &ingest_aggregator::KeptTrace| KeptMemory {
        reason: t.reason,
        threshold: t.threshold,
        trace_start: t.trace_start,
    };
    Observed {
        frontier: turn.frontier.clone(),
        watermark: turn.watermark.clone(),
        kept: turn.kept.iter().map(|t| (t.tenant.clone(), t.trace_id, memory(t))).collect(),
        dropped: turn.dropped().map(|(tenant, trace)| (tenant.clone(), trace.trace_id)).collect(),
    }
}

/// Where every span went: (offset, range position) -> how often it was settled, from the turns that count.
#[derive(Default)]
struct Ledger {
    kept: BTreeMap<(u64, u32), u32>,
    settled: u64,
    arrived: u64,
}

impl Ledger {
    fn add(&mut self, turn: &Turn) {
        for span in turn.kept.iter().flat_map(|trace| &trace.spans) {
            *self.kept.entry((span.location.offset.0, span.location.range.position)).or_default() += 1;
            self.settled += 1;
        }
        for Settled { counts, .. } in &turn.settled {
            self.arrived += counts.arrived;
            self.settled += counts.sampled_out + counts.shed;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// Crash at any turn: whatever the last settlement says happened did, everything else happens again, once.
    #[test]
    fn no_span_is_lost_or_doubled_by_a_crash(
        records in prop::collection::vec(prop::collection::vec((0u8..6, 0u8..8), 0..5), 1..40),
        gaps in prop::collection::vec(0u64..9, 40),
        crash_after in 0usize..40,
    ) {
        let timing = Timing { idle_timeout: Duration::from_secs(5), ..Timing::default() };
        let config = ShardConfig { timing, ..config() };
        let journal: Vec<Batch> = records.iter().zip(0..).map(|(spans, offset)| {
            let spans = spans.iter().zip(0u8..).map(|(&(trace, kind), number)| {
                let flags = match kind { 0 => SpanFlags::ERROR, 1 | 2 => SpanFlags::ROOT, _ => PLAIN };
                span(if trace < 3 { trace } else { 0xF0 + trace }, number, flags)
            });
            batch(offset, spans.collect())
        }).collect();
        let total: u64 = records.iter().map(|spans| spans.len() as u64).sum();
        let (mut ledger, mut resume, mut now) = (Ledger::default(), Resume::default(), 0);
        let mut shard = Shard::new(config.clone());
        let crash_after = crash_after % journal.len();
        for (index, record) in journal.iter().enumerate() {
            shard.take(record.clone(), Monotonic(now));
            now += gaps[index] * SECOND / 2;
            if let Some(turn) = shard.end_turn(Monotonic(now), UnixNanos(now)) {
                // The crash comes before this turn's settlement is durable.
                if index == crash_after { break; }
                ledger.add(&turn);
                resume.observe(observed(&turn));
            }
        }
        let mut shard = Shard::resume(config, &resume);
        now = 0;
        for (index, record) in journal.iter().enumerate() {
            if record.offset < resume.watermark(PartitionId(0)) { continue; }
            shard.take(record.clone(), Monotonic(now));
            now += gaps[index] * SECOND / 2;
            if let Some(turn) = shard.end_turn(Monotonic(now), UnixNanos(now)) { ledger.add(&turn); }
        }
        for _ in 0..100 {
            now += SECOND;
            if let Some(turn) = shard.end_turn(Monotonic(now), UnixNanos(now)) { ledger.add(&turn); }
        }
        prop_assert_eq!(shard.gauges().live_spans, 0);
        prop_assert_eq!((ledger.arrived, ledger.settled), (total, total));
        prop_assert!(ledger.kept.values().all(|&times| times == 1));
        let errors: BTreeSet<(u64, u32)> = journal.iter().flat_map(|batch| batch.spans.iter()
            .filter(|(run, _)| run.flags.has(SpanFlags::ERROR))
            .flat_map(|(_, ranges)| ranges.iter().map(|range| (batch.offset.0, range.position)))).collect();
        prop_assert!(errors.iter().all(|place| ledger.kept.contains_key(place)), "an error was sampled out");
    }
}
