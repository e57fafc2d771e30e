//! What the kernel says about a process: processor time and memory. Reads `/proc`, and changes one thing: how many files
//! this process may open.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::error::Error;

/// Processor time, as the kernel accounts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct CpuTime {
    /// In the process's own code.
    pub(crate) user: Duration,
    /// In the kernel on its behalf.
    pub(crate) system: Duration,
}

impl CpuTime {
    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    /// User and system together.
    pub(crate) fn total(self) -> Duration {
        self.user + self.system
    }

    /// Divided over `spans`, in nanoseconds.
    pub(crate) fn per_span(self, spans: u64) -> CpuPerSpan {
        #[expect(clippy::cast_precision_loss, reason = "a quotient for people")]
        let each = |time: Duration| time.as_secs_f64() * 1e9 / spans.max(1) as f64;
        CpuPerSpan { user: each(self.user), system: each(self.system), total: each(self.total()) }
    }
}

/// Nanoseconds of processor time a span.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CpuPerSpan {
    pub(crate) user: f64,
    pub(crate) system: f64,
    pub(crate) total: f64,
}

/// A process that is being watched.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    directory: PathBuf,
}

impl Process {
    /// The process `pid`.
    pub(crate) fn new(pid: u32) -> Self {
        Self { directory: PathBuf::from(format!("/proc/{pid}")) }
    }

    /// This program.
    pub(crate) fn own() -> Self {
        Self::new(std::process::id())
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.directory.join(file);
        fs::read_to_string(&path).map_err(|source| Error::File { path, source })
    }

    /// Its processor time so far, threads that ended included.
    ///
    /// # Errors
    /// [`Error::File`] when the process is gone.
    pub(crate) fn cpu(&self) -> Result<CpuTime, Error> {
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        parse_stat(&self.read("stat")?, ticks_per_second).ok_or(Error::Malformed { what: "/proc/PID/stat" })
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// [`Error::File`] when the process is gone.
    pub(crate) fn resident_bytes(&self) -> Result<u64, Error> {
        let statm = self.read("statm")?;
        let pages: Option<u64> = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok());
        let page = rustix::param::page_size() as u64;
        pages.map(|pages| pages * page).ok_or(Error::Malformed { what: "/proc/PID/statm" })
    }
}

/// Lets this process have as many files open as it may allow itself: every connection is one.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Who may not raise it meets the old limit, and is then told which file could not be opened.
    let _stays = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Fields 14 and 15, counted after the command's closing bracket (the command may hold anything).
fn parse_stat(stat: &str, ticks_per_second: u64) -> Option<CpuTime> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace().skip(11);
    let mut ticks = || -> Option<Duration> {
        let ticks: u64 = fields.next()?.parse().ok()?;
        Some(Duration::from_nanos(ticks * (1_000_000_000 / ticks_per_second.max(1))))
    };
    Some(CpuTime { user: ticks()?, system: ticks()? })
}

/// Time that processors spent in interrupts, which no process is charged for.
///
/// # Errors
/// [`Error::File`] when `/proc/stat` cannot be read.
pub(crate) fn interrupt_time(cpus: &[usize]) -> Result<Duration, Error> {
    let path = PathBuf::from("/proc/stat");
    let stat = fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
    let nanos = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_nanos(parse_interrupt_ticks(&stat, cpus) * nanos))
}

/// `cpuN user nice system idle iowait irq softirq ...`
fn parse_interrupt_ticks(stat: &str, cpus: &[usize]) -> u64 {
    let of = |line: &str| -> Option<u64> {
        let mut fields = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let cpu: usize = fields.next()?.parse().ok()?;
        let ticks = fields.skip(5).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        cpus.contains(&cpu).then_some(ticks)
    };
    stat.lines().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_command_name() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 5";
        let expected = CpuTime { user: Duration::from_millis(2_500), system: Duration::from_millis(500) };
        assert_eq!(parse_stat(stat, 100), Some(expected));
        assert_eq!(parse_stat("42 (a", 100), None);
    }

    #[test]
    fn interrupts_are_summed_over_the_processors_asked_for() {
        let stat = "cpu  9 9 9 9 9 9 9 0\ncpu0 1 2 3 4 5 6 7 8\ncpu1 1 2 3 4 5 10 20 8\nintr 5";
        assert_eq!(parse_interrupt_ticks(stat, &[0]), 13);
        assert_eq!(parse_interrupt_ticks(stat, &[0, 1]), 43);
    }

    #[test]
    fn this_process_uses_memory() {
        let own = Process::own();
        assert!(own.resident_bytes().unwrap() > 100_000);
        assert!(own.cpu().is_ok());
    }
}
