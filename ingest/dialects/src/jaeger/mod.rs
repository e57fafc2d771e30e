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
    /// The tag `service.name`, which some exporters write beside the name and some in its place.
    service_tag: String,
    tags: Vec<u8>,
}

impl Process {
    fn tag(&mut self, tag: &Tag<'_>, bytes_max: usize) -> Result<(), Error> {
        tag.read(|key, value| match (key, value) {
            ("service.name", Value::Text(name)) => name.clone_into(&mut self.service_tag),
            ("hostname", value) => put_attribute(&mut self.tags, RESOURCE_ATTRIBUTES, "host.name", value),
            (key, value) => put_attribute(&mut self.tags, RESOURCE_ATTRIBUTES, key, value),
        });
        if self.tags.len() > bytes_max { Err(Error::TooLarge { limit_bytes: bytes_max }) } else { Ok(()) }
    }

    fn place(&self, request: &mut Request) -> Result<ResourcePlace, Error> {
        let mut attributes = Vec::with_capacity(self.tags.len());
        let name = text(&self.service);
        let service = if name.is_empty() { &self.service_tag } else { &*name };
        if !service.is_empty() {
            put_attribute(&mut attributes, RESOURCE_ATTRIBUTES, "service.name", Value::Text(service));
        }
        attributes.extend_from_slice(&self.tags);
        request.resource(&attributes)
    }
}

/// A `Log` in the making.
#[derive(Debug, Default)]
struct Log {
    time_ns: u64,
    /// The field `event`.
    name: String,
    /// The field `message`. Some exporters of OpenTelemetry put the name there.
    message: String,
    attributes: Vec<u8>,
}

impl Log {
    fn field(&mut self, tag: &Tag<'_>, span: &Draft) -> Result<(), Error> {
        tag.read(|key, value| match value {
            Value::Text(name) if key == "event" && self.name.is_empty() => name.clone_into(&mut self.name),
            Value::Text(text) if key == "message" && self.message.is_empty() => {
                text.clone_into(&mut self.message)
            }
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

    fn log(&mut self, log: Log) -> Result<(), Error> {
        let Log { time_ns, name, message, mut attributes } = log;
        if name.is_empty() {
            return self.span.event(time_ns, &message, &attributes);
        }
        if !message.is_empty() {
            put_attribute(&mut attributes, EVENT_ATTRIBUTES, "message", Value::Text(&message));
        }
        self.span.event(time_ns, &name, &attributes)
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

#[cfg(test)]
mod tests {
    use ingest_otlp::protobuf_to_json;
    use serde_json::{Value as Json, json};

    use super::*;

    fn text_tag(key: &'static str, value: &'static str) -> Tag<'static> {
        Tag { key: key.as_bytes(), text: value.as_bytes(), ..Tag::default() }
    }

    fn int_tag(key: &'static str, value: i64) -> Tag<'static> {
        Tag { key: key.as_bytes(), kind: TagKind::Int, int: value, ..Tag::default() }
    }

    fn bool_tag(key: &'static str, value: bool) -> Tag<'static> {
        Tag { key: key.as_bytes(), kind: TagKind::Bool, flag: value, ..Tag::default() }
    }

    /// The one span that comes out, as OTLP/JSON, and what is around it.
    fn built(fill: impl FnOnce(&mut Builder)) -> (Json, Json) {
        let mut request = Request::new(1 << 20);
        let mut builder = Builder::new(&request);
        builder.span.trace_id = Id::Given([1; 16]);
        fill(&mut builder);
        let place = Process::default().place(&mut request).unwrap();
        builder.finish(place, &mut request).unwrap();
        let mut json = protobuf_to_json(&request.finish()).unwrap();
        let mut scope = json["resourceSpans"][0]["scopeSpans"][0].take();
        (scope["spans"][0].take(), scope["scope"].take())
    }

    #[test]
    fn tags_with_a_field_in_otlp_go_there_and_others_stay() {
        let text = |key, value: &str| json!([{ "key": key, "value": { "stringValue": value } }]);
        for (tags, field, expected) in [
            (vec![text_tag("span.kind", "server")], "kind", json!(2)),
            (vec![text_tag("span.kind", "client")], "kind", json!(3)),
            (vec![text_tag("span.kind", "producer")], "kind", json!(4)),
            (vec![text_tag("span.kind", "consumer")], "kind", json!(5)),
            (vec![text_tag("span.kind", "internal")], "kind", json!(1)),
            (vec![text_tag("span.kind", "odd")], "attributes", text("span.kind", "odd")),
            (vec![bool_tag("error", true)], "status", json!({ "code": 2 })),
            (vec![bool_tag("error", true)], "attributes", json!(null)),
            (vec![text_tag("error", "true")], "status", json!({ "code": 2 })),
            (vec![bool_tag("error", false)], "status", json!(null)),
            (vec![text_tag("error", "timeout")], "attributes", text("error", "timeout")),
            (vec![text_tag("otel.status_code", "OK")], "status", json!({ "code": 1 })),
            (vec![text_tag("otel.status_code", "odd")], "attributes", text("otel.status_code", "odd")),
            (
                vec![text_tag("otel.status_description", "why"), text_tag("otel.status_code", "ERROR")],
                "status",
                json!({ "code": 2, "message": "why" }),
            ),
            (
                vec![text_tag("otel.status_code", "OK"), bool_tag("error", true)],
                "status",
                json!({ "code": 2 }),
            ),
            (vec![int_tag("http.status_code", 500)], "status", json!({ "code": 2 })),
            (vec![text_tag("http.status_code", "404")], "status", json!({ "code": 2 })),
            (vec![int_tag("http.status_code", 404), text_tag("span.kind", "server")], "status", json!(null)),
            (vec![int_tag("http.status_code", 302)], "status", json!(null)),
            (
                vec![int_tag("http.status_code", 500), text_tag("otel.status_code", "OK")],
                "status",
                json!({ "code": 1 }),
            ),
            (vec![text_tag("w3c.tracestate", "a=b")], "traceState", json!("a=b")),
            (vec![text_tag("otel.scope.name", "lib")], "attributes", json!(null)),
        ] {
            let (span, _) = built(|builder| tags.iter().for_each(|tag| builder.tag(tag).unwrap()));
            assert_eq!(span[field], expected, "{tags:?}");
        }
        let (_, scope) = built(|builder| {
            builder.tag(&text_tag("otel.library.version", "2")).unwrap();
            builder.tag(&text_tag("otel.library.name", "lib")).unwrap();
        });
        assert_eq!(scope, json!({ "name": "lib", "version": "2" }));
    }

    #[test]
    fn the_parent_is_found_among_the_references_and_the_others_are_links() {
        let [this, other] = [Id::Given([1; 16]), Id::Given([2; 16])];
        let reference =
            |trace_id, span, follows| Reference { trace_id, span_id: Id::Given([span; 8]), follows };
        for (references, parent, links) in [
            (vec![reference(this, 1, false)], "0101010101010101", vec![]),
            (vec![reference(this, 1, true)], "0101010101010101", vec!["follows_from 0101010101010101"]),
            (
                vec![reference(this, 1, true), reference(this, 2, false)],
                "0202020202020202",
                vec!["follows_from 0101010101010101"],
            ),
            (
                vec![reference(this, 1, false), reference(this, 2, false)],
                "0101010101010101",
                vec!["child_of 0202020202020202"],
            ),
            (vec![reference(other, 1, false)], "", vec!["child_of 0101010101010101"]),
            (vec![], "", vec![]),
        ] {
            let (span, _) =
                built(|builder| references.iter().for_each(|&one| builder.reference(one).unwrap()));
            let found: Vec<String> = span["links"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|link| {
                    let kind = link["attributes"][0]["value"]["stringValue"].as_str().unwrap();
                    format!("{kind} {}", link["spanId"].as_str().unwrap())
                })
                .collect();
            assert_eq!(found, links, "{references:?}");
            assert_eq!(span["parentSpanId"].as_str().unwrap_or_default(), parent, "{references:?}");
        }
        // Thrift names the parent beside the references.
        let (span, _) = built(|builder| {
            builder.span.parent_id = Id::Given([3; 8]);
            builder.reference(reference(this, 1, false)).unwrap();
        });
        assert_eq!(span["parentSpanId"], "0303030303030303");
        assert_eq!(span["links"][0]["spanId"], "0101010101010101");
    }

    #[test]
    fn a_log_is_an_event_named_by_its_event_else_by_its_message() {
        for (fields, name, attributes) in [
            (vec![text_tag("event", "retry"), int_tag("n", 2)], "retry", vec!["n"]),
            (vec![text_tag("message", "sent")], "sent", vec![]),
            (vec![text_tag("message", "why"), text_tag("event", "error")], "error", vec!["message"]),
            (vec![int_tag("event", 1)], "", vec!["event"]),
            (vec![], "", vec![]),
        ] {
            let (span, _) = built(|builder| {
                let mut log = Log { time_ns: 7, ..Log::default() };
                fields.iter().for_each(|field| log.field(field, &builder.span).unwrap());
                builder.log(log).unwrap();
            });
            let event = &span["events"][0];
            let keys = event["attributes"].as_array().into_iter().flatten();
            let keys: Vec<&str> = keys.map(|attribute| attribute["key"].as_str().unwrap()).collect();
            assert_eq!((event["name"].as_str().unwrap_or_default(), keys), (name, attributes), "{fields:?}");
            assert_eq!(event["timeUnixNano"], "7");
        }
    }

    #[test]
    fn sampled_and_debug_are_sampled_and_warnings_are_kept() {
        for (flags, expected) in
            [(0, json!(null)), (1, json!(1)), (2, json!(1)), (3, json!(1)), (4, json!(null))]
        {
            assert_eq!(built(|builder| builder.flags(flags)).0["flags"], expected, "{flags}");
        }
        let (span, _) = built(|builder| {
            builder.warning(b"clock skew").unwrap();
            builder.warning(b"bad \xFF text").unwrap();
        });
        let values = json!([{ "stringValue": "clock skew" }, { "stringValue": "bad \u{FFFD} text" }]);
        let expected = json!([{ "key": WARNINGS, "value": { "arrayValue": { "values": values } } }]);
        assert_eq!(span["attributes"], expected);
    }

    #[test]
    fn a_process_is_a_resource_with_one_name() {
        for (service, tags, expected) in [
            ("shop", vec![text_tag("hostname", "h")], vec!["service.name=shop", "host.name=h"]),
            ("shop", vec![text_tag("service.name", "SHOP")], vec!["service.name=shop"]),
            ("", vec![text_tag("service.name", "shop")], vec!["service.name=shop"]),
            ("", vec![], vec![]),
        ] {
            let mut process = Process { service: service.into(), ..Process::default() };
            tags.iter().for_each(|tag| process.tag(tag, 1 << 20).unwrap());
            let mut request = Request::new(1 << 20);
            process.place(&mut request).unwrap();
            let json = protobuf_to_json(&request.finish()).unwrap();
            let attributes = json["resourceSpans"][0]["resource"]["attributes"].as_array().cloned();
            let found: Vec<String> = attributes
                .iter()
                .flatten()
                .map(|attribute| {
                    let text = |value: &Json| value.as_str().unwrap().to_owned();
                    format!("{}={}", text(&attribute["key"]), text(&attribute["value"]["stringValue"]))
                })
                .collect();
            assert_eq!(found, expected, "{tags:?}");
        }
    }
}
