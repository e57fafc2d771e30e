//! Open addressing over eight-byte cells, eight to a cache line: the one structure behind the index of live traces and the
//! fingerprints of remembered decisions. A look-up touches one line as a rule, and that line can be asked for ahead.
//!
//! A cell is its own hash: its low bits say where it belongs, so that growing and removing never look anywhere else.

use crate::prefetch::prefetch;

/// "Nothing here".
const EMPTY: u64 = 0;

/// Cells of the smallest table.
const CELLS_MIN: usize = 64;

/// Cells that are not zero, placed by their low 32 bits, with linear probing.
#[derive(Debug)]
pub(crate) struct Cells {
    cells: Vec<u64>,
    used: usize,
}

impl Cells {
    pub(crate) fn new() -> Self {
        Self { cells: vec![EMPTY; CELLS_MIN], used: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.used
    }

    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u64) {
        prefetch(&self.cells[self.home(hash)]);
    }

    /// The first cell in the probing order of `hash` that `is_it` recognises.
    #[inline(always)]
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u64) -> bool) -> Option<u64> {
        let mut place = self.home(hash);
        loop {
            match self.cells[place] {
                EMPTY => return None,
                cell if is_it(cell) => return Some(cell),
                _ => place = self.after(place),
            }
        }
    }

    /// Adds `cell`, which is not zero.
    pub(crate) fn insert(&mut self, cell: u64) {
        debug_assert_ne!(cell, EMPTY, "zero means empty");
        // Beyond five eighths probing gets long, and with it the second cache line likely.
        if (self.used + 1) * 8 > self.cells.len() * 5 {
            self.grow();
        }
        self.used += 1;
        self.place(cell);
    }

    /// Removes a cell equal to `cell`; false when there is none.
    pub(crate) fn remove(&mut self, cell: u64) -> bool {
        let mut place = self.home(cell);
        while self.cells[place] != cell {
            if self.cells[place] == EMPTY {
                return false;
            }
            place = self.after(place);
        }
        self.used -= 1;
        // What follows moves up, unless that would put it before its home: then no look-up ever meets a false end.
        let (mut hole, mut next) = (place, self.after(place));
        while self.cells[next] != EMPTY {
            let home = self.home(self.cells[next]);
            let mask = self.cells.len() - 1;
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(hole) & mask {
                self.cells[hole] = self.cells[next];
                hole = next;
            }
            next = self.after(next);
        }
        self.cells[hole] = EMPTY;
        true
    }

    pub(crate) fn clear(&mut self) {
        self.cells.fill(EMPTY);
        self.used = 0;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.cells.iter().copied().filter(|&cell| cell != EMPTY)
    }

    fn grow(&mut self) {
        let larger = vec![EMPTY; self.cells.len() * 2];
        for cell in std::mem::replace(&mut self.cells, larger) {
            if cell != EMPTY {
                self.place(cell);
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

    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        (hash & 0xFFFF_FFFF) as usize & (self.cells.len() - 1)
    }

    #[inline(always)]
    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.cells.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn cells_behave_like_a_set(steps in prop::collection::vec((any::<bool>(), 1u64..400, 0u64..6), 1..2_000)) {
            let (mut cells, mut model) = (Cells::new(), HashSet::new());
            for (is_insert, high, low) in steps {
                // Few homes, so that runs get long and wrap around.
                let cell = high << 32 | (low * 13 + 60) & 63;
                if is_insert && model.insert(cell) {
                    cells.insert(cell);
                } else if !is_insert {
                    prop_assert_eq!(cells.remove(cell), model.remove(&cell));
                }
                prop_assert_eq!(cells.len(), model.len());
            }
            for cell in &model {
                prop_assert_eq!(cells.find(*cell, |other| other == *cell), Some(*cell));
            }
            prop_assert_eq!(cells.iter().collect::<HashSet<_>>(), model);
            prop_assert_eq!(cells.find(7 << 40 | 61, |other| other == 7 << 40 | 61), None);
        }
    }
}
