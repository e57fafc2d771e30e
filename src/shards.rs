//! The thread of one shard: drains its rings, ends turns, answers questions about live traces.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError};
use std::time::Duration;

use bytes::Bytes;
use ingest_aggregator::{Batch, Gauges, LiveSpans, Shard, Turn};
use rtrb::Consumer;
use store_model::{Monotonic, Offset, PartitionId, ShardId, Tenant, TraceId, UnixNanos};

use crate::clock;
use crate::gate::Gate;

/// A turn lasts at least this long under load, so that settlement records stay few.
const TURN: Duration = Duration::from_millis(5);

/// How long an idle shard sleeps; the journal wakes it sooner.
const IDLE: Duration = Duration::from_millis(10);

/// Batches taken from one ring before the next ring and the clock get a look.
const BATCHES_PER_LOOK: usize = 16;

/// Questions answered between two looks at the rings.
const ASKS_PER_LOOK: usize = 32;

/// A record that holds undecided spans: where it lies, and its body if memory still has it.
pub(crate) type UndecidedBody = (PartitionId, Offset, Option<Bytes>);

/// What a batch holds in memory while it waits.
pub(crate) fn batch_bytes(batch: &Batch) -> usize {
    batch.body.bytes.len() + batch.spans.heap_bytes()
}

/// A question about live traces.
pub(crate) enum Ask {
    Trace { tenant: Tenant, trace_id: TraceId, reply: Sender<Option<LiveSpans>> },
    Undecided { tenant: Tenant, ids: Vec<TraceId>, reply: Sender<Vec<Option<UnixNanos>>> },
    Bodies { tenant: Tenant, reply: Sender<Vec<UndecidedBody>> },
}

/// What the shard's thread publishes.
#[derive(Debug, Default)]
pub(crate) struct Published {
    live_traces: AtomicUsize,
    live_spans: AtomicUsize,
    live_bytes: AtomicUsize,
    body_bytes: AtomicUsize,
    /// Bytes of batches that wait in the shard's rings; the journal waits when they are too many.
    pub(crate) ring_bytes: AtomicUsize,
    /// The newest turn whose kept traces are in the archive; written by the archiver.
    pub(crate) archived_turn: AtomicU64,
    /// Set when the shard should stop once its rings are empty.
    pub(crate) stop: AtomicBool,
}

impl Published {
    fn set(&self, gauges: Gauges) {
        let Gauges { live_traces, live_spans, live_bytes, body_bytes } = gauges;
        self.live_traces.store(live_traces, Ordering::Relaxed);
        self.live_spans.store(live_spans, Ordering::Relaxed);
        self.live_bytes.store(live_bytes, Ordering::Relaxed);
        self.body_bytes.store(body_bytes, Ordering::Relaxed);
    }

    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            live_traces: self.live_traces.load(Ordering::Relaxed),
            live_spans: self.live_spans.load(Ordering::Relaxed),
            live_bytes: self.live_bytes.load(Ordering::Relaxed),
            body_bytes: self.body_bytes.load(Ordering::Relaxed),
        }
    }
}

/// The thread's state.
pub(crate) struct ShardThread {
    pub(crate) id: ShardId,
    pub(crate) shard: Shard,
    pub(crate) rings: Vec<Consumer<Batch>>,
    pub(crate) asks: Receiver<Ask>,
    pub(crate) turns: SyncSender<Turn>,
    pub(crate) published: Arc<Published>,
    pub(crate) gate: Arc<Gate>,
}

impl ShardThread {
    /// Runs until it is told to stop and its rings are empty. What is undecided then is in the journal.
    pub(crate) fn run(mut self) {
        let mut waiting: Option<Turn> = None;
        let mut turn_began = Monotonic(0);
        let mut has_room = true;
        loop {
            let now = clock::monotonic();
            // What the archiver has no room for, or no time, stops the rings: the bounded queues upstream do the rest.
            let mut took = 0;
            if waiting.is_none() && has_room {
                took = self.drain(now);
            }
            if waiting.is_none() && now.since(turn_began) >= TURN {
                turn_began = now;
                waiting = self.end_turn(now);
                has_room = !self.shard.is_full() && !self.shard.is_ahead();
            }
            waiting = waiting.and_then(|turn| self.hand_over(turn));
            let answered = self.answer();
            if took == 0 && answered == 0 {
                if self.published.stop.load(Ordering::Acquire) && waiting.is_none() && self.is_drained() {
                    break;
                }
                std::thread::park_timeout(IDLE);
            }
        }
        // The last turn carries the frontier of everything consumed.
        if let Some(turn) = self.end_turn(clock::monotonic()) {
            let _archiver_gone = self.turns.send(turn);
        }
    }

    fn is_drained(&self) -> bool {
        self.rings.iter().all(Consumer::is_empty)
    }

    fn drain(&mut self, now: Monotonic) -> usize {
        let mut took = 0;
        for ring in &mut self.rings {
            for _ in 0..BATCHES_PER_LOOK {
                let Ok(batch) = ring.pop() else { break };
                self.published.ring_bytes.fetch_sub(batch_bytes(&batch), Ordering::Relaxed);
                self.shard.take(batch, now);
                took += 1;
            }
        }
        took
    }

    fn end_turn(&mut self, now: Monotonic) -> Option<Turn> {
        self.shard.forget_archived(self.published.archived_turn.load(Ordering::Acquire));
        let turn = self.shard.end_turn(now, clock::unix());
        self.published.set(self.shard.gauges());
        let name = format!("memory of shard {}", self.id);
        if self.shard.is_full() {
            self.gate.close(&name, "live traces fill memory.limit and cannot be decided faster");
        } else {
            self.gate.open(&name);
        }
        turn
    }

    fn hand_over(&self, turn: Turn) -> Option<Turn> {
        match self.turns.try_send(turn) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => None,
            Err(TrySendError::Full(turn)) => Some(turn),
        }
    }

    fn answer(&mut self) -> usize {
        let mut answered = 0;
        // An asker that has gone away needs no answer.
        for ask in self.asks.try_iter().take(ASKS_PER_LOOK) {
            match ask {
                Ask::Trace { tenant, trace_id, reply } => {
                    drop(reply.send(self.shard.trace(&tenant, trace_id)))
                }
                Ask::Undecided { tenant, ids, reply } => {
                    drop(reply.send(self.shard.undecided(&tenant, &ids)))
                }
                Ask::Bodies { tenant, reply } => drop(reply.send(self.shard.bodies(&tenant))),
            }
            answered += 1;
        }
        answered
    }
}
