//! The doors of the query and admin ports: connections accepted, with TLS where the port has it. What is served behind them
//! never knows the difference.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ingest_receiver::Tls;
use ingest_receiver::tls::stream::accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// A handshake must be done within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that may be shaking hands; more are closed as they come, so that strangers cannot fill memory.
const HANDSHAKES_MAX: usize = 256;

/// Connections that wait to be served.
const READY_MAX: usize = 16;

/// Without file descriptors or memory, accepting again at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Connections of one port, ready to be served.
pub(crate) struct Door {
    address: SocketAddr,
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
}

impl Door {
    /// Accepts for as long as it is there, on a task of its own.
    pub(crate) fn open(listener: TcpListener, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (served, ready) = mpsc::channel(READY_MAX);
        tokio::spawn(keep_open(listener, tls, served));
        Ok(Self { address, ready })
    }
}

async fn keep_open(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    served: mpsc::Sender<(Connection, SocketAddr)>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            () = served.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Answers are small and awaited. Failing only costs time.
        drop(stream.set_nodelay(true));
        let Some(tls) = &tls else {
            // Fails only when nobody serves any more, which the next turn sees.
            drop(served.send((Connection::Plain(stream), peer)).await);
            continue;
        };
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
        let (tls, served) = (Arc::clone(tls), served.clone());
        tokio::spawn(async move {
            match accept(&tls, stream, HANDSHAKE_TIMEOUT).await {
                Ok(stream) => drop(served.send((Connection::Secured(Box::new(stream)), peer)).await),
                Err(reason) => tracing::debug!(%peer, reason = reason.as_str(), "connection refused"),
            }
            drop(permit);
        });
    }
}

impl axum::serve::Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // The task ends after its door.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Stream for Door {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(context).map(|ready| ready.map(|(connection, _peer)| Ok(connection)))
    }
}

/// One connection.
pub(crate) enum Connection {
    Plain(TcpStream),
    Secured(Box<TlsStream<TcpStream>>),
}

/// What can be read and written, whichever it is.
trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

impl Connection {
    fn io(self: Pin<&mut Self>) -> Pin<&mut dyn Io> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream),
            Self::Secured(stream) => Pin::new(&mut **stream),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Secured(stream) => stream.is_write_vectored(),
        }
    }
}
