//! Zipkin and Jaeger, with bodies that real clients sent: taken as OTLP, answered as their clients expect.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use ingest_dialects::{Dialect, door, transcode};
use ingest_receiver::{Outcome, Protocol, Reason, ReceiverConfig};
use store_model::Encoding;

use super::support::{
    GRPC_PATH, HTTP_PATH, Heard, Mood, Pieces, RpcStatus, Server, call, config, framed, gzip, serve,
    serve_with, spans, zstd,
};

/// A body of `ingest/dialects/tests/recorded`, out of its gRPC frame, and how it was sent.
pub(crate) struct Recorded {
    pub(crate) protocol: Protocol,
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
}

const ZIPKIN_JSON: (Protocol, &str, &str) = (Protocol::Zipkin, door::ZIPKIN_PATH, "application/json");
const ZIPKIN_PROTO: (Protocol, &str, &str) = (Protocol::Zipkin, door::ZIPKIN_PATH, "application/x-protobuf");
const JAEGER_GRPC: (Protocol, &str, &str) =
    (Protocol::JaegerGrpc, door::JAEGER_GRPC_PATH, "application/grpc");
const JAEGER_THRIFT: (Protocol, &str, &str) =
    (Protocol::JaegerHttp, "/api/traces?format=jaeger.thrift", "application/x-thrift");
const JAEGER_COMPACT: (Protocol, &str, &str) =
    (Protocol::JaegerHttp, door::JAEGER_PATH, "application/vnd.apache.thrift.compact");

pub(crate) fn recorded() -> Vec<Recorded> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dialects/tests/recorded");
    [
        ("go-zipkin-json.bin", ZIPKIN_JSON),
        ("python-zipkin-json.bin", ZIPKIN_JSON),
        ("go-zipkin-proto.bin", ZIPKIN_PROTO),
        ("python-zipkin-proto.bin", ZIPKIN_PROTO),
        ("python-jaeger-grpc.bin", JAEGER_GRPC),
        ("go-jaeger-thrift-binary.bin", JAEGER_THRIFT),
        ("python-jaeger-thrift.bin", JAEGER_THRIFT),
        ("go-jaeger-thrift-compact.bin", JAEGER_COMPACT),
    ]
    .map(|(file, (protocol, path, content_type))| {
        let body = std::fs::read(folder.join(file)).unwrap();
        Recorded { protocol, path, content_type, body }
    })
    .into()
}

impl Recorded {
    fn first(of: (Protocol, &str, &str)) -> Self {
        recorded().into_iter().find(|one| (one.protocol, one.path, one.content_type) == of).unwrap()
    }

    /// What is handed on of it.
    fn otlp(&self) -> Vec<u8> {
        let dialect = match self.protocol {
            Protocol::Zipkin => door::zipkin_dialect(Some(self.content_type)).unwrap(),
            Protocol::JaegerHttp => door::jaeger_dialect(Some(self.content_type)).unwrap(),
            _ => Dialect::JaegerProto,
        };
        transcode(dialect, &self.body, 1 << 20).unwrap()
    }

    /// Sent to its own port as its own client would, in `encoding`.
    async fn send(&self, server: &Server, version: Version, encoding: Encoding) -> Heard {
        let (token, body) = match encoding {
            Encoding::Gzip => ("gzip", gzip(&self.body)),
            Encoding::Zstd => ("zstd", zstd(&self.body)),
            Encoding::Identity => ("identity", self.body.clone()),
        };
        let mut headers = vec![("content-type", self.content_type)];
        let is_plain = encoding == Encoding::Identity;
        if self.protocol == Protocol::JaegerGrpc {
            headers.push(("grpc-encoding", token));
            let message = framed(u8::from(!is_plain), &body);
            return send(server, self.protocol, Version::HTTP_2, self.path, &headers, message).await;
        }
        if !is_plain {
            headers.push(("content-encoding", token));
        }
        send(server, self.protocol, version, self.path, &headers, body).await
    }
}

/// A `POST` to the port of `port`.
async fn send(
    server: &Server,
    port: Protocol,
    version: Version,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Heard {
    let address = match port {
        Protocol::Grpc => server.endpoints.grpc,
        Protocol::Http => server.endpoints.http,
        Protocol::Zipkin => server.endpoints.zipkin,
        Protocol::JaegerGrpc => server.endpoints.jaeger_grpc,
        Protocol::JaegerHttp => server.endpoints.jaeger_http,
    };
    let uri = if version == Version::HTTP_2 { format!("http://localhost{path}") } else { path.to_owned() };
    let mut request = Request::post(uri);
    if version < Version::HTTP_2 {
        request = request.header("host", "localhost");
    }
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    call(address.unwrap(), version, request.body(Pieces::whole(body)).unwrap()).await
}

/// An error as Zipkin's and Jaeger's clients read it over HTTP.
fn assert_text(heard: &Heard, status: u16) {
    assert_eq!(heard.status, status, "{heard:?}");
    assert_eq!(heard.header("content-type"), "text/plain; charset=utf-8");
    assert!(!heard.body.is_empty());
}

#[tokio::test]
async fn recorded_bodies_of_real_clients_are_handed_on_as_otlp() {
    let encodings = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd];
    for one in recorded() {
        let server = serve();
        let mut sent = 0;
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for encoding in encodings {
                let heard = one.send(&server, version, encoding).await;
                if one.protocol == Protocol::JaegerGrpc {
                    assert_eq!(heard.grpc_status().code(), tonic::Code::Ok);
                    assert_eq!(heard.body[..], door::JAEGER_GRPC_ANSWER);
                } else {
                    assert_eq!(heard.status, door::HTTP_ACCEPTED, "{heard:?}");
                    assert!(heard.body.is_empty());
                }
                sent += 1;
            }
        }
        let otlp = one.otlp();
        let received = server.intake.received();
        assert_eq!(received.len() as u64, sent);
        for (_, request) in &received {
            assert_eq!((request.encoding, &request.stored()[..]), (Encoding::Identity, &otlp[..]));
            assert_eq!(request.body, otlp);
        }
        let (snapshot, spans) = (server.snapshot(), received[0].1.spans.len() as u64);
        let counted = snapshot.of(one.protocol);
        assert_eq!(counted.requests_accepted, sent);
        assert_eq!(counted.spans_accepted, sent * spans);
        assert_eq!(counted.body_bytes, sent * otlp.len() as u64, "as the protobuf it became");
        assert_eq!(counted.connections_accepted, sent);
        for other in Protocol::ALL.into_iter().filter(|&other| other != one.protocol) {
            assert_eq!(snapshot.of(other).connections_accepted, 0);
        }
    }
}

#[tokio::test]
async fn a_port_serves_its_own_protocol_and_no_other() {
    let server = serve();
    let zipkin = Recorded::first(ZIPKIN_JSON);
    for (port, path) in [
        (Protocol::Zipkin, HTTP_PATH),
        (Protocol::Zipkin, door::JAEGER_PATH),
        (Protocol::Zipkin, "/api/v2/spans/"),
        (Protocol::JaegerHttp, HTTP_PATH),
        (Protocol::JaegerHttp, door::ZIPKIN_PATH),
        (Protocol::JaegerGrpc, door::ZIPKIN_PATH),
    ] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let json = [("content-type", "application/json")];
            assert_text(&send(&server, port, version, path, &json, zipkin.body.clone()).await, 404);
        }
    }
    for port in [Protocol::Http, Protocol::Grpc] {
        let json = [("content-type", "application/json")];
        let heard =
            send(&server, port, Version::HTTP_11, door::ZIPKIN_PATH, &json, zipkin.body.clone()).await;
        assert_eq!(heard.status, StatusCode::NOT_FOUND);
    }
    let grpc = [("content-type", "application/grpc")];
    let message = framed(0, &spans(1));
    let heard = send(&server, Protocol::Zipkin, Version::HTTP_2, GRPC_PATH, &grpc, message.clone()).await;
    assert_text(&heard, 404);
    let heard = send(&server, Protocol::JaegerGrpc, Version::HTTP_2, GRPC_PATH, &grpc, message).await;
    assert_eq!(heard.grpc_status().code(), tonic::Code::Unimplemented);
    assert!(server.intake.received().is_empty());
}

#[tokio::test]
async fn both_of_jaegers_protocols_are_served_on_both_of_its_ports() {
    let server = serve();
    let (grpc, thrift) = (Recorded::first(JAEGER_GRPC), Recorded::first(JAEGER_THRIFT));
    for port in [Protocol::JaegerGrpc, Protocol::JaegerHttp] {
        let (headers, message) = ([("content-type", grpc.content_type)], framed(0, &grpc.body));
        let heard = send(&server, port, Version::HTTP_2, grpc.path, &headers, message).await;
        assert_eq!(heard.grpc_status().code(), tonic::Code::Ok);
        let headers = [("content-type", thrift.content_type)];
        let heard = send(&server, port, Version::HTTP_11, thrift.path, &headers, thrift.body.clone()).await;
        assert_eq!(heard.status, door::HTTP_ACCEPTED);
    }
    let snapshot = server.snapshot();
    assert_eq!((snapshot.jaeger_grpc.requests_accepted, snapshot.jaeger_http.requests_accepted), (2, 2));
    assert_eq!(
        (snapshot.jaeger_grpc.connections_accepted, snapshot.jaeger_http.connections_accepted),
        (2, 2),
        "connections count by their port"
    );
}

#[tokio::test]
async fn what_is_wrong_is_said_in_plain_text_with_the_doors_codes() {
    let server = serve();
    for (protocol, path, content_type) in [ZIPKIN_JSON, ZIPKIN_PROTO, JAEGER_THRIFT, JAEGER_COMPACT] {
        let typed = [("content-type", content_type)];
        let heard = send(&server, protocol, Version::HTTP_11, path, &typed, "\u{7}{nonsense").await;
        assert_text(&heard, 400);
        assert!(String::from_utf8_lossy(&heard.body).starts_with("malformed "), "{heard:?}");
        let brotli = [typed[0], ("content-encoding", "br")];
        assert_text(&send(&server, protocol, Version::HTTP_11, path, &brotli, "x").await, 415);
        let tenant = [typed[0], ("x-scope-orgid", "a|b")];
        assert_text(&send(&server, protocol, Version::HTTP_2, path, &tenant, "x").await, 400);
    }
    let unknown = [("content-type", "application/cbor")];
    for ((protocol, path, _), status) in [(ZIPKIN_JSON, 415), (JAEGER_THRIFT, 400)] {
        let heard = send(&server, protocol, Version::HTTP_11, path, &unknown, "x").await;
        assert_text(&heard, status);
    }
    let heard = send(&server, Protocol::JaegerHttp, Version::HTTP_11, door::JAEGER_PATH, &[], "x").await;
    assert_text(&heard, 400);
    let heard = send(&server, Protocol::Zipkin, Version::HTTP_11, door::ZIPKIN_PATH, &[], "[]").await;
    assert_eq!(heard.status, door::HTTP_ACCEPTED, "without a content type it is JSON");

    let grpc = [("content-type", "application/grpc")];
    let broken = framed(0, b"\x07");
    let heard =
        send(&server, Protocol::JaegerGrpc, Version::HTTP_2, door::JAEGER_GRPC_PATH, &grpc, broken).await;
    assert_eq!(heard.grpc_status().code(), tonic::Code::InvalidArgument);
    assert!(heard.grpc_status().message().starts_with("malformed protobuf"));

    let snapshot = server.snapshot();
    assert_eq!(snapshot.zipkin.refused(Reason::Malformed), 2);
    assert_eq!(snapshot.jaeger_http.refused(Reason::ContentType), 2);
    assert_eq!(snapshot.jaeger_grpc.refused(Reason::Malformed), 1);
}

#[tokio::test]
async fn overload_tells_senders_when_to_come_back() {
    let server = serve();
    let wait = Duration::from_millis(2_500);
    server.intake.feels(Mood::Answer(Outcome::Overloaded { retry_after: wait }));
    for of in [ZIPKIN_JSON, ZIPKIN_PROTO, JAEGER_THRIFT, JAEGER_COMPACT] {
        let heard = Recorded::first(of).send(&server, Version::HTTP_11, Encoding::Identity).await;
        assert_text(&heard, 503);
        assert_eq!(heard.header("retry-after"), "3");
    }
    let heard = Recorded::first(JAEGER_GRPC).send(&server, Version::HTTP_2, Encoding::Identity).await;
    assert_eq!(heard.grpc_status().code(), tonic::Code::Unavailable);
    assert_eq!(RpcStatus::of(&heard.grpc_status()).retry_delay(), Some(wait));
}

#[tokio::test]
async fn what_would_become_too_large_is_refused_for_good() {
    // A span without a time is longer as OTLP than it was as JSON, and the limit holds for what a body becomes.
    let bytes_max = 64 << 10;
    let server =
        serve_with(&ReceiverConfig { request_bytes_max: bytes_max, inflight_bytes_max: 1 << 20, ..config() });
    let body = |spans: usize| format!("[{}]", vec![r#"{"traceId":"1","id":"2"}"#; spans].join(","));
    let (small, large) = (body(100), body(2_000));
    assert!(large.len() < bytes_max);
    let json = [("content-type", "application/json")];
    for (text, status) in [(small, 202), (large, 413)] {
        let heard = send(&server, Protocol::Zipkin, Version::HTTP_11, door::ZIPKIN_PATH, &json, text).await;
        assert_eq!(heard.status, status, "{heard:?}");
        assert_eq!(heard.header("retry-after"), "");
    }
    let typed = [("content-type", "application/grpc")];
    let message = framed(0, &vec![0; bytes_max + 1]);
    let heard =
        send(&server, Protocol::JaegerGrpc, Version::HTTP_2, door::JAEGER_GRPC_PATH, &typed, message).await;
    assert_eq!(heard.grpc_status().code(), tonic::Code::ResourceExhausted);
    assert_eq!(RpcStatus::of(&heard.grpc_status()).retry_delay(), None);
}

#[tokio::test]
async fn the_memory_budget_counts_what_a_body_becomes() {
    let server = serve();
    server.intake.feels(Mood::Hold);
    let one = Recorded::first(JAEGER_COMPACT);
    let (wire, otlp) = (one.body.len(), one.otlp().len());
    let asking = one.send(&server, Version::HTTP_11, Encoding::Identity);
    let counting = async {
        server.intake.holds(1).await;
        let counted = server.snapshot().inflight_bytes;
        server.intake.release(&Outcome::Stored);
        counted
    };
    let (heard, counted) = tokio::join!(asking, counting);
    assert_eq!(heard.status, door::HTTP_ACCEPTED);
    assert!(counted >= (wire + otlp) as u64, "{counted} of {wire} and {otlp}");
    assert_eq!(server.snapshot().inflight_bytes, 0);
}

#[tokio::test]
async fn spans_with_unusable_ids_are_counted_and_the_rest_is_taken() {
    let server = serve();
    let body = r#"[{"traceId":"1","id":"2","timestamp":1},{"traceId":"1","id":"","timestamp":1}]"#;
    let heard = send(&server, Protocol::Zipkin, Version::HTTP_11, door::ZIPKIN_PATH, &[], body).await;
    assert_eq!((heard.status.as_u16(), heard.body.len()), (202, 0));
    let received = server.intake.only();
    assert_eq!((received.spans.len(), received.refused), (1, 1));
    let counted = server.snapshot().zipkin;
    assert_eq!((counted.requests_partial, counted.spans_accepted, counted.spans_refused), (1, 1, 1));
}
