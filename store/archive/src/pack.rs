//! The packed form of a fragment's OTLP: what spans repeat (resources, scopes, names, attributes) is a reference to a piece,
//! kept once a segment; ids and times are short numbers. Whatever does not look as senders write it stays as it is, so that
//! every byte comes back. Owns no pieces: whoever packs numbers them, whoever unpacks hands them out.
//!
//! ```text
//! stream      operations, end to end; the pieces they take stand beside it, in the order they are taken
//!
//! literal     00, length varint, bytes
//! resource    01, length of the `ResourceSpans` varint; takes a piece: its fields in front of the first `ScopeSpans`
//! scope       02, length of the `ScopeSpans` varint; takes a piece: its fields in front of the first span
//! span        128 + flags, with STATE a piece, id, with PARENT an id, a piece: name and kind, start and duration (signed
//!             distance from the start of the span before, the first from the trace's; from the start), number of
//!             attributes varint, a piece each, with TAIL a piece, with LONG_TAIL length varint and bytes
//! id          0 and 8 bytes that are new, or how many new ids ago it was new, u8
//!
//! flags       FRAMED 1      its key and length stand in front of it
//!             STATE 2       a tracestate stands in front of the parent
//!             PARENT 4      a parent of 8 bytes
//!             TAIL 8        fields behind the attributes
//!             LONG_TAIL 16  the same, too long to be a piece
//! ```
//! The span that an operation stands for begins with the trace's id and an id of 8 bytes, in the order of protobuf's
//! fields. Pieces are whole fields, keys and lengths included.

use std::ops::Range;

use store_index::Error as FormatError;
use store_index::codec::{Cursor, count, put_bytes, put_delta, put_varint};
use store_model::{TraceId, UnixNanos};

const LITERAL: u8 = 0;
const RESOURCE: u8 = 1;
const SCOPE: u8 = 2;
const SPAN: u8 = 0x80;

const FRAMED: u8 = 1;
const STATE: u8 = 2;
const PARENT: u8 = 4;
const TAIL: u8 = 8;
const LONG_TAIL: u8 = 16;

/// Ids are sought among so many new ones before. A parent further away costs eight bytes.
const IDS_BACK_MAX: usize = 64;

/// What follows the attributes repeats itself when it is short: flags, a status without a message. Events do not.
const TAIL_PIECE_MAX: usize = 64;

/// The keys of one byte that packing knows, by what they are to the message they stand in.
mod key {
    pub(super) const RESOURCE_SPANS: u8 = 0x0A;
    pub(super) const SCOPE_SPANS: u8 = 0x12;
    pub(super) const SPAN: u8 = 0x12;
    /// Resource or scope, and the URL of a schema.
    pub(super) const OF_CONTAINER: [u8; 2] = [0x0A, 0x1A];
    pub(super) const TRACE_STATE: u8 = 0x1A;
    pub(super) const PARENT: u8 = 0x22;
    pub(super) const NAME: u8 = 0x2A;
    pub(super) const KIND: u8 = 0x30;
    pub(super) const START: u8 = 0x39;
    pub(super) const END: u8 = 0x41;
    pub(super) const ATTRIBUTE: u8 = 0x4A;
}

/// What a piece is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The fields of a `ResourceSpans`.
    Resource,
    /// One attribute of a span.
    Attribute,
    /// Anything else that has no attributes: a scope, a name.
    Plain,
    /// Fields of a span among which may be attributes.
    Fields,
}

/// Who numbers pieces.
pub(crate) trait Number {
    /// Appends the numbers of pieces, which are parts of `bytes`, to `taken`.
    fn pieces(&mut self, bytes: &[u8], parts: &[(Part, Range<usize>)], taken: &mut Vec<u32>);
    /// Fields of a span that become no piece.
    fn loose(&mut self, fields: &[u8]);
}

/// One fragment's OTLP, packed.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) stream: Box<[u8]>,
    /// The pieces that the stream takes, by number.
    pub(crate) pieces: Box<[u32]>,
    pub(crate) otlp_bytes: usize,
}

impl Packed {
    /// Bytes on the heap.
    pub(crate) fn bytes(&self) -> usize {
        self.stream.len() + size_of_val(&*self.pieces)
    }
}

/// Packs one fragment after the other, span by span.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    stream: Vec<u8>,
    pieces: Vec<u32>,
    /// The pieces of the span that is being packed.
    parts: Vec<(Part, Range<usize>)>,
    ids: Ids,
    trace_id: TraceId,
    start: u64,
    /// Up to where the OTLP is packed.
    done: usize,
    /// Where the messages lie, and end, that the last span lies in.
    resource_start: usize,
    resource_end: usize,
    scope_end: usize,
    resource: Option<u32>,
}

/// The pieces that hold all that a span is found by, beside attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// Its resource, whole.
    pub(crate) resource: u32,
    /// Its name and its kind.
    pub(crate) name: u32,
    /// Its status.
    pub(crate) tail: Tail,
}

/// What follows a span's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    None,
    Piece(u32),
    /// Too long to be a piece.
    Long,
}

impl Packer {
    /// Begins a fragment.
    pub(crate) fn begin(&mut self, trace_id: TraceId, trace_start: UnixNanos) {
        let Self { stream, pieces, parts: _, ids, trace_id: id, start, done, .. } = self;
        stream.clear();
        pieces.clear();
        ids.0.clear();
        (*id, *start, *done) = (trace_id, trace_start.0, 0);
        (self.resource_start, self.resource_end, self.scope_end, self.resource) = (0, 0, 0, None);
    }

    /// Up to where the fragment is packed.
    pub(crate) fn done(&self) -> usize {
        self.done
    }

    /// The message of the resource that the last span belongs to, its key included.
    pub(crate) fn resource_spans<'a>(&self, otlp: &'a [u8]) -> &'a [u8] {
        otlp.get(self.resource_start..self.resource_end).unwrap_or_default()
    }

    /// Where the next span is if everything is as senders write it.
    pub(crate) fn next_span(&self, otlp: &[u8]) -> Option<Range<usize>> {
        let mut at = self.done;
        let is_next_resource = at == self.resource_end;
        if is_next_resource {
            at = container_fields_end(otlp, field(otlp, at, key::RESOURCE_SPANS)?);
        }
        if is_next_resource || at == self.scope_end {
            at = container_fields_end(otlp, field(otlp, at, key::SCOPE_SPANS)?);
        }
        field(otlp, at, key::SPAN)
    }

    /// Ends a fragment: what was not packed yet stays as it is.
    pub(crate) fn finish(&mut self, otlp: &[u8]) -> Packed {
        self.literal(otlp, otlp.len());
        Packed {
            stream: self.stream.as_slice().into(),
            pieces: self.pieces.as_slice().into(),
            otlp_bytes: otlp.len(),
        }
    }

    /// Packs the span at `range`, and what stands before it. `None` when something is not as senders write it; then
    /// `numbers` has not seen everything.
    pub(crate) fn span(
        &mut self,
        otlp: &[u8],
        range: Range<usize>,
        numbers: &mut impl Number,
    ) -> Option<Said> {
        let span = &otlp[range.clone()];
        let frame_bytes = 1 + varint_bytes(span.len());
        let frame_start = range.start.checked_sub(frame_bytes).filter(|&at| at >= self.done);
        let frame_start = frame_start.filter(|&at| field(otlp, at, key::SPAN) == Some(range.clone()));
        let prefix_end = frame_start.unwrap_or(range.start);
        if self.done < prefix_end && self.containers(otlp, prefix_end, range.end, numbers).is_none() {
            self.literal(otlp, prefix_end);
            (self.resource, self.resource_end, self.scope_end) = (None, usize::MAX, usize::MAX);
        }
        let Some((name, tail)) = self.fields(span, frame_start.is_some(), numbers) else {
            self.literal(otlp, range.end);
            return None;
        };
        self.done = range.end;
        self.resource.map(|resource| Said { resource, name, tail })
    }

    fn literal(&mut self, otlp: &[u8], end: usize) {
        if self.done < end {
            self.stream.push(LITERAL);
            put_bytes(&mut self.stream, &otlp[self.done..end]);
            self.done = end;
        }
    }

    /// Packs the beginnings of the messages that a span lies in, if `end` is where they end.
    fn containers(
        &mut self,
        otlp: &[u8],
        end: usize,
        span_end: usize,
        numbers: &mut impl Number,
    ) -> Option<()> {
        let mut at = self.done;
        let mut resource = None;
        if at == self.resource_end {
            let message = field(otlp, at, key::RESOURCE_SPANS)?;
            at = container_fields_end(otlp, message.clone());
            // A resource may have more fields behind its spans, which belong to its spans too.
            if !only_scopes(otlp, at..message.end) {
                return None;
            }
            resource = Some((message, at));
        } else if at != self.scope_end || self.resource.is_none() {
            return None;
        }
        let scope = field(otlp, at, key::SCOPE_SPANS)?;
        let resource_end = resource.as_ref().map_or(self.resource_end, |(message, _)| message.end);
        let is_inside = scope.end >= span_end && resource_end >= scope.end;
        if !is_inside || container_fields_end(otlp, scope.start..end) != end {
            return None;
        }
        if let Some((message, fields_end)) = resource {
            self.stream.push(RESOURCE);
            put_varint(&mut self.stream, count(message.len()));
            numbers.pieces(otlp, &[(Part::Resource, message.start..fields_end)], &mut self.pieces);
            self.resource = self.pieces.last().copied();
            (self.resource_start, self.resource_end) = (self.done, message.end);
        }
        self.stream.push(SCOPE);
        put_varint(&mut self.stream, count(scope.len()));
        numbers.pieces(otlp, &[(Part::Plain, scope.start..end)], &mut self.pieces);
        self.scope_end = scope.end;
        self.done = end;
        Some(())
    }

    /// Packs a span's message. Returns the piece of its name and the tail, or `None` having done nothing.
    fn fields(&mut self, span: &[u8], is_framed: bool, numbers: &mut impl Number) -> Option<(u32, Tail)> {
        let (ids, _) = span.split_first_chunk::<28>()?;
        let is_usual = ids[..2] == [0x0A, 16] && ids[2..18] == self.trace_id.0 && ids[18..20] == [0x12, 8];
        // OTLP forbids an id that is zero.
        let id = ids.last_chunk::<8>().filter(|id| is_usual && **id != [0; 8])?;
        let mut at = ids.len();
        let state = field(span, at, key::TRACE_STATE).map(|state| at..state.end);
        at = state.as_ref().map_or(at, |state| state.end);
        let parent = field(span, at, key::PARENT).and_then(|parent| span[parent].first_chunk::<8>());
        let parent = parent.filter(|_| span[at + 1] == 8);
        at += if parent.is_some() { 10 } else { 0 };
        let name_start = at;
        if let Some(name) = field(span, at, key::NAME) {
            at = name.end;
        }
        if let Some([key::KIND, 0..0x80]) = span[at..].first_chunk() {
            at += 2;
        }
        let times: &[u8; 18] = span[at..].first_chunk()?;
        let &[key::START, s0, s1, s2, s3, s4, s5, s6, s7, key::END, e0, e1, e2, e3, e4, e5, e6, e7] = times
        else {
            return None;
        };
        let start = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let end = u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7]);
        let name = name_start..at;
        at += times.len();

        self.parts.clear();
        let flags_at = self.stream.len();
        let mut flags = SPAN | if is_framed { FRAMED } else { 0 };
        self.stream.push(flags);
        if let Some(state) = state {
            flags |= STATE;
            self.parts.push((Part::Plain, state));
        }
        self.ids.put(*id, &mut self.stream);
        if let Some(parent) = parent {
            flags |= PARENT;
            self.ids.put(*parent, &mut self.stream);
        }
        let name_at = self.pieces.len() + self.parts.len();
        self.parts.push((Part::Plain, name));
        put_delta(&mut self.stream, self.start, start);
        put_delta(&mut self.stream, start, end);
        self.start = start;
        let before = self.parts.len();
        while let Some(attribute) = field(span, at, key::ATTRIBUTE) {
            self.parts.push((Part::Attribute, at..attribute.end));
            at = attribute.end;
        }
        put_varint(&mut self.stream, count(self.parts.len() - before));
        let tail = &span[at..];
        let has_tail = !tail.is_empty() && tail.len() <= TAIL_PIECE_MAX;
        if tail.len() > TAIL_PIECE_MAX {
            flags |= LONG_TAIL;
            put_bytes(&mut self.stream, tail);
            numbers.loose(tail);
        } else if has_tail {
            flags |= TAIL;
            self.parts.push((Part::Fields, at..span.len()));
        }
        self.stream[flags_at] = flags;
        numbers.pieces(span, &self.parts, &mut self.pieces);
        let tail = match self.pieces.last() {
            Some(&piece) if has_tail => Tail::Piece(piece),
            _ if flags & LONG_TAIL != 0 => Tail::Long,
            _ => Tail::None,
        };
        Some((self.pieces[name_at], tail))
    }
}

/// The OTLP that `stream` stands for, its pieces taken from `next`.
///
/// # Errors
/// When `stream` is not what [`Packer`] wrote, or `next` says so.
pub(crate) fn unpack<'p>(
    stream: &[u8],
    next: &mut impl FnMut() -> Result<&'p [u8], FormatError>,
    (trace_id, trace_start): (TraceId, UnixNanos),
    otlp_bytes: usize,
) -> Result<Vec<u8>, FormatError> {
    /// A damaged length must not become an allocation; what is longer grows.
    const RESERVE_MAX: usize = 16 << 20;
    let mut out = Vec::with_capacity(otlp_bytes.min(RESERVE_MAX));
    let mut unpacker = Unpacker { ids: Ids::default(), trace_id, start: trace_start.0, otlp_bytes };
    let mut cursor = Cursor::new(stream);
    while !cursor.is_empty() {
        match cursor.byte()? {
            LITERAL => out.extend_from_slice(cursor.bytes()?),
            RESOURCE => put_container(&mut out, key::RESOURCE_SPANS, cursor.varint()?, next()?),
            SCOPE => put_container(&mut out, key::SCOPE_SPANS, cursor.varint()?, next()?),
            flags if flags & SPAN != 0 => unpacker.span(flags, &mut cursor, next, &mut out)?,
            _ => return Err(CORRUPT),
        }
        if out.len() > otlp_bytes {
            return Err(CORRUPT);
        }
    }
    if out.len() == otlp_bytes { Ok(out) } else { Err(CORRUPT) }
}

const CORRUPT: FormatError = FormatError::Corrupt { what: "packed spans" };

fn put_container(out: &mut Vec<u8>, key: u8, length: u64, fields: &[u8]) {
    out.push(key);
    put_varint(out, length);
    out.extend_from_slice(fields);
}

struct Unpacker {
    ids: Ids,
    trace_id: TraceId,
    start: u64,
    otlp_bytes: usize,
}

impl Unpacker {
    fn span<'p>(
        &mut self,
        flags: u8,
        stream: &mut Cursor<'_>,
        next: &mut impl FnMut() -> Result<&'p [u8], FormatError>,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        let span_start = out.len();
        out.extend([0x0A, 16]);
        out.extend(self.trace_id.0);
        let state = if flags & STATE != 0 { next()? } else { &[] };
        out.extend([0x12, 8]);
        out.extend(self.ids.read(stream)?);
        out.extend_from_slice(state);
        if flags & PARENT != 0 {
            out.extend([key::PARENT, 8]);
            out.extend(self.ids.read(stream)?);
        }
        out.extend_from_slice(next()?);
        self.start = stream.delta(self.start)?;
        let end = stream.delta(self.start)?;
        out.push(key::START);
        out.extend(self.start.to_le_bytes());
        out.push(key::END);
        out.extend(end.to_le_bytes());
        // Each takes a piece, of which there are only so many, but pieces may be long.
        for _ in 0..stream.varint()? {
            out.extend_from_slice(next()?);
            if out.len() > self.otlp_bytes {
                return Err(CORRUPT);
            }
        }
        if flags & TAIL != 0 {
            out.extend_from_slice(next()?);
        }
        if flags & LONG_TAIL != 0 {
            out.extend_from_slice(stream.bytes()?);
        }
        if flags & FRAMED != 0 {
            let mut frame = Vec::with_capacity(8);
            frame.push(key::SPAN);
            put_varint(&mut frame, count(out.len() - span_start));
            out.splice(span_start..span_start, frame);
        }
        Ok(())
    }
}

/// The ids that were new, in the order they came.
#[derive(Debug, Default)]
struct Ids(Vec<[u8; 8]>);

impl Ids {
    fn put(&mut self, id: [u8; 8], out: &mut Vec<u8>) {
        let recent = self.0.iter().rev().take(IDS_BACK_MAX);
        let back = (1u8..).zip(recent).find(|(_, before)| **before == id);
        if let Some((back, _)) = back {
            out.push(back);
        } else {
            out.push(0);
            out.extend(id);
            self.0.push(id);
        }
    }

    fn read(&mut self, stream: &mut Cursor<'_>) -> Result<[u8; 8], FormatError> {
        match usize::from(stream.byte()?) {
            0 => {
                let id = stream.array()?;
                self.0.push(id);
                Ok(id)
            }
            back => {
                let at = self.0.len().checked_sub(back);
                at.map(|at| self.0[at]).ok_or(FormatError::Corrupt { what: "an id" })
            }
        }
    }
}

/// Where the value of the field at `at` lies, if it has this key and its length is as short as can be.
#[inline(always)]
fn field(bytes: &[u8], at: usize, key: u8) -> Option<Range<usize>> {
    let (length, length_bytes) = match *bytes.get(at..)? {
        [found, length @ 0..0x80, ..] if found == key => (usize::from(length), 1),
        [found, low, high @ 1..0x80, ..] if found == key => {
            (usize::from(low & 0x7F) | usize::from(high) << 7, 2)
        }
        [found, low, middle @ 0x80..=0xFF, high @ 1..0x80, ..] if found == key => {
            (usize::from(low & 0x7F) | usize::from(middle & 0x7F) << 7 | usize::from(high) << 14, 3)
        }
        [found, low, middle @ 0x80..=0xFF, upper @ 0x80..=0xFF, high @ 1..0x80, ..] if found == key => {
            let [low, middle, upper] = [low, middle, upper].map(|byte| usize::from(byte & 0x7F));
            (low | middle << 7 | upper << 14 | usize::from(high) << 21, 4)
        }
        _ => return None,
    };
    let start = at + 1 + length_bytes;
    (length <= bytes.len() - start).then(|| start..start + length)
}

/// How long a varint of `value` is.
fn varint_bytes(value: usize) -> usize {
    (usize::BITS - value.leading_zeros()).div_ceil(7).max(1) as usize
}

/// Where the fields end that stand in front of scopes or spans in `message`.
fn container_fields_end(otlp: &[u8], message: Range<usize>) -> usize {
    let mut at = message.start;
    let next = |at| key::OF_CONTAINER.into_iter().find_map(|key| field(&otlp[..message.end], at, key));
    while let Some(value) = next(at) {
        at = value.end;
    }
    at
}

/// Whether `fields` are of scopes and their spans alone.
fn only_scopes(otlp: &[u8], fields: Range<usize>) -> bool {
    let mut at = fields.start;
    while let Some(scope) = field(&otlp[..fields.end], at, key::SCOPE_SPANS) {
        at = scope.end;
    }
    at == fields.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_found_whatever_their_length() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let mut bytes = vec![9, 0x4A];
            put_bytes(&mut bytes, &vec![0; length]);
            let start = 2 + varint_bytes(length);
            assert_eq!(field(&bytes, 1, 0x4A), Some(start..start + length));
            assert_eq!(field(&bytes, 1, 0x4B), None);
            assert_eq!(field(&bytes[..bytes.len() - 1], 1, 0x4A), None);
        }
        // A length that is longer than need be would not come back as it was.
        assert_eq!(field(&[0x4A, 0x80, 0], 0, 0x4A), None);
        assert_eq!(field(&[0x4A, 0x81, 0x80, 0, 0], 0, 0x4A), None);
    }

    proptest! {
        #[test]
        fn any_stream_is_unpacked_without_panic(stream: Vec<u8>, otlp_bytes in 0..4_000usize) {
            let mut left = 20;
            let mut next = || {
                left -= 1;
                if left > 0 { Ok(&b"a piece"[..]) } else { Err(CORRUPT) }
            };
            if let Ok(otlp) = unpack(&stream, &mut next, (TraceId::default(), UnixNanos(0)), otlp_bytes) {
                prop_assert_eq!(otlp.len(), otlp_bytes);
            }
        }

        #[test]
        fn ids_come_back(ids in proptest::collection::vec(0..90u64, 0..400)) {
            let (mut writing, mut reading, mut out) = (Ids::default(), Ids::default(), Vec::new());
            ids.iter().for_each(|id| writing.put(id.to_le_bytes(), &mut out));
            let mut cursor = Cursor::new(&out);
            for id in ids {
                prop_assert_eq!(reading.read(&mut cursor).unwrap(), id.to_le_bytes());
            }
            prop_assert!(cursor.is_empty());
        }
    }
}
