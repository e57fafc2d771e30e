//! Which sealed segments have to go, by age and by disk budget. Chooses; `archive` removes.

use std::time::Duration;

use store_model::UnixNanos;

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Expired {
    /// How many segments.
    pub segments: u64,
    /// Their size on disk.
    pub bytes: u64,
    /// How many fragments they held.
    pub rows: u64,
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) sealed_at: UnixNanos,
    pub(crate) bytes: u64,
    /// An empty segment that only says what its shard covers, and is the only one to say so.
    pub(crate) marker_in_use: bool,
}

/// The places in `candidates` of those to remove, oldest first.
///
/// Age counts from sealing, not from what spans say, so that a sender with a wrong clock can neither lose its traces nor
/// keep them for ever.
pub(crate) fn choose(
    candidates: &[Candidate],
    age_max: Duration,
    bytes_max: u64,
    now: UnixNanos,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).filter(|&at| !candidates[at].marker_in_use).collect();
    order.sort_by_key(|&at| candidates[at].sealed_at);
    let mut bytes: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
    order.retain(|&at| {
        let candidate = candidates[at];
        let chosen = bytes > bytes_max || now.since(candidate.sealed_at) > age_max;
        bytes -= if chosen { candidate.bytes } else { 0 };
        chosen
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(sealed_at: [u64; 4]) -> Vec<Candidate> {
        let one = |second: u64| Candidate {
            sealed_at: UnixNanos(second * 1_000_000_000),
            bytes: 100,
            marker_in_use: second == 2,
        };
        sealed_at.map(one).to_vec()
    }

    #[test]
    fn the_oldest_go_until_age_and_budget_are_kept() {
        let all = candidates([3, 1, 2, 4]);
        let choose = |age: u64, bytes, now: u64| {
            choose(&all, Duration::from_secs(age), bytes, UnixNanos(now * 1_000_000_000))
        };
        assert_eq!(choose(100, 1_000, 10), [0; 0]);
        assert_eq!(choose(100, 399, 10), [1]);
        assert_eq!(choose(100, 250, 10), [1, 0]);
        assert_eq!(choose(7, 1_000, 10), [1]);
        assert_eq!(choose(0, 0, 10), [1, 0, 3]);
        assert_eq!(choose(1, 1_000, 0), [0; 0], "a clock that went back removes nothing");
    }
}
