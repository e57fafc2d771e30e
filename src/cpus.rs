//! Which CPU each ingest core runs on, and who goes first there. Moves threads and nothing else.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One CPU per ingest core; none when there are more cores than CPUs, which the kernel then spreads better.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpus(Vec<usize>);

/// The CPUs that the affinity mask of this process allows, so that `taskset` and cpusets are obeyed.
pub(crate) fn allowed() -> Vec<usize> {
    let mask = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect()
}

/// How far a thread stands back: it gets a quarter of the time when one other wants the same CPU, all of it when none does.
const NICE: i32 = 5;

/// Lets others go first on the CPU of this thread, for good: to come back takes a right that we may not have.
pub(crate) fn stand_back() {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::warn!(%error, "thread keeps its priority");
    }
}

impl Cpus {
    /// `listed` are those of the configuration; an empty list means all that are allowed.
    pub(crate) fn choose(listed: &[usize], cores: u16) -> Self {
        let mut cpus = if listed.is_empty() { allowed() } else { listed.to_vec() };
        if cpus.len() < usize::from(cores) {
            cpus.clear();
        }
        cpus.truncate(usize::from(cores));
        Self(cpus)
    }

    /// As the receiver wants them.
    pub(crate) fn list(&self) -> &[usize] {
        &self.0
    }

    /// Keeps this thread on the CPU of `core`. A wish, not a need: failing is logged.
    pub(crate) fn pin(&self, core: u16) {
        let Some(&cpu) = self.0.get(usize::from(core)) else { return };
        let mut one = CpuSet::new();
        one.set(cpu);
        if let Err(error) = sched_setaffinity(None, &one) {
            tracing::warn!(core, cpu, %error, "thread is not pinned");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_has_a_cpu_of_its_own_or_none_is_pinned() {
        assert_eq!(Cpus::choose(&[4, 2, 7], 2).list(), [4, 2]);
        assert!(Cpus::choose(&[4, 2, 7], 4).list().is_empty());
        assert_eq!(Cpus::choose(&[], 1).list(), &allowed()[..1]);
    }
}
