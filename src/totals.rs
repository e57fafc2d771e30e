//! The running totals of all shards: where every tenant's spans went. Owned by the archivers, read by status and metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use store_archive::settlement::TenantCounts;
use store_model::{ShardId, Tenant};

/// One table per shard: a settlement record carries its shard's table, so that a restart goes on counting.
#[derive(Debug)]
pub(crate) struct Totals {
    shards: Vec<Mutex<BTreeMap<Tenant, TenantCounts>>>,
}

impl Totals {
    pub(crate) fn new(shards: u16) -> Self {
        Self { shards: (0..shards).map(|_| Mutex::default()).collect() }
    }

    /// The table of one shard.
    pub(crate) fn shard(&self, shard: ShardId) -> MutexGuard<'_, BTreeMap<Tenant, TenantCounts>> {
        self.shards[usize::from(shard.0)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All shards added up, by tenant.
    pub(crate) fn by_tenant(&self) -> BTreeMap<Tenant, TenantCounts> {
        let mut sums: BTreeMap<Tenant, TenantCounts> = BTreeMap::new();
        for shard in (0..).map(ShardId).take(self.shards.len()) {
            for (tenant, counts) in self.shard(shard).iter() {
                sums.entry(tenant.clone()).or_default().add(*counts);
            }
        }
        sums
    }
}
