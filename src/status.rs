//! How the appliance is, for `GetStatus`, `/metrics` and `/readyz`: gathered from what the rooms publish, on demand.

use std::sync::Arc;

use ingest_aggregator::Gauges;
use ingest_receiver::ReceiverMetrics;
use query_api::StatusSource;
use query_api::proto::{GetStatusResponse, SpanCounts};
use store_archive::settlement::TenantCounts;
use store_archive::{Archive, ArchiveStats};
use store_log::{Reader, RealDisk};
use store_model::{Monotonic, Reason, Tenant};

use crate::clock;
use crate::gate::Gate;
use crate::identities::Identities;
use crate::memory::CoreMemory;
use crate::shards::Published;
use crate::totals::Totals;

/// Where everything that can be asked about the appliance is found.
pub(crate) struct StatusBoard {
    pub(crate) started_at: Monotonic,
    pub(crate) gate: Arc<Gate>,
    pub(crate) totals: Arc<Totals>,
    pub(crate) published: Vec<Arc<Published>>,
    pub(crate) archive: Archive,
    pub(crate) journal: Vec<Reader<RealDisk>>,
    pub(crate) decisions: Vec<Reader<RealDisk>>,
    pub(crate) receiver: Arc<ReceiverMetrics>,
    pub(crate) identities: Identities,
    pub(crate) memory_limit: u64,
    pub(crate) core_memory: CoreMemory,
}

impl StatusBoard {
    /// All shards added up.
    pub(crate) fn gauges(&self) -> Gauges {
        let mut sum = Gauges::default();
        for published in &self.published {
            let Gauges { live_traces, live_spans, live_bytes, body_bytes } = published.gauges();
            sum.live_traces += live_traces;
            sum.live_spans += live_spans;
            sum.live_bytes += live_bytes;
            // Shards share most bodies, so the fullest one is nearer the truth than the sum.
            sum.body_bytes = sum.body_bytes.max(body_bytes);
        }
        sum
    }

    /// Bytes of the journal's segments.
    pub(crate) fn journal_bytes(&self) -> u64 {
        self.journal.iter().map(Reader::bytes_used).sum()
    }

    /// Log segments that were found damaged and set aside, one line each.
    pub(crate) fn quarantined_logs(&self) -> Vec<String> {
        let segments = self.journal.iter().chain(&self.decisions).flat_map(Reader::segments);
        let damaged = segments.filter_map(|segment| {
            let reason = segment.quarantined?;
            Some(format!("{} is damaged: {reason}", segment.path.display()))
        });
        damaged.collect()
    }
}

impl StatusSource for StatusBoard {
    fn status(&self, tenant: &Tenant) -> GetStatusResponse {
        let totals = self.totals.by_tenant().remove(tenant).unwrap_or_default();
        let TenantCounts { counts, kept_spans, kept_traces, dropped_traces } = totals;
        let by_reason = |values: [u64; 3]| {
            Reason::ALL.iter().map(|reason| reason.as_str().to_owned()).zip(values).collect()
        };
        let gauges = self.gauges();
        let ArchiveStats { segments, bytes, open_bytes, quarantined, .. } = self.archive.stats();
        let damaged = self.quarantined_logs();
        let closed = self.gate.reason();
        GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_nano: u64::try_from(clock::monotonic().since(self.started_at).as_nanos())
                .unwrap_or(u64::MAX),
            accepting: closed.is_none(),
            quarantined_segments: u32::try_from(quarantined + damaged.len() as u64).unwrap_or(u32::MAX),
            notices: closed.into_iter().chain(damaged).collect(),
            counts: Some(SpanCounts {
                arrived: counts.arrived,
                kept: counts.kept,
                sampled_out: counts.sampled_out,
                shed: counts.shed,
                expired: counts.expired,
                refused: counts.refused,
                undecided: counts.arrived.saturating_sub(counts.settled()),
            }),
            kept_spans_by_reason: by_reason(kept_spans),
            kept_traces_by_reason: by_reason(kept_traces),
            live_traces: gauges.live_traces as u64,
            live_spans: gauges.live_spans as u64,
            memory_used_bytes: (gauges.live_bytes + gauges.body_bytes) as u64 + open_bytes,
            memory_limit_bytes: self.memory_limit,
            journal_bytes: self.journal_bytes(),
            archive_bytes: bytes,
            archive_segments: u32::try_from(segments).unwrap_or(u32::MAX),
            shards: u32::try_from(self.published.len()).unwrap_or(u32::MAX),
            dropped_traces,
        }
    }
}
