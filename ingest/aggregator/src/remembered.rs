//! Decisions that are remembered, so that late spans follow them: kept ones exactly, dropped ones as 64-bit fingerprints.
//!
//! Both live in two generations; a full young generation becomes the old one and the old one is forgotten. What is
//! looked up is moved up, so that traces that still receive spans stay.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashMap, HashSet};
use store_model::{Reason, Threshold, TraceId, UnixNanos};

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
    kept: [HashMap<ShardKey, KeptMemory>; 2],
    /// A false hit would need two of a few million fingerprints to agree in 64 bits: about 1 in 10^12.
    dropped: [HashSet<u64>; 2],
    kept_max: usize,
    dropped_max: usize,
    hasher: DefaultHashBuilder,
}

impl Remembered {
    pub(crate) fn new(kept_max: usize, dropped_max: usize) -> Self {
        Self {
            kept: [HashMap::new(), HashMap::new()],
            dropped: [HashSet::new(), HashSet::new()],
            kept_max: kept_max.max(1),
            dropped_max: dropped_max.max(1),
            hasher: DefaultHashBuilder::default(),
        }
    }

    pub(crate) fn keep(&mut self, key: ShardKey, memory: KeptMemory) {
        if self.kept[0].len() >= self.kept_max {
            self.kept.swap(0, 1);
            self.kept[0].clear();
        }
        self.kept[0].insert(key, memory);
    }

    pub(crate) fn drop(&mut self, key: ShardKey) {
        if self.dropped[0].len() >= self.dropped_max {
            self.dropped.swap(0, 1);
            self.dropped[0].clear();
        }
        let fingerprint = self.fingerprint(key);
        self.dropped[0].insert(fingerprint);
    }

    pub(crate) fn kept(&mut self, key: ShardKey) -> Option<KeptMemory> {
        if let Some(&memory) = self.kept[0].get(&key) {
            return Some(memory);
        }
        let memory = self.kept[1].remove(&key)?;
        self.keep(key, memory);
        Some(memory)
    }

    pub(crate) fn was_dropped(&mut self, key: ShardKey) -> bool {
        let fingerprint = self.fingerprint(key);
        if self.dropped[0].contains(&fingerprint) {
            return true;
        }
        let was = self.dropped[1].remove(&fingerprint);
        if was {
            self.drop(key);
        }
        was
    }

    fn fingerprint(&self, key: ShardKey) -> u64 {
        let mut state = self.hasher.build_hasher();
        key.hash(&mut state);
        std::hash::Hasher::finish(&state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> ShardKey {
        (0, TraceId([n; 16]))
    }

    #[test]
    fn the_oldest_generation_is_forgotten_and_used_entries_stay() {
        let mut remembered = Remembered::new(2, 2);
        (1..=4).for_each(|n| remembered.drop(key(n)));
        assert!(remembered.was_dropped(key(1)), "moved up");
        remembered.drop(key(5));
        assert!(remembered.was_dropped(key(1)));
        assert!(!remembered.was_dropped(key(2)));
        let memory =
            |n| KeptMemory { reason: Reason::Head, threshold: Threshold::ALWAYS, trace_start: UnixNanos(n) };
        (1..=5).for_each(|n| remembered.keep(key(n), memory(u64::from(n))));
        assert_eq!(remembered.kept(key(4)), Some(memory(4)));
        assert_eq!(remembered.kept(key(1)), None);
        assert_eq!(remembered.kept((1, TraceId([4; 16]))), None, "another tenant's");
    }
}
