//! What is normal for an operation: an online quantile of root durations per (service, operation).
//!
//! Two rotating windows of `hdrhistogram`: durations go into the current one, the threshold comes from the previous
//! one, so that it never moves with the trace it judges. Until a first window is full the current one serves, looked at
//! whenever its count has doubled.

use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use hdrhistogram::Histogram;
use store_model::{Monotonic, Symbol};

use crate::decide::Root;

/// Durations are recorded in microseconds and cut off here: one hour.
const DURATION_US_MAX: u64 = 3_600_000_000;

/// Two significant digits: about 1 % error for 5-7 KiB a window.
const SIGNIFICANT_DIGITS: u8 = 2;

/// An operation without a root for this many windows is forgotten; rare ones learn over several windows.
const IDLE_WINDOWS_MAX: u8 = 10;

/// When a trace counts as slow.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowPolicy {
    /// The quantile of the operation's root durations above which a trace is slow, 0 to 1.
    pub quantile: f64,
    /// Never slow at or below this, whatever the quantile says: nobody needs the slowest of the instant.
    pub floor: Duration,
    /// A quantile of fewer roots than this is noise.
    pub count_min: u64,
    /// Slow above this where no quantile is known yet.
    pub fallback: Duration,
    /// How long a window lasts.
    pub window: Duration,
    /// Operations with a sketch of their own; the others share one.
    pub operations_max: usize,
}

impl Default for SlowPolicy {
    fn default() -> Self {
        Self {
            quantile: 0.95,
            floor: Duration::from_millis(1),
            count_min: 200,
            fallback: Duration::from_secs(5),
            window: Duration::from_secs(60),
            operations_max: 2_000,
        }
    }
}

/// The sketches of one shard.
#[derive(Debug)]
pub struct Sketches {
    policy: SlowPolicy,
    operations: HashMap<(Symbol, Symbol), Sketch>,
    overflow: Sketch,
    window_began: Option<Monotonic>,
}

#[derive(Debug)]
struct Sketch {
    current: Histogram<u32>,
    /// Above this a root is slow; `None` until enough roots were seen.
    threshold_us: Option<u64>,
    /// Whether the threshold comes from a whole window.
    settled: bool,
    /// At this count of the first window the threshold is worked out again.
    next_look: u64,
    /// Windows that ended without a root.
    idle_windows: u8,
}

impl Sketch {
    fn new(count_min: u64) -> Option<Self> {
        let current = Histogram::new_with_bounds(1, DURATION_US_MAX, SIGNIFICANT_DIGITS).ok()?;
        Some(Self {
            current,
            threshold_us: None,
            settled: false,
            next_look: count_min.max(1),
            idle_windows: 0,
        })
    }

    fn record(&mut self, duration_us: u64, quantile: f64) {
        self.idle_windows = 0;
        self.current.saturating_record(duration_us);
        if !self.settled && self.current.len() >= self.next_look {
            self.threshold_us = Some(self.current.value_at_quantile(quantile));
            self.next_look = self.next_look.saturating_mul(2);
        }
    }

    /// Ends the window. One with too few roots goes on, so that rare operations are learned too.
    fn rotate(&mut self, policy: &SlowPolicy) {
        self.idle_windows = self.idle_windows.saturating_add(1);
        if self.current.len() >= policy.count_min {
            self.threshold_us = Some(self.current.value_at_quantile(policy.quantile));
            self.settled = true;
            self.current.reset();
        }
    }
}

impl Sketches {
    /// Nothing learned yet.
    ///
    /// # Panics
    /// Never: the histogram's bounds are constants that `hdrhistogram` accepts.
    #[must_use]
    pub fn new(policy: SlowPolicy) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the bounds are constants, checked by every test of this file"
        )]
        let overflow = Sketch::new(policy.count_min).expect("constant histogram bounds are legal");
        Self { policy, operations: HashMap::new(), overflow, window_began: None }
    }

    /// Learns from a root span. Every root counts, before any sampling.
    pub fn record(&mut self, root: &Root, now: Monotonic) {
        self.rotate_when_due(now);
        let duration_us = (root.duration_ns / 1_000).clamp(1, DURATION_US_MAX);
        let key = (root.service, root.operation);
        let is_full = self.operations.len() >= self.policy.operations_max;
        let sketch = match self.operations.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) if !is_full => match Sketch::new(self.policy.count_min) {
                Some(sketch) => unknown.insert(sketch),
                None => &mut self.overflow,
            },
            Entry::Vacant(_) => &mut self.overflow,
        };
        sketch.record(duration_us, self.policy.quantile);
    }

    /// Whether this root took longer than its operation's quantile. Ties are not slow: when many roots end at one
    /// timeout value, all of them being "the slowest 5 %" would keep them all.
    #[must_use]
    pub fn is_slow(&self, root: &Root) -> bool {
        let floor_ns = u64::try_from(self.policy.floor.as_nanos()).unwrap_or(u64::MAX);
        if root.duration_ns <= floor_ns {
            return false;
        }
        match self.threshold_us(root.service, root.operation) {
            Some(threshold_us) => root.duration_ns / 1_000 > threshold_us,
            None => u128::from(root.duration_ns) > self.policy.fallback.as_nanos(),
        }
    }

    /// The learned threshold of an operation in microseconds.
    #[must_use]
    pub fn threshold_us(&self, service: Symbol, operation: Symbol) -> Option<u64> {
        self.operations.get(&(service, operation)).unwrap_or(&self.overflow).threshold_us
    }

    /// How many operations have a sketch of their own.
    #[must_use]
    pub fn operation_count(&self) -> usize {
        self.operations.len()
    }

    fn rotate_when_due(&mut self, now: Monotonic) {
        let began = *self.window_began.get_or_insert(now);
        if now.since(began) < self.policy.window {
            return;
        }
        self.window_began = Some(now);
        let policy = &self.policy;
        self.operations.retain(|_, sketch| {
            sketch.rotate(policy);
            sketch.idle_windows <= IDLE_WINDOWS_MAX
        });
        self.overflow.rotate(policy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(operation: u32, duration_ms: u64) -> Root {
        Root { service: Symbol(1), operation: Symbol(operation), duration_ns: duration_ms * 1_000_000 }
    }

    #[test]
    fn the_previous_window_judges_and_the_current_one_learns() {
        let policy = SlowPolicy { count_min: 10, window: Duration::from_secs(1), ..SlowPolicy::default() };
        let mut sketches = Sketches::new(policy);
        (0..100).for_each(|_| sketches.record(&root(1, 10), Monotonic(0)));
        sketches.record(&root(1, 10), Monotonic(1_000_000_000));
        assert!(sketches.is_slow(&root(1, 20)));
        // A slow minute does not make itself normal before it is over.
        (0..1_000).for_each(|_| sketches.record(&root(1, 50), Monotonic(1_500_000_000)));
        assert!(sketches.is_slow(&root(1, 20)));
        sketches.record(&root(1, 50), Monotonic(2_000_000_001));
        assert!(!sketches.is_slow(&root(1, 50)), "now it is normal");
    }

    #[test]
    fn ties_are_not_slow() {
        let mut sketches = Sketches::new(SlowPolicy::default());
        (0..10_000).for_each(|_| sketches.record(&root(1, 30_000), Monotonic(0)));
        assert!(!sketches.is_slow(&root(1, 30_000)));
    }

    #[test]
    fn operations_beyond_the_limit_share_a_sketch() {
        let mut sketches =
            Sketches::new(SlowPolicy { operations_max: 2, count_min: 1, ..SlowPolicy::default() });
        (0..100).for_each(|operation| sketches.record(&root(operation, 10), Monotonic(0)));
        assert_eq!(sketches.operation_count(), 2);
        assert!(sketches.is_slow(&root(99, 20)));
    }

    #[test]
    fn a_quiet_operation_is_forgotten() {
        let mut sketches =
            Sketches::new(SlowPolicy { window: Duration::from_secs(1), ..SlowPolicy::default() });
        sketches.record(&root(1, 10), Monotonic(0));
        for second in 1..15 {
            sketches.record(&root(2, 10), Monotonic(second * 1_000_000_001));
        }
        assert_eq!(sketches.operation_count(), 1);
    }
}
