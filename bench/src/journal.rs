//! `journal`: how fast `store-log` makes bodies durable, beside what the disk itself can do with the same bytes.
//!
//! Both take turns on one disk in one run, since a disk's speed is the day's, the neighbour's and the file system's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use serde::Serialize;
use store_log::{BodyRecord, PartitionOptions, RealDisk, Sync, Writer};
use store_model::{Encoding, Offset, Tenant, UnixNanos};

use crate::clock::{self, parse_duration};
use crate::error::Error;
use crate::latency::{Latencies, Quantiles};
use crate::plan::{Plan, PlanOptions};
use crate::process::Process;
use crate::report::{median, per_second};
use crate::shape::Shape;
use crate::template::GRPC_PREFIX;

/// No round writes more, however long it may take.
const ROUND_BYTES_MAX: u64 = 4 << 30;

/// As the journal's segments.
const FILE_BYTES: u64 = 256 << 20;

/// Writes large enough that the time of a sync does not show.
const LARGE_BYTES: usize = 8 << 20;

/// Options of `journal`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A directory on the disk to measure; what is written there is removed again
    #[arg(long)]
    dir: PathBuf,
    /// Bytes of bodies before each commit
    #[arg(long, default_value_t = 1 << 20)]
    group_bytes: u64,
    /// Rounds of journal, disk in the same groups, disk in large writes
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of a round's part
    #[arg(long, default_value = "4s", value_parser = parse_duration)]
    duration: Duration,
    /// Spans of a body, shape S
    #[arg(long, default_value_t = 500)]
    spans_per_request: u32,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    directory: PathBuf,
    group_bytes: u64,
    body_bytes: usize,
    /// `store-log`: append and commit.
    journal: Rate,
    /// pwrite and fdatasync of the same groups into a preallocated file.
    disk_same_groups: Rate,
    /// The same in large writes: the disk's own sequential rate.
    disk_large_writes: Rate,
    /// Medians of the rounds' quotients.
    journal_to_disk_same_groups: f64,
    journal_to_disk_large_writes: f64,
    /// Processor time of the journal for a byte, in nanoseconds a kibibyte.
    journal_cpu_ns_per_kib: f64,
}

/// Medians over the rounds; latencies over all of them.
#[derive(Debug, Serialize)]
struct Rate {
    megabytes_per_second: f64,
    syncs_per_second: f64,
    /// Of a write and its sync.
    latency: Quantiles,
}

/// One part of a round.
struct Part {
    bytes: u64,
    syncs: u64,
    seconds: f64,
    cpu: Duration,
}

impl Part {
    fn rate(&self) -> f64 {
        per_second(self.bytes, self.seconds)
    }
}

/// The parts of one kind.
struct Parts {
    parts: Vec<Part>,
    latencies: Latencies,
}

impl Parts {
    fn new() -> Self {
        Self { parts: Vec::new(), latencies: Latencies::new() }
    }

    fn report(&self) -> Rate {
        let of = |value: fn(&Part) -> f64| median(&mut self.parts.iter().map(value).collect::<Vec<_>>());
        Rate {
            megabytes_per_second: of(|part| part.rate() / 1e6),
            syncs_per_second: of(|part| per_second(part.syncs, part.seconds)),
            latency: self.latencies.quantiles(),
        }
    }

    fn against(&self, other: &Self) -> f64 {
        let quotients = self.parts.iter().zip(&other.parts).map(|(mine, theirs)| mine.rate() / theirs.rate());
        median(&mut quotients.collect::<Vec<_>>())
    }
}

/// Writes, in turns, and reports.
///
/// # Errors
/// When the disk or the journal fails.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let bodies = bodies(args.spans_per_request)?;
    let scratch = args.dir.join(format!("journal-bench-{}", std::process::id()));
    let group = usize::try_from(args.group_bytes).unwrap_or(LARGE_BYTES);
    let (mut journal, mut same, mut large) = (Parts::new(), Parts::new(), Parts::new());
    for round in 1..=args.rounds.max(1) {
        eprintln!("round {round} of {}", args.rounds);
        in_directory(&scratch, || write_journal(args, &bodies, &scratch, &mut journal))?;
        in_directory(&scratch, || write_file(args.duration, group, &bodies, &scratch, &mut same))?;
        in_directory(&scratch, || write_file(args.duration, LARGE_BYTES, &bodies, &scratch, &mut large))?;
    }
    let cpu: Duration = journal.parts.iter().map(|part| part.cpu).sum();
    let bytes: u64 = journal.parts.iter().map(|part| part.bytes).sum();
    Ok(Report {
        directory: args.dir.clone(),
        group_bytes: args.group_bytes,
        body_bytes: bodies[0].len(),
        journal_to_disk_same_groups: journal.against(&same),
        journal_to_disk_large_writes: journal.against(&large),
        journal_cpu_ns_per_kib: cpu.as_secs_f64() * 1e9 / (bytes.max(1) as f64 / 1024.0),
        journal: journal.report(),
        disk_same_groups: same.report(),
        disk_large_writes: large.report(),
    })
}

/// Bodies of shape S, some ten megabytes of them.
fn bodies(spans_per_request: u32) -> Result<Vec<Bytes>, Error> {
    let shape = Shape::S;
    let plan = Plan::new(PlanOptions {
        shape,
        spans_per_request,
        spans_per_trace: shape.spans_per_trace_default(),
        services: shape.services_default(),
        errors: 0.01,
        slow: 0.01,
        late: 0.0,
        no_root: 0.0,
        out_of_order: false,
        seed: 1,
    })?;
    let body = |group| Bytes::from(plan.body(group, 0, clock::unix_nanos()).split_off(GRPC_PREFIX));
    Ok((0..plan.groups.len() as u64).map(body).collect())
}

/// Runs `part` in a new directory and removes it, whatever came of it.
fn in_directory<T>(directory: &Path, part: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let failed = |source| Error::File { path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    let result = part();
    fs::remove_dir_all(directory).map_err(failed)?;
    result
}

fn write_journal(args: &Args, bodies: &[Bytes], directory: &Path, parts: &mut Parts) -> Result<(), Error> {
    let failed = |error: store_log::Error| Error::Stage { stage: "journal", cause: error.to_string() };
    let now = || UnixNanos(clock::unix_nanos());
    let options = PartitionOptions { directory: directory.to_owned(), ..PartitionOptions::default() };
    let (mut writer, _recovery) = Writer::open(RealDisk, options, Offset(0), now()).map_err(failed)?;
    let mut bodies = bodies.iter().cycle();
    write_part(args.duration, parts, || {
        let mut bytes = 0;
        while bytes < args.group_bytes {
            let Some(body) = bodies.next() else { break };
            let record = BodyRecord {
                tenant: Tenant::default(),
                arrived_at: now(),
                encoding: Encoding::Identity,
                span_count: args.spans_per_request,
                refused: 0,
                body: body.clone(),
            };
            bytes += body.len() as u64;
            writer.append([Bytes::from(record.encode_head()), record.body]);
        }
        writer.commit(Sync::Durable, now()).map_err(failed)?;
        Ok(bytes)
    })
}

fn write_file(
    duration: Duration,
    group_bytes: usize,
    bodies: &[Bytes],
    directory: &Path,
    parts: &mut Parts,
) -> Result<(), Error> {
    let group: Vec<u8> =
        bodies.iter().cycle().flat_map(|body| body.iter().copied()).take(group_bytes).collect();
    let mut files = 0;
    let mut file = new_file(directory, files)?;
    let mut position = 0;
    write_part(duration, parts, || {
        if position + group.len() as u64 > FILE_BYTES {
            files += 1;
            (file, position) = (new_file(directory, files)?, 0);
        }
        let failed = |source| Error::File { path: directory.to_owned(), source };
        file.write_all_at(&group, position).map_err(failed)?;
        fdatasync(&file).map_err(|errno| failed(errno.into()))?;
        position += group.len() as u64;
        Ok(group.len() as u64)
    })
}

fn new_file(directory: &Path, number: u32) -> Result<File, Error> {
    let path = directory.join(format!("{number}.raw"));
    let failed = |source| Error::File { path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES).map_err(|errno| failed(errno.into()))?;
    Ok(file)
}

/// Repeats `write`, which returns how many bytes it made durable, until the time or the bytes of a round are used up.
fn write_part(
    duration: Duration,
    parts: &mut Parts,
    mut write: impl FnMut() -> Result<u64, Error>,
) -> Result<(), Error> {
    let cpu_before = Process::own().cpu()?;
    let start = clock::now();
    let mut part = Part { bytes: 0, syncs: 0, seconds: 0.0, cpu: Duration::ZERO };
    while start.elapsed() < duration && part.bytes < ROUND_BYTES_MAX {
        let (bytes, took) = clock::timed(&mut write);
        parts.latencies.record(took);
        part.bytes += bytes?;
        part.syncs += 1;
    }
    part.seconds = start.elapsed().as_secs_f64();
    part.cpu = Process::own().cpu()?.since(cpu_before).total();
    parts.parts.push(part);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_and_disk_take_turns_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let report = run(&Args {
            dir: dir.path().to_owned(),
            group_bytes: 100_000,
            rounds: 2,
            duration: Duration::from_millis(50),
            spans_per_request: 50,
        })
        .unwrap();
        assert!(
            report.journal.megabytes_per_second > 0.0 && report.disk_large_writes.megabytes_per_second > 0.0
        );
        assert!(report.journal.latency.count >= 2 && report.journal_to_disk_same_groups > 0.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
