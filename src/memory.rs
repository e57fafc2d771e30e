//! What each core may hold in memory, fixed at start: said in the log, by `doctor` and in `/metrics`. Allocates nothing of it.

use std::fmt;

use ingest_aggregator::Limits;
use ingest_receiver::{DriverChoice, ReceiverConfig, ThreadMemory, driver};

use crate::cli::human_bytes;
use crate::config::{Config, DROPPED_MEMORY_BYTES, KEPT_MEMORY_BYTES};

/// Remembered decisions stand in two generations.
const GENERATIONS: usize = 2;

/// One core's memory, by what it is for: what it takes at start, then the most it may come to hold. What all cores share
/// (requests in flight, bodies of live traces) counts with each one's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoreMemory(Vec<(&'static str, u64)>);

impl CoreMemory {
    /// Of each of `cores` cores under `config`, received for by `chosen`.
    pub(crate) fn of(
        config: &Config,
        receiver: &ReceiverConfig,
        chosen: DriverChoice,
        cores: u16,
        memory_bytes: u64,
    ) -> Self {
        let ThreadMemory { receive_buffer_bytes, ring_bytes } = driver::thread_memory(receiver, chosen);
        let Limits {
            live_bytes_max,
            body_bytes_max,
            kept_remembered_max,
            dropped_remembered_max,
            trace_spans_max: _,
        } = config.shard(cores, memory_bytes).limits;
        let remembered = GENERATIONS
            * (kept_remembered_max * KEPT_MEMORY_BYTES + dropped_remembered_max * DROPPED_MEMORY_BYTES);
        let parts = [
            ("receive buffers", receive_buffer_bytes),
            ("receive rings", ring_bytes),
            ("requests in flight", receiver.inflight_bytes_max / usize::from(cores.max(1))),
            ("free memory for bodies", receiver.pooled_bytes()),
            ("batches between threads", Config::ring_bytes_max(cores, memory_bytes)),
            ("live traces", live_bytes_max),
            ("bodies of live traces", body_bytes_max),
            ("remembered decisions", remembered),
            ("open archive segments", 2 * config.open_segment_bytes(cores, memory_bytes)),
        ];
        let sized = parts.into_iter().map(|(what, bytes)| (what, bytes as u64));
        Self(sized.chain([("journal queue", config.journal.queue_bytes.0)]).collect())
    }

    /// What it is for, and how much.
    pub(crate) fn parts(&self) -> &[(&'static str, u64)] {
        &self.0
    }
}

impl fmt::Display for CoreMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.0.iter().map(|&(what, bytes)| format!("{what} {}", human_bytes(bytes))).collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpus::Cpus;

    fn of(cores: u16, memory_bytes: u64) -> CoreMemory {
        let config = Config::default();
        let receiver = config.receiver(cores, &Cpus::choose(&[], cores), memory_bytes);
        CoreMemory::of(&config, &receiver, DriverChoice::Epoll, cores, memory_bytes)
    }

    #[test]
    fn all_cores_together_stay_within_the_budget() {
        for cores in [1, 2, 16] {
            let memory = of(cores, 16 << 30);
            let each: u64 = memory.parts().iter().map(|(_, bytes)| bytes).sum();
            // The journal's queue holds requests in flight, which are counted already.
            let queue = memory.parts().iter().find(|(what, _)| *what == "journal queue").unwrap().1;
            assert!((each - queue) * u64::from(cores) <= 16 << 30, "{cores} cores: {memory}");
        }
    }

    #[test]
    fn it_reads_as_people_write_it() {
        let said = of(1, 1 << 30).to_string();
        assert!(
            said.contains("live traces 204.8 MiB, ") && said.ends_with("journal queue 64.0 MiB"),
            "{said}"
        );
    }
}
