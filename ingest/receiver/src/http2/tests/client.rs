//! The `h2` crate as the client, over bytes in memory.

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::support::{Server, Told};
use crate::http2::{Limits, StreamId};

/// Answers each complete request with its own body, in pieces of `piece` bytes read at a time.
async fn serve(mut io: DuplexStream, limits: Limits, piece: usize) -> usize {
    let mut server = Server::silent(limits);
    let mut buffer = vec![0; piece];
    let mut served = 0;
    let mut bodies = std::collections::BTreeMap::<u32, Vec<u8>>::new();
    loop {
        if io.write_all(&std::mem::take(&mut server.out)).await.is_err() || server.http2.is_drained() {
            return served;
        }
        let Ok(count @ 1..) = io.read(&mut buffer).await else { return served };
        server.receive(&buffer[..count]).expect("an honest client");
        server.credit_all();
        for told in std::mem::take(&mut server.sink.told) {
            let ended = match told {
                Told::Head(id, ends) => ends.then_some(id),
                Told::Data(id, bytes, ends) => {
                    bodies.entry(id).or_default().extend(bytes);
                    ends.then_some(id)
                }
                Told::Reset(id) => {
                    bodies.remove(&id);
                    None
                }
                Told::Field(..) => None,
            };
            if let Some(id) = ended {
                let body = bodies.remove(&id).unwrap_or_default();
                let length = body.len().to_string();
                let fields: &[(&str, &[u8])] =
                    &[("content-type", b"application/grpc"), ("x-bytes", length.as_bytes())];
                let trailers: &[(&str, &[u8])] = &[("grpc-status", b"0"), ("grpc-message", b"fine")];
                server.http2.respond(StreamId(id), 200, fields, &body, Some(trailers), &mut server.out);
                served += 1;
            }
        }
    }
}

/// Sends `body` and checks that it comes back.
async fn call(mut client: SendRequest<Bytes>, body: Vec<u8>, with_trailers: bool) {
    let request = Request::post("http://receiver/opentelemetry.Export")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-unique", body.len().to_string())
        .body(())
        .unwrap();
    let (answer, mut sending) = client.send_request(request, false).unwrap();
    sending.send_data(Bytes::from(body.clone()), !with_trailers).unwrap();
    if with_trailers {
        sending
            .send_trailers(HeaderMap::from_iter([(
                http::HeaderName::from_static("x-checksum"),
                HeaderValue::from_static("1"),
            )]))
            .unwrap();
    }
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-bytes"], body.len().to_string().as_str());
    let mut incoming = answer.into_body();
    let mut came = Vec::new();
    while let Some(bytes) = incoming.data().await {
        let bytes = bytes.unwrap();
        incoming.flow_control().release_capacity(bytes.len()).unwrap();
        came.extend_from_slice(&bytes);
    }
    assert!(came == body, "{} of {} bytes", came.len(), body.len());
    assert_eq!(incoming.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

fn check(builder: &Builder, limits: Limits, piece: usize, calls: usize, body_bytes: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(8 << 10);
        let server = tokio::spawn(serve(far, limits, piece));
        let (client, connection) = builder.handshake::<_, Bytes>(near).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut under_way = Vec::new();
        for n in 0..calls {
            let length = body_bytes * n / calls.max(1);
            let body = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let ready = client.clone().ready().await.unwrap();
            under_way.push(tokio::spawn(call(ready, body, n % 3 == 0)));
        }
        for task in under_way {
            task.await.unwrap();
        }
        drop(client);
        connection.await.unwrap().unwrap();
        assert_eq!(server.await.unwrap(), calls);
    });
}

#[test]
fn many_streams_with_large_bodies_come_back_whole() {
    let limits = Limits { out_bytes_max: 64 << 20, ..Limits::default() };
    check(&Builder::new(), limits, 64 << 10, 60, 1 << 20);
    check(Builder::new().initial_window_size(1 << 20).max_frame_size(1 << 20), limits, 1 << 20, 20, 3 << 20);
}

#[test]
fn small_windows_on_both_sides_only_slow_things_down() {
    let limits = Limits {
        stream_window: 700,
        connection_window: 65_535,
        max_concurrent_streams: 7,
        out_bytes_max: 64 << 20,
        ..Limits::default()
    };
    check(Builder::new().initial_window_size(333), limits, 100, 50, 30_000);
    check(Builder::new().header_table_size(0), limits, 1, 10, 3_000);
}

#[test]
fn going_away_lets_the_client_finish() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let server = tokio::spawn(async move {
            let mut server = Server::silent(Limits::default());
            let mut buffer = vec![0; 1 << 10];
            loop {
                if far.write_all(&std::mem::take(&mut server.out)).await.is_err() {
                    return;
                }
                if server.http2.is_drained() {
                    return;
                }
                let Ok(count @ 1..) = far.read(&mut buffer).await else {
                    panic!("closed before it was drained")
                };
                server.receive(&buffer[..count]).unwrap();
                for told in std::mem::take(&mut server.sink.told) {
                    if let Told::Head(id, _) = told {
                        server.http2.go_away(&mut server.out);
                        server.respond(id, 200, b"last words", None);
                    }
                }
            }
        });
        let (mut client, connection) = h2::client::handshake(near).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("http://receiver/").body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "last words");
        server.await.unwrap();
        drop(connection.await.unwrap());
    });
}
