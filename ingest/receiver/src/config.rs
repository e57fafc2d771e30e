//! The receiver's settings, already checked for form. Owns no file and parses no text.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ingest_dialects::door;

use crate::driver::DriverChoice;
use crate::error::Error;
use crate::metrics::Protocol;
use crate::tls::Tls;

/// A span's range in its body is two 32-bit numbers, and no sender means a body beyond this.
const REQUEST_BYTES_POSSIBLE: usize = 1 << 30;

/// Whether network cards may write into memory of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ZeroCopy {
    /// Never. Taking a receive queue away from everybody else is not for a program to decide.
    #[default]
    Off,
    /// Where the io_uring driver runs and the network card gives a queue; elsewhere not, and the log says why.
    Auto,
}

/// What a driver needs to know.
#[derive(Clone, Debug)]
pub struct ReceiverConfig {
    /// What does the I/O.
    pub driver: DriverChoice,
    /// Where OTLP/gRPC is served; `None` for not at all. Port 0 takes a free one.
    pub grpc: Option<SocketAddr>,
    /// Where OTLP/HTTP is served; `None` for not at all. Port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// Where Zipkin v2 is served; `None` for not at all. Port 0 takes a free one.
    pub zipkin: Option<SocketAddr>,
    /// Where Jaeger's batches come over gRPC; `None` for not at all. Port 0 takes a free one.
    pub jaeger_grpc: Option<SocketAddr>,
    /// Where Jaeger's batches come as Thrift over HTTP; `None` for not at all. Port 0 takes a free one.
    pub jaeger_http: Option<SocketAddr>,
    /// What `grpc` identifies itself with; `None` for plain connections.
    pub grpc_tls: Option<Arc<Tls>>,
    /// What `http` identifies itself with; `None` for plain connections.
    pub http_tls: Option<Arc<Tls>>,
    /// As `grpc_tls`.
    pub zipkin_tls: Option<Arc<Tls>>,
    /// As `grpc_tls`.
    pub jaeger_grpc_tls: Option<Arc<Tls>>,
    /// As `grpc_tls`.
    pub jaeger_http_tls: Option<Arc<Tls>>,
    /// The largest request, in bytes after decompression. OTLP 1.11 recommends 64 MiB.
    pub request_bytes_max: usize,
    /// Budget for bodies being received or waiting for their answer, both forms of a compressed body and what is known of its
    /// spans included, of all cores together. At least twice `request_bytes_max`.
    pub inflight_bytes_max: usize,
    /// Free memory that all threads together keep for bodies to come, in bytes. As much as comes back between two rounds of
    /// decisions is missed at full speed; it swings by a few hundred megabytes.
    pub pool_bytes: usize,
    /// How many receiving threads, each with its own listeners.
    pub cores: usize,
    /// Open connections of all cores and protocols; more are closed as they come.
    pub max_connections: usize,
    /// A TLS handshake, the first byte of a connection, and each head of an HTTP/1 request must arrive within this. An HTTP/1
    /// connection is closed when it is quiet for as long between two requests.
    pub header_timeout: Duration,
    /// A body must be complete or have advanced by 1 KiB for each second of this, every time it passes.
    pub body_timeout: Duration,
    /// A connection without a request is closed after one to two times this.
    pub idle_timeout: Duration,
    /// A connection is asked to go when it is this old, so that long-lived senders spread over the cores again.
    pub connection_age_max: Duration,
    /// What each thread of the io_uring driver receives into, fixed at start. The kernel goes round all of it, so more
    /// than a core's second cache holds makes every copy slower.
    pub receive_buffer_bytes: usize,
    /// Whether each thread of the io_uring driver asks for a receive queue of the network card.
    pub zero_copy: ZeroCopy,
    /// The CPU each thread stays on; empty for wherever the kernel likes.
    pub cpus: Vec<usize>,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto,
            grpc: Some((Ipv4Addr::LOCALHOST, 4317).into()),
            http: Some((Ipv4Addr::LOCALHOST, 4318).into()),
            zipkin: Some((Ipv4Addr::LOCALHOST, door::ZIPKIN_PORT).into()),
            jaeger_grpc: Some((Ipv4Addr::LOCALHOST, door::JAEGER_GRPC_PORT).into()),
            jaeger_http: Some((Ipv4Addr::LOCALHOST, door::JAEGER_PORT).into()),
            grpc_tls: None,
            http_tls: None,
            zipkin_tls: None,
            jaeger_grpc_tls: None,
            jaeger_http_tls: None,
            request_bytes_max: 64 << 20,
            inflight_bytes_max: 256 << 20,
            pool_bytes: 128 << 20,
            // Obeys the affinity mask, so `taskset` and cpusets are honoured.
            cores: thread::available_parallelism().map_or(1, usize::from),
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            connection_age_max: Duration::from_secs(30 * 60),
            receive_buffer_bytes: 1 << 20,
            zero_copy: ZeroCopy::Off,
            cpus: Vec::new(),
        }
    }
}

impl ReceiverConfig {
    /// No protocol is served: for whoever then names the ones that are.
    #[must_use]
    pub fn without_ports(self) -> Self {
        Self { grpc: None, http: None, zipkin: None, jaeger_grpc: None, jaeger_http: None, ..self }
    }

    /// Where `protocol` has its port.
    pub(crate) fn address(&self, protocol: Protocol) -> Option<SocketAddr> {
        match protocol {
            Protocol::Grpc => self.grpc,
            Protocol::Http => self.http,
            Protocol::Zipkin => self.zipkin,
            Protocol::JaegerGrpc => self.jaeger_grpc,
            Protocol::JaegerHttp => self.jaeger_http,
        }
    }

    /// What a thread keeps of [`Self::pool_bytes`].
    #[must_use]
    pub fn pooled_bytes(&self) -> usize {
        self.pool_bytes / self.cores.max(1)
    }

    /// Whether the numbers fit together.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if Protocol::ALL.into_iter().all(|protocol| self.address(protocol).is_none()) {
            return Err(Error::NoListener);
        }
        if self.request_bytes_max > REQUEST_BYTES_POSSIBLE {
            return Err(Error::RequestLimit { given: self.request_bytes_max, most: REQUEST_BYTES_POSSIBLE });
        }
        let least = self.request_bytes_max * 2;
        if self.inflight_bytes_max < least {
            return Err(Error::InflightLimit { given: self.inflight_bytes_max, least });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_hold_are_refused() {
        let config = ReceiverConfig::default();
        assert!(config.check().is_ok());
        let nothing = config.clone().without_ports();
        assert!(matches!(nothing.check(), Err(Error::NoListener)));
        let one = ReceiverConfig { zipkin: config.zipkin, ..nothing };
        assert!(one.check().is_ok());
        let huge = ReceiverConfig { request_bytes_max: 2 << 30, ..config.clone() };
        assert!(matches!(huge.check(), Err(Error::RequestLimit { .. })));
        let tight = ReceiverConfig { inflight_bytes_max: 64 << 20, ..config };
        assert!(matches!(tight.check(), Err(Error::InflightLimit { .. })));
    }
}
