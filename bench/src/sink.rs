//! `sink`: the floor. A server on the same HTTP stack as the portable receiver that reads bodies and drops them.

use std::convert::Infallible;
use std::net::SocketAddr;
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
use serde::Serialize;
use store_model::Encoding;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::clock::parse_duration;
use crate::error::Error;
use crate::template::GRPC_PREFIX;
use crate::worker::pin;

/// As the receiver's limit: after decompression.
const BODY_BYTES_MAX: usize = 64 << 20;

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
    /// Stop after this long (SIGTERM and SIGINT stop it earlier)
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    pub(crate) duration: Duration,
}

/// What was dropped.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    requests: AtomicU64,
    bytes: AtomicU64,
    spans: AtomicU64,
    unreadable: AtomicU64,
}

/// What was dropped, in numbers.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    /// Only counted with `--walk`.
    pub(crate) spans: u64,
    /// Bodies that could not be decompressed or walked.
    pub(crate) unreadable: u64,
}

impl Dropped {
    /// In numbers.
    pub(crate) fn report(&self) -> Report {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
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
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.map_err(failed("listen"))?;
        eprintln!("listening on {}", args.listen);
        let serving = serve(listener, Arc::clone(&dropped), args.walk);
        tokio::select! {
            _elapsed = timeout(args.duration, serving) => {}
            result = stopped() => result.map_err(failed("wait for signals"))?,
        }
        Ok(dropped.report())
    })
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
pub(crate) async fn serve(listener: TcpListener, dropped: Arc<Dropped>, walk: bool) {
    loop {
        let Ok((stream, _peer)) = listener.accept().await else { continue };
        drop(stream.set_nodelay(true));
        let dropped = Arc::clone(&dropped);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&dropped), walk));
            let server = auto::Builder::new(TokioExecutor::new());
            // How a connection ends is its client's affair.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
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
    use crate::load;
    use clap::Parser;
    use std::sync::mpsc;
    use std::thread;

    #[derive(Parser)]
    struct Load {
        #[command(flatten)]
        args: load::Args,
    }

    /// A sink on a free port, for as long as the returned sender lives.
    fn sink() -> (SocketAddr, Arc<Dropped>, tokio::sync::oneshot::Sender<()>) {
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
                    () = serve(listener, counters, true) => {}
                    _ = stopped => {}
                }
            });
        });
        (address.recv().unwrap(), dropped, stop)
    }

    fn load(endpoint: SocketAddr, options: &str) -> serde_json::Value {
        let command = format!("load --endpoint {endpoint} --connections 2 --in-flight 2 --seed 9 {options}");
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
        ] {
            let (endpoint, dropped, _stop) = sink();
            let report = load(endpoint, options);
            let walked = dropped.report();
            assert_eq!(walked.unreadable, 0, "{options}");
            assert_eq!(report["spans_acknowledged"], walked.spans, "{options}");
            assert_eq!(report["spans_sent"], walked.spans, "{options}");
            assert_eq!(report["requests_acknowledged"], walked.requests, "{options}");
            assert_eq!(report["body_bytes"].as_u64() > Some(0), walked.bytes > 0, "{options}");
            let duplicated = options.contains("duplicates");
            assert_eq!(report["requests_duplicated"], if duplicated { 20 } else { 0 }, "{options}");
        }
    }

    #[test]
    fn a_ledger_tells_every_acknowledged_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.ledger");
        let (endpoint, dropped, _stop) = sink();
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
        assert_eq!(spans, dropped.report().spans);
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
