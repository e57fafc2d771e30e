//! `pairs`: puts results of `load` against the appliance beside results against the sink, taken in turns on one machine,
//! and reports the medians and their ratio.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::report::median;

/// Options of `pairs`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What was measured
    #[arg(long)]
    name: String,
    /// Results of `load` against the appliance
    #[arg(long, required = true, num_args = 1..)]
    appliance: Vec<PathBuf>,
    /// Results of `load` against the sink, in the same order
    #[arg(long, required = true, num_args = 1..)]
    sink: Vec<PathBuf>,
}

/// Both sides and what lies between them.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    name: String,
    appliance: Side,
    sink: Side,
    /// Processor time a span of the appliance, by that of the sink: the median of the pairs' ratios.
    cpu_ratio: f64,
}

/// Medians over the runs of one side; every run's result stands below them.
#[derive(Debug, Serialize)]
struct Side {
    spans_per_second: f64,
    cpu_ns_per_span: f64,
    cpu_user_ns_per_span: f64,
    cpu_system_ns_per_span: f64,
    /// After the warm-up, when memory has stopped growing.
    steady_cpu_ns_per_span: f64,
    /// With what was still done with the spans after the last answer.
    settled_cpu_ns_per_span: f64,
    interrupt_ns_per_span: f64,
    rss_bytes_max: f64,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
    latency_p999_ms: f64,
    latency_max_ms: f64,
    loss: f64,
    body_bytes_per_span: f64,
    runs: Vec<Value>,
}

const CPU: &str = "/result/server/cpu_ns_per_span/total";

/// Reads the results and reports.
///
/// # Errors
/// When a file is no result of `load`, or the sides have different numbers of runs.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let appliance = read_all(&args.appliance)?;
    let sink = read_all(&args.sink)?;
    if appliance.len() != sink.len() {
        return Err(Error::Options("a pair has two sides: give as many results of each".to_owned()));
    }
    let mut ratios = appliance
        .iter()
        .zip(&sink)
        .map(|(appliance, sink)| Ok(number(appliance, CPU)? / number(sink, CPU)?))
        .collect::<Result<Vec<f64>, Error>>()?;
    Ok(Report {
        name: args.name.clone(),
        cpu_ratio: median(&mut ratios),
        appliance: side(appliance)?,
        sink: side(sink)?,
    })
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Value>, Error> {
    let read = |path: &PathBuf| {
        let text = fs::read(path).map_err(|source| Error::File { path: path.clone(), source })?;
        serde_json::from_slice(&text).map_err(|_not_json| Error::Malformed { what: "result" })
    };
    paths.iter().map(read).collect()
}

fn number(result: &Value, pointer: &str) -> Result<f64, Error> {
    let found = result.pointer(pointer).and_then(Value::as_f64);
    found.ok_or(Error::Malformed { what: "result of load with --server-pid" })
}

fn side(runs: Vec<Value>) -> Result<Side, Error> {
    let of = |pointer: &str| -> Result<f64, Error> {
        let mut values = runs.iter().map(|run| number(run, pointer)).collect::<Result<Vec<f64>, Error>>()?;
        Ok(median(&mut values))
    };
    Ok(Side {
        spans_per_second: of("/result/spans_per_second")?,
        cpu_ns_per_span: of(CPU)?,
        cpu_user_ns_per_span: of("/result/server/cpu_ns_per_span/user")?,
        cpu_system_ns_per_span: of("/result/server/cpu_ns_per_span/system")?,
        steady_cpu_ns_per_span: of("/result/server/steady_cpu_ns_per_span/total")?,
        settled_cpu_ns_per_span: of("/result/server/settled_cpu_ns_per_span/total")?,
        interrupt_ns_per_span: of("/result/server/interrupt_ns_per_span")?,
        rss_bytes_max: of("/result/server/rss_bytes_max")?,
        latency_p50_ms: of("/result/latency/p50_ms")?,
        latency_p99_ms: of("/result/latency/p99_ms")?,
        latency_p999_ms: of("/result/latency/p999_ms")?,
        latency_max_ms: of("/result/latency/max_ms")?,
        loss: of("/result/loss")?,
        body_bytes_per_span: of("/result/body_bytes_per_span")?,
        runs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(cpu: f64) -> Value {
        json!({"result": {
            "spans_per_second": 1e9 / cpu, "loss": 0.0, "body_bytes_per_span": 410.0,
            "latency": {"p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0, "max_ms": 4.0},
            "server": {
                "cpu_ns_per_span": {"user": cpu / 2.0, "system": cpu / 2.0, "total": cpu},
                "steady_cpu_ns_per_span": {"total": cpu - 1.0},
                "settled_cpu_ns_per_span": {"total": cpu + 1.0},
                "interrupt_ns_per_span": 5.0, "rss_bytes_max": 1_000_000,
            },
        }})
    }

    #[test]
    fn medians_and_ratios_are_those_of_the_pairs() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, cpu: f64| {
            let path = dir.path().join(name);
            fs::write(&path, result(cpu).to_string()).unwrap();
            path
        };
        let mut args = Args {
            name: "s-plain".to_owned(),
            appliance: vec![write("a1", 500.0), write("a2", 700.0), write("a3", 600.0)],
            sink: vec![write("b1", 100.0), write("b2", 100.0), write("b3", 200.0)],
        };
        let report = run(&args).unwrap();
        assert!((report.appliance.cpu_ns_per_span - 600.0).abs() < 1e-9);
        assert!((report.cpu_ratio - 5.0).abs() < 1e-9, "{}", report.cpu_ratio);
        args.sink.pop();
        assert!(run(&args).is_err());
    }
}
