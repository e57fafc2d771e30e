//! Answers under way: traces that move, decisions that differ, budgets, damage.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use query_engine::{Conditions, Cursor, Engine, Error, Limits, Live, LiveTrace, Search, TraceSummary};
use store_model::{Fragment, Reason, Tenant, Threshold, TraceId, UnixNanos};
use support::{PretendedLive, Spec, Store, fragment, id};

fn search(limit: usize) -> Search {
    let conditions = Conditions { service: Some("shop".into()), ..Conditions::default() };
    Search { conditions, limit, ..Search::default() }
}

fn spans(ids: impl IntoIterator<Item = u64>) -> Vec<Spec> {
    ids.into_iter().map(|span_id| Spec { span_id, root: span_id == 1, ..Spec::default() }).collect()
}

fn engine(store: &Store, live: &Arc<PretendedLive>) -> Engine {
    Engine::new(store.archive(), Arc::clone(live) as _, Limits::default())
}

/// A live side from which the trace moves to the archive during one of the calls.
struct Moving {
    live: PretendedLive,
    store: Mutex<Store>,
    when: Moment,
    /// At the moment's first time, or later?
    times: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    BeforeTrace,
    AfterTrace,
    BeforeUndecided,
    AfterUndecided,
}

impl Moving {
    /// As the archiver does it: the archive has the trace before the shard forgets it.
    fn reach(&self, moment: Moment) {
        if self.when != moment || self.times.fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        let mut traces = self.live.traces.lock().unwrap();
        for ((tenant, trace_id), live) in traces.drain() {
            let mut store = self.store.lock().unwrap();
            let spans = spans(1..3);
            let kept =
                Fragment { otlp: live.otlp, ..fragment(&tenant, trace_id, live.trace_start.0, &spans) };
            store.insert(kept);
        }
    }
}

impl Live for Moving {
    fn trace(&self, tenant: &Tenant, id: TraceId) -> Option<LiveTrace> {
        self.reach(Moment::BeforeTrace);
        let found = self.live.trace(tenant, id);
        self.reach(Moment::AfterTrace);
        found
    }

    fn bodies(&self, tenant: &Tenant, visit: &mut dyn FnMut(&[u8]) -> bool) {
        self.live.bodies(tenant, visit);
    }

    fn undecided(&self, tenant: &Tenant, ids: &[TraceId]) -> Vec<Option<UnixNanos>> {
        self.reach(Moment::BeforeUndecided);
        let found = self.live.undecided(tenant, ids);
        self.reach(Moment::AfterUndecided);
        found
    }
}

#[test]
fn a_trace_that_moves_into_the_archive_is_seen_once_whenever_it_moves() {
    let moments = [Moment::BeforeTrace, Moment::AfterTrace, Moment::BeforeUndecided, Moment::AfterUndecided];
    for (when, times) in moments.into_iter().flat_map(|when| [(when, 1), (when, 2)]) {
        let start = || {
            let store = Store::new();
            let archive = store.archive();
            let live = PretendedLive::default();
            live.add(&Tenant::default(), id(1), 100, &spans(1..3));
            let live = Arc::new(Moving { live, store: Mutex::new(store), when, times: times.into() });
            (Engine::new(archive, Arc::clone(&live) as _, Limits::default()), live)
        };
        let (engine, _live) = start();
        let found = engine.trace(&Tenant::default(), id(1)).unwrap().unwrap();
        assert_eq!(found.summary.span_count, 2, "{when:?}");
        let (engine, _live) = start();
        let page = engine.search(&search(5)).unwrap();
        assert_eq!(page.traces.len(), 1, "{when:?}");
        assert_eq!(page.traces[0].span_count, 2, "{when:?}");
        let (engine, _live) = start();
        assert_eq!(engine.services(&Tenant::default()).unwrap().names, ["shop"], "{when:?}");
    }
}

#[test]
fn late_spans_join_their_trace_and_the_most_telling_decision_holds_for_all() {
    let mut store = Store::new();
    let live = Arc::new(PretendedLive::default());
    let tenant = Tenant::default();
    store.insert(fragment(&tenant, id(1), 100, &spans(1..4)));
    store.seal();
    store.insert(Fragment {
        reason: Reason::Error,
        threshold: Threshold::ALWAYS,
        complete: false,
        // One of the three spans is a copy of one that is kept already.
        ..fragment(&tenant, id(1), 100, &spans([3, 4, 5]))
    });
    live.add(&tenant, id(1), 100, &spans([6]));
    let trace = engine(&store, &live).trace(&tenant, id(1)).unwrap().unwrap();
    let mut states = BTreeSet::new();
    ingest_otlp::visit_spans(&trace.otlp, &mut |_, span, _| {
        states.insert((span.span_id, span.threshold));
    })
    .unwrap();
    assert_eq!(states.len(), 6);
    assert!(states.iter().all(|(_, threshold)| *threshold == Threshold::ALWAYS));
    let TraceSummary { reason, complete, adjusted_count, span_count, .. } = trace.summary;
    assert_eq!((reason, complete, adjusted_count, span_count), (Some(Reason::Error), true, 1.0, 6));
}

#[test]
fn a_pending_trace_is_whole_and_unstamped_and_a_decided_one_on_its_way_is_stamped() {
    let store = Store::new();
    let live = Arc::new(PretendedLive::default());
    let tenant = Tenant::default();
    live.add(&tenant, id(1), 100, &spans(1..3));
    let pending = engine(&store, &live).trace(&tenant, id(1)).unwrap().unwrap();
    assert_eq!((pending.summary.reason, pending.summary.complete), (None, false));
    let sent = live.trace(&tenant, id(1)).unwrap().otlp;
    let mut before = Vec::new();
    ingest_otlp::visit_spans(&sent, &mut |_, _, bytes| before.push(bytes.to_vec())).unwrap();
    let mut after = Vec::new();
    ingest_otlp::visit_spans(&pending.otlp, &mut |_, _, bytes| after.push(bytes.to_vec())).unwrap();
    assert_eq!(before, after);

    let verdict = Some((Reason::Slow, Threshold::from_probability(0.5)));
    live.traces.lock().unwrap().values_mut().for_each(|live| live.verdict = verdict);
    let decided = engine(&store, &live).trace(&tenant, id(1)).unwrap().unwrap();
    assert_eq!((decided.summary.reason, decided.summary.complete), (Some(Reason::Slow), true));
    assert_eq!(decided.summary.adjusted_count, 2.0);
}

#[test]
fn a_summary_names_the_root_wherever_it_lies() {
    let store = Store::new();
    let live = Arc::new(PretendedLive::default());
    let child =
        Spec { span_id: 2, root: false, start: 50, duration: 5, service: "z".into(), ..Spec::default() };
    let root = Spec { span_id: 1, start: 60, duration: 40, operation: "pay".into(), ..Spec::default() };
    live.add(&Tenant::default(), id(1), 50, &[child.clone(), root]);
    live.add(&Tenant::default(), id(2), 50, &[child]);
    let engine = engine(&store, &live);
    let summary = |number| engine.trace(&Tenant::default(), id(number)).unwrap().unwrap().summary;
    let whole = summary(1);
    assert_eq!((&*whole.root_service, &*whole.root_operation), ("shop", "pay"));
    assert_eq!((whole.start, whole.duration_ns), (UnixNanos(50), 50));
    assert_eq!(whole.services, ["shop", "z"]);
    assert_eq!(&*summary(2).root_service, "z", "without a root the earliest span names the trace");
}

#[test]
fn a_search_that_spends_its_budget_says_so_and_can_be_taken_up_again() {
    for limits in
        [Limits { rows_max: 7, ..Limits::default() }, Limits { bytes_max: 1500, ..Limits::default() }]
    {
        let mut store = Store::new();
        let tenant = Tenant::default();
        for number in 1..=100 {
            // Two fragments under one key, of which one of every tenth trace is long enough.
            for part in 0..2 {
                let duration = if number % 10 == 0 && number / 10 % 2 == part { 1000 } else { 1 };
                let spans = [Spec { span_id: u64::from(part) + 1, duration, ..Spec::default() }];
                store.insert(fragment(&tenant, id(number), u64::from(number), &spans));
            }
            if number % 30 == 0 {
                store.seal();
            }
        }
        let engine = Engine::new(store.archive(), Arc::new(PretendedLive::default()), limits);
        let mut search = search(3);
        search.conditions.min_duration_ns = Some(1000);
        let mut found = Vec::new();
        let mut cut_short = 0;
        loop {
            let page = engine.search(&search).unwrap();
            found.extend(page.traces.iter().map(|trace| trace.trace_id));
            if let Some(text) = &page.incomplete {
                assert!(text.contains("cursor"), "{text}");
                assert!(page.next.is_some(), "a search cut short can be taken up again");
                cut_short += 1;
            }
            let Some(next) = page.next else { break };
            assert!(search.cursor.is_none_or(|Cursor { .. }| search.cursor > Some(next)), "a page goes on");
            search.cursor = Some(next);
        }
        assert!(cut_short > 5, "{limits:?} cut {cut_short} pages short");
        assert_eq!(found, (1..=10).rev().map(|tens| id(tens * 10)).collect::<Vec<_>>());
    }
}

#[test]
fn live_bodies_beyond_the_limit_are_named_as_missing() {
    let store = Store::new();
    let live = Arc::new(PretendedLive::default());
    for number in 1..=20 {
        live.add(&Tenant::default(), id(number), 100, &spans([1]));
    }
    let limits = Limits { live_bytes_max: 500, ..Limits::default() };
    let engine = Engine::new(store.archive(), Arc::clone(&live) as _, limits);
    let page = engine.search(&search(100)).unwrap();
    assert!((1..20).contains(&page.traces.len()));
    assert!(page.incomplete.unwrap().contains("recent spans"));
}

/// Breaks the first page of a sealed segment.
fn damage(path: &Path) {
    // In place and without truncating it: the archive has the file mapped.
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3).unwrap();
    file.write_all_at(&[!byte[0]], 3).unwrap();
}

#[test]
fn damage_is_left_out_and_named_and_the_rest_is_answered() {
    let mut store = Store::new();
    let tenant = Tenant::default();
    for number in 1..=20 {
        store.insert(fragment(&tenant, id(number), u64::from(number), &spans([1])));
    }
    let path = store.seal().unwrap();
    damage(&path);
    store.insert(fragment(&tenant, id(20), 20, &spans([2])));
    let engine = engine(&store, &Arc::default());
    let page = engine.search(&search(100)).unwrap();
    assert!((2..20).contains(&page.traces.len()), "{} of 20 found", page.traces.len());
    let text = page.incomplete.unwrap();
    assert!(text.contains("damaged"), "{text}");
    // The first page holds the oldest traces.
    assert!(matches!(engine.trace(&tenant, id(1)), Err(Error::Damaged(_))));
    let whole = engine.trace(&tenant, id(20)).unwrap().unwrap();
    assert_eq!((whole.summary.span_count, whole.incomplete), (2, None));

    store.insert(fragment(&tenant, id(1), 1, &spans([2])));
    let part = engine.trace(&tenant, id(1)).unwrap().unwrap();
    assert_eq!(part.summary.span_count, 1);
    assert!(part.incomplete.unwrap().contains("damaged"));
}
