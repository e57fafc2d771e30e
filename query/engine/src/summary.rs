//! A trace in brief, computed from its merged spans.

use std::collections::BTreeSet;

use ingest_otlp::{ResourceView, WalkedSpan, visit_spans};
use store_model::{Reason, SpanFlags, StatusCode, Threshold, TraceId, UnixNanos};

use crate::error::Error;

/// A trace in brief.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSummary {
    /// Which trace.
    pub trace_id: TraceId,
    /// Service of the root span, else of the earliest span.
    pub root_service: String,
    /// Name of the root span, else of the earliest span.
    pub root_operation: String,
    /// Start of the earliest span.
    pub start: UnixNanos,
    /// From there to the end of the latest span.
    pub duration_ns: u64,
    /// How many spans there are.
    pub span_count: u32,
    /// How many of them have status ERROR.
    pub error_count: u32,
    /// The services they are of, sorted.
    pub services: Vec<String>,
    /// Why it is kept; `None` while it is not decided.
    pub reason: Option<Reason>,
    /// Decided, and its root had arrived by then.
    pub complete: bool,
    /// How many traces this one stands for.
    pub adjusted_count: f64,
}

/// What is known of a trace beside its spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decided {
    pub(crate) reason: Option<Reason>,
    pub(crate) threshold: Option<Threshold>,
    pub(crate) complete: bool,
}

/// Sums up the spans of `otlp`.
///
/// # Errors
/// [`Error::Spans`] when they cannot be decoded.
pub(crate) fn summarise(trace_id: TraceId, otlp: &[u8], decided: Decided) -> Result<TraceSummary, Error> {
    let mut first = None;
    let (mut start, mut end) = (u64::MAX, 0);
    let (mut span_count, mut error_count) = (0u32, 0u32);
    let mut services = BTreeSet::new();
    visit_spans(otlp, &mut |_resource: &ResourceView<'_>, span: &WalkedSpan<'_>, _bytes: &[u8]| {
        span_count = span_count.saturating_add(1);
        error_count = error_count.saturating_add(u32::from(span.status == StatusCode::Error));
        start = start.min(span.start.0);
        end = end.max(span.start.0.saturating_add(span.duration_ns));
        services.insert(span.service);
        // Several roots or none happen; the earliest of the best kind names the trace, ties broken by id.
        let rank = (!span.flags.has(SpanFlags::ROOT), span.start, span.span_id);
        if first.is_none_or(|(best, _, _)| rank < best) {
            first = Some((rank, span.service, span.operation));
        }
    })
    .map_err(Error::Spans)?;
    let (_, root_service, root_operation) = first.unwrap_or_default();
    let start = start.min(end);
    Ok(TraceSummary {
        trace_id,
        root_service: text(root_service),
        root_operation: text(root_operation),
        start: UnixNanos(start),
        duration_ns: end - start,
        span_count,
        error_count,
        services: services.into_iter().filter(|service| !service.is_empty()).map(text).collect(),
        reason: decided.reason,
        complete: decided.complete,
        adjusted_count: decided.threshold.unwrap_or(Threshold::ALWAYS).adjusted_count(),
    })
}

/// For people: bytes that are no UTF-8 are replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
