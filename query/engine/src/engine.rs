//! The engine: puts live traces and the archive together into one answer. Owns neither; starts no thread, reads no clock.
//!
//! Every question looks at live traces first and takes the archive's snapshot after. A trace moves from live to archive
//! and never back, and the archive has it before it stops being live: in this order it is seen at least once, and what
//! is seen twice is merged by trace id.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use ingest_otlp::{merge, visit_spans};
use store_archive::{Archive, Snapshot};
use store_model::{Fragment, Tenant, Threshold, TraceId, UnixNanos};

use crate::answer::{Budget, Gaps};
use crate::cursor::{Cursor, Key};
use crate::error::Error;
use crate::live::{Live, LiveTrace};
use crate::search::{Page, Search, choose};
use crate::summary::{Decided, TraceSummary, summarise};

/// What one question may cost: so much to find the traces of a page, and as much again to read them. A question that
/// reaches a limit answers with what it has and says so.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Fragments looked into.
    pub rows_max: u64,
    /// Bytes of the fragments looked into. One that does not lie beside the one before counts as a page of 128 KiB at
    /// least, since that is what reading it costs.
    pub bytes_max: u64,
    /// Bytes of live bodies looked at.
    pub live_bytes_max: u64,
    /// Names in a list.
    pub names_max: usize,
}

impl Default for Limits {
    /// Some seconds of one core at the very worst: decompression and the walk together do several 100 MB/s.
    fn default() -> Self {
        Self { rows_max: 500_000, bytes_max: 2 << 30, live_bytes_max: 1 << 30, names_max: 100_000 }
    }
}

/// A trace, whole.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Its spans as they came in, a `TracesData`; `ot=th` is written into them if the trace is decided.
    pub otlp: Bytes,
    /// The same in brief.
    pub summary: TraceSummary,
    /// What is missing and why.
    pub incomplete: Option<String>,
}

/// Answers questions. Calls block: on the disk, and for milliseconds on live traces.
#[derive(Clone)]
pub struct Engine {
    pub(crate) archive: Archive,
    pub(crate) live: Arc<dyn Live>,
    pub(crate) limits: Limits,
}

impl Engine {
    /// Over this archive and these live traces.
    #[must_use]
    pub fn new(archive: Archive, live: Arc<dyn Live>, limits: Limits) -> Self {
        Self { archive, live, limits }
    }

    /// One trace, complete or not; `None` when nothing of it is held.
    ///
    /// # Errors
    /// [`Error::Damaged`] when parts of it are held and none can be read.
    pub fn trace(&self, tenant: &Tenant, id: TraceId) -> Result<Option<Trace>, Error> {
        let live = self.live.trace(tenant, id);
        gather(&self.archive.snapshot(), tenant, id, live)
    }

    /// One page of the traces that have a span which meets every condition, newest first by (start, id).
    ///
    /// As long as nothing changes, the pages together hold each such trace exactly once. A trace whose parts have
    /// different starts stands at the latest one among its matching parts.
    ///
    /// # Errors
    /// None today: what cannot be read is left out and named in [`Page::incomplete`].
    pub fn search(&self, search: &Search) -> Result<Page, Error> {
        let mut gaps = Gaps::default();
        let mut budget = Budget::new(&self.limits);
        let live = self.live_matches(search, &mut gaps);
        let chosen = choose(search, &live, &self.archive.snapshot(), &mut budget, &mut gaps);
        let mut page = Page { next: chosen.next, ..Page::default() };
        self.sum_up(search, &chosen.keys, &mut gaps, &mut page);
        page.incomplete = gaps.to_text();
        Ok(page)
    }

    /// Live traces with a matching span, and when they start.
    fn live_matches(&self, search: &Search, gaps: &mut Gaps) -> HashMap<TraceId, UnixNanos> {
        let mut ids = HashSet::new();
        self.each_live_body(&search.tenant, gaps, &mut |body| {
            let _rest_is_damaged = visit_spans(body, &mut |resource, span, bytes| {
                if search.conditions.meets(resource, span, bytes) {
                    ids.insert(span.trace_id);
                }
            });
        });
        let starts = self.live_starts(&search.tenant, ids).into_iter();
        starts.filter(|&(_, trace_start)| search.in_range(trace_start)).collect()
    }

    /// Those of `ids` that are live, and when they start.
    pub(crate) fn live_starts(&self, tenant: &Tenant, ids: HashSet<TraceId>) -> HashMap<TraceId, UnixNanos> {
        let ids: Vec<TraceId> = ids.into_iter().collect();
        let starts = self.live.undecided(tenant, &ids);
        ids.into_iter().zip(starts).filter_map(|(id, trace_start)| Some((id, trace_start?))).collect()
    }

    /// Shows every live body to `visit`, within the limit.
    pub(crate) fn each_live_body(&self, tenant: &Tenant, gaps: &mut Gaps, visit: &mut dyn FnMut(&[u8])) {
        let mut seen = 0u64;
        self.live.bodies(tenant, &mut |body| {
            if seen >= self.limits.live_bytes_max {
                gaps.live_cut(seen);
                return false;
            }
            seen = seen.saturating_add(u64::try_from(body.len()).unwrap_or(u64::MAX));
            visit(body);
            true
        });
    }

    /// Reads the chosen traces, again live first: some may have moved since they were chosen.
    fn sum_up(&self, search: &Search, keys: &[Key], gaps: &mut Gaps, page: &mut Page) {
        // A budget of its own: what was found with the last of the other one is worth showing.
        let mut budget = Budget::new(&self.limits);
        let ids: Vec<TraceId> = keys.iter().map(|key| key.trace_id).collect();
        let live = self.live.undecided(&search.tenant, &ids);
        let snapshot = self.archive.snapshot();
        let mut last = None;
        for (&key, live) in keys.iter().zip(live) {
            if let Some(last) = last.filter(|_| budget.is_spent() && !page.traces.is_empty()) {
                gaps.budget_spent();
                page.next = Some(Cursor(last));
                return;
            }
            last = Some(key);
            let found = match live {
                Some(_) => self.trace(&search.tenant, key.trace_id),
                None => gather(&snapshot, &search.tenant, key.trace_id, None),
            };
            match found {
                // A live trace may have been decided against since, or its body may have told of an earlier life.
                Ok(Some(trace)) if search.conditions.any_span_meets(&trace.otlp) => {
                    budget.spend(trace.otlp.len(), true);
                    if trace.incomplete.is_some() {
                        gaps.damaged_trace();
                    }
                    page.traces.push(trace.summary);
                }
                Ok(_) => {}
                Err(_) => gaps.damaged_trace(),
            }
        }
    }
}

/// Puts the parts of a trace together.
fn gather(
    snapshot: &Snapshot,
    tenant: &Tenant,
    id: TraceId,
    live: Option<LiveTrace>,
) -> Result<Option<Trace>, Error> {
    let mut gaps = Gaps::default();
    let fragments = fragments(snapshot, tenant, id, &mut gaps);
    if fragments.is_empty() && live.is_none() {
        return gaps.into_damage().map_or(Ok(None), |cause| Err(Error::Damaged(cause)));
    }
    let decided = decided(&fragments, live.as_ref());
    let parts = fragments.iter().map(|fragment| &fragment.otlp).chain(live.iter().map(|live| &live.otlp));
    let parts: Vec<(&[u8], Option<Threshold>)> = parts.map(|otlp| (&otlp[..], decided.threshold)).collect();
    let (otlp, _span_count) = merge(&parts).map_err(Error::Spans)?;
    let summary = summarise(id, &otlp, decided)?;
    Ok(Some(Trace { otlp, summary, incomplete: gaps.to_text() }))
}

fn fragments(snapshot: &Snapshot, tenant: &Tenant, id: TraceId, gaps: &mut Gaps) -> Vec<Fragment> {
    let mut fragments = Vec::new();
    for view in snapshot.segments() {
        let rows = view.find(tenant, id).unwrap_or_else(|cause| {
            gaps.damaged(cause);
            Vec::new()
        });
        for row in rows {
            match view.fragment(row) {
                Ok(fragment) => fragments.push(fragment),
                Err(cause) => gaps.damaged(cause),
            }
        }
    }
    // Whatever segment they lie in, the same parts give the same bytes.
    fragments
        .sort_by(|a, b| (a.trace_start, a.decided_at, &a.otlp).cmp(&(b.trace_start, b.decided_at, &b.otlp)));
    fragments
}

/// What the parts together say: a trace is decided once any part is. When parts differ (an error that came late), the
/// most telling reason and the smallest threshold hold for all its spans.
fn decided(fragments: &[Fragment], live: Option<&LiveTrace>) -> Decided {
    let verdicts = || {
        let archived = fragments.iter().map(|fragment| (fragment.reason, fragment.threshold));
        archived.chain(live.and_then(|live| live.verdict))
    };
    let on_its_way_complete = live.is_some_and(|live| live.verdict.is_some() && live.root_seen);
    Decided {
        reason: verdicts().map(|(reason, _)| reason).min(),
        threshold: verdicts().map(|(_, threshold)| threshold).min(),
        complete: fragments.iter().any(|fragment| fragment.complete) || on_its_way_complete,
    }
}
