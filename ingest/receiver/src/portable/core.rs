//! One core: its state, and the life of a request from a complete body to its answer. Runs on one thread, so its cells
//! need no lock; no borrow of them outlives a call.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use store_model::SymbolCache;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::{pin, select, task, time};

use super::Stop;
use super::connection::{self, Gone};
use super::listen::Listeners;
use crate::answer::{Answer, Reason, Refusal};
use crate::budget::{Budget, Permit};
use crate::config::ReceiverConfig;
use crate::intake::{Done, Intake, Outcome};
use crate::metrics::{Meters, Protocol, ReceiverMetrics};
use crate::request::{self, Head, Opened};

/// A body must advance this much per second, or its sender is holding memory hostage.
const BODY_BYTES_PER_SECOND_MIN: u64 = 1 << 10;

/// What a request costs beside its body: its task and its stream. Counted too, or a sender could hold as many requests
/// without a body as it likes.
const REQUEST_BYTES: usize = 4 << 10;

/// What all cores share.
pub(crate) struct Shared {
    pub(crate) config: ReceiverConfig,
    pub(crate) intake: Arc<dyn Intake>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) metrics: Arc<ReceiverMetrics>,
    /// Open connections of all cores.
    pub(crate) connections: AtomicUsize,
}

/// One receiving thread's state.
pub(crate) struct Core {
    index: usize,
    pub(crate) shared: Arc<Shared>,
    symbols: RefCell<SymbolCache>,
    orphans: mpsc::UnboundedSender<Submitted>,
    orphaned: RefCell<Option<mpsc::UnboundedReceiver<Submitted>>>,
}

/// A request that the intake has and nobody has heard about yet. Its memory stays counted until it is answered, even if
/// its sender is gone: else a sender that leaves early would hold more than the budget.
struct Submitted {
    outcome: oneshot::Receiver<Outcome>,
    protocol: Protocol,
    spans: u64,
    refused: u32,
    because: &'static str,
    _permit: Permit,
}

/// Serves until `stop` says otherwise or its sender is gone.
pub(crate) async fn run(
    core: Rc<Core>,
    listeners: Listeners,
    mut stop: watch::Receiver<Stop>,
    ready: SyncSender<io::Result<()>>,
) {
    let (grpc, http) = match register(listeners) {
        Ok(listeners) => listeners,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let (alive, mut all_gone) = mpsc::channel::<Gone>(1);
    for (listener, protocol) in [(grpc, Protocol::Grpc), (http, Protocol::Http)] {
        if let Some(listener) = listener {
            task::spawn_local(connection::accept(
                Rc::clone(&core),
                listener,
                protocol,
                stop.clone(),
                alive.clone(),
            ));
        }
    }
    drop(alive);
    if let Some(orphaned) = core.orphaned.take() {
        task::spawn_local(answer_orphans(Rc::clone(&core), orphaned));
    }
    drop(ready.send(Ok(())));
    let grace = match stop.wait_for(Option::is_some).await {
        Ok(asked) => asked.unwrap_or_default(),
        Err(_dropped) => Duration::ZERO,
    };
    // Every accept loop and connection holds a sender of this channel; it ends with the last of them.
    if time::timeout(grace, all_gone.recv()).await.is_err() {
        tracing::warn!(core = core.index, "receiver stopped with requests unanswered");
    }
}

fn register(listeners: Listeners) -> io::Result<(Option<TcpListener>, Option<TcpListener>)> {
    let Listeners { grpc, http } = listeners;
    Ok((grpc.map(TcpListener::from_std).transpose()?, http.map(TcpListener::from_std).transpose()?))
}

impl Core {
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        // Unbounded in form only: what is in it holds permits, and those are bounded.
        let (orphans, orphaned) = mpsc::unbounded_channel();
        let symbols = RefCell::new(shared.intake.symbols().cache());
        Rc::new(Self { index, shared, symbols, orphans, orphaned: RefCell::new(Some(orphaned)) })
    }

    pub(crate) fn meters(&self, protocol: Protocol) -> &Meters {
        self.shared.metrics.of(protocol)
    }

    /// The permit of a request whose head was accepted.
    pub(crate) fn permit(&self) -> Result<Permit, Refusal> {
        let mut permit = self.shared.budget.permit();
        permit.grow(REQUEST_BYTES)?;
        Ok(permit)
    }

    /// Whether to read a body at all.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        let outcome = self.shared.intake.ready().err();
        outcome.and_then(Refusal::from_outcome).map_or(Ok(()), Err)
    }

    /// Reads a body to its end, giving each piece to `push`.
    pub(crate) async fn read(
        &self,
        protocol: Protocol,
        body: &mut Incoming,
        mut push: impl FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let period = self.shared.config.body_timeout;
        let advance_min = period.as_secs().max(1).saturating_mul(BODY_BYTES_PER_SECOND_MIN);
        let (mut received, mut due) = (0_u64, advance_min);
        let deadline = time::sleep(period);
        pin!(deadline);
        loop {
            let frame = select! {
                biased;
                frame = body.frame() => frame,
                () = &mut deadline => {
                    if received < due {
                        return Err(Refusal::new(Reason::Timeout, "the body came too slowly"));
                    }
                    due = received + advance_min;
                    deadline.set(time::sleep(period));
                    continue;
                }
            };
            match frame {
                None => return Ok(()),
                Some(Err(_reset)) => return Err(Refusal::new(Reason::Gone, "the body was cut off")),
                // Trailers of a request mean nothing to us.
                Some(Ok(frame)) => {
                    let Some(data) = frame.data_ref() else { continue };
                    received += data.len() as u64;
                    self.meters(protocol).received(data.len());
                    push(data)?;
                }
            }
        }
    }

    /// Takes a complete body through to its answer, and counts it.
    pub(crate) async fn take(&self, protocol: Protocol, head: Head, stored: Bytes, permit: Permit) -> Answer {
        let tenant = head.tenant.clone();
        match self.open(protocol, head, stored, permit) {
            Err(refusal) => {
                if refusal.spans > 0 {
                    self.shared.intake.refuse(&tenant, refusal.spans);
                }
                self.answered(protocol, Answer::Refused(refusal), 0)
            }
            Ok((Opened { received, because }, _permit)) if received.summaries.is_empty() => {
                if received.refused > 0 {
                    self.shared.intake.refuse(&tenant, u64::from(received.refused));
                }
                self.answered(protocol, Answer::Accepted { refused: received.refused, because }, 0)
            }
            Ok((Opened { received, because }, permit)) => {
                let (done, outcome) = Done::awaited();
                let (spans, refused) = (received.summaries.len() as u64, received.refused);
                let submitted = Submitted { outcome, protocol, spans, refused, because, _permit: permit };
                self.shared.intake.submit(self.index, received, done);
                Waiting { core: self, submitted: Some(submitted) }.answer().await
            }
        }
    }

    fn open(
        &self,
        protocol: Protocol,
        head: Head,
        stored: Bytes,
        mut permit: Permit,
    ) -> Result<(Opened, Permit), Refusal> {
        let Shared { config, intake, .. } = &*self.shared;
        let now = intake.now();
        let opening = || {
            let mut symbols = self.symbols.borrow_mut();
            request::open(head, stored, config.request_bytes_max, &mut permit, &mut symbols, now)
        };
        // The walk is the one place where a sender's bytes steer our code. A mistake there must cost one request, not
        // the core; nothing of it is half done, since it only fills values of its own.
        let opened = catch_unwind(AssertUnwindSafe(opening)).unwrap_or_else(|_panic| {
            tracing::error!(core = self.index, "a request body made the receiver panic");
            Err(Refusal::new(Reason::Internal, "the request could not be read"))
        })?;
        self.meters(protocol).opened(opened.received.body.len());
        Ok((opened, permit))
    }

    /// Counts `answer` on its way out.
    pub(crate) fn answered(&self, protocol: Protocol, answer: Answer, spans: u64) -> Answer {
        self.meters(protocol).answered(&answer, spans);
        answer
    }
}

impl Submitted {
    async fn answer(&mut self, core: &Core) -> Answer {
        let outcome = (&mut self.outcome).await.unwrap_or_else(|_dropped| Outcome::lost());
        match Refusal::from_outcome(outcome) {
            None => {
                let answer = Answer::Accepted { refused: self.refused, because: self.because };
                core.answered(self.protocol, answer, self.spans)
            }
            Some(refusal) => {
                let spans = self.spans + u64::from(self.refused);
                core.answered(self.protocol, Answer::Refused(refusal.with_spans(spans)), 0)
            }
        }
    }
}

/// Somebody waits for the answer; if they leave, [`answer_orphans`] waits on.
struct Waiting<'a> {
    core: &'a Core,
    submitted: Option<Submitted>,
}

impl Waiting<'_> {
    async fn answer(mut self) -> Answer {
        let submitted = self.submitted.as_mut().expect("it is only taken below and on drop");
        let answer = submitted.answer(self.core).await;
        self.submitted = None;
        answer
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(submitted) = self.submitted.take() {
            // Fails only when the core is gone, and its requests with it.
            drop(self.core.orphans.send(submitted));
        }
    }
}

/// One after the other is enough: the journal answers in order, and nobody reads these answers.
async fn answer_orphans(core: Rc<Core>, mut orphaned: mpsc::UnboundedReceiver<Submitted>) {
    while let Some(mut submitted) = orphaned.recv().await {
        let _unread = submitted.answer(&core).await;
    }
}
