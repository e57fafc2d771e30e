//! The epoll driver: one thread per core, each with its own listeners, its own epoll instance and one receive buffer,
//! sharing nothing but counters. It owns sockets and nothing of what is said on them: that is [`crate::connection`].
//!
//! Edges, not levels: a socket is registered once, for everything, and a short read says that nothing is left. So the
//! steady path is one wait for many sockets, one receive per socket with news, and one send per socket with answers.

mod peers;
mod turn;

use std::sync::Arc;

pub(crate) use self::peers::RECEIVE_BYTES;
use self::turn::Turning;
use crate::config::ReceiverConfig;
use crate::error::Error;
use crate::intake::{Driver, Intake};
use crate::metrics::ReceiverMetrics;
use crate::threads::Threads;

/// Binds the ports and starts the threads. Returns once every thread is able to serve.
///
/// # Errors
/// When the configuration cannot hold, an address cannot be had, or a thread cannot start. Nothing is left running.
pub fn start(
    config: &ReceiverConfig,
    intake: Arc<dyn Intake>,
    metrics: Arc<ReceiverMetrics>,
) -> Result<impl Driver + use<>, Error> {
    Threads::<Turning>::start(config, intake, metrics)
}
