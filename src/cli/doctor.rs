//! `sluicebox doctor`: what this host offers, why features are on or off, and what the data directory holds. Changes nothing.

use std::path::Path;

use ingest_receiver::{DriverChoice, ZeroCopy, driver};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use store_archive::Archive;
use store_log::{Reader, RealDisk, SegmentInfo};

use super::table::{self, Table};
use super::{DoctorArgs, Failure};
use crate::appliance::{cores_allowed, cores_wanted, memory_limit};
use crate::clock;
use crate::config::{Config, TlsSection};
use crate::cpus::Cpus;
use crate::identities::{self, Named};
use crate::memory::CoreMemory;
use crate::recover;

/// A certificate with less left than this is due: renewal services work a month ahead.
const EXPIRY_SOON_SECONDS: u64 = 14 * 86_400;

/// A check and what it found.
struct Finding {
    name: &'static str,
    state: State,
    detail: String,
    /// For programs: what of it they would have to read out of the sentence.
    values: Option<Value>,
}

impl Finding {
    fn new(name: &'static str, state: State, detail: impl Into<String>) -> Self {
        Self { name, state, detail: detail.into(), values: None }
    }

    fn with(self, values: Value) -> Self {
        Self { values: Some(values), ..self }
    }

    fn to_json(&self) -> Value {
        let Self { name, state, detail, values } = self;
        let mut entry = json!({ "check": name, "state": state.word(), "detail": detail });
        if let Some(values) = values {
            entry["values"] = values.clone();
        }
        entry
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Note,
    Bad,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Bad => "BAD",
        }
    }
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let config =
        Config::load(args.config.as_deref()).map_err(|error| Failure::wrong_use(error.to_string()))?;
    let data_dir = crate::serve::data_dir(args.data_dir.as_deref(), &config);
    let mut findings = host(&config);
    findings.extend(receiver(&config, &data_dir));
    findings.extend(tls(&config));
    findings.extend(data(&data_dir));
    if args.json {
        println!("{}", Value::from_iter(findings.iter().map(Finding::to_json)));
    } else {
        let mut table = Table::default();
        for Finding { name, state, detail, values: _ } in &findings {
            table.row([state.word().to_owned(), (*name).to_owned(), detail.clone()]);
        }
        print!("{}", table.render());
    }
    let bad = findings.iter().filter(|finding| finding.state == State::Bad).count();
    if bad == 0 { Ok(()) } else { Err(Failure::not_possible(format!("{bad} check(s) are bad"))) }
}

fn host(config: &Config) -> Vec<Finding> {
    let kernel = rustix::system::uname();
    let kernel = format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy());
    vec![
        Finding::new("kernel", State::Ok, kernel),
        Finding::new("cores", State::Ok, format!("{} allowed by the affinity mask", cores_allowed())),
        Finding::new("memory", State::Ok, format!("budget {}", table::bytes(memory_limit(config)))),
        io_uring(),
    ]
}

/// What the fastest driver would need, whether or not it is asked for.
fn io_uring() -> Finding {
    let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let switch = switch.map_or_else(|_| "not there".to_owned(), |text| text.trim().to_owned());
    let limit = |resource, unit: fn(u64) -> String| {
        getrlimit(resource).current.map_or_else(|| "unlimited".to_owned(), unit)
    };
    let (files, locked) =
        (limit(Resource::Nofile, |files| files.to_string()), limit(Resource::Memlock, table::bytes));
    let around = format!(
        "kernel.io_uring_disabled {switch}, open files (ulimit -n) {files}, locked memory (ulimit -l) {locked}"
    );
    let (state, said) = match driver::io_uring() {
        Ok(offer) => (State::Ok, format!("can be used: {offer}")),
        Err(reason) => (State::Note, format!("cannot be used: {reason}")),
    };
    Finding::new("io_uring", state, format!("{said} ({around})"))
        .with(json!({ "usable": state == State::Ok }))
}

/// What `serve` would receive with under this configuration, on this data directory. What is tried is given back.
fn receiver(config: &Config, data_dir: &Path) -> Vec<Finding> {
    let cores = match recover::shards_known(data_dir) {
        Ok(known) => known.unwrap_or_else(|| cores_wanted(config)),
        Err(error) => return vec![Finding::new("driver", State::Bad, error.to_string())],
    };
    let memory_bytes = memory_limit(config);
    let receiver = config.receiver(cores, &Cpus::choose(&config.receivers.cpus, cores), memory_bytes);
    let (chosen, because) = match driver::choose(receiver.driver) {
        Ok(chosen) => chosen,
        Err(error) => return vec![Finding::new("driver", State::Bad, error.to_string())],
    };
    let zero_copy = driver::zero_copy(&receiver, chosen);
    let (state, said) = match &zero_copy {
        Ok(()) => (State::Ok, "on: a network card gives a queue".to_owned()),
        Err(reason) if receiver.zero_copy == ZeroCopy::Off => (State::Ok, format!("off: {reason}")),
        Err(reason) => (State::Note, format!("off: {reason}")),
    };
    let memory = CoreMemory::of(config, &receiver, chosen, cores, memory_bytes);
    let detail = format!("{memory}; {cores} core(s), fixed at start");
    let parts: serde_json::Map<_, _> = memory
        .parts()
        .iter()
        .map(|&(what, bytes)| (what.replace(' ', "_") + "_bytes", json!(bytes)))
        .collect();
    vec![
        driver_finding(receiver.driver, chosen, &because),
        Finding::new("zero-copy", state, said).with(json!({ "on": zero_copy.is_ok() })),
        Finding::new("memory per core", State::Ok, detail).with(Value::Object(parts)),
    ]
}

/// The sentence that the log has at start.
fn driver_finding(wanted: DriverChoice, chosen: DriverChoice, because: &str) -> Finding {
    let values = json!({ "wanted": wanted.as_str(), "driver": chosen.as_str(), "because": because });
    Finding::new("driver", State::Ok, format!("{chosen}: {because}")).with(values)
}

/// Per listener: whether its connections are secured, and for how long its certificate is good.
fn tls(config: &Config) -> Vec<Finding> {
    let look = |(listener, section): Named<'_, TlsSection>| {
        let finding = |state, detail: String| Finding::new("tls", state, format!("{listener}: {detail}"));
        let Some(section) = section else {
            return finding(State::Ok, "off, connections are plain".to_owned());
        };
        let tls = match identities::load(listener, section) {
            Ok(tls) => tls,
            Err(problem) => return Finding::new("tls", State::Bad, problem),
        };
        let (ends, now) = (tls.expires_at_seconds(), clock::unix().0 / 1_000_000_000);
        let date = table::time(ends.saturating_mul(1_000_000_000));
        let clients = if section.client_ca_file.is_some() { ", clients must show one as well" } else { "" };
        match ends.checked_sub(now) {
            None => finding(State::Bad, format!("on, but its certificate ended {date} UTC")),
            Some(left) if left < EXPIRY_SOON_SECONDS => {
                finding(State::Note, format!("on, but its certificate ends soon: {date} UTC{clients}"))
            }
            Some(_) => finding(State::Ok, format!("on, certificate good until {date} UTC{clients}")),
        }
    };
    identities::sections(config).map(look).into()
}

fn data(data_dir: &Path) -> Vec<Finding> {
    if !data_dir.exists() {
        let detail = format!("{} does not exist yet", data_dir.display());
        return vec![Finding::new("data directory", State::Note, detail)];
    }
    let mut findings = Vec::new();
    match rustix::fs::statvfs(data_dir) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let state = if free < 1 << 30 { State::Bad } else { State::Ok };
            let detail = format!("{} free under {}", table::bytes(free), data_dir.display());
            findings.push(Finding::new("disk", state, detail));
        }
        Err(error) => findings.push(Finding::new("disk", State::Bad, error.to_string())),
    }
    findings.extend(log("journal", &data_dir.join("spans")));
    findings.extend(log("decisions", &data_dir.join("decisions")));
    findings.extend(archive(data_dir));
    findings
}

fn log(name: &'static str, directory: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for partition in subdirectories(directory) {
        match Reader::open(RealDisk, &partition) {
            Ok(reader) => findings.extend(segments(name, &partition, &reader.segments())),
            Err(error) => findings.push(Finding::new(name, State::Bad, error.to_string())),
        }
    }
    findings
}

fn segments(name: &'static str, partition: &Path, segments: &[SegmentInfo]) -> Vec<Finding> {
    let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let start = segments.first().map_or(0, |segment| segment.base_offset.0);
    let end = segments.last().map_or(0, |segment| segment.end_offset.0);
    let detail = format!(
        "{}: {} segment(s), {}, offsets {start}..{end}",
        partition.display(),
        segments.len(),
        table::bytes(bytes)
    );
    let mut findings = vec![Finding::new(name, State::Ok, detail)];
    for segment in segments {
        if let Some(reason) = &segment.quarantined {
            let detail = format!(
                "{} is quarantined: {reason}; what is whole in it stays readable",
                segment.path.display()
            );
            findings.push(Finding::new(name, State::Bad, detail));
        }
    }
    findings
}

fn archive(data_dir: &Path) -> Vec<Finding> {
    let directory = data_dir.join("traces");
    if !directory.exists() {
        return Vec::new();
    }
    let name = "archive";
    match Archive::inspect(&directory) {
        Ok(report) => {
            let detail =
                format!("{} sealed segment(s), {} of unknown version", report.segments, report.skipped.len());
            let mut findings = vec![Finding::new(name, State::Ok, detail)];
            findings.extend(report.quarantined.iter().map(|aside| {
                let detail = format!("{} is quarantined: {}", aside.path.display(), aside.cause);
                Finding::new(name, State::Bad, detail)
            }));
            findings
        }
        Err(error) => vec![Finding::new(name, State::Bad, error.to_string())],
    }
}

fn subdirectories(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}
