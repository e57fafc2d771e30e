//! Numbers that look random and are not: everything a run sends follows from its seed.
//!
//! Never reads entropy; a run can be told again from its ledger.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A bijection that spreads every input bit over all output bits (the finaliser of SplitMix64).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The id of trace number `number` of the run with `seed`, as its two halves.
pub(crate) fn trace_halves(seed: u64, number: u64) -> (u64, u64) {
    let high = mix(seed ^ number.wrapping_mul(GOLDEN).wrapping_add(GOLDEN));
    let low = mix(high ^ mix(seed.wrapping_add(number)));
    (high, low)
}

/// The id of span `index` of the trace whose lower half is `low`.
pub(crate) fn span_id(low: u64, index: u32) -> u64 {
    mix(low.wrapping_add((u64::from(index) + 1).wrapping_mul(GOLDEN)))
}

/// A small generator for everything that is drawn while templates are built.
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound` (which is above 0).
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let scaled = (u128::from(self.next()) * bound as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }

    /// A number in 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    }

    /// One of `choices` (which are not empty).
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len())]
    }

    /// Puts `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_are_distinct_and_their_randomness_is_even() {
        let mut seen = HashSet::new();
        let mut low_hundredth = 0;
        for number in 0..100_000 {
            let (high, low) = trace_halves(7, number);
            assert!(seen.insert((high, low)));
            // The last 56 bits are R; one in a hundred lies above 99 % of the range.
            low_hundredth += u32::from((low & ((1 << 56) - 1)) >= (1 << 56) / 100 * 99);
        }
        assert!((850..1150).contains(&low_hundredth), "{low_hundredth}");
        assert_ne!(trace_halves(7, 1), trace_halves(8, 1));
    }

    #[test]
    fn draws_cover_their_range() {
        let mut random = Random::new(1);
        let drawn: HashSet<usize> = (0..1_000).map(|_| random.below(10)).collect();
        assert_eq!(drawn.len(), 10);
        assert!((0..1_000).all(|_| (0.0..1.0).contains(&random.unit())));
        let mut items: Vec<u32> = (0..100).collect();
        random.shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
