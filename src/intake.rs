//! Where the receiver's requests go: checked against the gate, queued for the journal partition of their core.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use ingest_receiver::{Done, Intake, Outcome, Received};
use store_model::{Symbols, Tenant, UnixNanos};

use crate::clock;
use crate::gate::Gate;

/// When a refused client should come back. Receivers add their own spread.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A request on its way to the journal, with the way back to its sender.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) request: Received,
    pub(crate) done: Done,
}

/// The bounded queue in front of one journal partition.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    filled: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Submission>,
    bytes: usize,
    is_closed: bool,
}

/// What the journal thread found.
pub(crate) enum Taken {
    /// Requests to write together.
    Group(Vec<Submission>),
    /// Nothing came in time.
    Nothing,
    /// Nothing will come any more.
    Closed,
}

impl Queue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), filled: Condvar::new(), bytes_max }
    }

    /// Takes a request, or hands it back when there is no room.
    fn push(&self, submission: Submission) -> Option<Submission> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed || (state.bytes >= self.bytes_max) {
            return Some(submission);
        }
        state.bytes += submission.request.stored.len();
        state.waiting.push_back(submission);
        drop(state);
        self.filled.notify_one();
        None
    }

    /// Waits up to `patience` for a first request, then until `ready` holds `group_bytes` or `linger` is over.
    pub(crate) fn take(&self, patience: Duration, linger: Duration, group_bytes: usize) -> Taken {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .filled
            .wait_timeout_while(state, patience, |state| state.waiting.is_empty() && !state.is_closed)
            .unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .filled
            .wait_timeout_while(state, linger, |state| state.bytes < group_bytes && !state.is_closed)
            .unwrap_or_else(PoisonError::into_inner);
        if state.waiting.is_empty() {
            return if state.is_closed { Taken::Closed } else { Taken::Nothing };
        }
        state.bytes = 0;
        Taken::Group(state.waiting.drain(..).collect())
    }

    /// Lets what is queued be written and takes nothing more.
    pub(crate) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.filled.notify_all();
    }
}

/// Spans that were refused before they reached the journal, by tenant, until a settlement record counts them.
#[derive(Debug, Default)]
pub(crate) struct RefusedLedger(Mutex<HashMap<Tenant, u64>>);

impl RefusedLedger {
    pub(crate) fn add(&self, tenant: &Tenant, spans: u64) {
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *ledger.entry(tenant.clone()).or_default() += spans;
    }

    /// Takes everything out.
    pub(crate) fn drain(&self) -> Vec<(Tenant, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

/// The appliance's side of the receiver.
#[derive(Debug)]
pub(crate) struct Entrance {
    pub(crate) queues: Vec<Arc<Queue>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) refused: Arc<RefusedLedger>,
    pub(crate) symbols: Symbols,
    pub(crate) tenants: Mutex<std::collections::HashSet<Tenant>>,
    pub(crate) tenants_max: usize,
}

impl Entrance {
    fn knows(&self, tenant: &Tenant) -> bool {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.contains(tenant) || (tenants.len() < self.tenants_max && tenants.insert(tenant.clone()))
    }
}

impl Intake for Entrance {
    fn submit(&self, core: usize, request: Received, done: Done) {
        let outcome = if let Err(outcome) = self.ready() {
            Some((request, done, outcome))
        } else if !self.knows(&request.tenant) {
            let reason = format!(
                "this appliance knows {} tenants already, receivers.max_tenants allows no more",
                self.tenants_max
            );
            Some((request, done, Outcome::Unavailable { retry_after: RETRY_AFTER, reason }))
        } else {
            let queue = &self.queues[core % self.queues.len()];
            let full = Outcome::Overloaded { retry_after: RETRY_AFTER };
            queue.push(Submission { request, done }).map(|back| (back.request, back.done, full))
        };
        if let Some((request, done, outcome)) = outcome {
            let spans = request.summaries.len() as u64 + u64::from(request.refused);
            self.refuse(&request.tenant, spans);
            done.send(outcome);
        }
    }

    fn refuse(&self, tenant: &Tenant, spans: u64) {
        // Names beyond the limit are counted together, so that they cannot grow the ledger.
        if self.knows(tenant) {
            self.refused.add(tenant, spans);
        } else {
            self.refused.add(&Tenant::default(), spans);
        }
    }

    fn ready(&self) -> Result<(), Outcome> {
        match self.gate.reason() {
            None => Ok(()),
            Some(reason) => Err(Outcome::Unavailable { retry_after: RETRY_AFTER, reason }),
        }
    }

    fn now(&self) -> UnixNanos {
        clock::unix()
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }
}
