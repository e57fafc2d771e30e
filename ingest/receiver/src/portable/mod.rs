//! The portable driver: hyper on one single-threaded tokio runtime per core. It owns sockets, threads and timers; what
//! requests mean lies in the modules beside it. It stays as the fallback wherever faster drivers cannot run, and as the
//! oracle they are compared with.

mod connection;
mod core;
mod grpc;
mod http;

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use tokio::sync::watch;

use self::core::Core;
use crate::config::ReceiverConfig;
use crate::error::Error;
use crate::intake::{Driver, Endpoints, Intake};
use crate::listen::{self, Listeners};
use crate::metrics::ReceiverMetrics;
use crate::shared::Shared;
use crate::threads;

/// How long a stop may take: `None` while nobody asked for one.
type Stop = Option<Duration>;

/// The running portable driver.
pub struct Portable {
    endpoints: Endpoints,
    // Dropping it stops the threads too: they see that nobody is left to ask.
    stop: watch::Sender<Stop>,
    threads: Vec<JoinHandle<()>>,
}

/// Binds the ports and starts the threads. Returns once every thread is able to serve.
///
/// # Errors
/// When the configuration cannot hold, an address cannot be had, or a thread cannot start. Nothing is left running.
pub fn start(
    config: &ReceiverConfig,
    intake: Arc<dyn Intake>,
    metrics: Arc<ReceiverMetrics>,
) -> Result<Portable, Error> {
    config.check()?;
    let cores = config.cores.max(1);
    let (endpoints, listeners) = listen::bind(config, cores)?;
    let shared = Shared::new(config, intake, metrics);
    let (stop, stopped) = watch::channel(None);
    let mut portable = Portable { endpoints, stop, threads: Vec::with_capacity(cores) };
    for (core, listeners) in listeners.into_iter().enumerate() {
        let thread = spawn(core, &shared, listeners, stopped.clone())
            .map_err(|source| Error::Thread { core, source })?;
        portable.threads.push(thread);
    }
    Ok(portable)
}

fn spawn(
    core: usize,
    shared: &Arc<Shared>,
    listeners: Listeners,
    stop: watch::Receiver<Stop>,
) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    // The event loop is made on its thread, since it never leaves it; how that went comes back through here.
    let (ready, started) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(format!("receive-{core}")).spawn(move || {
        listen::pin(&shared.config.cpus, core);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        match runtime {
            Ok(runtime) => runtime.block_on(core::run(Core::new(core, shared), listeners, stop, ready)),
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    let died = || Err(io::Error::other("the thread died while it started"));
    started.recv().unwrap_or_else(|_gone| died()).map(|()| thread)
}

impl Driver for Portable {
    fn name(&self) -> &'static str {
        "portable"
    }

    fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    fn is_whole(&self) -> bool {
        threads::are_at_work(&self.threads)
    }

    fn stop(self: Box<Self>, grace: Duration) {
        let Self { endpoints: _, stop, threads } = *self;
        stop.send_replace(Some(grace));
        threads::join(threads.into_iter());
    }
}

impl fmt::Debug for Portable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portable").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}
