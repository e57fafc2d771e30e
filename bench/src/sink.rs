//! `sink`: the floor. A server on the same HTTP stack as the portable receiver that reads bodies and drops them; with
//! `--driver`, the house's own receiver over an intake that drops.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use ingest_receiver::tls::stream;
use ingest_receiver::{DriverChoice, Tls, TlsConfig, TlsVersion};
use serde::Serialize;
use store_model::Encoding;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::clock::parse_duration;
use crate::drain::Receiver;
use crate::error::Error;
use crate::template::GRPC_PREFIX;
use crate::worker::pin;

/// As the receiver's limit: after decompression.
const BODY_BYTES_MAX: usize = 64 << 20;

/// As the receiver's limit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `sink`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where to listen, gRPC and HTTP alike
    #[arg(long, default_value = "127.0.0.1:4317")]
    pub(crate) listen: SocketAddr,
    /// Threads
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Processors to pin the threads to, in turn
    #[arg(long, value_delimiter = ',')]
    pub(crate) cpu: Vec<usize>,
    /// Gather, decompress and walk each body, and count its spans
    #[arg(long)]
    pub(crate) walk: bool,
    /// Receive with this driver of the house (auto, io_uring, epoll, portable) instead; it always walks
    #[arg(long)]
    pub(crate) driver: Option<DriverChoice>,
    /// Speak TLS: the certificate and what leads from it to a root (PEM)
    #[arg(long, requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Stop after this long (SIGTERM and SIGINT stop it earlier)
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    pub(crate) duration: Duration,
}

/// What was dropped.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) spans: AtomicU64,
    pub(crate) unreadable: AtomicU64,
}

/// What was dropped, in numbers.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Report {
    /// `hyper`, or the driver of the house.
    pub(crate) server: &'static str,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    /// Only counted by those who walk.
    pub(crate) spans: u64,
    /// Bodies that could not be decompressed or walked.
    pub(crate) unreadable: u64,
}

impl Dropped {
    /// In numbers.
    pub(crate) fn report(&self, server: &'static str) -> Report {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            server,
            requests: read(&self.requests),
            bytes: read(&self.bytes),
            spans: read(&self.spans),
            unreadable: read(&self.unreadable),
        }
    }
}

/// Serves until the time is over or a signal comes.
///
/// # Errors
/// When the port cannot be had.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let failed = |what| move |source| Error::System { what, source };
    let mut builder = if args.threads > 1 {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let cpus = args.cpu.clone();
    if args.threads > 1 {
        let next = AtomicU64::new(0);
        builder.worker_threads(args.threads).on_thread_start(move || {
            let turn = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
            if let Some(Err(error)) = cpus.get(turn % cpus.len().max(1)).map(|&cpu| pin(cpu)) {
                eprintln!("{error}");
            }
        });
    } else if let Some(&cpu) = cpus.first() {
        pin(cpu)?;
    }
    let runtime = builder.enable_all().build().map_err(failed("start a runtime"))?;
    let dropped = Arc::new(Dropped::default());
    let tls = identity(args)?;
    let over = async {
        eprintln!("listening on {}", args.listen);
        tokio::select! {
            () = sleep(args.duration) => Ok(()),
            result = stopped() => result.map_err(failed("wait for signals")),
        }
    };
    if args.driver.is_some() {
        let receiver = Receiver::start(args, tls, Arc::clone(&dropped))?;
        runtime.block_on(over)?;
        let server = receiver.name();
        receiver.stop();
        return Ok(dropped.report(server));
    }
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.map_err(failed("listen"))?;
        tokio::select! {
            () = serve(listener, Arc::clone(&dropped), args.walk, tls) => Ok(()),
            result = over => result,
        }
    })?;
    Ok(dropped.report("hyper"))
}

/// What it identifies itself with; read as the appliance reads it, so that both speak the same.
fn identity(args: &Args) -> Result<Option<Arc<Tls>>, Error> {
    let (Some(certificate_file), Some(key_file)) = (args.tls_cert.clone(), args.tls_key.clone()) else {
        return Ok(None);
    };
    let config = TlsConfig {
        certificate_file,
        key_file,
        client_ca_file: None,
        min_version: TlsVersion::default(),
        reload_interval: Duration::ZERO,
    };
    Tls::load(&config).map(Some).map_err(|cause| Error::Options(cause.to_string()))
}

async fn stopped() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _signal = terminate.recv() => {}
        _signal = interrupt.recv() => {}
    }
    Ok(())
}

/// Takes connections until it is dropped.
pub(crate) async fn serve(listener: TcpListener, dropped: Arc<Dropped>, walk: bool, tls: Option<Arc<Tls>>) {
    loop {
        let Ok((stream, _peer)) = listener.accept().await else { continue };
        drop(stream.set_nodelay(true));
        tokio::spawn(serve_connection(stream, Arc::clone(&dropped), walk, tls.clone()));
    }
}

async fn serve_connection(stream: TcpStream, dropped: Arc<Dropped>, walk: bool, tls: Option<Arc<Tls>>) {
    let Some(tls) = tls else { return serve_requests(stream, dropped, walk).await };
    // Whoever cannot shake hands sees that at once.
    if let Ok(stream) = stream::accept(&tls, stream, HANDSHAKE_TIMEOUT).await {
        serve_requests(stream, dropped, walk).await;
    }
}

async fn serve_requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    dropped: Arc<Dropped>,
    walk: bool,
) {
    let service = service_fn(move |request| answer(request, Arc::clone(&dropped), walk));
    let server = auto::Builder::new(TokioExecutor::new());
    // How a connection ends is its client's affair.
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(
    request: Request<Incoming>,
    dropped: Arc<Dropped>,
    walk: bool,
) -> Result<Answer, hyper::Error> {
    let (head, mut body) = request.into_parts();
    let is_grpc = head
        .headers
        .get("content-type")
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let mut gathered = BytesMut::new();
    let mut bytes = 0u64;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        bytes += data.len() as u64;
        if walk && gathered.len() + data.len() <= BODY_BYTES_MAX {
            gathered.extend_from_slice(&data);
        }
    }
    dropped.requests.fetch_add(1, Ordering::Relaxed);
    dropped.bytes.fetch_add(bytes, Ordering::Relaxed);
    if walk {
        match count_spans(&head.headers, is_grpc, gathered.freeze()) {
            Some(spans) => dropped.spans.fetch_add(spans, Ordering::Relaxed),
            None => dropped.unreadable.fetch_add(1, Ordering::Relaxed),
        };
    }
    Ok(if is_grpc { grpc_ok() } else { http_ok() })
}

fn count_spans(headers: &HeaderMap, is_grpc: bool, body: Bytes) -> Option<u64> {
    let name = if is_grpc { "grpc-encoding" } else { "content-encoding" };
    let token = headers.get(name).map_or(Some(""), |value| value.to_str().ok())?;
    let body = if is_grpc { body.slice_ref(body.get(GRPC_PREFIX..)?) } else { body };
    let plain = ingest_otlp::decompress(Encoding::from_token(token)?, &body, BODY_BYTES_MAX).ok()?;
    let mut spans = 0;
    ingest_otlp::walk(&plain, &mut |_span| spans += 1).ok()?;
    Some(spans)
}

fn grpc_ok() -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let message = Full::new(Bytes::from_static(&[0; GRPC_PREFIX]));
    let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn http_ok() -> Answer {
    let mut response = Response::new(Empty::new().boxed());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/x-protobuf"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::{load, tls};
    use clap::Parser;
    use std::sync::mpsc;
    use std::thread;

    #[derive(Parser)]
    struct Load {
        #[command(flatten)]
        args: load::Args,
    }

    /// A sink on a free port, for as long as the returned sender lives.
    fn sink(tls: Option<Arc<Tls>>) -> (SocketAddr, Arc<Dropped>, tokio::sync::oneshot::Sender<()>) {
        let dropped = Arc::new(Dropped::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (tell, address) = mpsc::channel();
        let counters = Arc::clone(&dropped);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = serve(listener, counters, true, tls) => {}
                    _ = stopped => {}
                }
            });
        });
        (address.recv().unwrap(), dropped, stop)
    }

    fn load(endpoint: SocketAddr, options: &str) -> serde_json::Value {
        let usual = if options.contains("together") { "" } else { "--connections 2 --in-flight 2" };
        let command = format!("load --endpoint {endpoint} {usual} --seed 9 {options}");
        let args = Load::parse_from(command.split_ascii_whitespace()).args;
        serde_json::to_value(load::run(&args).unwrap()).unwrap()
    }

    #[test]
    fn what_the_load_counts_is_what_the_sink_walks() {
        for options in [
            "--requests 20",
            "--requests 20 --protocol http",
            "--requests 20 --compression gzip",
            "--requests 20 --compression zstd --protocol http",
            "--requests 20 --compression gzip --fresh --level 1 --threads 2",
            "--requests 20 --shape random --spans-per-request 50",
            "--requests 20 --rate 100000",
            "--requests 20 --out-of-order --late 0.5 --late-by 10ms",
            "--requests 20 --duplicates 1",
            "--requests 300 --connections 90 --in-flight-together 30 --spans-per-request 10",
            "--requests 30 --connections 9 --in-flight-together 3 --protocol http",
        ] {
            let (endpoint, dropped, _stop) = sink(None);
            let report = load(endpoint, options);
            let walked = dropped.report("hyper");
            assert_eq!(walked.unreadable, 0, "{options}");
            assert_eq!(report["spans_acknowledged"], walked.spans, "{options}");
            assert_eq!(report["spans_sent"], walked.spans, "{options}");
            assert_eq!(report["requests_acknowledged"], walked.requests, "{options}");
            assert_eq!(report["body_bytes"].as_u64() > Some(0), walked.bytes > 0, "{options}");
            let duplicated = options.contains("duplicates");
            assert_eq!(report["requests_duplicated"], if duplicated { 20 } else { 0 }, "{options}");
        }
    }

    fn identified(dir: &std::path::Path, options: &str) -> Args {
        #[derive(Parser)]
        struct Sink {
            #[command(flatten)]
            args: Args,
        }
        let files = tls::tests::files(dir);
        let command = format!(
            "sink --listen 127.0.0.1:0 {options} --tls-cert {} --tls-key {}",
            files.certificate_file.display(),
            files.key_file.display()
        );
        Sink::parse_from(command.split_ascii_whitespace()).args
    }

    #[test]
    fn every_kind_of_sink_takes_every_kind_of_connection() {
        let dir = tempfile::tempdir().unwrap();
        let trusting = format!("--requests 20 --tls-ca {}", dir.path().join("ca.pem").display());
        for driver in ["", "--driver epoll", "--driver portable", "--driver auto"] {
            let args = identified(dir.path(), driver);
            for options in ["", "--compression gzip", "--protocol http", "--compression zstd --protocol http"]
            {
                let what = format!("'{driver}' '{options}'");
                let identity = identity(&args).unwrap();
                let (dropped, report) = if driver.is_empty() {
                    let (endpoint, dropped, _stop) = sink(identity);
                    (dropped, load(endpoint, &format!("{trusting} {options}")))
                } else {
                    let dropped = Arc::new(Dropped::default());
                    let receiver = Receiver::start(&args, identity, Arc::clone(&dropped)).unwrap();
                    let endpoint = receiver.address().unwrap();
                    let report = load(endpoint, &format!("{trusting} {options}"));
                    receiver.stop();
                    (dropped, report)
                };
                assert!(report["tls"].as_str().unwrap().contains("TLSv1_3"), "{what}: {}", report["tls"]);
                assert_eq!(report["spans_acknowledged"], dropped.report("any").spans, "{what}");
                assert_eq!(report["requests_acknowledged"], 20, "{what}");
                assert_eq!(dropped.report("any").requests, 20, "{what}");
            }
        }
    }

    #[test]
    fn who_is_not_trusted_gets_nothing() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let stranger = tls::tests::files(other.path()).authority_file;
        let (endpoint, dropped, _stop) = sink(identity(&identified(dir.path(), "")).unwrap());
        let command = format!("load --endpoint {endpoint} --patience 200ms --tls-ca {}", stranger.display());
        let args = Load::parse_from(command.split_ascii_whitespace()).args;
        assert!(matches!(load::run(&args), Err(Error::Connect { .. })));
        assert_eq!(dropped.report("hyper").requests, 0);
    }

    #[test]
    fn a_ledger_tells_every_acknowledged_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.ledger");
        let (endpoint, dropped, _stop) = sink(None);
        let report =
            load(endpoint, &format!("--requests 12 --late 0.2 --late-by 10ms --ledger {}", path.display()));
        let (ledger, plan) = Ledger::read(&path).unwrap();
        assert_eq!(ledger.deliveries.len(), 12);
        let spans: u64 = ledger
            .deliveries
            .iter()
            .flat_map(|delivery| plan.group(delivery.group).bodies.iter().zip(&delivery.acknowledged))
            .filter(|(_, acknowledged)| **acknowledged)
            .map(|(body, _)| u64::from(body.span_count()))
            .sum();
        assert_eq!(spans, dropped.report("hyper").spans);
        assert_eq!(report["loss"], 0.0);
    }

    #[test]
    fn nobody_listening_is_an_error_and_not_a_hang() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let command = format!("load --endpoint {free} --patience 200ms");
        let args = Load::parse_from(command.split_ascii_whitespace()).args;
        assert!(matches!(load::run(&args), Err(Error::Connect { .. })));
    }
}
