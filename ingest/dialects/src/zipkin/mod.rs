//! What Zipkin's fields mean in OTLP. `json` and `proto` read the two wire forms and tell a [`Builder`] what they find,
//! in any order.
//!
//! The mapping is OpenTelemetry's, read backwards, and that of the Collector's translator where the specification is
//! silent; the README lists it.
//! <https://opentelemetry.io/docs/specs/otel/trace/sdk_exporters/zipkin/>

pub(crate) mod json;
pub(crate) mod proto;

mod event;

use crate::error::Error;
use crate::otlp::{Draft, Id, RESOURCE_ATTRIBUTES, Request, SAMPLED, Value, kind, nanos, put_attribute};

/// Tags that describe the process and not the span. OpenTelemetry's exporters flatten the resource into the tags of
/// every span; these go back.
const RESOURCE_TAGS: [&str; 11] = [
    "service.",
    "telemetry.",
    "process.",
    "host.",
    "os.",
    "container.",
    "k8s.",
    "cloud.",
    "deployment.",
    "device.",
    "faas.name",
];

/// The exception: whom a span calls is the span's.
const PEER_TAGS: &str = "service.peer.";

/// What the two endpoints become. A tag of the same name is the more deliberate statement and wins.
const ENDPOINT_KEYS: [&str; 5] = [
    "network.local.address",
    "network.local.port",
    "network.peer.address",
    "network.peer.port",
    "peer.service",
];

/// One side of the span.
#[derive(Debug, Default)]
struct Endpoint {
    service: String,
    /// Of either family; the sixth version wins, as in the Collector.
    address: String,
    address_is_v6: bool,
    port: i64,
}

impl Endpoint {
    fn clear(&mut self) {
        self.service.clear();
        self.address.clear();
        (self.address_is_v6, self.port) = (false, 0);
    }

    fn set_service(&mut self, name: &str) {
        self.service.clear();
        self.service.push_str(name);
    }

    fn set_address(&mut self, address: &str, is_v6: bool) {
        if !address.is_empty() && is_v6 >= self.address_is_v6 {
            self.address.clear();
            self.address.push_str(address);
            self.address_is_v6 = is_v6;
        }
    }
}

/// A Zipkin span in the making.
#[derive(Debug)]
struct Builder {
    span: Draft,
    local: Endpoint,
    remote: Endpoint,
    /// In microseconds, zero for none.
    timestamp: u64,
    duration: u64,
    /// In microseconds, of the first annotation.
    earliest: Option<u64>,
    shared: bool,
    /// Attributes for the resource.
    resource: Vec<u8>,
    /// The tag `service.name`.
    service: Option<String>,
    is_internal: bool,
    /// Which of [`ENDPOINT_KEYS`] came as tags.
    said: [bool; ENDPOINT_KEYS.len()],
}

impl Builder {
    fn new(request: &Request) -> Self {
        Self {
            span: Draft::new(request.bytes_max()),
            local: Endpoint::default(),
            remote: Endpoint::default(),
            timestamp: 0,
            duration: 0,
            earliest: None,
            shared: false,
            resource: Vec::new(),
            service: None,
            is_internal: false,
            said: [false; ENDPOINT_KEYS.len()],
        }
    }

    fn clear(&mut self) {
        let Self {
            span,
            local,
            remote,
            timestamp,
            duration,
            earliest,
            shared,
            resource,
            service,
            is_internal,
            said,
        } = self;
        span.clear();
        local.clear();
        remote.clear();
        resource.clear();
        (*timestamp, *duration, *earliest) = (0, 0, None);
        (*shared, *is_internal, *service) = (false, false, None);
        *said = [false; ENDPOINT_KEYS.len()];
    }

    fn debug(&mut self, debug: bool) {
        // A request to keep the span beyond all sampling; OpenTelemetry's exporters say it of each sampled one.
        self.span.flags = if debug { SAMPLED } else { 0 };
    }

    fn tag(&mut self, key: &str, value: &str) -> Result<(), Error> {
        if self.span.take_tag(key, value) {
            return Ok(());
        }
        match key {
            "error" if !value.eq_ignore_ascii_case("false") => {
                // Zipkin marks a span as failed by the tag's presence; its value may say why.
                self.span.is_error = true;
                if !value.eq_ignore_ascii_case("true") {
                    self.span.set_error_text(value);
                }
                return Ok(());
            }
            "span.kind" if value.eq_ignore_ascii_case("internal") => {
                self.is_internal = true;
                return Ok(());
            }
            "service.name" => {
                self.service = Some(value.to_owned());
                return Ok(());
            }
            _ => {}
        }
        let is_of_process =
            RESOURCE_TAGS.iter().any(|start| key.starts_with(start)) && !key.starts_with(PEER_TAGS);
        if is_of_process {
            put_attribute(&mut self.resource, RESOURCE_ATTRIBUTES, key, Value::Text(value));
            return self.span.check_beside(self.resource.len());
        }
        if let Some(place) = ENDPOINT_KEYS.iter().position(|&said| said == key) {
            self.said[place] = true;
        }
        self.span.attribute(key, Value::Text(value))
    }

    fn annotation(&mut self, timestamp: u64, value: &str) -> Result<(), Error> {
        self.earliest = Some(self.earliest.map_or(timestamp, |earliest| earliest.min(timestamp)));
        event::put(&mut self.span, nanos(timestamp), value)
    }

    /// Adds the span to the request and forgets it.
    fn finish(&mut self, request: &mut Request) -> Result<(), Error> {
        if self.span.kind == kind::UNSPECIFIED && self.is_internal {
            self.span.kind = kind::INTERNAL;
        }
        if self.span.parent_id == self.span.span_id {
            // Old instrumentation marks a root by making it its own parent.
            self.span.parent_id = Id::Absent;
        }
        self.put_times()?;
        self.put_endpoints()?;
        if self.shared {
            // Client and server wrote under one id; whoever draws the trace wants to know.
            self.span.attribute("zipkin.shared", Value::Bool(true))?;
        }
        let service = self.service.as_ref().unwrap_or(&self.local.service);
        let mut attributes = Vec::new();
        if !service.is_empty() {
            put_attribute(&mut attributes, RESOURCE_ATTRIBUTES, "service.name", Value::Text(service));
        }
        attributes.extend_from_slice(&self.resource);
        let place = request.resource(&attributes)?;
        request.push(place, &mut self.span)?;
        self.clear();
        Ok(())
    }

    fn put_times(&mut self) -> Result<(), Error> {
        let mut start = self.timestamp;
        if start == 0 {
            // Allowed for spans that were never started or came in parts. The attribute is the Collector's.
            start = self.earliest.unwrap_or_default();
            self.span.attribute("otel.zipkin.absentField.startTime", Value::Bool(true))?;
        }
        self.span.start_ns = nanos(start);
        self.span.end_ns = nanos(start.saturating_add(self.duration));
        Ok(())
    }

    fn put_endpoints(&mut self) -> Result<(), Error> {
        let Self { span, local, remote, said, .. } = self;
        let values = [
            some_text(&local.address),
            some_port(local.port),
            some_text(&remote.address),
            some_port(remote.port),
            some_text(&remote.service),
        ];
        for ((key, value), said) in ENDPOINT_KEYS.iter().zip(values).zip(said) {
            if let Some(value) = value
                && !*said
            {
                span.attribute(key, value)?;
            }
        }
        Ok(())
    }
}

fn some_text(text: &str) -> Option<Value<'_>> {
    (!text.is_empty()).then_some(Value::Text(text))
}

fn some_port(port: i64) -> Option<Value<'static>> {
    (port > 0).then_some(Value::Int(port))
}
