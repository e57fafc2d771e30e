//! Which driver does the I/O, and why: asked for, or the best this host allows. Knows what each driver needs and what it
//! takes at start; does no I/O itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::config::{ReceiverConfig, ZeroCopy};
use crate::error::Error;
use crate::intake::{Driver, Intake};
use crate::metrics::ReceiverMetrics;
use crate::{epoll, portable, uring};

/// Which driver to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DriverChoice {
    /// The best that works here.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// epoll: works wherever Linux does.
    Epoll,
    /// hyper on tokio: slower, and written by others, which makes it what the faster ones are compared with.
    Portable,
}

impl DriverChoice {
    /// The word that names it in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
            Self::Portable => "portable",
        }
    }
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("driver must be one of auto, io_uring, epoll, portable")]
pub struct UnknownDriver;

impl FromStr for DriverChoice {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, UnknownDriver> {
        let all = [Self::Auto, Self::IoUring, Self::Epoll, Self::Portable];
        all.into_iter().find(|choice| choice.as_str() == text).ok_or(UnknownDriver)
    }
}

/// A running receiver, and how its driver was chosen.
pub struct Started {
    /// It serves.
    pub driver: Box<dyn Driver>,
    /// Which one it is; never [`DriverChoice::Auto`].
    pub chosen: DriverChoice,
    /// Why this driver and no other: one clause for logs and `doctor`.
    pub because: String,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { driver: _, chosen, because } = self;
        f.debug_struct("Started").field("chosen", chosen).field("because", because).finish_non_exhaustive()
    }
}

/// What would be chosen here, and why.
///
/// # Errors
/// [`Error::Driver`] when the one asked for cannot run here.
pub fn choose(wanted: DriverChoice) -> Result<(DriverChoice, String), Error> {
    match wanted {
        DriverChoice::Auto => Ok(match uring::probe() {
            Ok(_) => (DriverChoice::IoUring, "this host offers all that io_uring needs".to_owned()),
            Err(reason) => (DriverChoice::Epoll, format!("io_uring cannot be used: {reason}")),
        }),
        DriverChoice::IoUring => match uring::probe() {
            Ok(_) => Ok((wanted, "the configuration asks for it".to_owned())),
            Err(problem) => Err(Error::Driver { wanted, problem }),
        },
        DriverChoice::Epoll | DriverChoice::Portable => {
            Ok((wanted, "the configuration asks for it".to_owned()))
        }
    }
}

/// What io_uring offers here, whatever the configuration asks for.
///
/// # Errors
/// Why not, in a sentence that says what to change.
pub fn io_uring() -> Result<&'static str, String> {
    uring::probe()
}

/// Whether network cards would write into memory of ours under `config`, with `chosen` as the driver. Where the configuration
/// wants it, this tries what the first thread does at start; the queue is free again when it returns.
///
/// # Errors
/// Why not.
pub fn zero_copy(config: &ReceiverConfig, chosen: DriverChoice) -> Result<(), String> {
    match config.zero_copy {
        ZeroCopy::Off => Err("the configuration does not ask for it".to_owned()),
        ZeroCopy::Auto if chosen != DriverChoice::IoUring => Err(NO_ZERO_COPY.to_owned()),
        ZeroCopy::Auto => uring::zero_copy(config),
    }
}

/// What the other drivers say to a wish for zero-copy receive.
const NO_ZERO_COPY: &str = "only the io_uring driver can";

/// What each receiving thread takes at start and keeps, connections apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadMemory {
    /// What is received into. The portable driver has none: its library gives every connection its own.
    pub receive_buffer_bytes: usize,
    /// Queues shared with the kernel, and its table of our connections.
    pub ring_bytes: usize,
}

/// What each thread of `chosen` takes under `config`. Memory for a network card to write into comes on top.
#[must_use]
pub fn thread_memory(config: &ReceiverConfig, chosen: DriverChoice) -> ThreadMemory {
    match chosen {
        DriverChoice::IoUring => uring::thread_memory(config),
        DriverChoice::Auto | DriverChoice::Epoll => {
            ThreadMemory { receive_buffer_bytes: epoll::RECEIVE_BYTES, ring_bytes: 0 }
        }
        DriverChoice::Portable => ThreadMemory::default(),
    }
}

/// Binds the ports and starts the threads of the chosen driver. Returns once every thread is able to serve.
///
/// # Errors
/// When the configuration cannot hold, the driver cannot run here, an address cannot be had, or a thread cannot start.
/// Nothing is left running.
pub fn start(
    config: &ReceiverConfig,
    intake: Arc<dyn Intake>,
    metrics: Arc<ReceiverMetrics>,
) -> Result<Started, Error> {
    let (chosen, because) = choose(config.driver)?;
    if config.zero_copy == ZeroCopy::Auto && chosen != DriverChoice::IoUring {
        tracing::info!(reason = NO_ZERO_COPY, "zero-copy receive is off");
    }
    let driver: Box<dyn Driver> = match chosen {
        DriverChoice::IoUring => Box::new(uring::start(config, intake, metrics)?),
        DriverChoice::Portable => Box::new(portable::start(config, intake, metrics)?),
        DriverChoice::Auto | DriverChoice::Epoll => Box::new(epoll::start(config, intake, metrics)?),
    };
    Ok(Started { driver, chosen, because })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_named_as_it_is_written() {
        for choice in [DriverChoice::Auto, DriverChoice::IoUring, DriverChoice::Epoll, DriverChoice::Portable]
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("uring".parse::<DriverChoice>(), Err(UnknownDriver));
    }

    #[test]
    fn zero_copy_that_cannot_be_says_why() {
        let wanted = ReceiverConfig { zero_copy: ZeroCopy::Auto, ..ReceiverConfig::default() };
        let off = zero_copy(&ReceiverConfig::default(), DriverChoice::IoUring).unwrap_err();
        assert!(off.contains("the configuration"), "{off}");
        let other = zero_copy(&wanted, DriverChoice::Epoll).unwrap_err();
        assert!(other.contains("io_uring"), "{other}");
    }

    #[test]
    fn a_ring_takes_its_buffers_and_queues_at_start_and_the_portable_driver_nothing() {
        let config = ReceiverConfig { max_connections: 1_000, ..ReceiverConfig::default() };
        let of = |chosen| thread_memory(&config, chosen);
        let ring = of(DriverChoice::IoUring);
        assert!(ring.receive_buffer_bytes >= config.receive_buffer_bytes && ring.ring_bytes > 0, "{ring:?}");
        assert!(of(DriverChoice::Epoll).receive_buffer_bytes > 0);
        assert_eq!(of(DriverChoice::Portable), ThreadMemory::default());
    }
}
