//! The index of an open segment: terms in one arena behind a hash table, rows in insertion order. Never touches bytes on
//! disk; [`crate::write()`] does.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// How many rows a term holds without an allocation, in memory; [`crate::write()`] inlines as many on disk.
pub(crate) const INLINE_ROWS_MAX: usize = 3;

/// A term of one [`IndexBuilder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermNumber(u32);

/// Terms and their rows, while rows are still being added.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    lists: Vec<Vec<u32>>,
    rows_in_lists: usize,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Entry {
    start: usize,
    length: u32,
    postings: Postings,
}

/// Most terms are in few rows.
#[derive(Debug)]
enum Postings {
    Inline { count: u8, rows: [u32; INLINE_ROWS_MAX] },
    List(u32),
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
        let found = self.table.find(hash, |&entry| self.term(entry) == term).copied();
        match found {
            Some(entry) => {
                self.add_row(TermNumber(entry), row);
                TermNumber(entry)
            }
            None => self.add_term(hash, term, row),
        }
    }

    fn add_term(&mut self, hash: u64, term: &[u8], row: u32) -> TermNumber {
        let number = u32::try_from(self.entries.len()).expect("a segment is sealed before 2^32 terms");
        let length = u32::try_from(term.len()).expect("parts of terms are cut");
        let start = self.arena.len();
        self.arena.extend_from_slice(term);
        self.entries.push(Entry {
            start,
            length,
            postings: Postings::Inline { count: 1, rows: [row, 0, 0] },
        });
        let Self { arena, entries, table, hasher, .. } = self;
        table.insert_unique(hash, number, |&entry| hasher.hash_one(term_of(arena, &entries[entry as usize])));
        TermNumber(number)
    }

    /// As [`Self::add`], of a term that this index has numbered.
    ///
    /// # Panics
    /// When it has not.
    pub fn add_row(&mut self, term: TermNumber, row: u32) {
        let entry = term.0 as usize;
        let last = self.rows_of(&self.entries[entry]).last().copied();
        debug_assert!(last <= Some(row), "rows come in ascending order");
        if last == Some(row) {
            return;
        }
        match &mut self.entries[entry].postings {
            Postings::List(list) => {
                self.lists[*list as usize].push(row);
                self.rows_in_lists += 1;
            }
            Postings::Inline { count, rows } if usize::from(*count) < INLINE_ROWS_MAX => {
                rows[usize::from(*count)] = row;
                *count += 1;
            }
            postings @ Postings::Inline { .. } => {
                let list = u32::try_from(self.lists.len()).expect("there are fewer lists than terms");
                let Postings::Inline { rows, .. } = std::mem::replace(postings, Postings::List(list)) else {
                    unreachable!("matched above");
                };
                let mut all = rows.to_vec();
                all.push(row);
                self.rows_in_lists += all.len();
                self.lists.push(all);
            }
        }
    }

    /// The rows that `term` is true of, ascending.
    #[must_use]
    pub fn rows(&self, term: &[u8]) -> &[u32] {
        let hash = self.hasher.hash_one(term);
        let found = self.table.find(hash, |&entry| self.term(entry) == term);
        found.map_or(&[], |&entry| self.rows_of(&self.entries[entry as usize]))
    }

    /// Visits what follows `prefix` in every term that begins with it and is true of a row below `rows_end`, in no
    /// order. Looks at every term: a few milliseconds for a million.
    pub fn each_with_prefix(&self, prefix: &[u8], rows_end: u32, visit: &mut dyn FnMut(&[u8])) {
        for entry in &self.entries {
            let seen = self.rows_of(entry).first().is_some_and(|&row| row < rows_end);
            if let Some(suffix) = term_of(&self.arena, entry).strip_prefix(prefix)
                && seen
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
        let per_list = size_of::<Vec<u32>>();
        // Lists grow by doubling, so they own up to twice the rows they hold; one and a half on average.
        let lists = self.lists.len() * per_list + self.rows_in_lists * size_of::<u32>() * 3 / 2;
        self.arena.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.table.allocation_size()
            + lists
    }

    /// Every term with its rows, in byte order of the terms.
    pub(crate) fn sorted(&self) -> impl Iterator<Item = (&[u8], &[u32])> {
        let mut order: Vec<&Entry> = self.entries.iter().collect();
        order.sort_unstable_by_key(|entry| term_of(&self.arena, entry));
        order.into_iter().map(|entry| (term_of(&self.arena, entry), self.rows_of(entry)))
    }

    fn term(&self, entry: u32) -> &[u8] {
        term_of(&self.arena, &self.entries[entry as usize])
    }

    fn rows_of<'a>(&'a self, entry: &'a Entry) -> &'a [u32] {
        match &entry.postings {
            Postings::Inline { count, rows } => &rows[..usize::from(*count)],
            Postings::List(list) => &self.lists[*list as usize],
        }
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
            prop_assert!(builder.rows(b"no such term").is_empty());
            let sorted: Vec<_> = builder.sorted().map(|(term, rows)| (term.to_vec(), rows.to_vec())).collect();
            let expected: Vec<_> =
                model.into_iter().map(|(term, rows)| (term, rows.into_iter().collect::<Vec<_>>())).collect();
            for (term, rows) in &expected {
                prop_assert_eq!(builder.rows(term), &**rows);
            }
            prop_assert_eq!(sorted, expected);
        }
    }
}
