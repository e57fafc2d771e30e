//! A slab of small values in fixed chunks: growing never copies, and freed slots are used again.

use crate::prefetch::prefetch;

/// Values per chunk. Big enough to make chunks rare, small enough to start cheap.
const CHUNK: usize = 4_096;

/// How far ahead the memory is asked for a slot that will be used again.
const SLOTS_AHEAD: usize = 8;

/// Numbers of slots are `u32`: four billion live spans are beyond any budget.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
    used: usize,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), used: 0 }
    }

    /// How many values it holds.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.used += 1;
        if let Some(slot) = self.free.pop() {
            // Slots that are written one after the other lie anywhere.
            if let Some(&ahead) = self.free.len().checked_sub(SLOTS_AHEAD).and_then(|at| self.free.get(at)) {
                prefetch(&self[ahead]);
            }
            self[slot] = value;
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let number = (self.chunks.len() - 1) * CHUNK;
        let Some(chunk) = self.chunks.last_mut() else { unreachable!("a chunk was pushed above") };
        let slot = number + chunk.len();
        chunk.push(value);
        u32::try_from(slot).unwrap_or(u32::MAX)
    }

    /// Gives the slot back. Its old value stays readable until the slot is used again, which callers must not rely on.
    pub(crate) fn remove(&mut self, slot: u32) {
        self.used -= 1;
        self.free.push(slot);
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, slot: u32) -> &T {
        let slot = slot as usize;
        &self.chunks[slot / CHUNK][slot % CHUNK]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        let slot = slot as usize;
        &mut self.chunks[slot / CHUNK][slot % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_slots_are_used_again_before_the_slab_grows() {
        let mut slab = Slab::new();
        let slots: Vec<u32> = (0..10_000u64).map(|n| slab.insert(n)).collect();
        assert!(slots.iter().zip(0u64..).all(|(&slot, n)| slab[slot] == n));
        slab.remove(slots[17]);
        assert_eq!((slab.insert(99), slab.len()), (slots[17], 10_000));
    }
}
