//! The nouns every room shares. Values only: no sockets, no disks, no clocks.
//!
//! Read in this order: [`id`] (trace, span, tenant, partition, offset), [`time`], [`sampling`]
//! (randomness, thresholds and the `ot` tracestate), [`span`] (summaries and where spans lie), [`run`] (spans of a body,
//! folded),
//! [`symbol`] (interned names), [`trace`] (decisions, fragments, counts).

pub mod id;
pub mod run;
pub mod sampling;
pub mod span;
pub mod symbol;
pub mod time;
pub mod trace;

pub use id::{
    Epoch, InvalidTenant, Offset, ParseIdError, PartitionId, ShardId, SpanId, Tenant, TraceId, TraceKey,
};
pub use run::{SpanRun, SpanRuns};
pub use sampling::{Randomness, Threshold};
pub use span::{BodyRange, Encoding, SpanFlags, SpanKind, SpanLocation, SpanSummary, StatusCode};
pub use symbol::{Symbol, SymbolCache, Symbols};
pub use time::{Monotonic, UnixNanos};
pub use trace::{Counts, Fragment, Reason, Verdict};
