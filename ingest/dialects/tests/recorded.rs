//! Bodies that real clients sent, kept as they came. `python-*` are the exporters of OpenTelemetry 1.21 for Python, sent
//! by `tests/sdk/zipkin_jaeger.py --record`; `go-zipkin-*` is zipkin-go 0.4.3 and `go-jaeger-*` jaeger-client-go 2.30,
//! the compact one a datagram to an agent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use ingest_dialects::{Dialect, transcode};
use ingest_otlp::messages::any_value::Value;
use ingest_otlp::messages::{ExportTraceServiceRequest, KeyValue, ResourceSpans, Span};
use prost::Message;

fn read(file: &str, dialect: Dialect) -> ResourceSpans {
    let body = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded").join(file)).unwrap();
    let otlp = transcode(dialect, &body, 1 << 20).unwrap();
    let walked = ingest_otlp::walk(&otlp, &mut |_| {}).unwrap();
    assert_eq!(walked.rejected, 0, "{file}");
    let mut resources = ExportTraceServiceRequest::decode(&otlp[..]).unwrap().resource_spans;
    assert_eq!(resources.len(), 1, "{file}: one process wrote it");
    resources.remove(0)
}

fn attributes(given: &[KeyValue]) -> String {
    let shown =
        given.iter().map(|KeyValue { key, value }| match value.as_ref().unwrap().value.as_ref().unwrap() {
            Value::StringValue(text) => format!("{key}={text}"),
            Value::BoolValue(flag) => format!("{key}:{flag}"),
            Value::IntValue(number) => format!("{key}:{number}"),
            Value::DoubleValue(number) => format!("{key}:{number}"),
            other => format!("{key}:{other:?}"),
        });
    // What the process is would stand at each span, in exporters that flatten it.
    let of_process = ["telemetry.", "service.", "host.", "sampler."];
    shown
        .filter(|shown| !of_process.iter().any(|start| shown.starts_with(start)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a span says, but for ids and times, which are compared by their relations.
fn summary(span: &Span, spans: &[&Span]) -> String {
    let parent =
        spans.iter().find(|parent| !span.parent_span_id.is_empty() && parent.span_id == span.parent_span_id);
    let status = span.status.clone().unwrap_or_default();
    let events = span.events.iter().map(|event| format!("{}({})", event.name, attributes(&event.attributes)));
    let micros = (span.end_time_unix_nano - span.start_time_unix_nano) / 1_000;
    format!(
        "{} kind {} under {} in {micros} us, status {} {:?}, flags {}, links {} [{}] {{{}}}",
        span.name,
        span.kind,
        parent.map_or("nothing", |parent| &parent.name),
        status.code,
        status.message,
        span.flags,
        span.links.len(),
        events.collect::<Vec<_>>().join(" "),
        attributes(&span.attributes),
    )
}

fn check(file: &str, dialect: Dialect, service: &str, expected: &[&str]) {
    let resource = read(file, dialect);
    let named = resource.resource.unwrap().attributes;
    let names: Vec<&KeyValue> = named.iter().filter(|attribute| attribute.key == "service.name").collect();
    assert_eq!(names.len(), 1, "{file}");
    assert_eq!(
        names[0].value.as_ref().unwrap().value,
        Some(Value::StringValue(service.to_owned())),
        "{file}"
    );
    let spans: Vec<&Span> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    assert!(spans.iter().all(|span| span.trace_id == spans[0].trace_id), "{file}");
    assert!(spans.iter().all(|span| span.start_time_unix_nano > 1_795_490_000_000_000_000), "{file}");
    let found: Vec<String> = spans.iter().map(|span| summary(span, &spans)).collect();
    assert_eq!(found, expected, "{file}");
}

#[test]
fn opentelemetrys_zipkin_exporters_are_read_back() {
    for (file, dialect, address) in [
        ("python-zipkin-json.bin", Dialect::ZipkinJson, "10.0.0.1"),
        ("python-zipkin-proto.bin", Dialect::ZipkinProto, "2001:db8::1"),
    ] {
        let endpoint = format!("network.local.address={address} network.local.port:8080");
        let expected = [
            format!(
                "receipts process kind 5 under Charge in 3000 us, status 0 \"\", flags 1, links 0 [queued() sent(mail.bytes:5120 mail.ok:true)] {{{endpoint}}}"
            ),
            format!(
                "Charge kind 2 under POST payment in 5000 us, status 2 \"upstream said no\", flags 1, links 0 [] {{{endpoint}}}"
            ),
            format!(
                "POST payment kind 3 under GET /checkout in 7000 us, status 0 \"\", flags 1, links 0 [] {{{endpoint}}}"
            ),
            format!(
                "GET /checkout kind 2 under nothing in 10000 us, status 0 \"\", flags 1, links 0 [] {{text=Grüße, 世界 🌍 \"quoted\"\n int.max=9223372036854775807 double=0.1 true=true texts=[\"a\",\"\",\"c\"] visit.number=0 visit.class=error {endpoint}}}"
            ),
        ];
        check(file, dialect, "frontend", &expected.each_ref().map(String::as_str));
        let scope = read(file, dialect).scope_spans.remove(0).scope.unwrap();
        assert_eq!((&*scope.name, &*scope.version), ("shop", "0.9"));
    }
}

#[test]
fn opentelemetrys_jaeger_exporters_are_read_back() {
    // The exporter over gRPC computes times with floats and loses fractions of a microsecond.
    for (file, dialect, micros) in [
        ("python-jaeger-thrift.bin", Dialect::JaegerThriftBinary, [3_000, 5_000, 7_000, 10_000]),
        ("python-jaeger-grpc.bin", Dialect::JaegerProto, [3_000, 4_999, 6_999, 9_999]),
    ] {
        let [receipt, charge, call, root] = micros;
        let expected = [
            format!(
                "receipts process kind 5 under Charge in {receipt} us, status 0 \"\", flags 1, links 0 [queued() sent(mail.bytes:5120 mail.ok:true)] {{}}"
            ),
            format!(
                "Charge kind 2 under POST payment in {charge} us, status 2 \"upstream said no\", flags 1, links 1 [] {{}}"
            ),
            format!(
                "POST payment kind 3 under GET /checkout in {call} us, status 0 \"\", flags 1, links 0 [] {{}}"
            ),
            format!(
                "GET /checkout kind 2 under nothing in {root} us, status 0 \"\", flags 1, links 0 [] {{text=Grüße, 世界 🌍 \"quoted\"\n int.max:9223372036854775807 double:0.1 true:true texts=('a', '', 'c') visit.number:0 visit.class=error}}"
            ),
        ];
        check(file, dialect, "frontend", &expected.each_ref().map(String::as_str));
    }
}

#[test]
fn zipkins_own_client_is_read() {
    for (file, dialect, micros) in
        [("go-zipkin-json.bin", Dialect::ZipkinJson, 72), ("go-zipkin-proto.bin", Dialect::ZipkinProto, 5)]
    {
        let local = "network.local.address=192.168.1.2 network.local.port:8081";
        let serve = if micros == 72 { 1 } else { 0 };
        // The server shares the client's id, and marks it.
        let expected = [
            format!(
                "serve kind 2 under nothing in {serve} us, status 0 \"\", flags 0, links 0 [] {{http.path=/cart {local} zipkin.shared:true}}"
            ),
            format!(
                "get /cart kind 3 under nothing in {micros} us, status 2 \"connection refused\", flags 0, links 0 [ws()] {{{local} network.peer.address=2001:db8::2 network.peer.port:6379 peer.service=redis}}"
            ),
        ];
        check(file, dialect, "cart", &expected.each_ref().map(String::as_str));
    }
}

#[test]
fn jaegers_own_client_is_read() {
    for (file, dialect, micros) in [
        ("go-jaeger-thrift-binary.bin", Dialect::JaegerThriftBinary, 6),
        ("go-jaeger-thrift-compact.bin", Dialect::JaegerThriftCompact, 4),
    ] {
        let root = format!(
            "get /cart kind 2 under nothing in {micros} us, status 2 \"\", flags 1, links 0 [] {{http.status_code:503}}"
        );
        check(
            file,
            dialect,
            "cart",
            &[
                "redis kind 3 under get /cart in 1 us, status 2 \"\", flags 1, links 0 [error(error.object=connection refused) retry(n:2)] {bytes:-5 ratio:0.25 hit:false}",
                "later kind 0 under get /cart in 0 us, status 0 \"\", flags 1, links 1 [] {}",
                &root,
            ],
        );
    }
}
