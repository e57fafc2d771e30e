//! What a turn has settled so far without keeping it, by tenant.

use store_model::{Counts, Tenant};

use crate::batch::{DroppedTrace, Settled};

/// Found by a tenant's number without hashing: every trace that ends asks for it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    of_tenants: Vec<OfTenant>,
    /// By tenant number, one more than its place in `of_tenants`; zero when the turn has nothing of it.
    places: Vec<u32>,
}

/// What the turn has of one tenant.
#[derive(Debug)]
pub(crate) struct OfTenant {
    tenant: u32,
    pub(crate) dropped: Vec<DroppedTrace>,
    pub(crate) counts: Counts,
}

impl Tally {
    pub(crate) fn of(&mut self, tenant: u32) -> &mut OfTenant {
        let number = tenant as usize;
        if self.places.len() <= number {
            self.places.resize(number + 1, 0);
        }
        if self.places[number] == 0 {
            self.of_tenants.push(OfTenant { tenant, dropped: Vec::new(), counts: Counts::default() });
            self.places[number] = u32::try_from(self.of_tenants.len()).unwrap_or(u32::MAX);
        }
        &mut self.of_tenants[self.places[number] as usize - 1]
    }

    pub(crate) fn has_dropped(&self) -> bool {
        self.of_tenants.iter().any(|of_tenant| !of_tenant.dropped.is_empty())
    }

    /// Ends the turn. `tenants` are the names by number.
    pub(crate) fn take(&mut self, tenants: &[Tenant]) -> Vec<Settled> {
        let of_tenants = self.of_tenants.drain(..).map(|OfTenant { tenant, dropped, counts }| {
            self.places[tenant as usize] = 0;
            Settled { tenant: tenants[tenant as usize].clone(), dropped, counts }
        });
        of_tenants.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_starts_from_nothing_and_keeps_tenants_apart() {
        let tenants = [Tenant::new("a").unwrap(), Tenant::new("b").unwrap(), Tenant::new("c").unwrap()];
        let mut tally = Tally::default();
        for (tenant, arrived) in [(2, 1), (0, 10), (2, 100)] {
            tally.of(tenant).counts.arrived += arrived;
        }
        let arrived = |settled: Vec<Settled>| -> Vec<(String, u64)> {
            settled.iter().map(|of| (of.tenant.to_string(), of.counts.arrived)).collect()
        };
        assert_eq!(arrived(tally.take(&tenants)), [("c".into(), 101), ("a".into(), 10)]);
        tally.of(0).counts.arrived += 5;
        assert_eq!(arrived(tally.take(&tenants)), [("a".into(), 5)]);
        assert!(!tally.has_dropped() && tally.take(&tenants).is_empty());
    }
}
