//! Sizes, budgets, deadlines and rude senders.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Version};
use ingest_receiver::{Outcome, Reason, ReceiverConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use super::support::{
    Mood, Pieces, RpcStatus, Server, call, config, connect_h2, framed, grpc_request, hear, http_request,
    serve, serve_with, spans, until,
};

const MIB: usize = 1 << 20;

fn small() -> Server {
    serve_with(&ReceiverConfig { request_bytes_max: MIB, inflight_bytes_max: 4 * MIB, ..config() })
}

async fn nothing_in_flight(server: &Server) {
    until(|| server.snapshot().inflight_bytes == 0).await;
}

/// `plain` zeros behind a few kilobytes.
fn bomb(encoding: &str, plain: u64) -> Vec<u8> {
    let zeros = std::io::repeat(0).take(plain);
    let mut out = Vec::new();
    match encoding {
        "gzip" => {
            drop(flate2::read::GzEncoder::new(zeros, flate2::Compression::best()).read_to_end(&mut out))
        }
        _ => zstd::stream::copy_encode(zeros, &mut out, 1).unwrap(),
    }
    out
}

/// The most memory this process ever had, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[tokio::test]
async fn a_bomb_is_too_large_and_takes_no_memory() {
    let server = small();
    for encoding in ["gzip", "zstd"] {
        let bomb = bomb(encoding, 256 << 20);
        assert!(bomb.len() < MIB / 2);
        let before = peak_bytes();
        let status = server.grpc(&[("grpc-encoding", encoding)], framed(1, &bomb)).await.grpc_status();
        assert_eq!(status.code(), Code::ResourceExhausted, "{encoding}: {}", status.message());
        assert_eq!(RpcStatus::of(&status).retry_delay(), None, "sent again it is no smaller");
        let heard = server.http(Version::HTTP_11, &[("content-encoding", encoding)], bomb).await;
        assert_eq!(heard.status, StatusCode::PAYLOAD_TOO_LARGE);
        let grown = peak_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{encoding} took {grown} bytes");
    }
    nothing_in_flight(&server).await;
    assert!(server.intake.received().is_empty());
}

#[tokio::test]
async fn oversize_is_refused_by_its_declared_length_before_it_comes() {
    let server = small();
    let prefix = [&[0], u32::try_from(MIB + 1).unwrap().to_be_bytes().as_slice()].concat();
    let request = grpc_request(&[], Pieces::stuck_after(prefix));
    let status = call(server.grpc_address(), Version::HTTP_2, request).await.grpc_status();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(RpcStatus::of(&status).retry_delay(), None);

    let mut stream = TcpStream::connect(server.http_address()).await.unwrap();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        MIB + 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn oversize_without_a_declared_length_is_refused_while_it_comes() {
    let server = small();
    let pieces = || Pieces::of((0..20).map(|_| Bytes::from(vec![0; MIB / 10])).collect());
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let heard = call(server.http_address(), version, http_request(&[], pieces())).await;
        assert_eq!(heard.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(heard.header("retry-after"), "");
    }
    assert_eq!(server.snapshot().http.refused(Reason::TooLarge), 2);
    nothing_in_flight(&server).await;
}

#[tokio::test]
async fn an_http1_sender_reads_its_refusal_although_it_is_still_sending() {
    let server = small();
    // All of it is on its way before the first byte of the answer is read: closing early would reset the connection.
    let heard = server.http(Version::HTTP_11, &[], vec![0; MIB + MIB / 2]).await;
    assert_eq!(heard.status, StatusCode::PAYLOAD_TOO_LARGE);
    server.intake.is_ready(Err(Outcome::Overloaded { retry_after: Duration::from_secs(1) }));
    let heard = server.http(Version::HTTP_11, &[], spans(5_000)).await;
    assert_eq!(heard.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_full_budget_refuses_with_a_hint_and_recovers() {
    let server =
        serve_with(&ReceiverConfig { request_bytes_max: MIB, inflight_bytes_max: 5 * MIB, ..config() });
    server.intake.feels(Mood::Hold);
    let body = spans(10_000);
    assert!(body.len() > MIB / 3 && body.len() < MIB);
    let mut sender = connect_h2(server.grpc_address()).await;
    let mut first = Vec::new();
    // Body and summaries together are about 2 MiB, so two requests fit, and of the third only the body.
    for count in 1..=2 {
        let request = grpc_request(&[], Pieces::whole(framed(0, &body)));
        first.push(tokio::spawn(sender.send_request(request)));
        server.intake.holds(count).await;
    }
    let status = server.grpc(&[], framed(0, &body)).await.grpc_status();
    assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
    let delay = RpcStatus::of(&status).retry_delay().unwrap();
    assert!((1..5).contains(&delay.as_secs()), "{delay:?}");
    assert_eq!(
        server.intake.refused(),
        [("default".to_owned(), 10_000)],
        "they were known when memory ran out"
    );
    let heard = server.http(Version::HTTP_11, &[], body.clone()).await;
    assert_eq!(heard.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!((1..=5).contains(&heard.header("retry-after").parse::<u64>().unwrap()));

    assert_eq!(server.intake.release(&Outcome::Stored), 2);
    for response in first {
        hear(response.await.unwrap().unwrap()).await.grpc_message();
    }
    nothing_in_flight(&server).await;
    server.intake.feels(Mood::Answer(Outcome::Stored));
    server.grpc(&[], framed(0, &body)).await.grpc_message();
}

#[tokio::test]
async fn a_sender_that_leaves_gives_its_memory_back() {
    let server = small();
    // While its body is coming.
    let mut sender = connect_h2(server.grpc_address()).await;
    let half = framed(0, &spans(5_000))[..100_000].to_vec();
    let call = tokio::spawn(sender.send_request(grpc_request(&[], Pieces::stuck_after(half))));
    until(|| server.snapshot().inflight_bytes > 100_000).await;
    call.abort();
    nothing_in_flight(&server).await;

    // While the journal has it: counted until the journal is done, then given back.
    server.intake.feels(Mood::Hold);
    let call = tokio::spawn(sender.send_request(grpc_request(&[], Pieces::whole(framed(0, &spans(100))))));
    server.intake.holds(1).await;
    call.abort();
    drop(sender);
    until(|| server.snapshot().grpc.connections_open == 0).await;
    assert!(server.snapshot().inflight_bytes > 0);
    assert_eq!(server.intake.release(&Outcome::Stored), 1);
    nothing_in_flight(&server).await;
    assert_eq!(server.snapshot().grpc.spans_accepted, 100, "stored is stored");
}

#[tokio::test]
async fn a_body_that_stops_coming_times_out() {
    let server = serve_with(&ReceiverConfig { body_timeout: Duration::from_millis(100), ..config() });
    let half = framed(0, &spans(100))[..200].to_vec();
    let request = grpc_request(&[], Pieces::stuck_after(half.clone()));
    let status = call(server.grpc_address(), Version::HTTP_2, request).await.grpc_status();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let request = http_request(&[], Pieces::stuck_after(half.clone()));
        assert_eq!(call(server.http_address(), version, request).await.status, StatusCode::REQUEST_TIMEOUT);
    }
    nothing_in_flight(&server).await;
}

/// Whether the server closes `stream` within the test's patience.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await;
    matches!(read, Ok(Ok(_) | Err(_)))
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_only_half_a_head_is_closed() {
    let server = serve_with(&ReceiverConfig { header_timeout: Duration::from_millis(100), ..config() });
    for address in [server.grpc_address(), server.http_address()] {
        assert!(is_closed(&mut TcpStream::connect(address).await.unwrap()).await);
    }
    let mut stream = TcpStream::connect(server.http_address()).await.unwrap();
    stream.write_all(b"POST /v1/traces HTTP/1.1\r\nhost: ").await.unwrap();
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn an_idle_or_old_connection_is_asked_to_go() {
    let idle = Duration::from_millis(100);
    let server = serve_with(&ReceiverConfig { idle_timeout: idle, ..config() });
    let mut sender = connect_h2(server.grpc_address()).await;
    let request = || grpc_request(&[], Pieces::whole(framed(0, &spans(1))));
    hear(sender.send_request(request()).await.unwrap()).await.grpc_message();
    until(|| sender.is_closed()).await;

    let server = serve_with(&ReceiverConfig { idle_timeout: idle, connection_age_max: idle, ..config() });
    let mut sender = connect_h2(server.grpc_address()).await;
    server.intake.feels(Mood::Hold);
    let response = tokio::spawn(sender.send_request(request()));
    server.intake.holds(1).await;
    server.intake.feels(Mood::Answer(Outcome::Stored));
    // GOAWAY comes while the request is under way, which is answered all the same.
    while sender.send_request(request()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.intake.release(&Outcome::Stored);
    hear(response.await.unwrap().unwrap()).await.grpc_message();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_as_they_come() {
    let server = serve_with(&ReceiverConfig { max_connections: 2, ..config() });
    let one = connect_h2(server.grpc_address()).await;
    let _other = TcpStream::connect(server.http_address()).await.unwrap();
    until(|| server.snapshot().http.connections_open == 1).await;
    assert!(is_closed(&mut TcpStream::connect(server.grpc_address()).await.unwrap()).await);
    assert_eq!(server.snapshot().grpc.connections_refused, 1);
    drop(one);
    until(|| server.snapshot().grpc.connections_open == 0).await;
    server.grpc(&[], framed(0, &spans(1))).await.grpc_message();
}

#[tokio::test]
async fn headers_beyond_the_limit_never_reach_a_request() {
    let server = serve();
    let long = "x".repeat(20 << 10);
    let mut sender = connect_h2(server.grpc_address()).await;
    let request = grpc_request(&[("x-long", &long)], Pieces::whole(framed(0, &spans(1))));
    let refused = match sender.send_request(request).await {
        Ok(response) => response.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Err(_reset) => true,
    };
    assert!(refused && server.intake.received().is_empty());
}

#[tokio::test]
async fn a_panic_costs_one_request_and_not_the_core() {
    let server = serve();
    server.intake.feels(Mood::Panic);
    let mut sender = connect_h2(server.grpc_address()).await;
    let request = || grpc_request(&[], Pieces::whole(framed(0, &spans(1))));
    let status = hear(sender.send_request(request()).await.unwrap()).await.grpc_status();
    assert_eq!(status.code(), Code::Unavailable);
    server.intake.feels(Mood::Answer(Outcome::Stored));
    hear(sender.send_request(request()).await.unwrap()).await.grpc_message();
    nothing_in_flight(&server).await;
    assert_eq!(server.http(Version::HTTP_11, &[], spans(1)).await.status, StatusCode::OK);
}
