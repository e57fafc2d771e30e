//! The engine against a model that looks at everything: whatever lies where, the pages of a search hold the same traces
//! in the same order.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use query_engine::{Conditions, Engine, Limits, Page, Search, TraceSummary};
use store_model::{SpanKind, StatusCode, Tenant, TraceId, UnixNanos};
use support::{PretendedLive, Spec, Store, body, fragment, id};

/// Where a part of a trace lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Sealed(u8),
    Open,
    Live,
    /// Only in a body; the trace was let go.
    Gone,
}

#[derive(Clone, Debug)]
struct Part {
    tenant: u8,
    trace: u8,
    trace_start: u64,
    place: Place,
    spans: Vec<Spec>,
}

fn word(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(words).prop_map(str::to_owned)
}

fn span() -> impl Strategy<Value = Spec> {
    let names =
        (word(&["shop", "cart", ""]), word(&["buy", "look"]), word(&["red", "blue"]), word(&["a", "b"]));
    let codes = (
        prop::sample::select(&[SpanKind::Server, SpanKind::Client][..]),
        prop::sample::select(&[StatusCode::Unset, StatusCode::Ok, StatusCode::Error][..]),
        prop::sample::select(&[200, 404][..]),
    );
    (names, codes, any::<u64>(), any::<bool>(), 0..20u64, 0..5u64).prop_map(
        |((service, operation, colour, host), (kind, status, code), span_id, root, start, duration)| Spec {
            span_id: span_id.max(1),
            root,
            start,
            duration,
            service,
            operation,
            kind,
            status,
            colour,
            code,
            host,
        },
    )
}

fn part() -> impl Strategy<Value = Part> {
    let place = prop_oneof![
        4 => (0..3u8).prop_map(Place::Sealed),
        2 => Just(Place::Open),
        2 => Just(Place::Live),
        1 => Just(Place::Gone),
    ];
    (0..2u8, 1..9u8, 0..12u64, place, vec(span(), 1..4)).prop_map(
        |(tenant, trace, trace_start, place, spans)| Part { tenant, trace, trace_start, place, spans },
    )
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let tag = prop_oneof![
        word(&["red", "blue"]).prop_map(|value| ("colour".to_owned(), value)),
        word(&["200", "404"]).prop_map(|value| ("code".to_owned(), value)),
        word(&["a", "b"]).prop_map(|value| ("host".to_owned(), value)),
    ];
    (
        option::weighted(0.3, word(&["shop", "cart"])),
        option::weighted(0.3, word(&["buy", "look"])),
        vec(tag, 0..3),
        option::weighted(0.2, prop::sample::select(&[StatusCode::Unset, StatusCode::Error][..])),
        option::weighted(0.2, prop::sample::select(&[SpanKind::Server, SpanKind::Client][..])),
        option::weighted(0.2, 0..4u64),
        option::weighted(0.2, 1..5u64),
    )
        .prop_map(|(service, operation, tags, status, kind, min_duration_ns, max_duration_ns)| {
            Conditions { service, operation, tags, status, kind, min_duration_ns, max_duration_ns }
        })
}

fn tenant(number: u8) -> Tenant {
    Tenant::new(&format!("tenant-{number}")).unwrap()
}

/// Everything in its place.
fn build(parts: &[Part]) -> (Engine, Store) {
    let mut store = Store::new();
    let live = Arc::new(PretendedLive::default());
    let mut parts = parts.to_vec();
    parts.sort_by_key(|part| part.place);
    let mut segment = 0;
    for Part { tenant: owner, trace, trace_start, place, spans } in &parts {
        let owner = tenant(*owner);
        let now_at = if let Place::Sealed(number) = place { *number } else { u8::MAX };
        if now_at != segment {
            store.seal();
            segment = now_at;
        }
        match place {
            Place::Sealed(_) | Place::Open => store.insert(fragment(&owner, id(*trace), *trace_start, spans)),
            Place::Live => live.add(&owner, id(*trace), *trace_start, spans),
            Place::Gone => {
                let spans = body(spans.iter().map(|span| (id(*trace), span)));
                live.stale_bodies.lock().unwrap().push((owner, spans));
            }
        }
    }
    (Engine::new(store.archive(), live, Limits::default()), store)
}

/// What is held: no gone parts, one live part a trace, and no gone parts of live traces, which the engine may or may not
/// find by their bodies.
fn held(mut parts: Vec<Part>) -> Vec<Part> {
    let mut live = BTreeSet::new();
    parts.retain(|part| part.place != Place::Live || live.insert((part.tenant, part.trace)));
    parts.retain(|part| part.place != Place::Gone || !live.contains(&(part.tenant, part.trace)));
    parts
}

fn meets(conditions: &Conditions, span: &Spec) -> bool {
    let tags =
        [("colour", span.colour.clone()), ("code", span.code.to_string()), ("host", span.host.clone())];
    let has = |(key, value): &(String, String)| tags.iter().any(|(k, v)| k == key && v == value);
    conditions.service.as_ref().is_none_or(|service| *service == span.service)
        && conditions.operation.as_ref().is_none_or(|operation| *operation == span.operation)
        && conditions.tags.iter().all(has)
        && conditions.status.is_none_or(|status| status == span.status)
        && conditions.kind.is_none_or(|kind| kind == span.kind)
        && conditions.min_duration_ns.is_none_or(|shortest| span.duration >= shortest)
        && conditions.max_duration_ns.is_none_or(|longest| span.duration <= longest)
}

/// The ids that all pages together must hold, in order.
fn expected(parts: &[Part], search: &Search) -> Vec<TraceId> {
    let mut keys: BTreeMap<u8, u64> = BTreeMap::new();
    for part in parts.iter().filter(|part| part.place != Place::Gone && tenant(part.tenant) == search.tenant)
    {
        let start = UnixNanos(part.trace_start);
        let in_range =
            search.start.is_none_or(|from| start >= from) && search.end.is_none_or(|to| start < to);
        if in_range && part.spans.iter().any(|span| meets(&search.conditions, span)) {
            let newest = keys.entry(part.trace).or_default();
            *newest = part.trace_start.max(*newest);
        }
    }
    let mut order: Vec<(u64, u8)> = keys.into_iter().map(|(trace, start)| (start, trace)).collect();
    order.sort_unstable();
    order.into_iter().rev().map(|(_, trace)| id(trace)).collect()
}

fn all_pages(engine: &Engine, mut search: Search) -> Vec<TraceSummary> {
    let mut all = Vec::new();
    for _ in 0..100 {
        let Page { traces, next, incomplete } = engine.search(&search).unwrap();
        assert_eq!(incomplete, None);
        assert!(traces.len() <= search.limit);
        all.extend(traces);
        let Some(next) = next else { return all };
        search.cursor = Some(query_engine::Cursor::from_bytes(&next.to_bytes()).unwrap());
    }
    panic!("the pages have no end");
}

fn spans_of(parts: &[Part], owner: u8, trace: u8) -> BTreeSet<(u64, String)> {
    let own =
        parts.iter().filter(|part| part.tenant == owner && part.trace == trace && part.place != Place::Gone);
    own.flat_map(|part| &part.spans).map(|span| (span.span_id, span.service.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_pages_of_a_search_hold_what_a_look_at_everything_finds(
        parts in vec(part(), 0..30).prop_map(held),
        asks in vec((0..2u8, conditions(), option::of(0..12u64), option::of(0..13u64), 1..6usize), 1..8),
    ) {
        let (engine, _store) = build(&parts);
        for (owner, conditions, start, end, limit) in asks {
            let search = Search {
                tenant: tenant(owner),
                conditions,
                start: start.map(UnixNanos),
                end: end.map(UnixNanos),
                limit,
                cursor: None,
            };
            let found = all_pages(&engine, search.clone());
            let ids: Vec<TraceId> = found.iter().map(|summary| summary.trace_id).collect();
            prop_assert_eq!(&ids, &expected(&parts, &search), "{:?}", search);
            for summary in found {
                let spans = spans_of(&parts, owner, summary.trace_id.0[0]);
                prop_assert_eq!(summary.span_count as usize, spans.len());
            }
        }
    }

    #[test]
    fn a_trace_by_id_is_all_its_parts_and_no_others(parts in vec(part(), 0..20).prop_map(held)) {
        let (engine, _store) = build(&parts);
        for (owner, trace) in (0..2).flat_map(|owner| (1..9).map(move |trace| (owner, trace))) {
            let found = engine.trace(&tenant(owner), id(trace)).unwrap();
            let mut got = BTreeSet::new();
            if let Some(found) = &found {
                ingest_otlp::visit_spans(&found.otlp, &mut |_, span, _| {
                    let service = String::from_utf8(span.service.to_vec()).unwrap();
                    assert!(got.insert((u64::from_be_bytes(span.span_id.0), service)), "a span came twice");
                })
                .unwrap();
            }
            prop_assert_eq!(got, spans_of(&parts, owner, trace));
        }
    }

    #[test]
    fn lists_hold_the_names_of_everything_held(parts in vec(part(), 0..20).prop_map(held)) {
        let (engine, _store) = build(&parts);
        for owner in 0..2 {
            let own = parts.iter().filter(|part| part.tenant == owner && part.place != Place::Gone);
            let spans: Vec<&Spec> = own.flat_map(|part| &part.spans).collect();
            let names = |of: &dyn Fn(&Spec) -> Option<String>| -> Vec<String> {
                let names: BTreeSet<String> = spans.iter().filter_map(|span| of(span)).collect();
                names.into_iter().filter(|name| !name.is_empty()).collect()
            };
            let tenant = tenant(owner);
            prop_assert_eq!(engine.services(&tenant).unwrap().names, names(&|span| Some(span.service.clone())));
            prop_assert_eq!(
                engine.operations(&tenant, None).unwrap().names,
                names(&|span| Some(span.operation.clone()))
            );
            prop_assert_eq!(
                engine.operations(&tenant, Some("shop")).unwrap().names,
                names(&|span| (span.service == "shop").then(|| span.operation.clone()))
            );
            prop_assert_eq!(
                engine.tag_values(&tenant, "code", 10).unwrap().names,
                names(&|span| Some(span.code.to_string()))
            );
            let keys = engine.tag_keys(&tenant).unwrap().names;
            let expected: &[&str] =
                if spans.is_empty() { &[] } else { &["code", "colour", "host", "service.name"] };
            prop_assert_eq!(keys, expected);
        }
    }
}
