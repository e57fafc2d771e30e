//! Live traces as the query engine sees them: questions to the shards' threads, bodies from memory or the journal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use ingest_aggregator::{BodySource, KeptTrace, gather};
use query_engine::{Live, LiveTrace};
use store_model::{Reason, Tenant, Threshold, TraceId, UnixNanos};

use crate::bodies::JournalBodies;
use crate::shards::Ask;

/// A shard answers within its turn; one that does not is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to reach one shard.
pub(crate) struct ShardLine {
    pub(crate) asks: SyncSender<Ask>,
    pub(crate) thread: std::thread::Thread,
}

impl ShardLine {
    fn ask<T>(&self, question: impl FnOnce(mpsc::Sender<T>) -> Ask) -> Option<T> {
        let (reply, answer) = mpsc::channel();
        self.asks.send(question(reply)).ok()?;
        self.thread.unpark();
        answer.recv_timeout(PATIENCE).ok()
    }
}

/// All shards.
pub(crate) struct LiveTraces {
    pub(crate) shards: Vec<ShardLine>,
    pub(crate) bodies: JournalBodies,
}

impl LiveTraces {
    fn shard_of(&self, trace_id: TraceId) -> usize {
        usize::from(trace_id.shard(u16::try_from(self.shards.len()).unwrap_or(u16::MAX)).0)
    }
}

impl Live for LiveTraces {
    fn trace(&self, tenant: &Tenant, trace_id: TraceId) -> Option<LiveTrace> {
        let shard = &self.shards[self.shard_of(trace_id)];
        let live = shard.ask(|reply| Ask::Trace { tenant: tenant.clone(), trace_id, reply })??;
        let trace = Arc::new(KeptTrace {
            tenant: tenant.clone(),
            trace_id,
            trace_start: live.trace_start,
            end: UnixNanos(0),
            decided_at: UnixNanos(0),
            // Placeholders: only the bytes are looked at.
            reason: Reason::Head,
            threshold: Threshold::ALWAYS,
            complete: live.root_seen,
            late: false,
            spans: live.spans,
        });
        let mut bodies = self.bodies.clone();
        let gathered = gather(&[trace], &mut bodies, &mut |_| Vec::new()).pop()?;
        let otlp = gathered.fragment?.otlp;
        Some(LiveTrace {
            trace_start: live.trace_start,
            otlp,
            root_seen: live.root_seen,
            verdict: live.verdict,
        })
    }

    fn bodies(&self, tenant: &Tenant, visit: &mut dyn FnMut(&[u8]) -> bool) {
        let mut found = BTreeMap::new();
        for shard in &self.shards {
            let answer = shard.ask(|reply| Ask::Bodies { tenant: tenant.clone(), reply });
            for (partition, offset, bytes) in answer.unwrap_or_default() {
                let slot = found.entry((partition, offset)).or_insert(None);
                *slot = slot.take().or(bytes);
            }
        }
        let mut journal = self.bodies.clone();
        // Newest first: an answer that runs out of budget has the news.
        for ((partition, offset), bytes) in found.into_iter().rev() {
            let Some(body) = bytes.or_else(|| Some(journal.body(partition, offset)?.bytes.clone())) else {
                continue;
            };
            if !visit(&body) {
                return;
            }
        }
    }

    fn undecided(&self, tenant: &Tenant, ids: &[TraceId]) -> Vec<Option<UnixNanos>> {
        let mut answers = vec![None; ids.len()];
        for (number, shard) in self.shards.iter().enumerate() {
            let own: Vec<usize> =
                (0..ids.len()).filter(|&index| self.shard_of(ids[index]) == number).collect();
            if own.is_empty() {
                continue;
            }
            let asked = own.iter().map(|&index| ids[index]).collect();
            let starts = shard.ask(|reply| Ask::Undecided { tenant: tenant.clone(), ids: asked, reply });
            for (index, start) in own.into_iter().zip(starts.unwrap_or_default()) {
                answers[index] = start;
            }
        }
        answers
    }
}
