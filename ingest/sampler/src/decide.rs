//! The decision itself. Owns no state; [`Sketches`] is asked, never changed.

use store_model::{Randomness, Reason, Symbol, Threshold, Verdict};

use crate::sketch::Sketches;

/// Which traces are worth keeping.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// T of the head stage: keep iff R >= T.
    pub head: Threshold,
    /// Keep every trace with a span of status ERROR.
    pub keep_errors: bool,
    /// Keep every trace whose root is slower than its operation's quantile.
    pub keep_slow: bool,
}

impl Default for Policy {
    /// 1 % of all, every error, every slow one.
    fn default() -> Self {
        Self { head: Threshold::from_probability(0.01), keep_errors: true, keep_slow: true }
    }
}

/// The root span of a trace, as far as a decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// `service.name` of its resource.
    pub service: Symbol,
    /// Its name.
    pub operation: Symbol,
    /// How long it took, by its own clock: other services' clocks play no part.
    pub duration_ns: u64,
}

/// What is known of a trace when it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceFacts {
    /// R.
    pub randomness: Randomness,
    /// A span has status ERROR.
    pub has_error: bool,
    /// The root, if it has arrived.
    pub root: Option<Root>,
}

/// Decides. `pressure` is the threshold that load adds to the head stage ([`Threshold::ALWAYS`] when there is none); it
/// never touches errors or slow traces.
///
/// The threshold of a kept trace is the smallest among the stages that voted for it: a stage that keeps a kind of trace
/// whole gives weight 1, so that errors kept at 100 % and the rest kept at 1 % add up to unbiased totals.
#[must_use]
pub fn decide(facts: &TraceFacts, policy: &Policy, sketches: &Sketches, pressure: Threshold) -> Verdict {
    let always = |reason| Verdict::Keep { reason, threshold: Threshold::ALWAYS };
    if policy.keep_errors && facts.has_error {
        return always(Reason::Error);
    }
    if policy.keep_slow && facts.root.is_some_and(|root| sketches.is_slow(&root)) {
        return always(Reason::Slow);
    }
    let head = policy.head.and(pressure);
    if head.keeps(facts.randomness) {
        return Verdict::Keep { reason: Reason::Head, threshold: head };
    }
    Verdict::SampledOut
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sketch::SlowPolicy;
    use proptest::prelude::*;
    use store_model::Monotonic;

    fn facts(randomness: u64, has_error: bool, duration_ns: Option<u64>) -> TraceFacts {
        let root =
            duration_ns.map(|duration_ns| Root { service: Symbol(1), operation: Symbol(2), duration_ns });
        TraceFacts { randomness: Randomness::from_low_bits(randomness), has_error, root }
    }

    fn learned() -> Sketches {
        let mut sketches = Sketches::new(SlowPolicy::default());
        for n in 0..1_000 {
            let root =
                Root { service: Symbol(1), operation: Symbol(2), duration_ns: 1_000_000 * (1 + n % 100) };
            sketches.record(&root, Monotonic(n));
        }
        sketches
    }

    #[test]
    fn errors_and_slow_traces_are_kept_whole_and_weigh_one() {
        let (policy, sketches) = (Policy::default(), learned());
        let keep = |reason| Verdict::Keep { reason, threshold: Threshold::ALWAYS };
        let never = Threshold::NEVER;
        assert_eq!(decide(&facts(0, true, None), &policy, &sketches, never), keep(Reason::Error));
        assert_eq!(
            decide(&facts(0, false, Some(200_000_000)), &policy, &sketches, never),
            keep(Reason::Slow)
        );
        // Even when the head stage would have kept it too: weight 100 would count it a hundredfold.
        let lucky = facts(u64::MAX, true, None);
        assert_eq!(decide(&lucky, &policy, &sketches, Threshold::ALWAYS), keep(Reason::Error));
    }

    #[test]
    fn plain_traces_are_kept_by_their_randomness_alone() {
        let (policy, sketches) = (Policy::default(), Sketches::new(SlowPolicy::default()));
        let edge = policy.head.bits();
        let keep = Verdict::Keep { reason: Reason::Head, threshold: policy.head };
        let at = |r| decide(&facts(r, false, Some(5)), &policy, &sketches, Threshold::ALWAYS);
        assert_eq!((at(edge - 1), at(edge)), (Verdict::SampledOut, keep));
    }

    #[test]
    fn roots_as_fast_as_most_are_not_slow() {
        let sketches = learned();
        let root = |duration_ns| Root { service: Symbol(1), operation: Symbol(2), duration_ns };
        assert!(!sketches.is_slow(&root(90_000_000)));
        assert!(sketches.is_slow(&root(99_000_000)));
    }

    proptest! {
        #[test]
        fn pressure_only_ever_takes_head_traces_away(r: u64, error: bool, pressure in 0u64..=(1 << 56)) {
            let (policy, sketches) = (Policy::default(), Sketches::new(SlowPolicy::default()));
            let quiet = decide(&facts(r, error, None), &policy, &sketches, Threshold::ALWAYS);
            let pressed = decide(&facts(r, error, None), &policy, &sketches, Threshold::from_bits(pressure));
            if error || quiet == Verdict::SampledOut {
                prop_assert_eq!(quiet, pressed);
            }
            if let Verdict::Keep { reason: Reason::Head, threshold } = pressed {
                prop_assert!(threshold.keeps(Randomness::from_low_bits(r)) && threshold >= policy.head);
            }
        }
    }

    #[test]
    fn an_unknown_operation_is_slow_only_beyond_the_fallback() {
        let sketches =
            Sketches::new(SlowPolicy { fallback: Duration::from_secs(1), ..SlowPolicy::default() });
        let root = |duration_ns| Root { service: Symbol(8), operation: Symbol(9), duration_ns };
        assert!(!sketches.is_slow(&root(1_000_000_000)));
        assert!(sketches.is_slow(&root(1_000_000_001)));
    }
}
