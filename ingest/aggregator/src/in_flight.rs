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

    /// Forgets what turns up to `number` kept.
    pub(crate) fn forget(&mut self, number: u64) {
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
