//! The open and the sealed segment answer alike, and both as reading every span would.

use std::collections::{BTreeMap, BTreeSet};

use ingest_otlp::messages::any_value::Value;
use proptest::collection::vec;
use proptest::prelude::*;
use store_archive::{SegmentView, Term, TermKind};
use store_model::{Fragment, Offset, ShardId, SpanKind, StatusCode, Tenant, TraceId, UnixNanos};

use crate::fixture::{TestSpan, fragment, id, open, small, tenant, text};

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        "[xy\0]{0,2}".prop_map(Value::StringValue),
        (0..3i64).prop_map(Value::IntValue),
        any::<bool>().prop_map(Value::BoolValue),
        vec(any::<u8>(), 0..2).prop_map(Value::BytesValue),
    ]
}

prop_compose! {
    fn spans()(
        service in "[st]", operation in "[op\0]{0,2}", kind in 0..7i32, status in 0..3i32,
        attributes in vec(("[kl\0]{0,2}", values()), 0..4),
    ) -> TestSpan {
        TestSpan { service, operation, kind, status, attributes }
    }
}

prop_compose! {
    fn traces()(owner in 0..2usize, number in 0..12u8, start in 0..8u64, spans in vec(spans(), 0..4))
        -> (Fragment, Vec<TestSpan>)
    {
        let owner = tenant(["one", "two"][owner]);
        (fragment(&owner, id(number), start, &spans), spans)
    }
}

fn printed(value: &Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// Every pair of key and value that a span can be asked for.
fn pairs(span: &TestSpan) -> Vec<(String, String)> {
    let own = span.attributes.iter().filter_map(|(key, value)| Some((key.clone(), printed(value)?)));
    own.chain([("service.name".to_owned(), span.service.clone())]).collect()
}

fn is_true_of(term: Term<'_>, span: &TestSpan) -> bool {
    match term {
        Term::Tenant => true,
        Term::Service(service) => span.service.as_bytes() == service,
        Term::Operation(operation) => span.operation.as_bytes() == operation,
        Term::ServiceOperation(service, operation) => {
            span.service.as_bytes() == service && span.operation.as_bytes() == operation
        }
        Term::Status(status) => span.status == status as i32,
        Term::Kind(kind) => kind as i32 == if span.kind > 5 { 0 } else { span.kind },
        Term::Attribute { key, value } => {
            pairs(span).iter().any(|(k, v)| k.as_bytes() == key && v.as_bytes() == value)
        }
    }
}

/// What a segment holds of a tenant under some terms: keys in order, and what lies behind them.
fn answer(segment: &SegmentView, owner: &Tenant, terms: &[Term<'_>]) -> Vec<(UnixNanos, TraceId, Fragment)> {
    let rows = segment.rows(owner, terms).unwrap();
    let one = |row| {
        let (start, id) = segment.row_key(row);
        (start, id, segment.fragment(row).unwrap())
    };
    rows.into_iter().map(one).collect()
}

fn names(segment: &SegmentView, owner: &Tenant, kind: TermKind<'_>) -> Vec<String> {
    let mut seen = Vec::new();
    let mut visit = |name: &[u8]| {
        seen.push(String::from_utf8(name.to_vec()).unwrap());
        true
    };
    segment.terms(owner, kind, &mut visit).unwrap();
    seen
}

fn check_rows(segment: &SegmentView, all: &[(Fragment, Vec<TestSpan>)], owner: &Tenant, terms: &[Term<'_>]) {
    let mut expected: Vec<_> = all
        .iter()
        .enumerate()
        .filter(|(_, (fragment, spans))| {
            let has =
                |term: &Term<'_>| *term == Term::Tenant || spans.iter().any(|span| is_true_of(*term, span));
            fragment.tenant == *owner && terms.iter().all(has)
        })
        .map(|(row, (fragment, _))| (fragment.trace_start, fragment.trace_id, row))
        .collect();
    expected.sort_unstable_by(|a, b| b.cmp(a));
    let expected: Vec<_> =
        expected.into_iter().map(|(start, id, row)| (start, id, all[row].0.clone())).collect();
    assert_eq!(answer(segment, owner, terms), expected, "{terms:?}");
}

fn check_names(segment: &SegmentView, all: &[(Fragment, Vec<TestSpan>)], owner: &Tenant) {
    let spans: Vec<&TestSpan> =
        all.iter().filter(|(fragment, _)| fragment.tenant == *owner).flat_map(|(_, spans)| spans).collect();
    let sorted = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>();
    let services = sorted(spans.iter().map(|span| span.service.clone()).collect());
    assert_eq!(names(segment, owner, TermKind::Services), services);
    let operations = |service: Option<&str>| {
        let of = spans.iter().filter(|span| service.is_none_or(|service| span.service == service));
        sorted(of.map(|span| span.operation.clone()).collect())
    };
    assert_eq!(names(segment, owner, TermKind::Operations { service: None }), operations(None));
    for service in &services {
        let kind = TermKind::Operations { service: Some(service.as_bytes()) };
        assert_eq!(names(segment, owner, kind), operations(Some(service)));
    }
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (key, value) in spans.iter().flat_map(|span| pairs(span)) {
        keys.entry(key).or_default().insert(value);
    }
    assert_eq!(names(segment, owner, TermKind::Keys), keys.keys().cloned().collect::<Vec<_>>());
    for (key, values) in keys {
        assert_eq!(names(segment, owner, TermKind::Values { key: key.as_bytes() }), sorted(values));
    }
}

fn check_segment(segment: &SegmentView, all: &[(Fragment, Vec<TestSpan>)]) {
    for owner in [tenant("one"), tenant("two"), tenant("nobody")] {
        check_rows(segment, all, &owner, &[]);
        check_names(segment, all, &owner);
        for number in 0..12 {
            let found = segment.find(&owner, id(number)).unwrap();
            let found: Vec<Fragment> = found.into_iter().map(|row| segment.fragment(row).unwrap()).collect();
            let is_it = |fragment: &&Fragment| fragment.tenant == owner && fragment.trace_id == id(number);
            let mut expected: Vec<Fragment> =
                all.iter().map(|(fragment, _)| fragment).filter(is_it).cloned().collect();
            // Rows of a sealed segment are in the order of trace start, and only then as they came.
            if segment.is_sealed() {
                expected.sort_by_key(|fragment| fragment.trace_start);
            }
            assert_eq!(found, expected);
        }
        for span in all.iter().flat_map(|(_, spans)| spans) {
            let (service, operation) = (span.service.as_bytes(), span.operation.as_bytes());
            let status = Term::Status(StatusCode::from_number(u64::from(span.status.unsigned_abs())));
            let kind = Term::Kind(SpanKind::from_number(u64::from(span.kind.unsigned_abs())));
            let pair = Term::ServiceOperation(service, operation);
            for terms in
                [&[Term::Service(service)][..], &[Term::Operation(operation)], &[pair], &[status, kind]]
            {
                check_rows(segment, all, &owner, terms);
            }
            for (key, value) in pairs(span) {
                let attribute = Term::Attribute { key: key.as_bytes(), value: value.as_bytes() };
                check_rows(segment, all, &owner, &[attribute]);
                check_rows(segment, all, &owner, &[pair, attribute, Term::Tenant]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn open_and_sealed_answer_as_a_scan_would(all in vec(traces(), 1..24)) {
        let directory = tempfile::tempdir().unwrap();
        let (archive, _) = open(directory.path());
        let mut writer = archive.writer(ShardId(0));
        for (fragment, _) in &all {
            writer.insert(fragment.clone());
        }
        let before = archive.snapshot();
        let [segment] = before.segments() else { panic!("one open segment") };
        prop_assert!(!segment.is_sealed());
        check_segment(segment, &all);

        writer.seal(Offset(9), UnixNanos(1)).unwrap().unwrap();
        let after = archive.snapshot();
        let [segment] = after.segments() else { panic!("one sealed segment") };
        prop_assert!(segment.is_sealed());
        check_segment(segment, &all);
        // The older snapshot still sees what it saw.
        check_segment(&before.segments()[0], &all);

        drop((writer, archive));
        let (archive, report) = open(directory.path());
        prop_assert_eq!((report.segments, report.quarantined.len()), (1, 0));
        check_segment(&archive.snapshot().segments()[0], &all);
    }
}

#[test]
fn two_tenants_may_use_one_trace_id() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(1));
    let span = |service: &str| [TestSpan { service: service.to_owned(), ..TestSpan::default() }];
    let one = fragment(&tenant("one"), id(7), 5, &span("a"));
    let two = fragment(&tenant("two"), id(7), 5, &span("b"));
    writer.insert(one.clone());
    writer.insert(two.clone());
    for sealed in [false, true] {
        if sealed {
            writer.seal(Offset(1), UnixNanos(1)).unwrap().unwrap();
        }
        let snapshot = archive.snapshot();
        assert_eq!(snapshot.find(&tenant("one"), id(7)).unwrap(), std::slice::from_ref(&one));
        assert_eq!(snapshot.find(&tenant("two"), id(7)).unwrap(), std::slice::from_ref(&two));
        assert_eq!(snapshot.find(&tenant("three"), id(7)).unwrap(), []);
        let segment = &snapshot.segments()[0];
        assert_eq!(segment.rows(&tenant("one"), &[Term::Service(b"b")]).unwrap(), [0u32; 0]);
    }
}

#[test]
fn a_snapshot_of_the_open_segment_does_not_grow() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    writer.insert(small(1));
    let snapshot = archive.snapshot();
    writer.insert(small(2));
    let mut late = small(1);
    late.span_count = 0;
    writer.insert(late);
    let segment = &snapshot.segments()[0];
    assert_eq!(segment.rows(&Tenant::default(), &[Term::Service(b"shop")]).unwrap(), [0]);
    assert_eq!(snapshot.find(&Tenant::default(), id(1)).unwrap(), [small(1)]);
    assert_eq!(names(segment, &Tenant::default(), TermKind::Values { key: b"number" }), ["1"]);
    assert_eq!(segment.time_range(), (small(1).trace_start, small(1).trace_start));
    assert_eq!(writer.find(&Tenant::default(), id(1)).unwrap().len(), 2);
}

#[test]
fn long_values_are_found_by_their_whole_text() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    let long = "v".repeat(5_000);
    let span = TestSpan { attributes: vec![("k".to_owned(), text(&long))], ..TestSpan::default() };
    writer.insert(fragment(&Tenant::default(), id(1), 1, &[span]));
    let snapshot = archive.snapshot();
    let segment = &snapshot.segments()[0];
    let rows = |value: &str| {
        segment.rows(&Tenant::default(), &[Term::Attribute { key: b"k", value: value.as_bytes() }]).unwrap()
    };
    assert_eq!(rows(&long), [0]);
    assert_eq!(rows("v"), [0u32; 0]);
}

#[test]
fn a_fragment_that_cannot_be_decoded_is_still_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    let mut torn = small(1);
    torn.otlp = torn.otlp.slice(..torn.otlp.len() - 3);
    writer.insert(torn.clone());
    writer.seal(Offset(1), UnixNanos(1)).unwrap().unwrap();
    assert_eq!(archive.snapshot().find(&Tenant::default(), id(1)).unwrap(), [torn]);
}
