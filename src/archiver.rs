//! The thread that settles one shard's turns: gathers what is kept, puts it into the archive, and makes the decisions durable.
//! Full segments are its [sealer](crate::sealer)'s.
//!
//! The order is what makes a restart exact: fragments become visible, then the turn's settlement record is appended, and the
//! record is committed before an archive segment that covers it is sealed. Fragments of the open segment need no disk: the
//! committed decisions say where their spans lie in the journal.

use std::collections::{VecDeque, vec_deque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use ingest_aggregator::{Gathered, KeptTrace, Settled, Turn, gather};
use store_archive::settlement::{DroppedDecision, KeptDecision, Settlement};
use store_archive::{Archive, ShardWriter};
use store_log::{RealDisk, Retention, Sync, Writer};
use store_model::{Monotonic, Offset, PartitionId, Reason, ShardId, UnixNanos};

use crate::bodies::JournalBodies;
use crate::clock;
use crate::gate::Gate;
use crate::intake::RefusedLedger;
use crate::retention::{Floors, lower_floors};
use crate::sealer::Sealer;
use crate::shards::Published;
use crate::totals::Totals;

/// Decisions become durable at the latest after this long; until then a crash takes them again.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// Turns settled together at most, so that a body is opened once for all of them.
const TURNS_PER_ROUND: usize = 32;

/// Kept spans gathered together, as nearly as whole traces allow: they stand in memory a second time until they are inserted. No
/// further turn is settled with those that have as many, since a full segment can only be ended between two rounds.
const GATHERED_BYTES_MAX: usize = 8 << 20;

/// How often the archive's retention is looked after.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);

/// How long a failed disk is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How the thread works.
#[derive(Clone, Debug)]
pub(crate) struct ArchiverOptions {
    pub(crate) shard: ShardId,
    pub(crate) shards: u16,
    /// An open segment of this size is full.
    pub(crate) open_bytes: usize,
    pub(crate) open_age: Duration,
    /// Of the decision log: nothing older can still matter to a late span.
    pub(crate) decisions: Retention,
    /// Of sealed archive segments.
    pub(crate) archive_retention: Retention,
}

/// The thread's state.
pub(crate) struct ArchiverThread {
    pub(crate) options: ArchiverOptions,
    pub(crate) turns: Receiver<Turn>,
    pub(crate) archive: ShardWriter,
    pub(crate) archive_handle: Archive,
    pub(crate) decisions: Writer<RealDisk>,
    pub(crate) bodies: JournalBodies,
    pub(crate) totals: Arc<Totals>,
    pub(crate) floors: Arc<Floors>,
    pub(crate) published: Arc<Published>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) refused: Arc<RefusedLedger>,
    pub(crate) sealer: Sealer,
    /// Per partition: the lowest record that the open segment would have to be gathered from again.
    pub(crate) open_floor: Vec<Option<Offset>>,
    /// The same of the segment that is being sealed, or could not be.
    pub(crate) ended_floor: Option<Vec<Option<Offset>>>,
    /// Those of the newest settled turn.
    pub(crate) frontier: Vec<Offset>,
    pub(crate) watermark: Vec<Offset>,
}

impl ArchiverThread {
    /// Runs until the shard is gone and everything it settled is durable.
    pub(crate) fn run(mut self) {
        let mut uncommitted: Vec<Settlement> = Vec::new();
        let (mut last_commit, mut opened_at) = (clock::monotonic(), clock::monotonic());
        let mut last_expire = Monotonic(0);
        let mut is_last = false;
        self.publish_floors();
        while !is_last {
            let mut turns = Vec::new();
            match self.turns.recv_timeout(COMMIT_INTERVAL) {
                Ok(turn) => turns.push(turn),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => is_last = true,
            }
            while turns.len() < TURNS_PER_ROUND && kept_bytes(&turns) < GATHERED_BYTES_MAX {
                let Ok(turn) = self.turns.try_recv() else { break };
                turns.push(turn);
            }
            self.settle(turns, &mut uncommitted);
            let now = clock::monotonic();
            if now.since(last_expire) >= EXPIRE_INTERVAL {
                last_expire = now;
                self.expire();
            }
            if now.since(last_commit) >= COMMIT_INTERVAL || is_last {
                self.commit(&mut uncommitted);
                last_commit = clock::monotonic();
                if self.archive.open_rows() == 0 {
                    opened_at = now;
                }
                if self.seal(now.since(opened_at) >= self.options.open_age) {
                    opened_at = clock::monotonic();
                }
            }
        }
    }

    fn settle(&mut self, turns: Vec<Turn>, uncommitted: &mut Vec<Settlement>) {
        let Some(last_turn) = turns.last().map(|turn| turn.number) else { return };
        let mut portions = Portions {
            kept: turns.iter().flat_map(|turn| turn.kept.iter().cloned()).collect(),
            fit_together: kept_bytes(&turns) <= GATHERED_BYTES_MAX,
            begun: 0,
            gathered: VecDeque::new(),
        };
        for turn in turns {
            let settlement = self.settle_turn(turn, &mut portions);
            uncommitted.push(settlement);
        }
        self.published.archived_turn.store(last_turn, Ordering::Release);
    }

    fn settle_turn(&mut self, turn: Turn, portions: &mut Portions) -> Settlement {
        let mut kept = Vec::with_capacity(turn.kept.len());
        let mut outcomes = Vec::with_capacity(turn.kept.len());
        while kept.len() < turn.kept.len() {
            let rest = &turn.kept[kept.len()..];
            let gathered = portions.next(rest.len(), &self.archive, &mut self.bodies);
            for (trace, Gathered { fragment, locations, expired, duplicates }) in rest.iter().zip(gathered) {
                let span_count = fragment.as_ref().map(|fragment| fragment.span_count);
                outcomes.push(Outcome { span_count, expired, duplicates });
                lower_floors(&mut self.open_floor, &locations);
                fragment.into_iter().for_each(|fragment| self.archive.insert(fragment));
                kept.push(kept_decision(trace, locations));
            }
        }
        // All of a turn is counted at once, so that whoever looks finds every span in its place.
        let mut totals = self.totals.shard(self.options.shard);
        for (trace, Outcome { span_count, expired, duplicates }) in turn.kept.iter().zip(outcomes) {
            let total = totals.entry(trace.tenant.clone()).or_default();
            total.counts.expired += u64::from(expired);
            total.counts.refused += u64::from(duplicates);
            let reason = Reason::ALL.iter().position(|&reason| reason == trace.reason).unwrap_or(0);
            total.kept_traces[reason] += u64::from(!trace.late && span_count.is_some());
            total.counts.kept += u64::from(span_count.unwrap_or(0));
            total.kept_spans[reason] += u64::from(span_count.unwrap_or(0));
        }
        let mut dropped = Vec::new();
        for Settled { tenant, dropped: traces, counts } in turn.settled {
            let total = totals.entry(tenant.clone()).or_default();
            total.counts.add(counts);
            total.dropped_traces += traces.iter().filter(|trace| !trace.late).count() as u64;
            dropped.extend(traces.iter().map(|trace| DroppedDecision {
                tenant: tenant.clone(),
                trace_id: trace.trace_id,
                shed: trace.shed,
            }));
        }
        drop(totals);
        (self.frontier, self.watermark) = (turn.frontier, turn.watermark);
        Settlement { kept, dropped, ..self.empty_settlement(turn.at) }
    }

    /// A settlement that names no trace, at the newest frontier.
    fn empty_settlement(&self, at: UnixNanos) -> Settlement {
        Settlement {
            shard: self.options.shard,
            shards: self.options.shards,
            at,
            frontier: self.frontier.clone(),
            watermark: self.watermark.clone(),
            counts: Vec::new(),
            kept: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Makes the decisions durable. Does not come back before it has: without them nothing may be forgotten, and the
    /// bounded queues upstream make the receiver refuse meanwhile.
    fn commit(&mut self, uncommitted: &mut Vec<Settlement>) {
        self.count_refused(uncommitted);
        let Some(last) = uncommitted.last_mut() else { return };
        // The totals are those after the last of these turns, so only its record carries them.
        let totals = self.totals.shard(self.options.shard);
        last.counts = totals.iter().map(|(tenant, counts)| (tenant.clone(), *counts)).collect();
        drop(totals);
        let records: Vec<Bytes> = uncommitted.iter().map(|record| Bytes::from(record.encode())).collect();
        let name = format!("decisions {}", self.options.shard);
        loop {
            for record in &records {
                self.decisions.append([record.clone(), Bytes::new()]);
            }
            match self.decisions.commit(Sync::Durable, clock::unix()) {
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(shard = %self.options.shard, %error, "decisions cannot be written");
                    self.gate.close(&name, format!("decisions cannot be written: {error}"));
                    clock::sleep(RETRY_AFTER);
                    if self.decisions.is_poisoned()
                        && let Err(error) = self.decisions.reopen(clock::unix())
                    {
                        tracing::error!(shard = %self.options.shard, %error, "decision log cannot be reopened yet");
                    }
                }
            }
        }
        self.gate.open(&name);
        uncommitted.clear();
        self.publish_floors();
        self.retain_decisions();
    }

    /// Spans refused before the journal are counted by the first shard.
    fn count_refused(&self, uncommitted: &mut Vec<Settlement>) {
        if self.options.shard != ShardId(0) {
            return;
        }
        let refused = self.refused.drain();
        if !refused.is_empty() && uncommitted.is_empty() {
            uncommitted.push(self.empty_settlement(clock::unix()));
        }
        let mut totals = self.totals.shard(self.options.shard);
        for (tenant, spans) in refused {
            let counts = &mut totals.entry(tenant).or_default().counts;
            counts.arrived += spans;
            counts.refused += spans;
        }
    }

    /// Says what of the journal is still needed. Only after the newest settlement is durable.
    fn publish_floors(&self) {
        for ((&settled, open), partition) in self.watermark.iter().zip(&self.open_floor).zip(0..) {
            let ended = self.ended_floor.as_ref().and_then(|floor| floor[usize::from(partition)]);
            let floor = [*open, ended].into_iter().flatten().fold(settled, Offset::min);
            self.floors.set(self.options.shard, PartitionId(partition), floor);
        }
    }

    /// Has the open segment sealed if it is full or `is_old`, and hears how that went with the one before. Says whether
    /// another segment was begun. Only while every settlement is durable: the segment is to cover them, and the floors are
    /// published.
    fn seal(&mut self, is_old: bool) -> bool {
        let is_due = self.archive.open_rows() > 0 && (is_old || self.archive.is_full());
        // Two segments are what there is memory for. While this waits, the bounded queues upstream make ingest wait, too.
        let result = if is_due { self.sealer.wait() } else { self.sealer.result() };
        result.into_iter().for_each(|result| self.sealed(result));
        let has_failed = self.ended_floor.is_some();
        if self.sealer.is_busy() || !(is_due || has_failed) {
            return false;
        }
        match self.archive.begin_seal(self.decisions.end_offset()) {
            Ok(Some(sealing)) => self.sealer.begin(sealing),
            Ok(None) => return false,
            Err(error) => {
                tracing::error!(shard = %self.options.shard, %error, "archive segment cannot be ended");
                return false;
            }
        }
        if !has_failed {
            self.ended_floor =
                Some(std::mem::replace(&mut self.open_floor, vec![None; self.watermark.len()]));
        }
        !has_failed
    }

    fn sealed(&mut self, result: Result<PathBuf, store_archive::Error>) {
        let name = format!("archive {}", self.options.shard);
        match result {
            Ok(path) => {
                self.ended_floor = None;
                // A shard that nothing more comes to settles nothing, and what this segment needed of the journal would stay
                // for ever: with the journal at its budget, that is what keeps anything from coming.
                self.publish_floors();
                self.gate.open(&name);
                tracing::debug!(shard = %self.options.shard, ?path, "archive segment sealed");
            }
            Err(error) => {
                tracing::error!(shard = %self.options.shard, %error, "archive segment cannot be written, it stays in memory");
                // What is open may grow to four times its size while the disk recovers, then ingest has to wait.
                if self.archive.open_bytes() > self.options.open_bytes.saturating_mul(4) {
                    self.gate.close(&name, format!("the archive cannot be written: {error}"));
                }
            }
        }
    }

    /// Removes archive segments that retention is through with. The first shard does it for all.
    fn expire(&self) {
        if self.options.shard != ShardId(0) {
            return;
        }
        let Retention { age_max, bytes_max } = self.options.archive_retention;
        match self.archive_handle.expire(age_max, bytes_max, clock::unix()) {
            Ok(expired) if expired.segments > 0 => tracing::info!(?expired, "archive segments expired"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "expired archive segments could not be removed"),
        }
    }

    fn retain_decisions(&mut self) {
        let segments = self.decisions.reader().segments();
        if segments.len() < 2 {
            return;
        }
        // Without open rows nothing would have to be gathered again, whatever the sealed segments cover.
        let is_empty = self.archive.open_rows() == 0;
        let floor = if is_empty { self.decisions.end_offset() } else { self.archive.covered() };
        let chosen = store_log::choose(&segments, &self.options.decisions, floor, clock::unix());
        if !chosen.is_empty()
            && let Err(error) = self.decisions.remover().remove(&chosen, &mut || ())
        {
            tracing::warn!(shard = %self.options.shard, %error, "expired decisions could not be removed");
        }
    }
}

/// What is counted of a kept trace.
struct Outcome {
    /// Of its fragment, if there is one.
    span_count: Option<u32>,
    expired: u32,
    duplicates: u32,
}

/// The kept traces of one round, gathered as they are asked for.
struct Portions {
    kept: Vec<Arc<KeptTrace>>,
    /// All of them in one portion.
    fit_together: bool,
    /// How many of them were gathered.
    begun: usize,
    /// Those that nobody has asked for yet.
    gathered: VecDeque<Gathered>,
}

impl Portions {
    /// The next ones, `wanted` at the most; one at least, unless all were given.
    fn next(
        &mut self,
        wanted: usize,
        archive: &ShardWriter,
        bodies: &mut JournalBodies,
    ) -> vec_deque::Drain<'_, Gathered> {
        if self.gathered.is_empty() {
            let rest = &self.kept[self.begun..];
            let mut bytes = 0;
            let fits = |trace: &&Arc<KeptTrace>| {
                let is_begun = bytes < GATHERED_BYTES_MAX;
                bytes += trace.span_bytes();
                is_begun
            };
            let count = if self.fit_together { rest.len() } else { rest.iter().take_while(fits).count() };
            let portion = &rest[..count];
            self.begun += count;
            let mut archived = |trace: &KeptTrace| archived_spans(archive, trace);
            self.gathered = gather(portion, bodies, &mut archived).into();
        }
        self.gathered.drain(..wanted.min(self.gathered.len()))
    }
}

/// Bytes of the spans that these turns keep.
fn kept_bytes(turns: &[Turn]) -> usize {
    turns.iter().map(|turn| turn.kept_bytes).sum()
}

fn kept_decision(trace: &KeptTrace, spans: Vec<store_model::SpanLocation>) -> KeptDecision {
    KeptDecision {
        tenant: trace.tenant.clone(),
        trace_id: trace.trace_id,
        trace_start: trace.trace_start,
        decided_at: trace.decided_at,
        reason: trace.reason,
        threshold: trace.threshold,
        complete: trace.complete,
        spans,
    }
}

/// What the archive holds of a trace, span by span.
fn archived_spans(archive: &ShardWriter, trace: &KeptTrace) -> Vec<u64> {
    let fragments = archive.find(&trace.tenant, trace.trace_id).unwrap_or_else(|error| {
        // Copies are recognised again when the trace is read; only the count may be off.
        tracing::warn!(trace_id = %trace.trace_id, %error, "archived fragments cannot be compared with late spans");
        Vec::new()
    });
    let mut identities = Vec::new();
    for fragment in fragments {
        let result = ingest_otlp::visit_spans(&fragment.otlp, &mut |_, _, span| {
            identities.push(ingest_otlp::identity(span));
        });
        if let Err(error) = result {
            tracing::error!(trace_id = %trace.trace_id, %error, "archived fragment cannot be read");
        }
    }
    identities
}
