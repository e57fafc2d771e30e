//! The table of live traces: found by (tenant, trace id), each with a chain of its spans.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use ingest_sampler::{Root, TraceFacts};
use store_model::{
    BodyRange, Monotonic, Offset, PartitionId, Randomness, SpanFlags, SpanLocation, SpanSummary, UnixNanos,
};

use crate::remembered::{KeptMemory, ShardKey};
use crate::slab::Slab;
use crate::wheel::Tick;

/// "No next span" in a chain.
const END: u32 = u32::MAX;

/// An undecided span: where it lies, nothing more; what a decision needs is folded into its trace on arrival.
#[derive(Clone, Copy, Debug)]
struct LiveSpan {
    offset: Offset,
    range: BodyRange,
    next: u32,
    partition: PartitionId,
}

/// A trace that still receives spans.
#[derive(Clone, Debug)]
pub(crate) struct LiveTrace {
    pub(crate) key: ShardKey,
    pub(crate) randomness: Randomness,
    pub(crate) root: Option<Root>,
    pub(crate) has_error: bool,
    /// Its spans follow an earlier decision to keep.
    pub(crate) inherited: Option<KeptMemory>,
    pub(crate) first_seen: Monotonic,
    pub(crate) last_seen: Monotonic,
    pub(crate) start: UnixNanos,
    pub(crate) end: UnixNanos,
    pub(crate) span_count: u32,
    pub(crate) bytes: u64,
    /// The tick of its valid wheel entry.
    pub(crate) scheduled: Tick,
    head: u32,
    tail: u32,
}

impl LiveTrace {
    pub(crate) fn facts(&self) -> TraceFacts {
        TraceFacts { randomness: self.randomness, has_error: self.has_error, root: self.root }
    }
}

/// Bytes a live trace costs beside its spans: its slot and its share of the hash table and the wheel.
const TRACE_BYTES: usize = size_of::<LiveTrace>() + 3 * size_of::<u32>() + size_of::<crate::wheel::Entry>();

#[derive(Debug)]
pub(crate) struct Table {
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    traces: Slab<LiveTrace>,
    spans: Slab<LiveSpan>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            traces: Slab::new(),
            spans: Slab::new(),
        }
    }

    pub(crate) fn trace_count(&self) -> usize {
        self.traces.len()
    }

    pub(crate) fn span_count(&self) -> usize {
        self.spans.len()
    }

    /// Resident bytes of what is live, bodies apart.
    pub(crate) fn bytes(&self) -> usize {
        self.traces.len() * TRACE_BYTES + self.spans.len() * size_of::<LiveSpan>()
    }

    pub(crate) fn find(&self, key: ShardKey) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.index.find(hash, |&slot| self.traces[slot].key == key).copied()
    }

    pub(crate) fn get(&self, slot: u32) -> &LiveTrace {
        &self.traces[slot]
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut LiveTrace {
        &mut self.traces[slot]
    }

    /// Whether the slot holds a live trace whose valid wheel entry is for `tick`.
    pub(crate) fn is_scheduled(&self, slot: u32, tick: Tick) -> bool {
        let trace = &self.traces[slot];
        trace.scheduled == tick && self.find(trace.key) == Some(slot)
    }

    pub(crate) fn insert(
        &mut self,
        key: ShardKey,
        randomness: Randomness,
        inherited: Option<KeptMemory>,
        now: Monotonic,
    ) -> u32 {
        let slot = self.traces.insert(LiveTrace {
            key,
            randomness,
            root: None,
            has_error: false,
            inherited,
            first_seen: now,
            last_seen: now,
            start: UnixNanos(u64::MAX),
            end: UnixNanos(0),
            span_count: 0,
            bytes: 0,
            scheduled: Tick::default(),
            head: END,
            tail: END,
        });
        let hash = self.hasher.hash_one(key);
        let Self { index, hasher, traces, .. } = self;
        index.insert_unique(hash, slot, |&slot| hasher.hash_one(traces[slot].key));
        slot
    }

    /// Appends a span to the chain of `slot` and folds its facts into the trace.
    pub(crate) fn append(
        &mut self,
        slot: u32,
        partition: PartitionId,
        offset: Offset,
        span: &SpanSummary,
        now: Monotonic,
    ) {
        let number = self.spans.insert(LiveSpan { offset, range: span.range, next: END, partition });
        let trace = &mut self.traces[slot];
        match trace.tail {
            END => trace.head = number,
            tail => self.spans[tail].next = number,
        }
        trace.tail = number;
        trace.last_seen = now;
        trace.span_count = trace.span_count.saturating_add(1);
        trace.bytes += u64::from(span.range.length);
        trace.start = trace.start.min(span.start);
        trace.end = trace.end.max(UnixNanos(span.start.0.saturating_add(span.duration_ns)));
        trace.has_error |= span.flags.has(SpanFlags::ERROR);
        if span.flags.has(SpanFlags::ROOT) && trace.root.is_none() {
            let SpanSummary { service, operation, duration_ns, .. } = *span;
            trace.root = Some(Root { service, operation, duration_ns });
        }
    }

    /// Where the spans of `slot` lie, in order of arrival.
    pub(crate) fn locations(&self, slot: u32) -> impl Iterator<Item = SpanLocation> + '_ {
        let mut number = self.traces[slot].head;
        std::iter::from_fn(move || {
            if number == END {
                return None;
            }
            let LiveSpan { offset, range, next, partition } = self.spans[number];
            number = next;
            Some(SpanLocation { partition, offset, range })
        })
    }

    /// Forgets the trace and frees its spans.
    pub(crate) fn remove(&mut self, slot: u32) {
        let trace = &self.traces[slot];
        let (key, mut number) = (trace.key, trace.head);
        while number != END {
            let next = self.spans[number].next;
            self.spans.remove(number);
            number = next;
        }
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        self.traces.remove(slot);
    }

    /// The slots of all live traces.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.iter().copied()
    }
}
