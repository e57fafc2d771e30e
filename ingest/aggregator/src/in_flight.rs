//! Kept traces that are on their way to the archive: queries still find them here.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::batch::KeptTrace;
use crate::remembered::ShardKey;

/// Found by key, forgotten by turn.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    traces: HashMap<ShardKey, Vec<Flying>>,
    /// The turn and key of each, in order.
    turns: VecDeque<(u64, ShardKey)>,
    /// Of each turn, the bytes of bodies that nobody but kept traces holds; and of all.
    bodies: VecDeque<(u64, usize)>,
    body_bytes: usize,
}

#[derive(Debug)]
struct Flying {
    turn: u64,
    trace: Arc<KeptTrace>,
}

impl InFlight {
    /// Turns come in order.
    pub(crate) fn insert(&mut self, turn: u64, key: ShardKey, trace: Arc<KeptTrace>) {
        self.traces.entry(key).or_default().push(Flying { turn, trace });
        self.turns.push_back((turn, key));
    }

    /// Kept traces hold bodies of so many bytes from this turn on. Turns come in order.
    pub(crate) fn hold(&mut self, turn: u64, body_bytes: usize) {
        if body_bytes > 0 {
            self.bodies.push_back((turn, body_bytes));
            self.body_bytes += body_bytes;
        }
    }

    /// Bytes of bodies that kept traces hold.
    pub(crate) fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Forgets what turns up to `number` kept.
    pub(crate) fn forget(&mut self, number: u64) {
        while let Some((_, bytes)) = self.bodies.pop_front_if(|(turn, _)| *turn <= number) {
            self.body_bytes -= bytes;
        }
        while let Some((_, key)) = self.turns.pop_front_if(|(turn, _)| *turn <= number) {
            let Some(flying) = self.traces.get_mut(&key) else { continue };
            flying.retain(|flying| flying.turn > number);
            if flying.is_empty() {
                self.traces.remove(&key);
            }
        }
    }

    /// The parts of one trace, oldest first.
    pub(crate) fn of(&self, key: ShardKey) -> impl Iterator<Item = &KeptTrace> {
        self.traces.get(&key).into_iter().flatten().map(|flying| &*flying.trace)
    }

    /// All of one tenant.
    pub(crate) fn of_tenant(&self, number: u32) -> impl Iterator<Item = &KeptTrace> {
        let own = self.traces.iter().filter(move |((tenant, _), _)| *tenant == number);
        own.flat_map(|(_, flying)| flying).map(|flying| &*flying.trace)
    }
}
