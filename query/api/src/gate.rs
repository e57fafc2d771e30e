//! How many questions run at once. Owns places, not threads; no tenant can take them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use store_model::Tenant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds concurrent questions: in all, and of one tenant to half of that.
#[derive(Debug)]
pub(crate) struct Gate {
    all: Arc<Semaphore>,
    places_per_tenant: usize,
    wait_max: Duration,
    tenants: Mutex<HashMap<Tenant, Arc<Semaphore>>>,
}

/// The right to run one question; given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    _of_tenant: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Gate {
    pub(crate) fn new(places: usize, wait_max: Duration) -> Self {
        let places = places.max(1);
        Self {
            all: Arc::new(Semaphore::new(places)),
            places_per_tenant: places.div_ceil(2),
            wait_max,
            tenants: Mutex::default(),
        }
    }

    /// Waits for a place; `None` when there was none for too long.
    pub(crate) async fn enter(&self, tenant: &Tenant) -> Option<Place> {
        let of_tenant = self.tenant(tenant);
        let both = async {
            // The tenant's own place first: a crowd of one tenant must not hold places of all while it waits.
            let of_tenant = of_tenant.acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
            Some(Place { _of_tenant: of_tenant, _of_all: of_all })
        };
        tokio::time::timeout(self.wait_max, both).await.ok().flatten()
    }

    fn tenant(&self, tenant: &Tenant) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        // Tenants with nobody inside and nobody waiting are forgotten, so that made-up names cannot pile up.
        tenants.retain(|_, places| Arc::strong_count(places) > 1);
        let places = tenants.entry(tenant.clone());
        Arc::clone(places.or_insert_with(|| Arc::new(Semaphore::new(self.places_per_tenant))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_crowd_of_one_tenant_leaves_room_for_another() {
        let gate = Gate::new(4, Duration::from_millis(20));
        let crowd = Tenant::new("crowd").unwrap();
        let inside = [gate.enter(&crowd).await.unwrap(), gate.enter(&crowd).await.unwrap()];
        assert!(gate.enter(&crowd).await.is_none(), "half of the places is the most one tenant gets");
        assert!(gate.enter(&Tenant::default()).await.is_some());
        drop(inside);
        assert!(gate.enter(&crowd).await.is_some());
    }

    #[tokio::test]
    async fn tenants_who_left_are_forgotten() {
        let gate = Gate::new(2, Duration::ZERO);
        for name in ["a", "b", "c"] {
            assert!(gate.enter(&Tenant::new(name).unwrap()).await.is_some());
        }
        assert_eq!(gate.tenants.lock().unwrap().len(), 1);
    }
}
