//! Starting, sharing ports between cores, and stopping.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::{StatusCode, Version};
use ingest_receiver::{Error, Outcome, ReceiverConfig};
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::support::{
    GRPC_PATH, Mood, Pieces, RpcStatus, config, connect_h2, framed, grpc_request, hear, serve, serve_with,
    spans, until,
};

#[tokio::test]
async fn stop_finishes_what_is_in_flight_and_refuses_what_is_new() {
    let mut server = serve();
    server.intake.feels(Mood::Hold);
    let mut sender = connect_h2(server.grpc_address()).await;
    let stored = tokio::spawn(sender.send_request(grpc_request(&[], Pieces::whole(framed(0, &spans(1))))));
    let address = server.http_address();
    let over_http = tokio::spawn({
        let request = super::support::http_request(&[], Pieces::whole(spans(2)));
        super::support::call(address, Version::HTTP_11, request)
    });
    server.intake.holds(2).await;

    let stopping = server.stop(Duration::from_secs(30));
    while TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!stopping.is_finished(), "two requests are still in flight");
    server.intake.release(&Outcome::Stored);
    hear(stored.await.unwrap().unwrap()).await.grpc_message();
    let heard = over_http.await.unwrap();
    assert_eq!((heard.status, heard.header("connection")), (StatusCode::OK, "close"));
    until(|| stopping.is_finished()).await;
    stopping.join().unwrap();
    assert_eq!(server.snapshot().inflight_bytes, 0);
}

#[tokio::test]
async fn stop_waits_no_longer_than_its_grace() {
    let mut server = serve();
    server.intake.feels(Mood::Hold);
    let mut sender = connect_h2(server.grpc_address()).await;
    let lost = tokio::spawn(sender.send_request(grpc_request(&[], Pieces::whole(framed(0, &spans(1))))));
    server.intake.holds(1).await;
    let stopping = server.stop(Duration::from_millis(50));
    until(|| stopping.is_finished()).await;
    assert!(lost.await.unwrap().is_err());
    assert_eq!(server.snapshot().inflight_bytes, 0);
    assert_eq!(server.snapshot().grpc.connections_open, 0);
}

#[tokio::test]
async fn a_dropped_receiver_stops() {
    let server = serve();
    let address = server.grpc_address();
    let intake = Arc::downgrade(&server.intake);
    drop(server);
    until(|| intake.strong_count() == 0).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn two_cores_share_one_port() {
    let server = serve_with(&ReceiverConfig { cores: 2, cpus: vec![0, 0], ..config() });
    // The kernel spreads connections by a hash of their ports; 64 of one kind are as likely as a coin that never falls
    // on its other side.
    for _ in 0..64 {
        server.grpc(&[], framed(0, &spans(1))).await.grpc_message();
    }
    let cores: std::collections::BTreeSet<_> =
        server.intake.received().iter().map(|(core, _)| *core).collect();
    assert_eq!(cores.into_iter().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn an_address_in_use_is_an_error_and_leaves_nothing_running() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = ReceiverConfig { http: taken.local_addr().ok(), ..config() };
    let (intake, metrics) = super::support::fake();
    let weak = Arc::downgrade(&intake);
    let started = ingest_receiver::start(&config, intake, metrics);
    assert!(matches!(started, Err(Error::Listen { address, .. }) if Some(address) == config.http));
    assert_eq!(weak.strong_count(), 0);
}

#[tokio::test]
async fn one_protocol_can_be_served_alone() {
    let server = serve_with(&ReceiverConfig { grpc: None, ..config() });
    assert_eq!(server.endpoints.grpc, None);
    assert_eq!(server.http(Version::HTTP_2, &[], spans(1)).await.status, StatusCode::OK);
}

/// Bytes as they are, for a client that others wrote.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[tokio::test]
async fn a_tonic_client_is_understood_and_understands() {
    let server = serve();
    let channel = Channel::from_shared(format!("http://{}", server.grpc_address())).unwrap();
    let mut client =
        Grpc::new(channel.connect().await.unwrap()).send_compressed(tonic::codec::CompressionEncoding::Zstd);
    let body = Bytes::from(spans(500));
    for _ in 0..3 {
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(GRPC_PATH);
        let answer: Bytes = client.unary(Request::new(body.clone()), path, Raw).await.unwrap().into_inner();
        assert!(answer.is_empty());
    }
    assert_eq!(server.intake.received()[2].1.body, body);

    let retry_after = Duration::from_millis(1_250);
    server.intake.is_ready(Err(Outcome::Overloaded { retry_after }));
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(GRPC_PATH);
    let refused = client.unary(Request::new(body), path, Raw).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(RpcStatus::of(&refused).retry_delay(), Some(retry_after));
}
