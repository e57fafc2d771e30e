//! Connections: accepted, served by hyper within hard limits, watched for idleness and age, asked to go on stop. Knows
//! nothing of requests but that they begin and end.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::{pin, select, task, time};

use super::core::Core;
use super::{Stop, grpc, http};
use crate::config::ReceiverConfig;
use crate::metrics::Protocol;
use crate::shared::{Slot, is_of_one_connection};
use crate::tls::stream::accept as accept_tls;

/// Nobody sends one: its channel ends when the last connection does.
pub(crate) enum Gone {}

/// What one stream may have under way before its handler has read it, and what one connection may. A 500-span batch
/// fits a stream window, so its sender never waits for an update.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Larger frames mean fewer reads; senders that never look at the setting use 16 KiB.
const FRAME_BYTES_MAX: u32 = 256 << 10;
const STREAMS_MAX: u32 = 256;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const HEADERS_MAX: usize = 100;
/// hyper buffers an HTTP/1 head and pieces of a body in this; 16 KiB of it would slow bodies down.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Answers are a few hundred bytes.
const SEND_BUFFER_BYTES_MAX: usize = 16 << 10;
/// Streams reset by their sender before we took them (rapid reset), and resets that a sender's errors make us send.
const PENDING_RESETS_MAX: usize = 20;
const LOCAL_RESETS_MAX: usize = 1_024;
/// A peer that vanished without a word is found out this way.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Without file descriptors or memory, accepting again at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Accepts until stopped. Each connection holds a clone of `alive`.
pub(crate) async fn accept(
    core: Rc<Core>,
    listener: TcpListener,
    port: Protocol,
    mut stop: watch::Receiver<Stop>,
    alive: mpsc::Sender<Gone>,
) {
    let server = Rc::new(server(&core.shared.config));
    loop {
        let accepted = select! {
            biased;
            _ = stop.wait_for(Option::is_some) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => {
                let Some(slot) = Slot::take(&core.shared, port) else { continue };
                let (core, server, stop, alive) =
                    (Rc::clone(&core), Rc::clone(&server), stop.clone(), alive.clone());
                task::spawn_local(async move {
                    serve(core, server, port, stream, stop).await;
                    drop(slot);
                    drop(alive);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// What a connection's watchdog sees of its requests.
#[derive(Default)]
struct Activity {
    open: Cell<u32>,
    begun: Cell<u64>,
}

/// A request under way.
struct Open(Rc<Activity>);

impl Activity {
    fn begin(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        self.begun.set(self.begun.get() + 1);
        Open(Rc::clone(self))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// Waits for a connection to say something, through TLS where the port has it, and serves it then.
async fn serve(
    core: Rc<Core>,
    server: Rc<auto::Builder<OnCore>>,
    port: Protocol,
    stream: TcpStream,
    mut stop: watch::Receiver<Stop>,
) {
    // Answers are small and awaited: they must not linger for more to join them. Failing only costs time.
    drop(stream.set_nodelay(true));
    let timeout = core.shared.config.header_timeout;
    // The first byte is awaited here, since nothing further down has a deadline for it. Peeking, because tokio calls a
    // fresh socket readable on suspicion.
    let Some(tls) = core.shared.tls(port) else {
        let mut first = [0];
        select! {
            biased;
            peeked = time::timeout(timeout, stream.peek(&mut first)) => {
                if !matches!(peeked, Ok(Ok(1))) {
                    return;
                }
            }
            _ = stop.wait_for(Option::is_some) => return,
        }
        return converse(core, server, port, stream, stop).await;
    };
    let accepted = select! {
        biased;
        accepted = accept_tls(tls, stream, timeout) => accepted,
        _ = stop.wait_for(Option::is_some) => return,
    };
    let mut stream = match accepted {
        Ok(stream) => stream,
        Err(reason) => return core.meters(port).connection_cut(reason),
    };
    select! {
        biased;
        filled = time::timeout(timeout, stream.fill_buf()) => {
            if !matches!(filled, Ok(Ok([_, ..]))) {
                return;
            }
        }
        _ = stop.wait_for(Option::is_some) => return,
    }
    converse(core, server, port, stream, stop).await;
}

/// Serves a connection that has begun to speak.
async fn converse(
    core: Rc<Core>,
    server: Rc<auto::Builder<OnCore>>,
    port: Protocol,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    stop: watch::Receiver<Stop>,
) {
    let config = &core.shared.config;
    let activity = Rc::new(Activity::default());
    let (of_core, of_service) = (Rc::clone(&core), Rc::clone(&activity));
    let service = service_fn(move |request: Request<Incoming>| {
        let (core, open) = (Rc::clone(&of_core), of_service.begin());
        async move {
            let (parts, body) = request.into_parts();
            let (protocol, fields) = core.fields(port, &parts);
            let response = if protocol.is_grpc() {
                grpc::answer(&core, protocol, fields, body).await
            } else {
                http::answer(&core, protocol, parts.version, fields, body).await
            };
            drop(open);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = server.serve_connection(TokioIo::new(stream), service);
    watch_over(connection, |connection| connection.graceful_shutdown(), config, &activity, stop).await;
}

/// hyper's tasks stay on the core that accepted their connection.
#[derive(Clone, Copy)]
pub(crate) struct OnCore;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for OnCore {
    fn execute(&self, future: F) {
        // It ends with its connection, and nobody asks for its output.
        task::spawn_local(future);
    }
}

fn server(config: &ReceiverConfig) -> auto::Builder<OnCore> {
    let mut server = auto::Builder::new(OnCore);
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    server
}

/// Drives `connection` to its end, and asks it to go on stop, when it was idle for a whole `idle_timeout`, or when it is
/// old. One that does not go is cut off.
async fn watch_over<C: Future>(
    connection: C,
    ask_to_go: impl Fn(Pin<&mut C>),
    config: &ReceiverConfig,
    activity: &Activity,
    mut stop: watch::Receiver<Stop>,
) {
    pin!(connection);
    let (mut age, mut begun_before) = (Duration::ZERO, 0);
    loop {
        select! {
            biased;
            _ended = connection.as_mut() => return,
            _ = stop.wait_for(Option::is_some) => break,
            () = time::sleep(config.idle_timeout) => {
                age += config.idle_timeout;
                let begun = activity.begun.get();
                let idle = activity.open.get() == 0 && begun == begun_before;
                if idle || age >= config.connection_age_max {
                    break;
                }
                begun_before = begun;
            }
        }
    }
    ask_to_go(connection.as_mut());
    // Time for a body under way and for its answer; on stop the grace may end it earlier.
    drop(time::timeout(config.body_timeout * 2, connection).await);
}
