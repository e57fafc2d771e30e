//! Open addressing over eight-byte cells, eight to a cache line: the one structure behind the index of live traces and the
//! memory of decisions. A look-up touches one line as a rule, and that line can be asked for ahead.
//!
//! A cell is its own hash: its low bits say where it belongs, so that growing and removing never look anywhere else.
//!
//! Growing is spread over many inserts, first the clearing of new memory, then the moving of cells: a table of millions that
//! doubled at once would stop its shard for a tenth of a second and more.

use crate::prefetch::prefetch;

/// "Nothing here".
const EMPTY: u64 = 0;

/// Cells of the smallest table.
const CELLS_MIN: usize = 64;

/// Places that an insert clears in the larger table, and later empties in the smaller one. Clearing begins at half full and so
/// ends at five eighths.
const PLACES_A_STEP: usize = 16;

/// Cells that are not zero, placed by their low 32 bits.
#[derive(Debug)]
pub(crate) struct Cells {
    places: Places,
    /// The larger table, as far as it is cleared.
    next: Vec<u64>,
    /// What the cells still move out of.
    growth: Option<Growth>,
    used: usize,
}

impl Cells {
    pub(crate) fn new() -> Self {
        Self { places: Places { cells: vec![EMPTY; CELLS_MIN] }, next: Vec::new(), growth: None, used: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.used
    }

    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u64) {
        self.places.prefetch(hash);
        if let Some(growth) = &self.growth {
            growth.from.prefetch(hash);
        }
    }

    /// The first cell in the probing order of `hash` that `is_it` recognises.
    #[inline(always)]
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u64) -> bool) -> Option<u64> {
        let found = self.places.find(hash, &mut is_it);
        match &self.growth {
            Some(growth) if found.is_none() => growth.from.find(hash, is_it),
            _ => found,
        }
    }

    /// Adds `cell`, which is not zero.
    pub(crate) fn insert(&mut self, cell: u64) {
        debug_assert_ne!(cell, EMPTY, "zero means empty");
        if let Some(growth) = &mut self.growth {
            if !growth.step(&mut self.places) {
                self.growth = None;
            }
        } else if self.used * 2 >= self.places.cells.len() {
            self.prepare_growth();
        }
        self.used += 1;
        self.places.place(cell);
    }

    /// Removes a cell equal to `cell`; false when there is none.
    pub(crate) fn remove(&mut self, cell: u64) -> bool {
        let was =
            self.places.remove(cell) || self.growth.as_mut().is_some_and(|growth| growth.from.remove(cell));
        self.used -= usize::from(was);
        was
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let left = self.growth.iter().flat_map(|growth| &growth.from.cells);
        self.places.cells.iter().chain(left).copied().filter(|&cell| cell != EMPTY)
    }

    /// Clears a little more of the larger table; the one in use is left once that is done, before probing gets long and with
    /// it the second cache line likely.
    fn prepare_growth(&mut self) {
        let larger = self.places.cells.len() * 2;
        if self.next.is_empty() {
            self.next.reserve_exact(larger);
        }
        self.next.resize(larger.min(self.next.len() + PLACES_A_STEP), EMPTY);
        if self.next.len() == larger {
            let places = Places { cells: std::mem::take(&mut self.next) };
            self.growth = Some(Growth::new(std::mem::replace(&mut self.places, places)));
        }
    }
}

/// The smaller table of two. It is emptied by whole runs of cells, so that what is left of it probes as before.
#[derive(Debug)]
struct Growth {
    from: Places,
    /// Where emptying began: a place that was empty, between two runs of cells.
    start: usize,
    /// Places emptied since.
    emptied: usize,
}

impl Growth {
    fn new(from: Places) -> Self {
        let start = from.cells.iter().position(|&cell| cell == EMPTY).unwrap_or(0);
        Self { from, start, emptied: 0 }
    }

    /// Moves the cells of a few places, and of the rest of their last run; false when none are left.
    fn step(&mut self, to: &mut Places) -> bool {
        let enough = self.emptied + PLACES_A_STEP;
        loop {
            let place = (self.start + self.emptied) & self.from.mask();
            let cell = std::mem::replace(&mut self.from.cells[place], EMPTY);
            self.emptied += 1;
            if cell != EMPTY {
                to.place(cell);
            } else if self.emptied >= enough {
                return self.emptied < self.from.cells.len();
            }
        }
    }
}

/// A table of one size, a power of two, with linear probing.
#[derive(Debug)]
struct Places {
    cells: Vec<u64>,
}

impl Places {
    #[inline(always)]
    fn prefetch(&self, hash: u64) {
        prefetch(&self.cells[self.home(hash)]);
    }

    #[inline(always)]
    fn find(&self, hash: u64, mut is_it: impl FnMut(u64) -> bool) -> Option<u64> {
        let mut place = self.home(hash);
        loop {
            match self.cells[place] {
                EMPTY => return None,
                cell if is_it(cell) => return Some(cell),
                _ => place = self.after(place),
            }
        }
    }

    fn place(&mut self, cell: u64) {
        let mut place = self.home(cell);
        while self.cells[place] != EMPTY {
            place = self.after(place);
        }
        self.cells[place] = cell;
    }

    fn remove(&mut self, cell: u64) -> bool {
        let mut place = self.home(cell);
        while self.cells[place] != cell {
            if self.cells[place] == EMPTY {
                return false;
            }
            place = self.after(place);
        }
        // What follows moves up, unless that would put it before its home: then no look-up ever meets a false end.
        let (mut hole, mut next) = (place, self.after(place));
        while self.cells[next] != EMPTY {
            let home = self.home(self.cells[next]);
            if next.wrapping_sub(home) & self.mask() >= next.wrapping_sub(hole) & self.mask() {
                self.cells[hole] = self.cells[next];
                hole = next;
            }
            next = self.after(next);
        }
        self.cells[hole] = EMPTY;
        true
    }

    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        low_half(hash) as usize & self.mask()
    }

    #[inline(always)]
    fn after(&self, place: usize) -> usize {
        (place + 1) & self.mask()
    }

    #[inline(always)]
    fn mask(&self) -> usize {
        self.cells.len() - 1
    }
}

/// A cell that leads to the slot in which the rest is found.
pub(crate) fn slot_cell(hash: u64, slot: u32) -> u64 {
    (u64::from(slot) + 1) << 32 | u64::from(low_half(hash))
}

/// The slot of a [`slot_cell`].
pub(crate) fn slot_of(cell: u64) -> u32 {
    u32::try_from((cell >> 32) - 1).unwrap_or(u32::MAX)
}

/// What a [`slot_cell`] has of its hash, and where any cell belongs.
pub(crate) fn low_half(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// What a step does, and with which cell.
    fn steps(highs: u64, homes: impl Strategy<Value = u64>) -> impl Strategy<Value = Vec<(bool, u64)>> {
        let cell = (1..highs, homes).prop_map(|(high, home)| high << 32 | home);
        // More come than go, so that it grows while cells are removed.
        prop::collection::vec((prop::bool::weighted(0.7), cell), 1..2_000)
    }

    fn behave_like_a_set(steps: &[(bool, u64)]) -> Result<(), TestCaseError> {
        let (mut cells, mut model) = (Cells::new(), HashSet::new());
        for &(is_insert, cell) in steps {
            if is_insert && model.insert(cell) {
                cells.insert(cell);
            } else if !is_insert {
                prop_assert_eq!(cells.remove(cell), model.remove(&cell));
            }
            prop_assert_eq!(cells.len(), model.len());
            if cells.growth.is_some() {
                prop_assert!(model.iter().all(|&cell| cells.find(cell, |other| other == cell) == Some(cell)));
            }
        }
        for &cell in &model {
            prop_assert_eq!(cells.find(cell, |other| other == cell), Some(cell));
        }
        prop_assert_eq!(cells.iter().count(), model.len());
        prop_assert_eq!(cells.iter().collect::<HashSet<_>>(), model);
        prop_assert_eq!(cells.find(7 << 40 | 61, |other| other == 7 << 40 | 61), None);
        Ok(())
    }

    proptest! {
        /// Few homes, so that runs get long and wrap around.
        #[test]
        fn crowded_cells_behave_like_a_set(steps in steps(400, (0u64..6).prop_map(|n| (n * 13 + 60) & 63))) {
            behave_like_a_set(&steps)?;
        }

        /// Many homes, so that runs are in all places of all sizes of the table.
        #[test]
        fn scattered_cells_behave_like_a_set(steps in steps(40, 0u64..1_500)) {
            behave_like_a_set(&steps)?;
        }
    }

    #[test]
    fn no_insert_moves_many_cells() {
        let mut cells = Cells::new();
        // An odd number is a bijection of the low halves: homes are as even as those of hashes.
        let nth = |n: u64| n << 32 | (n * 0x9E37_79B1) & 0xFFFF_FFFF;
        let mut grown = 0;
        for n in 1..=100_000 {
            let left = |cells: &Cells| {
                cells
                    .growth
                    .as_ref()
                    .map_or(0, |growth| growth.from.cells.len() - growth.emptied.min(growth.from.cells.len()))
            };
            let before = left(&cells);
            cells.insert(nth(n));
            let after = left(&cells);
            grown += usize::from(after > before);
            assert!(after > before || before - after <= 10 * PLACES_A_STEP, "{before} places became {after}");
            assert!(cells.len() * 8 <= cells.places.cells.len() * 5);
        }
        assert_eq!(grown, 12, "from 64 cells to 262,144");
        assert!((1..=100_000).all(|n| cells.find(nth(n), |other| other == nth(n)).is_some()));
    }
}
