//! Where the undecided spans of one journal record lie in its body: eight bytes a span, written in a row when the record is
//! taken and freed together, so that a live trace need not hold them one by one.
//!
//! One undecided span must not hold on to the ranges of all its neighbours: whenever three quarters of what a record holds are
//! settled, they are let go.

use store_model::BodyRange;

/// Spans of one word of bits.
const WORD_SPANS: usize = u64::BITS as usize;

/// Ranges are let go when fewer than one in this many is still undecided.
const HELD_PER_UNDECIDED_MAX: usize = 4;

/// Room for this many more ranges is kept: to give it back is an allocation and a copy.
const SPARE_MAX: usize = 32;

/// 64 spans in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    /// Whose range is held.
    held: u64,
    undecided: u64,
}

/// Spans are numbered as they were given to [`Ranges::new`], however many of them are held.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    ranges: Vec<BodyRange>,
    /// None for a record of few spans, whose ranges are all held until the last is settled: they weigh no more than the bits
    /// and the look at them.
    words: Box<[Word]>,
    undecided: u32,
}

impl Ranges {
    pub(crate) fn new(mut ranges: Vec<BodyRange>) -> Self {
        if ranges.capacity() - ranges.len() > SPARE_MAX {
            ranges.shrink_to_fit();
        }
        let undecided = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        let words = if ranges.len() <= WORD_SPANS { 0 } else { ranges.len().div_ceil(WORD_SPANS) };
        let mut words = vec![Word { held: u64::MAX, undecided: u64::MAX }; words];
        if let Some(last) = words.last_mut() {
            let beyond = ranges.len().next_multiple_of(WORD_SPANS) - ranges.len();
            *last = Word { held: u64::MAX >> beyond, undecided: u64::MAX >> beyond };
        }
        Self { ranges, words: words.into_boxed_slice(), undecided }
    }

    /// How many spans are undecided.
    pub(crate) fn undecided(&self) -> u32 {
        self.undecided
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.ranges.capacity() * size_of::<BodyRange>() + size_of_val(&*self.words)
    }

    /// The ranges of `count` undecided spans from `first` on.
    pub(crate) fn of(&self, first: u32, count: u32) -> &[BodyRange] {
        let first = first as usize;
        let place = match self.words.get(first / WORD_SPANS) {
            None => first,
            Some(word) => {
                let before = self.words[..first / WORD_SPANS].iter().map(|word| word.held);
                let held: u32 = before.chain([word.held & !from(first)]).map(u64::count_ones).sum();
                held as usize
            }
        };
        &self.ranges[place..place + count as usize]
    }

    /// `count` undecided spans from `first` on are settled.
    pub(crate) fn settle(&mut self, first: u32, count: u32) {
        debug_assert!(count <= self.undecided, "a span is settled once");
        self.undecided = self.undecided.saturating_sub(count);
        if self.words.is_empty() {
            return;
        }
        let (first, end) = (first as usize, (first + count) as usize);
        for index in first / WORD_SPANS..end.div_ceil(WORD_SPANS) {
            let start = index * WORD_SPANS;
            let head = if first > start { from(first) } else { u64::MAX };
            let tail = if end < start + WORD_SPANS { from(end) } else { 0 };
            self.words[index].undecided &= !(head & !tail);
        }
        if (self.undecided as usize) * HELD_PER_UNDECIDED_MAX < self.ranges.len() {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        let mut left = Vec::with_capacity(self.undecided as usize);
        let mut ranges = self.ranges.iter();
        for word in &mut self.words {
            let mut held = word.held;
            while held != 0 {
                let bit = held & held.wrapping_neg();
                held ^= bit;
                let range = ranges.next();
                left.extend(range.filter(|_| word.undecided & bit != 0));
            }
            word.held = word.undecided;
        }
        self.ranges = left;
    }
}

/// The bits of span `number` and those behind it in its word.
fn from(number: usize) -> u64 {
    u64::MAX << (number % WORD_SPANS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(number: u32) -> BodyRange {
        BodyRange { position: number * 100, length: number }
    }

    proptest! {
        #[test]
        fn undecided_ranges_are_found_whatever_was_settled_before(
            lengths in prop::collection::vec(1u32..90, 1..20),
            order in prop::collection::vec(any::<u32>(), 20),
        ) {
            let mut runs: Vec<(u32, u32, u32)> = Vec::new();
            for (&length, &order) in lengths.iter().zip(&order) {
                let first = runs.last().map_or(0, |(_, first, length)| first + length);
                runs.push((order, first, length));
            }
            let spans: u32 = lengths.iter().sum();
            let mut ranges = Ranges::new((0..spans).map(range).collect());
            runs.sort_unstable();
            for (settled, &(_, first, count)) in runs.iter().enumerate() {
                for &(_, first, count) in &runs[settled..] {
                    let expected: Vec<_> = (first..first + count).map(range).collect();
                    prop_assert_eq!(ranges.of(first, count), &expected);
                }
                ranges.settle(first, count);
                let left: u32 = runs[settled + 1..].iter().map(|(.., count)| count).sum();
                prop_assert_eq!(ranges.undecided(), left);
                prop_assert!(spans <= 64 || ranges.ranges.len() <= left as usize * HELD_PER_UNDECIDED_MAX);
            }
        }
    }
}
