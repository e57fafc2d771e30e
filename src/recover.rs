//! Finding back after a crash: settlement records say what is settled, the journal holds the rest.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ingest_aggregator::{Batch, KeptMemory, KeptSpan, KeptTrace, Observed, Resume, gather};
use ingest_otlp::{Body, Containers};
use store_archive::ShardWriter;
use store_archive::settlement::{KeptDecision, Settlement, TenantCounts};
use store_log::{BodyRecord, Reader, RealDisk};
use store_model::{Offset, PartitionId, SpanRuns, Symbols, Tenant, UnixNanos};

use crate::appliance::Error;
use crate::bodies::{self, JournalBodies};
use crate::journal::Feeder;
use crate::retention::lower_floors;

/// Kept traces gathered at once while an open segment is rebuilt.
const TRACES_PER_ROUND: usize = 1_000;

/// What the decision log of one shard says.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) resume: Resume,
    pub(crate) totals: BTreeMap<Tenant, TenantCounts>,
    /// Kept traces that no sealed segment covers.
    pub(crate) open: Vec<KeptDecision>,
}

/// Reads the decision log of one shard. `covered`: settlement records below are in sealed archive segments.
pub(crate) fn read_decisions(decisions: &Reader<RealDisk>, covered: Offset) -> Recovered {
    let mut recovered = Recovered::default();
    for record in decisions.scan(decisions.start_offset()) {
        let settlement = record.map_err(|error| error.to_string()).and_then(|(offset, payload)| {
            let settlement = Settlement::decode(&payload).map_err(|error| error.to_string())?;
            Ok((offset, settlement))
        });
        match settlement {
            Ok((offset, settlement)) => recovered.add(settlement, offset >= covered),
            Err(error) => {
                tracing::error!(%error, "settlement record cannot be read, its traces are decided again")
            }
        }
    }
    recovered
}

impl Recovered {
    fn add(&mut self, settlement: Settlement, is_open: bool) {
        let Settlement { frontier, watermark, counts, kept, dropped, .. } = settlement;
        self.totals.extend(counts);
        self.resume.observe(Observed {
            frontier,
            watermark,
            kept: kept.iter().map(|trace| (trace.tenant.clone(), trace.trace_id, memory(trace))).collect(),
            dropped: dropped.into_iter().map(|trace| (trace.tenant, trace.trace_id)).collect(),
        });
        if is_open {
            self.open.extend(kept.into_iter().filter(|trace| !trace.spans.is_empty()));
        }
    }
}

fn memory(trace: &KeptDecision) -> KeptMemory {
    KeptMemory { reason: trace.reason, threshold: trace.threshold, trace_start: trace.trace_start }
}

/// Puts the kept traces that no sealed segment covers into the open one again. Returns, per partition, the lowest record
/// it was gathered from.
pub(crate) fn rebuild_open_segment(
    open: &[KeptDecision],
    archive: &mut ShardWriter,
    bodies: &mut JournalBodies,
) -> Vec<Option<Offset>> {
    let mut floor = vec![None; bodies.readers.len()];
    for round in open.chunks(TRACES_PER_ROUND) {
        let traces: Vec<Arc<KeptTrace>> = round.iter().map(|trace| Arc::new(as_kept(trace))).collect();
        for gathered in gather(&traces, bodies, &mut |_| Vec::new()) {
            lower_floors(&mut floor, &gathered.locations);
            if gathered.expired > 0 {
                tracing::error!(
                    spans = gathered.expired,
                    "kept spans are gone from journal and archive alike"
                );
            }
            if let Some(mut fragment) = gathered.fragment {
                fragment.end = latest_end(&fragment.otlp);
                archive.insert(fragment);
            }
        }
    }
    floor
}

fn as_kept(trace: &KeptDecision) -> KeptTrace {
    KeptTrace {
        tenant: trace.tenant.clone(),
        trace_id: trace.trace_id,
        trace_start: trace.trace_start,
        end: UnixNanos(0),
        decided_at: trace.decided_at,
        reason: trace.reason,
        threshold: trace.threshold,
        complete: trace.complete,
        // The decision names only spans that were no copies, so there is nothing to compare with.
        late: false,
        spans: trace.spans.iter().map(|&location| KeptSpan { location, body: None }).collect(),
    }
}

fn latest_end(otlp: &[u8]) -> UnixNanos {
    let mut end = 0;
    let result = ingest_otlp::visit_spans(otlp, &mut |_, span, _| {
        end = end.max(span.start.0.saturating_add(span.duration_ns));
    });
    if let Err(error) = result {
        tracing::error!(%error, "gathered fragment cannot be read");
    }
    UnixNanos(end)
}

/// Gives the journal of one partition to the shards again, from `from` on. Returns how many records and spans it read.
pub(crate) fn replay(
    partition: PartitionId,
    reader: &Reader<RealDisk>,
    from: Offset,
    symbols: &Symbols,
    feeder: &mut Feeder,
) -> (u64, u64) {
    let mut cache = symbols.cache();
    let (mut records, mut spans) = (0, 0);
    for record in reader.scan(from.max(reader.start_offset())) {
        let batch = record.map_err(|error| error.to_string()).and_then(|(offset, payload)| {
            let record = BodyRecord::decode(payload).map_err(|error| error.to_string())?;
            let bytes = bodies::plain(&record).map_err(|error| error.to_string())?;
            let mut runs = SpanRuns::default();
            let mut containers = Containers::default();
            ingest_otlp::summarise(&bytes, &mut cache, &mut containers, &mut |span| runs.push(&span))
                .map_err(|error| error.to_string())?;
            let body = Arc::new(Body { bytes, containers });
            let BodyRecord { tenant, refused, .. } = record;
            Ok(Batch { partition, offset, tenant, body, holders: 1, refused, spans: runs })
        });
        match batch {
            Ok(batch) => {
                records += 1;
                spans += batch.spans.len() as u64;
                feeder.feed(batch);
            }
            Err(error) => tracing::error!(%partition, %error, "journal record cannot be read again"),
        }
    }
    (records, spans)
}

/// What a data directory was made for. Shard numbers stand in every settlement record, so their count is fixed.
#[derive(serde::Serialize, serde::Deserialize)]
struct Meta {
    format: u32,
    shards: u16,
}

/// The format of the data directory as a whole.
const META_FORMAT: u32 = 1;

/// The number of shards of this data directory: what it was made with, or `wanted` if it is new.
pub(crate) fn shards_of(data_dir: &Path, wanted: u16) -> Result<u16, Error> {
    if let Some(shards) = shards_known(data_dir)? {
        return Ok(shards);
    }
    let path = data_dir.join("meta.json");
    let wrong = |problem: String| Error::DataDir { path: path.clone(), problem };
    let text = serde_json::to_string(&Meta { format: META_FORMAT, shards: wanted })
        .map_err(|error| wrong(error.to_string()))?;
    write_durably(&path, text.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    Ok(wanted)
}

/// How many shards a data directory was made for; `None` when it is still to be made.
pub(crate) fn shards_known(data_dir: &Path) -> Result<Option<u16>, Error> {
    let path = data_dir.join("meta.json");
    let wrong = |problem: String| Error::DataDir { path: path.clone(), problem };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let meta: Meta = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if meta.format != META_FORMAT || meta.shards == 0 {
        return Err(wrong(format!("format {} is not known to this version", meta.format)));
    }
    Ok(Some(meta.shards))
}

/// Writes a small file so that after a crash it is there whole or not at all.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
