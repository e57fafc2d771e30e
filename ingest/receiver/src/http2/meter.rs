//! Counting what may happen only so often a second.

use std::time::Duration;

use store_model::Monotonic;

/// Events of one kind. A second starts with the first event after the last one was over; a burst across the border of
/// two gets by with twice the limit, which is as good for a bound and cheaper than a smooth rate.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    since: Monotonic,
    count: u32,
}

impl Meter {
    /// Nothing has happened yet.
    pub fn starting(now: Monotonic) -> Self {
        Self { since: now, count: 0 }
    }

    /// Counts one event. Whether there are more than `max` in this second.
    pub fn exceeds(&mut self, max: u32, now: Monotonic) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count > max
    }

    /// Takes one event back.
    pub fn forgive(&mut self) {
        self.count = self.count.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_second_counts_from_zero() {
        let mut meter = Meter::starting(Monotonic(4_000_000_000));
        let at = |ms: u64| Monotonic(5_000_000_000 + ms * 1_000_000);
        assert_eq!([0, 10, 999].map(|ms| meter.exceeds(2, at(ms))), [false, false, true]);
        assert_eq!([1_000, 1_001, 1_002].map(|ms| meter.exceeds(2, at(ms))), [false, false, true]);
        meter.forgive();
        assert!(meter.exceeds(2, at(1_003)));
    }
}
