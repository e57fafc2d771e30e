//! The server on its listener: `TraceQuery`, health and reflection. Owns the connections until it is told to stop.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{Channel, Server};

use crate::error::Error;
use crate::proto::DESCRIPTORS;
use crate::proto::trace_query_client::TraceQueryClient;
use crate::proto::trace_query_server::TraceQueryServer;
use crate::service::Service;

/// The largest answer. A trace of 100,000 spans is about 50 MB; five times that leaves room for chatty ones. Clients must
/// raise their own limit (4 MiB in most gRPC libraries) to receive such a trace; [`client`] has done so.
pub const RESPONSE_BYTES_MAX: usize = 256 << 20;

/// The largest question: a search with 64 tags of 16 KiB still fits.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Questions of one connection that may be under way.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;

/// A trace of 50 MB over a window of 64 KiB would take 800 round trips.
const WINDOW_BYTES: u32 = 1 << 20;

/// A peer that vanished without a word is noticed after these two.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Answers under way get this long after `shutdown`; watchers of health, whose streams never end, are then cut off.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// A client of an appliance's query port that can receive what the server may send. It does not ask for compression; over
/// a slow link call `accept_compressed` with zstd on it.
#[must_use]
pub fn client(channel: Channel) -> TraceQueryClient<Channel> {
    TraceQueryClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX)
}

/// Serves until `shutdown` completes, then lets questions under way end (five seconds at most).
///
/// # Errors
/// [`Error`] when the listener fails or the embedded descriptors are broken.
pub async fn serve(
    listener: TcpListener,
    service: Service,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    serve_on(TcpIncoming::from(listener).with_nodelay(Some(true)), service, shutdown).await
}

/// As [`serve`], on connections that somebody else accepts: with TLS, say.
///
/// # Errors
/// [`Error`] when `connections` fail or the embedded descriptors are broken.
pub async fn serve_on<C>(
    connections: impl Stream<Item = io::Result<C>>,
    service: Service,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<TraceQueryServer<Service>>().await;
    let queries = TraceQueryServer::new(service)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(RESPONSE_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Zstd)
        .accept_compressed(CompressionEncoding::Gzip)
        // Not gzip: many libraries accept it unasked, and it would hold up a large answer for a second.
        .send_compressed(CompressionEncoding::Zstd);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(queries)
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(Error::Reflection)?)
        .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?)
        .serve_with_incoming_shutdown(connections, async {
            // Either the order to stop, or its giver is gone: both mean the same.
            let _either = stopped.await;
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.map_err(Error::Serve),
        () = shutdown => {}
    }
    health.set_not_serving::<TraceQueryServer<Service>>().await;
    drop(stop);
    match tokio::time::timeout(DRAIN_MAX, server).await {
        Ok(ended) => ended.map_err(Error::Serve),
        Err(_elapsed) => Ok(()),
    }
}
