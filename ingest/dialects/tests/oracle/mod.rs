//! The judge: the same bytes through prost, with messages of our own, and every answer of the crate compared. Shared with
//! the fuzz targets. Text is declared as bytes, so that prost does not refuse what the crate repairs.

use ingest_dialects::{Dialect, transcode};
use ingest_otlp::messages::{ExportTraceServiceRequest, Span};
use prost::Message;

/// No limit that a test would reach.
pub(crate) const NO_LIMIT: usize = 1 << 30;

/// Messages of `zipkin.proto3`.
pub(crate) mod zipkin {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct ListOfSpans {
        #[prost(message, repeated, tag = "1")]
        pub spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub parent_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub id: Vec<u8>,
        #[prost(int32, tag = "4")]
        pub kind: i32,
        #[prost(bytes = "vec", tag = "5")]
        pub name: Vec<u8>,
        #[prost(fixed64, tag = "6")]
        pub timestamp: u64,
        #[prost(uint64, tag = "7")]
        pub duration: u64,
        #[prost(message, optional, tag = "8")]
        pub local_endpoint: Option<Endpoint>,
        #[prost(message, optional, tag = "9")]
        pub remote_endpoint: Option<Endpoint>,
        #[prost(message, repeated, tag = "10")]
        pub annotations: Vec<Annotation>,
        #[prost(message, repeated, tag = "11")]
        pub tags: Vec<Tag>,
        #[prost(bool, tag = "12")]
        pub debug: bool,
        #[prost(bool, tag = "13")]
        pub shared: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Endpoint {
        #[prost(bytes = "vec", tag = "1")]
        pub service_name: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub ipv4: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub ipv6: Vec<u8>,
        #[prost(int32, tag = "4")]
        pub port: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Annotation {
        #[prost(fixed64, tag = "1")]
        pub timestamp: u64,
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }

    /// An entry of the map.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Tag {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }
}

/// Messages of `jaeger.api_v2`.
pub(crate) mod jaeger {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct PostSpansRequest {
        #[prost(message, optional, tag = "1")]
        pub batch: Option<Batch>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Batch {
        #[prost(message, repeated, tag = "1")]
        pub spans: Vec<Span>,
        #[prost(message, optional, tag = "2")]
        pub process: Option<Process>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Process {
        #[prost(bytes = "vec", tag = "1")]
        pub service_name: Vec<u8>,
        #[prost(message, repeated, tag = "2")]
        pub tags: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub span_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub operation_name: Vec<u8>,
        #[prost(message, repeated, tag = "4")]
        pub references: Vec<SpanRef>,
        #[prost(uint32, tag = "5")]
        pub flags: u32,
        #[prost(message, optional, tag = "6")]
        pub start_time: Option<Time>,
        #[prost(message, optional, tag = "7")]
        pub duration: Option<Time>,
        #[prost(message, repeated, tag = "8")]
        pub tags: Vec<KeyValue>,
        #[prost(message, repeated, tag = "9")]
        pub logs: Vec<Log>,
        #[prost(message, optional, tag = "10")]
        pub process: Option<Process>,
        #[prost(bytes = "vec", tag = "11")]
        pub process_id: Vec<u8>,
        #[prost(bytes = "vec", repeated, tag = "12")]
        pub warnings: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct SpanRef {
        #[prost(bytes = "vec", tag = "1")]
        pub trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub span_id: Vec<u8>,
        #[prost(int32, tag = "3")]
        pub ref_type: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Log {
        #[prost(message, optional, tag = "1")]
        pub timestamp: Option<Time>,
        #[prost(message, repeated, tag = "2")]
        pub fields: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct KeyValue {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
        #[prost(int32, tag = "2")]
        pub v_type: i32,
        #[prost(bytes = "vec", tag = "3")]
        pub v_str: Vec<u8>,
        #[prost(bool, tag = "4")]
        pub v_bool: bool,
        #[prost(int64, tag = "5")]
        pub v_int64: i64,
        #[prost(double, tag = "6")]
        pub v_float64: f64,
        #[prost(bytes = "vec", tag = "7")]
        pub v_binary: Vec<u8>,
    }

    /// `google.protobuf.Timestamp` and `Duration`.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Time {
        #[prost(int64, tag = "1")]
        pub seconds: i64,
        #[prost(int32, tag = "2")]
        pub nanos: i32,
    }
}

/// What every dialect must give of a span, as text to compare and sort by.
type Essence = (String, String, String, u64, u64);

/// An id as the crate writes it: half a trace id is padded, and what is no id is one zero.
fn id<const N: usize>(bytes: &[u8]) -> String {
    let padded = match bytes.len() {
        0 => Vec::new(),
        length if length == N => bytes.to_vec(),
        8 => [&[0; 8], bytes].concat(),
        _ => vec![0],
    };
    format!("{padded:x?}")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn zipkin_essence(span: &zipkin::Span) -> Essence {
    let earliest = span.annotations.iter().map(|annotation| annotation.timestamp).min().unwrap_or(0);
    let start = if span.timestamp == 0 { earliest } else { span.timestamp };
    let end = start.saturating_add(span.duration);
    let nanos = |micros: u64| micros.saturating_mul(1_000);
    (id::<16>(&span.trace_id), id::<8>(&span.id), text(&span.name), nanos(start), nanos(end))
}

fn jaeger_essence(span: &jaeger::Span) -> Essence {
    let nanos = |time: &Option<jaeger::Time>| {
        let time = time.clone().unwrap_or_default();
        let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        u64::try_from(nanos.clamp(0, i128::from(u64::MAX))).expect("just clamped")
    };
    let (start, duration) = (nanos(&span.start_time), nanos(&span.duration));
    let end = start.saturating_add(duration);
    (id::<16>(&span.trace_id), id::<8>(&span.span_id), text(&span.operation_name), start, end)
}

fn otlp_essence(span: &Span) -> Essence {
    let id = |bytes: &[u8]| format!("{bytes:x?}");
    (
        id(&span.trace_id),
        id(&span.span_id),
        span.name.clone(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )
}

/// Every span of a request.
pub(crate) fn spans(request: &ExportTraceServiceRequest) -> impl Iterator<Item = &Span> {
    request.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
}

/// Transcodes, and checks what must hold of every body: what comes out is OTLP that prost and the walk read alike, and a
/// limit that is one byte too small for it refuses it.
pub(crate) fn check(dialect: Dialect, body: &[u8]) -> Option<ExportTraceServiceRequest> {
    let otlp = transcode(dialect, body, NO_LIMIT).ok()?;
    let decoded = ExportTraceServiceRequest::decode(&otlp[..]).expect("what comes out is OTLP");
    let walked = ingest_otlp::walk(&otlp, &mut |_| {}).expect("and the walk reads it");
    let count = u32::try_from(spans(&decoded).count()).expect("a test body is small");
    assert_eq!(walked.accepted + walked.rejected, count);
    if !otlp.is_empty() {
        let refused = transcode(dialect, body, otlp.len() - 1).expect_err("the limit holds");
        assert!(refused.is_too_large());
    }
    Some(decoded)
}

fn check_essences(decoded: Option<ExportTraceServiceRequest>, expected: Option<Vec<Essence>>) -> bool {
    let found = decoded.map(|decoded| spans(&decoded).map(otlp_essence).collect::<Vec<_>>());
    let sorted = |essences: Option<Vec<Essence>>| {
        essences.map(|mut essences| {
            essences.sort();
            essences
        })
    };
    let is_accepted = found.is_some();
    assert_eq!(sorted(found), sorted(expected));
    is_accepted
}

/// Checks a body against prost; whether it is acceptable.
pub(crate) fn check_zipkin(body: &[u8]) -> bool {
    let decoded = zipkin::ListOfSpans::decode(body);
    if decoded.as_ref().is_err_and(is_depth) {
        return false;
    }
    let expected = decoded.ok().map(|list| list.spans.iter().map(zipkin_essence).collect());
    check_essences(check(Dialect::ZipkinProto, body), expected)
}

/// Checks a body against prost; whether it is acceptable.
pub(crate) fn check_jaeger(body: &[u8]) -> bool {
    let decoded = jaeger::PostSpansRequest::decode(body);
    if decoded.as_ref().is_err_and(is_depth) {
        return false;
    }
    let batch = decoded.ok().map(|request| request.batch.unwrap_or_default());
    let expected = batch.map(|batch| batch.spans.iter().map(jaeger_essence).collect());
    check_essences(check(Dialect::JaegerProto, body), expected)
}

/// prost counts the messages around an unknown group among its hundred levels, the crate only the groups.
fn is_depth(error: &prost::DecodeError) -> bool {
    error.to_string().contains("recursion limit")
}
