//! How a shard finds back after a crash: which spans of the journal are settled already.
//!
//! Settlement records say, turn by turn, which traces were settled and up to where the journal was consumed. Spans at or
//! above the last frontier are new. Of the spans between watermark and frontier those are settled whose trace a turn with
//! a frontier above them names; the others are undecided and live again. Turns whose frontier lies below the
//! last watermark can say nothing about any span that will be read again, so they are let go while reading.

use std::collections::VecDeque;

use hashbrown::HashMap;
use store_model::{Offset, PartitionId, SpanRuns, Tenant, TraceId};

use crate::remembered::KeptMemory;

/// One turn, as its settlement record tells it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Per partition: consumed below.
    pub frontier: Vec<Offset>,
    /// Per partition: settled below.
    pub watermark: Vec<Offset>,
    /// Traces kept, late ones included.
    pub kept: Vec<(Tenant, TraceId, KeptMemory)>,
    /// Traces dropped, late ones included.
    pub dropped: Vec<(Tenant, TraceId)>,
}

/// What the settlement records of a shard add up to.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    turns: VecDeque<Observed>,
    frontier: Vec<Offset>,
    watermark: Vec<Offset>,
    remembered: VecDeque<Observed>,
    remembered_traces: usize,
}

/// Decisions beyond this many are not remembered across a restart: the memory of a shard would not hold them either.
const REMEMBERED_MAX: usize = 8_000_000;

impl Resume {
    /// Takes the next record, oldest first.
    pub fn observe(&mut self, turn: Observed) {
        self.frontier.clone_from(&turn.frontier);
        self.watermark.clone_from(&turn.watermark);
        self.turns.push_back(turn);
        while self.turns.front().is_some_and(|oldest| self.is_behind(oldest)) {
            let Some(oldest) = self.turns.pop_front() else { break };
            self.remembered_traces += oldest.kept.len() + oldest.dropped.len();
            self.remembered.push_back(oldest);
        }
        while self.remembered_traces > REMEMBERED_MAX {
            let Some(oldest) = self.remembered.pop_front() else { break };
            self.remembered_traces -= oldest.kept.len() + oldest.dropped.len();
        }
    }

    fn is_behind(&self, turn: &Observed) -> bool {
        turn.frontier.len() <= self.watermark.len()
            && turn.frontier.iter().zip(&self.watermark).all(|(consumed, settled)| consumed <= settled)
    }

    /// Where to read a partition of the journal again from.
    #[must_use]
    pub fn watermark(&self, partition: PartitionId) -> Offset {
        self.watermark.get(usize::from(partition.0)).copied().unwrap_or_default()
    }

    /// Where a partition's news begin. Its writer must not give out offsets below.
    #[must_use]
    pub fn frontier(&self, partition: PartitionId) -> Offset {
        self.frontier.get(usize::from(partition.0)).copied().unwrap_or_default()
    }

    /// Every remembered decision, oldest first.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = &Observed> {
        self.remembered.iter().chain(&self.turns)
    }

    /// The filter for spans that are read again.
    pub(crate) fn filter(&self, number: impl Fn(&Tenant) -> u32) -> Filter {
        let mut settled = HashMap::new();
        for (index, turn) in self.turns.iter().enumerate() {
            let kept = turn.kept.iter().map(|(tenant, trace_id, _)| (tenant, *trace_id));
            let dropped = turn.dropped.iter().map(|(tenant, trace_id)| (tenant, *trace_id));
            // A later turn's frontier is higher, so that the last entry of a trace says it all.
            settled.extend(kept.chain(dropped).map(|(tenant, trace_id)| ((number(tenant), trace_id), index)));
        }
        let frontiers = self.turns.iter().map(|turn| turn.frontier.clone()).collect();
        Filter { settled, frontiers, frontier: self.frontier.clone() }
    }
}

/// Tells settled spans from undecided ones while the journal is read again.
#[derive(Debug)]
pub(crate) struct Filter {
    settled: HashMap<(u32, TraceId), usize>,
    frontiers: Vec<Vec<Offset>>,
    frontier: Vec<Offset>,
}

impl Filter {
    /// Whether the record was consumed before the crash, so that its spans were counted as arrived.
    pub(crate) fn was_consumed(&self, partition: PartitionId, offset: Offset) -> bool {
        self.frontier.get(usize::from(partition.0)).is_some_and(|&frontier| offset < frontier)
    }

    /// The spans of this record that were not settled before the crash.
    pub(crate) fn undecided(
        &self,
        spans: &SpanRuns,
        tenant: u32,
        partition: PartitionId,
        offset: Offset,
    ) -> SpanRuns {
        let mut undecided = SpanRuns::default();
        for (run, ranges) in spans.iter() {
            if !self.is_settled((tenant, run.trace_id), partition, offset) {
                undecided.push_run(run, ranges);
            }
        }
        undecided
    }

    /// Whether spans of this trace in this record were settled before the crash.
    fn is_settled(&self, key: (u32, TraceId), partition: PartitionId, offset: Offset) -> bool {
        let Some(&turn) = self.settled.get(&key) else { return false };
        self.frontiers[turn].get(usize::from(partition.0)).is_some_and(|&frontier| offset < frontier)
    }

    /// Whether the filter has nothing more to say once `consumed` was reached.
    pub(crate) fn is_done(&self, consumed: impl Fn(usize) -> Offset) -> bool {
        self.frontier.iter().enumerate().all(|(index, &frontier)| consumed(index) >= frontier)
    }
}
