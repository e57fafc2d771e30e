//! The spans of one body, folded: what travels between cores instead of a summary for each span. Senders batch the spans of a
//! trace in a row, so a run of them is one line of the cache and eight bytes a span.

use crate::id::TraceId;
use crate::sampling::Randomness;
use crate::span::{BodyRange, SpanFlags, SpanSummary};
use crate::symbol::Symbol;
use crate::time::UnixNanos;

/// Spans of one trace that stand in a row in one body, as much of them as a sampling decision needs. 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanRun {
    /// Their trace.
    pub trace_id: TraceId,
    /// Start of the earliest.
    pub start: UnixNanos,
    /// End of the latest.
    pub end: UnixNanos,
    /// R of the first.
    pub randomness: Randomness,
    /// How long the first root among them took in nanoseconds; like the next two it means nothing without one.
    pub root_duration_ns: u64,
    /// That root's service.
    pub root_service: Symbol,
    /// That root's name.
    pub root_operation: Symbol,
    /// How many there are, never zero.
    pub span_count: u32,
    /// What any of them has.
    pub flags: SpanFlags,
}

/// A run crosses cores for every trace of every request; a second line must be a decision.
const _: () = assert!(size_of::<SpanRun>() <= 64);

impl SpanRun {
    /// A run of one.
    #[inline(always)]
    #[must_use]
    pub fn of(span: &SpanSummary) -> Self {
        Self {
            trace_id: span.trace_id,
            start: span.start,
            end: span.end(),
            randomness: span.randomness,
            root_duration_ns: span.duration_ns,
            root_service: span.service,
            root_operation: span.operation,
            span_count: 1,
            flags: span.flags,
        }
    }

    /// Takes in one more span of the trace, which is the next in the body.
    #[inline(always)]
    pub fn add(&mut self, span: &SpanSummary) {
        self.start = self.start.min(span.start);
        self.end = self.end.max(span.end());
        if span.flags.has(SpanFlags::ROOT) && !self.flags.has(SpanFlags::ROOT) {
            self.root_duration_ns = span.duration_ns;
            self.root_service = span.service;
            self.root_operation = span.operation;
        }
        self.flags = self.flags.with(span.flags);
        self.span_count += 1;
    }
}

/// All spans of a body, or of those that one shard owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanRuns {
    /// In the order of the body.
    pub runs: Vec<SpanRun>,
    /// Where each span lies in the body, run by run.
    pub ranges: Vec<BodyRange>,
}

impl SpanRuns {
    /// How many spans there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes that they hold.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<SpanRun>() + self.ranges.capacity() * size_of::<BodyRange>()
    }

    /// Takes in the next span of the body.
    #[inline(always)]
    pub fn push(&mut self, span: &SpanSummary) {
        self.ranges.push(span.range);
        match self.runs.last_mut() {
            Some(run) if run.trace_id == span.trace_id => run.add(span),
            _ => self.runs.push(SpanRun::of(span)),
        }
    }

    /// Takes in a run of the same body, with the ranges of its spans.
    pub fn push_run(&mut self, run: &SpanRun, ranges: &[BodyRange]) {
        self.runs.push(*run);
        self.ranges.extend_from_slice(ranges);
    }

    /// Each run with the ranges of its spans.
    pub fn iter(&self) -> impl Iterator<Item = (&SpanRun, &[BodyRange])> {
        let mut rest = &self.ranges[..];
        self.runs.iter().map(move |run| {
            let ranges;
            (ranges, rest) = rest.split_at(rest.len().min(run.span_count as usize));
            (run, ranges)
        })
    }
}

impl FromIterator<SpanSummary> for SpanRuns {
    fn from_iter<I: IntoIterator<Item = SpanSummary>>(spans: I) -> Self {
        let mut all = Self::default();
        spans.into_iter().for_each(|span| all.push(&span));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SpanId;
    use crate::sampling::Threshold;
    use crate::span::{SpanKind, StatusCode};

    fn span(trace: u8, position: u32, start: u64, duration_ns: u64, flags: SpanFlags) -> SpanSummary {
        SpanSummary {
            trace_id: TraceId([trace; 16]),
            span_id: SpanId([1; 8]),
            parent_span_id: SpanId([0; 8]),
            start: UnixNanos(start),
            duration_ns,
            randomness: Randomness::from_low_bits(u64::from(trace)),
            threshold: Threshold::ALWAYS,
            service: Symbol(position),
            operation: Symbol(position + 1),
            range: BodyRange { position, length: 1 },
            kind: SpanKind::Server,
            status: StatusCode::Unset,
            flags,
        }
    }

    #[test]
    fn a_run_is_what_its_spans_are_together() {
        let (root, error) = (SpanFlags::ROOT, SpanFlags::ERROR);
        let spans = [
            span(1, 10, 500, 100, error),
            span(1, 20, 400, 700, root),
            span(1, 30, 450, 10, root),
            span(2, 40, 5, u64::MAX, SpanFlags(0)),
            span(1, 50, 9, 1, SpanFlags(0)),
        ];
        let runs: SpanRuns = spans.into_iter().collect();
        let (first, ranges) = runs.iter().next().unwrap();
        assert_eq!((first.start, first.end, first.span_count), (UnixNanos(400), UnixNanos(1100), 3));
        assert_eq!(
            (first.root_duration_ns, first.root_service, first.root_operation),
            (700, Symbol(20), Symbol(21))
        );
        assert!(first.flags.has(root) && first.flags.has(error));
        assert_eq!(ranges.iter().map(|range| range.position).collect::<Vec<_>>(), [10, 20, 30]);
        let rest: Vec<_> =
            runs.iter().skip(1).map(|(run, ranges)| (run.span_count, ranges[0].position)).collect();
        assert_eq!((rest, runs.len()), (vec![(1, 40), (1, 50)], 5));
        assert_eq!(runs.runs[1].end, UnixNanos(u64::MAX), "an end beyond time is the end of time");
        assert!(!runs.runs[2].flags.has(root));
    }
}
