//! A search: which traces make the page. Walks candidates newest first over live traces and segments at once, opens a
//! segment only when its time comes, and looks into a fragment only when its turn comes. Makes no summaries.

use std::collections::BinaryHeap;

use hashbrown::{HashMap, HashSet};
use store_archive::{SegmentView, Snapshot};
use store_index::Term;
use store_model::{Tenant, TraceId, UnixNanos};

use crate::answer::{Budget, Gaps};
use crate::conditions::Conditions;
use crate::cursor::{Cursor, Key};
use crate::summary::TraceSummary;

/// A question for traces: those that have a span which meets every condition, newest first.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Whose traces.
    pub tenant: Tenant,
    /// What one and the same span must meet.
    pub conditions: Conditions,
    /// The trace starts then or later.
    pub start: Option<UnixNanos>,
    /// The trace starts before then.
    pub end: Option<UnixNanos>,
    /// How many traces make a page; at least one does.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<Cursor>,
}

/// One page of an answer.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Newest first.
    pub traces: Vec<TraceSummary>,
    /// Where the next page begins; `None` when there is nothing further.
    pub next: Option<Cursor>,
    /// What is missing and why.
    pub incomplete: Option<String>,
}

impl Search {
    /// Whether a trace that starts then may be in any page.
    pub(crate) fn in_range(&self, trace_start: UnixNanos) -> bool {
        self.start.is_none_or(|start| trace_start >= start) && self.end.is_none_or(|end| trace_start < end)
    }

    /// This page's keys lie below.
    fn ceiling(&self) -> Option<Key> {
        let end = self.end.map(|end| Key { trace_start: end, trace_id: TraceId::default() });
        let cursor = self.cursor.map(|Cursor(key)| key);
        // `None` is less than any key but means that there is no ceiling.
        [end, cursor].into_iter().flatten().min()
    }

    fn below_ceiling(&self, key: Key) -> bool {
        self.ceiling().is_none_or(|ceiling| key < ceiling)
    }

    fn above_floor(&self, trace_start: UnixNanos) -> bool {
        self.start.is_none_or(|start| trace_start >= start)
    }
}

/// Which traces make the page, and where the next one begins.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) keys: Vec<Key>,
    pub(crate) next: Option<Cursor>,
}

/// Chooses the traces of one page. `live` holds the start of every live trace that has a matching span.
pub(crate) fn choose(
    search: &Search,
    live: &HashMap<TraceId, UnixNanos>,
    snapshot: &Snapshot,
    budget: &mut Budget,
    gaps: &mut Gaps,
) -> Chosen {
    let mut walk = Walk::new(search, live, snapshot.segments());
    let mut chosen = Chosen::default();
    let mut done: HashSet<TraceId> = HashSet::new();
    let mut last: Option<Key> = None;
    while let Some((key, place)) = walk.next(gaps) {
        // A page ends between keys only: fragments with one key are one trace, and the cursor skips them all.
        if let Some(last) = last.filter(|&last| last != key) {
            let is_full = chosen.keys.len() >= search.limit;
            if is_full || budget.is_spent() {
                if !is_full {
                    gaps.budget_spent();
                }
                chosen.next = Some(Cursor(last));
                break;
            }
        }
        last = Some(key);
        if done.contains(&key.trace_id) {
            continue;
        }
        let meets = match place {
            Place::Row { segment, at } => walk.row_meets(segment, at, budget, gaps),
            Place::Live { .. } | Place::Segment { .. } => true,
        };
        if meets {
            done.insert(key.trace_id);
            if !walk.is_on_earlier_page(key.trace_id, live, budget, gaps) {
                chosen.keys.push(key);
            }
        }
    }
    chosen
}

/// Rows so near to each other mostly share a page.
const ROWS_BESIDE: u32 = 16;

/// Where a candidate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// In the sorted live keys.
    Live { at: usize },
    /// In the sorted rows of an opened segment.
    Row { segment: usize, at: usize },
    /// Somewhere in a segment that is not opened yet, at this key or below.
    Segment { segment: usize },
}

/// All candidates, newest first: a merge of sorted lists.
struct Walk<'a> {
    search: &'a Search,
    terms: Vec<Term<'a>>,
    live: Vec<Key>,
    segments: &'a [SegmentView],
    /// By segment; empty until it is opened.
    rows: Vec<Vec<u32>>,
    /// By segment: the row that was looked into last.
    looked_into: Vec<u32>,
    heads: BinaryHeap<(Key, Place)>,
}

impl<'a> Walk<'a> {
    fn new(search: &'a Search, live: &HashMap<TraceId, UnixNanos>, segments: &'a [SegmentView]) -> Self {
        let keys = live.iter().map(|(&trace_id, &trace_start)| Key { trace_start, trace_id });
        let mut live: Vec<Key> = keys.filter(|&key| search.below_ceiling(key)).collect();
        live.sort_unstable_by(|a, b| b.cmp(a));
        let mut walk = Self {
            search,
            terms: search.conditions.terms(),
            live,
            segments,
            rows: vec![Vec::new(); segments.len()],
            looked_into: vec![u32::MAX; segments.len()],
            heads: BinaryHeap::new(),
        };
        walk.push_live(0);
        for (segment, view) in segments.iter().enumerate() {
            let (oldest, newest) = view.time_range();
            let begins = Key { trace_start: oldest, trace_id: TraceId::default() };
            let ends = Key { trace_start: newest, trace_id: TraceId([0xFF; 16]) };
            if search.above_floor(newest) && search.below_ceiling(begins) {
                walk.heads.push((ends, Place::Segment { segment }));
            }
        }
        walk
    }

    fn next(&mut self, gaps: &mut Gaps) -> Option<(Key, Place)> {
        loop {
            let (key, place) = self.heads.pop()?;
            match place {
                Place::Live { at } => self.push_live(at + 1),
                Place::Row { segment, at } => self.push_row(segment, at + 1),
                Place::Segment { segment } => {
                    self.open(segment, gaps);
                    continue;
                }
            }
            return Some((key, place));
        }
    }

    fn open(&mut self, segment: usize, gaps: &mut Gaps) {
        let view = &self.segments[segment];
        match view.rows(&self.search.tenant, &self.terms) {
            Ok(rows) => {
                let first = rows.partition_point(|&row| !self.search.below_ceiling(key_of(view, row)));
                self.rows[segment] = rows;
                self.push_row(segment, first);
            }
            Err(cause) => gaps.damaged(cause),
        }
    }

    fn push_live(&mut self, at: usize) {
        if let Some(&key) = self.live.get(at) {
            self.heads.push((key, Place::Live { at }));
        }
    }

    fn push_row(&mut self, segment: usize, at: usize) {
        let Some(&row) = self.rows[segment].get(at) else { return };
        let key = key_of(&self.segments[segment], row);
        if self.search.above_floor(key.trace_start) {
            self.heads.push((key, Place::Row { segment, at }));
        }
    }

    /// Whether a span of this row's fragment meets the conditions; the index only says that its spans together may.
    fn row_meets(&mut self, segment: usize, at: usize, budget: &mut Budget, gaps: &mut Gaps) -> bool {
        let row = self.rows[segment][at];
        self.fragment_meets(segment, row, budget, gaps)
    }

    fn fragment_meets(&mut self, segment: usize, row: u32, budget: &mut Budget, gaps: &mut Gaps) -> bool {
        if self.search.conditions.is_empty() {
            budget.spend(0, false);
            return true;
        }
        let view = &self.segments[segment];
        let before = std::mem::replace(&mut self.looked_into[segment], row);
        let is_jump = view.is_sealed() && row.abs_diff(before) > ROWS_BESIDE;
        match view.fragment(row) {
            Ok(fragment) => {
                budget.spend(fragment.otlp.len(), is_jump);
                self.search.conditions.any_span_meets(&fragment.otlp)
            }
            Err(cause) => {
                budget.spend(0, is_jump);
                gaps.damaged(cause);
                false
            }
        }
    }

    /// Whether another part of the trace put it on an earlier page: one that matches too and stands at the cursor or
    /// above it.
    fn is_on_earlier_page(
        &mut self,
        trace_id: TraceId,
        live: &HashMap<TraceId, UnixNanos>,
        budget: &mut Budget,
        gaps: &mut Gaps,
    ) -> bool {
        let Some(Cursor(cursor)) = self.search.cursor else { return false };
        let is_earlier = |key: Key| key >= cursor && self.search.in_range(key.trace_start);
        if live.get(&trace_id).is_some_and(|&trace_start| is_earlier(Key { trace_start, trace_id })) {
            return true;
        }
        for (segment, view) in self.segments.iter().enumerate() {
            let rows = view.find(&self.search.tenant, trace_id).unwrap_or_else(|cause| {
                gaps.damaged(cause);
                Vec::new()
            });
            let mut earlier = rows.into_iter().filter(|&row| is_earlier(key_of(view, row)));
            if earlier.any(|row| self.fragment_meets(segment, row, budget, gaps)) {
                return true;
            }
        }
        false
    }
}

fn key_of(view: &SegmentView, row: u32) -> Key {
    let (trace_start, trace_id) = view.row_key(row);
    Key { trace_start, trace_id }
}
