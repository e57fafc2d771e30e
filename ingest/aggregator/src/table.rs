//! The table of live traces: found by (tenant, trace id), each with a chain of its spans.
//!
//! What every span touches of its trace fits one cache line, found through one more (a cell of the index). Both are asked
//! for a block of traces ahead: a batch of spans meets a million traces, none of which is in the cache.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use ingest_sampler::{Root, TraceFacts};
use store_model::{
    BodyRange, Monotonic, Offset, PartitionId, Randomness, SpanFlags, SpanLocation, SpanSummary, TraceId,
    UnixNanos,
};

use crate::cells::Cells;
use crate::prefetch::prefetch;
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

/// What every span of a trace touches.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Hot {
    trace_id: TraceId,
    start: UnixNanos,
    end: UnixNanos,
    last_seen: Monotonic,
    tenant: u32,
    head: u32,
    tail: u32,
    span_count: u32,
    /// The tick of its valid wheel entry.
    scheduled: u32,
    has_error: bool,
    has_root: bool,
}

const _: () = assert!(size_of::<Hot>() == 64);

/// What is written once or twice in a trace's life.
#[derive(Clone, Debug)]
struct Cold {
    randomness: Randomness,
    first_seen: Monotonic,
    root: Option<Root>,
    /// Its spans follow an earlier decision to keep.
    inherited: Option<KeptMemory>,
}

/// A trace that still receives spans, at one moment.
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
}

impl LiveTrace {
    pub(crate) fn facts(&self) -> TraceFacts {
        TraceFacts { randomness: self.randomness, has_error: self.has_error, root: self.root }
    }
}

/// Bytes a live trace costs beside its spans: its two slots, its cell at the usual load, its wheel entry.
const TRACE_BYTES: usize =
    size_of::<Hot>() + size_of::<Cold>() + 2 * size_of::<u64>() + size_of::<crate::wheel::Entry>();

#[derive(Debug)]
pub(crate) struct Table {
    /// The low half of a key's hash, and above it the number of its slot plus one.
    index: Cells,
    hasher: DefaultHashBuilder,
    hot: Slab<Hot>,
    cold: Vec<Cold>,
    spans: Slab<LiveSpan>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            index: Cells::new(),
            hasher: DefaultHashBuilder::default(),
            hot: Slab::new(),
            cold: Vec::new(),
            spans: Slab::new(),
        }
    }

    pub(crate) fn trace_count(&self) -> usize {
        self.hot.len()
    }

    pub(crate) fn span_count(&self) -> usize {
        self.spans.len()
    }

    /// Resident bytes of what is live, bodies apart.
    pub(crate) fn bytes(&self) -> usize {
        self.hot.len() * TRACE_BYTES + self.spans.len() * size_of::<LiveSpan>()
    }

    /// Hashed once, used by every look-up of a key.
    pub(crate) fn hash(&self, key: ShardKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Asks for the index's line of a key.
    pub(crate) fn prefetch_cell(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Asks for the slot of a key whose line of the index is there by now.
    pub(crate) fn prefetch_slot(&self, hash: u64) {
        if let Some(cell) = self.index.find(hash, |cell| low_half(cell) == low_half(hash)) {
            prefetch(&self.hot[slot_of(cell)]);
        }
    }

    /// Asks for what a decision reads of a slot.
    pub(crate) fn prefetch_trace(&self, slot: u32) {
        prefetch(&self.hot[slot]);
        if let Some(cold) = self.cold.get(slot as usize) {
            prefetch(cold);
        }
    }

    pub(crate) fn find(&self, key: ShardKey, hash: u64) -> Option<u32> {
        let is_it = |cell| {
            let hot = &self.hot[slot_of(cell)];
            (hot.tenant, hot.trace_id) == key
        };
        self.index.find(hash, |cell| low_half(cell) == low_half(hash) && is_it(cell)).map(slot_of)
    }

    pub(crate) fn get(&self, slot: u32) -> LiveTrace {
        let &Hot { trace_id, tenant, start, end, last_seen, span_count, has_error, .. } = &self.hot[slot];
        let &Cold { randomness, first_seen, root, inherited } = &self.cold[slot as usize];
        LiveTrace {
            key: (tenant, trace_id),
            randomness,
            root,
            has_error,
            inherited,
            first_seen,
            last_seen,
            start,
            end,
            span_count,
        }
    }

    pub(crate) fn spans_of(&self, slot: u32) -> u32 {
        self.hot[slot].span_count
    }

    pub(crate) fn set_scheduled(&mut self, slot: u32, tick: Tick) {
        self.hot[slot].scheduled = short(tick);
    }

    /// Whether the slot holds a live trace whose valid wheel entry is for `tick`.
    pub(crate) fn is_scheduled(&self, slot: u32, tick: Tick) -> bool {
        // A slot that was given back has no spans.
        let hot = &self.hot[slot];
        hot.scheduled == short(tick) && hot.span_count > 0
    }

    pub(crate) fn insert(
        &mut self,
        key: ShardKey,
        hash: u64,
        randomness: Randomness,
        inherited: Option<KeptMemory>,
        now: Monotonic,
    ) -> u32 {
        let (tenant, trace_id) = key;
        let slot = self.hot.insert(Hot {
            trace_id,
            start: UnixNanos(u64::MAX),
            end: UnixNanos(0),
            last_seen: now,
            tenant,
            head: END,
            tail: END,
            span_count: 0,
            scheduled: 0,
            has_error: false,
            has_root: false,
        });
        let cold = Cold { randomness, first_seen: now, root: None, inherited };
        match self.cold.get_mut(slot as usize) {
            Some(old) => *old = cold,
            // Slots are numbered without gaps, so a new one is the next.
            None => self.cold.push(cold),
        }
        self.index.insert(cell(hash, slot));
        slot
    }

    /// Appends a span to the chain of `slot` and folds its facts into the trace. The root comes back when this span
    /// is the first of them.
    pub(crate) fn append(
        &mut self,
        slot: u32,
        partition: PartitionId,
        offset: Offset,
        span: &SpanSummary,
        now: Monotonic,
    ) -> Option<Root> {
        let number = self.spans.insert(LiveSpan { offset, range: span.range, next: END, partition });
        let trace = &mut self.hot[slot];
        match trace.tail {
            END => trace.head = number,
            tail => self.spans[tail].next = number,
        }
        trace.tail = number;
        trace.last_seen = now;
        trace.span_count = trace.span_count.saturating_add(1);
        trace.start = trace.start.min(span.start);
        trace.end = trace.end.max(UnixNanos(span.start.0.saturating_add(span.duration_ns)));
        trace.has_error |= span.flags.has(SpanFlags::ERROR);
        if !span.flags.has(SpanFlags::ROOT) || trace.has_root {
            return None;
        }
        trace.has_root = true;
        let SpanSummary { service, operation, duration_ns, .. } = *span;
        let root = Root { service, operation, duration_ns };
        self.cold[slot as usize].root = Some(root);
        Some(root)
    }

    /// Where the spans of `slot` lie, in order of arrival.
    pub(crate) fn locations(&self, slot: u32) -> impl Iterator<Item = SpanLocation> + '_ {
        let mut number = self.hot[slot].head;
        std::iter::from_fn(move || {
            if number == END {
                return None;
            }
            let LiveSpan { offset, range, next, partition } = self.spans[number];
            number = next;
            Some(SpanLocation { partition, offset, range })
        })
    }

    /// Asks for what removing a trace touches, whose slot is there by now.
    pub(crate) fn prefetch_removal(&self, slot: u32) {
        let hot = &self.hot[slot];
        self.index.prefetch(self.hash((hot.tenant, hot.trace_id)));
        if hot.span_count > 0 {
            prefetch(&self.spans[hot.head]);
        }
    }

    /// Forgets the trace and frees its spans, telling `each` which record each of them lies in.
    pub(crate) fn remove(&mut self, slot: u32, each: &mut impl FnMut(PartitionId, Offset)) {
        let trace = &mut self.hot[slot];
        let key = (trace.tenant, trace.trace_id);
        let mut number = trace.head;
        trace.span_count = 0;
        while number != END {
            let LiveSpan { offset, next, partition, .. } = self.spans[number];
            self.spans.remove(number);
            each(partition, offset);
            number = next;
        }
        self.index.remove(cell(self.hash(key), slot));
        self.hot.remove(slot);
    }

    /// The slots of all live traces.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.iter().map(slot_of)
    }
}

fn cell(hash: u64, slot: u32) -> u64 {
    (u64::from(slot) + 1) << 32 | u64::from(low_half(hash))
}

fn slot_of(cell: u64) -> u32 {
    u32::try_from((cell >> 32) - 1).unwrap_or(u32::MAX)
}

fn low_half(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

/// Ticks of 100 ms since the machine started: 32 bits last for 13 years.
fn short(tick: Tick) -> u32 {
    u32::try_from(tick.0 & u64::from(u32::MAX)).unwrap_or(0)
}
