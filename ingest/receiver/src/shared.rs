//! What all receiving threads of a driver share, and the steps of a request that are the same in every driver: admit,
//! open, hand on. Knows no protocol and no socket.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use store_model::SymbolCache;

use crate::answer::{Answer, Reason, Refusal};
use crate::budget::{Budget, Permit};
use crate::config::ReceiverConfig;
use crate::intake::{Done, Intake, Received};
use crate::lane::Lane;
use crate::metrics::{Protocol, ReceiverMetrics};
use crate::pool::Pool;
use crate::request::{self, Head, Opened};
use crate::tls::Tls;

/// A body must advance this much per second, or its sender is holding memory hostage.
const BODY_BYTES_PER_SECOND_MIN: u64 = 1 << 10;

/// What a request costs beside its body: its task and its stream. Counted too, or a sender could hold as many requests
/// without a body as it likes.
pub(crate) const REQUEST_BYTES: usize = 4 << 10;

/// What all cores share.
pub(crate) struct Shared {
    pub(crate) config: ReceiverConfig,
    pub(crate) intake: Arc<dyn Intake>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) metrics: Arc<ReceiverMetrics>,
    /// Open connections of all cores.
    connections: AtomicUsize,
}

/// What became of a complete body.
pub(crate) enum Opening {
    /// There is nothing to store: the answer is known.
    Answered(Answer),
    /// It is for the intake, and these numbers are for the answer.
    Store { received: Received, because: &'static str, permit: Permit },
}

impl Shared {
    pub(crate) fn new(
        config: &ReceiverConfig,
        intake: Arc<dyn Intake>,
        metrics: Arc<ReceiverMetrics>,
    ) -> Arc<Self> {
        let budget = Budget::new(config.inflight_bytes_max, Arc::clone(&metrics));
        Arc::new(Self { config: config.clone(), intake, budget, metrics, connections: AtomicUsize::new(0) })
    }

    /// Whether to read the body of an accepted head at all, and the permit for its memory.
    pub(crate) fn admit(&self) -> Result<Permit, Refusal> {
        if let Some(refusal) = self.intake.ready().err().and_then(Refusal::from_outcome) {
            return Err(refusal);
        }
        let mut permit = self.budget.permit();
        permit.grow(REQUEST_BYTES)?;
        Ok(permit)
    }

    /// What connections to the port of `protocol` are secured with, if they are.
    pub(crate) fn tls(&self, protocol: Protocol) -> Option<&Arc<Tls>> {
        match protocol {
            Protocol::Grpc => self.config.grpc_tls.as_ref(),
            Protocol::Http => self.config.http_tls.as_ref(),
            Protocol::Zipkin => self.config.zipkin_tls.as_ref(),
            Protocol::JaegerGrpc => self.config.jaeger_grpc_tls.as_ref(),
            Protocol::JaegerHttp => self.config.jaeger_http_tls.as_ref(),
        }
    }

    /// How far a body must get in each `body_timeout`.
    pub(crate) fn body_advance_min(&self) -> u64 {
        self.config.body_timeout.as_secs().max(1).saturating_mul(BODY_BYTES_PER_SECOND_MIN)
    }

    /// Decompresses and walks a complete body.
    pub(crate) fn open(
        &self,
        core: usize,
        protocol: Protocol,
        (head, stored, permit): (Head, Bytes, Permit),
        symbols: &mut SymbolCache,
        pool: &Pool,
    ) -> Opening {
        let tenant = head.tenant.clone();
        match self.walk(core, protocol, (head, stored, permit), symbols, pool) {
            Err(refusal) => {
                if refusal.spans > 0 {
                    self.intake.refuse(&tenant, refusal.spans);
                }
                Opening::Answered(Answer::Refused(refusal))
            }
            Ok((Opened { received, because }, _permit)) if received.spans.is_empty() => {
                if received.refused > 0 {
                    self.intake.refuse(&tenant, u64::from(received.refused));
                }
                Opening::Answered(Answer::Accepted { refused: received.refused, because })
            }
            Ok((Opened { received, because }, permit)) => Opening::Store { received, because, permit },
        }
    }

    fn walk(
        &self,
        core: usize,
        protocol: Protocol,
        (head, stored, mut permit): (Head, Bytes, Permit),
        symbols: &mut SymbolCache,
        pool: &Pool,
    ) -> Result<(Opened, Permit), Refusal> {
        let now = self.intake.now();
        let bytes_max = self.config.request_bytes_max;
        let opening = || request::open(head, stored, bytes_max, &mut permit, symbols, pool, now);
        // The walk is the one place where a sender's bytes steer our code. A mistake there must cost one request, not
        // the core; nothing of it is half done, since it only fills values of its own.
        let opened = catch_unwind(AssertUnwindSafe(opening)).unwrap_or_else(|_panic| {
            tracing::error!(core, "a request body made the receiver panic");
            Err(Refusal::new(Reason::Internal, "the request could not be read"))
        })?;
        self.metrics.of(protocol).opened(opened.received.body.len());
        Ok((opened, permit))
    }

    /// Hands a request to the intake. Should that panic, `done` is dropped on the way, and the sender hears that.
    pub(crate) fn submit(&self, core: usize, lane: &mut dyn Lane, received: Received, done: Done) {
        let submit = || lane.submit(received, done);
        if catch_unwind(AssertUnwindSafe(submit)).is_err() {
            tracing::error!(core, "the intake panicked over a request");
        }
    }
}

/// One of `max_connections`, given back when dropped.
pub(crate) struct Slot {
    shared: Arc<Shared>,
    protocol: Protocol,
}

impl Slot {
    /// For a connection to the port of `protocol`; `None` when all are taken.
    pub(crate) fn take(shared: &Arc<Shared>, protocol: Protocol) -> Option<Self> {
        // Relaxed: the number guards no other memory.
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= shared.config.max_connections {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            shared.metrics.of(protocol).connection_refused();
            return None;
        }
        shared.metrics.of(protocol).connection_opened();
        Some(Self { shared: Arc::clone(shared), protocol })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.of(self.protocol).connection_closed();
    }
}

/// Whether accepting failed for the connection alone: its peer gave up while it waited, and there is no reason to pause.
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
