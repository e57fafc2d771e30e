//! The state machine of one shard. See the crate's first page for the flow.
//!
//! Batches only collect; every decision falls at the end of a turn. That is what makes settlement records exact: a
//! turn's frontier cuts the journal at one point for all traces that the turn names.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use ingest_otlp::Body;
use ingest_sampler::{Policy, Sketches, SlowPolicy, decide};
use store_model::{
    Monotonic, Offset, PartitionId, Reason, SpanFlags, SpanLocation, SpanRun, Tenant, Threshold, TraceId,
    UnixNanos, Verdict,
};

use crate::batch::{Batch, DroppedTrace, KeptSpan, KeptTrace, Turn};
use crate::bodies::{Bodies, Run};
use crate::in_flight::InFlight;
use crate::remembered::{KeptMemory, Remembered, ShardKey};
use crate::resume::{Filter, Resume};
use crate::table::{LiveTrace, Table};
use crate::tally::Tally;
use crate::wheel::{Entry, Tick, Wheel};

/// When a trace counts as finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// After its root, a trace that has been quiet for this long is finished.
    pub quiet_after_root: Duration,
    /// Without a root, a trace that has been quiet for this long is.
    pub idle_timeout: Duration,
    /// However busy, a trace is decided when it is this old.
    pub trace_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet_after_root: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            trace_timeout: Duration::from_secs(300),
        }
    }
}

/// What a shard may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of live traces and spans, bodies apart. At nine tenths the heaviest and oldest are decided early.
    pub live_bytes_max: usize,
    /// Bytes of bodies kept in memory, those of kept traces on their way to the archive among them; older ones are read back
    /// from the journal. Of a body that several shards have spans of, each counts its part.
    pub body_bytes_max: usize,
    /// A trace with more spans than this is decided; later spans follow the decision.
    pub trace_spans_max: u32,
    /// Kept decisions remembered, per generation.
    pub kept_remembered_max: usize,
    /// Dropped decisions remembered, per generation.
    pub dropped_remembered_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            live_bytes_max: 512 << 20,
            body_bytes_max: 1 << 30,
            trace_spans_max: 200_000,
            kept_remembered_max: 500_000,
            dropped_remembered_max: 4_000_000,
        }
    }
}

/// How a shard is set up.
#[derive(Clone, Debug, Default)]
pub struct ShardConfig {
    /// How many partitions topic `spans` has on this node.
    pub partitions: u16,
    /// What is worth keeping.
    pub policy: Policy,
    /// What counts as slow.
    pub slow: SlowPolicy,
    /// When a trace is finished.
    pub timing: Timing,
    /// Memory.
    pub limits: Limits,
}

/// How full a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Traces that still receive spans.
    pub live_traces: usize,
    /// Their spans.
    pub live_spans: usize,
    /// Bytes of both.
    pub live_bytes: usize,
    /// Bytes of bodies held for them, and for kept traces on their way to the archive.
    pub body_bytes: usize,
}

/// The spans of a trace that are not in the archive yet.
#[derive(Clone, Debug)]
pub struct LiveSpans {
    /// Start of the earliest span.
    pub trace_start: UnixNanos,
    /// The root has arrived.
    pub root_seen: bool,
    /// Set once decided, while its bytes are on their way to the archive.
    pub verdict: Option<(Reason, Threshold)>,
    /// The spans, in order of arrival.
    pub spans: Vec<KeptSpan>,
}

/// The live traces of one shard.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    tenants: Vec<Tenant>,
    tenant_numbers: HashMap<Tenant, u32>,
    table: Table,
    wheel: Wheel,
    bodies: Vec<Bodies>,
    remembered: Remembered,
    sketches: Sketches,
    filter: Option<Filter>,
    in_flight: InFlight,
    turn: OpenTurn,
    /// Of one block. Kept for its memory.
    coming: Vec<Part>,
}

/// Spans of one trace in a row, with all that its trace learns from them.
#[derive(Clone, Copy, Debug)]
struct Part {
    key: ShardKey,
    hash: u64,
    run: Run,
    spans: SpanRun,
}

/// Runs looked at together. Each has up to six cache lines to ask for: what a core's first cache holds.
const BLOCK_RUNS: usize = 64;

/// How far ahead the memory is asked for a trace that is due.
const TRACES_AHEAD: usize = 8;

/// What the current turn has collected so far.
#[derive(Debug, Default)]
struct OpenTurn {
    number: u64,
    has_news: bool,
    tally: Tally,
    /// The keys of the turn's kept traces.
    kept: Vec<ShardKey>,
    /// Spans of dropped traces: whether they follow the decision is known only when the turn ends.
    late: Vec<Part>,
    oversized: Vec<u32>,
}

impl Shard {
    /// An empty shard, which has consumed nothing.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        let remembered =
            Remembered::new(config.limits.kept_remembered_max, config.limits.dropped_remembered_max);
        Self {
            tenants: Vec::new(),
            tenant_numbers: HashMap::new(),
            table: Table::new(),
            wheel: Wheel::new(),
            bodies: (0..config.partitions).map(|_| Bodies::new(Offset(0))).collect(),
            remembered,
            sketches: Sketches::new(config.slow.clone()),
            filter: None,
            in_flight: InFlight::default(),
            turn: OpenTurn::default(),
            coming: Vec::new(),
            config,
        }
    }

    /// A shard that goes on where its settlement records end. The journal is to be given again from
    /// [`Resume::watermark`] on.
    #[must_use]
    pub fn resume(config: ShardConfig, resume: &Resume) -> Self {
        let mut shard = Self::new(config);
        for (bodies, partition) in shard.bodies.iter_mut().zip(0..) {
            *bodies = Bodies::new(resume.watermark(PartitionId(partition)));
        }
        for turn in resume.decisions() {
            for (tenant, trace_id, memory) in &turn.kept {
                let key = (shard.tenant_number(tenant), *trace_id);
                let hash = shard.table.hash(key);
                shard.remembered.keep(key, hash, *memory);
            }
            for (tenant, trace_id) in &turn.dropped {
                let key = (shard.tenant_number(tenant), *trace_id);
                shard.remembered.drop(shard.table.hash(key));
            }
        }
        let numbers = &shard.tenant_numbers;
        shard.filter = Some(resume.filter(|tenant| numbers.get(tenant).copied().unwrap_or(u32::MAX)));
        shard
    }

    /// Takes the spans of one journal record. Records that were taken before are ignored.
    pub fn take(&mut self, batch: Batch, now: Monotonic) {
        let Batch { partition, offset, tenant, body, holders, refused, spans } = batch;
        let Some(bodies) = self.bodies.get(usize::from(partition.0)) else { return };
        if offset < bodies.consumed() {
            return;
        }
        let record = bodies.next_record();
        self.turn.has_news = true;
        let tenant = self.tenant_number(&tenant);
        let seen_before = self.filter.as_ref().is_some_and(|filter| filter.was_consumed(partition, offset));
        if !seen_before {
            let counts = &mut self.turn.tally.of(tenant).counts;
            counts.arrived += spans.len() as u64 + u64::from(refused);
            counts.refused += u64::from(refused);
        }
        let mut coming = std::mem::take(&mut self.coming);
        let filter = self.filter.as_ref().filter(|_| seen_before);
        let undecided = match filter {
            None => spans,
            Some(filter) => filter.undecided(&spans, tenant, partition, offset),
        };
        let mut first = 0;
        for runs in undecided.runs.chunks(BLOCK_RUNS) {
            coming.clear();
            coming.extend(runs.iter().map(|&spans| {
                let key = (tenant, spans.trace_id);
                let hash = self.table.hash(key);
                self.table.prefetch_cell(hash);
                let run = Run { record, first, count: spans.span_count, partition };
                first += spans.span_count;
                Part { key, hash, run, spans }
            }));
            self.prefetch(&coming);
            for part in &coming {
                self.take_part(part, now);
            }
        }
        self.coming = coming;
        self.bodies[usize::from(partition.0)].push(offset, tenant, (body, holders), undecided.ranges);
        self.make_room(usize::from(partition.0));
        let bodies = &self.bodies;
        if self.filter.as_ref().is_some_and(|filter| filter.is_done(|index| bodies[index].consumed())) {
            self.filter = None;
        }
    }

    /// Gives up bodies of a partition until the budget holds. It may use what others leave of theirs.
    fn make_room(&mut self, partition: usize) {
        let room = self.config.limits.body_bytes_max.saturating_sub(self.in_flight.body_bytes());
        let part = room / self.bodies.len();
        let own = self.bodies[partition].resident_bytes();
        if own > part {
            let others = self.resident_bytes() - own;
            self.bodies[partition].evict_to(part.max(room.saturating_sub(others)));
        }
    }

    /// Ends the turn: takes every decision that is due. `None` when nothing happened since the last turn.
    pub fn end_turn(&mut self, now: Monotonic, at: UnixNanos) -> Option<Turn> {
        let mut turn = Turn { at, ..Turn::default() };
        self.settle_late(now);
        let mut due = Vec::new();
        self.wheel.advance(now, &mut due);
        for (number, &entry) in due.iter().enumerate() {
            if let Some(ahead) = due.get(number + TRACES_AHEAD) {
                self.table.prefetch_trace(ahead.slot);
            }
            if let Some(ahead) = due.get(number + TRACES_AHEAD / 2) {
                let hash = self.table.prefetch_removal(ahead.slot);
                self.remembered.prefetch_drop(hash);
            }
            self.look_at(entry, &mut turn, now);
        }
        for slot in std::mem::take(&mut self.turn.oversized) {
            if self.table.spans_of(slot) > self.config.limits.trace_spans_max {
                self.settle(slot, Verdict::SampledOut, &mut turn);
            }
        }
        self.relieve_pressure(&mut turn, now);
        if !self.turn.has_news && turn.kept.is_empty() && !self.turn.tally.has_dropped() {
            return None;
        }
        self.turn.has_news = false;
        self.turn.number += 1;
        turn.number = self.turn.number;
        for (key, kept) in self.turn.kept.drain(..).zip(&turn.kept) {
            self.in_flight.insert(turn.number, key, Arc::clone(kept));
        }
        let handed_on = self.bodies.iter_mut().map(Bodies::take_handed_on_bytes).sum();
        self.in_flight.hold(turn.number, handed_on);
        turn.frontier = self.bodies.iter().map(Bodies::consumed).collect();
        turn.watermark = self.bodies.iter().map(Bodies::watermark).collect();
        turn.settled = self.turn.tally.take(&self.tenants);
        Some(turn)
    }

    /// The kept traces of turns up to `number` are in the archive, where queries find them from now on.
    pub fn forget_archived(&mut self, number: u64) {
        self.in_flight.forget(number);
    }

    /// How full the shard is.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            live_traces: self.table.trace_count(),
            live_spans: self.table.span_count(),
            live_bytes: self.live_bytes(),
            body_bytes: self.in_flight.body_bytes() + self.resident_bytes(),
        }
    }

    /// Whether the budget is used up although everything that could be decided was.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.live_bytes() >= self.config.limits.live_bytes_max
    }

    /// Whether kept traces that are not in the archive yet hold half of what there is for bodies: nothing more should be taken
    /// until some of it is. The other half is for what is undecided, so that the sum holds.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.in_flight.body_bytes() > self.config.limits.body_bytes_max / 2
    }

    /// The spans of a trace that are not in the archive yet.
    #[must_use]
    pub fn trace(&self, tenant: &Tenant, trace_id: TraceId) -> Option<LiveSpans> {
        let key = (*self.tenant_numbers.get(tenant)?, trace_id);
        let slot = self.find(key);
        let live = slot.map(|slot| self.table.get(slot));
        let trace_start = self.trace_start(key)?;
        let mut spans: Vec<KeptSpan> =
            self.in_flight.of(key).flat_map(|trace| trace.spans.iter().cloned()).collect();
        spans.extend(slot.into_iter().flat_map(|slot| self.kept_spans(slot)));
        let decided = self.in_flight.of(key).map(|trace| (trace.reason, trace.threshold)).min();
        let inherited =
            live.as_ref().and_then(|live| live.inherited).map(|memory| (memory.reason, memory.threshold));
        let root_seen =
            self.in_flight.of(key).any(|trace| trace.complete) || live.is_some_and(|l| l.root.is_some());
        Some(LiveSpans { trace_start, root_seen, verdict: decided.or(inherited), spans })
    }

    /// For each id the sort key of the trace, if it is not in the archive yet.
    #[must_use]
    pub fn undecided(&self, tenant: &Tenant, ids: &[TraceId]) -> Vec<Option<UnixNanos>> {
        let number = self.tenant_numbers.get(tenant).copied();
        ids.iter().map(|&trace_id| number.and_then(|number| self.trace_start((number, trace_id)))).collect()
    }

    /// The records that hold spans which are not in the archive yet, oldest first per partition.
    #[must_use]
    pub fn bodies(&self, tenant: &Tenant) -> Vec<(PartitionId, Offset, Option<Bytes>)> {
        let bytes = |body: &Option<Arc<Body>>| body.as_ref().map(|body| body.bytes.clone());
        let Some(&number) = self.tenant_numbers.get(tenant) else { return Vec::new() };
        let mut found = Vec::new();
        for (bodies, partition) in self.bodies.iter().zip(0..) {
            let own = bodies.undecided().filter(|body| body.tenant == number);
            found.extend(own.map(|body| (PartitionId(partition), body.offset, bytes(&body.bytes))));
        }
        for trace in self.in_flight.of_tenant(number) {
            let place = |span: &KeptSpan| (span.location.partition, span.location.offset, bytes(&span.body));
            found.extend(trace.spans.iter().map(place));
        }
        found.sort_by_key(|(partition, offset, bytes)| (*partition, *offset, bytes.is_none()));
        found.dedup_by_key(|(partition, offset, _)| (*partition, *offset));
        found
    }

    fn trace_start(&self, key: ShardKey) -> Option<UnixNanos> {
        if let Some(trace) = self.in_flight.of(key).next() {
            return Some(trace.trace_start);
        }
        let live = self.table.get(self.find(key)?);
        Some(live.inherited.map_or(live.start, |memory| memory.trace_start))
    }

    fn tenant_number(&mut self, tenant: &Tenant) -> u32 {
        if let Some(&number) = self.tenant_numbers.get(tenant) {
            return number;
        }
        let number = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        self.tenants.push(tenant.clone());
        self.tenant_numbers.insert(tenant.clone(), number);
        number
    }

    fn find(&self, key: ShardKey) -> Option<u32> {
        self.table.find(key, self.table.hash(key))
    }

    /// This shard's part of the bytes of undecided spans' bodies.
    fn resident_bytes(&self) -> usize {
        self.bodies.iter().map(Bodies::resident_bytes).sum()
    }

    /// Bytes of live traces and of what is known about their spans' records.
    fn live_bytes(&self) -> usize {
        self.table.bytes() + self.bodies.iter().map(Bodies::live_bytes).sum::<usize>()
    }

    /// Asks the memory for what [`Self::take_part`] will look at, all runs at once: one after the other they would each
    /// wait for three or four lines that lie anywhere. Their lines of the index were asked for when they were found.
    fn prefetch(&self, parts: &[Part]) {
        for &Part { hash, .. } in parts {
            // Only a trace that is not live is looked for among the remembered.
            if !self.table.prefetch_slot(hash) {
                self.remembered.prefetch(hash);
            }
        }
    }

    /// Adds spans to their live trace, opened if need be. Those that are late wait for the end of the turn.
    fn take_part(&mut self, part: &Part, now: Monotonic) {
        let &Part { key, hash, run, spans } = part;
        if let Some(slot) = self.table.find(key, hash) {
            self.append(slot, run, &spans, now);
            return;
        }
        let inherited = self.remembered.kept(key, hash);
        // An error reopens a trace that was let go: what is left of it is kept.
        let begins = inherited.is_some() || spans.flags.has(SpanFlags::ERROR);
        if begins || !self.remembered.was_dropped(hash) {
            self.open(part, inherited, now);
        } else {
            self.turn.late.push(*part);
        }
    }

    /// A new live trace that begins with `part`.
    fn open(&mut self, part: &Part, inherited: Option<KeptMemory>, now: Monotonic) {
        let slot = self.table.insert(part.key, part.hash, part.spans.randomness, inherited, now);
        self.schedule(slot, now.plus(self.config.timing.quiet_after_root), now);
        self.append(slot, part.run, &part.spans, now);
    }

    fn append(&mut self, slot: u32, run: Run, spans: &SpanRun, now: Monotonic) {
        if let Some(root) = self.table.append(slot, run, spans, now) {
            self.sketches.record(&root, now);
        }
        let (spans, spans_max) = (self.table.spans_of(slot), self.config.limits.trace_spans_max);
        if spans > spans_max && spans - run.count <= spans_max {
            self.turn.oversized.push(slot);
        }
    }

    fn deadline(&self, trace: &LiveTrace) -> Monotonic {
        let Timing { quiet_after_root, idle_timeout, trace_timeout } = self.config.timing;
        let is_short = trace.root.is_some() || trace.inherited.is_some();
        let quiet = if is_short { quiet_after_root } else { idle_timeout };
        trace.last_seen.plus(quiet).min(trace.first_seen.plus(trace_timeout))
    }

    /// Looks at the trace at its deadline, but no later than a root that arrives meanwhile would need it. So an
    /// arriving root schedules nothing, and a trace has one entry in the wheel.
    fn schedule(&mut self, slot: u32, deadline: Monotonic, now: Monotonic) {
        let tick = Tick::at_or_after(deadline.min(now.plus(self.config.timing.quiet_after_root)));
        self.table.set_scheduled(slot, tick);
        self.wheel.insert(slot, tick);
    }

    fn look_at(&mut self, entry: Entry, turn: &mut Turn, now: Monotonic) {
        let Entry { slot, tick } = entry;
        if !self.table.is_scheduled(slot, tick) {
            return;
        }
        let deadline = self.deadline(&self.table.get(slot));
        if deadline > now {
            self.schedule(slot, deadline, now);
            return;
        }
        self.settle(slot, Verdict::SampledOut, turn);
    }

    /// Spans of dropped traces follow the decision, unless an error reopened the trace in the same turn.
    fn settle_late(&mut self, now: Monotonic) {
        for Part { key, hash, run, spans } in std::mem::take(&mut self.turn.late) {
            if let Some(slot) = self.table.find(key, hash) {
                self.append(slot, run, &spans, now);
                continue;
            }
            let of_tenant = self.turn.tally.of(key.0);
            of_tenant.counts.sampled_out += u64::from(run.count);
            of_tenant.dropped.push(DroppedTrace { trace_id: key.1, shed: false, late: true });
            self.bodies[usize::from(run.partition.0)].settle(run);
        }
    }

    /// Decides on a trace. `otherwise` is what a trace that is not worth keeping becomes.
    fn settle(&mut self, slot: u32, otherwise: Verdict, turn: &mut Turn) {
        let trace = self.table.get(slot);
        let facts = trace.facts();
        let verdict = match trace.inherited {
            Some(memory) if !trace.has_error => {
                Verdict::Keep { reason: memory.reason, threshold: memory.threshold }
            }
            _ => decide(&facts, &self.config.policy, &self.sketches, Threshold::ALWAYS),
        };
        match (verdict, trace.inherited) {
            (Verdict::Keep { reason, threshold }, _) => self.keep(slot, &trace, reason, threshold, turn),
            // Errors are not kept by this policy, but the trace was, before.
            (_, Some(memory)) => self.keep(slot, &trace, memory.reason, memory.threshold, turn),
            _ => self.let_go(&trace, otherwise == Verdict::Shed),
        }
        let Self { table, bodies, .. } = self;
        table.remove(slot, &mut |run| bodies[usize::from(run.partition.0)].settle(run));
    }

    fn keep(&mut self, slot: u32, trace: &LiveTrace, reason: Reason, threshold: Threshold, turn: &mut Turn) {
        let trace_start = trace.inherited.map_or(trace.start, |memory| memory.trace_start);
        self.remembered.keep(trace.key, trace.hash, KeptMemory { reason, threshold, trace_start });
        self.turn.kept.push(trace.key);
        let spans = self.kept_spans(slot);
        for run in self.table.runs(slot) {
            self.bodies[usize::from(run.partition.0)].keep(run);
        }
        let kept = KeptTrace {
            tenant: self.tenants[trace.key.0 as usize].clone(),
            trace_id: trace.key.1,
            trace_start,
            end: trace.end,
            decided_at: turn.at,
            reason,
            threshold,
            complete: trace.root.is_some(),
            late: trace.inherited.is_some(),
            spans,
        };
        turn.kept_bytes += kept.span_bytes();
        turn.kept.push(Arc::new(kept));
    }

    fn let_go(&mut self, trace: &LiveTrace, shed: bool) {
        self.remembered.drop(trace.hash);
        let (tenant, trace_id) = trace.key;
        let of_tenant = self.turn.tally.of(tenant);
        let counts = &mut of_tenant.counts;
        let term = if shed { &mut counts.shed } else { &mut counts.sampled_out };
        *term += u64::from(trace.span_count);
        of_tenant.dropped.push(DroppedTrace { trace_id, shed, late: false });
    }

    fn kept_spans(&self, slot: u32) -> Vec<KeptSpan> {
        let mut spans = Vec::with_capacity(self.table.spans_of(slot) as usize);
        for run in self.table.runs(slot) {
            let partition = run.partition;
            let Some(body) = self.bodies[usize::from(partition.0)].get(run) else { continue };
            spans.extend(body.ranges(run).iter().map(|&range| KeptSpan {
                location: SpanLocation { partition, offset: body.offset, range },
                body: body.bytes.clone(),
            }));
        }
        spans
    }

    /// Near the budget, decides the traces with the largest bytes x age until a fifth of it is free again.
    fn relieve_pressure(&mut self, turn: &mut Turn, now: Monotonic) {
        let budget = self.config.limits.live_bytes_max;
        if self.live_bytes() < budget / 10 * 9 {
            return;
        }
        let mut by_impact: Vec<(u128, u32)> = Vec::with_capacity(self.table.trace_count());
        by_impact.extend(self.table.slots().map(|slot| {
            let trace = self.table.get(slot);
            // One is added so that traces of this very turn still differ by weight.
            let age = now.since(trace.first_seen).as_nanos() + 1;
            (u128::from(trace.span_count) * age, slot)
        }));
        by_impact.sort_unstable_by(|a, b| b.cmp(a));
        for (_, slot) in by_impact {
            if self.live_bytes() <= budget / 5 * 4 {
                break;
            }
            self.settle(slot, Verdict::Shed, turn);
        }
    }
}
