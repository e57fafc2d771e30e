//! A trace: what was decided about it, the part of it that is kept, and the arithmetic of what is not.

use bytes::Bytes;

use crate::id::{Tenant, TraceId};
use crate::sampling::Threshold;
use crate::time::UnixNanos;

/// Why a trace is kept. Ordered by how much it says: a trace kept for several reasons carries the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// A span has status ERROR.
    Error = 1,
    /// The root took longer than the p95 of its (service, operation).
    Slow = 2,
    /// R >= T of the head stage: the fair sample.
    Head = 3,
}

impl Reason {
    /// All reasons, most telling first.
    pub const ALL: [Self; 3] = [Self::Error, Self::Slow, Self::Head];

    /// The number that stands for it on disk and on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The reason that `code` stands for, if this version knows it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// The lower-case word used in answers, tables and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Slow => "slow",
            Self::Head => "head",
        }
    }
}

/// What the sampler concluded about a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Keep it. The threshold is the smallest of the stages that voted for it, so adjusted counts stay unbiased.
    Keep {
        /// Why.
        reason: Reason,
        /// T to write into `ot=th` of its spans.
        threshold: Threshold,
    },
    /// Let it go; its spans are counted as `sampled_out`.
    SampledOut,
    /// Let it go because memory ran short before it was finished; its spans are counted as `shed`.
    Shed,
}

/// The part of a kept trace that was settled together. Late spans make further fragments of the same trace, which are
/// merged when read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Whose trace.
    pub tenant: Tenant,
    /// Which trace.
    pub trace_id: TraceId,
    /// Start of the trace's earliest span when it was decided: the sort key of answers. All fragments that follow one
    /// remembered decision carry the same.
    pub trace_start: UnixNanos,
    /// End of the latest span in this fragment.
    pub end: UnixNanos,
    /// When the decision was taken.
    pub decided_at: UnixNanos,
    /// Why it is kept.
    pub reason: Reason,
    /// T for `ot=th`, written into spans when they are read.
    pub threshold: Threshold,
    /// The root had arrived when the trace was decided.
    pub complete: bool,
    /// How many spans `otlp` holds.
    pub span_count: u32,
    /// An OTLP `TracesData` message (field 1: `ResourceSpans`) whose resources, scopes and spans are the bytes that
    /// came in.
    pub otlp: Bytes,
}

/// Where spans went, of one tenant. At rest `arrived` is the sum of the others; in between the difference is the spans
/// of undecided traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Taken off the network, whatever became of them.
    pub arrived: u64,
    /// In the archive.
    pub kept: u64,
    /// Their trace was decided against.
    pub sampled_out: u64,
    /// Their trace was given up under memory pressure.
    pub shed: u64,
    /// Their trace was to be kept, but the journal no longer held them.
    pub expired: u64,
    /// Not taken in: malformed, a copy of a span already kept, or no room.
    pub refused: u64,
}

impl Counts {
    /// Adds every term.
    pub fn add(&mut self, other: Self) {
        let Self { arrived, kept, sampled_out, shed, expired, refused } = other;
        self.arrived += arrived;
        self.kept += kept;
        self.sampled_out += sampled_out;
        self.shed += shed;
        self.expired += expired;
        self.refused += refused;
    }

    /// Everything that has left: `arrived` minus the spans still undecided.
    #[must_use]
    pub fn settled(self) -> u64 {
        self.kept + self.sampled_out + self.shed + self.expired + self.refused
    }
}
