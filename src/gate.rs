//! Whether requests are taken in. Rooms that cannot take more close the gate with a reason and open it again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Open while nobody has a reason against it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_closed: AtomicBool,
    reasons: Mutex<BTreeMap<String, String>>,
}

impl Gate {
    /// `who` has a reason not to take more in.
    pub(crate) fn close(&self, who: &str, reason: impl Into<String>) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.insert(who.to_owned(), reason.into()).is_none() {
            tracing::warn!(who, reason = reasons[who], "ingest paused");
        }
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// `who` has no reason any more.
    pub(crate) fn open(&self, who: &str) {
        // Checked without the lock first: this is called once per turn by every shard.
        if !self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.remove(who).is_some() {
            tracing::info!(who, "ingest may go on");
        }
        self.is_closed.store(!reasons.is_empty(), Ordering::Relaxed);
    }

    /// Why nothing is taken in; `None` while the gate is open.
    pub(crate) fn reason(&self) -> Option<String> {
        if !self.is_closed.load(Ordering::Relaxed) {
            return None;
        }
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        (!reasons.is_empty()).then(|| reasons.values().cloned().collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_opens_when_the_last_reason_is_gone() {
        let gate = Gate::default();
        assert_eq!(gate.reason(), None);
        gate.close("disk", "full");
        gate.close("memory", "short");
        gate.open("disk");
        assert_eq!(gate.reason().as_deref(), Some("short"));
        gate.open("memory");
        assert_eq!(gate.reason(), None);
    }
}
