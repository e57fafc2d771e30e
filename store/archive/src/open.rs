//! The open segment: fragments in memory, in the order they came, searchable at once. Never touches the disk: what it
//! holds is in the journal and can be gathered again.
//!
//! One writer adds, any number of snapshots read. A snapshot remembers how many rows there were and looks no further, so
//! its answers stay the same while rows are added.

use std::cmp::Reverse;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use hashbrown::HashMap;
use store_index::{Error as FormatError, IndexBuilder, Term};
use store_model::{Fragment, Tenant, TraceId, UnixNanos};

use crate::pack::{Packed, unpack};
use crate::pieces::Pieces;
use crate::terms::{Portion, Terms};

/// What a row holds besides its packed bytes: the fragment's own fields, its place in the trace table.
const ROW_BYTES: usize = size_of::<Row>() + 64;

/// The open segment of a shard, shared with snapshots.
#[derive(Debug, Default)]
pub(crate) struct Open(RwLock<Rows>);

/// What the open segment holds.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Row>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) index: IndexBuilder,
    pub(crate) pieces: Pieces,
    pub(crate) earliest: UnixNanos,
    pub(crate) latest: UnixNanos,
    tenant_numbers: HashMap<Tenant, u32>,
    /// The last row of each trace; rows know the one before.
    last_of_trace: HashMap<(u32, TraceId), u32>,
    bytes: usize,
}

/// One fragment.
#[derive(Debug)]
pub(crate) struct Row {
    /// Without its OTLP, which is packed.
    pub(crate) fragment: Fragment,
    pub(crate) packed: Packed,
    pub(crate) tenant_number: u32,
    before: Option<u32>,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            tenants: Vec::new(),
            index: IndexBuilder::new(),
            pieces: Pieces::default(),
            earliest: UnixNanos(u64::MAX),
            latest: UnixNanos(0),
            tenant_numbers: HashMap::new(),
            last_of_trace: HashMap::new(),
            bytes: 0,
        }
    }
}

impl Rows {
    /// About how much memory all this holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.rows.len() * ROW_BYTES + self.index.bytes() + self.pieces.memory_bytes()
    }

    /// A row as it was inserted.
    pub(crate) fn fragment(&self, row: u32) -> Fragment {
        let Row { fragment, packed, .. } = &self.rows[row as usize];
        let mut numbers = packed.pieces.iter();
        let mut next = || {
            let number = numbers.next().ok_or(FormatError::Corrupt { what: "packed spans" });
            number.map(|&number| self.pieces.get(number))
        };
        let keys = (fragment.trace_id, fragment.trace_start);
        let otlp = unpack(&packed.stream, &mut next, keys, packed.otlp_bytes);
        Fragment { otlp: otlp.expect("memory holds what was packed").into(), ..fragment.clone() }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.rows.len()).expect("a segment is sealed before 2^32 rows")
    }

    fn push(&mut self, fragment: Fragment, packed: Packed, tenant_number: u32, row: u32) {
        self.earliest = self.earliest.min(fragment.trace_start);
        self.latest = self.latest.max(fragment.trace_start);
        self.bytes += packed.bytes();
        let before = self.last_of_trace.insert((tenant_number, fragment.trace_id), row);
        let fragment = Fragment { otlp: Bytes::new(), ..fragment };
        self.rows.push(Row { fragment, packed, tenant_number, before });
    }

    /// The rows below `end` that all terms are true of, ascending.
    fn matching(&self, end: u32, tenant: &Tenant, terms: &[Term<'_>]) -> Vec<u32> {
        let Some(&tenant_number) = self.tenant_numbers.get(tenant) else {
            return Vec::new();
        };
        let mut encoded = Vec::new();
        let mut numbers = Vec::with_capacity(terms.len() + 1);
        for term in terms.iter().chain(terms.is_empty().then_some(&Term::Tenant)) {
            encoded.clear();
            term.encode(tenant_number, &mut encoded);
            let Some(number) = self.index.number(&encoded) else {
                return Vec::new();
            };
            numbers.push(number);
        }
        self.index.rows(&numbers, end)
    }
}

impl Open {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Rows> {
        // A poisoned lock means that a thread panicked while adding; rows it had not pushed are never looked at.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fragment; only the shard's one writer calls this.
    ///
    /// # Errors
    /// When the fragment's OTLP cannot be read to its end; it is stored and indexed as far as it could be read.
    pub(crate) fn insert(&self, fragment: Fragment, terms: &mut Terms) -> Result<(), ingest_otlp::Error> {
        let (tenant_number, row) = self.begin(&fragment.tenant);
        // Terms of a row that is not pushed yet are beyond every snapshot's end, so portions may be added early.
        let add =
            |rows: &mut Rows, mut portion: Portion<'_>| portion.add_to(&mut rows.index, &mut rows.pieces);
        let mut add_portion = |portion: Portion<'_>| add(&mut self.write(), portion);
        let (packed, extracted) = terms.extract(tenant_number, row, &fragment, &mut add_portion);
        let mut rows = self.write();
        add(&mut rows, terms.portion());
        rows.push(fragment, packed, tenant_number, row);
        extracted
    }

    fn begin(&self, tenant: &Tenant) -> (u32, u32) {
        let rows = self.read();
        let row = rows.count();
        if let Some(&number) = rows.tenant_numbers.get(tenant) {
            return (number, row);
        }
        drop(rows);
        let mut rows = self.write();
        let number = u32::try_from(rows.tenants.len()).expect("there are fewer tenants than rows");
        rows.tenants.push(tenant.clone());
        rows.tenant_numbers.insert(tenant.clone(), number);
        (number, row)
    }

    /// The rows below `end` that all terms are true of, newest first.
    pub(crate) fn rows(&self, end: u32, tenant: &Tenant, terms: &[Term<'_>]) -> Vec<u32> {
        let rows = self.read();
        let matching = rows.matching(end, tenant, terms);
        let key = |row: u32| {
            let fragment = &rows.rows[row as usize].fragment;
            (fragment.trace_start, fragment.trace_id, row)
        };
        let mut keys: Vec<_> = matching.into_iter().map(key).collect();
        drop(rows);
        // Sorted outside the lock: the writer waits for it.
        keys.sort_unstable_by_key(|&key| Reverse(key));
        keys.into_iter().map(|(_, _, row)| row).collect()
    }

    /// The rows below `end` of a trace, ascending.
    pub(crate) fn find(&self, end: u32, tenant: &Tenant, id: TraceId) -> Vec<u32> {
        let rows = self.read();
        let last = rows
            .tenant_numbers
            .get(tenant)
            .and_then(|&number| rows.last_of_trace.get(&(number, id)).copied());
        let chain = std::iter::successors(last, |&row| rows.rows[row as usize].before);
        let mut found: Vec<u32> = chain.filter(|&row| row < end).collect();
        found.reverse();
        found
    }

    /// What follows `prefix` in the terms of rows below `end`, in byte order, each cut to `part_length` and once.
    pub(crate) fn suffixes(
        &self,
        end: u32,
        tenant: &Tenant,
        prefix: impl FnOnce(u32) -> Vec<u8>,
        part_length: impl Fn(&[u8]) -> usize,
    ) -> Vec<Vec<u8>> {
        let mut found = std::collections::HashSet::new();
        let rows = self.read();
        if let Some(&number) = rows.tenant_numbers.get(tenant) {
            rows.index.each_with_prefix(&prefix(number), end, &mut |suffix| {
                let suffix = &suffix[..part_length(suffix)];
                if !found.contains(suffix) {
                    found.insert(suffix.to_vec());
                }
            });
        }
        drop(rows);
        let mut sorted: Vec<_> = found.into_iter().collect();
        sorted.sort_unstable();
        sorted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ingest_otlp::messages::{
        AnyValue, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, Status,
        TracesData, any_value::Value, span::Event,
    };
    use ingest_otlp::{span_attributes, visit_spans};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::Message as _;
    use store_model::{Reason, Threshold};

    use super::*;

    const TRACE_ID: TraceId = TraceId([7; 16]);

    fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
        let value = prop_oneof![
            "[ab]{0,2}".prop_map(Value::StringValue),
            "c{120,140}".prop_map(Value::StringValue),
            (0..3i64).prop_map(Value::IntValue),
            vec(any::<u8>(), 0..3).prop_map(Value::BytesValue),
        ];
        let one = ("[kl]", value)
            .prop_map(|(key, value)| KeyValue { key, value: Some(AnyValue { value: Some(value) }) });
        vec(one, 0..5)
    }

    prop_compose! {
        fn spans()(
            (is_ours, id, parent, state) in (0..9u8, 0..5u8, 0..4u8, "(|a=b)"),
            (name, kind, start, length) in ("[a-c]?", 0..4, 0..4_000_000_000u64, 0..9_000u64),
            (attributes, events, status, flags) in (attributes(), 0..2usize, 0..3, 0..2u32),
        ) -> Span {
            let event = Event { time_unix_nano: start, name: "e".repeat(60), ..Event::default() };
            Span {
                trace_id: vec![if is_ours > 0 { 7 } else { 8 }; 16],
                span_id: vec![id; 8],
                parent_span_id: vec![parent; if parent == 0 { 0 } else { 8 }],
                trace_state: state,
                name,
                kind,
                start_time_unix_nano: start,
                end_time_unix_nano: if start == 0 { 0 } else { start + length },
                attributes,
                events: vec![event; events],
                status: (status > 0).then(|| Status { code: status, message: String::new() }),
                flags,
                ..Span::default()
            }
        }
    }

    fn traces() -> impl Strategy<Value = Vec<u8>> {
        let scope = ("[s]?", vec(spans(), 0..4), "(|url)").prop_map(|(name, spans, schema_url)| {
            let scope = InstrumentationScope { name, ..InstrumentationScope::default() };
            ScopeSpans { scope: Some(scope), spans, schema_url }
        });
        let resource =
            (attributes(), vec(scope, 0..3), "(|url)").prop_map(|(attributes, scope_spans, url)| {
                let resource = Some(Resource { attributes, ..Resource::default() });
                // Prost writes fields in order, so the URL stands behind the scopes.
                ResourceSpans { resource, scope_spans, schema_url: url }
            });
        vec(resource, 0..4).prop_map(|resource_spans| TracesData { resource_spans }.encode_to_vec())
    }

    fn fragment(otlp: &[u8]) -> Fragment {
        Fragment {
            tenant: Tenant::default(),
            trace_id: TRACE_ID,
            trace_start: UnixNanos(1_000),
            end: UnixNanos(2_000),
            decided_at: UnixNanos(3_000),
            reason: Reason::Head,
            threshold: Threshold::ALWAYS,
            complete: true,
            span_count: 1,
            otlp: Bytes::copy_from_slice(otlp),
        }
    }

    /// The terms of a fragment, spelled out one by one; `None` when it cannot be read to its end.
    fn spelled(otlp: &[u8]) -> Option<BTreeSet<Vec<u8>>> {
        let mut found = BTreeSet::new();
        let mut add = |term: Term<'_>| {
            let mut encoded = Vec::new();
            term.encode(0, &mut encoded);
            found.insert(encoded);
        };
        add(Term::Tenant);
        visit_spans(otlp, &mut |resource, span, bytes| {
            add(Term::Service(span.service));
            add(Term::Operation(span.operation));
            add(Term::ServiceOperation(span.service, span.operation));
            add(Term::Status(span.status));
            add(Term::Kind(span.kind));
            let mut add_attribute = |key: &[u8], value: ingest_otlp::ValueView<'_>| {
                let mut text = String::new();
                if value.to_text(&mut text) {
                    add(Term::Attribute { key, value: text.as_bytes() });
                }
            };
            span_attributes(bytes, &mut add_attribute);
            resource.attributes(&mut add_attribute);
        })
        .ok()
        .map(|()| found)
    }

    fn terms_of(rows: &Rows, row: u32) -> BTreeSet<Vec<u8>> {
        let mut all = Vec::new();
        rows.index.each_with_prefix(b"", u32::MAX, &mut |term| all.push(term.to_vec()));
        let has = |term: &Vec<u8>| {
            let number = rows.index.number(term).unwrap();
            rows.index.rows(&[number], u32::MAX).contains(&row)
        };
        all.into_iter().filter(has).collect()
    }

    proptest! {
        #[test]
        fn fragments_come_back_and_are_found_by_what_they_say(
            traces in vec(traces(), 1..4),
            changes in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut traces = traces;
            for (trace, at, byte) in &changes {
                let trace = trace.get_mut(&mut traces);
                if !trace.is_empty() {
                    *at.get_mut(trace) = *byte;
                }
            }
            let open = Open::default();
            let mut terms = Terms::default();
            // Once more for the pieces that are known by then, and for a writer that knows none of them.
            for round in 0..3 {
                if round == 2 {
                    terms = Terms::new(open.read().pieces.count());
                }
                for otlp in &traces {
                    let read = open.insert(fragment(otlp), &mut terms);
                    let rows = open.read();
                    let row = rows.count() - 1;
                    prop_assert_eq!(rows.fragment(row), fragment(otlp));
                    let spelled = spelled(otlp);
                    prop_assert_eq!(read.is_ok(), spelled.is_some());
                    if let Some(spelled) = spelled {
                        prop_assert!(terms_of(&rows, row).is_superset(&spelled));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_said_is_exactly_what_a_row_is_found_by() {
        let attribute = |key: &str, value: &str| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
        };
        let span = |number: u8, code: i32| Span {
            trace_id: TRACE_ID.0.to_vec(),
            span_id: vec![number; 8],
            parent_span_id: if number > 1 { vec![1; 8] } else { Vec::new() },
            name: format!("operation {}", number % 2),
            kind: 2,
            start_time_unix_nano: 1_000 + u64::from(number),
            end_time_unix_nano: 2_000,
            attributes: vec![attribute("number", &number.to_string()), attribute("same", "x")],
            status: Some(Status { code, message: "because ".repeat(usize::from(number)) }),
            ..Span::default()
        };
        let resource = |name: &str, spans| ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", name)],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        };
        let trace = |last| {
            let first = resource("a", vec![span(1, 0), span(2, 2), span(3, 1)]);
            let resource_spans = vec![first, resource("b", vec![span(last, 0), span(20, 2)])];
            TracesData { resource_spans }.encode_to_vec()
        };
        let open = Open::default();
        let mut terms = Terms::default();
        for (row, last) in (0..).zip([4, 4, 5, 1]) {
            let otlp = trace(last);
            open.insert(fragment(&otlp), &mut terms).unwrap();
            assert_eq!(Some(terms_of(&open.read(), row)), spelled(&otlp));
            // Ids, times and references to pieces are what is left of it.
            let packed = open.read().rows[row as usize].packed.bytes();
            assert!(row == 0 || packed < otlp.len() * 2 / 3, "{packed} of {}", otlp.len());
        }
    }
}
