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
            builder: TraceBuilder::with_capacity(trace.spans.len(), trace.span_bytes()),
            seen: if trace.late {
                Seen::Identities(Numbers::new(archived(trace)))
            } else {
                Seen::Ids(Numbers::new(Vec::with_capacity(trace.spans.len().min(FEW_MAX))))
            },
            locations: Vec::with_capacity(trace.spans.len()),
            expired: 0,
            duplicates: 0,
        })
        .collect();
    let mut wanted: Vec<(SpanLocation, usize, usize)> =
        Vec::with_capacity(traces.iter().map(|trace| trace.spans.len()).sum());
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

/// The spans a trace has. A span's id is enough to tell it from others, as a rule, and quicker to see than what
/// [`ingest_otlp::identity`] says of all its bytes; from the first id that comes twice on, identities are compared.
enum Seen {
    Ids(Numbers),
    Identities(Numbers),
}

impl Seen {
    /// False when it was there. `gathered` are the spans so far.
    fn insert<'a>(&mut self, span: &[u8], gathered: impl Iterator<Item = &'a [u8]>) -> bool {
        match self {
            Self::Ids(seen) => {
                let Some(id) = id_of(span) else {
                    return self.insert_identity(span, gathered);
                };
                seen.insert(id) || self.insert_identity(span, gathered)
            }
            Self::Identities(seen) => seen.insert(ingest_otlp::identity(span)),
        }
    }

    fn insert_identity<'a>(&mut self, span: &[u8], gathered: impl Iterator<Item = &'a [u8]>) -> bool {
        let mut seen = Numbers::new(gathered.map(ingest_otlp::identity).collect());
        let is_new = seen.insert(ingest_otlp::identity(span));
        *self = Self::Identities(seen);
        is_new
    }
}

/// The id of a span that begins as nearly all do, with a trace id of 16 bytes and an id of 8.
fn id_of(span: &[u8]) -> Option<u64> {
    let ids = span.first_chunk::<28>()?;
    let is_usual = ids[..2] == [0x0A, 16] && ids[18..20] == [0x12, 8];
    ids.last_chunk().filter(|_| is_usual).map(|&id| u64::from_le_bytes(id))
}

/// Distinct numbers.
enum Numbers {
    /// Compared one by one: most traces have a dozen spans or so.
    Few(Vec<u64>),
    Many(HashSet<u64>),
}

/// Beyond this, hashing is cheaper than comparing.
const FEW_MAX: usize = 32;

impl Numbers {
    fn new(numbers: Vec<u64>) -> Self {
        if numbers.len() <= FEW_MAX { Self::Few(numbers) } else { Self::Many(numbers.into_iter().collect()) }
    }

    /// False when it was there.
    fn insert(&mut self, number: u64) -> bool {
        match self {
            Self::Few(seen) if seen.contains(&number) => false,
            Self::Few(seen) if seen.len() < FEW_MAX => {
                seen.push(number);
                true
            }
            Self::Few(seen) => {
                *self = Self::Many(seen.drain(..).chain([number]).collect());
                true
            }
            Self::Many(seen) => seen.insert(number),
        }
    }
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
            let Building { builder, seen, locations, duplicates, expired: _ } = &mut building[trace];
            if seen.insert(span, builder.spans()) {
                builder.push(container, span);
                locations.push(location);
            } else {
                *duplicates += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u8, rest: &[u8]) -> Vec<u8> {
        [&[0x0A, 16][..], &[1; 16], &[0x12, 8], &[id; 8], rest].concat()
    }

    /// Which of `spans` are new, one after the other.
    fn new_ones(seen: &mut Seen, spans: &[Vec<u8>]) -> Vec<bool> {
        let mut gathered: Vec<&[u8]> = Vec::new();
        let mut is_new = |span| {
            let is_new = seen.insert(span, gathered.iter().copied());
            gathered.extend(is_new.then_some(span));
            is_new
        };
        spans.iter().map(|span| is_new(span.as_slice())).collect()
    }

    #[test]
    fn copies_are_found_whatever_ids_say() {
        let check = |spans: &[Vec<u8>], expected: &[bool]| {
            let mut seen = Seen::Ids(Numbers::new(Vec::new()));
            assert_eq!(new_ones(&mut seen, spans), expected);
        };
        let (a, b) = (span(1, b"a"), span(1, b"b"));
        check(&[a.clone(), span(2, b"a"), a.clone()], &[true, true, false]);
        check(&[a.clone(), b.clone(), a.clone(), b.clone(), span(3, b"")], &[true, true, false, false, true]);
        // Without ids where they are looked for.
        let odd = b"odd".to_vec();
        check(&[a.clone(), odd.clone(), odd, a, b], &[true, true, false, false, true]);
        let many: Vec<_> = (0..100).chain(0..100).map(|id| span(id, b"")).collect();
        let expected: Vec<_> = (0..200).map(|at| at < 100).collect();
        check(&many, &expected);
    }

    #[test]
    fn archived_spans_are_known_by_identity() {
        let mut seen = Seen::Identities(Numbers::new(vec![ingest_otlp::identity(&span(1, b"a"))]));
        assert_eq!(new_ones(&mut seen, &[span(1, b"a"), span(1, b"b"), span(1, b"b")]), [false, true, false]);
    }
}
