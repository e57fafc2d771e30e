//! One core's journal, on the thread that receives: requests are laid out for the next commit while they are still in the
//! cache, committed together, answered, and handed to the shards. What can take long is the [keeper](crate::keeper)'s.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use ingest_aggregator::Batch;
use ingest_otlp::Body;
use ingest_receiver::{Answers, Berth, Done, Intake as _, Lane, Outcome, Received, Wake, Write};
use rtrb::Producer;
use store_log::{BodyRecord, Committed, Error, Flight, RealDisk, RealFile, Stage, Writer};
use store_model::{Monotonic, PartitionId, SpanRuns, Tenant};

use crate::clock;
use crate::intake::Entrance;
use crate::keeper::{Job, News, REOPEN_AFTER};
use crate::shards::{Published, batch_bytes};

/// How long the journal waits for a shard whose ring is full before it tries again.
const RING_RETRY: Duration = Duration::from_micros(200);

/// How long a core that stops waits for the disk, and for shards to take what became durable.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// One shard as the journal sees it: a ring to fill and a thread to wake.
pub(crate) struct Outlet {
    pub(crate) ring: Producer<Batch>,
    pub(crate) thread: std::thread::Thread,
    pub(crate) published: Arc<Published>,
    pub(crate) ring_bytes_max: usize,
    /// What found no room yet, oldest first.
    pub(crate) waiting: VecDeque<Batch>,
}

impl Outlet {
    /// Moves what waits into the ring, as far as there is room.
    fn drain(&mut self) {
        while let Some(batch) = self.waiting.pop_front() {
            if self.ring.is_abandoned() {
                self.waiting.clear();
                return;
            }
            let bytes = batch_bytes(&batch);
            // A batch larger than the limit passes alone.
            let ahead = self.published.ring_bytes.load(Ordering::Relaxed);
            if ahead > 0 && ahead + bytes > self.ring_bytes_max {
                self.waiting.push_front(batch);
                return;
            }
            self.published.ring_bytes.fetch_add(bytes, Ordering::Relaxed);
            if let Err(rtrb::PushError::Full(batch)) = self.ring.push(batch) {
                self.published.ring_bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.waiting.push_front(batch);
                return;
            }
        }
    }
}

/// Hands the spans of records to the shards that own them.
pub(crate) struct Feeder {
    pub(crate) outlets: Vec<Outlet>,
}

impl Feeder {
    /// Gives every shard its part of the record, or keeps it until there is room.
    fn take(&mut self, whole: Batch) {
        let shards = self.outlets.len();
        let home = usize::from(whole.partition.0) % shards.max(1);
        let Batch { partition, offset, tenant, body, holders: _, refused, spans } = whole;
        let parts = split(spans, shards);
        let holders = parts.iter().filter(|spans| !spans.is_empty()).count().max(1);
        let holders = u16::try_from(holders).unwrap_or(u16::MAX);
        for (shard, (outlet, spans)) in self.outlets.iter_mut().zip(parts).enumerate() {
            let refused = if shard == home { refused } else { 0 };
            let (tenant, body) = (tenant.clone(), body.clone());
            outlet.waiting.push_back(Batch { partition, offset, tenant, body, holders, refused, spans });
        }
    }

    /// Moves what waits on, and wakes the shards; whether nothing waits any more.
    fn drain(&mut self) -> bool {
        for outlet in self.outlets.iter_mut().filter(|outlet| !outlet.waiting.is_empty()) {
            outlet.drain();
            outlet.thread.unpark();
        }
        self.is_drained()
    }

    fn is_drained(&self) -> bool {
        self.outlets.iter().all(|outlet| outlet.waiting.is_empty())
    }

    fn waiting_bytes(&self) -> usize {
        self.outlets.iter().flat_map(|outlet| &outlet.waiting).map(batch_bytes).sum()
    }

    /// As [`Self::take`], waiting for shards whose rings are full.
    pub(crate) fn feed(&mut self, whole: Batch) {
        self.take(whole);
        while !self.drain() {
            clock::sleep(RING_RETRY);
        }
    }
}

fn split(spans: SpanRuns, shards: usize) -> Vec<SpanRuns> {
    if shards <= 1 {
        return vec![spans];
    }
    let count = u16::try_from(shards).unwrap_or(u16::MAX);
    let mut parts = vec![SpanRuns::default(); shards];
    for (run, ranges) in spans.iter() {
        parts[usize::from(run.trace_id.shard(count).0)].push_run(run, ranges);
    }
    parts
}

/// How a core's journal works.
#[derive(Clone, Debug)]
pub(crate) struct JournalOptions {
    pub(crate) partition: PartitionId,
    pub(crate) group_interval: Duration,
    pub(crate) group_bytes: usize,
    /// Records that wait for the disk, or for a shard, may hold this much.
    pub(crate) queue_bytes: usize,
    pub(crate) answer_at_once: bool,
}

/// The requests of one commit, beside their bytes.
#[derive(Default)]
struct Group {
    answers: Vec<Done>,
    records: Vec<(Tenant, Arc<Body>, u32, SpanRuns)>,
}

/// A commit that the driver writes. It holds the bytes meanwhile.
struct Commit {
    flight: Flight<RealFile>,
    stage: Stage,
    group: Group,
}

/// Where the one writer of the partition is.
enum Place {
    /// Here, with nothing to do.
    Idle(Writer<RealDisk>),
    /// Here, while the driver writes a commit of these requests.
    Writing(Writer<RealDisk>, Box<Commit>),
    /// With the keeper, who may be committing these requests.
    Away(Option<Group>),
}

/// One core's journal.
pub(crate) struct Journal {
    options: JournalOptions,
    entrance: Arc<Entrance>,
    place: Place,
    /// The next commit.
    stage: Stage,
    group: Group,
    /// Kept for their memory.
    spare: Option<(Stage, Group)>,
    head: Vec<u8>,
    /// Bytes of the commit that is being written.
    bytes_under_way: usize,
    feeder: Feeder,
    /// Of requests that are durable, while a shard has no room for what came before them: senders that wait for their
    /// answers slow down to what the shards can take, where answers at once would end in refusals.
    held: Vec<Done>,
    keeper: Sender<(Job, Arc<dyn Wake>)>,
    news: Receiver<News>,
    wake: Arc<dyn Wake>,
    /// Tells the keeper not to wait for a disk any more.
    stopping: Arc<AtomicBool>,
    /// Whether the driver writes for us.
    writes: bool,
    committed_at: Monotonic,
}

/// What a journal is made of, before its thread is there.
pub(crate) struct JournalParts {
    pub(crate) options: JournalOptions,
    pub(crate) writer: Writer<RealDisk>,
    pub(crate) feeder: Feeder,
    pub(crate) keeper: Sender<(Job, Arc<dyn Wake>)>,
    pub(crate) news: Receiver<News>,
    pub(crate) stopping: Arc<AtomicBool>,
}

impl Journal {
    pub(crate) fn new(parts: JournalParts, entrance: Arc<Entrance>, berth: Berth) -> Self {
        let Berth { core: _, wake, writes } = berth;
        let JournalParts { options, writer, feeder, keeper, news, stopping } = parts;
        Self {
            options,
            entrance,
            place: Place::Idle(writer),
            stage: Stage::default(),
            group: Group::default(),
            spare: None,
            head: Vec::new(),
            bytes_under_way: 0,
            feeder,
            held: Vec::new(),
            keeper,
            news,
            wake,
            stopping,
            writes,
            committed_at: Monotonic(0),
        }
    }

    /// How long the next commit may wait for more.
    fn linger(&self, now: Monotonic) -> Duration {
        if self.stage.payload_bytes() >= self.options.group_bytes {
            return Duration::ZERO;
        }
        // After a pause the first request is written at once; under load commits keep their distance.
        self.options.group_interval.saturating_sub(now.since(self.committed_at))
    }

    /// Begins a commit if one is due.
    fn begin(&mut self, now: Monotonic) -> Option<Write> {
        if self.stage.is_empty() || !self.linger(now).is_zero() {
            return None;
        }
        let writer = match std::mem::replace(&mut self.place, Place::Away(None)) {
            Place::Idle(writer) => writer,
            busy => {
                self.place = busy;
                return None;
            }
        };
        let (spare_stage, spare_group) = self.spare.take().unwrap_or_default();
        let stage = std::mem::replace(&mut self.stage, spare_stage);
        let group = std::mem::replace(&mut self.group, spare_group);
        self.bytes_under_way = stage.payload_bytes();
        if self.writes && writer.takes(&stage) {
            self.begin_write(writer, stage, group)
        } else {
            self.place = Place::Away(Some(group));
            self.ask(Job::Commit(writer, stage));
            None
        }
    }

    fn begin_write(&mut self, mut writer: Writer<RealDisk>, mut stage: Stage, group: Group) -> Option<Write> {
        match writer.begin(&mut stage, clock::unix()) {
            Ok(flight) => {
                let file: Arc<dyn AsFd + Send + Sync> = Arc::<RealFile>::clone(flight.file());
                let (position, pieces) = (flight.position, stage.lend());
                self.place = Place::Writing(writer, Box::new(Commit { flight, stage, group }));
                Some(Write { file, position, pieces })
            }
            Err(error) => {
                // It said that it takes the commit, so something came in between; the keeper finds out what.
                tracing::warn!(partition = %self.options.partition, %error, "journal commit cannot be begun here");
                self.place = Place::Away(Some(group));
                self.ask(Job::Commit(writer, stage));
                None
            }
        }
    }

    fn ask(&self, job: Job) {
        // The keeper ends after its journals.
        if self.keeper.send((job, Arc::clone(&self.wake))).is_err() {
            tracing::error!(partition = %self.options.partition, "the keeper of the journal is gone");
        }
    }

    /// Takes what the keeper has to say.
    fn hear(&mut self, news: News, now: Monotonic, answers: &mut Answers) {
        match news {
            News::Committed(result, stage) => {
                if let Place::Away(group @ Some(_)) = &mut self.place {
                    let group = group.take().unwrap_or_default();
                    self.settle(result, group, stage, now, answers);
                }
            }
            News::Back(writer) => self.place = Place::Idle(writer),
        }
    }

    /// Answers the requests of a commit, and hands those that are durable to the shards.
    fn settle(
        &mut self,
        result: Result<Committed, Error>,
        mut group: Group,
        mut stage: Stage,
        now: Monotonic,
        answers: &mut Answers,
    ) {
        let partition = self.options.partition;
        self.bytes_under_way = 0;
        self.committed_at = now;
        match result {
            Ok(committed) => {
                for (number, (tenant, body, refused, spans)) in (0..).zip(group.records.drain(..)) {
                    let offset = committed.first.plus(number);
                    self.feeder.take(Batch { partition, offset, tenant, body, holders: 1, refused, spans });
                }
                self.held.append(&mut group.answers);
                self.hand_on(answers);
            }
            Err(error) => {
                tracing::error!(%partition, %error, "journal write failed, its requests are refused");
                for (tenant, _, refused, spans) in group.records.drain(..) {
                    self.entrance.refused.add(&tenant, spans.len() as u64 + u64::from(refused));
                }
                let reason = "the journal cannot be written".to_owned();
                let outcome = Outcome::Unavailable { retry_after: REOPEN_AFTER, reason };
                // A sender that has hung up will send again; copies are recognised.
                group.answers.drain(..).for_each(|done| answers.give(done, outcome.clone()));
            }
        }
        stage.clear();
        self.spare = Some((stage, group));
    }

    /// Hands what is durable to the shards, and answers once they have all of it.
    fn hand_on(&mut self, answers: &mut Answers) {
        if self.feeder.drain() {
            self.held.drain(..).for_each(|done| answers.give(done, Outcome::Stored));
        }
    }

    fn is_full(&self) -> bool {
        let waiting = self.stage.payload_bytes() + self.bytes_under_way;
        waiting >= self.options.queue_bytes
            || (!self.feeder.is_drained()
                && waiting + self.feeder.waiting_bytes() >= self.options.queue_bytes)
    }

    /// Waits until the keeper has given the writer back, for as long as it may take a disk.
    fn call_back(&mut self, answers: &mut Answers) {
        while matches!(self.place, Place::Away(_)) {
            match self.news.recv_timeout(LAST_WAIT) {
                Ok(news) => self.hear(news, clock::monotonic(), answers),
                Err(error) => {
                    tracing::error!(partition = %self.options.partition, %error, "the journal stops without its disk");
                    return;
                }
            }
        }
    }
}

impl Lane for Journal {
    fn submit(&mut self, request: Received, done: Done) {
        if let Err(outcome) = self.entrance.admits(&request.tenant, self.is_full()) {
            let spans = request.spans.len() as u64 + u64::from(request.refused);
            self.entrance.refuse(&request.tenant, spans);
            return done.send(outcome);
        }
        let Received { tenant, arrived_at, encoding, compressed, body, containers, spans, refused } = request;
        let span_count = u32::try_from(spans.len()).unwrap_or(u32::MAX);
        let (stored, plain) = match compressed {
            Some(compressed) => (compressed, Some(body)),
            None => (body, None),
        };
        let record =
            BodyRecord { tenant: tenant.clone(), arrived_at, encoding, span_count, refused, body: stored };
        record.encode_head_into(&mut self.head);
        self.stage.push(&self.head, &record.body);
        let body = Arc::new(Body { bytes: plain.unwrap_or(record.body), containers });
        self.group.records.push((tenant, body, refused, spans));
        if self.options.answer_at_once {
            done.send(Outcome::Stored);
        } else {
            self.group.answers.push(done);
        }
    }

    fn turn(&mut self, now: Monotonic, answers: &mut Answers) -> Option<Write> {
        while let Ok(news) = self.news.try_recv() {
            self.hear(news, now, answers);
        }
        let write = self.begin(now);
        self.hand_on(answers);
        write
    }

    fn written(&mut self, result: io::Result<()>, now: Monotonic, answers: &mut Answers) {
        let (mut writer, commit) = match std::mem::replace(&mut self.place, Place::Away(None)) {
            Place::Writing(writer, commit) => (writer, *commit),
            other => {
                self.place = other;
                return;
            }
        };
        let Commit { flight, mut stage, group } = commit;
        stage.take_back();
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput) {
            // Only a part was written, or the disk's sectors are larger than ours; the plain way can do either.
            tracing::warn!(partition = %self.options.partition, "the journal is written by its keeper from now on");
            self.writes = false;
            self.place = Place::Away(Some(group));
            return self.ask(Job::Write(writer, flight, stage));
        }
        let result = writer.end(flight, result);
        match &result {
            Ok(_) => self.place = Place::Idle(writer),
            Err(error) => self.ask(Job::Mend(writer, error.to_string())),
        }
        self.settle(result, group, stage, now, answers);
    }

    fn rest(&self, now: Monotonic) -> Option<Duration> {
        let for_shards = (!self.feeder.is_drained()).then_some(RING_RETRY);
        let has_work = matches!(self.place, Place::Idle(_)) && !self.stage.is_empty();
        let for_disk = has_work.then(|| self.linger(now));
        for_shards.into_iter().chain(for_disk).min()
    }

    fn finish(mut self: Box<Self>) {
        self.stopping.store(true, Ordering::Relaxed);
        let mut answers = Answers::default();
        self.call_back(&mut answers);
        // What nobody waits for any more is stored all the same: it had arrived.
        if let (Place::Idle(writer), false) = (&mut self.place, self.stage.is_empty()) {
            let (mut stage, group) = (std::mem::take(&mut self.stage), std::mem::take(&mut self.group));
            let result = writer.commit_stage(&mut stage, store_log::Sync::Durable, clock::unix());
            self.settle(result, group, stage, clock::monotonic(), &mut answers);
        }
        let waits = LAST_WAIT.as_nanos() / RING_RETRY.as_nanos();
        for _ in 0..waits {
            if self.feeder.drain() {
                return;
            }
            clock::sleep(RING_RETRY);
        }
        tracing::error!(partition = %self.options.partition, "shards did not take everything; the next start reads it again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::RefusedLedger;
    use crate::keeper::Keeper;
    use bytes::Bytes;
    use ingest_otlp::Containers;
    use rtrb::{Consumer, RingBuffer};
    use store_log::PartitionOptions;
    use store_model::{Encoding, Offset, Symbols, UnixNanos};
    use tokio::sync::oneshot;

    const RING_BYTES_MAX: usize = 16 << 20;

    struct Bell(std::thread::Thread);

    impl Wake for Bell {
        fn wake(&self) {
            self.0.unpark();
        }
    }

    /// A journal on a real disk, its keeper, and the end of the one shard's ring.
    struct Bench {
        journal: Box<Journal>,
        entrance: Arc<Entrance>,
        shard: Consumer<Batch>,
        published: Arc<Published>,
        keeper: std::thread::JoinHandle<()>,
        now: Monotonic,
        directory: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let partition = PartitionId(0);
            let options =
                PartitionOptions { directory: directory.path().to_owned(), ..PartitionOptions::default() };
            let (writer, _) = Writer::open(RealDisk, options, Offset(0), UnixNanos(1)).unwrap();
            let (gate, stopping) = (Arc::new(crate::gate::Gate::default()), Arc::new(AtomicBool::new(false)));
            let (keeper, jobs) = std::sync::mpsc::channel();
            let (to_journal, news) = std::sync::mpsc::channel();
            let thread = Keeper {
                partition,
                jobs,
                news: to_journal,
                stopping: Arc::clone(&stopping),
                gate: Arc::clone(&gate),
            };
            let thread = std::thread::spawn(|| thread.run());
            let (ring, shard) = RingBuffer::new(64);
            let published = Arc::<Published>::default();
            let outlet = Outlet {
                ring,
                thread: std::thread::current(),
                published: Arc::clone(&published),
                ring_bytes_max: RING_BYTES_MAX,
                waiting: VecDeque::new(),
            };
            let parts = JournalParts {
                options: JournalOptions {
                    partition,
                    group_interval: Duration::from_millis(5),
                    group_bytes: 1 << 20,
                    queue_bytes: 4 << 20,
                    answer_at_once: false,
                },
                writer,
                feeder: Feeder { outlets: vec![outlet] },
                keeper,
                news,
                stopping,
            };
            let entrance = Arc::new(Entrance {
                journals: std::sync::Mutex::default(),
                gate,
                refused: Arc::new(RefusedLedger::default()),
                symbols: Symbols::new(10),
                tenants: std::sync::Mutex::default(),
                tenants_max: 10,
            });
            let wake = Arc::new(Bell(std::thread::current()));
            let berth = Berth { core: 0, wake, writes: true };
            let journal = Box::new(Journal::new(parts, Arc::clone(&entrance), berth));
            let now = Monotonic(1 << 40);
            Self { journal, entrance, shard, published, keeper: thread, now, directory }
        }

        fn submit(&mut self, text: &str) -> oneshot::Receiver<Outcome> {
            let (done, outcome) = Done::awaited();
            let body = Bytes::copy_from_slice(text.as_bytes());
            let request = Received {
                tenant: Tenant::default(),
                arrived_at: UnixNanos(5),
                encoding: Encoding::Identity,
                compressed: None,
                body,
                containers: Containers::default(),
                spans: SpanRuns::default(),
                refused: 3,
            };
            self.journal.submit(request, done);
            outcome
        }

        /// A turn, a commit's distance after the one before.
        fn turn(&mut self) -> Option<Write> {
            self.now = self.now.plus(Duration::from_millis(5));
            let mut answers = Answers::default();
            let write = self.journal.turn(self.now, &mut answers);
            answers.deliver();
            write
        }

        /// Turns until the driver is asked to write.
        fn until_write(&mut self) -> Write {
            for _ in 0..10_000 {
                if let Some(write) = self.turn() {
                    return write;
                }
                std::thread::park_timeout(Duration::from_millis(2));
            }
            panic!("the driver was never asked to write");
        }

        /// Turns until an answer is there.
        fn answer(&mut self, outcome: &mut oneshot::Receiver<Outcome>) -> Outcome {
            for _ in 0..10_000 {
                if let Ok(outcome) = outcome.try_recv() {
                    return outcome;
                }
                assert!(self.turn().is_none(), "the keeper was to write");
                std::thread::park_timeout(Duration::from_millis(2));
            }
            panic!("there was no answer");
        }

        fn written(&mut self, write: Write, result: io::Result<()>) {
            let mut answers = Answers::default();
            drop(write);
            self.journal.written(result, self.now, &mut answers);
            answers.deliver();
        }

        /// A first commit, which makes the segment, so that the next ones are the driver's.
        fn begin(&mut self) {
            let mut first = self.submit("first");
            assert_eq!(self.answer(&mut first), Outcome::Stored);
            // The keeper answers before it gives the writer back.
            self.journal.call_back(&mut Answers::default());
        }

        fn fed(&mut self) -> Vec<(Offset, Bytes)> {
            std::iter::from_fn(|| self.shard.pop().ok())
                .map(|batch| (batch.offset, batch.body.bytes.clone()))
                .collect()
        }

        /// What a new process finds in the journal.
        fn stored(self) -> Vec<String> {
            let Self { journal, keeper, directory, .. } = self;
            journal.finish();
            keeper.join().unwrap();
            let reader = store_log::Reader::open(RealDisk, directory.path()).unwrap();
            let body = |record: Result<(Offset, Bytes), Error>| {
                let body = BodyRecord::decode(record.unwrap().1).unwrap().body;
                String::from_utf8(body.to_vec()).unwrap()
            };
            reader.scan(reader.start_offset()).map(body).collect()
        }
    }

    /// As the ring does it.
    fn do_write(write: &Write) {
        let slices: Vec<_> = write.pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
        let count = rustix::io::pwritev(write.file.as_fd(), &slices, write.position).unwrap();
        assert_eq!(count, slices.iter().map(|slice| slice.len()).sum::<usize>());
    }

    #[test]
    fn what_the_driver_wrote_is_answered_fed_and_there() {
        let mut bench = Bench::new();
        bench.begin();
        let mut outcomes = ["second", "third"].map(|text| bench.submit(text));
        let write = bench.until_write();
        let mut during = bench.submit("fourth");
        assert!(bench.turn().is_none(), "one write at a time");
        assert!(outcomes[1].try_recv().is_err(), "nothing is answered before it is durable");
        assert_eq!(bench.fed().len(), 1);
        do_write(&write);
        bench.written(write, Ok(()));
        assert!(outcomes.iter_mut().all(|outcome| outcome.try_recv() == Ok(Outcome::Stored)));
        let write = bench.until_write();
        do_write(&write);
        bench.written(write, Ok(()));
        assert_eq!(during.try_recv(), Ok(Outcome::Stored));
        bench.turn();
        let expected = [(1, "second"), (2, "third"), (3, "fourth")];
        assert_eq!(bench.fed(), expected.map(|(offset, text)| (Offset(offset), Bytes::from(text))));
        assert_eq!(bench.stored(), ["first", "second", "third", "fourth"]);
    }

    #[test]
    fn a_failed_write_refuses_its_requests_and_later_ones_are_stored() {
        let mut bench = Bench::new();
        bench.begin();
        let mut lost = bench.submit("lost");
        let write = bench.until_write();
        do_write(&write);
        bench.written(write, Err(io::Error::other("the disk is ill")));
        assert!(matches!(lost.try_recv(), Ok(Outcome::Unavailable { .. })));
        assert_eq!(bench.entrance.refused.drain(), [(Tenant::default(), 3)]);
        // Until the keeper has opened the partition again.
        let mut later = bench.submit("later");
        while let Ok(outcome) = later.try_recv() {
            assert!(matches!(outcome, Outcome::Unavailable { .. }));
            bench.turn();
            std::thread::park_timeout(Duration::from_millis(2));
            later = bench.submit("later");
        }
        assert_eq!(bench.answer(&mut later), Outcome::Stored);
        assert_eq!(bench.stored(), ["first", "later"]);
    }

    #[test]
    fn a_write_that_cannot_be_done_this_way_is_the_keepers() {
        let mut bench = Bench::new();
        bench.begin();
        let mut outcome = bench.submit("second");
        let write = bench.until_write();
        bench.written(write, Err(io::ErrorKind::InvalidInput.into()));
        assert_eq!(bench.answer(&mut outcome), Outcome::Stored);
        let mut outcome = bench.submit("third");
        assert_eq!(bench.answer(&mut outcome), Outcome::Stored);
        assert_eq!(bench.stored(), ["first", "second", "third"]);
    }

    #[test]
    fn who_waits_for_an_answer_waits_for_a_shard_without_room() {
        let mut bench = Bench::new();
        bench.begin();
        bench.published.ring_bytes.store(RING_BYTES_MAX, Ordering::Relaxed);
        let mut outcome = bench.submit("second");
        let write = bench.until_write();
        do_write(&write);
        bench.written(write, Ok(()));
        bench.turn();
        assert!(outcome.try_recv().is_err(), "it is durable, but the shard has no room");
        assert_eq!(bench.fed().len(), 1);
        bench.published.ring_bytes.store(0, Ordering::Relaxed);
        bench.turn();
        assert_eq!(outcome.try_recv(), Ok(Outcome::Stored));
        assert_eq!(bench.fed().len(), 1);
    }

    #[test]
    fn what_was_submitted_is_stored_when_the_thread_ends() {
        let mut bench = Bench::new();
        bench.begin();
        drop(bench.submit("nobody waits for it"));
        assert_eq!(bench.stored(), ["first", "nobody waits for it"]);
    }

    #[test]
    fn more_than_may_wait_is_refused_for_now() {
        let mut bench = Bench::new();
        bench.begin();
        let large = "x".repeat(3 << 20);
        let waiting = [(); 2].map(|()| bench.submit(&large));
        let mut refused = bench.submit("one more");
        assert!(matches!(refused.try_recv(), Ok(Outcome::Overloaded { .. })));
        assert_eq!(bench.entrance.refused.drain(), [(Tenant::default(), 3)]);
        drop(waiting);
    }
}
