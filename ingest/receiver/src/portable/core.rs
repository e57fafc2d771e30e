//! One core: its state, and the life of a request from a complete body to its answer. Runs on one thread, so its cells
//! need no lock; no borrow of them outlives a call.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use store_model::SymbolCache;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::{pin, select, task, time};

use super::Stop;
use super::connection::{self, Gone};
use crate::answer::{Answer, Reason, Refusal};
use crate::budget::Permit;
use crate::clock;
use crate::intake::{Done, Outcome};
use crate::lane::{Answers, Berth, Lane, Wake};
use crate::listen::Listeners;
use crate::metrics::{Meters, Protocol};
use crate::pool::Pool;
use crate::request::{Fields, Head, Tenants};
use crate::shared::{Opening, Shared};

/// One receiving thread's state.
pub(crate) struct Core {
    index: usize,
    pub(crate) shared: Arc<Shared>,
    symbols: RefCell<SymbolCache>,
    pub(crate) tenants: RefCell<Tenants>,
    pool: Rc<Pool>,
    /// Until the thread ends.
    lane: RefCell<Option<Box<dyn Lane>>>,
    alarm: Arc<Alarm>,
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

/// Wakes the task that gives the lane its turns.
#[derive(Default)]
struct Alarm(Notify);

impl Wake for Alarm {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Serves until `stop` says otherwise or its sender is gone.
pub(crate) async fn run(
    core: Rc<Core>,
    listeners: Listeners,
    mut stop: watch::Receiver<Stop>,
    ready: SyncSender<io::Result<()>>,
) {
    let listeners = match register(listeners) {
        Ok(listeners) => listeners,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let (alive, mut all_gone) = mpsc::channel::<Gone>(1);
    for (port, listener) in listeners {
        let (core, stop, alive) = (Rc::clone(&core), stop.clone(), alive.clone());
        task::spawn_local(connection::accept(core, listener, port, stop, alive));
    }
    drop(alive);
    if let Some(orphaned) = core.orphaned.take() {
        task::spawn_local(answer_orphans(Rc::clone(&core), orphaned));
    }
    let turns = task::spawn_local(give_turns(Rc::clone(&core)));
    drop(ready.send(Ok(())));
    let grace = match stop.wait_for(Option::is_some).await {
        Ok(asked) => asked.unwrap_or_default(),
        Err(_dropped) => std::time::Duration::ZERO,
    };
    // Every accept loop and connection holds a sender of this channel; it ends with the last of them.
    if time::timeout(grace, all_gone.recv()).await.is_err() {
        tracing::warn!(core = core.index, "receiver stopped with requests unanswered");
    }
    turns.abort();
    if let Some(lane) = core.lane.take() {
        lane.finish();
    }
}

/// As the loops of the other drivers do once a turn.
async fn give_turns(core: Rc<Core>) {
    let mut answers = Answers::default();
    loop {
        let now = clock::monotonic();
        let rest = match &mut *core.lane.borrow_mut() {
            Some(lane) => {
                let write = lane.turn(now, &mut answers);
                debug_assert!(write.is_none(), "this driver was not to be asked for writes");
                lane.rest(now)
            }
            None => return,
        };
        answers.deliver();
        match rest {
            Some(rest) => drop(time::timeout(rest, core.alarm.0.notified()).await),
            None => core.alarm.0.notified().await,
        }
    }
}

fn register(listeners: Listeners) -> io::Result<Vec<(Protocol, TcpListener)>> {
    let register = |(port, listener)| Ok((port, TcpListener::from_std(listener)?));
    listeners.into_iter().map(register).collect()
}

impl Core {
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        // Unbounded in form only: what is in it holds permits, and those are bounded.
        let (orphans, orphaned) = mpsc::unbounded_channel();
        let symbols = RefCell::new(shared.intake.symbols().cache());
        let alarm = Arc::new(Alarm::default());
        let wake: Arc<dyn Wake> = Arc::<Alarm>::clone(&alarm);
        let lane = Arc::clone(&shared.intake).lane(Berth { core: index, wake, writes: false });
        let lane = RefCell::new(Some(lane));
        let (tenants, orphaned) = (RefCell::default(), RefCell::new(Some(orphaned)));
        let pool = Pool::new(shared.config.pooled_bytes());
        Rc::new(Self { index, shared, symbols, tenants, pool, lane, alarm, orphans, orphaned })
    }

    /// Where bodies lie.
    pub(crate) fn pool(&self) -> Rc<Pool> {
        Rc::clone(&self.pool)
    }

    pub(crate) fn meters(&self, protocol: Protocol) -> &Meters {
        self.shared.metrics.of(protocol)
    }

    /// What `parts` say that came to the port of `port`, and what is being spoken.
    pub(crate) fn fields(&self, port: Protocol, parts: &http::request::Parts) -> (Protocol, Fields) {
        let mut tenants = self.tenants.borrow_mut();
        let mut fields = Fields::default();
        fields.add(b":method", parts.method.as_str().as_bytes(), &mut tenants);
        fields.add(b":path", parts.uri.path().as_bytes(), &mut tenants);
        for (name, value) in &parts.headers {
            fields.add(name.as_str().as_bytes(), value.as_bytes(), &mut tenants);
        }
        (fields.protocol(port, parts.version == http::Version::HTTP_2), fields)
    }

    /// Reads a body to its end, giving each piece to `push`.
    pub(crate) async fn read(
        &self,
        protocol: Protocol,
        body: &mut Incoming,
        mut push: impl FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let period = self.shared.config.body_timeout;
        let advance_min = self.shared.body_advance_min();
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
                    self.meters(protocol).received(data.len() as u64);
                    push(data)?;
                }
            }
        }
    }

    /// Takes a complete body through to its answer, and counts it.
    pub(crate) async fn take(&self, protocol: Protocol, body: (Head, Bytes, Permit)) -> Answer {
        let opening =
            self.shared.open(self.index, protocol, body, &mut self.symbols.borrow_mut(), &self.pool);
        let (received, because, permit) = match opening {
            Opening::Answered(answer) => return self.answered(protocol, answer, 0),
            Opening::Store { received, because, permit } => (received, because, permit),
        };
        let (done, outcome) = Done::awaited();
        let (spans, refused) = (received.spans.len() as u64, received.refused);
        let submitted = Submitted { outcome, protocol, spans, refused, because, _permit: permit };
        if let Some(lane) = &mut *self.lane.borrow_mut() {
            self.shared.submit(self.index, &mut **lane, received, done);
        }
        self.alarm.wake();
        Waiting { core: self, submitted: Some(submitted) }.answer().await
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
