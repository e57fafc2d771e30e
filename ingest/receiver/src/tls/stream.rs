//! TLS for listeners on tokio, which wait where the other drivers are told. Serves nothing.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{HANDSHAKE, Tls};
use crate::metrics::CutReason;

/// Shakes hands with who has connected, within `timeout`.
///
/// # Errors
/// Why the connection is not to be served.
pub async fn accept(
    tls: &Tls,
    stream: TcpStream,
    timeout: Duration,
) -> Result<TlsStream<TcpStream>, CutReason> {
    time::timeout(timeout, shake(tls, stream)).await.unwrap_or(Err(CutReason::TlsTimeout))
}

async fn shake(tls: &Tls, stream: TcpStream) -> Result<TlsStream<TcpStream>, CutReason> {
    let mut first = [0];
    // Peeking, because tokio calls a fresh socket readable on suspicion.
    match stream.peek(&mut first).await {
        Ok(1) if first != [HANDSHAKE] => return Err(CutReason::NotTls),
        Ok(1) => {}
        _gone => return Err(CutReason::TlsFailed),
    }
    TlsAcceptor::from(tls.server()).accept(stream).await.map_err(|_refused| CutReason::TlsFailed)
}
