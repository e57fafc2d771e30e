//! What all cores ask before a request is taken, and what is counted of those that are not. The way to the journal begins in
//! [`crate::journal`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ingest_receiver::{Berth, Intake, Lane, Outcome};
use store_model::{Symbols, Tenant, UnixNanos};

use crate::clock;
use crate::gate::Gate;
use crate::journal::{Journal, JournalParts};

/// When a refused client should come back. Receivers add their own spread.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
pub(crate) struct Entrance {
    /// Of each core, until its thread comes for it.
    pub(crate) journals: Mutex<Vec<Option<JournalParts>>>,
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

    /// Whether a request of this tenant is taken by a core whose journal has room or not.
    pub(crate) fn admits(&self, tenant: &Tenant, is_full: bool) -> Result<(), Outcome> {
        self.ready()?;
        if !self.knows(tenant) {
            let reason = format!(
                "this appliance knows {} tenants already, receivers.max_tenants allows no more",
                self.tenants_max
            );
            return Err(Outcome::Unavailable { retry_after: RETRY_AFTER, reason });
        }
        if is_full { Err(Outcome::Overloaded { retry_after: RETRY_AFTER }) } else { Ok(()) }
    }
}

impl Intake for Entrance {
    fn lane(self: Arc<Self>, berth: Berth) -> Box<dyn Lane> {
        let parts = {
            let mut journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
            journals.get_mut(berth.core).and_then(Option::take)
        };
        let parts = parts.expect("there is a journal for every core, and each core asks once");
        Box::new(Journal::new(parts, self, berth))
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
