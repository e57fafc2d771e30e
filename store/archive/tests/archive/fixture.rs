//! Fragments made of real OTLP, and an archive in a directory of its own.

use ingest_otlp::messages::{
    AnyValue, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, Status, TracesData, any_value::Value,
};
use prost::Message as _;
use store_archive::{Archive, ArchiveOptions, OpenReport};
use store_model::{Fragment, Reason, Tenant, Threshold, TraceId, UnixNanos};

/// One span, as much of it as is indexed.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestSpan {
    pub(crate) service: String,
    pub(crate) operation: String,
    pub(crate) kind: i32,
    pub(crate) status: i32,
    pub(crate) attributes: Vec<(String, Value)>,
}

pub(crate) fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

/// Never zero, which OTLP forbids.
pub(crate) fn id(number: u8) -> TraceId {
    let mut bytes = [number; 16];
    bytes[15] = 0xFF;
    TraceId(bytes)
}

pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

pub(crate) fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

/// A `TracesData` with a resource per span; its service is a resource attribute.
pub(crate) fn otlp(trace_id: TraceId, start: u64, spans: &[TestSpan]) -> Vec<u8> {
    let one = |(number, span): (u64, &TestSpan)| {
        let attributes = span.attributes.iter().map(|(key, value)| attribute(key, value.clone())).collect();
        let message = Span {
            trace_id: trace_id.0.to_vec(),
            span_id: (number + 1).to_be_bytes().to_vec(),
            name: span.operation.clone(),
            kind: span.kind,
            start_time_unix_nano: start,
            end_time_unix_nano: start + 1_000_000,
            status: Some(Status { code: span.status, message: String::new() }),
            attributes,
            ..Span::default()
        };
        let resource = Resource {
            attributes: vec![attribute("service.name", text(&span.service))],
            ..Resource::default()
        };
        ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans { spans: vec![message], ..ScopeSpans::default() }],
            schema_url: String::new(),
        }
    };
    let resource_spans = (0..).zip(spans).map(one).collect();
    TracesData { resource_spans }.encode_to_vec()
}

pub(crate) fn fragment(owner: &Tenant, trace_id: TraceId, start: u64, spans: &[TestSpan]) -> Fragment {
    Fragment {
        tenant: owner.clone(),
        trace_id,
        trace_start: UnixNanos(start),
        end: UnixNanos(start + 1_000_000),
        decided_at: UnixNanos(start + 2_000_000),
        reason: Reason::ALL[usize::from(trace_id.0[0] % 3)],
        threshold: Threshold::from_probability(0.01),
        complete: start.is_multiple_of(2),
        span_count: u32::try_from(spans.len()).unwrap(),
        otlp: otlp(trace_id, start, spans).into(),
    }
}

/// A trace of one span, told apart by its number.
pub(crate) fn small(number: u8) -> Fragment {
    let span = TestSpan {
        service: "shop".to_owned(),
        operation: format!("GET /{}", number % 4),
        kind: 2,
        status: 0,
        attributes: vec![("number".to_owned(), Value::IntValue(i64::from(number)))],
    };
    fragment(&Tenant::default(), id(number), 1_000 + u64::from(number), &[span])
}

/// Pages so small that every test has several.
pub(crate) fn options(directory: &std::path::Path) -> ArchiveOptions {
    ArchiveOptions { directory: directory.join("traces"), page_bytes: 512, ..ArchiveOptions::default() }
}

pub(crate) fn open(directory: &std::path::Path) -> (Archive, OpenReport) {
    Archive::open(options(directory), 2).unwrap()
}

/// The only segment file of shard 0, or the last by name.
pub(crate) fn segment_paths(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory.join("traces/0")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Every fragment that the archive has of the default tenant, by trace id.
pub(crate) fn all(archive: &Archive) -> Vec<Fragment> {
    let snapshot = archive.snapshot();
    let mut found = Vec::new();
    for segment in snapshot.segments() {
        let rows = segment.rows(&Tenant::default(), &[]).unwrap();
        found.extend(rows.into_iter().map(|row| segment.fragment(row).unwrap()));
    }
    found.sort_by_key(|fragment| fragment.trace_id);
    found
}
