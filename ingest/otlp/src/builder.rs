//! Putting cut-out spans together again as one `TracesData`, and merging what was put together at different times.
//! Span bytes stay as they are, but for the sampling threshold in the tracestate.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;

use bytes::Bytes;
use store_model::Threshold;
use store_model::sampling::with_threshold;

use crate::error::Error;
use crate::extract::{Container, every_span, extract};
use crate::walk::{RESOURCE_SPANS, SCOPE_SPANS, SPAN_ID, SPANS, TRACE_STATE};
use crate::wire::{Reader, delimited_bytes, put_delimited, put_delimiter};

/// Gathers spans under the containers they came in: spans whose resource bytes are equal share one `ResourceSpans`,
/// those whose scope bytes are equal too one `ScopeSpans`, all in order of first appearance.
#[derive(Debug)]
pub struct TraceBuilder {
    /// Of every node, in the order they came.
    bytes: Vec<u8>,
    /// A tree of three levels below the first node: resources, their scopes, their spans.
    nodes: Vec<Node>,
    /// The children of nodes that have too many to look at each, by parent and hash.
    places: HashMap<(u32, u64), Vec<u32>>,
    span_count: u32,
}

/// A resource or a scope, as what stands around its spans; or a span, framed.
#[derive(Debug, Default)]
struct Node {
    start: usize,
    end: usize,
    /// Of all children's own bytes.
    children_bytes: usize,
    children: Option<Children>,
    next: Option<u32>,
}

/// The children of a node; each knows the next.
#[derive(Clone, Copy, Debug)]
struct Children {
    first: u32,
    last: u32,
    /// Spans mostly come in runs of one container.
    last_found: u32,
    count: u32,
}

/// The node that resources are children of.
const ROOT: u32 = 0;

/// Most traces have spans of a handful of services; comparing a few headers is cheaper than hashing one.
const CHILDREN_COMPARED_MAX: u32 = 8;

impl Default for TraceBuilder {
    fn default() -> Self {
        Self::with_capacity(0, 0)
    }
}

impl TraceBuilder {
    /// No spans yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Self::new`], with room for so many spans of so many bytes in all.
    #[must_use]
    pub fn with_capacity(spans: usize, span_bytes: usize) -> Self {
        // Containers are fewer than spans, as a rule, and take a few hundred bytes each.
        let mut nodes = Vec::with_capacity(2 * spans + 4);
        nodes.push(Node::default());
        let bytes = Vec::with_capacity(span_bytes + spans * 128);
        Self { bytes, nodes, places: HashMap::new(), span_count: 0 }
    }

    /// Adds a span, given as its message's bytes.
    pub fn push(&mut self, container: &Container<'_>, span: &[u8]) {
        let resource = self.child(ROOT, container.resource());
        let scope = self.child(resource, container.scope());
        let start = self.bytes.len();
        put_delimited(&mut self.bytes, SPANS, span);
        self.add(scope, start);
        self.span_count += 1;
    }

    /// The child of `parent` with these bytes.
    fn child(&mut self, parent: u32, header: &[u8]) -> u32 {
        if let Some(children) = self.node(parent).children {
            if self.header(children.last_found) == header {
                return children.last_found;
            }
            if let Some(found) = self.find(parent, children, header) {
                self.node_mut(parent).children = Some(Children { last_found: found, ..children });
                return found;
            }
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        let added = self.add(parent, start);
        self.note_place(parent, added);
        added
    }

    fn find(&self, parent: u32, children: Children, header: &[u8]) -> Option<u32> {
        if children.count <= CHILDREN_COMPARED_MAX {
            return self.children(parent).find(|&child| self.header(child) == header);
        }
        let alike = self.places.get(&(parent, self.hash(header)))?;
        alike.iter().copied().find(|&child| self.header(child) == header)
    }

    fn hash(&self, header: &[u8]) -> u64 {
        self.places.hasher().hash_one(header)
    }

    /// The child that is one too many puts all of them into the map.
    fn note_place(&mut self, parent: u32, added: u32) {
        let count = self.node(parent).children.map_or(0, |children| children.count);
        let missing: Vec<u32> = match count {
            ..=CHILDREN_COMPARED_MAX => return,
            count if count == CHILDREN_COMPARED_MAX + 1 => self.children(parent).collect(),
            _ => vec![added],
        };
        for child in missing {
            let hash = self.hash(self.header(child));
            self.places.entry((parent, hash)).or_default().push(child);
        }
    }

    /// Adds the bytes from `start` on as the last child of `parent`.
    fn add(&mut self, parent: u32, start: usize) -> u32 {
        let added = u32::try_from(self.nodes.len()).expect("a trace in memory has fewer than 2^31 spans");
        self.nodes.push(Node { start, end: self.bytes.len(), ..Node::default() });
        let children = match self.node(parent).children {
            None => Children { first: added, last: added, last_found: added, count: 1 },
            Some(Children { first, last, count, .. }) => {
                self.node_mut(last).next = Some(added);
                Children { first, last: added, last_found: added, count: count + 1 }
            }
        };
        let bytes = self.bytes.len() - start;
        let parent = self.node_mut(parent);
        parent.children = Some(children);
        parent.children_bytes += bytes;
        added
    }

    fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize]
    }

    fn node_mut(&mut self, number: u32) -> &mut Node {
        &mut self.nodes[number as usize]
    }

    fn header(&self, number: u32) -> &[u8] {
        let Node { start, end, .. } = *self.node(number);
        &self.bytes[start..end]
    }

    fn children(&self, parent: u32) -> impl Iterator<Item = u32> {
        let first = self.node(parent).children.map(|children| children.first);
        std::iter::successors(first, |&child| self.node(child).next)
    }

    /// The messages of the spans that were added, container by container.
    pub fn spans(&self) -> impl Iterator<Item = &[u8]> {
        let scopes = self.children(ROOT).flat_map(|resource| self.children(resource));
        // A span is kept behind its key, of one byte, and its length.
        let message =
            |framed: &'_ [u8]| framed[1..].iter().position(|byte| *byte < 0x80).map_or(0, |at| at + 2);
        scopes.flat_map(|scope| self.children(scope)).map(move |span| {
            let framed = self.header(span);
            &framed[message(framed)..]
        })
    }

    /// How many spans were added.
    #[must_use]
    pub fn span_count(&self) -> u32 {
        self.span_count
    }

    /// How many bytes [`Self::finish`] would give, short of the few that frame each container.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.span_count == 0
    }

    /// The `TracesData`.
    #[must_use]
    pub fn finish(self) -> Bytes {
        let scope_bytes = |scope: u32| self.header(scope).len() + self.node(scope).children_bytes;
        let resource_bytes = |resource: u32| {
            let scopes = self.children(resource).map(|scope| delimited_bytes(scope_bytes(scope)));
            self.header(resource).len() + scopes.sum::<usize>()
        };
        let all_bytes = self.children(ROOT).map(|resource| delimited_bytes(resource_bytes(resource))).sum();
        let mut out = Vec::with_capacity(all_bytes);
        for resource in self.children(ROOT) {
            put_delimiter(&mut out, RESOURCE_SPANS, resource_bytes(resource));
            out.extend_from_slice(self.header(resource));
            for scope in self.children(resource) {
                put_delimiter(&mut out, SCOPE_SPANS, scope_bytes(scope));
                out.extend_from_slice(self.header(scope));
                self.children(scope).for_each(|span| out.extend_from_slice(self.header(span)));
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
    fn spans_are_told_as_they_were_added() {
        let mut builder = TraceBuilder::new();
        let spans: Vec<Vec<u8>> = [0, 1, 127, 128, 200, 20_000].map(|length| vec![0x81; length]).into();
        spans.iter().for_each(|span| builder.push(&Container::of(b"resource", b"scope"), span));
        builder.push(&Container::of(b"other", b"scope"), b"last");
        let told: Vec<&[u8]> = builder.spans().collect();
        assert!(told[..6].iter().zip(&spans).all(|(told, span)| told == span));
        assert_eq!(told[6..], [b"last"]);
    }

    #[test]
    fn many_containers_are_told_apart_and_found_again() {
        let names: Vec<[u8; 1]> = (b'a'..=b'z').map(|name| [name]).collect();
        let mut builder = TraceBuilder::new();
        for round in [b"1", b"2"] {
            for name in &names {
                builder.push(&Container::of(name, name), round);
            }
        }
        let group = |name: &[u8; 1]| {
            let spans = [field(0x12, b"1"), field(0x12, b"2")].concat();
            let scope = field(0x12, &[&name[..], &spans].concat());
            field(0x0A, &[&name[..], &scope].concat())
        };
        assert_eq!(builder.finish(), names.iter().map(group).collect::<Vec<_>>().concat());
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
