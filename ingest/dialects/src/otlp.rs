//! The OTLP side: one span in the making and the request around it. Repeated fields are encoded as they arrive, so what
//! is held is never much larger than what comes out, and that is limited.
//!
//! Fields: <https://github.com/open-telemetry/opentelemetry-proto/blob/v1.11.0/opentelemetry/proto/trace/v1/trace.proto>

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::error::Error;

/// `Span.kind`.
pub(crate) mod kind {
    pub(crate) const UNSPECIFIED: u64 = 0;
    pub(crate) const INTERNAL: u64 = 1;
    pub(crate) const SERVER: u64 = 2;
    pub(crate) const CLIENT: u64 = 3;
    pub(crate) const PRODUCER: u64 = 4;
    pub(crate) const CONSUMER: u64 = 5;
}

/// `Status.code`.
pub(crate) mod status {
    pub(crate) const UNSET: u64 = 0;
    pub(crate) const OK: u64 = 1;
    pub(crate) const ERROR: u64 = 2;
}

/// `Span.flags`: sampled, in the W3C's bits.
pub(crate) const SAMPLED: u32 = 1;

/// What a group of spans takes in memory beside its bytes: map, vectors, key. Counted, so that a body of nothing but
/// tiny groups stays within the limit too.
const GROUP_BYTES: usize = 256;

/// Appends a delimited field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}

fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    encode_key(number, WireType::SixtyFourBit, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a message whose length is known only once it is written.
pub(crate) fn put_message(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    encode_key(number, WireType::LengthDelimited, out);
    let start = out.len();
    out.push(0);
    write(out);
    let length = out.len() - start - 1;
    // Most lengths fit the one byte that was left; others move the message on.
    let more = encoded_len_varint(length as u64) - 1;
    if more > 0 {
        out.resize(out.len() + more, 0);
        out.copy_within(start + 1..start + 1 + length, start + 1 + more);
    }
    encode_varint(length as u64, &mut &mut out[start..]);
}

/// An attribute's value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(&'a [u8]),
    /// An `ArrayValue` that is encoded already.
    Array(&'a [u8]),
}

/// Appends the fields of an `AnyValue`.
pub(crate) fn put_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Text(text) => put_bytes(out, 1, text.as_bytes()),
        Value::Bool(flag) => put_varint(out, 2, u64::from(flag)),
        Value::Int(number) => put_varint(out, 3, number.cast_unsigned()),
        Value::Double(number) => put_fixed64(out, 4, number.to_bits()),
        Value::Array(values) => put_bytes(out, 5, values),
        Value::Bytes(bytes) => put_bytes(out, 7, bytes),
    }
}

/// Appends an attribute as field `number` of whatever has attributes.
pub(crate) fn put_attribute(out: &mut Vec<u8>, number: u32, key: &str, value: Value<'_>) {
    put_message(out, number, |out| {
        put_bytes(out, 1, key.as_bytes());
        put_message(out, 2, |out| put_value(out, value));
    });
}

/// `Resource.attributes`.
pub(crate) const RESOURCE_ATTRIBUTES: u32 = 1;
/// `Span.Event.attributes`.
pub(crate) const EVENT_ATTRIBUTES: u32 = 3;
/// `Span.Link.attributes`.
const LINK_ATTRIBUTES: u32 = 4;
/// `Span.attributes`.
const SPAN_ATTRIBUTES: u32 = 9;
/// `Span.events`.
const SPAN_EVENTS: u32 = 11;
/// `Span.links`.
const SPAN_LINKS: u32 = 13;

/// Text as OTLP wants it. Senders of the older protocols do put bytes into it.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Microseconds as nanoseconds.
pub(crate) fn nanos(micros: u64) -> u64 {
    micros.saturating_mul(1_000)
}

/// An id as its sender gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Id<const N: usize> {
    #[default]
    Absent,
    Given([u8; N]),
    /// Something that is no id. It is written with a length that no id has, so that the walk refuses and counts the span.
    Unusable,
}

impl<const N: usize> Id<N> {
    /// An id out of its bytes. Zeroes go in front of half a trace id.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut id = [0; N];
        match bytes.len() {
            0 => return Self::Absent,
            length if length == N || length == 8 => id[N - length..].copy_from_slice(bytes),
            _ => return Self::Unusable,
        }
        Self::Given(id)
    }

    /// An id out of its hexadecimal digits. Zeroes go in front of those that are missing.
    pub(crate) fn of_hex(digits: &str) -> Self {
        if digits.is_empty() {
            return Self::Absent;
        }
        if digits.len() > 2 * N {
            return Self::Unusable;
        }
        let mut id = [0; N];
        for (place, digit) in digits.bytes().rev().enumerate() {
            let Some(nibble) = char::from(digit).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok())
            else {
                return Self::Unusable;
            };
            id[N - 1 - place / 2] |= nibble << (4 * (place % 2));
        }
        Self::Given(id)
    }

    /// Whether it names nothing: absent or all zero.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::Absent) || *self == Self::Given([0; N])
    }

    fn put(&self, out: &mut Vec<u8>, number: u32) {
        match self {
            Self::Absent => {}
            Self::Given(id) => put_bytes(out, number, id),
            Self::Unusable => put_bytes(out, number, &[0]),
        }
    }
}

/// A span in the making. It is used again for the next one, so that its buffers are allocated once.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) trace_id: Id<16>,
    pub(crate) span_id: Id<8>,
    pub(crate) parent_id: Id<8>,
    pub(crate) kind: u64,
    pub(crate) flags: u32,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    /// What the sender's status tag says.
    pub(crate) status: u64,
    /// Set by an error tag, which outranks the status tag.
    pub(crate) is_error: bool,
    name: String,
    trace_state: String,
    /// `otel.status_description`.
    description: String,
    /// What an error tag says beside that there is an error.
    error_text: String,
    scope_name: String,
    scope_version: String,
    attributes: Vec<u8>,
    events: Vec<u8>,
    links: Vec<u8>,
    /// Reused for `scope`.
    scope: Vec<u8>,
    bytes_max: usize,
}

/// Replaces a text, keeping its buffer.
fn set(place: &mut String, text: &str) {
    place.clear();
    place.push_str(text);
}

impl Draft {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// Forgets the last span.
    pub(crate) fn clear(&mut self) {
        let Self { name, trace_state, description, error_text, scope_name, scope_version, .. } = self;
        for text in [name, trace_state, description, error_text, scope_name, scope_version] {
            text.clear();
        }
        let Self { attributes, events, links, scope, .. } = self;
        for buffer in [attributes, events, links, scope] {
            buffer.clear();
        }
        (self.trace_id, self.span_id, self.parent_id) = (Id::Absent, Id::Absent, Id::Absent);
        (self.kind, self.flags, self.status, self.is_error) = (kind::UNSPECIFIED, 0, status::UNSET, false);
        (self.start_ns, self.end_ns) = (0, 0);
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub(crate) fn set_name(&mut self, name: &str) {
        set(&mut self.name, name);
    }

    pub(crate) fn set_error_text(&mut self, text: &str) {
        set(&mut self.error_text, text);
    }

    fn check(&self) -> Result<(), Error> {
        self.check_beside(0)
    }

    /// Whether what is held is too much already, together with `more` that the caller holds for this span.
    pub(crate) fn check_beside(&self, more: usize) -> Result<(), Error> {
        let held = more + self.attributes.len() + self.events.len() + self.links.len();
        if held > self.bytes_max { Err(Error::TooLarge { limit_bytes: self.bytes_max }) } else { Ok(()) }
    }

    pub(crate) fn attribute(&mut self, key: &str, value: Value<'_>) -> Result<(), Error> {
        put_attribute(&mut self.attributes, SPAN_ATTRIBUTES, key, value);
        self.check()
    }

    /// Adds an event; `attributes` are encoded as [`EVENT_ATTRIBUTES`].
    pub(crate) fn event(&mut self, time_ns: u64, name: &str, attributes: &[u8]) -> Result<(), Error> {
        put_message(&mut self.events, SPAN_EVENTS, |out| {
            put_fixed64(out, 1, time_ns);
            put_bytes(out, 2, name.as_bytes());
            out.extend_from_slice(attributes);
        });
        self.check()
    }

    pub(crate) fn link(&mut self, trace_id: Id<16>, span_id: Id<8>, ref_type: &str) -> Result<(), Error> {
        put_message(&mut self.links, SPAN_LINKS, |out| {
            trace_id.put(out, 1);
            span_id.put(out, 2);
            put_attribute(out, LINK_ATTRIBUTES, "opentracing.ref_type", Value::Text(ref_type));
        });
        self.check()
    }

    /// Takes a tag that carries what OTLP has a field for, as all exporters of OpenTelemetry write them; false if it is
    /// none. <https://opentelemetry.io/docs/specs/otel/common/mapping-to-non-otlp/>
    pub(crate) fn take_tag(&mut self, key: &str, value: &str) -> bool {
        match key {
            "otel.status_code" => {
                // Older exporters wrote the name of the enum's value.
                let code = value.strip_prefix("STATUS_CODE_").unwrap_or(value);
                let known = [("UNSET", status::UNSET), ("OK", status::OK), ("ERROR", status::ERROR)];
                let Some((_, code)) = known.iter().find(|(name, _)| code.eq_ignore_ascii_case(name)) else {
                    return false;
                };
                self.status = *code;
            }
            "otel.status_description" => set(&mut self.description, value),
            "otel.scope.name" | "otel.library.name" => set(&mut self.scope_name, value),
            "otel.scope.version" | "otel.library.version" => set(&mut self.scope_version, value),
            "w3c.tracestate" => set(&mut self.trace_state, value),
            _ => return false,
        }
        true
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.trace_id.put(out, 1);
        self.span_id.put(out, 2);
        if !self.trace_state.is_empty() {
            put_bytes(out, 3, self.trace_state.as_bytes());
        }
        if !self.parent_id.is_none() {
            self.parent_id.put(out, 4);
        }
        put_bytes(out, 5, self.name.as_bytes());
        if self.kind != kind::UNSPECIFIED {
            put_varint(out, 6, self.kind);
        }
        put_fixed64(out, 7, self.start_ns);
        put_fixed64(out, 8, self.end_ns);
        for encoded in [&self.attributes, &self.events, &self.links] {
            out.extend_from_slice(encoded);
        }
        self.encode_status(out);
        if self.flags != 0 {
            encode_key(16, WireType::ThirtyTwoBit, out);
            out.extend_from_slice(&self.flags.to_le_bytes());
        }
    }

    fn encode_status(&self, out: &mut Vec<u8>) {
        let code = if self.is_error { status::ERROR } else { self.status };
        let message = if self.description.is_empty() { &self.error_text } else { &self.description };
        if code == status::UNSET && message.is_empty() {
            return;
        }
        put_message(out, 15, |out| {
            if !message.is_empty() {
                put_bytes(out, 2, message.as_bytes());
            }
            put_varint(out, 3, code);
        });
    }

    /// Encodes the scope that the span's tags name.
    fn encode_scope(&mut self) {
        for (number, text) in [(1, &self.scope_name), (2, &self.scope_version)] {
            if !text.is_empty() {
                put_bytes(&mut self.scope, number, text.as_bytes());
            }
        }
    }
}

/// The `ExportTraceServiceRequest` in the making: spans grouped under equal resources and equal scopes, in order of
/// first appearance.
#[derive(Debug)]
pub(crate) struct Request {
    resources: Groups<Groups<Vec<u8>>>,
    /// No less than what [`Self::finish`] gives.
    bytes: usize,
    bytes_max: usize,
}

/// Things under headers, in order of first appearance.
#[derive(Debug)]
struct Groups<T> {
    members: Vec<(Rc<[u8]>, T)>,
    places: HashMap<Rc<[u8]>, usize>,
    last: usize,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Self { members: Vec::new(), places: HashMap::new(), last: 0 }
    }
}

impl<T: Default> Groups<T> {
    /// The place of the member under `header`; true if it is new.
    fn place(&mut self, header: &[u8]) -> (usize, bool) {
        // Spans mostly come in runs of one group.
        if self.members.get(self.last).is_some_and(|(last, _)| **last == *header) {
            return (self.last, false);
        }
        if let Some(&place) = self.places.get(header) {
            self.last = place;
            return (place, false);
        }
        let header: Rc<[u8]> = header.into();
        self.last = self.members.len();
        self.places.insert(Rc::clone(&header), self.last);
        self.members.push((header, T::default()));
        (self.last, true)
    }
}

/// A resource of a [`Request`], looked up once for all spans that share it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResourcePlace(usize);

impl Request {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { resources: Groups::default(), bytes: 0, bytes_max }
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max {
            return Err(Error::TooLarge { limit_bytes: self.bytes_max });
        }
        Ok(())
    }

    /// The place of the resource with these `attributes`, encoded as [`RESOURCE_ATTRIBUTES`].
    pub(crate) fn resource(&mut self, attributes: &[u8]) -> Result<ResourcePlace, Error> {
        let (place, is_new) = self.resources.place(attributes);
        if is_new {
            self.count(attributes.len() + GROUP_BYTES)?;
        }
        Ok(ResourcePlace(place))
    }

    /// Adds a finished span.
    pub(crate) fn push(
        &mut self,
        ResourcePlace(place): ResourcePlace,
        span: &mut Draft,
    ) -> Result<(), Error> {
        span.encode_scope();
        let scopes = &mut self.resources.members[place].1;
        let (place, is_new) = scopes.place(&span.scope);
        let spans = &mut scopes.members[place].1;
        let before = spans.len();
        put_message(spans, 2, |out| span.encode(out));
        let mut added = spans.len() - before;
        if is_new {
            added += span.scope.len() + GROUP_BYTES;
        }
        self.count(added)
    }

    /// The request's bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes);
        for (attributes, scopes) in self.resources.members {
            put_message(&mut out, 1, |out| {
                put_bytes(out, 1, &attributes);
                for (scope, spans) in scopes.members {
                    put_message(out, 2, |out| {
                        put_bytes(out, 1, &scope);
                        out.extend_from_slice(&spans);
                    });
                }
            });
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_padded_in_front_and_unusable_ones_are_no_ids() {
        assert_eq!(Id::<16>::of_hex("a1"), Id::Given([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xA1]));
        assert_eq!(
            Id::<8>::of_hex("0123456789AbCdEf"),
            Id::Given([1, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF])
        );
        assert_eq!(Id::<8>::of_hex("123"), Id::Given([0, 0, 0, 0, 0, 0, 1, 0x23]));
        assert_eq!(Id::<8>::of_hex(""), Id::Absent);
        for bad in ["0123456789abcdef0", "xyz", "é", "-1"] {
            assert_eq!(Id::<8>::of_hex(bad), Id::Unusable, "{bad}");
        }
        assert_eq!(Id::<16>::of_bytes(&[7; 8]), Id::Given([0, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]));
        assert_eq!(Id::<16>::of_bytes(&[7; 16]), Id::Given([7; 16]));
        assert_eq!(Id::<16>::of_bytes(&[]), Id::Absent);
        assert_eq!(Id::<8>::of_bytes(&[7; 16]), Id::Unusable);
        assert_eq!(Id::<8>::of_bytes(&[7; 7]), Id::Unusable);
    }

    #[test]
    fn a_message_of_any_length_gets_its_length_in_front() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 100_000] {
            let (mut written, mut expected) = (vec![9], vec![9]);
            let body = vec![7; length];
            put_message(&mut written, 3, |out| out.extend_from_slice(&body));
            put_bytes(&mut expected, 3, &body);
            assert!(written == expected, "{length}");
        }
    }

    #[test]
    fn a_span_stops_growing_at_its_first_field_beyond_the_limit() {
        type Grow = fn(&mut Draft) -> Result<(), Error>;
        let grow: [Grow; 3] = [
            |span| span.attribute("", Value::Bool(true)),
            |span| span.event(0, "", b""),
            |span| span.link(Id::Absent, Id::Absent, ""),
        ];
        for grow in grow {
            let mut span = Draft::new(100);
            let steps = (0..100).take_while(|_| grow(&mut span).is_ok()).count();
            assert!((1..20).contains(&steps), "{steps}");
        }
    }

    #[test]
    fn a_request_never_outgrows_its_limit() {
        for bytes_max in (0..4_000).step_by(37) {
            let mut request = Request::new(bytes_max);
            let mut span = Draft::new(bytes_max);
            let mut outcome = Ok(());
            for round in 0..40_u8 {
                span.clear();
                span.set_name("a name that takes some bytes");
                let attribute = span.attribute("key", Value::Bytes(&[round; 9]));
                outcome = attribute.and_then(|()| {
                    let place = request.resource(&[round / 4])?;
                    request.push(place, &mut span)
                });
                if outcome.is_err() {
                    break;
                }
            }
            match outcome {
                Ok(()) => assert!(request.finish().len() <= bytes_max),
                Err(error) => assert!(error.is_too_large()),
            }
        }
    }
}
