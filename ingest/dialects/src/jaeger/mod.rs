//! What Jaeger's fields mean in OTLP. `proto` and `thrift` read the two wire forms and tell a [`Builder`] what they
//! find, in any order.
//!
//! The mapping is OpenTelemetry's, read backwards, and that of the Collector's translator where the specification is
//! silent; the README lists it.
//! <https://opentelemetry.io/docs/specs/otel/trace/sdk_exporters/jaeger/>

pub(crate) mod proto;
pub(crate) mod thrift;

use crate::error::Error;
use crate::otlp::{
    Draft, EVENT_ATTRIBUTES, Id, RESOURCE_ATTRIBUTES, Request, ResourcePlace, SAMPLED, Value, kind,
    put_attribute, put_message, put_value, status, text,
};

/// Where Jaeger itself keeps the warnings of a span among OTLP attributes.
const WARNINGS: &str = "@jaeger@warnings";

/// A `KeyValue` or `Tag`: every type has its own field, and another field says which one counts.
#[derive(Clone, Copy, Debug, Default)]
struct Tag<'a> {
    key: &'a [u8],
    kind: TagKind,
    text: &'a [u8],
    flag: bool,
    int: i64,
    double: f64,
    binary: &'a [u8],
}

#[derive(Clone, Copy, Debug, Default)]
enum TagKind {
    #[default]
    Text,
    Bool,
    Int,
    Double,
    Binary,
}

impl Tag<'_> {
    /// Hands out the tag with its text in UTF-8.
    fn read<R>(&self, take: impl FnOnce(&str, Value<'_>) -> R) -> R {
        let key = text(self.key);
        match self.kind {
            TagKind::Text => take(&key, Value::Text(&text(self.text))),
            TagKind::Bool => take(&key, Value::Bool(self.flag)),
            TagKind::Int => take(&key, Value::Int(self.int)),
            TagKind::Double => take(&key, Value::Double(self.double)),
            TagKind::Binary => take(&key, Value::Bytes(self.binary)),
        }
    }
}

/// A `Process` in the making: the attributes of a resource.
#[derive(Debug, Default)]
struct Process {
    service: Vec<u8>,
    tags: Vec<u8>,
}

impl Process {
    fn tag(&mut self, tag: &Tag<'_>, bytes_max: usize) -> Result<(), Error> {
        tag.read(|key, value| {
            let key = if key == "hostname" { "host.name" } else { key };
            put_attribute(&mut self.tags, RESOURCE_ATTRIBUTES, key, value);
        });
        if self.tags.len() > bytes_max { Err(Error::TooLarge { limit_bytes: bytes_max }) } else { Ok(()) }
    }

    fn place(&self, request: &mut Request) -> Result<ResourcePlace, Error> {
        let mut attributes = Vec::with_capacity(self.tags.len());
        if !self.service.is_empty() {
            let service = Value::Text(&text(&self.service));
            put_attribute(&mut attributes, RESOURCE_ATTRIBUTES, "service.name", service);
        }
        attributes.extend_from_slice(&self.tags);
        request.resource(&attributes)
    }
}

/// A `Log` in the making.
#[derive(Debug, Default)]
struct Log {
    time_ns: u64,
    name: String,
    attributes: Vec<u8>,
}

impl Log {
    fn field(&mut self, tag: &Tag<'_>, span: &Draft) -> Result<(), Error> {
        tag.read(|key, value| match value {
            Value::Text(name) if key == "event" && self.name.is_empty() => name.clone_into(&mut self.name),
            value => put_attribute(&mut self.attributes, EVENT_ATTRIBUTES, key, value),
        });
        span.check_beside(self.attributes.len())
    }
}

/// A `SpanRef`.
#[derive(Clone, Copy, Debug, Default)]
struct Reference {
    trace_id: Id<16>,
    span_id: Id<8>,
    follows: bool,
}

/// What a link takes at least when it is encoded; references are counted with it before it is.
const LINK_BYTES: usize = 64;

/// A Jaeger span in the making.
#[derive(Debug)]
struct Builder {
    span: Draft,
    references: Vec<Reference>,
    /// The elements of an `ArrayValue`.
    warnings: Vec<u8>,
    http_status: Option<i64>,
    has_status: bool,
}

impl Builder {
    fn new(request: &Request) -> Self {
        let span = Draft::new(request.bytes_max());
        Self { span, references: Vec::new(), warnings: Vec::new(), http_status: None, has_status: false }
    }

    fn clear(&mut self) {
        let Self { span, references, warnings, http_status, has_status } = self;
        span.clear();
        references.clear();
        warnings.clear();
        (*http_status, *has_status) = (None, false);
    }

    fn flags(&mut self, flags: i64) {
        // Jaeger's first bit says sampled, its second one debug, which implies it.
        self.span.flags = if flags & 0b11 != 0 { SAMPLED } else { 0 };
    }

    fn warning(&mut self, warning: &[u8]) -> Result<(), Error> {
        put_message(&mut self.warnings, 1, |out| put_value(out, Value::Text(&text(warning))));
        self.span.check_beside(self.warnings.len())
    }

    fn log(&mut self, log: &Log) -> Result<(), Error> {
        self.span.event(log.time_ns, &log.name, &log.attributes)
    }

    fn reference(&mut self, reference: Reference) -> Result<(), Error> {
        self.references.push(reference);
        self.span.check_beside(self.references.len() * LINK_BYTES)
    }

    fn tag(&mut self, tag: &Tag<'_>) -> Result<(), Error> {
        tag.read(
            |key, value| if self.take_tag(key, value) { Ok(()) } else { self.span.attribute(key, value) },
        )
    }

    /// Takes a tag that OTLP has a field for; false if it is none.
    fn take_tag(&mut self, key: &str, value: Value<'_>) -> bool {
        match (key, value) {
            ("error", Value::Bool(true)) => self.span.is_error = true,
            // OpenTracing's clients in languages without types.
            ("error", Value::Text(text)) if text.eq_ignore_ascii_case("true") => self.span.is_error = true,
            ("span.kind", Value::Text(name)) => {
                let Some(kind) = span_kind(name) else { return false };
                self.span.kind = kind;
            }
            ("http.status_code", Value::Int(code)) => {
                self.http_status = Some(code);
                return false;
            }
            ("http.status_code", Value::Text(text)) => {
                self.http_status = text.parse().ok();
                return false;
            }
            (key, Value::Text(text)) => {
                let is_taken = self.span.take_tag(key, text);
                self.has_status |= is_taken && key == "otel.status_code";
                return is_taken;
            }
            _ => return false,
        }
        true
    }

    /// Adds the span to the request and forgets it.
    fn finish(&mut self, place: ResourcePlace, request: &mut Request) -> Result<(), Error> {
        self.put_references()?;
        if !self.warnings.is_empty() {
            self.span.attribute(WARNINGS, Value::Array(&self.warnings))?;
        }
        if !self.has_status
            && !self.span.is_error
            && self.http_status.is_some_and(|code| failed(code, self.span.kind))
        {
            self.span.status = status::ERROR;
        }
        request.push(place, &mut self.span)?;
        self.clear();
        Ok(())
    }

    /// The parent is the first reference to a span of the same trace that this one is a child of, else the first one
    /// that it follows from; unless the span names its parent itself, as Thrift's does. All others are links.
    fn put_references(&mut self) -> Result<(), Error> {
        let Self { span, references, .. } = self;
        if span.parent_id.is_none() {
            let same_trace = || references.iter().filter(|reference| reference.trace_id == span.trace_id);
            let parent = same_trace().find(|reference| !reference.follows).or_else(|| same_trace().next());
            span.parent_id = parent.map_or(Id::Absent, |parent| parent.span_id);
        }
        for &Reference { trace_id, span_id, follows } in &*references {
            if follows || span_id != span.parent_id || trace_id != span.trace_id {
                span.link(trace_id, span_id, if follows { "follows_from" } else { "child_of" })?;
            }
        }
        Ok(())
    }
}

fn span_kind(name: &str) -> Option<u64> {
    Some(match name {
        "client" => kind::CLIENT,
        "server" => kind::SERVER,
        "producer" => kind::PRODUCER,
        "consumer" => kind::CONSUMER,
        "internal" => kind::INTERNAL,
        _ => return None,
    })
}

/// Whether an HTTP status means that the span failed, if nothing else says so.
/// <https://opentelemetry.io/docs/specs/semconv/http/http-spans/#status>
fn failed(code: i64, kind: u64) -> bool {
    match code {
        100..400 => false,
        400..500 => kind != kind::SERVER,
        _ => true,
    }
}
