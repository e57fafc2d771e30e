//! What the journal keeps: the thread that removes its oldest segments, beside the one that writes, and the floors below which
//! nobody needs them. Which segments go is for `store_log` to choose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use store_log::{RealDisk, Remover, Retention};
use store_model::{Offset, PartitionId, ShardId, SpanLocation, UnixNanos};

use crate::clock;
use crate::gate::Gate;

/// How often retention is looked after: a fast core fills three segments a second.
const INTERVAL: Duration = Duration::from_millis(200);

/// Between two steps of giving space back, so that commits have the disk for themselves most of the time.
const PAUSE: Duration = Duration::from_millis(10);

/// Up to where each shard still needs each partition: retention stays below.
#[derive(Debug)]
pub(crate) struct Floors {
    /// One row per shard, one column per partition.
    cells: Vec<Vec<AtomicU64>>,
}

impl Floors {
    pub(crate) fn new(shards: u16) -> Self {
        let row = || (0..shards).map(|_| AtomicU64::new(0)).collect();
        Self { cells: (0..shards).map(|_| row()).collect() }
    }

    /// `shard` needs nothing of `partition` below `offset` any more.
    pub(crate) fn set(&self, shard: ShardId, partition: PartitionId, offset: Offset) {
        self.cells[usize::from(shard.0)][usize::from(partition.0)].store(offset.0, Ordering::Relaxed);
    }

    /// What no shard needs any more lies below.
    pub(crate) fn floor(&self, partition: PartitionId) -> Offset {
        let column = self.cells.iter().map(|row| row[usize::from(partition.0)].load(Ordering::Relaxed));
        Offset(column.min().unwrap_or(0))
    }
}

/// Takes the records at `places` into account, per partition: they are needed as long as the floor is not raised again.
pub(crate) fn lower_floors(floors: &mut [Option<Offset>], places: &[SpanLocation]) {
    for place in places {
        let floor = &mut floors[usize::from(place.partition.0)];
        *floor = Some(floor.map_or(place.offset, |floor| floor.min(place.offset)));
    }
}

/// The state of one partition's thread.
pub(crate) struct RetentionThread {
    pub(crate) partition: PartitionId,
    pub(crate) retention: Retention,
    pub(crate) remover: Remover<RealDisk>,
    pub(crate) floors: Arc<Floors>,
    pub(crate) gate: Arc<Gate>,
    /// Looked at whenever the thread is woken.
    pub(crate) stop: Arc<AtomicBool>,
}

impl RetentionThread {
    /// Runs until it is told to stop.
    pub(crate) fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            // While segments went, others may have become too many.
            if !self.look(clock::unix()) {
                std::thread::park_timeout(INTERVAL);
            }
        }
    }

    /// Removes what may go, and has ingest wait while what must stay is too much. Says whether anything went.
    fn look(&self, now: UnixNanos) -> bool {
        let Self { partition, retention, remover, floors, gate, stop } = self;
        let segments = remover.reader().segments();
        let chosen = store_log::choose(&segments, retention, floors.floor(*partition), now);
        let name = format!("journal budget {partition}");
        if store_log::over_budget(&segments, &chosen, retention) {
            gate.close(&name, "the journal is at journal.retention.max_bytes and all of it is still needed");
        } else {
            gate.open(&name);
        }
        let (mut segments, mut bytes) = (0, 0);
        // One by one: who changed the budget may have chosen hundreds, and a stop waits for one at the most.
        for base in chosen.iter().take_while(|_| !stop.load(Ordering::Acquire)) {
            match remover.remove(&[*base], &mut || clock::sleep(PAUSE)) {
                Ok(freed) => (segments, bytes) = (segments + 1, bytes + freed),
                Err(error) => {
                    tracing::warn!(%partition, %error, "expired journal segment could not be removed");
                    return false;
                }
            }
        }
        if segments > 0 {
            tracing::info!(%partition, segments, bytes, "journal segments expired");
        }
        segments > 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use store_log::{PartitionOptions, Sync, Writer};

    use super::*;

    const PARTITION: PartitionId = PartitionId(0);

    #[test]
    fn what_nobody_needs_goes_and_ingest_waits_for_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let options = PartitionOptions {
            directory: directory.path().to_owned(),
            segment_bytes_max: 16 << 10,
            ..PartitionOptions::default()
        };
        let (mut writer, _) = Writer::open(RealDisk, options, Offset(0), UnixNanos(1)).unwrap();
        for _ in 0..10 {
            writer.append([Bytes::from(vec![7; 9_000]), Bytes::new()]);
            writer.commit(Sync::Durable, UnixNanos(2)).unwrap();
        }
        let thread = RetentionThread {
            partition: PARTITION,
            retention: Retention { age_max: Duration::MAX, bytes_max: 48 << 10 },
            remover: writer.remover(),
            floors: Arc::new(Floors::new(2)),
            gate: Arc::default(),
            stop: Arc::default(),
        };
        let start = || writer.reader().start_offset();
        thread.floors.set(ShardId(0), PARTITION, Offset(10));
        thread.floors.set(ShardId(1), PARTITION, Offset(3));
        assert!(thread.look(UnixNanos(3)));
        assert_eq!(start(), Offset(3), "one of the shards needs the rest");
        assert!(!thread.look(UnixNanos(3)));
        assert!(thread.gate.reason().is_some_and(|reason| reason.contains("journal.retention.max_bytes")));
        thread.floors.set(ShardId(1), PARTITION, Offset(10));
        assert!(thread.look(UnixNanos(3)));
        assert!(start() > Offset(6), "{:?}", start());
        assert_eq!(thread.gate.reason(), None);
    }
}
