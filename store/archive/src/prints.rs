//! Pieces of OTLP, known by fingerprint: a table of one cache line a piece, because the wait for memory is most of what
//! looking one up costs. Holds no bytes.

use std::hash::BuildHasher as _;

use hashbrown::DefaultHashBuilder;

/// What a piece's bytes come down to. Two pieces with one fingerprint would be taken for one, so it has 128 bits, under
/// keys that no sender knows: with a million pieces a chance of 1 in 10^26.
pub(crate) type Print = u128;

/// Pieces so long are resources, as a rule.
const LONG_CHUNKS: usize = 8;

/// The keys of fingerprints, new for every segment.
#[derive(Debug)]
pub(crate) struct Keys([u64; 4]);

impl Default for Keys {
    fn default() -> Self {
        let hasher = DefaultHashBuilder::default();
        Self([1u64, 2, 3, 4].map(|number| hasher.hash_one(number)))
    }
}

impl Keys {
    /// The fingerprint of `bytes` that belong to `owner`.
    #[inline]
    pub(crate) fn print(&self, owner: u32, bytes: &[u8]) -> Print {
        let Self([a_key, b_key, c_key, d_key]) = *self;
        let origin = u64::from(owner) << 32 ^ bytes.len() as u64;
        // Lanes that see the same words in different places, as wyhash mixes them.
        let mix = |[a, b]: [u64; 2], [x, y]: [u64; 2]| [fold(a ^ a_key, b ^ x), fold(b ^ b_key, a ^ y)];
        let mut lanes = [origin ^ c_key, origin ^ d_key];
        let (mut chunks, rest) = bytes.as_chunks::<16>();
        if chunks.len() >= LONG_CHUNKS {
            // Two pairs of lanes, since each waits for itself.
            let mut others = [origin ^ b_key, origin ^ a_key];
            let (pairs, last) = chunks.as_chunks::<2>();
            for [first, second] in pairs {
                lanes = mix(words(first), lanes);
                others = mix(words(second), others);
            }
            lanes = mix(others, lanes);
            chunks = last;
        }
        for chunk in chunks {
            lanes = mix(words(chunk), lanes);
        }
        // What is left, and some of it or of what came before once more: the length tells how much.
        let last = match (bytes.last_chunk::<16>(), bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
            (Some(last), ..) if !rest.is_empty() => words(last),
            (Some(_), ..) => [0, 0],
            (None, Some(&first), Some(&last)) => [u64::from_le_bytes(first), u64::from_le_bytes(last)],
            _ => [rest.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)), 0],
        };
        let [high, low] = mix(last, lanes);
        u128::from(fold(high ^ b_key, c_key)) << 64 | u128::from(fold(low ^ a_key, d_key))
    }
}

#[inline(always)]
fn words(chunk: &[u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(*chunk);
    [low(both), low(both >> 64)]
}

/// The halves of the product, folded together.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    low(product) ^ low(product >> 64)
}

#[inline(always)]
fn low(word: u128) -> u64 {
    u64::try_from(word & u128::from(u64::MAX)).unwrap_or_default()
}

/// Pieces by fingerprint, each with what its owner notes about it.
#[derive(Debug)]
pub(crate) struct Prints<T> {
    /// A power of two of them, or none. A piece stands at its place or behind it, with no free slot between.
    slots: Vec<Slot<T>>,
    used: usize,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    /// 0 when the slot is free.
    print: Print,
    noted: T,
}

impl<T> Default for Prints<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), used: 0 }
    }
}

impl<T: Clone + Default> Prints<T> {
    /// The slot of a piece, or the free one where it would be.
    #[inline(always)]
    fn slot(&self, print: Print) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = usize::try_from(low(print)).unwrap_or_default() & mask;
        // A quarter of the slots is free, so this ends soon.
        while self.slots[at].print != print && self.slots[at].print != 0 {
            at = (at + 1) & mask;
        }
        at
    }

    /// Where a piece stands, until the next one is added.
    #[inline(always)]
    pub(crate) fn find(&self, print: Print) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let at = self.slot(print);
        (self.slots[at].print == print).then_some(at)
    }

    /// What is noted where a piece stands.
    #[inline(always)]
    pub(crate) fn noted(&mut self, at: usize) -> &mut T {
        &mut self.slots[at].noted
    }

    /// Adds a piece that is not there.
    pub(crate) fn add(&mut self, print: Print, noted: T) {
        if self.used * 4 >= self.slots.len() * 3 {
            self.grow();
        }
        let at = self.slot(print);
        self.slots[at] = Slot { print, noted };
        self.used += 1;
    }

    fn grow(&mut self) {
        let slots = (self.slots.len() * 2).max(64);
        let old = std::mem::replace(&mut self.slots, vec![Slot { print: 0, noted: T::default() }; slots]);
        for slot in old {
            if slot.print != 0 {
                let at = self.slot(slot.print);
                self.slots[at] = slot;
            }
        }
    }

    /// About how much memory this holds.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot<T>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_fingerprint_depends_on_every_bit_and_on_the_length() {
        let keys = Keys::default();
        let mut seen = HashMap::new();
        let mut note = |owner: u32, bytes: Vec<u8>| {
            let print = keys.print(owner, &bytes);
            assert_eq!(seen.insert(print, (owner, bytes.clone())), None, "{owner} {bytes:?}");
        };
        for length in (0..70usize).chain(120..180) {
            note(0, vec![0; length]);
            note(1, vec![0; length]);
            for bit in 0..length * 8 {
                let mut bytes = vec![0; length];
                bytes[bit / 8] |= 1 << (bit % 8);
                note(0, bytes);
            }
        }
    }

    #[test]
    fn pieces_are_found_again_however_many_there_are() {
        let keys = Keys::default();
        let mut prints = Prints::default();
        let print = |number: u32| keys.print(number, b"");
        for number in 0..5_000u32 {
            assert_eq!(prints.find(print(number)), None);
            prints.add(print(number), number);
        }
        for number in 0..5_000 {
            let at = prints.find(print(number)).unwrap();
            assert_eq!(*prints.noted(at), number);
        }
        assert_eq!(prints.find(print(5_000)), None);
    }
}
