//! What crosses a shard's border: batches in, turns out.

use std::sync::Arc;

use ingest_otlp::Body;
use store_model::{
    Counts, Offset, PartitionId, Reason, SpanLocation, SpanRuns, Tenant, Threshold, TraceId, UnixNanos,
};

/// One journal record's spans of one shard. Every shard gets a batch for every record, an empty one if need be, so
/// that its frontier moves.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Which partition of topic `spans`.
    pub partition: PartitionId,
    /// Which record.
    pub offset: Offset,
    /// Whose spans.
    pub tenant: Tenant,
    /// The decompressed body, shared by all shards.
    pub body: Arc<Body>,
    /// How many shards get spans of it: each answers for its part of the body's memory. Never zero.
    pub holders: u16,
    /// Spans of the request that were refused; told to one shard only.
    pub refused: u32,
    /// The spans of this shard.
    pub spans: SpanRuns,
}

/// Where a kept span lies, and its body if memory still holds it.
#[derive(Clone, Debug)]
pub struct KeptSpan {
    /// Journal record and range.
    pub location: SpanLocation,
    /// The decompressed body; `None` once the budget has pushed it out, then the journal has it.
    pub body: Option<Arc<Body>>,
}

/// A trace that was decided in favour of, or late spans of one.
#[derive(Clone, Debug)]
pub struct KeptTrace {
    /// Whose trace.
    pub tenant: Tenant,
    /// Which trace.
    pub trace_id: TraceId,
    /// Start of its earliest span, or of the remembered trace for late spans.
    pub trace_start: UnixNanos,
    /// End of the latest of these spans.
    pub end: UnixNanos,
    /// When the decision fell.
    pub decided_at: UnixNanos,
    /// Why.
    pub reason: Reason,
    /// T of the stage that kept it.
    pub threshold: Threshold,
    /// The root had arrived.
    pub complete: bool,
    /// These spans follow an earlier decision; some may be copies of spans already archived.
    pub late: bool,
    /// The spans, in order of arrival.
    pub spans: Vec<KeptSpan>,
}

impl KeptTrace {
    /// How long its spans are together.
    #[must_use]
    pub fn span_bytes(&self) -> usize {
        self.spans.iter().map(|span| span.location.range.length as usize).sum()
    }
}

/// A trace that was decided against, or late spans of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedTrace {
    /// Which trace.
    pub trace_id: TraceId,
    /// Given up for memory, not on its merits.
    pub shed: bool,
    /// These spans follow an earlier decision.
    pub late: bool,
}

/// What a turn settled of one tenant without keeping it. Together, because most traces end here and a tenant's name is shared
/// between threads: counting its holders trace by trace would cost more than the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whose.
    pub tenant: Tenant,
    /// Dropped traces.
    pub dropped: Vec<DroppedTrace>,
    /// What changed; `kept` and `expired` are counted by whoever fetches the bytes.
    pub counts: Counts,
}

/// Everything one turn settled. The invariant that makes restarts exact: when a turn names a trace, no span of that
/// trace below the turn's frontier is left undecided.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Numbered from 1, without gaps.
    pub number: u64,
    /// When it ended.
    pub at: UnixNanos,
    /// Kept traces, shared with the shard until they are in the archive.
    pub kept: Vec<Arc<KeptTrace>>,
    /// Bytes of their spans.
    pub kept_bytes: usize,
    /// The others, by tenant.
    pub settled: Vec<Settled>,
    /// Per partition: records below were consumed.
    pub frontier: Vec<Offset>,
    /// Per partition: every span of records below is settled.
    pub watermark: Vec<Offset>,
}

impl Turn {
    /// Dropped traces of all tenants.
    pub fn dropped(&self) -> impl Iterator<Item = (&Tenant, &DroppedTrace)> {
        self.settled.iter().flat_map(|settled| settled.dropped.iter().map(|trace| (&settled.tenant, trace)))
    }
}
