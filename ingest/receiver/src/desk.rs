//! One receiving thread's side of its requests, connections aside: bodies are opened here, handed to the intake, and
//! their answers come back here. Sans-I/O: it reads no socket and no clock of its own.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store_model::{Monotonic, SymbolCache, UnixNanos};

use crate::answer::{Answer, Form, Refusal};
use crate::budget::Permit;
use crate::http2::StreamId;
use crate::inbox::{Inbox, Ticket};
use crate::intake::{Done, Outcome};
use crate::lane::{Answers, Berth, Lane, Wake, Write};
use crate::metrics::Protocol;
use crate::pool::Pool;
use crate::request::{Head, Tenants};
use crate::shared::{Opening, Shared};
use crate::slab::{Key, Slab};

/// Where an answer goes, and its form there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Return {
    pub(crate) connection: Key,
    pub(crate) stream: StreamId,
    pub(crate) protocol: Protocol,
    pub(crate) form: Form,
}

/// A request that the intake has. Its memory stays counted until it is answered, even if its sender is gone: else a
/// sender that leaves early would hold more than the budget.
struct Submitted {
    back: Return,
    spans: u64,
    refused: u32,
    because: &'static str,
    _permit: Permit,
}

/// One receiving thread's state.
pub(crate) struct Desk {
    core: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) tenants: Tenants,
    symbols: SymbolCache,
    submitted: Slab<Submitted>,
    /// Where bodies lie.
    pub(crate) pool: Rc<Pool>,
    lane: Box<dyn Lane>,
    /// What the lane answered in this turn. Empty between two turns.
    answers: Answers,
    /// Answers that were known while a connection was still reading. Empty between two calls of it.
    pub(crate) due: Vec<(Return, Answer)>,
    /// Where a connection with TLS says what is to be sealed. Empty between two calls of it.
    pub(crate) text: Vec<u8>,
    date: (u64, String),
}

impl Desk {
    /// On its thread. `writes` says whether the driver does the lane's writes.
    pub(crate) fn new(core: usize, shared: Arc<Shared>, inbox: Arc<Inbox>, writes: bool) -> Self {
        let symbols = shared.intake.symbols().cache();
        let wake: Arc<dyn Wake> = Arc::<Inbox>::clone(&inbox);
        let lane = Arc::clone(&shared.intake).lane(Berth { core, wake, writes });
        let (tenants, submitted, due) = (Tenants::default(), Slab::default(), Vec::new());
        let pool = Pool::new(shared.config.pooled_bytes());
        let (answers, text, date) = (Answers::default(), Vec::new(), (0, String::new()));
        Self { core, shared, inbox, tenants, symbols, submitted, pool, lane, answers, due, text, date }
    }

    /// Gives the lane its turn; what it wants written.
    pub(crate) fn turn(&mut self, now: Monotonic) -> Option<Write> {
        self.lane.turn(now, &mut self.answers)
    }

    /// What became of the lane's write.
    pub(crate) fn written(&mut self, result: io::Result<()>, now: Monotonic) {
        self.lane.written(result, now, &mut self.answers);
    }

    /// How long the lane can wait for its next turn.
    pub(crate) fn rest(&self, now: Monotonic) -> Option<Duration> {
        self.lane.rest(now)
    }

    /// The thread ends.
    pub(crate) fn finish(self) {
        self.lane.finish();
    }

    /// Moves every answer there is into `into`, which shall be empty.
    pub(crate) fn take_answers(&mut self, into: &mut Vec<(Ticket, Outcome)>) {
        self.inbox.take(into);
        for (done, outcome) in self.answers.drain() {
            match done.redeem() {
                Ok(ticket) => into.push((ticket, outcome)),
                Err(done) => done.send(outcome),
            }
        }
    }

    /// Takes a complete body through to its answer, or to the intake, whose answer comes with the inbox.
    pub(crate) fn take(&mut self, back: Return, body: (Head, Bytes, Permit)) -> Option<Answer> {
        let opening = self.shared.open(self.core, back.protocol, body, &mut self.symbols, &self.pool);
        let (received, because, permit) = match opening {
            Opening::Answered(answer) => return Some(self.counted(back.protocol, answer, 0)),
            Opening::Store { received, because, permit } => (received, because, permit),
        };
        let (spans, refused) = (received.spans.len() as u64, received.refused);
        let submitted = Submitted { back, spans, refused, because, _permit: permit };
        let ticket = Ticket(self.submitted.insert_with(|_| submitted).to_bits());
        let done = Done::to_inbox(Arc::clone(&self.inbox), ticket);
        self.shared.submit(self.core, &mut *self.lane, received, done);
        None
    }

    /// What `outcome` means for the request behind `ticket`.
    pub(crate) fn answered(&mut self, ticket: Ticket, outcome: Outcome) -> Option<(Return, Answer)> {
        let submitted = self.submitted.remove(Key::from_bits(ticket.0))?;
        let Submitted { back, spans, refused, because, _permit } = submitted;
        let answer = match Refusal::from_outcome(outcome) {
            None => self.counted(back.protocol, Answer::Accepted { refused, because }, spans),
            Some(refusal) => {
                let refusal = refusal.with_spans(spans + u64::from(refused));
                self.counted(back.protocol, Answer::Refused(refusal), 0)
            }
        };
        Some((back, answer))
    }

    /// Counts and keeps the refusal of a request that never became complete.
    pub(crate) fn refuse(&mut self, back: Return, refusal: Refusal) {
        let answer = self.counted(back.protocol, Answer::Refused(refusal), 0);
        self.due.push((back, answer));
    }

    /// Counts `answer` on its way out.
    pub(crate) fn counted(&self, protocol: Protocol, answer: Answer, spans: u64) -> Answer {
        self.shared.metrics.of(protocol).answered(&answer, spans);
        answer
    }

    /// Requests that wait for their answer.
    pub(crate) fn waiting(&self) -> usize {
        self.submitted.len()
    }

    /// Now in HTTP's words.
    pub(crate) fn date(&mut self) -> &str {
        let UnixNanos(nanos) = self.shared.intake.now();
        let seconds = nanos / 1_000_000_000;
        if self.date.0 != seconds || self.date.1.is_empty() {
            let now = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
            self.date = (seconds, httpdate::fmt_http_date(now));
        }
        &self.date.1
    }
}
