//! The index of an open segment: terms in one arena behind a hash table, and for each row its terms, row after row. Never
//! touches bytes on disk; [`crate::write()`] does.
//!
//! Rows are turned into lists a term when the index is written, all at once: a list grown row by row costs several cache
//! misses for every term of every row. A lookup reads the rows through instead; an open segment is small.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// How many rows of a term [`crate::write()`] inlines.
pub(crate) const INLINE_ROWS_MAX: usize = 3;

/// A term of one [`IndexBuilder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermNumber(u32);

/// Terms and their rows, while rows are still being added.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// The terms of all rows, in the order they were added.
    terms_of_rows: Vec<TermNumber>,
    /// Rows that have terms, ascending.
    rows: Vec<Row>,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Entry {
    start: usize,
    length: u32,
    first_row: u32,
    /// Kept, so that a growing table need not read all terms again.
    hash: u64,
}

/// Where in `terms_of_rows` a row's terms begin; they end where the next row's begin.
#[derive(Clone, Copy, Debug)]
struct Row {
    number: u32,
    start: usize,
}

/// How far the rows of a term are filled in, and the last of them.
#[derive(Clone)]
struct Filled {
    end: u32,
    last: u32,
}

/// The rows of every term, term after term.
pub(crate) struct Postings<'a> {
    builder: &'a IndexBuilder,
    rows: Vec<u32>,
    ranges: Vec<std::ops::Range<usize>>,
}

impl IndexBuilder {
    /// An index of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that `term` is true of `row`, and returns the term's number for [`Self::add_row`]. Rows come in ascending order;
    /// saying the same twice is fine.
    ///
    /// # Panics
    /// When the arena has more terms than 32 bits can number; a segment is sealed long before.
    pub fn add(&mut self, term: &[u8], row: u32) -> TermNumber {
        let hash = self.hasher.hash_one(term);
        let number = self.find(hash, term).unwrap_or_else(|| self.add_term(hash, term, row));
        self.add_row(number, row);
        number
    }

    fn find(&self, hash: u64, term: &[u8]) -> Option<TermNumber> {
        self.table.find(hash, |&entry| self.term(entry) == term).copied().map(TermNumber)
    }

    fn add_term(&mut self, hash: u64, term: &[u8], first_row: u32) -> TermNumber {
        let number = u32::try_from(self.entries.len()).expect("a segment is sealed before 2^32 terms");
        let length = u32::try_from(term.len()).expect("parts of terms are cut");
        let start = self.arena.len();
        self.arena.extend_from_slice(term);
        self.entries.push(Entry { start, length, first_row, hash });
        let Self { entries, table, .. } = self;
        table.insert_unique(hash, number, |&entry| entries[entry as usize].hash);
        TermNumber(number)
    }

    /// As [`Self::add`], of a term that this index has numbered.
    pub fn add_row(&mut self, term: TermNumber, row: u32) {
        self.add_rows(&[term], row);
    }

    /// As [`Self::add_row`], of several terms.
    pub fn add_rows(&mut self, terms: &[TermNumber], row: u32) {
        let last = self.rows.last().map(|last| last.number);
        if last != Some(row) {
            debug_assert!(last < Some(row), "rows come in ascending order");
            self.rows.push(Row { number: row, start: self.terms_of_rows.len() });
        }
        self.terms_of_rows.extend_from_slice(terms);
    }

    /// The number of `term`, if it was added.
    #[must_use]
    pub fn number(&self, term: &[u8]) -> Option<TermNumber> {
        self.find(self.hasher.hash_one(term), term)
    }

    /// The rows below `rows_end` that all of `terms` are true of, ascending. Looks at the terms of all rows from the first
    /// of the rarest term on: half a millisecond for a million.
    ///
    /// # Panics
    /// When a term is not of this index.
    #[must_use]
    pub fn rows(&self, terms: &[TermNumber], rows_end: u32) -> Vec<u32> {
        let first_rows = terms.iter().map(|term| self.entries[term.0 as usize].first_row);
        let first_row = first_rows.max().unwrap_or_default();
        let from = self.rows.partition_point(|row| row.number < first_row);
        let to = self.rows.partition_point(|row| row.number < rows_end);
        let all = |&at: &usize| {
            let terms_of_row = self.terms_of_row(at);
            terms.iter().all(|term| terms_of_row.contains(term))
        };
        (from..to).filter(all).map(|at| self.rows[at].number).collect()
    }

    /// Visits what follows `prefix` in every term that begins with it and is true of a row below `rows_end`, in no
    /// order. Looks at every term: a few milliseconds for a million.
    pub fn each_with_prefix(&self, prefix: &[u8], rows_end: u32, visit: &mut dyn FnMut(&[u8])) {
        for entry in &self.entries {
            if let Some(suffix) = term_of(&self.arena, entry).strip_prefix(prefix)
                && entry.first_row < rows_end
            {
                visit(suffix);
            }
        }
    }

    /// Visits what follows `prefix` in every term that begins with it, in byte order, until `visit` says false.
    pub fn terms_with_prefix(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8]) -> bool) {
        let with_prefix = |entry| term_of(&self.arena, entry).strip_prefix(prefix);
        let mut suffixes: Vec<&[u8]> = self.entries.iter().filter_map(with_prefix).collect();
        suffixes.sort_unstable();
        let _stopped = suffixes.into_iter().all(visit);
    }

    /// How many terms there are.
    #[must_use]
    pub fn term_count(&self) -> usize {
        self.entries.len()
    }

    /// About how much memory the index holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let Self { arena, entries, terms_of_rows, rows, table, hasher: _ } = self;
        arena.capacity()
            + entries.capacity() * size_of::<Entry>()
            + terms_of_rows.capacity() * size_of::<TermNumber>()
            + rows.capacity() * size_of::<Row>()
            + table.allocation_size()
    }

    /// The rows of every term, row `r` becoming `renumbered[r]`.
    pub(crate) fn postings(&self, renumbered: &[u32]) -> Postings<'_> {
        let mut filled: Vec<Filled> = vec![Filled { end: 0, last: u32::MAX }; self.entries.len()];
        self.terms_of_rows.iter().for_each(|term| filled[term.0 as usize].end += 1);
        u32::try_from(self.terms_of_rows.len()).expect("a segment is sealed before rows have 2^32 terms");
        let mut total = 0;
        let mut starts = Vec::with_capacity(filled.len());
        for filled in &mut filled {
            starts.push(total);
            total += std::mem::replace(&mut filled.end, total);
        }
        let mut rows = vec![0; total as usize];
        // Taken in their new order, rows come to each term in order.
        let mut order: Vec<(u32, usize)> =
            self.rows.iter().enumerate().map(|(at, row)| (renumbered[row.number as usize], at)).collect();
        order.sort_unstable();
        for (row, at) in order {
            for term in self.terms_of_row(at) {
                let filled = &mut filled[term.0 as usize];
                // Said twice of one row. What comes next overwrites it, so that there is nothing to foresee.
                let is_new = filled.last != row;
                filled.last = row;
                rows[filled.end as usize] = row;
                filled.end += u32::from(is_new);
            }
        }
        let range = |(start, filled): (u32, Filled)| start as usize..filled.end as usize;
        let ranges = starts.into_iter().zip(filled).map(range).collect();
        Postings { builder: self, rows, ranges }
    }

    fn terms_of_row(&self, at: usize) -> &[TermNumber] {
        let end = self.rows.get(at + 1).map_or(self.terms_of_rows.len(), |next| next.start);
        &self.terms_of_rows[self.rows[at].start..end]
    }

    fn term(&self, entry: u32) -> &[u8] {
        term_of(&self.arena, &self.entries[entry as usize])
    }
}

impl Postings<'_> {
    /// Every term with its rows, in byte order of the terms; rows ascend.
    pub(crate) fn sorted(&self) -> impl Iterator<Item = (&[u8], &[u32])> {
        let Self { builder, rows, ranges } = self;
        let mut order: Vec<(&[u8], u32)> =
            builder.entries.iter().map(|entry| term_of(&builder.arena, entry)).zip(0..).collect();
        order.sort_unstable();
        order.into_iter().map(|(term, entry)| (term, &rows[ranges[entry as usize].clone()]))
    }
}

fn term_of<'a>(arena: &'a [u8], entry: &Entry) -> &'a [u8] {
    &arena[entry.start..entry.start + entry.length as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn a_visit_ends_when_the_visitor_has_enough() {
        let mut builder = IndexBuilder::new();
        for term in ["b2", "b1", "a", "b3", "c"] {
            builder.add(term.as_bytes(), 0);
        }
        let mut seen = Vec::new();
        builder.terms_with_prefix(b"b", &mut |suffix| {
            seen.push(suffix.to_vec());
            seen.len() < 2
        });
        assert_eq!(seen, [b"1", b"2"]);
    }

    #[test]
    fn terms_of_later_rows_can_be_left_out() {
        let mut builder = IndexBuilder::new();
        builder.add(b"x1", 0);
        builder.add(b"x2", 1);
        let mut seen = Vec::new();
        builder.each_with_prefix(b"x", 1, &mut |suffix| seen.push(suffix.to_vec()));
        assert_eq!(seen, [b"1"]);
    }

    proptest! {
        #[test]
        fn rows_are_those_that_were_added(
            rows in proptest::collection::vec(proptest::collection::vec("[ab]{0,3}", 0..6), 0..60)
        ) {
            let mut builder = IndexBuilder::new();
            let mut model: BTreeMap<Vec<u8>, BTreeSet<u32>> = BTreeMap::new();
            for (row, terms) in (0u32..).zip(&rows) {
                for term in terms {
                    builder.add(term.as_bytes(), row);
                    model.entry(term.clone().into_bytes()).or_default().insert(row);
                }
            }
            prop_assert_eq!(builder.term_count(), model.len());
            prop_assert_eq!(builder.number(b"no such term"), None);
            let renumbered: Vec<u32> = (0..60).map(|row| 59 - row).collect();
            let postings = builder.postings(&renumbered);
            let sorted: Vec<_> = postings.sorted().map(|(term, rows)| (term.to_vec(), rows.to_vec())).collect();
            let expected: Vec<_> =
                model.into_iter().map(|(term, rows)| (term, rows.into_iter().collect::<Vec<_>>())).collect();
            for (term, rows) in &expected {
                let terms = [builder.number(term).unwrap()];
                prop_assert_eq!(&builder.rows(&terms, u32::MAX), rows);
                let below: Vec<u32> = rows.iter().copied().filter(|&row| row < 30).collect();
                prop_assert_eq!(builder.rows(&terms, 30), below);
                for (other, others) in &expected {
                    let both = rows.iter().copied().filter(|row| others.contains(row)).collect::<Vec<_>>();
                    let terms = [terms[0], builder.number(other).unwrap()];
                    prop_assert_eq!(builder.rows(&terms, u32::MAX), both);
                }
            }
            let renumber = |rows: Vec<u32>| rows.into_iter().rev().map(|row| 59 - row).collect::<Vec<_>>();
            let expected: Vec<_> = expected.into_iter().map(|(term, rows)| (term, renumber(rows))).collect();
            prop_assert_eq!(sorted, expected);
        }
    }
}
