//! What an HTTP/2 server costs without its sockets: our core and the `h2` crate over the same bytes of the same
//! recorded clients. `http2_cost [scale, default 8]`: 5,000 requests a row
//! for each unit, fewer where they are large.
//!
//! A conversation is recorded once with the `h2` crate as client (four requests in flight, 16 KiB DATA frames as
//! grpc-go sends them) and then played to every connection of a row, a few requests a read, round robin. Both servers
//! copy each read once (as the kernel would), look at the head's fields, gather the body in one buffer and answer as
//! gRPC does. `h2` is polled by hand: no runtime, no tasks, no wakers, so what it costs here is the least it can cost.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use ingest_receiver::http2::{Http2, Limits, Sink, StreamId};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use store_model::Monotonic;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Requests a client keeps under way; also how many arrive with one read when they are small.
const IN_FLIGHT: usize = 4;
/// What one read brings at most.
const READ_BYTES: usize = 64 << 10;
const SPAN_BYTES: usize = 410;
/// Pairs of runs; a pair is one run of each server.
const ROUNDS: usize = 9;

fn limits() -> Limits {
    Limits { max_frame_bytes: 16 << 10, stream_window: 4 << 20, out_bytes_max: 64 << 20, ..Limits::default() }
}

fn main() -> Result<()> {
    let scale: usize = std::env::args().nth(1).map_or(Ok(8), |text| text.parse())?;
    let mut rows = Vec::new();
    for connections in [8, 200] {
        for spans in [1, 10, 100, 500] {
            let requests = (scale * 100_000 / spans).clamp(scale * 200, scale * 5_000);
            rows.push(row(connections, spans, requests / connections)?);
        }
    }
    println!("{}", serde_json::to_string_pretty(&json!({ "result": rows }))?);
    Ok(())
}

/// One size and number of connections, both servers, alternating.
fn row(connections: usize, spans: usize, requests_each: usize) -> Result<serde_json::Value> {
    let recorded = record(requests_each, 5 + spans * SPAN_BYTES)?;
    let read_bytes = READ_BYTES.min(recorded.len() * IN_FLIGHT / requests_each);
    let reads: Vec<Bytes> = recorded.chunks(read_bytes).map(Bytes::copy_from_slice).collect();
    let (mut own, mut h2, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ours = play::<Own>(connections, requests_each, &reads)?;
        let theirs = play::<Theirs>(connections, requests_each, &reads)?;
        own.push(ours);
        h2.push(theirs);
        ratios.push(theirs / ours);
    }
    let spread = |runs: &mut Vec<f64>| {
        runs.sort_by(f64::total_cmp);
        (runs[0], runs[runs.len() / 2], runs[runs.len() - 1])
    };
    let cost = |(least, median, most): (f64, f64, f64), a_span: f64| {
        let two = |value: f64| (value * 100.0).round() / 100.0;
        json!({
            "per_request_ns": { "min": two(least), "median": two(median), "max": two(most) },
            "per_span_ns": two(median / a_span),
        })
    };
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let a_span = spans as f64;
    let (_, ratio, _) = spread(&mut ratios);
    Ok(json!({
        "connections": connections,
        "spans_per_request": spans,
        "requests": connections * requests_each,
        "read_bytes": read_bytes,
        "own": cost(spread(&mut own), a_span),
        "h2": cost(spread(&mut h2), a_span),
        "h2_to_own": (ratio * 100.0).round() / 100.0,
    }))
}

/// One server side of a connection.
trait Connection: Sized {
    fn open() -> Result<Self>;
    fn read(&mut self, bytes: &Bytes) -> Result<()>;
    /// How many requests were answered, and how many bytes their bodies had.
    fn served(&self) -> (usize, usize);
}

thread_local! {
    /// Body buffers that are not in use; one pool for all connections, as a receiving thread has.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// What our core is fed from. It keeps nothing there, so a thread needs one; `h2` needs its own in each connection.
    static RECEIVED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

fn give_buffer(mut buffer: Vec<u8>) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| spare.push(buffer));
}

/// CPU-ns a request of all reads but the first quarter, which holds the handshake and warms everything up.
fn play<C: Connection>(connections: usize, requests_each: usize, reads: &[Bytes]) -> Result<f64> {
    let mut all = (0..connections).map(|_| C::open()).collect::<Result<Vec<C>>>()?;
    let (first, rest) = reads.split_at(reads.len().div_ceil(4));
    for read in first {
        for connection in &mut all {
            connection.read(read)?;
        }
    }
    let before: usize = all.iter().map(|connection| connection.served().0).sum();
    let start = cpu_ns()?;
    for read in rest {
        for connection in &mut all {
            connection.read(read)?;
        }
    }
    let cpu = cpu_ns()? - start;
    let served: usize = all.iter().map(|connection| connection.served().0).sum();
    if served != connections * requests_each || all.iter().any(|c| c.served().1 != all[0].served().1) {
        return Err(format!("{served} of {} requests were answered", connections * requests_each).into());
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let cost = cpu as f64 / (served - before) as f64;
    Ok(cost)
}

fn cpu_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Ok(u64::try_from(now.tv_sec)? * 1_000_000_000 + u64::try_from(now.tv_nsec)?)
}

/// What a server looks at in a head. Both look at the same fields.
#[derive(Default)]
struct Seen {
    path_is_known: bool,
    is_grpc: bool,
    is_plain: bool,
}

const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Our core.
struct Own {
    http2: Http2,
    gatherer: Gatherer,
    out: Vec<u8>,
    served: (usize, usize),
}

#[derive(Default)]
struct Gatherer {
    seen: Seen,
    bodies: Vec<(StreamId, Vec<u8>)>,
    complete: Vec<(StreamId, Vec<u8>)>,
    consumed: Vec<(StreamId, usize)>,
}

impl Sink for Gatherer {
    fn field(&mut self, _: StreamId, name: &[u8], value: &[u8]) {
        match name {
            b":path" => self.seen.path_is_known = value == PATH.as_bytes(),
            b"content-type" => self.seen.is_grpc = value == b"application/grpc",
            b"grpc-encoding" => self.seen.is_plain = value == b"identity",
            _ => {}
        }
    }

    fn head(&mut self, stream: StreamId, _: bool) {
        let seen = std::mem::take(&mut self.seen);
        if seen.path_is_known && seen.is_grpc && seen.is_plain {
            self.bodies.push((stream, take_buffer()));
        }
    }

    fn data(&mut self, stream: StreamId, bytes: &[u8], ends: bool) {
        let Some(at) = self.bodies.iter().position(|(id, _)| *id == stream) else { return };
        self.bodies[at].1.extend_from_slice(bytes);
        self.consumed.push((stream, bytes.len()));
        if ends {
            self.complete.push(self.bodies.swap_remove(at));
        }
    }

    fn reset(&mut self, _: StreamId) {}
}

impl Connection for Own {
    fn open() -> Result<Self> {
        let mut out = Vec::new();
        let http2 = Http2::new(limits(), Monotonic(0), &mut out);
        Ok(Self { http2, gatherer: Gatherer::default(), out, served: (0, 0) })
    }

    fn read(&mut self, bytes: &Bytes) -> Result<()> {
        let Self { http2, gatherer, out, served } = self;
        RECEIVED.with_borrow_mut(|buffer| {
            buffer.clear();
            buffer.extend_from_slice(bytes);
            http2.receive(buffer, Monotonic(1), gatherer, out).map_err(|cut| format!("{cut:?}"))
        })?;
        for (stream, bytes) in gatherer.consumed.drain(..) {
            http2.credit(stream, bytes, out);
        }
        for (stream, body) in gatherer.complete.drain(..) {
            let fields: &[(&str, &[u8])] = &[("content-type", b"application/grpc")];
            let trailers: &[(&str, &[u8])] = &[("grpc-status", b"0")];
            http2.respond(stream, 200, fields, &[0; 5], Some(trailers), out);
            *served = (served.0 + 1, served.1 + body.len());
            give_buffer(body);
        }
        // Sent.
        out.clear();
        Ok(())
    }

    fn served(&self) -> (usize, usize) {
        self.served
    }
}

/// The `h2` crate.
struct Theirs {
    connection: server::Connection<Pipe, Bytes>,
    pipe: Pipe,
    under_way: Vec<UnderWay>,
    served: (usize, usize),
}

struct UnderWay {
    incoming: RecvStream,
    answer: SendResponse<Bytes>,
    body: Vec<u8>,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the socket holds.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<Bytes>>);

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut waiting = self.0.borrow_mut();
        if waiting.is_empty() {
            return Poll::Pending;
        }
        let count = waiting.len().min(buffer.remaining());
        buffer.put_slice(&waiting.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Connection for Theirs {
    fn open() -> Result<Self> {
        let limits = limits();
        let pipe = Pipe::default();
        let mut builder = server::Builder::new();
        builder
            .max_concurrent_streams(limits.max_concurrent_streams)
            .max_header_list_size(u32::try_from(limits.header_list_bytes_max)?)
            .initial_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .max_frame_size(limits.max_frame_bytes);
        // The preface has to be there before there is a connection.
        *pipe.0.borrow_mut() = Bytes::from_static(PREFACE);
        let mut handshake = Box::pin(builder.handshake::<_, Bytes>(pipe.clone()));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(connection) = handshake.as_mut().poll(&mut cx) else {
            return Err("no handshake".into());
        };
        Ok(Self { connection: connection?, pipe, under_way: Vec::new(), served: (0, 0) })
    }

    fn read(&mut self, bytes: &Bytes) -> Result<()> {
        let begin = if bytes.starts_with(PREFACE) { PREFACE.len() } else { 0 };
        let left = self.pipe.0.replace(bytes.slice(begin..));
        if !left.is_empty() {
            return Err("h2 did not read what was there".into());
        }
        let mut cx = Context::from_waker(Waker::noop());
        // Once for what came, and once more for what was answered.
        for _ in 0..2 {
            while let Poll::Ready(Some(accepted)) = self.connection.poll_accept(&mut cx) {
                let (request, answer) = accepted?;
                let (head, incoming) = request.into_parts();
                let field = |name| head.headers.get(name).map(HeaderValue::as_bytes);
                let seen = Seen {
                    path_is_known: head.uri.path() == PATH,
                    is_grpc: field("content-type") == Some(b"application/grpc"),
                    is_plain: field("grpc-encoding") == Some(b"identity"),
                };
                if seen.path_is_known && seen.is_grpc && seen.is_plain {
                    let body = take_buffer();
                    self.under_way.push(UnderWay { incoming, answer, body });
                }
            }
            self.gather(&mut cx)?;
        }
        Ok(())
    }

    fn served(&self) -> (usize, usize) {
        self.served
    }
}

impl Theirs {
    /// Takes what bodies came and answers the complete ones.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let mut at = 0;
        while let Some(request) = self.under_way.get_mut(at) {
            let ended = loop {
                match request.incoming.poll_data(cx) {
                    Poll::Ready(Some(bytes)) => {
                        let bytes = bytes?;
                        request.body.extend_from_slice(&bytes);
                        request.incoming.flow_control().release_capacity(bytes.len())?;
                    }
                    Poll::Ready(None) => break true,
                    Poll::Pending => break false,
                }
            };
            if !ended {
                at += 1;
                continue;
            }
            let UnderWay { mut answer, body, .. } = self.under_way.swap_remove(at);
            let mut head = Response::new(());
            head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let mut sending = answer.send_response(head, false)?;
            sending.send_data(Bytes::from_static(&[0; 5]), false)?;
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            sending.send_trailers(trailers)?;
            self.served = (self.served.0 + 1, self.served.1 + body.len());
            give_buffer(body);
        }
        Ok(())
    }
}

/// What a client of the `h2` crate sends for `requests` of `body_bytes` each.
fn record(requests: usize, body_bytes: usize) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(READ_BYTES);
        let (client, connection) = h2::client::handshake(near).await?;
        let driver = tokio::spawn(connection);
        let sender = tokio::spawn(send(client, requests, body_bytes));
        let mut server = Own::open()?;
        let (mut recorded, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        while server.served.0 < requests {
            // `read` throws the output away; here somebody waits for it.
            let Own { http2, gatherer, out, served, .. } = &mut server;
            far.write_all(out).await?;
            out.clear();
            let count = far.read(&mut buffer).await?;
            recorded.extend_from_slice(&buffer[..count]);
            http2.receive(&buffer[..count], Monotonic(1), gatherer, out).map_err(|cut| format!("{cut:?}"))?;
            for (stream, bytes) in gatherer.consumed.drain(..) {
                http2.credit(stream, bytes, out);
            }
            for (stream, _) in gatherer.complete.drain(..) {
                let fields: &[(&str, &[u8])] = &[("content-type", b"application/grpc")];
                let trailers: &[(&str, &[u8])] = &[("grpc-status", b"0")];
                http2.respond(stream, 200, fields, &[0; 5], Some(trailers), out);
                served.0 += 1;
            }
        }
        driver.abort();
        sender.abort();
        Ok(recorded)
    })
}

async fn send(client: h2::client::SendRequest<Bytes>, requests: usize, body_bytes: usize) {
    let body = Bytes::from(vec![0x55; body_bytes]);
    let one = |timeout_us: usize| {
        let (client, body) = (client.clone(), body.clone());
        async move {
            let request = Request::post(format!("http://receiver:4317{PATH}"))
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .header("user-agent", "OTel-OTLP-Exporter-Rust/0.30.0")
                .header("grpc-encoding", "identity")
                .header("grpc-accept-encoding", "gzip, zstd")
                .header("x-scope-orgid", "shop")
                .header("grpc-timeout", format!("{timeout_us}u"))
                .body(())
                .map_err(|error| error.to_string())?;
            let mut client = client.ready().await.map_err(|error| error.to_string())?;
            let (answer, mut sending) =
                client.send_request(request, false).map_err(|error| error.to_string())?;
            sending.send_data(body, true).map_err(|error| error.to_string())?;
            let mut incoming = answer.await.map_err(|error| error.to_string())?.into_body();
            while let Some(bytes) = incoming.data().await {
                let bytes = bytes.map_err(|error| error.to_string())?;
                incoming.flow_control().release_capacity(bytes.len()).map_err(|error| error.to_string())?;
            }
            Ok::<(), String>(())
        }
    };
    let mut under_way = tokio::task::JoinSet::new();
    for n in 0..requests {
        if under_way.len() >= IN_FLIGHT {
            drop(under_way.join_next().await);
        }
        under_way.spawn(one(9_999_999 - n * 7));
    }
    while under_way.join_next().await.is_some() {}
}
