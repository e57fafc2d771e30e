//! The table of live traces: found by (tenant, trace id), each with a chain of the runs its spans came in.
//!
//! What every run touches of its trace fits one cache line, found through one more (a cell of the index); what is read once or
//! twice in its life lies in the line beside it. They are asked for a block of traces ahead: a batch of spans meets a million
//! traces, none of which is in the cache.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashMap};
use ingest_sampler::{Root, TraceFacts};
use store_model::{Monotonic, PartitionId, Randomness, SpanFlags, SpanRun, Symbol, TraceId, UnixNanos};

use crate::bodies::Run;
use crate::cells::{Cells, low_half, slot_cell, slot_of};
use crate::prefetch::prefetch;
use crate::remembered::{KeptMemory, ShardKey};
use crate::slab::Slab;
use crate::wheel::Tick;

/// "No next run" in a chain.
const END: u32 = u32::MAX;

/// What stands for a root that has not arrived.
const NO_ROOT: Root = Root { service: Symbol(0), operation: Symbol(0), duration_ns: 0 };

/// A run and the number of the next one of its trace.
#[derive(Clone, Copy, Debug)]
struct Link {
    run: Run,
    next: u32,
}

/// What every run of a trace touches.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Hot {
    trace_id: TraceId,
    start: UnixNanos,
    end: UnixNanos,
    last_seen: Monotonic,
    tenant: u32,
    /// The last run; [`END`] when that is the first.
    tail: u32,
    span_count: u32,
    /// The tick of its valid wheel entry.
    scheduled: Tick,
    has_error: bool,
    has_root: bool,
    /// Its spans follow an earlier decision to keep.
    is_inherited: bool,
}

/// What is written once or twice in a trace's life.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Cold {
    hash: u64,
    randomness: Randomness,
    first_seen: Monotonic,
    /// Means nothing before `has_root`.
    root: Root,
    /// Most traces come in one run, which needs no link elsewhere.
    first: Link,
}

#[derive(Clone, Debug)]
#[repr(C)]
struct Slot {
    hot: Hot,
    cold: Cold,
}

const _: () = assert!(size_of::<Slot>() == 128);

/// A trace that still receives spans, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct LiveTrace {
    pub(crate) key: ShardKey,
    pub(crate) hash: u64,
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

/// Bytes a live trace costs beside its spans: its slot, its cell at the usual load, its wheel entry.
const TRACE_BYTES: usize = size_of::<Slot>() + 2 * size_of::<u64>() + size_of::<crate::wheel::Entry>();

/// What an inherited trace costs more, at the usual load of a map.
const INHERITED_BYTES: usize = 2 * size_of::<(u32, KeptMemory)>();

#[derive(Debug)]
pub(crate) struct Table {
    /// The low half of a key's hash, and above it the number of its slot plus one.
    index: Cells,
    hasher: DefaultHashBuilder,
    slots: Slab<Slot>,
    /// Runs beyond the first of their trace.
    links: Slab<Link>,
    /// By slot, the decision that its spans follow. Few traces have one.
    inherited: HashMap<u32, KeptMemory>,
    span_count: usize,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            index: Cells::new(),
            hasher: DefaultHashBuilder::default(),
            slots: Slab::new(),
            links: Slab::new(),
            inherited: HashMap::new(),
            span_count: 0,
        }
    }

    pub(crate) fn trace_count(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn span_count(&self) -> usize {
        self.span_count
    }

    /// Resident bytes of live traces; what is held of each span is held by its record.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.len() * TRACE_BYTES
            + self.links.len() * size_of::<Link>()
            + self.inherited.len() * INHERITED_BYTES
    }

    /// Hashed once, used by every look-up of a key.
    #[inline(always)]
    pub(crate) fn hash(&self, key: ShardKey) -> u64 {
        let (tenant, TraceId(id)) = key;
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u128(u128::from_ne_bytes(id));
        hasher.write_u32(tenant);
        hasher.finish()
    }

    /// Asks for the index's line of a key.
    #[inline(always)]
    pub(crate) fn prefetch_cell(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Asks for the slot of a key whose line of the index is there by now; false when it has none.
    #[inline(always)]
    pub(crate) fn prefetch_slot(&self, hash: u64) -> bool {
        let cell = self.index.find(hash, |cell| low_half(cell) == low_half(hash));
        if let Some(cell) = cell {
            self.prefetch_trace(slot_of(cell));
        }
        cell.is_some()
    }

    /// Asks for a slot.
    #[inline(always)]
    pub(crate) fn prefetch_trace(&self, slot: u32) {
        prefetch(&self.slots[slot]);
    }

    pub(crate) fn find(&self, key: ShardKey, hash: u64) -> Option<u32> {
        let is_it = |cell| {
            let hot = &self.slots[slot_of(cell)].hot;
            (hot.tenant, hot.trace_id) == key
        };
        self.index.find(hash, |cell| low_half(cell) == low_half(hash) && is_it(cell)).map(slot_of)
    }

    pub(crate) fn get(&self, slot: u32) -> LiveTrace {
        let Slot { hot, cold } = &self.slots[slot];
        let &Hot { trace_id, tenant, start, end, last_seen, span_count, has_error, .. } = hot;
        let &Cold { hash, randomness, first_seen, root, .. } = cold;
        LiveTrace {
            key: (tenant, trace_id),
            hash,
            randomness,
            root: hot.has_root.then_some(root),
            has_error,
            inherited: if hot.is_inherited { self.inherited.get(&slot).copied() } else { None },
            first_seen,
            last_seen,
            start,
            end,
            span_count,
        }
    }

    pub(crate) fn spans_of(&self, slot: u32) -> u32 {
        self.slots[slot].hot.span_count
    }

    pub(crate) fn set_scheduled(&mut self, slot: u32, tick: Tick) {
        self.slots[slot].hot.scheduled = tick;
    }

    /// Whether the slot holds a live trace whose valid wheel entry is for `tick`.
    pub(crate) fn is_scheduled(&self, slot: u32, tick: Tick) -> bool {
        // A slot that was given back has no spans.
        let hot = &self.slots[slot].hot;
        hot.scheduled == tick && hot.span_count > 0
    }

    /// A new live trace, without spans yet.
    pub(crate) fn insert(
        &mut self,
        key: ShardKey,
        hash: u64,
        randomness: Randomness,
        inherited: Option<KeptMemory>,
        now: Monotonic,
    ) -> u32 {
        let (tenant, trace_id) = key;
        let hot = Hot {
            trace_id,
            start: UnixNanos(u64::MAX),
            end: UnixNanos(0),
            last_seen: now,
            tenant,
            tail: END,
            span_count: 0,
            scheduled: Tick(0),
            has_error: false,
            has_root: false,
            is_inherited: inherited.is_some(),
        };
        let nothing = Run { record: 0, first: 0, count: 0, partition: PartitionId(0) };
        let first = Link { run: nothing, next: END };
        let cold = Cold { hash, randomness, first_seen: now, root: NO_ROOT, first };
        let slot = self.slots.insert(Slot { hot, cold });
        if let Some(memory) = inherited {
            self.inherited.insert(slot, memory);
        }
        self.index.insert(slot_cell(hash, slot));
        slot
    }

    /// Appends a run to the chain of `slot` and folds its facts into the trace. The root comes back when it is the first.
    pub(crate) fn append(&mut self, slot: u32, run: Run, spans: &SpanRun, now: Monotonic) -> Option<Root> {
        let Slot { hot, cold } = &mut self.slots[slot];
        if hot.span_count == 0 {
            cold.first.run = run;
        } else {
            let number = self.links.insert(Link { run, next: END });
            match hot.tail {
                END => cold.first.next = number,
                tail => self.links[tail].next = number,
            }
            hot.tail = number;
        }
        self.span_count += run.count as usize;
        hot.last_seen = now;
        hot.span_count = hot.span_count.saturating_add(run.count);
        hot.start = hot.start.min(spans.start);
        hot.end = hot.end.max(spans.end);
        hot.has_error |= spans.flags.has(SpanFlags::ERROR);
        if hot.has_root || !spans.flags.has(SpanFlags::ROOT) {
            return None;
        }
        let &SpanRun { root_service, root_operation, root_duration_ns, .. } = spans;
        let root = Root { service: root_service, operation: root_operation, duration_ns: root_duration_ns };
        hot.has_root = true;
        cold.root = root;
        Some(root)
    }

    /// The runs of `slot`, in order of arrival.
    pub(crate) fn runs(&self, slot: u32) -> impl Iterator<Item = Run> + '_ {
        let Slot { hot, cold } = &self.slots[slot];
        let mut next = (hot.span_count > 0).then_some(cold.first);
        std::iter::from_fn(move || {
            let Link { run, next: number } = next?;
            next = (number != END).then(|| self.links[number]);
            Some(run)
        })
    }

    /// Asks for what removing a trace touches, whose slot is there by now. Its hash comes back.
    pub(crate) fn prefetch_removal(&self, slot: u32) -> u64 {
        let Cold { hash, first, .. } = &self.slots[slot].cold;
        self.index.prefetch(*hash);
        if first.next != END {
            prefetch(&self.links[first.next]);
        }
        *hash
    }

    /// Forgets the trace, handing out its runs.
    pub(crate) fn remove(&mut self, slot: u32, each: &mut impl FnMut(Run)) {
        let Slot { hot, cold } = &mut self.slots[slot];
        self.span_count -= hot.span_count as usize;
        hot.span_count = 0;
        if hot.is_inherited {
            self.inherited.remove(&slot);
        }
        self.index.remove(slot_cell(cold.hash, slot));
        let mut link = cold.first;
        // A new trace in this slot starts without.
        cold.first.next = END;
        each(link.run);
        while link.next != END {
            let number = link.next;
            link = self.links[number];
            self.links.remove(number);
            each(link.run);
        }
        self.slots.remove(slot);
    }

    /// The slots of all live traces.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.iter().map(slot_of)
    }
}
