//! The thread of one journal partition: groups requests, makes them durable, answers, and feeds the shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ingest_aggregator::Batch;
use ingest_otlp::Body;
use ingest_receiver::{Done, Outcome};
use rtrb::Producer;
use store_log::{BodyRecord, RealDisk, Retention, Sync, Writer};
use store_model::{Monotonic, Offset, PartitionId, ShardId, SpanLocation, SpanSummary};

use crate::clock;
use crate::gate::Gate;
use crate::intake::{Queue, Submission, Taken};
use crate::shards::{Published, batch_bytes};

/// How long an idle thread waits before it looks after retention.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a failed partition waits before it is opened and verified again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// How long the journal waits for a shard whose ring is full before it tries again.
const RING_RETRY: Duration = Duration::from_micros(200);

/// Up to where each shard still needs each partition: retention stays below.
#[derive(Debug)]
pub(crate) struct Floors {
    /// One row per shard, one column per partition.
    cells: Vec<Vec<AtomicU64>>,
}

impl Floors {
    pub(crate) fn new(shards: u16) -> Self {
        let row = || (0..shards).map(|_| AtomicU64::new(0)).collect();
        Self { cells: (0..shards).map(|_| row()).collect() }
    }

    /// `shard` needs nothing of `partition` below `offset` any more.
    pub(crate) fn set(&self, shard: ShardId, partition: PartitionId, offset: Offset) {
        self.cells[usize::from(shard.0)][usize::from(partition.0)].store(offset.0, Ordering::Relaxed);
    }

    /// What no shard needs any more lies below.
    pub(crate) fn floor(&self, partition: PartitionId) -> Offset {
        let column = self.cells.iter().map(|row| row[usize::from(partition.0)].load(Ordering::Relaxed));
        Offset(column.min().unwrap_or(0))
    }
}

/// Takes the records at `places` into account, per partition: they are needed as long as the floor is not raised again.
pub(crate) fn lower_floors(floors: &mut [Option<Offset>], places: &[SpanLocation]) {
    for place in places {
        let floor = &mut floors[usize::from(place.partition.0)];
        *floor = Some(floor.map_or(place.offset, |floor| floor.min(place.offset)));
    }
}

/// One shard as the journal sees it: a ring to fill and a thread to wake.
pub(crate) struct Outlet {
    pub(crate) ring: Producer<Batch>,
    pub(crate) thread: std::thread::Thread,
    pub(crate) published: Arc<Published>,
    pub(crate) ring_bytes_max: usize,
}

impl Outlet {
    /// Waits until the shard has room; false when it is gone.
    fn push(&mut self, batch: Batch) -> bool {
        let bytes = batch_bytes(&batch);
        let mut batch = batch;
        loop {
            // A batch larger than the limit passes alone.
            let waiting = self.published.ring_bytes.load(Ordering::Relaxed);
            if waiting == 0 || waiting + bytes <= self.ring_bytes_max {
                self.published.ring_bytes.fetch_add(bytes, Ordering::Relaxed);
                let Err(rtrb::PushError::Full(back)) = self.ring.push(batch) else { return true };
                self.published.ring_bytes.fetch_sub(bytes, Ordering::Relaxed);
                batch = back;
            }
            if self.ring.is_abandoned() {
                return false;
            }
            self.thread.unpark();
            clock::sleep(RING_RETRY);
        }
    }
}

/// Hands the spans of a record to the shards that own them.
pub(crate) struct Feeder {
    pub(crate) outlets: Vec<Outlet>,
}

impl Feeder {
    /// Gives every shard its part of the record; waits for a shard whose ring is full, which in turn fills the queue
    /// before the journal and makes the receiver refuse.
    pub(crate) fn feed(&mut self, whole: Batch) {
        let shards = self.outlets.len();
        let home = usize::from(whole.partition.0) % shards.max(1);
        let Batch { partition, offset, tenant, body, refused, summaries } = whole;
        for (shard, (outlet, summaries)) in self.outlets.iter_mut().zip(split(summaries, shards)).enumerate()
        {
            let refused = if shard == home { refused } else { 0 };
            let (tenant, body) = (tenant.clone(), body.clone());
            if !outlet.push(Batch { partition, offset, tenant, body, refused, summaries }) {
                return;
            }
        }
    }

    pub(crate) fn wake(&self) {
        self.outlets.iter().for_each(|outlet| outlet.thread.unpark());
    }
}

fn split(summaries: Vec<SpanSummary>, shards: usize) -> Vec<Vec<SpanSummary>> {
    if shards <= 1 {
        return vec![summaries];
    }
    let count = u16::try_from(shards).unwrap_or(u16::MAX);
    let mut parts = vec![Vec::with_capacity(summaries.len() / shards * 5 / 4); shards];
    for span in summaries {
        parts[usize::from(span.trace_id.shard(count).0)].push(span);
    }
    parts
}

/// How the thread works.
#[derive(Clone, Debug)]
pub(crate) struct JournalOptions {
    pub(crate) partition: PartitionId,
    pub(crate) group_interval: Duration,
    pub(crate) group_bytes: usize,
    pub(crate) answer_at_once: bool,
    pub(crate) retention: Retention,
}

/// The thread's state.
pub(crate) struct JournalThread {
    pub(crate) options: JournalOptions,
    pub(crate) writer: Writer<RealDisk>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) feeder: Feeder,
    pub(crate) floors: Arc<Floors>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) lost: Arc<crate::intake::RefusedLedger>,
}

impl JournalThread {
    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let mut last_commit = Monotonic(0);
        let mut last_retention = Monotonic(0);
        loop {
            // After a pause the first request is written at once; under load groups keep their distance.
            let linger = self.options.group_interval.saturating_sub(clock::monotonic().since(last_commit));
            match self.queue.take(PATIENCE, linger, self.options.group_bytes) {
                Taken::Group(group) => {
                    self.write(group);
                    last_commit = clock::monotonic();
                }
                Taken::Nothing => {}
                Taken::Closed => break,
            }
            if self.writer.is_poisoned() {
                self.reopen();
            }
            if clock::monotonic().since(last_retention) >= Duration::from_secs(1) {
                last_retention = clock::monotonic();
                self.retain();
            }
        }
    }

    fn name(&self) -> String {
        format!("journal {}", self.options.partition)
    }

    fn write(&mut self, group: Vec<Submission>) {
        let mut answered = Vec::with_capacity(group.len());
        let mut batches = Vec::with_capacity(group.len());
        for Submission { request, done } in group {
            let record = BodyRecord {
                tenant: request.tenant.clone(),
                arrived_at: request.arrived_at,
                encoding: request.encoding,
                span_count: u32::try_from(request.summaries.len()).unwrap_or(u32::MAX),
                refused: request.refused,
                body: request.stored,
            };
            self.writer.append([Bytes::from(record.encode_head()), record.body]);
            let body = Arc::new(Body { bytes: request.body, containers: request.containers });
            batches.push((request.tenant, body, request.refused, request.summaries));
            if self.options.answer_at_once {
                done.send(Outcome::Stored);
            } else {
                answered.push(done);
            }
        }
        match self.writer.commit(Sync::Durable, clock::unix()) {
            Ok(committed) => {
                // A sender that has hung up will send again; copies are recognised.
                Done::send_all(answered, &Outcome::Stored);
                for (number, (tenant, body, refused, summaries)) in (0..).zip(batches) {
                    let (partition, offset) = (self.options.partition, committed.first.plus(number));
                    self.feeder.feed(Batch { partition, offset, tenant, body, refused, summaries });
                }
                self.feeder.wake();
            }
            Err(error) => {
                tracing::error!(partition = %self.options.partition, %error, "journal write failed, its requests are refused");
                self.gate.close(&self.name(), format!("the journal cannot be written: {error}"));
                let outcome = Outcome::Unavailable {
                    retry_after: REOPEN_AFTER,
                    reason: "the journal cannot be written".to_owned(),
                };
                Done::send_all(answered, &outcome);
                for (tenant, _, refused, summaries) in batches {
                    self.lost.add(&tenant, summaries.len() as u64 + u64::from(refused));
                }
                if !self.writer.is_poisoned() {
                    clock::sleep(REOPEN_AFTER);
                    self.gate.open(&self.name());
                }
            }
        }
    }

    /// Opens the partition again until it verifies. Requests are refused meanwhile.
    fn reopen(&mut self) {
        match self.writer.reopen(clock::unix()) {
            Ok(recovery) => {
                tracing::info!(partition = %self.options.partition, ?recovery, "journal reopened and verified");
                self.gate.open(&self.name());
            }
            Err(error) => {
                tracing::error!(partition = %self.options.partition, %error, "journal cannot be reopened yet");
                clock::sleep(REOPEN_AFTER);
            }
        }
    }

    fn retain(&mut self) {
        let floor = self.floors.floor(self.options.partition);
        let segments = self.writer.reader().segments();
        let chosen = store_log::choose(&segments, &self.options.retention, floor, clock::unix());
        if !chosen.is_empty() {
            match self.writer.remove(&chosen) {
                Ok(bytes) => {
                    tracing::info!(partition = %self.options.partition, segments = chosen.len(), bytes, "journal segments expired")
                }
                Err(error) => {
                    tracing::warn!(partition = %self.options.partition, %error, "expired journal segments could not be removed")
                }
            }
        }
        let name = format!("journal budget {}", self.options.partition);
        if store_log::over_budget(&self.writer.reader().segments(), &self.options.retention) {
            self.gate
                .close(&name, "the journal is at journal.retention.max_bytes and all of it is still needed");
        } else {
            self.gate.open(&name);
        }
    }
}
