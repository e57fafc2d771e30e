//! Request bodies written once, with the places of everything that changes, and the patching of those places.
//!
//! A template costs what a library's encoder costs; a patch costs a few stores a span. Never sends anything.

use crate::catalog::{Attribute, Hole, Value};
use crate::random::{Random, mix, span_id, trace_halves};
use crate::shape::{KEYS, NUMBERED_ATTRIBUTES, SpanDraft, VALUES};
use crate::wire::{
    bytes_field_len, put_bytes, put_fixed32, put_fixed64, put_header, put_uint, put_varint, varint_len,
};

/// A gRPC message starts with a flag and its length.
pub(crate) const GRPC_PREFIX: usize = 5;

/// The parent of a root.
const NO_PARENT: u32 = u32::MAX;

// A span starts 0A 10 <trace id> 12 08 <span id>, then 22 08 <parent id> unless it is a root.
const TRACE_ID_AT: usize = 2;
const SPAN_ID_AT: usize = TRACE_ID_AT + 16 + 2;
const PARENT_ID_AT: usize = SPAN_ID_AT + 8 + 2;

/// One span of a body: where it lies and what to write into it.
#[derive(Clone, Debug)]
pub(crate) struct SpanSlot {
    /// Which trace of its group.
    pub(crate) trace: u32,
    /// Which span of its trace.
    pub(crate) index: u32,
    /// Index into the plan's resources.
    pub(crate) resource: u16,
    parent: u32,
    position: u32,
    length: u32,
    start_position: u32,
    end_position: u32,
    /// Of the exception event; 0 when there is none.
    event_position: u32,
    /// How long before the group's moment it starts.
    before_ns: u64,
    duration_ns: u64,
    /// Its places in [`BodyTemplate::holes`] end here.
    holes_end: u32,
}

impl SpanSlot {
    /// The span's message inside the body.
    pub(crate) fn of<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        &body[self.position as usize..][..self.length as usize]
    }

    /// The span's id inside the body.
    pub(crate) fn span_id(&self, body: &[u8]) -> [u8; 8] {
        self.of(body)[SPAN_ID_AT..].first_chunk().copied().unwrap_or_default()
    }

    /// Whether it has no parent.
    pub(crate) fn is_root(&self) -> bool {
        self.parent == NO_PARENT
    }

    /// Whether its status is ERROR.
    pub(crate) fn is_error(&self) -> bool {
        self.event_position != 0
    }
}

/// What fills the holes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filling {
    /// Six digits that follow from the trace.
    User,
    /// Numbers that count up from span to span.
    Counting,
    /// Distinct keys and values at random.
    Random,
}

/// The moment a group is sent: what its ids and times follow from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The seed of the run.
    pub(crate) seed: u64,
    /// The number of the group's first trace.
    pub(crate) first_trace: u64,
    /// When the roots end, in nanoseconds since the Unix epoch.
    pub(crate) base_unix_nanos: u64,
    /// How far span numbers are apart from trace to trace.
    pub(crate) spans_per_trace: u32,
}

/// An `ExportTraceServiceRequest` behind its gRPC prefix, and its places.
#[derive(Debug)]
pub(crate) struct BodyTemplate {
    /// The bytes with every id, time and number zero.
    pub(crate) bytes: Vec<u8>,
    /// In the order of the bytes.
    pub(crate) spans: Vec<SpanSlot>,
    holes: Vec<u32>,
    filling: Filling,
}

/// A span to be written: which trace it belongs to, which span of it, and the draft of the whole trace.
#[derive(Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub(crate) trace: u32,
    pub(crate) index: u32,
    pub(crate) draft: &'a [SpanDraft],
}

impl<'a> Placed<'a> {
    fn span(&self) -> &'a SpanDraft {
        &self.draft[self.index as usize]
    }
}

struct EncodedSpan {
    bytes: Vec<u8>,
    slot: SpanSlot,
    holes: Vec<u32>,
}

impl BodyTemplate {
    /// Writes `spans`, gathered by service as an SDK or a collector gathers them.
    pub(crate) fn new(spans: &[Placed<'_>], resources: &[Vec<u8>], scope: &[u8], filling: Filling) -> Self {
        let mut body = Self { bytes: vec![0; GRPC_PREFIX], spans: Vec::new(), holes: Vec::new(), filling };
        for (service, resource) in resources.iter().enumerate() {
            let of_service: Vec<EncodedSpan> = spans
                .iter()
                .filter(|placed| usize::from(placed.span().service) == service)
                .map(encode_span)
                .collect();
            if !of_service.is_empty() {
                body.put_resource_spans(resource, scope, of_service);
            }
        }
        write_prefix(&mut body.bytes, false);
        body
    }

    fn put_resource_spans(&mut self, resource: &[u8], scope: &[u8], spans: Vec<EncodedSpan>) {
        let spans_len: usize = spans.iter().map(|span| bytes_field_len(2, span.bytes.len())).sum();
        let scope_spans_len = bytes_field_len(1, scope.len()) + spans_len;
        let resource_spans_len = bytes_field_len(1, resource.len()) + bytes_field_len(2, scope_spans_len);
        put_header(&mut self.bytes, 1, resource_spans_len);
        put_bytes(&mut self.bytes, 1, resource);
        put_header(&mut self.bytes, 2, scope_spans_len);
        put_bytes(&mut self.bytes, 1, scope);
        for EncodedSpan { bytes, mut slot, holes } in spans {
            put_header(&mut self.bytes, 2, bytes.len());
            let at = place(self.bytes.len());
            slot.position = at;
            slot.start_position += at;
            slot.end_position += at;
            slot.event_position += if slot.event_position == 0 { 0 } else { at };
            self.bytes.extend_from_slice(&bytes);
            self.holes.extend(holes.iter().map(|hole| hole + at));
            slot.holes_end = place(self.holes.len());
            self.spans.push(slot);
        }
    }

    /// How many spans it holds.
    pub(crate) fn span_count(&self) -> u32 {
        place(self.spans.len())
    }

    /// Writes ids, times and numbers of `moment` into `bytes`, a copy of [`Self::bytes`], patched before or not.
    pub(crate) fn patch(&self, bytes: &mut [u8], moment: Moment) {
        let mut hole = 0;
        for slot in &self.spans {
            let number = moment.first_trace + u64::from(slot.trace);
            let (high, low) = trace_halves(moment.seed, number);
            let at = slot.position as usize;
            write_u64(bytes, at + TRACE_ID_AT, high);
            write_u64(bytes, at + TRACE_ID_AT + 8, low);
            write_u64(bytes, at + SPAN_ID_AT, span_id(low, slot.index));
            if !slot.is_root() {
                write_u64(bytes, at + PARENT_ID_AT, span_id(low, slot.parent));
            }
            let start = moment.base_unix_nanos - slot.before_ns;
            let end = start + slot.duration_ns;
            write_time(bytes, slot.start_position, start);
            write_time(bytes, slot.end_position, end);
            if slot.is_error() {
                write_time(bytes, slot.event_position, end);
            }
            let holes = &self.holes[hole..slot.holes_end as usize];
            hole = slot.holes_end as usize;
            match self.filling {
                Filling::User => fill_user(bytes, holes, number),
                Filling::Counting => {
                    let span = number * u64::from(moment.spans_per_trace) + u64::from(slot.index);
                    fill_counting(bytes, holes, span);
                }
                Filling::Random => fill_random(bytes, holes, mix(low ^ u64::from(slot.index))),
            }
        }
    }
}

/// The id of trace `number` as bytes.
pub(crate) fn trace_id(seed: u64, number: u64) -> [u8; 16] {
    let (high, low) = trace_halves(seed, number);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&high.to_be_bytes());
    id[8..].copy_from_slice(&low.to_be_bytes());
    id
}

/// Writes the gRPC prefix of `body`, whose first bytes are its place.
pub(crate) fn write_prefix(body: &mut [u8], compressed: bool) {
    let length = place(body.len() - GRPC_PREFIX);
    body[0] = u8::from(compressed);
    body[1..GRPC_PREFIX].copy_from_slice(&length.to_be_bytes());
}

/// A position as the slots store it. Bodies are far below 4 GiB: the plan refuses longer ones.
fn place(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

fn write_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn write_time(bytes: &mut [u8], at: u32, value: u64) {
    bytes[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
}

/// The three digits of every number below 1,000.
const DIGITS: [[u8; 3]; 1_000] = {
    let mut table = [[b'0'; 3]; 1_000];
    let mut number = 1;
    while number < table.len() {
        // One more than the number before, carried from the last digit on.
        table[number] = table[number - 1];
        let mut place = 2;
        while table[number][place] == b'9' {
            table[number][place] = b'0';
            place -= 1;
        }
        table[number][place] += 1;
        number += 1;
    }
    table
};

fn digits(number: u64) -> [u8; 3] {
    DIGITS[usize::try_from(number % 1_000).unwrap_or(0)]
}

fn fill_user(bytes: &mut [u8], holes: &[u32], number: u64) {
    let user = mix(number) % 1_000_000;
    for &hole in holes {
        let place = &mut bytes[hole as usize..][..6];
        place[..3].copy_from_slice(&digits(user / 1_000));
        place[3..].copy_from_slice(&digits(user));
    }
}

fn write_pair(bytes: &mut [u8], places: &[u32], key: u64, value: u64) {
    bytes[places[0] as usize..][..2].copy_from_slice(&digits(key)[1..]);
    bytes[places[1] as usize..][..3].copy_from_slice(&digits(value));
}

fn fill_counting(bytes: &mut [u8], holes: &[u32], span: u64) {
    let numbers = span * NUMBERED_ATTRIBUTES as u64..;
    for (number, places) in numbers.zip(holes.chunks_exact(2)) {
        write_pair(bytes, places, number % KEYS, number % VALUES);
    }
}

fn fill_random(bytes: &mut [u8], holes: &[u32], seed: u64) {
    let mut random = Random::new(seed);
    let mut used = 0u128;
    for places in holes.chunks_exact(2) {
        let drawn = random.next();
        // Two independent 32-bit draws, scaled; a key already used moves on to a fresh draw.
        let mut key = scale(drawn >> 32, KEYS);
        while used & (1 << key) != 0 {
            key = scale(random.next() >> 32, KEYS);
        }
        used |= 1 << key;
        write_pair(bytes, places, key, scale(drawn & 0xFFFF_FFFF, VALUES));
    }
}

fn scale(bits32: u64, bound: u64) -> u64 {
    (bits32 * bound) >> 32
}

fn encode_span(placed: &Placed<'_>) -> EncodedSpan {
    let span = placed.span();
    let root = &placed.draft[0];
    let mut out = Vec::with_capacity(512);
    let mut holes = Vec::new();
    put_bytes(&mut out, 1, &[0; 16]);
    put_bytes(&mut out, 2, &[0; 8]);
    if span.parent.is_some() {
        put_bytes(&mut out, 4, &[0; 8]);
    }
    put_bytes(&mut out, 5, span.name.as_bytes());
    put_uint(&mut out, 6, span.kind);
    put_fixed64(&mut out, 7, 0);
    let start_position = place(out.len() - 8);
    put_fixed64(&mut out, 8, 0);
    let end_position = place(out.len() - 8);
    for attribute in &span.attributes {
        put_attribute(&mut out, 9, attribute, &mut holes);
    }
    let event_position = if span.error { put_failure(&mut out) } else { 0 };
    // Bits 0..8 are the W3C trace flags (sampled), bit 8 says that bit 9 (remote parent) is known.
    put_fixed32(&mut out, 16, 0x101);
    let slot = SpanSlot {
        trace: placed.trace,
        index: placed.index,
        resource: span.service,
        parent: span.parent.unwrap_or(NO_PARENT),
        position: 0,
        length: place(out.len()),
        start_position,
        end_position,
        event_position,
        before_ns: nanos(root.duration.saturating_sub(span.start)),
        duration_ns: nanos(span.duration),
        holes_end: 0,
    };
    EncodedSpan { bytes: out, slot, holes }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An exception event and status ERROR. Returns where the event's time lies.
fn put_failure(out: &mut Vec<u8>) -> u32 {
    const STACK: &str = "Traceback (most recent call last):\n  File \"/srv/app/src/handlers.py\", line 118, in handle\n    reply = stub.Charge(order, timeout=2.0)\nTimeoutError: deadline exceeded";
    let mut event = Vec::new();
    put_fixed64(&mut event, 1, 0);
    put_bytes(&mut event, 2, b"exception");
    for (key, value) in [
        ("exception.type", "TimeoutError"),
        ("exception.message", "deadline exceeded"),
        ("exception.stacktrace", STACK),
    ] {
        put_attribute(&mut event, 3, &Attribute::text(key, value), &mut Vec::new());
    }
    put_bytes(out, 11, &event);
    // The time is the event's first field: one byte of key, then its eight bytes.
    let event_position = place(out.len() - event.len() + 1);
    let mut status = Vec::new();
    put_bytes(&mut status, 2, b"deadline exceeded");
    put_uint(&mut status, 3, 2);
    put_bytes(out, 15, &status);
    event_position
}

/// Writes a `KeyValue` as field `field` and notes the places of its holes, key before value.
fn put_attribute(out: &mut Vec<u8>, field: u32, attribute: &Attribute, holes: &mut Vec<u32>) {
    let mut value = Vec::new();
    match &attribute.value {
        Value::Text(text) => put_bytes(&mut value, 1, text.as_bytes()),
        Value::Bool(truth) => put_uint(&mut value, 2, u64::from(*truth)),
        Value::Int(number) => {
            put_varint(&mut value, 3 << 3);
            put_varint(&mut value, number.cast_unsigned());
        }
    }
    let key = attribute.key.as_bytes();
    let content = bytes_field_len(1, key.len()) + 1 + varint_len(value.len() as u64) + value.len();
    put_header(out, field, content);
    put_bytes(out, 1, key);
    let key_end = place(out.len());
    put_bytes(out, 2, &value);
    let value_end = place(out.len());
    match attribute.hole {
        Hole::None => {}
        Hole::SixDigits => holes.push(value_end - 6),
        Hole::KeyAndValue => holes.extend([key_end - 2, value_end - 3]),
    }
}

/// The `Resource` message that says `attributes`.
pub(crate) fn encode_resource(attributes: &[Attribute]) -> Vec<u8> {
    let mut out = Vec::new();
    for attribute in attributes {
        put_attribute(&mut out, 1, attribute, &mut Vec::new());
    }
    out
}

/// The `InstrumentationScope` of every span.
pub(crate) fn encode_scope() -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, b"opentelemetry.instrumentation.auto");
    put_bytes(&mut out, 2, b"0.58b0");
    out
}
