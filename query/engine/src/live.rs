//! The traces that are not in the archive yet, as the engine sees them. Owns no trace: the appliance answers.

use bytes::Bytes;
use store_model::{Reason, Tenant, Threshold, TraceId, UnixNanos};

/// A trace that is not decided yet, or decided and on its way to the archive.
#[derive(Clone, Debug)]
pub struct LiveTrace {
    /// Start of its earliest span so far: its sort key.
    pub trace_start: UnixNanos,
    /// Its spans so far, an OTLP `TracesData`.
    pub otlp: Bytes,
    /// Its root has arrived.
    pub root_seen: bool,
    /// Set once it is decided to keep it.
    pub verdict: Option<(Reason, Threshold)>,
}

/// What is not decided yet, or decided and not yet in the archive. A trace stays visible here until after the archive
/// has it; the engine looks here first, so that a trace on the move is seen at least once.
///
/// Calls may block for milliseconds.
pub trait Live: Send + Sync + 'static {
    /// One trace.
    fn trace(&self, tenant: &Tenant, id: TraceId) -> Option<LiveTrace>;

    /// Hands out decompressed OTLP bodies that may hold spans of these traces (and of others) until `visit` returns
    /// false.
    fn bodies(&self, tenant: &Tenant, visit: &mut dyn FnMut(&[u8]) -> bool);

    /// When each of these traces starts; `None` for one that is not live.
    fn undecided(&self, tenant: &Tenant, ids: &[TraceId]) -> Vec<Option<UnixNanos>>;
}
