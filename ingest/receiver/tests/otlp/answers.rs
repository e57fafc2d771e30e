//! OTLP's answer table, row by row, over gRPC and over HTTP in both of its forms.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use ingest_otlp::messages::ExportTraceServiceResponse;
use ingest_otlp::protobuf_to_json;
use ingest_receiver::{Outcome, Reason};
use prost::Message;
use store_model::Encoding;
use tonic::Code;

use super::support::{
    GRPC_PATH, Heard, Mood, NOW, Pieces, RpcStatus, Server, all_bad, call, framed, gzip, http_request,
    request_of, serve, spans, two_good_one_bad, zstd,
};

const JSON: (&str, &str) = ("content-type", "application/json");
const BOTH_VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

fn json_of(protobuf: &[u8]) -> String {
    protobuf_to_json(protobuf).unwrap().to_string()
}

#[tokio::test]
async fn an_accepted_request_is_handed_on_whole_and_answered_without_partial_success() {
    let server = serve();
    let body = spans(3);
    let heard = server.grpc(&[], framed(0, &body)).await;
    assert_eq!(heard.header("content-type"), "application/grpc");
    assert_eq!(heard.grpc_message().partial_success, None);
    let received = server.intake.only();
    assert_eq!((&received.body[..], &received.stored()[..]), (&body[..], &body[..]));
    assert_eq!(received.tenant.as_str(), "default");
    assert_eq!((received.arrived_at, received.encoding, received.refused), (NOW, Encoding::Identity, 0));
    assert_eq!(received.spans.len(), 3);
    assert_eq!(server.intake.name_of(0), "operation-0");
    let counted = server.snapshot().grpc;
    assert_eq!((counted.requests_accepted, counted.spans_accepted), (1, 3));
    assert_eq!((counted.wire_bytes, counted.body_bytes), (body.len() as u64 + 5, body.len() as u64));
}

#[tokio::test]
async fn http_answers_in_the_form_of_the_request_over_both_versions() {
    for version in BOTH_VERSIONS {
        let server = serve();
        let body = spans(2);
        let heard = server.http(version, &[("content-type", "application/x-protobuf")], body.clone()).await;
        assert_eq!((heard.status, heard.header("content-type")), (StatusCode::OK, "application/x-protobuf"));
        assert!(heard.body.is_empty());
        assert_eq!(&server.intake.only().stored()[..], &body[..]);

        let heard = server
            .http(version, &[("content-type", "Application/JSON; charset=utf-8")], json_of(&body))
            .await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, serde_json::json!({})));
        let (_, received) = &server.intake.received()[1];
        assert_eq!((received.encoding, received.spans.len()), (Encoding::Identity, 2));
        assert_eq!(received.stored(), &received.body, "JSON is journaled as the protobuf it means");
        assert_eq!(json_of(&received.body), json_of(&body));
    }
}

#[tokio::test]
async fn compressed_bodies_are_kept_as_they_came() {
    let body = spans(200);
    let cases = [("gzip", gzip(&body), Encoding::Gzip), ("zstd", zstd(&body), Encoding::Zstd)];
    for (name, compressed, encoding) in cases {
        let server = serve();
        assert_eq!(
            server
                .grpc(&[("grpc-encoding", name)], framed(1, &compressed))
                .await
                .grpc_message()
                .partial_success,
            None
        );
        let heard = server.http(Version::HTTP_11, &[("content-encoding", name)], compressed.clone()).await;
        assert_eq!(heard.status, StatusCode::OK);
        for (_, received) in server.intake.received() {
            assert_eq!((&received.stored()[..], received.encoding), (&compressed[..], encoding));
            assert_eq!((&received.body[..], received.spans.len()), (&body[..], 200));
        }
        let headers = [JSON, ("content-encoding", name)];
        let text = json_of(&body);
        let text = if name == "gzip" { gzip(text.as_bytes()) } else { zstd(text.as_bytes()) };
        assert_eq!(server.http(Version::HTTP_11, &headers, text).await.status, StatusCode::OK);
        let (_, last) = server.intake.received().remove(2);
        assert_eq!((last.encoding, last.spans.len()), (Encoding::Identity, 200));
    }
}

#[tokio::test]
async fn an_uncompressed_message_may_come_on_a_call_that_names_a_compression() {
    let server = serve();
    let body = spans(1);
    server.grpc(&[("grpc-encoding", "gzip")], framed(0, &body)).await.grpc_message();
    assert_eq!(server.intake.only().encoding, Encoding::Identity);
}

#[tokio::test]
async fn an_empty_request_is_accepted_and_not_stored() {
    let server = serve();
    assert_eq!(server.grpc(&[], framed(0, b"")).await.grpc_message().partial_success, None);
    assert_eq!(server.grpc(&[], framed(0, &request_of(vec![]))).await.grpc_message().partial_success, None);
    assert_eq!(server.http(Version::HTTP_11, &[], "").await.status, StatusCode::OK);
    assert_eq!(server.http(Version::HTTP_11, &[JSON], "{}").await.json(), serde_json::json!({}));
    assert!(server.intake.received().is_empty() && server.intake.refused().is_empty());
    assert_eq!(server.snapshot().http.requests_accepted, 2);
}

#[tokio::test]
async fn refused_spans_are_reported_and_the_rest_is_taken() {
    let server = serve();
    let body = two_good_one_bad();
    let partial = server.grpc(&[], framed(0, &body)).await.grpc_message().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 1);
    assert!(partial.error_message.contains("trace id"), "{partial:?}");

    let heard = server.http(Version::HTTP_11, &[], body.clone()).await;
    assert_eq!(heard.status, StatusCode::OK);
    assert_eq!(
        ExportTraceServiceResponse::decode(&heard.body[..]).unwrap().partial_success,
        Some(partial.clone())
    );

    let heard = server.http(Version::HTTP_11, &[JSON], json_of(&body)).await.json();
    assert_eq!(heard["partialSuccess"]["rejectedSpans"], "1", "a 64-bit number is a string in JSON");
    assert_eq!(heard["partialSuccess"]["errorMessage"], partial.error_message);

    for (_, received) in server.intake.received() {
        assert_eq!((received.spans.len(), received.refused), (2, 1));
    }
    assert!(server.intake.refused().is_empty(), "they travel with the request");
    let counted = server.snapshot().http;
    assert_eq!((counted.requests_partial, counted.spans_accepted, counted.spans_refused), (2, 4, 2));
}

#[tokio::test]
async fn a_request_of_which_nothing_can_be_taken_is_counted_and_not_stored() {
    let server = serve();
    let partial = server.grpc(&[], framed(0, &all_bad())).await.grpc_message().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 2);
    assert!(server.intake.received().is_empty());
    assert_eq!(server.intake.refused(), [("default".to_owned(), 2)]);
    assert_eq!(server.snapshot().grpc.spans_refused, 2);
}

#[tokio::test]
async fn malformed_bodies_are_bad_requests() {
    let server = serve();
    let half = &spans(2)[..40];
    let cases = [
        ("identity", framed(0, half)),
        ("gzip", framed(1, b"this is no gzip")),
        ("zstd", framed(1, &zstd(&spans(9))[..20])),
    ];
    for (encoding, stream) in cases {
        let status = server.grpc(&[("grpc-encoding", encoding)], stream).await.grpc_status();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = RpcStatus::of(&status);
        assert_eq!((details.bad_field().as_deref(), details.retry_delay()), (Some("body"), None));
    }

    let heard = server.http(Version::HTTP_11, &[], half.to_vec()).await;
    assert_eq!(heard.status, StatusCode::BAD_REQUEST);
    assert_eq!((heard.rpc_status().code, heard.rpc_status().bad_field().as_deref()), (3, Some("body")));

    let heard = server.http(Version::HTTP_11, &[JSON], "{\"resourceSpans\": 7}").await;
    assert_eq!((heard.status, &heard.json()["code"]), (StatusCode::BAD_REQUEST, &serde_json::json!(3)));
    assert_eq!(heard.json()["details"][0]["@type"], "type.googleapis.com/google.rpc.BadRequest");
    assert_eq!(heard.json()["details"][0]["fieldViolations"][0]["field"], "body");

    assert!(server.intake.received().is_empty());
    assert_eq!(server.snapshot().grpc.refused(Reason::Malformed), 3);
}

#[tokio::test]
async fn a_tenant_is_named_once_and_well_or_nothing_is_stored() {
    let server = serve();
    let body = spans(1);
    server.grpc(&[("x-scope-orgid", "team-a")], framed(0, &body)).await.grpc_message();
    let heard = server.http(Version::HTTP_11, &[("X-Scope-OrgID", "team-b")], body.clone()).await;
    assert_eq!(heard.status, StatusCode::OK);
    let tenants: Vec<_> =
        server.intake.received().iter().map(|(_, received)| received.tenant.to_string()).collect();
    assert_eq!(tenants, ["team-a", "team-b"]);

    let bad: [&[(&str, &str)]; 5] = [
        &[("x-scope-orgid", "../etc")],
        &[("x-scope-orgid", "")],
        &[("x-scope-orgid", "a|b")],
        &[("x-scope-orgid", "ü")],
        &[("x-scope-orgid", "a"), ("x-scope-orgid", "a")],
    ];
    for headers in bad {
        let status = server.grpc(headers, framed(0, &body)).await.grpc_status();
        assert_eq!(status.code(), Code::InvalidArgument, "{headers:?}");
        assert_eq!(RpcStatus::of(&status).bad_field().as_deref(), Some("x-scope-orgid"));
        let heard = server.http(Version::HTTP_11, headers, body.clone()).await;
        assert_eq!((heard.status, heard.rpc_status().code), (StatusCode::BAD_REQUEST, 3), "{headers:?}");
    }
    assert_eq!(server.intake.received().len(), 2);
}

async fn hears_retry(server: &Server, grpc: Code, http: StatusCode, delay: Duration, seconds: &str) {
    let status = server.grpc(&[], framed(0, &spans(2))).await.grpc_status();
    assert_eq!(status.code(), grpc);
    assert_eq!(RpcStatus::of(&status).retry_delay(), Some(delay));
    for version in BOTH_VERSIONS {
        let heard = server.http(version, &[], spans(2)).await;
        assert_eq!((heard.status, heard.header("retry-after")), (http, seconds));
        assert_eq!(heard.rpc_status().code, i32::from(grpc));
        assert_eq!(heard.rpc_status().retry_delay(), Some(delay));
    }
    let heard = server.http(Version::HTTP_11, &[JSON], json_of(&spans(2))).await;
    assert_eq!((heard.status, heard.header("retry-after")), (http, seconds));
    let wanted = format!("{}.{:03}s", delay.as_secs(), delay.subsec_millis());
    assert_eq!(heard.json()["details"][0]["retryDelay"], wanted);
}

#[tokio::test]
async fn what_the_intake_cannot_take_now_comes_back_with_a_hint() {
    let server = serve();
    let retry_after = Duration::from_millis(2_500);
    let overloaded = Outcome::Overloaded { retry_after };
    let limited = Outcome::RateLimited { retry_after };
    let poisoned = Outcome::Unavailable { retry_after, reason: "the journal refuses writes".into() };

    server.intake.feels(Mood::Answer(overloaded.clone()));
    hears_retry(&server, Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, retry_after, "3").await;
    server.intake.feels(Mood::Answer(limited));
    hears_retry(&server, Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, retry_after, "3").await;
    server.intake.feels(Mood::Answer(poisoned));
    hears_retry(&server, Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, retry_after, "3").await;
    let status = server.grpc(&[], framed(0, &spans(1))).await.grpc_status();
    assert_eq!(status.message(), "the journal refuses writes");
    assert_eq!(server.snapshot().grpc.refused(Reason::Overloaded), 1);
    assert_eq!(server.snapshot().grpc.spans_refused, 7, "whoever answered them counts them in the identity");
    assert!(server.intake.refused().is_empty());

    let before = server.intake.received().len();
    server.intake.is_ready(Err(overloaded));
    hears_retry(&server, Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, retry_after, "3").await;
    assert_eq!(server.intake.received().len(), before, "a refusal up front submits nothing");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_unavailable() {
    let server = serve();
    server.intake.feels(Mood::Drop);
    let status = server.grpc(&[], framed(0, &spans(1))).await.grpc_status();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(RpcStatus::of(&status).retry_delay().is_some());
}

#[tokio::test]
async fn broken_grpc_framing_is_an_internal_error() {
    let server = serve();
    let one = framed(0, &spans(1));
    let two = [one.clone(), one.clone()].concat();
    for stream in [two, one[..one.len() - 1].to_vec(), one[..3].to_vec(), vec![], framed(7, &spans(1))] {
        let status = server.grpc(&[], stream).await.grpc_status();
        assert_eq!(status.code(), Code::Internal, "{}", status.message());
    }
    let status = server.grpc(&[], framed(1, &gzip(&spans(1)))).await.grpc_status();
    assert_eq!((status.code(), status.message().contains("grpc-encoding")), (Code::Internal, true));
    assert!(server.intake.received().is_empty());
}

#[tokio::test]
async fn a_message_in_many_frames_is_one_message() {
    let server = serve();
    let body = spans(50);
    let pieces = framed(0, &body).chunks(7).map(Bytes::copy_from_slice).collect();
    let request = super::support::grpc_request(&[], Pieces::of(pieces));
    call(server.grpc_address(), Version::HTTP_2, request).await.grpc_message();
    assert_eq!(&server.intake.only().body[..], &body[..]);
}

#[tokio::test]
async fn unknown_compressions_are_refused_with_the_known_ones() {
    let server = serve();
    let heard = server.grpc(&[("grpc-encoding", "snappy")], framed(1, b"x")).await;
    assert_eq!(heard.grpc_status().code(), Code::Unimplemented);
    assert_eq!(heard.header("grpc-accept-encoding"), "identity,gzip,zstd");
    for headers in
        [&[("content-encoding", "br")][..], &[("content-encoding", "gzip"), ("content-encoding", "gzip")]]
    {
        let heard = server.http(Version::HTTP_11, headers, "x").await;
        assert_eq!((heard.status, heard.rpc_status().code), (StatusCode::UNSUPPORTED_MEDIA_TYPE, 12));
        assert_eq!(heard.header("accept-encoding"), "identity,gzip,zstd");
    }
}

async fn ask(server: &Server, grpc: bool, method: &str, path: &str, content_type: &str) -> Heard {
    let (address, version) = match grpc {
        true => (server.grpc_address(), Version::HTTP_2),
        false => (server.http_address(), Version::HTTP_11),
    };
    let request = Request::builder().method(method).uri(format!("http://localhost{path}"));
    let request = request.header("content-type", content_type).header("host", "localhost");
    call(address, version, request.body(Pieces::whole("")).unwrap()).await
}

#[tokio::test]
async fn what_is_not_an_export_is_said_to_be_something_else() {
    let server = serve();
    for path in [
        "/",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        &GRPC_PATH[1..].replace("Export", "/Ex"),
    ] {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let heard = ask(&server, true, "POST", &path, "application/grpc").await;
        assert_eq!(heard.grpc_status().code(), Code::Unimplemented, "{path}");
    }
    for content_type in ["application/json", "application/grpc-web", "application/grpc+json", "text/plain"] {
        let heard = ask(&server, true, "POST", GRPC_PATH, content_type).await;
        assert_eq!(heard.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    assert_eq!(ask(&server, true, "GET", GRPC_PATH, "application/grpc").await.status, 405);

    let protobuf = "application/x-protobuf";
    for path in ["/v1/metrics", "/v1/traces/", "/"] {
        let heard = ask(&server, false, "POST", path, protobuf).await;
        assert_eq!((heard.status, heard.rpc_status().code), (StatusCode::NOT_FOUND, 12), "{path}");
    }
    let heard = ask(&server, false, "GET", "/v1/traces", "application/json").await;
    assert_eq!((heard.status, heard.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
    assert_eq!(heard.json()["code"], 12);
    assert_eq!(ask(&server, false, "POST", "/v1/traces", "text/plain").await.status, 415);
    let twice = [("content-type", protobuf), ("content-type", "application/json")];
    let heard =
        call(server.http_address(), Version::HTTP_11, http_request(&twice, Pieces::whole("{}"))).await;
    assert_eq!(heard.status, 415, "which of two types a body has is not ours to guess");
    assert!(server.intake.received().is_empty());
}
