//! Why a receiver could not be started. What goes wrong with a single request is an answer, not an
//! error: see `answer`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::driver::DriverChoice;
use crate::metrics::Protocol;

/// Why a receiver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address} for {protocol}: {source}")]
    Listen {
        /// For which protocol.
        protocol: Protocol,
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The operating system gave no thread or no event loop.
    #[error("cannot start receiver thread {core}")]
    Thread {
        /// Which one.
        core: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The driver asked for cannot run here.
    #[error("driver {wanted} cannot be used: {problem}")]
    Driver {
        /// Which one.
        wanted: DriverChoice,
        /// Why not.
        problem: String,
    },
    /// A file that TLS needs cannot be read.
    #[error("cannot read {path} for TLS: {source}")]
    TlsFile {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that TLS needs holds something else.
    #[error("{path} cannot be used for TLS: {problem}")]
    TlsContent {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No protocol has an address.
    #[error("no protocol has an address to listen on")]
    NoListener,
    /// A span's place in its body is a 32-bit number.
    #[error("request_bytes_max is {given}, at most {most} is possible")]
    RequestLimit {
        /// What the configuration says.
        given: usize,
        /// What is possible.
        most: usize,
    },
    /// One compressed request of the largest size needs room for both of its forms.
    #[error("inflight_bytes_max is {given}, at least {least} is needed: twice request_bytes_max")]
    InflightLimit {
        /// What the configuration says.
        given: usize,
        /// What is needed.
        least: usize,
    },
}
