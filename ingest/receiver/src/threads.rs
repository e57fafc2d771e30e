//! Receiving threads, one per core: started, pinned, stopped and joined. What a thread does all day is its driver's.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use crate::config::ReceiverConfig;
use crate::error::Error;
use crate::inbox::Inbox;
use crate::intake::{Driver, Endpoints, Intake};
use crate::lane::Wake as _;
use crate::listen::{self, Listeners};
use crate::metrics::ReceiverMetrics;
use crate::shared::Shared;
use crate::slice;

/// Whether to stop, and how long that may take. Whoever asks wakes the inboxes, so nobody polls it.
#[derive(Debug)]
pub(crate) struct Stop(AtomicU64);

impl Stop {
    const NOT_ASKED: u64 = u64::MAX;

    /// The grace, once a stop has been asked for.
    pub(crate) fn asked(&self) -> Option<Duration> {
        // Relaxed: the number guards no other memory.
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos != Self::NOT_ASKED).then(|| Duration::from_nanos(nanos))
    }

    fn ask(&self, grace: Duration) {
        let nanos = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos.min(Self::NOT_ASKED - 1), Ordering::Relaxed);
    }
}

/// What one thread is given.
pub(crate) struct Post {
    pub(crate) core: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) listeners: Listeners,
    pub(crate) stop: Arc<Stop>,
}

/// The work of one thread.
pub(crate) trait Work: Sized {
    /// What the driver is called.
    const NAME: &'static str;

    /// Made on the thread it stays on.
    fn begin(post: Post) -> io::Result<Self>;

    /// Serves until stopped.
    fn run(self);
}

/// A running driver whose threads do `W`.
pub(crate) struct Threads<W> {
    endpoints: Endpoints,
    stop: Arc<Stop>,
    inboxes: Vec<Arc<Inbox>>,
    threads: Vec<JoinHandle<()>>,
    work: PhantomData<fn() -> W>,
}

impl<W: Work> Threads<W> {
    /// Binds the ports and starts the threads. Returns once every thread is able to serve.
    pub(crate) fn start(
        config: &ReceiverConfig,
        intake: Arc<dyn Intake>,
        metrics: Arc<ReceiverMetrics>,
    ) -> Result<Self, Error> {
        config.check()?;
        let cores = config.cores.max(1);
        let (endpoints, listeners) = listen::bind(config, cores)?;
        let shared = Shared::new(config, intake, metrics);
        let stop = Arc::new(Stop(AtomicU64::new(Stop::NOT_ASKED)));
        let (inboxes, threads) = (Vec::with_capacity(cores), Vec::with_capacity(cores));
        let mut all = Self { endpoints, stop, inboxes, threads, work: PhantomData };
        for (core, listeners) in listeners.into_iter().enumerate() {
            let failed = |source| Error::Thread { core, source };
            let inbox = Arc::new(Inbox::new().map_err(failed)?);
            all.inboxes.push(Arc::clone(&inbox));
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&all.stop));
            let thread = spawn::<W>(Post { core, shared, inbox, listeners, stop }).map_err(failed)?;
            all.threads.push(thread);
        }
        Ok(all)
    }
}

fn spawn<W: Work>(post: Post) -> io::Result<JoinHandle<()>> {
    let core = post.core;
    // What a thread waits with is made on that thread; how that went comes back through here.
    let (ready, started) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(format!("receive-{core}")).spawn(move || {
        listen::pin(&post.shared.config.cpus, core);
        slice::shorten();
        match W::begin(post) {
            Ok(work) => {
                drop(ready.send(Ok(())));
                work.run();
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    let died = || Err(io::Error::other("the thread died while it started"));
    started.recv().unwrap_or_else(|_gone| died()).map(|()| thread)
}

/// Whether none of the threads has ended.
pub(crate) fn are_at_work(threads: &[JoinHandle<()>]) -> bool {
    !threads.iter().any(JoinHandle::is_finished)
}

/// Waits for the threads to end, and says which of them had panicked.
pub(crate) fn join(threads: impl Iterator<Item = JoinHandle<()>>) {
    for thread in threads {
        let name = thread.thread().name().unwrap_or_default().to_owned();
        if thread.join().is_err() {
            tracing::error!(thread = name, "receiver thread panicked");
        }
    }
}

impl<W> Threads<W> {
    fn ask(&self, grace: Duration) {
        self.stop.ask(grace);
        self.inboxes.iter().for_each(|inbox| inbox.wake());
    }
}

impl<W: Work> Driver for Threads<W> {
    fn name(&self) -> &'static str {
        W::NAME
    }

    fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    fn is_whole(&self) -> bool {
        are_at_work(&self.threads)
    }

    fn stop(mut self: Box<Self>, grace: Duration) {
        self.ask(grace);
        join(self.threads.drain(..));
    }
}

impl<W> Drop for Threads<W> {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.ask(Duration::ZERO);
        }
    }
}

impl<W> fmt::Debug for Threads<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Idle;

    impl Work for Idle {
        const NAME: &'static str = "idle";

        fn begin(_post: Post) -> io::Result<Self> {
            Ok(Self)
        }

        fn run(self) {}
    }

    fn with(threads: Vec<JoinHandle<()>>) -> Threads<Idle> {
        let stop = Arc::new(Stop(AtomicU64::new(Stop::NOT_ASKED)));
        let (endpoints, inboxes) = (Endpoints::default(), Vec::new());
        Threads { endpoints, stop, inboxes, threads, work: PhantomData }
    }

    #[test]
    fn a_driver_that_lost_a_thread_is_not_whole() {
        let (go_on, wait) = mpsc::channel::<()>();
        let (end, panic) = mpsc::channel::<()>();
        let driver = with(vec![
            thread::spawn(move || wait.recv().unwrap_or_default()),
            thread::spawn(move || panic.recv().expect("this thread is meant to panic")),
        ]);
        assert!(driver.is_whole());
        drop(end);
        while driver.is_whole() {
            thread::park_timeout(Duration::from_millis(1));
        }
        drop(go_on);
        Box::new(driver).stop(Duration::ZERO);
    }
}
