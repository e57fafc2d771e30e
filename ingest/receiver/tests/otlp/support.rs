//! An intake that remembers, a server around it, and clients that can be as rude as a test needs.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingest_otlp::messages::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans, ScopeSpans, Span,
};
use ingest_receiver::{
    Berth, Done, Driver, Endpoints, HandOver, Intake, Lane, Outcome, Received, ReceiverConfig,
    ReceiverMetrics, ReceiverSnapshot,
};
use prost::Message;
use store_model::{Symbols, Tenant, UnixNanos};
use tokio::net::TcpStream;

pub(crate) const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
pub(crate) const HTTP_PATH: &str = "/v1/traces";
pub(crate) const NOW: UnixNanos = UnixNanos(1_700_000_000_000_000_000);

/// What the fake does with the next requests.
#[derive(Clone)]
pub(crate) enum Mood {
    Answer(Outcome),
    Hold,
    Drop,
    Panic,
}

pub(crate) struct Fake {
    symbols: Symbols,
    mood: Mutex<Mood>,
    ready: Mutex<Result<(), Outcome>>,
    received: Mutex<Vec<(usize, Received)>>,
    held: Mutex<Vec<Done>>,
    refused: Mutex<Vec<(String, u64)>>,
    asked: AtomicU64,
}

impl Fake {
    pub(crate) fn feels(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn is_ready(&self, ready: Result<(), Outcome>) {
        *self.ready.lock().unwrap() = ready;
    }

    pub(crate) fn received(&self) -> Vec<(usize, Received)> {
        self.received.lock().unwrap().clone()
    }

    /// The one request there is.
    pub(crate) fn only(&self) -> Received {
        let mut all = self.received();
        assert_eq!(all.len(), 1);
        all.remove(0).1
    }

    pub(crate) fn refused(&self) -> Vec<(String, u64)> {
        self.refused.lock().unwrap().clone()
    }

    pub(crate) fn name_of(&self, index: usize) -> String {
        self.symbols.name(self.received()[index].1.spans.runs[0].root_operation)
    }

    pub(crate) async fn holds(&self, count: usize) {
        until(|| self.held.lock().unwrap().len() == count).await;
    }

    /// Answers whatever is held, and counts it.
    pub(crate) fn release(&self, outcome: &Outcome) -> usize {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        let count = held.len();
        Done::send_all(held, outcome);
        count
    }
}

impl Fake {
    fn submit(&self, core: usize, request: Received, done: Done) {
        let mood = self.mood.lock().unwrap().clone();
        if matches!(mood, Mood::Panic) {
            panic!("the fake was told to");
        }
        self.received.lock().unwrap().push((core, request));
        match mood {
            Mood::Answer(outcome) => done.send(outcome),
            Mood::Hold => self.held.lock().unwrap().push(done),
            Mood::Drop | Mood::Panic => {}
        }
    }
}

impl Intake for Fake {
    fn lane(self: Arc<Self>, Berth { core, .. }: Berth) -> Box<dyn Lane> {
        Box::new(HandOver(move |request, done| self.submit(core, request, done)))
    }

    fn refuse(&self, tenant: &Tenant, spans: u64) {
        self.refused.lock().unwrap().push((tenant.to_string(), spans));
    }

    fn ready(&self) -> Result<(), Outcome> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.ready.lock().unwrap().clone()
    }

    fn now(&self) -> UnixNanos {
        NOW
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }
}

/// A receiver on free ports; it stops when dropped.
pub(crate) struct Server {
    driver: Option<Box<dyn Driver>>,
    pub(crate) endpoints: Endpoints,
    pub(crate) intake: Arc<Fake>,
    pub(crate) metrics: Arc<ReceiverMetrics>,
}

pub(crate) fn config() -> ReceiverConfig {
    let any = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    ReceiverConfig {
        grpc: any,
        http: any,
        zipkin: any,
        jaeger_grpc: any,
        jaeger_http: any,
        cores: 1,
        driver: super::driver(),
        ..ReceiverConfig::default()
    }
}

pub(crate) fn serve() -> Server {
    serve_with(&config())
}

pub(crate) fn fake() -> (Arc<Fake>, Arc<ReceiverMetrics>) {
    let intake = Arc::new(Fake {
        symbols: Symbols::new(1_000),
        mood: Mutex::new(Mood::Answer(Outcome::Stored)),
        ready: Mutex::new(Ok(())),
        received: Mutex::default(),
        held: Mutex::default(),
        refused: Mutex::default(),
        asked: AtomicU64::new(0),
    });
    (intake, Arc::new(ReceiverMetrics::default()))
}

pub(crate) fn serve_with(config: &ReceiverConfig) -> Server {
    let (intake, metrics) = fake();
    let seam: Arc<dyn Intake> = Arc::<Fake>::clone(&intake);
    let driver = ingest_receiver::start(config, seam, Arc::clone(&metrics)).unwrap().driver;
    let endpoints = driver.endpoints();
    Server { driver: Some(driver), endpoints, intake, metrics }
}

impl Server {
    pub(crate) fn grpc_address(&self) -> SocketAddr {
        self.endpoints.grpc.unwrap()
    }

    pub(crate) fn http_address(&self) -> SocketAddr {
        self.endpoints.http.unwrap()
    }

    pub(crate) fn snapshot(&self) -> ReceiverSnapshot {
        self.metrics.snapshot()
    }

    /// Stops on a thread of its own, as the appliance does.
    pub(crate) fn stop(&mut self, grace: Duration) -> std::thread::JoinHandle<()> {
        let driver = self.driver.take().unwrap();
        std::thread::spawn(move || driver.stop(grace))
    }

    /// A gRPC call with `stream` as its whole body.
    pub(crate) async fn grpc(&self, headers: &[(&str, &str)], stream: impl Into<Bytes>) -> Heard {
        let mut request = grpc_request(headers, Pieces::whole(stream));
        request.headers_mut().entry("te").or_insert(http::HeaderValue::from_static("trailers"));
        call(self.grpc_address(), Version::HTTP_2, request).await
    }

    pub(crate) async fn http(
        &self,
        version: Version,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Heard {
        call(self.http_address(), version, http_request(headers, Pieces::whole(body))).await
    }
}

pub(crate) fn grpc_request(headers: &[(&str, &str)], body: Pieces) -> Request<Pieces> {
    let mut request = Request::post(format!("http://localhost{GRPC_PATH}"));
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body).unwrap()
}

pub(crate) fn http_request(headers: &[(&str, &str)], body: Pieces) -> Request<Pieces> {
    let mut request = Request::post(format!("http://localhost{HTTP_PATH}")).header("host", "localhost");
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/x-protobuf");
    }
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body).unwrap()
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The gRPC status, from the trailers or from the headers when there is nothing else.
    pub(crate) fn grpc_status(&self) -> tonic::Status {
        let headers = self.trailers.as_ref().unwrap_or(&self.headers);
        tonic::Status::from_header_map(headers).expect("a gRPC response has a status")
    }

    /// The response message of a gRPC call that went well.
    pub(crate) fn grpc_message(&self) -> ExportTraceServiceResponse {
        assert_eq!(self.status, 200);
        assert_eq!(self.grpc_status().code(), tonic::Code::Ok, "{self:?}");
        let (prefix, message) = self.body.split_at(5);
        assert_eq!(prefix, [&[0], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice()].concat());
        ExportTraceServiceResponse::decode(message).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn rpc_status(&self) -> RpcStatus {
        assert_eq!(self.header("content-type"), "application/x-protobuf");
        RpcStatus::decode(&self.body[..]).unwrap()
    }
}

pub(crate) async fn connect_h2(address: SocketAddr) -> http2::SendRequest<Pieces> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn call(address: SocketAddr, version: Version, request: Request<Pieces>) -> Heard {
    let response = if version == Version::HTTP_2 {
        connect_h2(address).await.send_request(request).await
    } else {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    hear(response.unwrap()).await
}

pub(crate) async fn hear(response: Response<Incoming>) -> Heard {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    Heard { status: parts.status, headers: parts.headers, body: collected.to_bytes(), trailers }
}

/// A request body in pieces, which may never end.
#[derive(Debug)]
pub(crate) struct Pieces {
    left: VecDeque<Bytes>,
    ends: bool,
}

impl Pieces {
    pub(crate) fn whole(body: impl Into<Bytes>) -> Self {
        Self { left: VecDeque::from([body.into()]), ends: true }
    }

    pub(crate) fn of(pieces: Vec<Bytes>) -> Self {
        Self { left: pieces.into(), ends: true }
    }

    /// Sends `body` and then nothing, for ever.
    pub(crate) fn stuck_after(body: impl Into<Bytes>) -> Self {
        Self { left: VecDeque::from([body.into()]), ends: false }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.left.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match &self.left {
            left if self.ends && left.len() <= 1 => {
                http_body::SizeHint::with_exact(left.front().map_or(0, |piece| piece.len() as u64))
            }
            _ => http_body::SizeHint::default(),
        }
    }
}

/// Waits for something another thread does. The patience is only for broken code.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the condition never came true");
}

pub(crate) fn span(number: u64) -> Span {
    Span {
        trace_id: [[7; 8], number.to_be_bytes()].concat(),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name: format!("operation-{}", number % 3),
        start_time_unix_nano: 1_000 + number,
        end_time_unix_nano: 2_000 + number,
        ..Span::default()
    }
}

pub(crate) fn request_of(spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// A request of `count` good spans.
pub(crate) fn spans(count: u64) -> Vec<u8> {
    request_of((0..count).map(span).collect())
}

/// Two good spans and one whose trace id is all zero.
pub(crate) fn two_good_one_bad() -> Vec<u8> {
    request_of(vec![span(0), Span { trace_id: vec![0; 16], ..span(1) }, span(2)])
}

pub(crate) fn all_bad() -> Vec<u8> {
    request_of(vec![Span { span_id: vec![], ..span(0) }, Span { trace_id: vec![1; 4], ..span(1) }])
}

pub(crate) fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[flag], length.to_be_bytes().as_slice(), message].concat()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut reader = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut out).unwrap();
    out
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// `google.rpc.Status` and what stands in its details, written anew so that the server's own cannot be wrong twice.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<RpcAny>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcAny {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RpcRetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<RpcDuration>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct RpcDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct RpcBadRequest {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<RpcViolation>,
}

#[derive(Clone, PartialEq, Message)]
struct RpcViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

impl RpcStatus {
    pub(crate) fn of(status: &tonic::Status) -> Self {
        let details = Self::decode(status.details()).unwrap();
        if !status.details().is_empty() {
            assert_eq!(details.code, i32::from(status.code()), "both statuses must agree");
            assert_eq!(details.message, status.message());
        }
        details
    }

    fn detail<M: Message + Default>(&self, name: &str) -> Option<M> {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        let any = self.details.iter().find(|any| any.type_url == url)?;
        Some(M::decode(&any.value[..]).unwrap())
    }

    pub(crate) fn retry_delay(&self) -> Option<Duration> {
        let RpcDuration { seconds, nanos } = self.detail::<RpcRetryInfo>("RetryInfo")?.delay.unwrap();
        Some(Duration::new(seconds.try_into().unwrap(), nanos.try_into().unwrap()))
    }

    /// The field that a bad request blames.
    pub(crate) fn bad_field(&self) -> Option<String> {
        let RpcViolation { field, description } =
            self.detail::<RpcBadRequest>("BadRequest")?.violations.remove(0);
        assert!(!description.is_empty());
        Some(field)
    }
}
