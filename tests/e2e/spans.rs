//! Spans to send, and the comparison with what comes back. Knows neither ports nor processes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ingest_otlp::messages::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span, Status, TracesData, any_value, span,
};
use store_model::TraceId;

/// When the tests' spans begin: 2027, so that no test depends on today.
const BEGIN_NS: u64 = 1_800_000_000_000_000_000;

/// A small seeded generator (`SplitMix64`).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn trace_id(&mut self) -> TraceId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next().to_be_bytes());
        id[8..].copy_from_slice(&self.next().to_be_bytes());
        TraceId(id)
    }
}

/// Every span begins a microsecond after the one before, so that answers have an order.
fn tick() -> u64 {
    static SPANS: AtomicU64 = AtomicU64::new(0);
    BEGIN_NS + SPANS.fetch_add(1, Ordering::Relaxed) * 1_000
}

pub(crate) fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}

/// Number `index` of a trace: 0 is the root, the others are its children. Takes 10 ms.
pub(crate) fn span(trace_id: TraceId, index: u64) -> Span {
    let id = |index: u64| (index + 1).to_be_bytes().to_vec();
    let start = tick();
    Span {
        trace_id: trace_id.0.to_vec(),
        span_id: id(index),
        parent_span_id: if index == 0 { Vec::new() } else { id(0) },
        name: format!("operation {}", index % 7),
        kind: i32::try_from(index % 5).unwrap() + 1,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 10_000_000,
        attributes: vec![attribute("number", &index.to_string()), attribute("städte", "Zürich \u{1f980}")],
        events: vec![span::Event { time_unix_nano: start, name: "said".into(), ..span::Event::default() }],
        links: vec![span::Link { trace_id: vec![7; 16], span_id: vec![9; 8], ..span::Link::default() }],
        trace_state: "vendor=1".into(),
        flags: 1,
        ..Span::default()
    }
}

/// The same span, failed.
pub(crate) fn failed(mut span: Span) -> Span {
    span.status = Some(Status { message: "upstream said no".into(), code: 2 });
    span
}

/// The same span, lasting so long.
pub(crate) fn lasting(mut span: Span, seconds: u64) -> Span {
    span.end_time_unix_nano = span.start_time_unix_nano + seconds * 1_000_000_000;
    span
}

/// A whole trace of plain spans.
pub(crate) fn trace(trace_id: TraceId, spans: u64) -> Vec<Span> {
    (0..spans).map(|index| span(trace_id, index)).collect()
}

/// A request of one service.
pub(crate) fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![attribute("service.name", service), attribute("host.name", "e2e")],
        ..Resource::default()
    };
    let scope = InstrumentationScope { name: "e2e".into(), version: "1".into(), ..Default::default() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: "urn:scope".into() }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans,
            schema_url: "urn:resource".into(),
        }],
    }
}

/// A span with everything that stands around it.
pub(crate) type Flat = (Option<Resource>, String, Option<InstrumentationScope>, String, Span);

/// Spans by span id, each with its surroundings; panics when one comes twice.
pub(crate) fn flatten(resource_spans: &[ResourceSpans]) -> BTreeMap<Vec<u8>, Flat> {
    let mut spans = BTreeMap::new();
    for outer in resource_spans {
        for inner in &outer.scope_spans {
            for span in &inner.spans {
                let flat = (
                    outer.resource.clone(),
                    outer.schema_url.clone(),
                    inner.scope.clone(),
                    inner.schema_url.clone(),
                    span.clone(),
                );
                assert!(
                    spans.insert(span.span_id.clone(), flat).is_none(),
                    "span {:?} is doubled",
                    span.span_id
                );
            }
        }
    }
    spans
}

/// What came back is what was sent, span by span. `is_decided`: then every tracestate names the threshold, and otherwise
/// says what it said.
pub(crate) fn assert_same(sent: &[ExportTraceServiceRequest], came: &TracesData, is_decided: bool) {
    let whole: Vec<ResourceSpans> = sent.iter().flat_map(|request| request.resource_spans.clone()).collect();
    let (sent, mut came) = (flatten(&whole), flatten(&came.resource_spans));
    for (.., span) in came.values_mut() {
        if is_decided {
            let threshold = store_model::sampling::OtState::parse(&span.trace_state).threshold;
            assert!(threshold.is_some(), "{:?} names no threshold", span.trace_state);
            span.trace_state = span.trace_state.split(',').skip(1).collect::<Vec<_>>().join(",");
        }
    }
    let (sent_ids, came_ids): (Vec<_>, Vec<_>) = (sent.keys().collect(), came.keys().collect());
    assert_eq!(sent_ids.len(), came_ids.len(), "sent {sent_ids:?}, came back {came_ids:?}");
    for (id, sent) in &sent {
        assert_eq!(Some(sent), came.get(id), "span {id:?} is not what was sent");
    }
}
