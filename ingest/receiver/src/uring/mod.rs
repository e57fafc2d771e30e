//! The io_uring driver: one thread per core, each with its own listeners and its own ring, sharing nothing but counters. It
//! owns sockets and nothing of what is said on them: that is [`crate::connection`].
//!
//! A connection is accepted into the ring's own table of files and costs one submission, which brings everything it says
//! in buffers of a fixed pool. So the steady path is a call of the kernel for everyone who is answered and one for everyone
//! who said something.
//!
//! Read in this order: `token`, `buffers` and `ring` (what is asked of the kernel), `peers`, `turn`, `probe`; `zero_copy` is for
//! network cards that can.

mod buffers;
mod peers;
mod probe;
mod ring;
mod token;
mod turn;
mod zero_copy;

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use self::buffers::Plan;
pub(crate) use self::probe::probe;
use self::turn::Turning;
use crate::config::ReceiverConfig;
use crate::driver::ThreadMemory;
use crate::error::Error;
use crate::intake::{Driver, Intake};
use crate::metrics::ReceiverMetrics;
use crate::threads::Threads;

/// A receive fills at most this much. 4 KiB were measured at twice the cost, 16 KiB at a tenth more.
const BUFFER_BYTES: u32 = 64 << 10;

/// Connections that are accepted only to be closed need a place for that moment.
const FILES_SPARE: u32 = 64;

/// The kernel's own bound is 2^20; this many places cost half a megabyte a core.
const FILES_MAX: u32 = 1 << 16;

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

/// Whether the first thread would get a network card's queue: it is taken and given back.
///
/// # Errors
/// Why not.
pub(crate) fn zero_copy(config: &ReceiverConfig) -> Result<(), String> {
    turn::zero_copy_ring(0, config).map(drop)
}

/// What each thread takes at start.
pub(crate) fn thread_memory(config: &ReceiverConfig) -> ThreadMemory {
    ThreadMemory {
        receive_buffer_bytes: plan(config).bytes_total(),
        ring_bytes: ring::queue_bytes(files(config)),
    }
}

/// How a core's receive memory is cut.
fn plan(config: &ReceiverConfig) -> Plan {
    let bytes = config.receive_buffer_bytes.max(1);
    let bytes_each = u32::try_from(bytes).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
    // The power of two below, and what the kernel takes at most.
    let count = (bytes / bytes_each as usize).clamp(1, 1 << 15).ilog2();
    Plan { count: 1 << count, bytes_each }
}

/// How many connections a ring has room for. The kernel allows no more than files may be open.
fn files(config: &ReceiverConfig) -> u32 {
    let wanted = u32::try_from(config.max_connections).unwrap_or(FILES_MAX).saturating_add(FILES_SPARE);
    let allowed = getrlimit(Resource::Nofile)
        .current
        .map_or(FILES_MAX, |files| u32::try_from(files).unwrap_or(FILES_MAX));
    wanted.min(allowed).min(FILES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receive_memory_is_cut_into_a_power_of_two_of_equal_pieces() {
        let plan_of =
            |bytes| plan(&ReceiverConfig { receive_buffer_bytes: bytes, ..ReceiverConfig::default() });
        assert_eq!(plan_of(4 << 20), Plan { count: 64, bytes_each: 64 << 10 });
        assert_eq!(plan_of(3 << 20), Plan { count: 32, bytes_each: 64 << 10 });
        assert_eq!(plan_of(1_000), Plan { count: 1, bytes_each: 1_000 });
        assert_eq!(plan_of(0).count, 1);
        assert_eq!(plan_of(usize::MAX).count, 1 << 15);
    }
}
