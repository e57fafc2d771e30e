//! The memory that requests in flight may hold, of all cores together. Nobody waits for it: whoever gets none refuses.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::answer::Refusal;
use crate::metrics::ReceiverMetrics;

/// A counted number of bytes. The count itself is a gauge of the metrics, so that it can be seen.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: usize,
    metrics: Arc<ReceiverMetrics>,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize, metrics: Arc<ReceiverMetrics>) -> Arc<Self> {
        Arc::new(Self { bytes_max, metrics })
    }

    /// A permit for nothing yet.
    pub(crate) fn permit(self: &Arc<Self>) -> Permit {
        Permit { budget: Arc::clone(self), bytes: 0 }
    }

    /// Whether so much is taken that senders should slow down.
    pub(crate) fn is_tight(&self) -> bool {
        self.used() > self.bytes_max / 4 * 3
    }

    fn used(&self) -> usize {
        self.metrics.inflight_bytes.load(Ordering::Relaxed)
    }
}

/// The bytes one request holds; given back when it is dropped, however the request ended.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Permit {
    /// How many bytes could be had now.
    pub(crate) fn room(&self) -> usize {
        self.budget.bytes_max.saturating_sub(self.budget.used())
    }

    /// The refusal of something larger than `room`: for good if nobody else holds a byte, else for now.
    pub(crate) fn refusal_beyond(&self, room: usize) -> Refusal {
        if room.saturating_add(self.bytes) >= self.budget.bytes_max {
            return Refusal::too_large(room);
        }
        Refusal::no_room()
    }

    /// Takes `bytes` more. Refuses for good what would not fit an empty budget either, else for now.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes_max = self.budget.bytes_max;
        if self.bytes.saturating_add(bytes) > bytes_max {
            return Err(Refusal::too_large(bytes_max));
        }
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= bytes_max);
        // Relaxed: the number guards no other memory.
        let taken =
            self.budget.metrics.inflight_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        if taken.is_err() {
            return Err(Refusal::no_room());
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Gives `bytes` back.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.metrics.inflight_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Reason;

    #[test]
    fn bytes_are_taken_up_to_the_limit_and_come_back() {
        let metrics = Arc::new(ReceiverMetrics::default());
        let budget = Budget::new(100, Arc::clone(&metrics));
        let mut one = budget.permit();
        let mut other = budget.permit();
        one.grow(60).unwrap();
        assert_eq!(other.grow(41).unwrap_err().reason, Reason::Overloaded);
        other.grow(40).unwrap();
        assert_eq!((one.room(), metrics.snapshot().inflight_bytes), (0, 100));
        drop(one);
        assert_eq!((other.room(), metrics.snapshot().inflight_bytes), (60, 40));
        assert_eq!(other.refusal_beyond(60).reason, Reason::TooLarge);
        assert_eq!(other.refusal_beyond(59).reason, Reason::Overloaded, "somebody else held a byte");
        assert_eq!(
            other.grow(61).unwrap_err().reason,
            Reason::TooLarge,
            "it never fits, so it must not come back"
        );
    }
}
