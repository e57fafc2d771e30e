//! The open segment: fragments in memory, in the order they came, searchable at once. Never touches the disk: what it
//! holds is in the journal and can be gathered again.
//!
//! One writer adds, any number of snapshots read. A snapshot remembers how many rows there were and looks no further, so
//! its answers stay the same while rows are added.

use std::cmp::Reverse;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::HashMap;
use store_index::{IndexBuilder, Term};
use store_model::{Fragment, Tenant, TraceId, UnixNanos};

use crate::terms::Terms;

/// What a row holds besides its fragment's bytes: the fragment's own fields, its place in the trace table.
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
    pub(crate) fragment: Fragment,
    pub(crate) tenant_number: u32,
    before: Option<u32>,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            tenants: Vec::new(),
            index: IndexBuilder::new(),
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
        self.bytes + self.rows.len() * ROW_BYTES + self.index.bytes()
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.rows.len()).expect("a segment is sealed before 2^32 rows")
    }

    fn push(&mut self, fragment: Fragment, tenant_number: u32, row: u32) {
        self.earliest = self.earliest.min(fragment.trace_start);
        self.latest = self.latest.max(fragment.trace_start);
        self.bytes += fragment.otlp.len();
        let before = self.last_of_trace.insert((tenant_number, fragment.trace_id), row);
        self.rows.push(Row { fragment, tenant_number, before });
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
        let mut add_portion = |portion: &mut Terms| portion.add_to(&mut self.write().index, row);
        let extracted = terms.extract(tenant_number, row, &fragment.otlp, &mut add_portion);
        let mut rows = self.write();
        terms.add_to(&mut rows.index, row);
        rows.push(fragment, tenant_number, row);
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
