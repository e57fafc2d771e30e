//! `sluicebox doctor`: what this host offers, why features are on or off, and what the data directory holds. Changes nothing.

use std::path::Path;

use serde_json::{Value, json};
use store_archive::Archive;
use store_log::{Reader, RealDisk, SegmentInfo};

use super::table::{self, Table};
use super::{DoctorArgs, Failure};
use crate::appliance::{cores_allowed, memory_limit};
use crate::clock;
use crate::config::{Config, TlsSection};
use crate::identities::{self, Named};

/// A certificate with less left than this is due: renewal services work a month ahead.
const EXPIRY_SOON_SECONDS: u64 = 14 * 86_400;

/// A check and what it found.
struct Finding {
    name: &'static str,
    state: State,
    detail: String,
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
    findings.extend(tls(&config));
    findings.extend(data(&data_dir));
    if args.json {
        let entry = |finding: &Finding| json!({ "check": finding.name, "state": finding.state.word(), "detail": finding.detail });
        println!("{}", Value::from_iter(findings.iter().map(entry)));
    } else {
        let mut table = Table::default();
        for Finding { name, state, detail } in &findings {
            table.row([state.word().to_owned(), (*name).to_owned(), detail.clone()]);
        }
        print!("{}", table.render());
    }
    let bad = findings.iter().filter(|finding| finding.state == State::Bad).count();
    if bad == 0 { Ok(()) } else { Err(Failure::not_possible(format!("{bad} check(s) are bad"))) }
}

fn host(config: &Config) -> Vec<Finding> {
    let finding = |name, state, detail| Finding { name, state, detail };
    let kernel = rustix::system::uname();
    let memory = memory_limit(config);
    let io_uring = match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(text) if text.trim() == "0" => {
            "offered by the kernel; this version receives through the portable driver only"
        }
        Ok(_) => "switched off by kernel.io_uring_disabled; the portable driver does not need it",
        Err(_) => "not offered by this kernel; the portable driver does not need it",
    };
    vec![
        finding(
            "kernel",
            State::Ok,
            format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
        ),
        finding("cores", State::Ok, format!("{} allowed by the affinity mask", cores_allowed())),
        finding("memory", State::Ok, format!("budget {}", table::bytes(memory))),
        finding("driver", State::Ok, "portable (tokio, hyper), thread per core, SO_REUSEPORT".to_owned()),
        finding("io_uring", State::Note, io_uring.to_owned()),
    ]
}

/// Per listener: whether its connections are secured, and for how long its certificate is good.
fn tls(config: &Config) -> Vec<Finding> {
    let look = |(listener, section): Named<'_, TlsSection>| {
        let finding =
            |state, detail: String| Finding { name: "tls", state, detail: format!("{listener}: {detail}") };
        let Some(section) = section else {
            return finding(State::Ok, "off, connections are plain".to_owned());
        };
        let tls = match identities::load(listener, section) {
            Ok(tls) => tls,
            Err(problem) => return Finding { name: "tls", state: State::Bad, detail: problem },
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
    let finding = |name, state, detail| Finding { name, state, detail };
    if !data_dir.exists() {
        return vec![finding(
            "data directory",
            State::Note,
            format!("{} does not exist yet", data_dir.display()),
        )];
    }
    let mut findings = Vec::new();
    match rustix::fs::statvfs(data_dir) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let state = if free < 1 << 30 { State::Bad } else { State::Ok };
            findings.push(finding(
                "disk",
                state,
                format!("{} free under {}", table::bytes(free), data_dir.display()),
            ));
        }
        Err(error) => findings.push(finding("disk", State::Bad, error.to_string())),
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
            Err(error) => {
                findings.push(Finding { name, state: State::Bad, detail: error.to_string() });
            }
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
    let mut findings = vec![Finding { name, state: State::Ok, detail }];
    for segment in segments {
        if let Some(reason) = &segment.quarantined {
            let detail = format!(
                "{} is quarantined: {reason}; what is whole in it stays readable",
                segment.path.display()
            );
            findings.push(Finding { name, state: State::Bad, detail });
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
            let mut findings = vec![Finding { name, state: State::Ok, detail }];
            findings.extend(report.quarantined.iter().map(|aside| {
                let detail = format!("{} is quarantined: {}", aside.path.display(), aside.cause);
                Finding { name, state: State::Bad, detail }
            }));
            findings
        }
        Err(error) => vec![Finding { name, state: State::Bad, detail: error.to_string() }],
    }
}

fn subdirectories(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}
