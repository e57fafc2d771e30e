//! What receiving costs: CPU time of one receiving thread per span, into an intake that answers at once. The sender is
//! in the same process on other threads and is not counted. `receive_cost [spans a request] [connections] [requests]
//! [identity|gzip|zstd] [auto|io_uring|epoll|portable] [plain|tls]`. TLS is 1.3 with AES-128-GCM.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingest_otlp::messages::{
    AnyValue, ExportTraceServiceRequest, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, any_value,
};
use ingest_receiver::{
    Berth, Done, HandOver, Intake, Lane, Outcome, ReceiverConfig, ReceiverMetrics, Tls, TlsConfig, TlsVersion,
};
use prost::Message;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use store_model::{Symbols, Tenant, UnixNanos};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// As the appliance has it: the system's own is a good part of what small requests cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests under way on each connection.
const IN_FLIGHT: usize = 4;

struct Sink(Symbols);

impl Intake for Sink {
    fn lane(self: Arc<Self>, _: Berth) -> Box<dyn Lane> {
        Box::new(HandOver(|_request, done: Done| done.send(Outcome::Stored)))
    }

    fn refuse(&self, _: &Tenant, _: u64) {}

    fn ready(&self) -> Result<(), Outcome> {
        Ok(())
    }

    fn now(&self) -> UnixNanos {
        UnixNanos(0)
    }

    fn symbols(&self) -> &Symbols {
        &self.0
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let spans: u64 = args.next().map_or(Ok(500), |text| text.parse())?;
    let connections: usize = args.next().map_or(Ok(8), |text| text.parse())?;
    let requests: usize = args.next().map_or(Ok(200), |text| text.parse())?;
    let encoding = args.next().unwrap_or_else(|| "identity".into());
    let driver = args.next().map_or(Ok(Default::default()), |text| text.parse())?;
    let secret = args.next().is_some_and(|word| word == "tls").then(Secret::new).transpose()?;
    let connector = secret.as_ref().map(|secret| secret.connector.clone());

    let (stream, bytes_a_span) = message(spans, &encoding)?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let grpc_tls = secret.as_ref().map(|secret| Arc::clone(&secret.tls));
    let defaults = ReceiverConfig::default().without_ports();
    let config = ReceiverConfig { grpc: Some(any), grpc_tls, cores: 1, driver, ..defaults };
    let metrics = Arc::new(ReceiverMetrics::default());
    let intake = Arc::new(Sink(Symbols::new(1_000)));
    let driver = ingest_receiver::start(&config, intake, Arc::clone(&metrics))?.driver;
    let address = driver.endpoints().grpc.ok_or("no address")?;

    send(address, connector.clone(), 1, requests.min(20), &stream, &encoding)?;
    let before = (cpu_ns()?, metrics.snapshot().grpc.spans_accepted);
    send(address, connector.clone(), connections, requests, &stream, &encoding)?;
    let cpu = cpu_ns()? - before.0;
    let taken = metrics.snapshot().grpc.spans_accepted - before.1;
    let name = driver.name();
    driver.stop(Duration::from_secs(1));
    let per_request = cpu * spans / taken.max(1);
    println!(
        "{name}{}: {spans} spans a request, {connections} connections, {encoding}, {bytes_a_span} bytes a span decompressed",
        if connector.is_some() { " with TLS" } else { "" },
    );
    println!("{} CPU-ns a span, {per_request} a request, kernel included", cpu / taken.max(1));
    Ok(())
}

/// What both ends of TLS need.
struct Secret {
    tls: Arc<Tls>,
    connector: TlsConnector,
}

impl Secret {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let directory = tempfile::tempdir()?;
        let [certificate_file, key_file] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
        fs::write(&certificate_file, issued.cert.pem())?;
        fs::write(&key_file, issued.signing_key.serialize_pem())?;
        let tls = Tls::load(&TlsConfig {
            certificate_file,
            key_file,
            client_ca_file: None,
            min_version: TlsVersion::V1_3,
            reload_interval: Duration::ZERO,
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(issued.cert.der().clone())?;
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
        let config =
            ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13])?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls, connector: TlsConnector::from(Arc::new(config)) })
    }
}

/// A framed request of `count` spans in eight attributes each, about 410 bytes a span.
fn message(count: u64, encoding: &str) -> Result<(Bytes, u64), Box<dyn std::error::Error>> {
    let text = |key: &str, value: String| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value)) }),
    };
    let span = |n: u64| Span {
        trace_id: [n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes(), (n + 1).to_be_bytes()].concat(),
        span_id: (n + 1).to_be_bytes().to_vec(),
        parent_span_id: (n / 8 + 1).to_be_bytes().to_vec(),
        name: format!("GET /api/v1/items/{}", n % 16),
        kind: 2,
        start_time_unix_nano: 1_700_000_000_000_000_000 + n,
        end_time_unix_nano: 1_700_000_000_001_000_000 + n,
        attributes: (0..8)
            .map(|key| text(&format!("http.request.header.{key}"), format!("value {n}")))
            .collect(),
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: (0..count).map(span).collect(), ..ScopeSpans::default() }];
    let attributes = vec![text("service.name", "shop".into())];
    let resource = Some(Resource { attributes, ..Resource::default() });
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    let plain = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let bytes_a_span = plain.len() as u64 / count.max(1);
    let body = match encoding {
        "identity" => plain,
        "zstd" => zstd::bulk::compress(&plain, 3)?,
        _ => {
            let mut out = Vec::new();
            let mut reader = flate2::read::GzEncoder::new(&plain[..], flate2::Compression::default());
            std::io::Read::read_to_end(&mut reader, &mut out)?;
            out
        }
    };
    let flag = u8::from(encoding != "identity");
    let length = u32::try_from(body.len())?.to_be_bytes();
    Ok(([&[flag], length.as_slice(), &body].concat().into(), bytes_a_span))
}

/// `requests` over each of `connections`, and their answers.
fn send(
    address: SocketAddr,
    connector: Option<TlsConnector>,
    connections: usize,
    requests: usize,
    stream: &Bytes,
    encoding: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let task = |connector: Option<TlsConnector>, stream: Bytes, encoding: String| async move {
        let plain = TcpStream::connect(address).await.expect("it listens");
        // As gRPC clients do: a small body must not wait for the acknowledgement of its head.
        plain.set_nodelay(true).expect("the socket is open");
        let sender = match connector {
            None => shake(plain).await,
            Some(connector) => {
                let name = ServerName::try_from("localhost").expect("it is a name");
                shake(connector.connect(name, plain).await.expect("it speaks TLS")).await
            }
        };
        let lanes: Vec<_> = (0..IN_FLIGHT)
            .map(|_| {
                tokio::spawn(lane(sender.clone(), requests / IN_FLIGHT, stream.clone(), encoding.clone()))
            })
            .collect();
        for lane in lanes {
            lane.await.expect("every request is answered");
        }
    };
    runtime.block_on(async {
        let all: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(task(connector.clone(), stream.clone(), encoding.to_owned())))
            .collect();
        for connection in all {
            connection.await?;
        }
        Ok(())
    })
}

async fn shake(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> http2::SendRequest<Full<Bytes>> {
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let (sender, connection) = shaken.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    sender
}

async fn lane(mut sender: http2::SendRequest<Full<Bytes>>, requests: usize, stream: Bytes, encoding: String) {
    for _ in 0..requests {
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-encoding", &encoding)
            .body(Full::new(stream.clone()))
            .expect("the request is legal");
        let response = sender.send_request(request).await.expect("the receiver answers");
        drop(response.into_body().collect().await.expect("the answer is whole"));
    }
}

/// CPU time of the receiving threads so far, user and system.
fn cpu_ns() -> Result<u64, Box<dyn std::error::Error>> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.starts_with("receive-") {
            let line = fs::read_to_string(task.join("schedstat"))?;
            sum += line.split_whitespace().next().ok_or("schedstat is empty")?.parse::<u64>()?;
        }
    }
    Ok(sum)
}
