//! What live traces cost, and where the bytes of undecided spans should lie: in the bodies they came in (references, as the
//! shard does it) or copied into an arena of the shard. `live_traces [live traces] [spans a trace]`; prints JSON.
//!
//! Simulated time makes traces end as fast as new ones begin, so that their number stands still. Half of a trace's spans
//! come a hundred requests after the first half; 8 of 100 traces are kept and gathered. Only the shard's own work is
//! measured: bodies are made and walked before.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::{env, fs};

use bytes::Bytes;
use ingest_aggregator::{Batch, BodySource, KeptTrace, Shard, ShardConfig, gather};
use ingest_otlp::messages::{
    AnyValue, ExportTraceServiceRequest, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, any_value,
};
use ingest_otlp::{Body, Containers};
use prost::Message;
use store_model::{
    BodyRange, Monotonic, Offset, PartitionId, SpanRuns, Symbols, Tenant, Threshold, TraceId, UnixNanos,
};

const SPANS: usize = 500;
const KEPT_SHARE: f64 = 0.08;
const QUIET_NS: u64 = 2_000_000_000;
/// Requests between the two halves of a trace.
const APART: usize = 100;
/// Requests made and walked before they are measured together.
const ROUND: usize = 64;

type Failure = Box<dyn std::error::Error>;

/// A source that is never asked: all bodies are in memory.
struct NoJournal;

impl BodySource for NoJournal {
    fn body(&mut self, _: PartitionId, _: Offset) -> Option<Arc<Body>> {
        None
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Holding {
    References,
    Arena,
}

#[derive(Default)]
struct Cost {
    spans: u64,
    kept_spans: u64,
    shard_ns: u64,
    copy_ns: u64,
    gather_ns: u64,
    held_bytes: usize,
    live_bytes: usize,
    live_traces: usize,
}

fn main() -> Result<(), Failure> {
    let mut args = env::args().skip(1);
    let live: usize = args.next().map_or(Ok(100_000), |text| text.parse())?;
    let spans_a_trace: usize = args.next().map_or(Ok(8), |text| text.parse())?;
    let template = Template::new()?;
    for (name, holding) in [("references", Holding::References), ("arena", Holding::Arena)] {
        let cost = run(&template, live, spans_a_trace, holding)?;
        let each = |ns: u64| ns as f64 / cost.spans.max(1) as f64;
        println!(
            "{{\"holding\":\"{name}\",\"live_traces\":{},\"spans_a_trace\":{spans_a_trace},\"spans\":{},\"kept_spans\":{},\
             \"cpu_ns_a_span\":{{\"table_and_decisions\":{:.1},\"copy\":{:.1},\"gather\":{:.1},\"total\":{:.1}}},\
             \"gather_cpu_ns_a_kept_span\":{:.0},\"live_bytes_a_span\":{:.1},\"held_bytes\":{},\"rss_kib\":{}}}",
            cost.live_traces,
            cost.spans,
            cost.kept_spans,
            each(cost.shard_ns),
            each(cost.copy_ns),
            each(cost.gather_ns),
            each(cost.shard_ns + cost.copy_ns + cost.gather_ns),
            cost.gather_ns as f64 / cost.kept_spans.max(1) as f64,
            cost.live_bytes as f64 / (cost.live_traces * spans_a_trace).max(1) as f64,
            cost.held_bytes,
            rss_kib()?,
        );
    }
    Ok(())
}

/// A request whose ids are patched in place, so that making millions of spans costs little.
struct Template {
    body: Vec<u8>,
    ranges: Vec<BodyRange>,
    bytes_before: Vec<usize>,
}

impl Template {
    fn new() -> Result<Self, Failure> {
        let text = |key: String, value: String| KeyValue {
            key,
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(value)) }),
        };
        let span = |n: usize| Span {
            trace_id: vec![1; 16],
            span_id: vec![1; 8],
            parent_span_id: Vec::new(),
            name: format!("GET /api/v1/items/{}", n % 16),
            kind: 2,
            start_time_unix_nano: 1_700_000_000_000_000_000,
            end_time_unix_nano: 1_700_000_000_001_000_000,
            attributes: (0..8)
                .map(|key| text(format!("http.request.header.{key}"), format!("value {n:05}")))
                .collect(),
            ..Span::default()
        };
        let scope_spans = vec![ScopeSpans { spans: (0..SPANS).map(span).collect(), ..ScopeSpans::default() }];
        let resource = Some(Resource {
            attributes: vec![text("service.name".into(), "shop".into())],
            ..Resource::default()
        });
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }],
        };
        let body = request.encode_to_vec();
        let mut ranges = Vec::new();
        let mut symbols = Symbols::new(100).cache();
        ingest_otlp::summarise(&body, &mut symbols, &mut Containers::default(), &mut |span| {
            ranges.push(span.range)
        })?;
        let bytes_before = ranges
            .iter()
            .scan(0, |sum, range| Some(std::mem::replace(sum, *sum + range.length as usize)))
            .collect();
        Ok(Self { body, ranges, bytes_before })
    }

    fn span_bytes(&self) -> usize {
        self.ranges.iter().map(|range| range.length as usize).sum()
    }

    /// A request with the spans of `traces`, as many of each in a row as fit.
    fn request(&self, traces: &[TraceId], spans_each: usize, number: u64) -> Vec<u8> {
        let mut body = self.body.clone();
        for (index, range) in self.ranges.iter().enumerate() {
            let at = range.position as usize;
            body[at + 2..at + 18].copy_from_slice(&traces[(index / spans_each).min(traces.len() - 1)].0);
            let id = number * SPANS as u64 + index as u64 + 1;
            body[at + 20..at + 28].copy_from_slice(&id.to_be_bytes());
        }
        body
    }
}

/// Bytes of undecided spans, one behind the other, overwritten once round.
struct Arena {
    bytes: Vec<u8>,
    request_bytes: usize,
}

impl Arena {
    fn place(&self, request: u64, template: &Template, index: usize) -> usize {
        let requests = self.bytes.len() / self.request_bytes;
        usize::try_from(request).unwrap_or(0) % requests * self.request_bytes + template.bytes_before[index]
    }

    fn copy(&mut self, request: u64, body: &[u8], template: &Template) {
        for (index, range) in template.ranges.iter().enumerate() {
            let place = self.place(request, template, index);
            let span = &body[range.position as usize..][..range.length as usize];
            self.bytes[place..place + span.len()].copy_from_slice(span);
        }
    }

    fn gather(&self, trace: &KeptTrace, template: &Template) -> Vec<u8> {
        let mut out = Vec::with_capacity(trace.spans.len() * self.request_bytes / SPANS);
        for span in &trace.spans {
            let index = template.ranges.binary_search(&span.location.range).unwrap_or(0);
            let place = self.place(span.location.offset.0, template, index);
            out.extend_from_slice(&self.bytes[place..place + span.location.range.length as usize]);
        }
        out
    }
}

fn run(template: &Template, live: usize, spans_a_trace: usize, holding: Holding) -> Result<Cost, Failure> {
    let half = (spans_a_trace / 2).max(1);
    let fresh = SPANS / spans_a_trace;
    let step_ns = QUIET_NS * fresh as u64 / live as u64;
    let mut config = ShardConfig { partitions: 1, ..ShardConfig::default() };
    config.policy.head = Threshold::from_probability(KEPT_SHARE);
    config.policy.keep_slow = false;
    config.limits.live_bytes_max = usize::MAX / 4;
    config.limits.body_bytes_max = usize::MAX / 4;
    let mut shard = Shard::new(config);
    let requests_live = live / fresh.max(1) + APART + ROUND * 4;
    let arena_bytes = if holding == Holding::Arena { template.span_bytes() * requests_live } else { 0 };
    // Touched now, so that the kernel clears no page while it is measured.
    let mut arena = Arena { bytes: vec![1; arena_bytes], request_bytes: template.span_bytes() };
    let mut symbols = Symbols::new(100).cache();
    let mut cost = Cost::default();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut waiting: VecDeque<Vec<TraceId>> = VecDeque::new();
    let (mut number, mut now) = (0, QUIET_NS);
    let rounds = requests_live * 2 / ROUND;
    for round in 0..rounds {
        let mut made = Vec::new();
        for _ in 0..ROUND {
            let news: Vec<TraceId> = (0..fresh).map(|_| trace_id(&mut random)).collect();
            let mut traces = news.clone();
            if spans_a_trace > 1 {
                waiting.push_back(news);
                traces.extend(if waiting.len() > APART {
                    waiting.pop_front().unwrap_or_default()
                } else {
                    Vec::new()
                });
            }
            let bytes = template.request(&traces, half, number);
            let (mut spans, mut containers) = (SpanRuns::default(), Containers::default());
            ingest_otlp::summarise(&bytes, &mut symbols, &mut containers, &mut |span| spans.push(&span))?;
            made.push((Bytes::from(bytes), containers, spans, number));
            number += 1;
        }
        // The first half fills the table, the second is measured.
        let is_measured = round >= rounds / 2;
        let start = cpu_ns()?;
        if holding == Holding::Arena {
            for (bytes, .., number) in &made {
                arena.copy(*number, bytes, template);
            }
        }
        let copied = cpu_ns()?;
        let mut turns = Vec::new();
        let mut span_count = 0;
        for (bytes, containers, spans, number) in made {
            span_count += spans.len() as u64;
            let body = match holding {
                Holding::References => Arc::new(Body { bytes, containers }),
                Holding::Arena => Body::unwalked(Bytes::new()),
            };
            let batch = Batch {
                partition: PartitionId(0),
                offset: Offset(number),
                tenant: Tenant::default(),
                body,
                holders: 1,
                refused: 0,
                spans,
            };
            now += step_ns;
            shard.take(batch, Monotonic(now));
            if number % 16 == 0 {
                turns.extend(shard.end_turn(Monotonic(now), UnixNanos(now)));
            }
        }
        let settled = cpu_ns()?;
        let kept: Vec<_> = turns.iter().flat_map(|turn| turn.kept.iter().cloned()).collect();
        match holding {
            Holding::References => drop(gather(&kept, &mut NoJournal, &mut |_| Vec::new())),
            Holding::Arena => kept.iter().for_each(|trace| drop(arena.gather(trace, template))),
        }
        let gathered = cpu_ns()?;
        shard.forget_archived(turns.last().map_or(0, |turn| turn.number));
        if is_measured {
            cost.spans += span_count;
            cost.kept_spans += kept.iter().map(|trace| trace.spans.len() as u64).sum::<u64>();
            cost.copy_ns += copied - start;
            cost.shard_ns += settled - copied;
            cost.gather_ns += gathered - settled;
        }
    }
    let gauges = shard.gauges();
    cost.held_bytes = gauges.body_bytes + arena.bytes.len();
    cost.live_bytes = gauges.live_bytes;
    cost.live_traces = gauges.live_traces;
    Ok(cost)
}

/// The next of a fixed sequence (xorshift64*).
fn trace_id(state: &mut u64) -> TraceId {
    let mut next = || {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&next().to_be_bytes());
    id[8..].copy_from_slice(&next().to_be_bytes());
    TraceId(id)
}

/// Processor time of this thread.
fn cpu_ns() -> Result<u64, Failure> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split(' ').next().unwrap_or_default().parse()?)
}

fn rss_kib() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
}
