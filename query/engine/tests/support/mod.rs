//! What the tests of the engine share: spans made from a few small numbers, a pretended live side, a real archive.
#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use bytes::Bytes;
use ingest_otlp::messages::{
    AnyValue, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, Status, TracesData, any_value::Value,
};
use prost::Message;
use query_engine::{Live, LiveTrace};
use store_archive::{Archive, ArchiveOptions, ShardWriter};
use store_model::{
    Fragment, Offset, Reason, ShardId, SpanKind, StatusCode, Tenant, Threshold, TraceId, UnixNanos,
};

/// A span in few numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) span_id: u64,
    pub(crate) root: bool,
    pub(crate) start: u64,
    pub(crate) duration: u64,
    pub(crate) service: String,
    pub(crate) operation: String,
    pub(crate) kind: SpanKind,
    pub(crate) status: StatusCode,
    /// A text attribute of the span.
    pub(crate) colour: String,
    /// A numeric attribute of the span.
    pub(crate) code: i64,
    /// A text attribute of the resource.
    pub(crate) host: String,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            span_id: 1,
            root: true,
            start: 100,
            duration: 10,
            service: "shop".into(),
            operation: "buy".into(),
            kind: SpanKind::Server,
            status: StatusCode::Unset,
            colour: "red".into(),
            code: 200,
            host: "a".into(),
        }
    }
}

pub(crate) fn id(number: u8) -> TraceId {
    TraceId([number; 16])
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) }
}

/// The spans of one or several traces as one OTLP body.
pub(crate) fn body<'a>(spans: impl IntoIterator<Item = (TraceId, &'a Spec)>) -> Bytes {
    let resource_spans = spans.into_iter().map(|(trace_id, spec)| {
        let span = Span {
            trace_id: trace_id.0.to_vec(),
            span_id: spec.span_id.to_be_bytes().to_vec(),
            parent_span_id: if spec.root { Vec::new() } else { vec![9; 8] },
            name: spec.operation.clone(),
            kind: spec.kind as i32,
            start_time_unix_nano: spec.start,
            end_time_unix_nano: spec.start + spec.duration,
            attributes: vec![
                attribute("colour", Value::StringValue(spec.colour.clone())),
                attribute("code", Value::IntValue(spec.code)),
            ],
            status: Some(Status { message: String::new(), code: spec.status as i32 }),
            ..Span::default()
        };
        let attributes = vec![
            attribute("service.name", Value::StringValue(spec.service.clone())),
            attribute("host", Value::StringValue(spec.host.clone())),
        ];
        ResourceSpans {
            resource: Some(Resource { attributes, dropped_attributes_count: 0 }),
            scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }
    });
    TracesData { resource_spans: resource_spans.collect() }.encode_to_vec().into()
}

/// A kept fragment, with head's reason and one percent.
pub(crate) fn fragment(tenant: &Tenant, trace_id: TraceId, trace_start: u64, spans: &[Spec]) -> Fragment {
    let ends = spans.iter().map(|span| span.start + span.duration);
    Fragment {
        tenant: tenant.clone(),
        trace_id,
        trace_start: UnixNanos(trace_start),
        end: UnixNanos(ends.max().unwrap_or(0)),
        decided_at: UnixNanos(1_000_000),
        reason: Reason::Head,
        threshold: Threshold::from_probability(0.01),
        complete: true,
        span_count: u32::try_from(spans.len()).unwrap(),
        otlp: body(spans.iter().map(|span| (trace_id, span))),
    }
}

/// A real archive of one shard in a directory of its own.
pub(crate) struct Store {
    archive: Archive,
    writer: ShardWriter,
    sealed: u64,
    _directory: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = ArchiveOptions {
            directory: directory.path().to_owned(),
            // Small pages, so that a few fragments make several.
            page_bytes: 512,
            ..ArchiveOptions::default()
        };
        let (archive, _report) = Archive::open(options, 1).unwrap();
        let writer = archive.writer(ShardId(0));
        Self { archive, writer, sealed: 0, _directory: directory }
    }

    pub(crate) fn archive(&self) -> Archive {
        self.archive.clone()
    }

    pub(crate) fn insert(&mut self, fragment: Fragment) {
        self.writer.insert(fragment);
    }

    /// Seals the open segment, if it holds anything.
    pub(crate) fn seal(&mut self) -> Option<PathBuf> {
        self.sealed += 1;
        self.writer.seal(Offset(self.sealed), UnixNanos(1)).unwrap()
    }
}

/// A live side that holds what it is given.
#[derive(Default)]
pub(crate) struct PretendedLive {
    pub(crate) traces: Mutex<HashMap<(Tenant, TraceId), LiveTrace>>,
    /// Spans whose traces are gone: bodies still hold them.
    pub(crate) stale_bodies: Mutex<Vec<(Tenant, Bytes)>>,
}

impl PretendedLive {
    pub(crate) fn add(&self, tenant: &Tenant, trace_id: TraceId, trace_start: u64, spans: &[Spec]) {
        let live = LiveTrace {
            trace_start: UnixNanos(trace_start),
            otlp: body(spans.iter().map(|span| (trace_id, span))),
            root_seen: spans.iter().any(|span| span.root),
            verdict: None,
        };
        self.traces.lock().unwrap().insert((tenant.clone(), trace_id), live);
    }
}

impl Live for PretendedLive {
    fn trace(&self, tenant: &Tenant, id: TraceId) -> Option<LiveTrace> {
        self.traces.lock().unwrap().get(&(tenant.clone(), id)).cloned()
    }

    fn bodies(&self, tenant: &Tenant, visit: &mut dyn FnMut(&[u8]) -> bool) {
        let traces: Vec<Bytes> = {
            let traces = self.traces.lock().unwrap();
            let own = traces.iter().filter(|((owner, _), _)| owner == tenant);
            own.map(|(_, live)| live.otlp.clone()).collect()
        };
        let stale = self.stale_bodies.lock().unwrap().clone();
        let stale = stale.into_iter().filter(|(owner, _)| owner == tenant).map(|(_, body)| body);
        let _all_visited = traces.into_iter().chain(stale).all(|body| visit(&body));
    }

    fn undecided(&self, tenant: &Tenant, ids: &[TraceId]) -> Vec<Option<UnixNanos>> {
        let traces = self.traces.lock().unwrap();
        ids.iter().map(|&id| traces.get(&(tenant.clone(), id)).map(|live| live.trace_start)).collect()
    }
}
