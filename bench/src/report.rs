//! What every result says about itself: which code, which machine, which command, when.

use std::fs;
use std::process::Command;

use serde::Serialize;
use serde_json::{Value, json};

use crate::clock;

#[derive(Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    memory_bytes: u64,
}

fn machine() -> Machine {
    let first_value = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory = first_value("/proc/meminfo", "MemTotal");
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let cores = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Machine {
        cpu: first_value("/proc/cpuinfo", "model name"),
        cores: cores.lines().filter(|line| line.starts_with("processor")).count(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        memory_bytes: kib * 1024,
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    // Where the sources stood when this was built; elsewhere the commit stays empty rather than wrong.
    let output =
        Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A result of `subcommand`: what it measured, beside where and when.
pub(crate) fn result(subcommand: &str, measured: &impl Serialize) -> Value {
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    json!({
        "bench": subcommand,
        "commit": git(&["rev-parse", "HEAD"]),
        "dirty": dirty,
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "machine": machine(),
        "date": clock::utc(clock::unix_nanos() / 1_000_000_000),
        "result": measured,
    })
}

/// `count` by `seconds`.
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a quotient for people")]
    let count = count as f64;
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

/// The middle one of `values`, which are put in order; 0 when there is none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_names_its_machine_and_its_moment() {
        let result = result("walk", &json!({"ns": 1}));
        assert!(result["machine"]["cores"].as_u64().unwrap() > 0);
        assert!(result["machine"]["memory_bytes"].as_u64().unwrap() > 0);
        assert!(result["date"].as_str().unwrap().ends_with('Z'));
        assert_eq!(result["result"]["ns"], 1);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&mut []).abs() < f64::EPSILON);
    }
}
