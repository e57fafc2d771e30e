//! When the deadlines of a thread's connections are looked at: all of them, a few times within the shortest. One look
//! costs nanoseconds, so ten thousand idle connections cost a core less than a thousandth of its time, and no timer
//! needs to be kept per connection.

use std::time::Duration;

use store_model::Monotonic;

use crate::config::ReceiverConfig;

/// Deadlines are met with this much delay, or a quarter of the shortest if that is less.
const PERIOD_MAX: Duration = Duration::from_secs(1);
const PERIOD_MIN: Duration = Duration::from_millis(5);

/// The rounds of one thread.
#[derive(Debug)]
pub(crate) struct Rounds {
    period: Duration,
    due_at: Monotonic,
}

impl Rounds {
    pub(crate) fn new(config: &ReceiverConfig, now: Monotonic) -> Self {
        let ReceiverConfig { header_timeout, body_timeout, idle_timeout, connection_age_max, .. } = *config;
        let shortest = header_timeout.min(body_timeout).min(idle_timeout).min(connection_age_max);
        let period = (shortest / 4).clamp(PERIOD_MIN, PERIOD_MAX);
        Self { period, due_at: now.plus(period) }
    }

    /// Whether a round is due; the next one is a period later.
    pub(crate) fn is_due(&mut self, now: Monotonic) -> bool {
        let is_due = now >= self.due_at;
        if is_due {
            self.due_at = now.plus(self.period);
        }
        is_due
    }

    /// How long nothing needs to be done.
    pub(crate) fn rest(&self, now: Monotonic) -> Duration {
        self.due_at.since(now)
    }

    /// Rounds follow each other quickly from now on.
    pub(crate) fn hurry(&mut self, now: Monotonic) {
        self.period = self.period.min(Duration::from_millis(50));
        self.due_at = now;
    }
}
