//! The floor on the house's own receiver: any of its drivers over an intake that counts requests and drops them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ingest_receiver::{
    Berth, Done, Driver, HandOver, Intake, Lane, Outcome, Received, ReceiverConfig, ReceiverMetrics, Tls,
};
use store_model::{Symbols, Tenant, UnixNanos};

use crate::clock;
use crate::error::Error;
use crate::sink::{Args, Dropped};

/// How long requests in flight may take when it is over.
const GRACE: Duration = Duration::from_secs(1);

/// Names that are interned: as many as the appliance's `max_names`.
const NAMES_MAX: usize = 100_000;

struct Drain {
    dropped: Arc<Dropped>,
    symbols: Symbols,
}

impl Drain {
    fn submit(&self, request: Received, done: Done) {
        self.dropped.requests.fetch_add(1, Ordering::Relaxed);
        self.dropped.bytes.fetch_add(request.stored().len() as u64, Ordering::Relaxed);
        self.dropped.spans.fetch_add(request.spans.len() as u64, Ordering::Relaxed);
        drop(request);
        done.send(Outcome::Stored);
    }
}

impl Intake for Drain {
    fn lane(self: Arc<Self>, _: Berth) -> Box<dyn Lane> {
        Box::new(HandOver(move |request, done| self.submit(request, done)))
    }

    fn refuse(&self, _tenant: &Tenant, _spans: u64) {
        self.dropped.unreadable.fetch_add(1, Ordering::Relaxed);
    }

    fn ready(&self) -> Result<(), Outcome> {
        Ok(())
    }

    fn now(&self) -> UnixNanos {
        UnixNanos(clock::unix_nanos())
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }
}

/// A receiver that drops; it serves until it is dropped itself.
pub(crate) struct Receiver {
    driver: Box<dyn Driver>,
}

impl Receiver {
    /// Starts the driver that `args` ask for.
    ///
    /// # Errors
    /// When it cannot run here or the port cannot be had.
    pub(crate) fn start(args: &Args, tls: Option<Arc<Tls>>, dropped: Arc<Dropped>) -> Result<Self, Error> {
        let config = ReceiverConfig {
            driver: args.driver.unwrap_or_default(),
            grpc: Some(args.listen),
            grpc_tls: tls,
            cores: args.threads,
            cpus: args.cpu.clone(),
            ..ReceiverConfig::default().without_ports()
        };
        let intake = Arc::new(Drain { dropped, symbols: Symbols::new(NAMES_MAX) });
        let started = ingest_receiver::start(&config, intake, Arc::new(ReceiverMetrics::default()))
            .map_err(|cause| Error::Stage { stage: "the receiver", cause: cause.to_string() })?;
        let driver = started.driver;
        eprintln!("{} serves: {}", driver.name(), started.because);
        Ok(Self { driver })
    }

    /// As the driver calls itself.
    pub(crate) fn name(&self) -> &'static str {
        self.driver.name()
    }

    /// Where it listens, port 0 resolved.
    #[cfg(test)]
    pub(crate) fn address(&self) -> Option<std::net::SocketAddr> {
        self.driver.endpoints().grpc
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        self.driver.stop(GRACE);
    }
}
