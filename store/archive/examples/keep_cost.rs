//! What keeping a span costs, stage by stage: gathered from bodies that have left the cache, inserted, written into its
//! settlement record, sealed with its segment. Traffic is that of `sluicebox-bench load`: its templates are used as they
//! are. `keep_cost [shape: s l tracegen random] [kept spans] [zstd level]`; prints JSON.
//!
//! Rounds are those of a loaded shard: 10 bodies of 500 spans, of which every twelfth trace is kept. Making and walking
//! the bodies is not measured. `MIMALLOC_PURGE_DELAY=-1` makes the allocator keep freed memory, as the appliance does.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::sync::Arc;
use std::{env, fs};

use bytes::Bytes;
use clap::ValueEnum as _;
use ingest_aggregator::{BodySource, Gathered, KeptSpan, KeptTrace, gather};
use ingest_otlp::{Body, Containers};
use rustix::time::{ClockId, clock_gettime};
use store_archive::settlement::{DroppedDecision, KeptDecision, Settlement};
use store_archive::{Archive, ArchiveOptions};
use store_model::{
    Offset, PartitionId, Reason, ShardId, SpanLocation, SymbolCache, Symbols, Tenant, Threshold, UnixNanos,
};

use crate::plan::{Plan, PlanOptions};
use crate::shape::Shape;

#[path = "../../../bench/src/catalog.rs"]
mod catalog;
#[path = "../../../bench/src/plan.rs"]
#[expect(dead_code, reason = "the load generator uses more of it")]
mod plan;
#[path = "../../../bench/src/random.rs"]
mod random;
#[path = "../../../bench/src/shape.rs"]
#[expect(dead_code, reason = "the load generator uses more of it")]
mod shape;
#[path = "../../../bench/src/template.rs"]
#[expect(dead_code, reason = "the load generator uses more of it")]
mod template;
#[path = "../../../bench/src/wire.rs"]
#[expect(dead_code, reason = "the load generator uses more of it")]
mod wire;

/// The few errors that the load generator's modules above can meet.
mod error {
    #[derive(Debug, thiserror::Error)]
    pub(crate) enum Error {
        #[error("{0}")]
        Options(String),
        #[error("{what} is malformed")]
        Malformed { what: &'static str },
    }
}

/// The appliance's allocator, so that stages cost here what they cost there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One trace in so many is kept.
const KEPT_ONE_IN: u64 = 12;
/// Bodies gathered together.
const ROUND: usize = 10;
/// Bodies made before the first of them is gathered: 100 MB at shape S, more than caches hold.
const AHEAD: usize = 500;
const BASE_NS: u64 = 1_800_000_000_000_000_000;

type Failure = Box<dyn std::error::Error>;

/// A source that is never asked: all bodies are in memory.
struct NoJournal;

impl BodySource for NoJournal {
    fn body(&mut self, _: PartitionId, _: Offset) -> Option<Arc<Body>> {
        None
    }
}

#[derive(Default)]
struct Cost {
    spans: u64,
    raw_bytes: u64,
    file_bytes: u64,
    settlement_bytes: u64,
    open_bytes: usize,
    gather: u64,
    insert: u64,
    settle: u64,
    seal: u64,
    forget: u64,
}

fn main() -> Result<(), Failure> {
    let mut args = env::args().skip(1);
    let shape = args.next().map_or(Ok(Shape::S), |name| Shape::from_str(&name, true))?;
    let wanted: u64 = args.next().map_or(Ok(200_000), |text| text.parse())?;
    let mut options = ArchiveOptions::default();
    options.zstd_level = args.next().map_or(Ok(options.zstd_level), |text| text.parse())?;
    let directory = env::temp_dir().join(format!("keep_cost-{}", std::process::id()));
    options.directory.clone_from(&directory);
    let cost = run(shape, wanted, options);
    fs::remove_dir_all(&directory)?;
    let cost = cost?;
    let each = |sum: u64| sum as f64 / cost.spans.max(1) as f64;
    println!(
        "{{\"spans\":{},\"cpu_ns_a_span\":{{\"gather\":{:.0},\"insert\":{:.0},\"settle\":{:.0},\"seal\":{:.0},\
         \"forget\":{:.0},\"total\":{:.0}}},\"bytes_a_span\":{{\"raw\":{:.1},\"file\":{:.1},\"settlement\":{:.1},\
         \"open\":{:.1}}}}}",
        cost.spans,
        each(cost.gather),
        each(cost.insert),
        each(cost.settle),
        each(cost.seal),
        each(cost.forget),
        each(cost.gather + cost.insert + cost.settle + cost.seal + cost.forget),
        each(cost.raw_bytes),
        each(cost.file_bytes),
        each(cost.settlement_bytes),
        each(cost.open_bytes as u64),
    );
    Ok(())
}

fn run(shape: Shape, wanted: u64, options: ArchiveOptions) -> Result<Cost, Failure> {
    let plan = Plan::new(PlanOptions {
        shape,
        spans_per_request: 500,
        spans_per_trace: shape.spans_per_trace_default(),
        services: shape.services_default(),
        errors: 0.01,
        slow: 0.01,
        late: 0.0,
        no_root: 0.0,
        out_of_order: false,
        seed: 1,
    })?;
    let (archive, _) = Archive::open(options, 1)?;
    let mut writer = archive.writer(ShardId(0));
    let mut symbols = Symbols::new(1 << 16).cache();
    let mut cost = Cost::default();
    let mut offset = 0;
    while cost.spans < wanted {
        let mut bodies = Vec::with_capacity(AHEAD);
        for _ in 0..AHEAD {
            bodies.push(kept_of(&plan, offset, &mut symbols)?);
            offset += 1;
        }
        while !bodies.is_empty() {
            let mut kept = Vec::new();
            let mut dropped = Vec::new();
            for (of_body, dropped_of_body) in bodies.drain(..ROUND) {
                kept.extend(of_body);
                dropped.extend(dropped_of_body);
            }
            let start = cpu_ns();
            let gathered = gather(&kept, &mut NoJournal, &mut |_| Vec::new());
            let gathered_at = cpu_ns();
            let mut decisions = Vec::with_capacity(kept.len());
            for (trace, Gathered { fragment, locations, .. }) in kept.iter().zip(gathered) {
                let fragment = fragment.ok_or("a kept trace has no spans")?;
                cost.spans += u64::from(fragment.span_count);
                cost.raw_bytes += fragment.otlp.len() as u64;
                writer.insert(fragment);
                decisions.push(decision(trace, locations));
            }
            let inserted_at = cpu_ns();
            let settlement = Settlement {
                shard: ShardId(0),
                shards: 1,
                at: UnixNanos(BASE_NS),
                frontier: vec![Offset(offset)],
                watermark: vec![Offset(offset)],
                counts: Vec::new(),
                kept: decisions,
                dropped,
            };
            cost.settlement_bytes += settlement.encode().len() as u64;
            drop(settlement);
            let settled_at = cpu_ns();
            drop(kept);
            let forgotten_at = cpu_ns();
            let is_last = cost.spans >= wanted && bodies.is_empty();
            let open_bytes = writer.open_bytes();
            if writer.is_full() || is_last {
                let path = writer.seal(Offset(offset), UnixNanos(BASE_NS))?.ok_or("nothing to seal")?;
                cost.open_bytes += open_bytes;
                cost.file_bytes += fs::metadata(path)?.len();
            }
            cost.seal += cpu_ns() - forgotten_at;
            cost.gather += gathered_at - start;
            cost.insert += inserted_at - gathered_at;
            cost.settle += settled_at - inserted_at;
            cost.forget += forgotten_at - settled_at;
        }
    }
    Ok(cost)
}

/// The kept traces of body `number`, and the others.
fn kept_of(
    plan: &Plan,
    number: u64,
    symbols: &mut SymbolCache,
) -> Result<(Vec<Arc<KeptTrace>>, Vec<DroppedDecision>), Failure> {
    let base_ns = BASE_NS + number * 1_000_000;
    let bytes = Bytes::from(plan.body(number, 0, base_ns)).split_off(template::GRPC_PREFIX);
    let (mut containers, mut summaries) = (Containers::default(), Vec::new());
    ingest_otlp::summarise(&bytes, symbols, &mut containers, &mut |span| summaries.push(span))?;
    let body = Arc::new(Body { bytes, containers });
    // Stable: a trace's spans stay in the order they have in the body.
    summaries.sort_by_key(|span| span.trace_id);
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for spans in summaries.chunk_by(|a, b| a.trace_id == b.trace_id) {
        let trace_id = spans[0].trace_id;
        if u64::from(trace_id.0[15]) % KEPT_ONE_IN != 0 {
            dropped.push(DroppedDecision { tenant: Tenant::default(), trace_id, shed: false });
            continue;
        }
        let location = |range| SpanLocation { partition: PartitionId(0), offset: Offset(number), range };
        kept.push(Arc::new(KeptTrace {
            tenant: Tenant::default(),
            trace_id,
            trace_start: spans.iter().map(|span| span.start).min().unwrap_or_default(),
            end: UnixNanos(base_ns),
            decided_at: UnixNanos(base_ns + 2_000_000_000),
            reason: Reason::Head,
            threshold: Threshold::from_probability(0.08),
            complete: true,
            late: false,
            spans: spans
                .iter()
                .map(|span| KeptSpan { location: location(span.range), body: Some(Arc::clone(&body)) })
                .collect(),
        }));
    }
    Ok((kept, dropped))
}

fn decision(trace: &KeptTrace, spans: Vec<SpanLocation>) -> KeptDecision {
    KeptDecision {
        tenant: trace.tenant.clone(),
        trace_id: trace.trace_id,
        trace_start: trace.trace_start,
        decided_at: trace.decided_at,
        reason: trace.reason,
        threshold: trace.threshold,
        complete: trace.complete,
        spans,
    }
}

/// Processor time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or_default()
}
