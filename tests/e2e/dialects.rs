//! Zipkin's and Jaeger's ports, with bodies that real clients sent: their spans come back as OTLP.

use std::net::TcpListener;

use ingest_dialects::{Dialect, door, transcode};
use ingest_otlp::messages::any_value::Value as Any;
use ingest_otlp::messages::{ExportTraceServiceRequest, KeyValue, Span, TracesData};
use prost::Message as _;
use serde_json::json;
use store_model::TraceId;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::appliance::{Appliance, BINARY, Home, http, run, text};
use crate::asker::Asker;
use crate::spans::assert_same;

/// A body of `ingest/dialects/tests/recorded`.
fn recorded(file: &str) -> Vec<u8> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read(root.join("ingest/dialects/tests/recorded").join(file)).unwrap()
}

fn keep_all() -> Home {
    Home::new(json!({ "sampling": { "head_probability": 1.0 } }))
}

/// `jaeger.api_v2.PostSpansRequest` with its batch unread.
#[derive(Clone, PartialEq, prost::Message)]
struct PostSpansRequest {
    #[prost(bytes = "vec", tag = "1")]
    batch: Vec<u8>,
}

/// `jaeger.api_v2.PostSpansResponse`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct PostSpansResponse {}

/// Sends a body as its client did.
async fn send(appliance: &Appliance, dialect: Dialect, body: &[u8]) {
    let (port, path, content_type) = match dialect {
        Dialect::ZipkinJson => (appliance.zipkin(), door::ZIPKIN_PATH, "application/json"),
        Dialect::ZipkinProto => (appliance.zipkin(), door::ZIPKIN_PATH, "application/x-protobuf"),
        Dialect::JaegerThriftBinary => {
            (appliance.jaeger_thrift_http(), "/api/traces?format=jaeger.thrift", "application/x-thrift")
        }
        Dialect::JaegerThriftCompact => {
            let compact = "application/vnd.apache.thrift.compact";
            (appliance.jaeger_thrift_http(), door::JAEGER_PATH, compact)
        }
        Dialect::JaegerProto => {
            let to = format!("http://{}", appliance.jaeger_grpc());
            let channel = Channel::from_shared(to).unwrap().connect().await.unwrap();
            let mut client = tonic::client::Grpc::new(channel);
            let codec = ProstCodec::<PostSpansRequest, PostSpansResponse>::default();
            let request = tonic::Request::new(PostSpansRequest::decode(body).unwrap());
            client.ready().await.unwrap();
            let path = PathAndQuery::from_static(door::JAEGER_GRPC_PATH);
            let _empty: tonic::Response<PostSpansResponse> =
                client.unary(request, path, codec).await.unwrap();
            return;
        }
    };
    let head = format!("POST {path} HTTP/1.1\r\ncontent-type: {content_type}\r\n");
    assert_eq!(http(port, &head, body), (202, String::new()), "{dialect:?}");
}

/// All spans with the name of their service.
fn spans(trace: &TracesData) -> Vec<(String, &Span)> {
    let mut spans = Vec::new();
    for outer in &trace.resource_spans {
        let service = text_of(&outer.resource.as_ref().unwrap().attributes, "service.name");
        let inner = outer.scope_spans.iter().flat_map(|scope| &scope.spans);
        spans.extend(inner.map(|span| (service.clone(), span)));
    }
    spans
}

fn text_of(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zipkins_and_jaegers_spans_come_back_by_trace_id() {
    let (home, mut sent) = (keep_all(), Vec::new());
    let appliance = home.start().await;
    for (file, dialect) in [
        ("python-zipkin-json.bin", Dialect::ZipkinJson),
        ("python-zipkin-proto.bin", Dialect::ZipkinProto),
        ("python-jaeger-grpc.bin", Dialect::JaegerProto),
        ("python-jaeger-thrift.bin", Dialect::JaegerThriftBinary),
        ("go-jaeger-thrift-compact.bin", Dialect::JaegerThriftCompact),
    ] {
        let body = recorded(file);
        send(&appliance, dialect, &body).await;
        let otlp = transcode(dialect, &body, 1 << 20).unwrap();
        sent.push((file, ExportTraceServiceRequest::decode(&otlp[..]).unwrap()));
    }
    let all = sent.iter().flat_map(|(_, request)| &request.resource_spans);
    let count = all.flat_map(|outer| &outer.scope_spans).map(|scope| scope.spans.len()).sum::<usize>() as u64;
    let mut asker = Asker::connect(appliance.query()).await;
    assert_eq!(asker.at_rest(count).await.kept, count);
    for (file, sent) in sent {
        let id = sent.resource_spans[0].scope_spans[0].spans[0].trace_id.clone();
        let (came, _) = asker.trace(TraceId(id.try_into().unwrap())).await.unwrap();
        assert_same(&[sent], &came, true);
        if file.starts_with("python") {
            // The shop of tests/sdk/zipkin_jaeger.py, whatever it was sent as.
            let spans = spans(&came);
            let charge = &spans.iter().find(|(_, span)| span.name == "Charge").unwrap().1;
            let status = charge.status.clone().unwrap();
            assert_eq!((charge.kind, status.code, &*status.message), (2, 2, "upstream said no"), "{file}");
            let (service, root) = spans.iter().find(|(_, span)| span.parent_span_id.is_empty()).unwrap();
            assert_eq!((&**service, &*root.name), ("frontend", "GET /checkout"), "{file}");
            assert_eq!(text_of(&root.attributes, "text"), "Grüße, 世界 🌍 \"quoted\"\n", "{file}");
        }
    }
    for protocol in ["zipkin", "jaeger_grpc", "jaeger_http"] {
        let taken = format!("sluicebox_receiver_requests_total{{protocol=\"{protocol}\"}}");
        assert!(appliance.metric(&taken) >= 1.0, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_zipkin_span_is_two_spans_and_the_same_one_twice_is_one() {
    let (home, body) = (keep_all(), recorded("go-zipkin-json.bin"));
    let appliance = home.start().await;
    send(&appliance, Dialect::ZipkinJson, &body).await;
    send(&appliance, Dialect::ZipkinJson, &body).await;
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(4).await;
    assert_eq!((counts.kept, counts.refused), (2, 2), "what was sent again is doubled");
    let otlp =
        ExportTraceServiceRequest::decode(&transcode(Dialect::ZipkinJson, &body, 1 << 20).unwrap()[..]);
    let id = otlp.unwrap().resource_spans[0].scope_spans[0].spans[0].trace_id.clone();
    let id = TraceId(id.try_into().unwrap());
    let (came, _) = asker.trace(id).await.unwrap();
    let [(_, one), (_, other)] = &spans(&came)[..] else { panic!("{came:?}") };
    assert_eq!(one.span_id, other.span_id);
    let tree = run(&["trace", &id.to_string(), "--endpoint", &appliance.query().to_string()]);
    let tree = text(&tree);
    let line = |name: &str| tree.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{tree}"));
    let (client, server) = (line("get /cart (client)"), line("serve (server)"));
    assert!(server.find("serve") > client.find("get /cart"), "the server stands below the client:\n{tree}");
}

#[test]
fn a_taken_port_is_named_with_the_key_that_moves_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let home = Home::new(json!({ "receivers": { "zipkin": { "endpoint": address.to_string() } } }));
    let output = std::process::Command::new(BINARY)
        .args(["serve", "--config"])
        .arg(home.config())
        .arg("--data-dir")
        .arg(home.data())
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address.to_string()) && said.contains("receivers.zipkin.endpoint"), "{said}");
}
