//! One thread of the generator: its connections, their requests in flight, and the tally of what became of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::iter;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until};

use crate::answer::Answer;
use crate::clock;
use crate::error::Error;
use crate::latency::{Latencies, Schedule};
use crate::ledger::{Delivery, Notes};
use crate::plan::Plan;
use crate::random::mix;
use crate::sender::{Protocol, Sender, Target};
use crate::supply::{Source, Supply};

/// Requests of late spans that may wait in one thread; beyond, new groups wait for a place.
const LATE_MAX: u32 = 4_096;

/// Connections that one thread makes at once: each costs the receiver time, with TLS much, and none may run out of it.
const CONNECTING_MAX: usize = 64;

/// After a failure a slot pauses this long, twice as long each time.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// What all threads of a run share.
pub(crate) struct Run {
    pub(crate) plan: Arc<Plan>,
    pub(crate) source: Source,
    pub(crate) target: Target,
    pub(crate) schedule: Schedule,
    pub(crate) in_flight: InFlight,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) group_limit: u64,
    pub(crate) late_by: Duration,
    pub(crate) duplicates: f64,
    pub(crate) retry: bool,
    pub(crate) timeout: Duration,
    /// How long to keep trying to connect, before the start and with `retry` after the end.
    pub(crate) patience: Duration,
    pub(crate) wants_notes: bool,
    pub(crate) next_group: AtomicU64,
    /// For progress: spans acknowledged so far.
    pub(crate) acknowledged: AtomicU64,
    pub(crate) ready: Barrier,
    pub(crate) start: OnceLock<Instant>,
}

/// How many requests are under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InFlight {
    /// So many on each connection.
    EachConnection(u32),
    /// So many in all; each request takes the next connection in turn.
    Together(u32),
}

/// What became of the requests of one thread, or of all.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) spans_sent: u64,
    pub(crate) requests_acknowledged: u64,
    pub(crate) spans_acknowledged: u64,
    pub(crate) spans_rejected: u64,
    pub(crate) requests_refused: u64,
    pub(crate) spans_refused: u64,
    pub(crate) requests_failed: u64,
    pub(crate) spans_failed: u64,
    pub(crate) attempts_repeated: u64,
    pub(crate) hints_seen: u64,
    pub(crate) requests_duplicated: u64,
    pub(crate) requests_late: u64,
    pub(crate) body_bytes: u64,
    /// Status or kind of failure, and how often.
    pub(crate) reasons: BTreeMap<String, u64>,
    pub(crate) latency: Option<Latencies>,
    /// Of requests that were due after the warm-up.
    pub(crate) steady_latency: Option<Latencies>,
    pub(crate) service_time: Option<Latencies>,
    pub(crate) notes: Notes,
}

/// Reasons beyond this many are counted together: their texts come from outside.
const REASONS_MAX: usize = 32;

impl Tally {
    fn new() -> Self {
        let latencies = || Some(Latencies::new());
        Self {
            latency: latencies(),
            steady_latency: latencies(),
            service_time: latencies(),
            ..Self::default()
        }
    }

    fn reason(&mut self, text: String) {
        let known = self.reasons.contains_key(&text);
        let text = if known || self.reasons.len() < REASONS_MAX { text } else { "others".to_owned() };
        *self.reasons.entry(text).or_default() += 1;
    }

    /// Adds what another thread counted.
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            spans_sent,
            requests_acknowledged,
            spans_acknowledged,
            spans_rejected,
            requests_refused,
            spans_refused,
            requests_failed,
            spans_failed,
            attempts_repeated,
            hints_seen,
            requests_duplicated,
            requests_late,
            body_bytes,
            reasons,
            latency,
            steady_latency,
            service_time,
            notes,
        } = other;
        self.spans_sent += spans_sent;
        self.requests_acknowledged += requests_acknowledged;
        self.spans_acknowledged += spans_acknowledged;
        self.spans_rejected += spans_rejected;
        self.requests_refused += requests_refused;
        self.spans_refused += spans_refused;
        self.requests_failed += requests_failed;
        self.spans_failed += spans_failed;
        self.attempts_repeated += attempts_repeated;
        self.hints_seen += hints_seen;
        self.requests_duplicated += requests_duplicated;
        self.requests_late += requests_late;
        self.body_bytes += body_bytes;
        for (reason, count) in reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        merge(&mut self.latency, latency);
        merge(&mut self.steady_latency, steady_latency);
        merge(&mut self.service_time, service_time);
        self.notes.append(notes);
    }
}

fn merge(mine: &mut Option<Latencies>, theirs: Option<Latencies>) {
    match (mine.as_mut(), theirs) {
        (Some(mine), Some(theirs)) => mine.add(&theirs),
        (None, theirs) => *mine = theirs,
        (Some(_), None) => {}
    }
}

/// One thread's part of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) connections: usize,
    /// Of [`InFlight::Together`].
    pub(crate) in_flight: usize,
    /// The processor to stay on.
    pub(crate) cpu: Option<usize>,
}

/// Runs one thread of the generator. Meets the others twice at `run.ready`: when connected, and when the start is set.
///
/// # Errors
/// When it cannot connect at first.
pub(crate) fn work(run: &Arc<Run>, part: Part) -> Result<Tally, Error> {
    let prepared = prepare(run, part);
    run.ready.wait();
    run.ready.wait();
    let (runtime, local, worker) = prepared?;
    local.block_on(&runtime, Rc::clone(&worker).serve());
    drop(local);
    drop(runtime);
    Ok(worker.tally.take())
}

type Prepared = (tokio::runtime::Runtime, LocalSet, Rc<Worker>);

fn prepare(run: &Arc<Run>, part: Part) -> Result<Prepared, Error> {
    if let Some(cpu) = part.cpu {
        pin(cpu)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "start a runtime", source })?;
    // HTTP/1.1 has one request in flight a connection, so more in flight on each means more connections.
    let (per_connection, slots) = match (run.in_flight, run.target.protocol) {
        (InFlight::EachConnection(each), Protocol::Http) => (each as usize, Slots::OwnConnection(1)),
        (InFlight::EachConnection(each), Protocol::Grpc) => (1, Slots::OwnConnection(each as usize)),
        (InFlight::Together(_), _) => (1, Slots::ConnectionsInTurn(part.in_flight)),
    };
    let senders = (0..part.connections * per_connection)
        .map(|_| Sender::new(run.target.clone()).map(Rc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let worker = Rc::new(Worker {
        supply: RefCell::new(Supply::new(Arc::clone(&run.plan), run.source.clone())),
        run: Arc::clone(run),
        senders,
        slots,
        turn: Cell::new(0),
        tally: RefCell::new(Tally::new()),
        late_places: Arc::new(Semaphore::new(LATE_MAX as usize)),
    });
    let local = LocalSet::new();
    local.block_on(&runtime, worker.connect())?;
    Ok((runtime, local, worker))
}

/// Pins this thread to `cpu`.
pub(crate) fn pin(cpu: usize) -> Result<(), Error> {
    let mut set = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::Options(format!("there is no processor {cpu}")));
    }
    set.set(cpu);
    sched_setaffinity(None, &set)
        .map_err(|errno| Error::System { what: "pin a thread to its processor", source: errno.into() })
}

struct Worker {
    run: Arc<Run>,
    supply: RefCell<Supply>,
    senders: Vec<Rc<Sender>>,
    slots: Slots,
    /// Whose turn it is with [`Slots::ConnectionsInTurn`].
    turn: Cell<usize>,
    tally: RefCell<Tally>,
    late_places: Arc<Semaphore>,
}

/// Places for requests under way in one thread.
#[derive(Clone, Copy)]
enum Slots {
    /// So many that belong to each connection.
    OwnConnection(usize),
    /// So many that take one connection after the other.
    ConnectionsInTurn(usize),
}

/// How one body ended.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ended {
    acknowledged: bool,
}

impl Worker {
    async fn connect(&self) -> Result<(), Error> {
        let give_up = clock::now() + self.run.patience;
        let mut under_way = JoinSet::new();
        for sender in &self.senders {
            if under_way.len() >= CONNECTING_MAX {
                connected(under_way.join_next().await)?;
            }
            under_way.spawn_local(until_connected(Rc::clone(sender), give_up));
        }
        while !under_way.is_empty() {
            connected(under_way.join_next().await)?;
        }
        Ok(())
    }

    async fn serve(self: Rc<Self>) {
        let mut slots = JoinSet::new();
        match self.slots {
            Slots::OwnConnection(each) => {
                for sender in self.senders.iter().flat_map(|sender| iter::repeat_n(sender, each)) {
                    slots.spawn_local(Rc::clone(&self).serve_slot(Some(Rc::clone(sender))));
                }
            }
            Slots::ConnectionsInTurn(count) => {
                for _ in 0..count {
                    slots.spawn_local(Rc::clone(&self).serve_slot(None));
                }
            }
        }
        while slots.join_next().await.is_some() {}
        // All late places are free again once the last late request has ended.
        drop(self.late_places.acquire_many(LATE_MAX).await);
    }

    fn next_sender(&self) -> Rc<Sender> {
        let turn = self.turn.get();
        self.turn.set((turn + 1) % self.senders.len());
        Rc::clone(&self.senders[turn])
    }

    fn started(&self) -> Instant {
        *self.run.start.get_or_init(clock::now)
    }

    /// Sends group after group until the run is over, over its own connection or over whichever has its turn.
    async fn serve_slot(self: Rc<Self>, own: Option<Rc<Sender>>) {
        let end = self.started() + self.run.duration;
        let requests = self.run.plan.bodies_per_group() - usize::from(self.run.plan.has_late());
        while clock::now() < end {
            let number = self.run.next_group.fetch_add(1, Ordering::Relaxed);
            if number >= self.run.group_limit {
                return;
            }
            let first = number * requests as u64;
            if self.due(first).is_some_and(|due| due >= end) {
                return;
            }
            let sender = own.as_ref().map_or_else(|| self.next_sender(), Rc::clone);
            Rc::clone(&self).deliver(&sender, number, requests).await;
        }
    }

    fn due(&self, request: u64) -> Option<Instant> {
        self.run.schedule.due(request).map(|after| self.started() + after)
    }

    async fn deliver(self: Rc<Self>, sender: &Rc<Sender>, number: u64, requests: usize) {
        let bodies = self.run.plan.bodies_per_group();
        let mut delivery = None;
        for body in 0..requests {
            let due = self.due(number * requests as u64 + body as u64);
            if let Some(due) = due {
                sleep_until(due.into()).await;
            }
            // The moment of the whole group is that of its first request.
            let delivery = delivery.get_or_insert_with(|| {
                let (group, base_unix_nanos) = self.supply.borrow().moment(number, clock::unix_nanos());
                Delivery {
                    group,
                    base_unix_nanos,
                    sent: vec![false; bodies],
                    acknowledged: vec![false; bodies],
                }
            });
            self.deliver_body(sender, delivery, body, due).await;
        }
        let Some(mut delivery) = delivery else { return };
        let late = requests;
        if !self.run.plan.has_late() || self.run.plan.group(delivery.group).bodies[late].spans.is_empty() {
            return self.note(&delivery);
        }
        let Ok(place) = Arc::clone(&self.late_places).acquire_owned().await else { return };
        let sender = Rc::clone(sender);
        tokio::task::spawn_local(async move {
            let due = clock::now() + self.run.late_by;
            sleep_until(due.into()).await;
            self.deliver_body(&sender, &mut delivery, late, Some(due)).await;
            self.tally.borrow_mut().requests_late += 1;
            self.note(&delivery);
            drop::<OwnedSemaphorePermit>(place);
        });
    }

    fn note(&self, delivery: &Delivery) {
        if self.run.wants_notes {
            self.tally.borrow_mut().notes.push(delivery);
        }
    }

    async fn deliver_body(
        &self,
        sender: &Sender,
        delivery: &mut Delivery,
        body: usize,
        due: Option<Instant>,
    ) {
        let (group, base) = (delivery.group, delivery.base_unix_nanos);
        let spans = u64::from(self.run.plan.group(group).bodies[body].span_count());
        if spans == 0 {
            return;
        }
        let bytes = match self.supply.borrow_mut().body(group, body, base) {
            Ok(bytes) => bytes,
            Err(error) => return self.tally.borrow_mut().reason(error.to_string()),
        };
        delivery.sent[body] = true;
        delivery.acknowledged[body] = self.send(sender, &bytes, spans, due).await.acknowledged;
        if self.is_duplicated(group, body) {
            self.tally.borrow_mut().requests_duplicated += 1;
            let again = self.send(sender, &bytes, spans, None).await;
            delivery.acknowledged[body] |= again.acknowledged;
        }
    }

    fn is_duplicated(&self, group: u64, body: usize) -> bool {
        let draw = mix(self.run.plan.options.seed ^ mix(group.wrapping_mul(256).wrapping_add(body as u64)));
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let unit = (draw >> 11) as f64 / (1u64 << 53) as f64;
        unit < self.run.duplicates
    }

    /// Sends one body, again and again if it may be repeated and the run wants that.
    async fn send(&self, sender: &Sender, body: &Bytes, spans: u64, due: Option<Instant>) -> Ended {
        let give_up = self.started() + self.run.duration + self.run.patience;
        let mut pause = PAUSE_FIRST;
        self.tally.borrow_mut().spans_sent += spans;
        loop {
            let steady_from = self.started() + self.run.warm_up;
            let attempt =
                Attempt { spans, bytes: body.len() as u64, due, started: clock::now(), steady_from };
            let answer = sender.export(body.clone(), self.run.timeout).await;
            let may_repeat = self.run.retry && clock::now() < give_up;
            let next = self.tally.borrow_mut().judge(&attempt, answer, may_repeat);
            match next {
                Next::Acknowledged { whole } => {
                    self.run.acknowledged.fetch_add(spans, Ordering::Relaxed);
                    return Ended { acknowledged: whole };
                }
                Next::Refused => return Ended { acknowledged: false },
                Next::Failed => {
                    // Nobody there: without a pause a slot would burn through its groups.
                    sleep(pause * 5).await;
                    return Ended { acknowledged: false };
                }
                Next::Repeat { after } => sleep(after.unwrap_or(pause)).await,
            }
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }
}

async fn until_connected(sender: Rc<Sender>, give_up: Instant) -> Result<(), Error> {
    while let Err(error) = sender.connect().await {
        if clock::now() > give_up {
            return Err(error);
        }
        sleep(PAUSE_FIRST * 5).await;
    }
    Ok(())
}

fn connected(result: Option<Result<Result<(), Error>, JoinError>>) -> Result<(), Error> {
    result.unwrap_or(Ok(Ok(()))).unwrap_or(Err(Error::ThreadLost))
}

/// One sending of a request.
struct Attempt {
    spans: u64,
    bytes: u64,
    due: Option<Instant>,
    started: Instant,
    /// When the warm-up of the run ends.
    steady_from: Instant,
}

/// What to do after an answer.
enum Next {
    /// Nothing: it is taken over, `whole` or but for some spans.
    Acknowledged { whole: bool },
    /// Nothing: it is refused for good.
    Refused,
    /// Nothing more with this one, but there may be nobody.
    Failed,
    /// Send it again.
    Repeat { after: Option<Duration> },
}

impl Tally {
    /// Counts an answer and says what it means for the request.
    fn judge(&mut self, attempt: &Attempt, answer: Result<Answer, Error>, may_repeat: bool) -> Next {
        match answer {
            Ok(Answer::Acknowledged { rejected_spans, message }) => {
                self.acknowledge(attempt, rejected_spans);
                if rejected_spans > 0 {
                    self.reason(format!("partial success: {message}"));
                }
                Next::Acknowledged { whole: rejected_spans == 0 }
            }
            Ok(Answer::Refused { status, retryable, retry_after }) => {
                self.reason(status);
                self.hints_seen += u64::from(retry_after.is_some());
                if may_repeat && retryable {
                    self.attempts_repeated += 1;
                    return Next::Repeat { after: retry_after };
                }
                self.requests_refused += 1;
                self.spans_refused += attempt.spans;
                Next::Refused
            }
            Err(error) => {
                self.reason(error.to_string());
                if may_repeat {
                    self.attempts_repeated += 1;
                    return Next::Repeat { after: None };
                }
                self.requests_failed += 1;
                self.spans_failed += attempt.spans;
                Next::Failed
            }
        }
    }

    fn acknowledge(&mut self, attempt: &Attempt, rejected_spans: u64) {
        let Attempt { spans, bytes, due, started, steady_from } = *attempt;
        let now = clock::now();
        self.requests_acknowledged += 1;
        self.spans_acknowledged += spans.saturating_sub(rejected_spans);
        self.spans_rejected += rejected_spans;
        self.body_bytes += bytes;
        // Latency counts from when the request was due: a wait for a free slot is the receiver's doing.
        let due = due.unwrap_or(started);
        let latency = now.saturating_duration_since(due);
        if let Some(latencies) = &mut self.latency {
            latencies.record(latency);
        }
        if let Some(latencies) = self.steady_latency.as_mut().filter(|_| due >= steady_from) {
            latencies.record(latency);
        }
        if let Some(service_time) = &mut self.service_time {
            service_time.record(now.saturating_duration_since(started));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(tally: &mut Tally, answer: Result<Answer, Error>, may_repeat: bool) -> Next {
        let now = clock::now();
        let attempt = Attempt { spans: 10, bytes: 100, due: None, started: now, steady_from: now };
        tally.judge(&attempt, answer, may_repeat)
    }

    fn refused(retryable: bool) -> Result<Answer, Error> {
        let retry_after = Some(Duration::from_secs(2));
        Ok(Answer::Refused { status: "UNAVAILABLE".to_owned(), retryable, retry_after })
    }

    #[test]
    fn every_request_ends_in_one_count() {
        let mut tally = Tally::new();
        let message = String::new();
        let whole = judge(&mut tally, Ok(Answer::Acknowledged { rejected_spans: 0, message }), true);
        assert!(matches!(whole, Next::Acknowledged { whole: true }));
        let message = "zero id".to_owned();
        let part = judge(&mut tally, Ok(Answer::Acknowledged { rejected_spans: 3, message }), true);
        assert!(matches!(part, Next::Acknowledged { whole: false }));
        assert!(matches!(judge(&mut tally, refused(true), false), Next::Refused));
        assert!(matches!(judge(&mut tally, refused(false), true), Next::Refused));
        let broken = || Err(Error::Exchange("broken".to_owned()));
        assert!(matches!(judge(&mut tally, broken(), false), Next::Failed));
        assert_eq!((tally.spans_acknowledged, tally.spans_rejected), (17, 3));
        assert_eq!((tally.spans_refused, tally.spans_failed), (20, 10));
        assert_eq!(tally.attempts_repeated, 0);
    }

    #[test]
    fn a_hint_is_heeded_only_by_a_run_that_repeats() {
        let mut tally = Tally::new();
        let after = Some(Duration::from_secs(2));
        assert!(
            matches!(judge(&mut tally, refused(true), true), Next::Repeat { after: found } if found == after)
        );
        let broken = Err(Error::Exchange("broken".to_owned()));
        assert!(matches!(judge(&mut tally, broken, true), Next::Repeat { after: None }));
        assert_eq!((tally.attempts_repeated, tally.hints_seen), (2, 1));
        assert_eq!((tally.requests_refused, tally.requests_failed), (0, 0));
    }

    #[test]
    fn reasons_from_outside_cannot_grow_without_bound() {
        let mut tally = Tally::new();
        (0..1_000).for_each(|number| tally.reason(number.to_string()));
        assert_eq!(tally.reasons.len(), REASONS_MAX + 1);
        assert_eq!(tally.reasons.values().sum::<u64>(), 1_000);
    }
}
