//! Latencies in a histogram of three digits, and the schedule that latencies of an open loop are measured from.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Everything above counts as this.
const LONGEST: Duration = Duration::from_secs(600);

/// Microseconds and nanoseconds below, to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    nanos: Option<Histogram<u64>>,
}

/// What a run reports, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Default)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Self {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        // The bounds are constants that the library accepts; it reports them as an error otherwise.
        Self { nanos: Histogram::new_with_bounds(1_000, longest, 3).ok() }
    }

    /// Adds one.
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.nanos {
            histogram.saturating_record(nanos);
        }
    }

    /// Adds those of another thread.
    pub(crate) fn add(&mut self, other: &Self) {
        if let (Some(mine), Some(theirs)) = (&mut self.nanos, &other.nanos) {
            // Both have the same bounds, so nothing can be out of range.
            let _added = mine.add(theirs);
        }
    }

    /// In numbers.
    pub(crate) fn quantiles(&self) -> Quantiles {
        let Some(histogram) = &self.nanos else { return Quantiles::default() };
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e6;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let max_ms = histogram.max() as f64 / 1e6;
        Quantiles {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1e6,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms,
        }
    }
}

/// When requests are due. Constant: a slow answer never moves what comes after it, so that the wait it causes is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Schedule {
    /// As fast as answers come.
    Closed,
    /// One request every so many nanoseconds, whatever the answers do.
    Open {
        /// Between two requests.
        interval_ns: f64,
    },
}

impl Schedule {
    /// `rate` spans a second, in requests of `spans_per_request`.
    pub(crate) fn of_rate(rate: Option<f64>, spans_per_request: f64) -> Self {
        match rate {
            Some(rate) if rate > 0.0 => Self::Open { interval_ns: spans_per_request / rate * 1e9 },
            _ => Self::Closed,
        }
    }

    /// How long after the start request `number` is due; `None` when it may go at once.
    pub(crate) fn due(self, number: u64) -> Option<Duration> {
        match self {
            Self::Closed => None,
            #[expect(clippy::cast_precision_loss, reason = "exact to the nanosecond for 100 days")]
            Self::Open { interval_ns } => Duration::try_from_secs_f64(number as f64 * interval_ns / 1e9).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut first = Latencies::new();
        let mut second = Latencies::new();
        for millis in 1..=500 {
            first.record(Duration::from_millis(millis));
            second.record(Duration::from_millis(500 + millis));
        }
        first.add(&second);
        let found = first.quantiles();
        assert_eq!(found.count, 1_000);
        for (value, expected) in [(found.p50_ms, 500.0), (found.p99_ms, 990.0), (found.max_ms, 1_000.0)] {
            assert!((value - expected).abs() < expected * 0.002, "{value} {expected}");
        }
        second.record(Duration::from_secs(10_000));
        assert!(second.quantiles().max_ms >= 600_000.0);
    }

    #[test]
    fn an_open_schedule_is_constant_and_a_closed_one_has_no_times() {
        let open = Schedule::of_rate(Some(1_000_000.0), 500.0);
        assert_eq!(open.due(0), Some(Duration::ZERO));
        assert_eq!(open.due(2_000), Some(Duration::from_secs(1)));
        assert_eq!(Schedule::of_rate(None, 500.0).due(7), None);
    }
}
