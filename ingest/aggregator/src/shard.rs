//! The state machine of one shard. See the crate's first page for the flow.
//!
//! Batches only collect; every decision falls at the end of a turn. That is what makes settlement records exact: a
//! turn's frontier cuts the journal at one point for all traces that the turn names.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use ingest_otlp::Body;
use ingest_sampler::{Policy, Sketches, SlowPolicy, decide};
use store_model::{
    Counts, Monotonic, Offset, PartitionId, Reason, SpanFlags, SpanSummary, Tenant, Threshold, TraceId,
    UnixNanos, Verdict,
};

use crate::batch::{Batch, DroppedTrace, KeptSpan, KeptTrace, Turn};
use crate::bodies::Bodies;
use crate::remembered::{KeptMemory, Remembered, ShardKey};
use crate::resume::{Filter, Resume};
use crate::table::{LiveTrace, Table};
use crate::wheel::{Entry, Tick, Wheel};

/// When a trace counts as finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// After its root, a trace that has been quiet for this long is finished.
    pub quiet_after_root: Duration,
    /// Without a root, a trace that has been quiet for this long is.
    pub idle_timeout: Duration,
    /// However busy, a trace is decided when it is this old.
    pub trace_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet_after_root: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            trace_timeout: Duration::from_secs(300),
        }
    }
}

/// What a shard may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of live traces and spans, bodies apart. At nine tenths the heaviest and oldest are decided early.
    pub live_bytes_max: usize,
    /// Bytes of bodies kept in memory; older ones are read back from the journal.
    pub body_bytes_max: usize,
    /// A trace with more spans than this is decided; later spans follow the decision.
    pub trace_spans_max: u32,
    /// Kept decisions remembered, per generation.
    pub kept_remembered_max: usize,
    /// Dropped decisions remembered, per generation.
    pub dropped_remembered_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            live_bytes_max: 512 << 20,
            body_bytes_max: 1 << 30,
            trace_spans_max: 200_000,
            kept_remembered_max: 500_000,
            dropped_remembered_max: 4_000_000,
        }
    }
}

/// How a shard is set up.
#[derive(Clone, Debug, Default)]
pub struct ShardConfig {
    /// How many partitions topic `spans` has on this node.
    pub partitions: u16,
    /// What is worth keeping.
    pub policy: Policy,
    /// What counts as slow.
    pub slow: SlowPolicy,
    /// When a trace is finished.
    pub timing: Timing,
    /// Memory.
    pub limits: Limits,
}

/// How full a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Traces that still receive spans.
    pub live_traces: usize,
    /// Their spans.
    pub live_spans: usize,
    /// Bytes of both.
    pub live_bytes: usize,
    /// Bytes of bodies held for them.
    pub body_bytes: usize,
}

/// The spans of a trace that are not in the archive yet.
#[derive(Clone, Debug)]
pub struct LiveSpans {
    /// Start of the earliest span.
    pub trace_start: UnixNanos,
    /// The root has arrived.
    pub root_seen: bool,
    /// Set once decided, while its bytes are on their way to the archive.
    pub verdict: Option<(Reason, Threshold)>,
    /// The spans, in order of arrival.
    pub spans: Vec<KeptSpan>,
}

/// The live traces of one shard.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    tenants: Vec<Tenant>,
    tenant_numbers: HashMap<Tenant, u32>,
    table: Table,
    wheel: Wheel,
    bodies: Vec<Bodies>,
    remembered: Remembered,
    sketches: Sketches,
    filter: Option<Filter>,
    in_flight: HashMap<ShardKey, Vec<(u64, Arc<KeptTrace>)>>,
    turn: OpenTurn,
    /// Of one block, kept for its memory.
    runs: Vec<Run>,
}

/// A journal record.
type Place = (PartitionId, Offset);

/// Spans of one trace in a row: the key, its hash, how many.
type Run = (ShardKey, u64, usize);

/// Spans looked at together. As many traces at most, each with five cache lines to ask for: what a core's first cache
/// holds.
const BLOCK_SPANS: usize = 128;

/// How far ahead the memory is asked for a trace that is due.
const TRACES_AHEAD: usize = 8;

/// What the current turn has collected so far.
#[derive(Debug, Default)]
struct OpenTurn {
    number: u64,
    has_news: bool,
    counts: HashMap<u32, Counts>,
    /// Spans of dropped traces: whether they follow the decision is known only when the turn ends.
    late: Vec<(ShardKey, Place, SpanSummary)>,
    oversized: Vec<u32>,
}

impl Shard {
    /// An empty shard, which has consumed nothing.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        let remembered =
            Remembered::new(config.limits.kept_remembered_max, config.limits.dropped_remembered_max);
        Self {
            tenants: Vec::new(),
            tenant_numbers: HashMap::new(),
            table: Table::new(),
            wheel: Wheel::new(),
            bodies: (0..config.partitions).map(|_| Bodies::new(Offset(0))).collect(),
            remembered,
            sketches: Sketches::new(config.slow.clone()),
            filter: None,
            in_flight: HashMap::new(),
            turn: OpenTurn::default(),
            runs: Vec::new(),
            config,
        }
    }

    /// A shard that goes on where its settlement records end. The journal is to be given again from
    /// [`Resume::watermark`] on.
    #[must_use]
    pub fn resume(config: ShardConfig, resume: &Resume) -> Self {
        let mut shard = Self::new(config);
        for (bodies, partition) in shard.bodies.iter_mut().zip(0..) {
            *bodies = Bodies::new(resume.watermark(PartitionId(partition)));
        }
        for turn in resume.decisions() {
            for (tenant, trace_id, memory) in &turn.kept {
                let key = (shard.tenant_number(tenant), *trace_id);
                let hash = shard.table.hash(key);
                shard.remembered.keep(key, hash, *memory);
            }
            for (tenant, trace_id) in &turn.dropped {
                let key = (shard.tenant_number(tenant), *trace_id);
                shard.remembered.drop(shard.table.hash(key));
            }
        }
        let numbers = &shard.tenant_numbers;
        shard.filter = Some(resume.filter(|tenant| numbers.get(tenant).copied().unwrap_or(u32::MAX)));
        shard
    }

    /// Takes the spans of one journal record. Records that were taken before are ignored.
    pub fn take(&mut self, batch: Batch, now: Monotonic) {
        let Batch { partition, offset, tenant, body, refused, summaries } = batch;
        let Some(bodies) = self.bodies.get(usize::from(partition.0)) else { return };
        if offset < bodies.consumed() {
            return;
        }
        self.turn.has_news = true;
        let tenant = self.tenant_number(&tenant);
        let seen_before = self.filter.as_ref().is_some_and(|filter| filter.was_consumed(partition, offset));
        if !seen_before {
            let counts = self.turn.counts.entry(tenant).or_default();
            counts.arrived += summaries.len() as u64 + u64::from(refused);
            counts.refused += u64::from(refused);
        }
        let mut undecided = 0;
        let place = (partition, offset);
        for block in summaries.chunks(BLOCK_SPANS) {
            // Senders batch the spans of a trace in a row, so that a run of them is looked up once.
            let mut runs = std::mem::take(&mut self.runs);
            runs.extend(block.chunk_by(|a, b| a.trace_id == b.trace_id).map(|run| {
                let key = (tenant, run[0].trace_id);
                (key, self.table.hash(key), run.len())
            }));
            self.prefetch(&runs);
            let mut spans = block;
            for (key, hash, length) in runs.drain(..) {
                let run;
                (run, spans) = spans.split_at(length);
                let filter = self.filter.as_ref().filter(|_| seen_before);
                if !filter.is_some_and(|filter| filter.is_settled(key, partition, offset)) {
                    undecided += u32::try_from(length).unwrap_or(u32::MAX);
                    self.take_run(key, hash, place, run, now);
                }
            }
            self.runs = runs;
        }
        self.bodies[usize::from(partition.0)].push(offset, tenant, body, undecided);
        self.bodies[usize::from(partition.0)].evict_to(self.config.limits.body_bytes_max);
        let bodies = &self.bodies;
        if self.filter.as_ref().is_some_and(|filter| filter.is_done(|index| bodies[index].consumed())) {
            self.filter = None;
        }
    }

    /// Ends the turn: takes every decision that is due. `None` when nothing happened since the last turn.
    pub fn end_turn(&mut self, now: Monotonic, at: UnixNanos) -> Option<Turn> {
        let mut turn = Turn { at, ..Turn::default() };
        self.settle_late(&mut turn, now);
        let mut due = Vec::new();
        self.wheel.advance(now, &mut due);
        for (number, &entry) in due.iter().enumerate() {
            if let Some(ahead) = due.get(number + TRACES_AHEAD) {
                self.table.prefetch_trace(ahead.slot);
            }
            if let Some(ahead) = due.get(number + TRACES_AHEAD / 2) {
                self.table.prefetch_removal(ahead.slot);
            }
            self.look_at(entry, &mut turn, now);
        }
        for slot in std::mem::take(&mut self.turn.oversized) {
            if self.table.spans_of(slot) > self.config.limits.trace_spans_max {
                self.settle(slot, Verdict::SampledOut, &mut turn);
            }
        }
        self.relieve_pressure(&mut turn, now);
        if !self.turn.has_news && turn.kept.is_empty() && turn.dropped.is_empty() {
            return None;
        }
        self.turn.has_news = false;
        self.turn.number += 1;
        turn.number = self.turn.number;
        for kept in &turn.kept {
            let number = self.tenant_number(&kept.tenant);
            let entry = self.in_flight.entry((number, kept.trace_id)).or_default();
            entry.push((turn.number, Arc::clone(kept)));
        }
        turn.frontier = self.bodies.iter().map(Bodies::consumed).collect();
        turn.watermark = self.bodies.iter().map(Bodies::watermark).collect();
        let counts = self.turn.counts.drain();
        turn.counts =
            counts.map(|(tenant, counts)| (self.tenants[tenant as usize].clone(), counts)).collect();
        Some(turn)
    }

    /// The kept traces of turns up to `number` are in the archive, where queries find them from now on.
    pub fn forget_archived(&mut self, number: u64) {
        if self.in_flight.is_empty() {
            return;
        }
        self.in_flight.retain(|_, traces| {
            traces.retain(|(turn, _)| *turn > number);
            !traces.is_empty()
        });
    }

    /// How full the shard is.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            live_traces: self.table.trace_count(),
            live_spans: self.table.span_count(),
            live_bytes: self.table.bytes(),
            body_bytes: self.bodies.iter().map(Bodies::resident_bytes).sum(),
        }
    }

    /// Whether the budget is used up although everything that could be decided was.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.table.bytes() >= self.config.limits.live_bytes_max
    }

    /// The spans of a trace that are not in the archive yet.
    #[must_use]
    pub fn trace(&self, tenant: &Tenant, trace_id: TraceId) -> Option<LiveSpans> {
        let key = (*self.tenant_numbers.get(tenant)?, trace_id);
        let flying = self.in_flight.get(&key).map_or(&[][..], Vec::as_slice);
        let slot = self.find(key);
        let live = slot.map(|slot| self.table.get(slot));
        let trace_start = self.trace_start(key)?;
        let mut spans: Vec<KeptSpan> =
            flying.iter().flat_map(|(_, trace)| trace.spans.iter().cloned()).collect();
        spans.extend(slot.into_iter().flat_map(|slot| self.kept_spans(slot)));
        let decided = flying.iter().map(|(_, trace)| (trace.reason, trace.threshold)).min();
        let inherited =
            live.as_ref().and_then(|live| live.inherited).map(|memory| (memory.reason, memory.threshold));
        let root_seen =
            flying.iter().any(|(_, trace)| trace.complete) || live.is_some_and(|l| l.root.is_some());
        Some(LiveSpans { trace_start, root_seen, verdict: decided.or(inherited), spans })
    }

    /// For each id the sort key of the trace, if it is not in the archive yet.
    #[must_use]
    pub fn undecided(&self, tenant: &Tenant, ids: &[TraceId]) -> Vec<Option<UnixNanos>> {
        let number = self.tenant_numbers.get(tenant).copied();
        ids.iter().map(|&trace_id| number.and_then(|number| self.trace_start((number, trace_id)))).collect()
    }

    /// The records that hold spans which are not in the archive yet, oldest first per partition.
    #[must_use]
    pub fn bodies(&self, tenant: &Tenant) -> Vec<(PartitionId, Offset, Option<Bytes>)> {
        let bytes = |body: &Option<Arc<Body>>| body.as_ref().map(|body| body.bytes.clone());
        let Some(&number) = self.tenant_numbers.get(tenant) else { return Vec::new() };
        let mut found = Vec::new();
        for (bodies, partition) in self.bodies.iter().zip(0..) {
            let own = bodies.undecided().filter(|body| body.tenant == number);
            found.extend(own.map(|body| (PartitionId(partition), body.offset, bytes(&body.bytes))));
        }
        let flying = self.in_flight.iter().filter(|((tenant, _), _)| *tenant == number);
        for (_, trace) in flying.flat_map(|(_, traces)| traces) {
            let place = |span: &KeptSpan| (span.location.partition, span.location.offset, bytes(&span.body));
            found.extend(trace.spans.iter().map(place));
        }
        found.sort_by_key(|(partition, offset, bytes)| (*partition, *offset, bytes.is_none()));
        found.dedup_by_key(|(partition, offset, _)| (*partition, *offset));
        found
    }

    fn trace_start(&self, key: ShardKey) -> Option<UnixNanos> {
        let flying = self.in_flight.get(&key).and_then(|traces| traces.first());
        if let Some((_, trace)) = flying {
            return Some(trace.trace_start);
        }
        let live = self.table.get(self.find(key)?);
        Some(live.inherited.map_or(live.start, |memory| memory.trace_start))
    }

    fn tenant_number(&mut self, tenant: &Tenant) -> u32 {
        if let Some(&number) = self.tenant_numbers.get(tenant) {
            return number;
        }
        let number = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        self.tenants.push(tenant.clone());
        self.tenant_numbers.insert(tenant.clone(), number);
        number
    }

    fn find(&self, key: ShardKey) -> Option<u32> {
        self.table.find(key, self.table.hash(key))
    }

    /// Asks the memory for what [`Self::take_run`] will look at, all runs at once: one after the other they would each
    /// wait for three or four lines that lie anywhere.
    fn prefetch(&self, runs: &[Run]) {
        for &(_, hash, _) in runs {
            self.table.prefetch_cell(hash);
            self.remembered.prefetch(hash);
        }
        for &(_, hash, _) in runs {
            self.table.prefetch_slot(hash);
        }
    }

    /// Adds spans to their live trace, opened if need be. Spans that are late wait for the end of the turn.
    fn take_run(&mut self, key: ShardKey, hash: u64, place: Place, run: &[SpanSummary], now: Monotonic) {
        let mut slot = self.table.find(key, hash);
        for span in run {
            if slot.is_none() {
                slot = self.slot_for(key, hash, place, span, now);
            }
            if let Some(slot) = slot {
                self.append(slot, place, span, now);
            }
        }
    }

    /// Opens the trace of a span that belongs to no live one; `None` when the span is late and waits.
    fn slot_for(
        &mut self,
        key: ShardKey,
        hash: u64,
        place: Place,
        span: &SpanSummary,
        now: Monotonic,
    ) -> Option<u32> {
        let inherited = self.remembered.kept(key, hash);
        // An error reopens a trace that was let go: what is left of it is kept.
        let is_error = span.flags.has(SpanFlags::ERROR);
        if inherited.is_none() && !is_error && self.remembered.was_dropped(hash) {
            self.turn.late.push((key, place, *span));
            return None;
        }
        let slot = self.table.insert(key, hash, span.randomness, inherited, now);
        self.schedule(slot, now.plus(self.config.timing.quiet_after_root), now);
        Some(slot)
    }

    fn append(&mut self, slot: u32, place: Place, span: &SpanSummary, now: Monotonic) {
        let (partition, offset) = place;
        if let Some(root) = self.table.append(slot, partition, offset, span, now) {
            self.sketches.record(&root, now);
        }
        if self.table.spans_of(slot) == self.config.limits.trace_spans_max.saturating_add(1) {
            self.turn.oversized.push(slot);
        }
    }

    fn deadline(&self, trace: &LiveTrace) -> Monotonic {
        let Timing { quiet_after_root, idle_timeout, trace_timeout } = self.config.timing;
        let is_short = trace.root.is_some() || trace.inherited.is_some();
        let quiet = if is_short { quiet_after_root } else { idle_timeout };
        trace.last_seen.plus(quiet).min(trace.first_seen.plus(trace_timeout))
    }

    /// Looks at the trace at its deadline, but no later than a root that arrives meanwhile would need it. So an
    /// arriving root schedules nothing, and a trace has one entry in the wheel.
    fn schedule(&mut self, slot: u32, deadline: Monotonic, now: Monotonic) {
        let tick = Tick::at_or_after(deadline.min(now.plus(self.config.timing.quiet_after_root)));
        self.table.set_scheduled(slot, tick);
        self.wheel.insert(slot, tick);
    }

    fn look_at(&mut self, entry: Entry, turn: &mut Turn, now: Monotonic) {
        let Entry { slot, tick } = entry;
        if !self.table.is_scheduled(slot, tick) {
            return;
        }
        let deadline = self.deadline(&self.table.get(slot));
        if deadline > now {
            self.schedule(slot, deadline, now);
            return;
        }
        self.settle(slot, Verdict::SampledOut, turn);
    }

    /// Spans of dropped traces follow the decision, unless an error reopened the trace in the same turn.
    fn settle_late(&mut self, turn: &mut Turn, now: Monotonic) {
        for (key, place, span) in std::mem::take(&mut self.turn.late) {
            let (partition, offset) = place;
            if let Some(slot) = self.find(key) {
                self.append(slot, place, &span, now);
                continue;
            }
            self.turn.counts.entry(key.0).or_default().sampled_out += 1;
            self.bodies[usize::from(partition.0)].settle(offset);
            let tenant = self.tenants[key.0 as usize].clone();
            turn.dropped.push(DroppedTrace { tenant, trace_id: key.1, shed: false, late: true });
        }
    }

    /// Decides on a trace. `otherwise` is what a trace that is not worth keeping becomes.
    fn settle(&mut self, slot: u32, otherwise: Verdict, turn: &mut Turn) {
        let trace = self.table.get(slot);
        let facts = trace.facts();
        let verdict = match trace.inherited {
            Some(memory) if !trace.has_error => {
                Verdict::Keep { reason: memory.reason, threshold: memory.threshold }
            }
            _ => decide(&facts, &self.config.policy, &self.sketches, Threshold::ALWAYS),
        };
        match (verdict, trace.inherited) {
            (Verdict::Keep { reason, threshold }, _) => self.keep(slot, &trace, reason, threshold, turn),
            // Errors are not kept by this policy, but the trace was, before.
            (_, Some(memory)) => self.keep(slot, &trace, memory.reason, memory.threshold, turn),
            _ => self.let_go(&trace, otherwise == Verdict::Shed, turn),
        }
        let Self { table, bodies, .. } = self;
        table.remove(slot, &mut |partition, offset| bodies[usize::from(partition.0)].settle(offset));
    }

    fn keep(&mut self, slot: u32, trace: &LiveTrace, reason: Reason, threshold: Threshold, turn: &mut Turn) {
        let trace_start = trace.inherited.map_or(trace.start, |memory| memory.trace_start);
        self.remembered.keep(
            trace.key,
            self.table.hash(trace.key),
            KeptMemory { reason, threshold, trace_start },
        );
        turn.kept.push(Arc::new(KeptTrace {
            tenant: self.tenants[trace.key.0 as usize].clone(),
            trace_id: trace.key.1,
            trace_start,
            end: trace.end,
            decided_at: turn.at,
            reason,
            threshold,
            complete: trace.root.is_some(),
            late: trace.inherited.is_some(),
            spans: self.kept_spans(slot).collect(),
        }));
    }

    fn let_go(&mut self, trace: &LiveTrace, shed: bool, turn: &mut Turn) {
        self.remembered.drop(self.table.hash(trace.key));
        let counts = self.turn.counts.entry(trace.key.0).or_default();
        let term = if shed { &mut counts.shed } else { &mut counts.sampled_out };
        *term += u64::from(trace.span_count);
        let tenant = self.tenants[trace.key.0 as usize].clone();
        turn.dropped.push(DroppedTrace { tenant, trace_id: trace.key.1, shed, late: false });
    }

    fn kept_spans(&self, slot: u32) -> impl Iterator<Item = KeptSpan> + '_ {
        self.table.locations(slot).map(|location| KeptSpan {
            location,
            body: self.bodies[usize::from(location.partition.0)].get(location.offset),
        })
    }

    /// Near the budget, decides the traces with the largest bytes x age until a fifth of it is free again.
    fn relieve_pressure(&mut self, turn: &mut Turn, now: Monotonic) {
        let budget = self.config.limits.live_bytes_max;
        if self.table.bytes() < budget / 10 * 9 {
            return;
        }
        let mut by_impact: Vec<(u128, u32)> = Vec::with_capacity(self.table.trace_count());
        by_impact.extend(self.table.slots().map(|slot| {
            let trace = self.table.get(slot);
            // One is added so that traces of this very turn still differ by weight.
            let age = now.since(trace.first_seen).as_nanos() + 1;
            (u128::from(trace.span_count) * age, slot)
        }));
        by_impact.sort_unstable_by(|a, b| b.cmp(a));
        for (_, slot) in by_impact {
            if self.table.bytes() <= budget / 5 * 4 {
                break;
            }
            self.settle(slot, Verdict::Shed, turn);
        }
    }
}
