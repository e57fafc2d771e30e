//! Which driver does the I/O, and why: asked for, or the best this host allows. Knows what each driver needs; does no I/O
//! itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::config::ReceiverConfig;
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
    /// Why this driver and no other: one clause for logs and `doctor`.
    pub because: String,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { driver, because } = self;
        f.debug_struct("Started").field("driver", &driver.name()).field("because", because).finish()
    }
}

/// What would be chosen here, and why.
///
/// # Errors
/// [`Error::Driver`] when the one asked for cannot run here.
pub fn choose(wanted: DriverChoice) -> Result<(DriverChoice, String), Error> {
    match wanted {
        DriverChoice::Auto => Ok(match uring::probe() {
            Ok(()) => (DriverChoice::IoUring, "this host offers all that io_uring needs".to_owned()),
            Err(reason) => (DriverChoice::Epoll, format!("io_uring cannot be used: {reason}")),
        }),
        DriverChoice::IoUring => match uring::probe() {
            Ok(()) => Ok((wanted, "the configuration asks for it".to_owned())),
            Err(problem) => Err(Error::Driver { wanted, problem }),
        },
        DriverChoice::Epoll | DriverChoice::Portable => {
            Ok((wanted, "the configuration asks for it".to_owned()))
        }
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
    let driver: Box<dyn Driver> = match chosen {
        DriverChoice::IoUring => Box::new(uring::start(config, intake, metrics)?),
        DriverChoice::Portable => Box::new(portable::start(config, intake, metrics)?),
        DriverChoice::Auto | DriverChoice::Epoll => Box::new(epoll::start(config, intake, metrics)?),
    };
    Ok(Started { driver, because })
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
}
