//! Fetches the bytes of kept traces. All traces of a batch are gathered together, so that a body is opened once however
//! many of them have spans in it.

use std::sync::Arc;

use hashbrown::HashSet;
use ingest_otlp::{Body, TraceBuilder};
use store_model::{BodyRange, Fragment, Offset, PartitionId, SpanLocation};

use crate::batch::KeptTrace;
use crate::prefetch::prefetch;

/// Where bodies come from that memory no longer holds.
pub trait BodySource {
    /// The decompressed body of a journal record; `None` when the journal no longer has it, or has it damaged.
    fn body(&mut self, partition: PartitionId, offset: Offset) -> Option<Arc<Body>>;
}

/// What became of one kept trace.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// Its spans, `None` when none is left.
    pub fragment: Option<Fragment>,
    /// Where the spans of the fragment lie, in its order.
    pub locations: Vec<SpanLocation>,
    /// Spans the journal no longer holds.
    pub expired: u32,
    /// Spans that are copies, byte for byte, of others of this trace.
    pub duplicates: u32,
}

struct Building {
    builder: TraceBuilder,
    seen: Seen,
    locations: Vec<SpanLocation>,
    expired: u32,
    duplicates: u32,
}

/// Gathers `traces`. `archived` names the spans ([`ingest_otlp::identity`]) of a trace that are in the archive already;
/// it is asked for late traces only.
pub fn gather(
    traces: &[Arc<KeptTrace>],
    source: &mut impl BodySource,
    archived: &mut impl FnMut(&KeptTrace) -> Vec<u64>,
) -> Vec<Gathered> {
    let mut building: Vec<Building> = traces
        .iter()
        .map(|trace| Building {
            builder: TraceBuilder::with_capacity(trace.spans.len(), span_bytes(trace)),
            seen: Seen::new(if trace.late {
                archived(trace)
            } else {
                Vec::with_capacity(trace.spans.len().min(FEW_MAX))
            }),
            locations: Vec::with_capacity(trace.spans.len()),
            expired: 0,
            duplicates: 0,
        })
        .collect();
    let mut wanted: Vec<(SpanLocation, usize, usize)> = Vec::new();
    for (number, trace) in traces.iter().enumerate() {
        wanted.extend(trace.spans.iter().enumerate().map(|(span, kept)| (kept.location, number, span)));
    }
    // Spans of one range differ in nothing that counts here.
    wanted.sort_unstable_by_key(|&(location, trace, _)| (sort_key(location), trace));
    let mut scratch = Scratch::default();
    for run in wanted.chunk_by(|(a, ..), (b, ..)| (a.partition, a.offset) == (b.partition, b.offset)) {
        let (place, trace, span) = run[0];
        let in_memory = traces[trace].spans[span].body.clone();
        let body = in_memory.or_else(|| source.body(place.partition, place.offset));
        gather_from(body.as_deref(), run, &mut building, &mut scratch);
    }
    traces.iter().zip(building).map(|(trace, building)| finish(trace, building)).collect()
}

/// Places in the order of partition, offset, position: one number compares faster than its parts.
fn sort_key(location: SpanLocation) -> u128 {
    let SpanLocation { partition, offset, range: BodyRange { position, length: _ } } = location;
    u128::from(partition.0) << 96 | u128::from(offset.0) << 32 | u128::from(position)
}

/// The spans a trace has, by identity.
enum Seen {
    /// Compared one by one: most traces have a dozen spans or so.
    Few(Vec<u64>),
    Many(HashSet<u64>),
}

/// Beyond this, hashing is cheaper than comparing.
const FEW_MAX: usize = 32;

impl Seen {
    fn new(identities: Vec<u64>) -> Self {
        if identities.len() <= FEW_MAX {
            Self::Few(identities)
        } else {
            Self::Many(identities.into_iter().collect())
        }
    }

    /// False when it was there.
    fn insert(&mut self, identity: u64) -> bool {
        match self {
            Self::Few(seen) if seen.contains(&identity) => false,
            Self::Few(seen) if seen.len() < FEW_MAX => {
                seen.push(identity);
                true
            }
            Self::Few(seen) => {
                *self = Self::Many(seen.drain(..).chain([identity]).collect());
                true
            }
            Self::Many(seen) => seen.insert(identity),
        }
    }
}

/// How long the spans of a trace are together.
fn span_bytes(trace: &KeptTrace) -> usize {
    trace.spans.iter().map(|span| span.location.range.length as usize).sum()
}

/// Vectors that every body uses again.
#[derive(Default)]
struct Scratch {
    ranges: Vec<BodyRange>,
    found: Vec<bool>,
}

fn gather_from(
    body: Option<&Body>,
    run: &[(SpanLocation, usize, usize)],
    building: &mut [Building],
    scratch: &mut Scratch,
) {
    let Scratch { ranges, found } = scratch;
    ranges.clear();
    ranges.extend(run.iter().map(|(place, ..)| place.range));
    found.clear();
    found.resize(run.len(), false);
    if let Some(body) = body {
        ranges.iter().take(SPANS_AHEAD).for_each(|&range| prefetch_span(body, range));
        let result = body.extract(ranges, &mut |index, container, span| {
            if let Some(&ahead) = ranges.get(index + SPANS_AHEAD) {
                prefetch_span(body, ahead);
            }
            let (location, trace, _) = run[index];
            found[index] = true;
            let building = &mut building[trace];
            if building.seen.insert(ingest_otlp::identity(span)) {
                building.builder.push(container, span);
                building.locations.push(location);
            } else {
                building.duplicates += 1;
            }
        });
        if let Err(error) = result {
            // The walk accepted this body when it came in, so it has changed since; what was not found is expired.
            tracing::error!(%error, partition = %run[0].0.partition, offset = %run[0].0.offset, "body cannot be read again");
        }
    }
    for (&found, &(_, trace, _)) in found.iter().zip(run) {
        building[trace].expired += u32::from(!found);
    }
}

/// A body has left the caches when its spans are gathered, so memory is asked for the bytes of a span while those before
/// it are copied.
const SPANS_AHEAD: usize = 3;

fn prefetch_span(body: &Body, range: BodyRange) {
    const LINE_BYTES: usize = 64;
    /// Longer spans are read in order, which the processor foresees by itself.
    const BYTES_MAX: usize = 16 * LINE_BYTES;
    let start = range.position as usize;
    let end = start + (range.length as usize).min(BYTES_MAX);
    (start..end).step_by(LINE_BYTES).filter_map(|at| body.bytes.get(at)).for_each(prefetch);
}

fn finish(trace: &KeptTrace, building: Building) -> Gathered {
    let Building { builder, locations, expired, duplicates, .. } = building;
    let span_count = builder.span_count();
    let fragment = (span_count > 0).then(|| Fragment {
        tenant: trace.tenant.clone(),
        trace_id: trace.trace_id,
        trace_start: trace.trace_start,
        end: trace.end,
        decided_at: trace.decided_at,
        reason: trace.reason,
        threshold: trace.threshold,
        complete: trace.complete,
        span_count,
        otlp: builder.finish(),
    });
    Gathered { fragment, locations, expired, duplicates }
}
