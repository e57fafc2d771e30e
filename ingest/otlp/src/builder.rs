//! Putting cut-out spans together again as one `TracesData`, and merging what was put together at different times.
//! Span bytes stay as they are, but for the sampling threshold in the tracestate.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use store_model::Threshold;
use store_model::sampling::with_threshold;

use crate::error::Error;
use crate::extract::{Container, every_span, extract};
use crate::walk::{RESOURCE_SPANS, SCOPE_SPANS, SPAN_ID, SPANS, TRACE_STATE};
use crate::wire::{Reader, delimited_bytes, put_delimited, put_delimiter};

/// Gathers spans under the containers they came in: spans whose resource bytes are equal share one `ResourceSpans`,
/// those whose scope bytes are equal too one `ScopeSpans`, all in order of first appearance.
#[derive(Debug, Default)]
pub struct TraceBuilder {
    resources: Groups<Groups<Vec<u8>>>,
    span_count: u32,
    byte_len: usize,
}

/// Things under headers, in order of first appearance.
#[derive(Debug)]
struct Groups<T> {
    members: Vec<(Arc<[u8]>, T)>,
    /// Empty until there are too many members to look at each.
    places: HashMap<Arc<[u8]>, usize>,
    last: usize,
}

/// Most traces have spans of a handful of services; comparing a few headers is cheaper than hashing one.
const MEMBERS_COMPARED_MAX: usize = 8;

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Self { members: Vec::new(), places: HashMap::new(), last: 0 }
    }
}

impl<T: Default> Groups<T> {
    /// The member under `header`; true if it is new.
    fn member(&mut self, header: &[u8]) -> (&mut T, bool) {
        // Spans mostly come in runs of one container.
        let again = self.members.get(self.last).is_some_and(|(last, _)| **last == *header);
        let mut is_new = false;
        if !again {
            self.last = self.place(header).unwrap_or_else(|| {
                is_new = true;
                self.add(header.into())
            });
        }
        (&mut self.members[self.last].1, is_new)
    }

    fn place(&self, header: &[u8]) -> Option<usize> {
        if self.members.len() <= MEMBERS_COMPARED_MAX {
            return self.members.iter().position(|(other, _)| **other == *header);
        }
        self.places.get(header).copied()
    }

    fn add(&mut self, header: Arc<[u8]>) -> usize {
        let place = self.members.len();
        self.members.push((header, T::default()));
        // The member that is one too many puts all of them into the map.
        if self.members.len() > MEMBERS_COMPARED_MAX {
            let missing = self.places.len()..self.members.len();
            self.places.extend(missing.map(|place| (Arc::clone(&self.members[place].0), place)));
        }
        place
    }
}

impl TraceBuilder {
    /// No spans yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a span, given as its message's bytes.
    pub fn push(&mut self, container: &Container<'_>, span: &[u8]) {
        let Self { resources, span_count, byte_len } = self;
        let (scopes, new_resource) = resources.member(container.resource());
        let (spans, new_scope) = scopes.member(container.scope());
        put_delimited(spans, SPANS, span);
        *span_count += 1;
        *byte_len += delimited_bytes(span.len());
        *byte_len += if new_resource { container.resource().len() } else { 0 };
        *byte_len += if new_scope { container.scope().len() } else { 0 };
    }

    /// How many spans were added.
    #[must_use]
    pub fn span_count(&self) -> u32 {
        self.span_count
    }

    /// How many bytes [`Self::finish`] would give, short of the few that frame each container.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.byte_len
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.span_count == 0
    }

    /// The `TracesData`.
    #[must_use]
    pub fn finish(self) -> Bytes {
        // A container is framed by a key of one byte and a length of up to five.
        const FRAME_BYTES: usize = 6;
        let frames: usize = self.resources.members.iter().map(|(_, scopes)| 1 + scopes.members.len()).sum();
        let mut out = Vec::with_capacity(self.byte_len + frames * FRAME_BYTES);
        for (resource, scopes) in &self.resources.members {
            let scopes = &scopes.members;
            let body_bytes: usize =
                scopes.iter().map(|(scope, spans)| delimited_bytes(scope.len() + spans.len())).sum();
            put_delimiter(&mut out, RESOURCE_SPANS, resource.len() + body_bytes);
            out.extend_from_slice(resource);
            for (scope, spans) in scopes {
                put_delimiter(&mut out, SCOPE_SPANS, scope.len() + spans.len());
                out.extend_from_slice(scope);
                out.extend_from_slice(spans);
            }
        }
        out.into()
    }
}

/// Makes one `TracesData` of several, and counts its spans. A span whose bytes were seen before is dropped; the
/// threshold of its fragment, if any, is written into each span's tracestate; the order of arrival stays.
///
/// # Errors
/// When a fragment is malformed.
pub fn merge(fragments: &[(&[u8], Option<Threshold>)]) -> Result<(Bytes, u32), Error> {
    let mut seen = HashSet::new();
    let mut builder = TraceBuilder::new();
    let mut rewritten = Vec::new();
    for &(otlp, threshold) in fragments {
        let mut outcome = Ok(());
        extract(otlp, &every_span(otlp)?, &mut |_, container, span| {
            if outcome.is_err() || !seen.insert(span) {
                return;
            }
            let Some(threshold) = threshold else {
                return builder.push(container, span);
            };
            rewritten.clear();
            outcome = write_threshold(span, threshold, &mut rewritten);
            builder.push(container, &rewritten);
        })?;
        outcome?;
    }
    let span_count = builder.span_count();
    Ok((builder.finish(), span_count))
}

/// Copies a span to `out` with `ot=th` in its tracestate. The last tracestate counts, so it is the one replaced; where
/// there is none, it goes to its usual place behind the span id.
fn write_threshold(span: &[u8], threshold: Threshold, out: &mut Vec<u8>) -> Result<(), Error> {
    let mut old: &[u8] = b"";
    let (mut cut_start, mut cut_end) = (0, 0);
    let mut has_old = false;
    let mut reader = Reader::new(span);
    while !reader.is_done() {
        let start = reader.position();
        match reader.key()? {
            TRACE_STATE => {
                old = reader.delimited()?;
                (cut_start, cut_end) = (start, reader.position());
                has_old = true;
            }
            SPAN_ID => {
                reader.delimited()?;
                if !has_old {
                    (cut_start, cut_end) = (reader.position(), reader.position());
                }
            }
            key => reader.skip(key)?,
        }
    }
    let new = with_threshold(&String::from_utf8_lossy(old), threshold);
    out.extend_from_slice(&span[..cut_start]);
    if has_old || !new.is_empty() {
        put_delimited(out, TRACE_STATE, new.as_bytes());
    }
    out.extend_from_slice(&span[cut_end..]);
    Ok(())
}

/// A number for a span's bytes: equal bytes have equal numbers, on every machine and in every version. Good enough to
/// find duplicates among spans; no defence against somebody who constructs collisions in his own traces.
#[must_use]
pub fn identity(span: &[u8]) -> u64 {
    // Multiply two words to 128 bits and fold the halves together, as wyhash and its kin do. The constants are the
    // fractional digits of pi.
    const WORDS: [u64; 3] = [0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7344, 0xA409_3822_299F_31D0];
    let fold = |a: u64, b: u64| {
        let high = (u128::from(a) * u128::from(b)) >> 64;
        a.wrapping_mul(b) ^ u64::try_from(high).unwrap_or_default()
    };
    let mut state = WORDS[0] ^ span.len() as u64;
    let (chunks, rest) = span.as_chunks::<16>();
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    for chunk in chunks.iter().chain([&last]) {
        let [a, b] = [0, 8].map(|at| chunk[at..].first_chunk().map_or(0, |&word| u64::from_le_bytes(word)));
        state = fold(a ^ WORDS[1], b ^ state);
    }
    fold(state ^ WORDS[2], WORDS[1])
}

#[cfg(test)]
mod tests {
    use store_model::BodyRange;

    use super::*;

    /// A field of one byte's key and length.
    fn field(key: u8, value: &[u8]) -> Vec<u8> {
        [&[key, u8::try_from(value.len()).unwrap()], value].concat()
    }

    #[test]
    fn what_stands_around_a_span_is_kept_to_the_byte() {
        let (first, second) = (field(0x12, b"span 1"), field(0x12, b"span 22"));
        let unknown = [0x98, 0x06, 0x81, 0x00];
        let scope = field(0x12, &[&field(0x1A, b"url")[..], &first, &unknown, &second].concat());
        let resource = [&field(0x0A, b"a")[..], &scope, &unknown, &field(0x0A, b"b")].concat();
        let body = field(0x0A, &resource);
        let wanted: Vec<BodyRange> = every_span(&body).unwrap();
        let mut builder = TraceBuilder::new();
        extract(&body, &wanted, &mut |_, container, span| {
            assert_eq!(container.resource(), [&field(0x0A, b"a")[..], &unknown, &field(0x0A, b"b")].concat());
            assert_eq!(container.scope(), [&field(0x1A, b"url")[..], &unknown].concat());
            builder.push(container, span);
        })
        .unwrap();
        let scope = field(0x12, &[&field(0x1A, b"url")[..], &unknown, &first, &second].concat());
        let resource = [&field(0x0A, b"a")[..], &unknown, &field(0x0A, b"b"), &scope].concat();
        assert_eq!(builder.finish(), field(0x0A, &resource));
    }

    #[test]
    fn groups_stand_in_order_of_first_appearance() {
        let container = |resource: &'static [u8], scope: &'static [u8]| Container::of(resource, scope);
        let mut builder = TraceBuilder::new();
        for (resource, scope, span) in [
            (b"B", b"x", b"1"),
            (b"A", b"x", b"2"),
            (b"B", b"y", b"3"),
            (b"B", b"x", b"4"),
            (b"A", b"x", b"5"),
        ] {
            builder.push(&container(resource, scope), span);
        }
        assert_eq!(builder.span_count(), 5);
        let scope = |name: &[u8], spans: &[&[u8]]| {
            let spans = spans.iter().flat_map(|span| field(0x12, span));
            field(0x12, &name.iter().copied().chain(spans).collect::<Vec<u8>>())
        };
        let b = [&b"B"[..], &scope(b"x", &[b"1", b"4"]), &scope(b"y", &[b"3"])].concat();
        let a = [&b"A"[..], &scope(b"x", &[b"2", b"5"])].concat();
        assert_eq!(builder.finish(), [field(0x0A, &b), field(0x0A, &a)].concat());
    }

    #[test]
    fn a_threshold_changes_only_the_tracestate() {
        let check = |span: &[Vec<u8>], expected: &[Vec<u8>]| {
            let mut out = Vec::new();
            write_threshold(&span.concat(), Threshold::from_probability(0.25), &mut out).unwrap();
            assert_eq!(out, expected.concat());
        };
        let [trace_id, span_id] = [field(0x0A, &[1; 16]), field(0x12, &[2; 8])];
        let [parent, name] = [field(0x22, &[3; 8]), field(0x2A, b"name")];
        let state = |text: &str| field(0x1A, text.as_bytes());
        let new = state("ot=th:c");
        check(
            &[trace_id.clone(), span_id.clone(), parent.clone()],
            &[trace_id.clone(), span_id.clone(), new.clone(), parent.clone()],
        );
        let old = state("ot=rv:00000000000abc,a=1");
        let both = state("ot=th:c;rv:00000000000abc,a=1");
        check(&[name.clone(), old.clone(), span_id.clone()], &[name.clone(), both.clone(), span_id.clone()]);
        check(&[state("x=1"), name.clone(), old], &[state("x=1"), name.clone(), both]);
        check(std::slice::from_ref(&name), &[new.clone(), name.clone()]);
        check(&[], &[new]);
    }

    #[test]
    fn merging_drops_copies_and_keeps_the_order_of_arrival() {
        let body = |spans: &[&[u8]]| {
            let spans: Vec<u8> = spans.iter().flat_map(|span| field(0x12, &field(0x2A, span))).collect();
            field(0x0A, &field(0x12, &spans))
        };
        let (merged, count) =
            merge(&[(&body(&[b"b", b"a", b"b"]), None), (&body(&[b"c", b"a"]), None), (b"", None)]).unwrap();
        assert_eq!((&merged[..], count), (&body(&[b"b", b"a", b"c"])[..], 3));
        assert!(merge(&[(&body(&[b"a"])[1..], None)]).is_err());
        assert!(
            merge(&[(&field(0x0A, &field(0x12, &field(0x12, b"\x0A"))), Some(Threshold::ALWAYS))]).is_err()
        );
    }

    #[test]
    fn identities_differ_in_every_bit_and_never_change() {
        // Written into stores: another number for the same bytes would double spans.
        assert_eq!(identity(b""), 12_572_389_119_662_025_932);
        assert_eq!(identity(b"sluicebox keeps the gold"), 14_805_150_672_458_340_728);
        let bytes: Vec<u8> = (0..101).collect();
        let mut seen = HashSet::new();
        for length in 0..100 {
            assert!(seen.insert(identity(&bytes[1..][..length])));
            assert!(seen.insert(identity(&[&bytes[1..][..length], &[0]].concat())));
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(identity(&flipped)));
        }
    }
}
