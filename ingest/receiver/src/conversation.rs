//! One session without a socket, for the fuzz targets: bytes in, bytes out, and an intake that remembers nothing but sums.
//! Part of no product.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use store_model::{Monotonic, Symbols, Tenant, UnixNanos};

use crate::config::ReceiverConfig;
use crate::desk::Desk;
use crate::inbox::Inbox;
use crate::intake::{Done, Intake, Outcome, Received};
use crate::lane::{Berth, HandOver, Lane};
use crate::metrics::{Protocol, ReceiverMetrics};
use crate::session::{Session, Wish};
use crate::shared::Shared;
use crate::slab::Slab;

/// Takes everything, at once or when it is told to.
struct Sink {
    symbols: Symbols,
    spans: AtomicU64,
    holds: AtomicBool,
    held: Mutex<Vec<Done>>,
}

impl Sink {
    fn submit(&self, request: Received, done: Done) {
        let Received { body, spans, refused, .. } = &request;
        assert!(!spans.is_empty(), "a request without spans is answered before");
        assert!(spans.len() + *refused as usize <= body.len(), "each span has bytes");
        self.spans.fetch_add(spans.len() as u64, Ordering::Relaxed);
        if self.holds.load(Ordering::Relaxed) {
            self.held.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        } else {
            done.send(Outcome::Stored);
        }
    }
}

impl Intake for Sink {
    fn lane(self: Arc<Self>, _: Berth) -> Box<dyn Lane> {
        Box::new(HandOver(move |request, done| self.submit(request, done)))
    }

    fn refuse(&self, _: &Tenant, _: u64) {}

    fn ready(&self) -> Result<(), Outcome> {
        Ok(())
    }

    fn now(&self) -> UnixNanos {
        UnixNanos(1_700_000_000_000_000_000)
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }
}

/// A session with everything around it.
pub struct Conversation {
    session: Session,
    desk: Desk,
    intake: Arc<Sink>,
    inflight_bytes_max: u64,
    now: Monotonic,
    /// What was said and not taken yet.
    pub out: Vec<u8>,
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Conversation {
    /// A new one, with little memory so that its end is met. `None` if the host has no more descriptors.
    #[must_use]
    pub fn new(request_bytes_max: usize) -> Option<Self> {
        let config = ReceiverConfig {
            request_bytes_max,
            inflight_bytes_max: 2 * request_bytes_max,
            ..Default::default()
        };
        let (spans, holds, held) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
        let intake = Arc::new(Sink { symbols: Symbols::new(100), spans, holds, held });
        let seam: Arc<dyn Intake> = Arc::<Sink>::clone(&intake);
        let shared = Shared::new(&config, seam, Arc::new(ReceiverMetrics::default()));
        let desk = Desk::new(0, shared, Arc::new(Inbox::new().ok()?), false);
        let key = Slab::default().insert_with(|_| ());
        let now = Monotonic(1);
        let session = Session::new(key, Protocol::Grpc, now);
        let inflight_bytes_max = 2 * request_bytes_max as u64;
        Some(Self { session, desk, intake, inflight_bytes_max, now, out: Vec::new() })
    }

    /// Bytes from the peer. False once the session wants no more, or an answer first.
    pub fn hear(&mut self, bytes: &[u8]) -> bool {
        if self.session.wish() == Wish::Go {
            self.session.receive(bytes, self.now, &mut self.desk, &mut self.out);
            self.take_answers();
        }
        assert!(self.in_flight() <= self.inflight_bytes_max, "memory is bounded");
        self.session.wish() == Wish::Go
    }

    fn take_answers(&mut self) {
        let mut answers = Vec::new();
        loop {
            self.desk.inbox.take(&mut answers);
            if answers.is_empty() {
                return;
            }
            for (ticket, outcome) in answers.drain(..) {
                let Some((back, answer)) = self.desk.answered(ticket, outcome) else { continue };
                self.session.answer(back, answer, self.now, &mut self.desk, &mut self.out);
            }
        }
    }

    /// From now on requests wait for [`Self::release`].
    pub fn hold(&self) {
        self.intake.holds.store(true, Ordering::Relaxed);
    }

    /// Answers what is held: it is stored, or lost.
    pub fn release(&mut self, stored: bool) {
        self.intake.holds.store(false, Ordering::Relaxed);
        let held = std::mem::take(&mut *self.intake.held.lock().unwrap_or_else(PoisonError::into_inner));
        let outcome = if stored { Outcome::Stored } else { Outcome::lost() };
        Done::send_all(held, &outcome);
        self.take_answers();
    }

    /// Time passes, and the deadlines are looked at.
    pub fn wait(&mut self, span: Duration) {
        self.now = self.now.plus(span);
        self.session.tick(!self.out.is_empty(), self.now, &mut self.desk, &mut self.out);
    }

    /// The peer is asked to go.
    pub fn ask_to_go(&mut self) {
        self.session.ask_to_go(self.now, &self.desk, &mut self.out);
    }

    /// Memory of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.desk.shared.metrics.snapshot().inflight_bytes
    }

    /// Whether the peer was cut off. An answer that was still due then is lost, and which ones were due is timing.
    #[must_use]
    pub fn was_cut(&self) -> bool {
        self.desk.shared.metrics.snapshot().grpc.connections_cut.iter().any(|(_, count)| *count > 0)
    }

    /// The connection is gone and everything answered. Spans taken; all memory must have come back.
    pub fn end(mut self) -> u64 {
        self.session.die(&self.desk);
        self.release(true);
        let Self { session, desk, intake, .. } = self;
        drop(session);
        let in_flight = desk.shared.metrics.snapshot().inflight_bytes;
        assert_eq!(in_flight, 0, "all memory comes back");
        intake.spans.load(Ordering::Relaxed)
    }
}
