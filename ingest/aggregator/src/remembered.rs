//! Decisions that are remembered, so that late spans follow them: kept ones exactly, dropped ones as fingerprints.
//!
//! Both live in two generations; a full young generation becomes the old one and the old one is forgotten. What is
//! looked up is moved up, so that traces that still receive spans stay.
//!
//! Nearly every question comes from a trace that nobody has seen before. It is answered from a cache line that was asked for
//! ahead; what is known of a kept trace is only opened when that line names it.
//!
//! A generation begins small. To clear the tables of the one before would stop the shard for as long as that takes.

use store_model::{Reason, Threshold, TraceId, UnixNanos};

use crate::cells::{Cells, low_half, slot_cell, slot_of};
use crate::slab::Slab;

/// What late spans of a kept trace need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptMemory {
    /// Why it was kept.
    pub reason: Reason,
    /// T of the stage that kept it.
    pub threshold: Threshold,
    /// Its sort key in answers.
    pub trace_start: UnixNanos,
}

/// A trace in this shard's words: tenants are numbered.
pub(crate) type ShardKey = (u32, TraceId);

#[derive(Debug)]
pub(crate) struct Remembered {
    kept: [Kept; 2],
    /// A false hit would need two of a few million fingerprints to agree in 64 bits: about 1 in 10^12.
    dropped: [Cells; 2],
    kept_max: usize,
    dropped_max: usize,
}

#[derive(Debug)]
struct Kept {
    index: Cells,
    memories: Slab<(ShardKey, KeptMemory)>,
}

impl Kept {
    fn new() -> Self {
        Self { index: Cells::new(), memories: Slab::new() }
    }

    fn len(&self) -> usize {
        self.memories.len()
    }

    fn insert(&mut self, key: ShardKey, hash: u64, memory: KeptMemory) {
        if let Some(slot) = self.find(key, hash) {
            self.memories[slot].1 = memory;
            return;
        }
        let slot = self.memories.insert((key, memory));
        self.index.insert(slot_cell(hash, slot));
    }

    fn get(&self, key: ShardKey, hash: u64) -> Option<KeptMemory> {
        self.find(key, hash).map(|slot| self.memories[slot].1)
    }

    fn remove(&mut self, key: ShardKey, hash: u64) -> Option<KeptMemory> {
        let slot = self.find(key, hash)?;
        let (_, memory) = self.memories[slot];
        self.index.remove(slot_cell(hash, slot));
        self.memories.remove(slot);
        Some(memory)
    }

    fn find(&self, key: ShardKey, hash: u64) -> Option<u32> {
        let is_it = |cell| low_half(cell) == low_half(hash) && self.memories[slot_of(cell)].0 == key;
        self.index.find(hash, is_it).map(slot_of)
    }
}

/// A key's hash as a cell, which must not be zero.
fn print(hash: u64) -> u64 {
    hash.max(1)
}

impl Remembered {
    pub(crate) fn new(kept_max: usize, dropped_max: usize) -> Self {
        Self {
            kept: [Kept::new(), Kept::new()],
            dropped: [Cells::new(), Cells::new()],
            kept_max: kept_max.max(1),
            dropped_max: dropped_max.max(1),
        }
    }

    /// Asks for the lines in which the answers for a key would be found.
    pub(crate) fn prefetch(&self, hash: u64) {
        self.kept.iter().for_each(|kept| kept.index.prefetch(hash));
        self.dropped.iter().for_each(|dropped| dropped.prefetch(hash));
    }

    /// Asks for the line in which a decision against would be noted.
    pub(crate) fn prefetch_drop(&self, hash: u64) {
        self.dropped[0].prefetch(hash);
    }

    pub(crate) fn keep(&mut self, key: ShardKey, hash: u64, memory: KeptMemory) {
        if self.kept[0].len() >= self.kept_max {
            self.kept.swap(0, 1);
            self.kept[0] = Kept::new();
        }
        self.kept[0].insert(key, hash, memory);
    }

    pub(crate) fn drop(&mut self, hash: u64) {
        if self.dropped[0].len() >= self.dropped_max {
            self.dropped.swap(0, 1);
            self.dropped[0] = Cells::new();
        }
        if !contains(&self.dropped[0], hash) {
            self.dropped[0].insert(print(hash));
        }
    }

    pub(crate) fn kept(&mut self, key: ShardKey, hash: u64) -> Option<KeptMemory> {
        if let Some(memory) = self.kept[0].get(key, hash) {
            return Some(memory);
        }
        let memory = self.kept[1].remove(key, hash)?;
        self.keep(key, hash, memory);
        Some(memory)
    }

    pub(crate) fn was_dropped(&mut self, hash: u64) -> bool {
        if contains(&self.dropped[0], hash) {
            return true;
        }
        let was = self.dropped[1].remove(print(hash));
        if was {
            self.drop(hash);
        }
        was
    }
}

fn contains(cells: &Cells, hash: u64) -> bool {
    cells.find(hash, |other| other == print(hash)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> ShardKey {
        (0, TraceId([n; 16]))
    }

    fn hash(key: ShardKey) -> u64 {
        // Tenant and id in one number: good enough to tell the keys of these tests apart.
        u64::from(key.0) << 32 | u64::from(key.1.0[0])
    }

    #[test]
    fn the_oldest_generation_is_forgotten_and_used_entries_stay() {
        let mut remembered = Remembered::new(2, 2);
        (1..=4).for_each(|n| remembered.drop(hash(key(n))));
        assert!(remembered.was_dropped(hash(key(1))), "moved up");
        remembered.drop(hash(key(5)));
        assert!(remembered.was_dropped(hash(key(1))));
        assert!(!remembered.was_dropped(hash(key(2))));
        let memory =
            |n| KeptMemory { reason: Reason::Head, threshold: Threshold::ALWAYS, trace_start: UnixNanos(n) };
        (1..=5).for_each(|n| remembered.keep(key(n), hash(key(n)), memory(u64::from(n))));
        assert_eq!(remembered.kept(key(4), hash(key(4))), Some(memory(4)));
        assert_eq!(remembered.kept(key(1), hash(key(1))), None);
        let anothers = (1, TraceId([4; 16]));
        assert_eq!(remembered.kept(anothers, hash(anothers)), None, "another tenant's");
        assert_eq!(remembered.kept(anothers, hash(key(4))), None, "whose fingerprint is the same");
    }
}
