//! A timing wheel: when is a trace worth a look? One entry a trace, 100 ms ticks.
//!
//! Deadlines move with every span, entries do not: an entry that fires early is simply put back. The entry of a trace that
//! was settled before its time is recognised as stale by its tick.

use store_model::Monotonic;

/// How fine time is cut. Visibility does not depend on it, only how promptly a finished trace is decided.
const TICK_NS: u64 = 100_000_000;

/// Slots in the wheel: 409.6 s, beyond the default trace timeout, so that entries rarely go round.
const SLOTS: u32 = 4_096;

/// The number of a tick since the clock's zero, the machine's start: 32 bits last for 13 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Tick(pub(crate) u32);

impl Tick {
    /// The first tick that begins at or after `moment`.
    pub(crate) fn at_or_after(moment: Monotonic) -> Self {
        Self::numbered(moment.0.div_ceil(TICK_NS))
    }

    /// The last tick that began at or before `moment`.
    fn at_or_before(moment: Monotonic) -> Self {
        Self::numbered(moment.0 / TICK_NS)
    }

    fn numbered(number: u64) -> Self {
        Self(u32::try_from(number).unwrap_or(u32::MAX))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) slot: u32,
    pub(crate) tick: Tick,
}

#[derive(Debug)]
pub(crate) struct Wheel {
    slots: Vec<Vec<Entry>>,
    /// The next tick to fire.
    next: Option<Tick>,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), next: None }
    }

    pub(crate) fn insert(&mut self, slot: u32, tick: Tick) {
        // An entry for a tick that has fired already would wait a whole round: it fires next instead.
        let fires_at = self.next.map_or(tick, |next| tick.max(next));
        let entry = Entry { slot, tick };
        self.slot_mut(fires_at).push(entry);
    }

    /// Takes out every entry that is due at `now` into `due`.
    pub(crate) fn advance(&mut self, now: Monotonic, due: &mut Vec<Entry>) {
        let current = Tick::at_or_before(now);
        let first = self.next.unwrap_or(Tick(0)).0;
        // After a long pause one round visits every slot; more would only visit them again.
        let last = current.0.min(first.saturating_add(SLOTS));
        for tick in first..=last {
            // The slot gives its memory back: what one busy tick needs, all slots together must not hold on to.
            let mut entries = std::mem::take(self.slot_mut(Tick(tick)));
            due.extend(entries.iter().filter(|entry| entry.tick <= current));
            entries.retain(|entry| entry.tick > current);
            if !entries.is_empty() {
                entries.shrink_to_fit();
                *self.slot_mut(Tick(tick)) = entries;
            }
        }
        self.next = Some(Tick(current.0.max(first.saturating_sub(1)).saturating_add(1)));
    }

    fn slot_mut(&mut self, tick: Tick) -> &mut Vec<Entry> {
        &mut self.slots[(tick.0 % SLOTS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn an_entry_fires_once_and_not_early() {
        let mut wheel = Wheel::new();
        let mut due = Vec::new();
        wheel.insert(7, Tick::at_or_after(Monotonic(2 * SECOND)));
        wheel.advance(Monotonic(2 * SECOND - 1), &mut due);
        assert!(due.is_empty());
        wheel.advance(Monotonic(2 * SECOND), &mut due);
        assert_eq!(due.len(), 1);
        wheel.advance(Monotonic(1_000 * SECOND), &mut due);
        assert_eq!(due.len(), 1);
    }

    #[test]
    fn slots_that_have_fired_hold_no_memory() {
        let mut wheel = Wheel::new();
        let mut due = Vec::new();
        for second in 0..300 {
            for slot in 0..1_000 {
                wheel.insert(slot, Tick::at_or_after(Monotonic(second * SECOND)));
            }
            wheel.advance(Monotonic(second * SECOND), &mut due);
        }
        assert_eq!(due.len(), 300_000);
        assert_eq!(wheel.slots.iter().map(Vec::capacity).sum::<usize>(), 0);
    }

    proptest! {
        #[test]
        fn every_entry_fires_within_a_tick_of_its_deadline(
            deadlines in prop::collection::vec(0u64..2_000 * SECOND, 1..50),
            steps in prop::collection::vec(0u64..600 * SECOND, 1..30),
        ) {
            let mut wheel = Wheel::new();
            for (slot, &deadline) in (0u32..).zip(&deadlines) {
                wheel.insert(slot, Tick::at_or_after(Monotonic(deadline)));
            }
            let (mut now, mut fired) = (0, vec![false; deadlines.len()]);
            for step in steps {
                now += step;
                let mut due = Vec::new();
                wheel.advance(Monotonic(now), &mut due);
                due.iter().for_each(|entry| fired[entry.slot as usize] = true);
                for (fired, &deadline) in fired.iter().zip(&deadlines) {
                    prop_assert!(!fired || deadline <= now, "early");
                    prop_assert!(*fired || deadline + SECOND / 10 > now, "late");
                }
            }
        }
    }
}
