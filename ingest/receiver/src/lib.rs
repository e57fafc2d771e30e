//! Takes OTLP requests, and Zipkin's and Jaeger's, off the network and hands them on as bytes with their summaries.
//!
//! It owns the ports, the protocol, the answers and the memory of requests in flight. It never stores a span, never
//! materialises a protobuf message of spans and never decides about a trace: that lies behind [`Intake`].
//!
//! Read in this order: [`config`], [`intake`] and [`lane`] (the seam), `answer` (the answer table), `budget`, `body` and
//! `request` (bytes in, values out), [`tls`], [`uring`], [`epoll`] and [`portable`] (the drivers, which do the I/O), [`metrics`].
//!
//! Specification: <https://opentelemetry.io/docs/specs/otlp/> (1.11).

mod answer;
mod body;
mod budget;
mod calls;
mod clock;
pub mod config;
mod connection;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod conversation;
mod desk;
pub mod driver;
pub mod epoll;
pub mod error;
mod http1;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod http2;
#[cfg(not(feature = "internals"))]
mod http2;
mod inbox;
pub mod intake;
pub mod lane;
mod listen;
pub mod metrics;
mod pool;
pub mod portable;
mod reply;
mod request;
mod rounds;
mod rpc;
mod session;
mod shared;
mod slab;
mod slice;
mod threads;
pub mod tls;
pub mod uring;

pub use answer::Reason;
pub use config::{ReceiverConfig, ZeroCopy};
pub use driver::{DriverChoice, Started, ThreadMemory, start};
pub use error::Error;
pub use intake::{Done, Driver, Endpoints, Intake, Outcome, Received};
pub use lane::{Answers, Berth, HandOver, Lane, Wake, Write};
pub use metrics::{CutReason, Protocol, ProtocolSnapshot, ReceiverMetrics, ReceiverSnapshot};
pub use tls::{Reload, Tls, TlsConfig, TlsVersion};
