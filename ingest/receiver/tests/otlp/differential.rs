//! The same requests to every driver: each must be told the same and hand on the same.

use http::{HeaderMap, StatusCode, Version};
use ingest_otlp::protobuf_to_json;
use ingest_receiver::{DriverChoice, ReceiverConfig};
use store_model::Encoding;

use super::epoll::dialects::{Recorded, recorded};
use super::epoll::support::{
    GRPC_PATH, HTTP_PATH, Heard, Pieces, Server, all_bad, call, config, framed, gzip, serve_with, spans,
    two_good_one_bad, zstd,
};

/// The first is the oracle: others wrote its HTTP.
fn drivers() -> [DriverChoice; 3] {
    [DriverChoice::Portable, DriverChoice::Epoll, super::uring::driver()]
}

const MIB: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
enum Port {
    Grpc,
    Http,
    Zipkin,
    JaegerGrpc,
    JaegerHttp,
}

#[derive(Clone, Debug)]
struct Asked {
    port: Port,
    version: Version,
    method: &'static str,
    path: String,
    headers: Vec<Line>,
    body: Vec<u8>,
    piece_bytes: usize,
}

/// Tenant, encoding, both forms of the body, how many spans are taken and how many are not.
type Taken = (String, Encoding, Vec<u8>, Vec<u8>, usize, u32);

type Line = (&'static str, &'static str);

/// What a driver made of a request.
#[derive(Debug, PartialEq)]
struct Made {
    status: StatusCode,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
    received: Vec<Taken>,
    refused: Vec<(String, u64)>,
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    // The time and the framing of the connection are a driver's own.
    let own = ["date", "connection", "content-length", "transfer-encoding"];
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let named = headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
    let mut fields: Vec<_> = named.map(|(name, value)| (name.to_string(), text(value))).collect();
    fields.sort();
    fields
}

async fn ask(server: &Server, asked: &Asked) -> Made {
    let Asked { port, version, method, path, headers, body, piece_bytes } = asked;
    let address = match port {
        Port::Grpc => server.grpc_address(),
        Port::Http => server.http_address(),
        Port::Zipkin => server.endpoints.zipkin.unwrap(),
        Port::JaegerGrpc => server.endpoints.jaeger_grpc.unwrap(),
        Port::JaegerHttp => server.endpoints.jaeger_http.unwrap(),
    };
    let uri = if *version == Version::HTTP_2 { format!("http://localhost{path}") } else { path.clone() };
    let mut request = http::Request::builder().method(*method).uri(uri);
    if *version < Version::HTTP_2 {
        request = request.header("host", "localhost");
    }
    request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let pieces = body.chunks(*piece_bytes).map(bytes::Bytes::copy_from_slice).collect();
    let before = (server.intake.received().len(), server.intake.refused().len());
    let heard = call(address, *version, request.body(Pieces::of(pieces)).unwrap()).await;
    let Heard { status, headers, body, trailers } = heard;
    let received = server.intake.received().split_off(before.0);
    Made {
        status,
        headers: fields(&headers),
        body: body.to_vec(),
        trailers: trailers.as_ref().map(fields).unwrap_or_default(),
        received: received
            .into_iter()
            .map(|(_, request)| {
                let (stored, body) = (request.stored().to_vec(), request.body.to_vec());
                (
                    request.tenant.to_string(),
                    request.encoding,
                    stored,
                    body,
                    request.spans.len(),
                    request.refused,
                )
            })
            .collect(),
        refused: server.intake.refused().split_off(before.1),
    }
}

/// Every body in every way it can be sent, and the ways it cannot.
fn corpus() -> Vec<Asked> {
    let mut all = Vec::new();
    let grpc = |headers: &[Line], body: Vec<u8>, piece_bytes| Asked {
        port: Port::Grpc,
        version: Version::HTTP_2,
        method: "POST",
        path: GRPC_PATH.to_owned(),
        headers: [&[("content-type", "application/grpc"), ("te", "trailers")], headers].concat(),
        body,
        piece_bytes,
    };
    let http = |version, headers: &[Line], body: Vec<u8>, piece_bytes| Asked {
        port: Port::Http,
        version,
        method: "POST",
        path: HTTP_PATH.to_owned(),
        headers: headers.to_vec(),
        body,
        piece_bytes,
    };
    let (protobuf, json) = (("content-type", "application/x-protobuf"), ("content-type", "application/json"));
    let large = spans(3_000);
    let bodies = [
        spans(1),
        spans(40),
        large.clone(),
        two_good_one_bad(),
        all_bad(),
        Vec::new(),
        spans(3)[..50].to_vec(),
    ];
    for body in bodies {
        for piece_bytes in [usize::MAX, 1_000] {
            all.push(grpc(&[], framed(0, &body), piece_bytes));
            all.push(grpc(
                &[("grpc-encoding", "gzip"), ("x-scope-orgid", "a")],
                framed(1, &gzip(&body)),
                piece_bytes,
            ));
            all.push(grpc(&[("grpc-encoding", "zstd")], framed(1, &zstd(&body)), piece_bytes));
            for version in [Version::HTTP_11, Version::HTTP_2] {
                all.push(http(version, &[protobuf], body.clone(), piece_bytes));
                all.push(http(version, &[protobuf, ("content-encoding", "gzip")], gzip(&body), piece_bytes));
                if let Ok(text) = protobuf_to_json(&body) {
                    all.push(http(
                        version,
                        &[json, ("content-encoding", "zstd")],
                        zstd(text.to_string().as_bytes()),
                        piece_bytes,
                    ));
                }
            }
        }
    }
    let body = spans(2);
    let stream = framed(0, &body);
    let wrong_grpc: [(&[Line], Vec<u8>); 10] = [
        (&[], [stream.clone(), stream.clone()].concat()),
        (&[], stream[..20].to_vec()),
        (&[], stream[..3].to_vec()),
        (&[], Vec::new()),
        (&[], framed(7, &body)),
        (&[], framed(1, &gzip(&body))),
        (&[("grpc-encoding", "snappy")], framed(1, b"x")),
        (&[("grpc-encoding", "gzip"), ("grpc-encoding", "gzip")], framed(1, &gzip(&body))),
        (&[("x-scope-orgid", "a|b")], stream.clone()),
        (&[], framed(0, &vec![0; MIB + 1])),
    ];
    all.extend(wrong_grpc.into_iter().map(|(headers, body)| grpc(headers, body, 700)));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let wrong: [&[Line]; 7] = [
            &[("content-type", "text/plain")],
            &[],
            &[protobuf, json],
            &[protobuf, ("content-encoding", "br")],
            &[protobuf, ("content-encoding", "gzip"), ("content-encoding", "zstd")],
            &[protobuf, ("x-scope-orgid", "")],
            &[protobuf, ("x-scope-orgid", "a"), ("x-scope-orgid", "b")],
        ];
        all.extend(wrong.into_iter().map(|headers| http(version, headers, body.clone(), usize::MAX)));
        all.push(http(version, &[protobuf], vec![0; MIB + 1], 100_000));
        all.push(http(version, &[json], b"{\"resourceSpans\": 7}".to_vec(), 3));
        for (method, path) in [
            ("GET", HTTP_PATH),
            ("PUT", HTTP_PATH),
            ("POST", "/"),
            ("POST", "/v1/traces/"),
            ("POST", "/v1/traces?a=b"),
        ] {
            all.push(Asked {
                method,
                path: path.to_owned(),
                ..http(version, &[protobuf], body.clone(), usize::MAX)
            });
        }
    }
    // Both protocols on both ports, and gRPC with the wrong words.
    all.push(Asked { port: Port::Http, ..grpc(&[], stream.clone(), usize::MAX) });
    all.push(Asked { port: Port::Grpc, ..http(Version::HTTP_11, &[protobuf], body.clone(), usize::MAX) });
    all.push(Asked { port: Port::Grpc, ..http(Version::HTTP_2, &[json], b"{}".to_vec(), usize::MAX) });
    for content_type in
        ["application/grpc-web", "application/grpc+json", "application/grpc+proto", "text/plain"]
    {
        all.push(Asked {
            headers: vec![("content-type", content_type)],
            ..grpc(&[], stream.clone(), usize::MAX)
        });
    }
    all.push(Asked { path: "/x".to_owned(), ..grpc(&[], stream.clone(), usize::MAX) });
    all.push(Asked { method: "GET", ..grpc(&[], Vec::new(), usize::MAX) });
    all
}

/// Zipkin's and Jaeger's recorded bodies, whole and broken, in every way and to every port.
fn foreign_corpus() -> Vec<Asked> {
    let mut all = Vec::new();
    for Recorded { protocol: _, path, content_type, body } in recorded() {
        let is_grpc = content_type == "application/grpc";
        let (half, nothing) = (body[..body.len() / 2].to_vec(), Vec::new());
        let versions =
            if is_grpc { &[Version::HTTP_2][..] } else { &[Version::HTTP_11, Version::HTTP_2][..] };
        for (port, &version) in [Port::Zipkin, Port::JaegerGrpc, Port::JaegerHttp, Port::Http]
            .into_iter()
            .flat_map(|port| versions.iter().map(move |version| (port, version)))
        {
            for body in [&body, &half, &nothing] {
                let asked = |headers: &[Line], body, piece_bytes| Asked {
                    port,
                    version,
                    method: "POST",
                    path: path.to_owned(),
                    headers: [&[("content-type", content_type)], headers].concat(),
                    body,
                    piece_bytes,
                };
                if is_grpc {
                    all.push(asked(&[], framed(0, body), 300));
                    all.push(asked(&[("grpc-encoding", "gzip")], framed(1, &gzip(body)), usize::MAX));
                } else {
                    all.push(asked(&[], body.clone(), 300));
                    all.push(asked(&[("content-encoding", "gzip")], gzip(body), usize::MAX));
                }
            }
        }
    }
    let (port, method, version) = (Port::Zipkin, "POST", Version::HTTP_11);
    let path = "/api/v2/spans?debug=1".to_owned();
    let asked =
        Asked { port, version, method, path, headers: Vec::new(), body: b"[]".to_vec(), piece_bytes: 1 };
    all.push(Asked { method: "GET", ..asked.clone() });
    all.push(Asked { headers: vec![("content-type", "text/plain")], ..asked.clone() });
    all.push(Asked { headers: vec![("content-type", "application/json"); 2], ..asked.clone() });
    all.push(Asked { headers: vec![("content-encoding", "br")], ..asked.clone() });
    all.push(Asked { body: vec![b' '; MIB + 1], piece_bytes: 100_000, ..asked.clone() });
    all.push(asked);
    all
}

#[tokio::test]
async fn every_driver_tells_and_hands_on_the_same() {
    let servers = drivers().map(|driver| {
        serve_with(&ReceiverConfig {
            driver,
            request_bytes_max: MIB,
            inflight_bytes_max: 64 * MIB,
            ..config()
        })
    });
    let [oracle, others @ ..] = &servers;
    let mut taken = 0;
    for asked in corpus().into_iter().chain(foreign_corpus()) {
        let expected = ask(oracle, &asked).await;
        taken += expected.received.len();
        for other in others {
            assert_eq!(ask(other, &asked).await, expected, "{asked:?}");
        }
    }
    assert!(taken > 50, "the corpus has good requests: {taken}");
}
