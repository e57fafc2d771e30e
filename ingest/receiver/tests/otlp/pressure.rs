//! More connections, more bytes and fewer buffers than is comfortable.

use std::time::Duration;

use http::Version;
use ingest_receiver::{CutReason, Outcome, ReceiverConfig, ZeroCopy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{
    Mood, Pieces, Server, call, config, connect_h2, framed, grpc_request, hear, serve, serve_with, spans,
    until,
};

async fn nobody_is_left(server: &Server) {
    until(|| server.snapshot().grpc.connections_open + server.snapshot().http.connections_open == 0).await;
}

#[tokio::test]
async fn one_small_receive_buffer_serves_many_senders() {
    let server = serve_with(&ReceiverConfig { receive_buffer_bytes: 2_000, ..config() });
    let body = spans(2_000);
    let senders: Vec<_> = (0..20)
        .map(|_| {
            let (address, stream) = (server.grpc_address(), framed(0, &body));
            tokio::spawn(async move {
                let mut sender = connect_h2(address).await;
                for _ in 0..3 {
                    let request = grpc_request(&[], Pieces::whole(stream.clone()));
                    hear(sender.send_request(request).await.unwrap()).await.grpc_message();
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    let received = server.intake.received();
    assert_eq!(received.len(), 60);
    assert!(received.iter().all(|(_, request)| request.body == body), "a body is what was sent");
    let counted = server.snapshot();
    if counted.receive_buffer_bytes > 0 {
        assert!(counted.receive_buffers_short > 0, "sixty bodies of 100 KiB went through 2,000 bytes");
    }
}

#[tokio::test]
async fn two_thousand_connections_are_served_and_let_go() {
    let server = serve();
    let mut idle = Vec::new();
    for _ in 0..2_000 {
        idle.push(TcpStream::connect(server.http_address()).await.unwrap());
    }
    until(|| server.snapshot().http.connections_open == 2_000).await;
    let request = "POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\
                   content-type: application/x-protobuf\r\n\r\n";
    for stream in &mut idle {
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    for stream in &mut idle {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert_eq!(server.snapshot().http.requests_accepted, 2_000);
    drop(idle);
    nobody_is_left(&server).await;
    server.grpc(&[], framed(0, &spans(1))).await.grpc_message();
}

#[tokio::test]
async fn the_end_of_one_connection_is_not_the_end_of_the_next() {
    let server = serve();
    let address = server.http_address();
    let request = |last: &str| {
        let head = "POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0";
        format!("{head}\r\n{last}content-type: application/x-protobuf\r\n\r\n")
    };
    for round in 0..20 {
        let mut leaving = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request("connection: close\r\n").as_bytes()).await.unwrap();
            leaving.push(stream);
        }
        drop(leaving);
        let mut staying = Vec::new();
        for _ in 0..100 {
            staying.push(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..2 {
            for stream in &mut staying {
                stream.write_all(request("").as_bytes()).await.unwrap();
            }
            for stream in &mut staying {
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
                assert_eq!(&answer, b"HTTP/1.1 200");
                // The rest of the head: the answer has no body.
                let mut end = Vec::new();
                while !end.ends_with(b"\r\n\r\n") {
                    end.push(stream.read_u8().await.unwrap());
                }
            }
        }
    }
}

/// Every request ahead of its answer is the sender's to keep, but for what was on its way.
#[tokio::test]
async fn a_sender_far_ahead_of_its_answers_is_not_read_and_is_answered_in_the_end() {
    const REQUESTS: usize = 2_000;
    let server =
        serve_with(&ReceiverConfig { request_bytes_max: 4 << 20, inflight_bytes_max: 8 << 20, ..config() });
    server.intake.feels(Mood::Hold);
    let body = spans(500);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         content-type: application/x-protobuf\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), &body].concat();
    let (mut input, mut output) = TcpStream::connect(server.http_address()).await.unwrap().into_split();
    let sending = tokio::spawn(async move {
        for _ in 0..REQUESTS {
            output.write_all(&request).await.unwrap();
        }
        output
    });
    server.intake.holds(1).await;
    // Others are served meanwhile, with all the time the sender needs to fill whatever it can.
    server.intake.feels(Mood::Answer(Outcome::Stored));
    for _ in 0..50 {
        server.grpc(&[], framed(0, &spans(1))).await.grpc_message();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let held = server.snapshot();
    assert!(held.inflight_bytes < 4 << 20, "{} bytes", held.inflight_bytes);
    assert!(!sending.is_finished(), "the sender has nowhere to put its requests");
    server.intake.release(&Outcome::Stored);
    let mut heard = 0;
    let mut text = Vec::new();
    while heard < REQUESTS {
        let mut piece = [0; 4_096];
        let length = input.read(&mut piece).await.unwrap();
        assert!(length > 0, "every request is answered before the end");
        text.extend_from_slice(&piece[..length]);
        let starts = text.windows(12).filter(|bytes| *bytes == b"HTTP/1.1 200").count();
        heard += starts;
        text.drain(..text.len().saturating_sub(11));
    }
    drop(sending.await.unwrap());
    assert_eq!(server.snapshot().http.cut(CutReason::PipelineTooLong), 0);
    assert_eq!(server.intake.received().len(), REQUESTS + 50);
}

#[tokio::test]
async fn zero_copy_is_off_where_it_cannot_be_had() {
    let server = serve_with(&ReceiverConfig { zero_copy: ZeroCopy::Auto, ..config() });
    server.grpc(&[], framed(0, &spans(3))).await.grpc_message();
    assert_eq!(server.intake.only().body, spans(3));
}

#[tokio::test]
async fn stop_ends_with_its_grace_whatever_the_peers_do() {
    let mut server = serve();
    let mut rude = TcpStream::connect(server.http_address()).await.unwrap();
    rude.write_all(b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n")
        .await
        .unwrap();
    let mut silent = TcpStream::connect(server.grpc_address()).await.unwrap();
    until(|| server.snapshot().http.connections_open + server.snapshot().grpc.connections_open == 2).await;
    let stopping = server.stop(Duration::from_millis(100));
    until(|| stopping.is_finished()).await;
    let mut rest = Vec::new();
    drop(rude.read_to_end(&mut rest).await);
    assert_eq!(silent.read(&mut [0; 64]).await.unwrap_or(0), 0, "closed, not forgotten");
    nobody_is_left(&server).await;
    assert_eq!(server.snapshot().receive_buffer_bytes, 0);
    let request = super::support::http_request(&[], Pieces::whole(spans(1)));
    let address = server.http_address();
    let refused = tokio::spawn(call(address, Version::HTTP_11, request)).await;
    assert!(refused.is_err(), "nobody listens any more");
}
