//! `matrix`: results of `load` for the cells, taken in turns against several servers, put together with their medians and
//! ratios. Measures nothing itself.
//!
//! The files are `<dir>/<cell>/<server>-<pass>.json`, what `load` wrote, and `<dir>/<cell>/<server>.command`, how the server
//! was started. Whatever is there is taken, so a matrix may be put together before it is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cells::{self, Cell};
use crate::error::Error;
use crate::report::median;

/// The servers of a cell, in the order they are measured in.
pub(crate) const SERVERS: [&str; 4] = ["io_uring", "epoll", "portable", "sink"];

/// What the others are compared with.
const FLOOR: &str = "sink";
const BASE: &str = "portable";

/// Above this share of its threads' time somebody has nothing left to give.
const BUSY: f64 = 0.95;

/// More passes than anybody has patience for.
const PASSES_MAX: u32 = 99;

/// Options of `matrix`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where the results of load lie
    #[arg(long)]
    dir: PathBuf,
    /// The cells of these names; all without a name
    names: Vec<String>,
}

/// All cells that have results.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Commits of the results, with a `+` where the tree was dirty: one, or it is no matrix of one program.
    commits: BTreeSet<String>,
    cells: Vec<Measured>,
    /// Cells, or servers of cells, without a result.
    missing: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: String,
    #[serde(flatten)]
    cell: Cell,
    /// With all cores of the machine given to the server, the generator has none of its own: rates and latencies are then
    /// those of both, and processor time a span is what can be compared.
    generator_shares_cores: bool,
    servers: BTreeMap<String, Server>,
}

#[derive(Debug, Serialize)]
struct Server {
    /// How it was started.
    server_command: Option<String>,
    load_command: String,
    /// Medians of the passes.
    #[serde(flatten)]
    median: Numbers,
    /// What kept the rate from being higher: the generator's threads, the server's processors, or waiting.
    limit: &'static str,
    /// Processor time a span by that of the sink and of the portable driver: medians of the passes' ratios.
    to_sink: Option<Ratios>,
    to_portable: Option<Ratios>,
    passes: Vec<Numbers>,
}

/// What is kept of one result of `load`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) seconds: f64,
    pub(crate) spans_per_second: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) cpu_ns_per_span: f64,
    pub(crate) cpu_user_ns_per_span: f64,
    pub(crate) cpu_system_ns_per_span: f64,
    /// From the end of the warm-up.
    pub(crate) steady_cpu_ns_per_span: f64,
    pub(crate) settled_cpu_ns_per_span: f64,
    pub(crate) interrupt_ns_per_span: f64,
    /// Of one processor.
    pub(crate) server_busy: f64,
    pub(crate) generator_busy: f64,
    pub(crate) latency_p50_ms: f64,
    pub(crate) latency_p99_ms: f64,
    pub(crate) latency_p999_ms: f64,
    pub(crate) latency_max_ms: f64,
    pub(crate) rss_bytes_max: f64,
    pub(crate) loss: f64,
    pub(crate) body_bytes_per_span: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratios {
    pub(crate) cpu: f64,
    pub(crate) steady_cpu: f64,
}

impl Numbers {
    /// Of what `load --server-pid` wrote.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is not that.
    pub(crate) fn of(result: &Value) -> Result<Self, Error> {
        let number = |pointer: &str| {
            let found = result.pointer(&format!("/result/{pointer}")).and_then(Value::as_f64);
            found.ok_or(Error::Malformed { what: "result of load with --server-pid" })
        };
        Ok(Self {
            seconds: number("seconds")?,
            spans_per_second: number("spans_per_second")?,
            requests_per_second: number("requests_per_second")?,
            cpu_ns_per_span: number("server/cpu_ns_per_span/total")?,
            cpu_user_ns_per_span: number("server/cpu_ns_per_span/user")?,
            cpu_system_ns_per_span: number("server/cpu_ns_per_span/system")?,
            steady_cpu_ns_per_span: number("server/steady_cpu_ns_per_span/total")?,
            settled_cpu_ns_per_span: number("server/settled_cpu_ns_per_span/total")?,
            interrupt_ns_per_span: number("server/interrupt_ns_per_span")?,
            server_busy: number("server/busy")?,
            generator_busy: number("generator_busy")?,
            latency_p50_ms: number("steady_latency/p50_ms")?,
            latency_p99_ms: number("steady_latency/p99_ms")?,
            latency_p999_ms: number("steady_latency/p999_ms")?,
            latency_max_ms: number("steady_latency/max_ms")?,
            rss_bytes_max: number("server/rss_bytes_max")?,
            loss: number("loss")?,
            body_bytes_per_span: number("body_bytes_per_span")?,
        })
    }

    /// Each number's own median.
    fn median(passes: &[Self]) -> Self {
        let of = |number: fn(&Self) -> f64| median(&mut passes.iter().map(number).collect::<Vec<f64>>());
        Self {
            seconds: of(|n| n.seconds),
            spans_per_second: of(|n| n.spans_per_second),
            requests_per_second: of(|n| n.requests_per_second),
            cpu_ns_per_span: of(|n| n.cpu_ns_per_span),
            cpu_user_ns_per_span: of(|n| n.cpu_user_ns_per_span),
            cpu_system_ns_per_span: of(|n| n.cpu_system_ns_per_span),
            steady_cpu_ns_per_span: of(|n| n.steady_cpu_ns_per_span),
            settled_cpu_ns_per_span: of(|n| n.settled_cpu_ns_per_span),
            interrupt_ns_per_span: of(|n| n.interrupt_ns_per_span),
            server_busy: of(|n| n.server_busy),
            generator_busy: of(|n| n.generator_busy),
            latency_p50_ms: of(|n| n.latency_p50_ms),
            latency_p99_ms: of(|n| n.latency_p99_ms),
            latency_p999_ms: of(|n| n.latency_p999_ms),
            latency_max_ms: of(|n| n.latency_max_ms),
            rss_bytes_max: of(|n| n.rss_bytes_max),
            loss: of(|n| n.loss),
            body_bytes_per_span: of(|n| n.body_bytes_per_span),
        }
    }

    fn limit(&self, server_cores: u32) -> &'static str {
        if self.server_busy >= BUSY * f64::from(server_cores) {
            "server"
        } else if self.generator_busy >= BUSY {
            "generator"
        } else {
            "waiting"
        }
    }
}

impl Ratios {
    /// Medians over the passes that both have.
    fn of(passes: &BTreeMap<u32, Numbers>, others: &BTreeMap<u32, Numbers>) -> Option<Self> {
        let pairs: Vec<(&Numbers, &Numbers)> =
            passes.iter().filter_map(|(pass, ours)| Some((ours, others.get(pass)?))).collect();
        let of = |number: fn(&Numbers) -> f64| {
            let quotients = pairs.iter().map(|&(ours, theirs)| number(ours) / number(theirs));
            median(&mut quotients.filter(|quotient| quotient.is_finite()).collect::<Vec<f64>>())
        };
        (!pairs.is_empty())
            .then(|| Self { cpu: of(|n| n.cpu_ns_per_span), steady_cpu: of(|n| n.steady_cpu_ns_per_span) })
    }
}

/// Reads and puts together.
///
/// # Errors
/// When a name is no cell's, or a file is no result of `load`.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let mut report = Report { commits: BTreeSet::new(), cells: Vec::new(), missing: Vec::new() };
    for cell in cells::chosen(&args.names)? {
        let measured = report.measured(cell, &args.dir.join(cell.name()))?;
        if !measured.servers.is_empty() {
            report.cells.push(measured);
        }
    }
    Ok(report)
}

/// The passes of one server of a cell.
#[derive(Default)]
struct Passes {
    numbers: BTreeMap<u32, Numbers>,
    load_command: String,
}

impl Report {
    fn measured(&mut self, cell: Cell, dir: &Path) -> Result<Measured, Error> {
        let mut all = BTreeMap::new();
        for server in SERVERS {
            let passes = self.passes(dir, server)?;
            if passes.numbers.is_empty() {
                self.missing.push(format!("{} {server}", cell.name()));
            } else {
                all.insert(server, passes);
            }
        }
        let ratios = |passes: &Passes, to: &str| Ratios::of(&passes.numbers, &all.get(to)?.numbers);
        let mut servers = BTreeMap::new();
        for (&name, passes) in &all {
            let numbers: Vec<Numbers> = passes.numbers.values().copied().collect();
            let median = Numbers::median(&numbers);
            let server = Server {
                server_command: text(&dir.join(format!("{name}.command")))?,
                load_command: passes.load_command.clone(),
                median,
                limit: median.limit(cell.server_cores),
                to_sink: ratios(passes, FLOOR).filter(|_| name != FLOOR),
                to_portable: ratios(passes, BASE).filter(|_| name != BASE),
                passes: numbers,
            };
            servers.insert(name.to_owned(), server);
        }
        Ok(Measured { name: cell.name(), cell, generator_shares_cores: cell.server_cores > 1, servers })
    }

    fn passes(&mut self, dir: &Path, server: &str) -> Result<Passes, Error> {
        let mut passes = Passes::default();
        for pass in 1..=PASSES_MAX {
            let Some(text) = text(&dir.join(format!("{server}-{pass}.json")))? else { continue };
            let result: Value =
                serde_json::from_str(&text).map_err(|_not_json| Error::Malformed { what: "result" })?;
            passes.numbers.insert(pass, Numbers::of(&result)?);
            passes.load_command = word(&result, "/command");
            let dirty = result.pointer("/dirty").and_then(Value::as_bool).unwrap_or(false);
            self.commits.insert(word(&result, "/commit") + if dirty { "+" } else { "" });
        }
        Ok(passes)
    }
}

fn word(result: &Value, pointer: &str) -> String {
    result.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What the file holds, if there is one.
fn text(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A result of `load` with this much processor time a span.
    pub(crate) fn result(cpu: f64, server_busy: f64, generator_busy: f64) -> Value {
        json!({"commit": "abc", "dirty": true, "command": "sluicebox-bench load", "bench": "load", "result": {
            "seconds": 12.0, "spans_per_second": 1e9 / cpu, "requests_per_second": 1e7 / cpu, "loss": 0.0,
            "body_bytes_per_span": 410.0, "generator_busy": generator_busy,
            "steady_latency": {"p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0, "max_ms": 4.0},
            "server": {
                "cpu_ns_per_span": {"user": cpu / 4.0, "system": cpu * 0.75, "total": cpu},
                "steady_cpu_ns_per_span": {"total": cpu * 2.0}, "settled_cpu_ns_per_span": {"total": cpu + 1.0},
                "interrupt_ns_per_span": 5.0, "rss_bytes_max": 1_000_000, "busy": server_busy,
            },
        }})
    }

    fn write(dir: &Path, name: &str, result: &Value) {
        fs::create_dir_all(dir.join("s-plain-500x8")).unwrap();
        fs::write(dir.join("s-plain-500x8").join(name), result.to_string()).unwrap();
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    #[test]
    fn ratios_are_those_of_the_same_pass() {
        let dir = tempfile::tempdir().unwrap();
        for (pass, ours, portable, sink) in
            [(1, 300.0, 600.0, 100.0), (2, 500.0, 500.0, 250.0), (3, 800.0, 1_000.0, 200.0)]
        {
            write(dir.path(), &format!("io_uring-{pass}.json"), &result(ours, 1.0, 0.5));
            write(dir.path(), &format!("portable-{pass}.json"), &result(portable, 1.0, 0.5));
            write(dir.path(), &format!("sink-{pass}.json"), &result(sink, 0.7, 0.99));
        }
        fs::write(dir.path().join("s-plain-500x8/io_uring.command"), "taskset -c 1 sluicebox").unwrap();
        let args = Args { dir: dir.path().to_owned(), names: vec!["s-plain-500x8".to_owned()] };
        let report = run(&args).unwrap();
        assert_eq!(report.missing, ["s-plain-500x8 epoll"]);
        assert_eq!(report.commits, BTreeSet::from(["abc+".to_owned()]));
        let servers = &report.cells[0].servers;
        let uring = &servers["io_uring"];
        close(uring.median.cpu_ns_per_span, 500.0);
        close(uring.median.cpu_user_ns_per_span, 125.0);
        close(uring.to_sink.unwrap().cpu, 3.0);
        close(uring.to_portable.unwrap().cpu, 0.8);
        close(uring.to_portable.unwrap().steady_cpu, 0.8);
        assert_eq!((uring.limit, servers["sink"].limit), ("server", "generator"));
        assert_eq!(uring.passes.len(), 3);
        assert_eq!(uring.server_command.as_deref(), Some("taskset -c 1 sluicebox"));
        assert!(servers["sink"].to_sink.is_none() && servers["portable"].to_portable.is_none());
    }

    #[test]
    fn a_pass_that_one_side_misses_makes_no_ratio() {
        let numbers = |cpu: f64| Numbers::of(&result(cpu, 0.5, 0.5)).unwrap();
        let ours = BTreeMap::from([(1, numbers(300.0)), (2, numbers(900.0))]);
        let theirs = BTreeMap::from([(1, numbers(100.0))]);
        close(Ratios::of(&ours, &theirs).unwrap().cpu, 3.0);
        assert_eq!(Ratios::of(&ours, &BTreeMap::new()), None);
        assert_eq!(numbers(1.0).limit(1), "waiting");
        assert_eq!(Numbers::of(&result(1.0, 1.0, 1.0)).unwrap().limit(2), "generator");
    }

    #[test]
    fn what_is_no_result_is_refused_and_nothing_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let args = |names: &[&str]| Args {
            dir: dir.path().to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let report = run(&args(&[])).unwrap();
        assert!(report.cells.is_empty());
        assert_eq!(report.missing.len(), cells::CELLS.len() * SERVERS.len());
        assert!(run(&args(&["none"])).is_err());
        write(dir.path(), "sink-1.json", &json!({"result": {}}));
        assert!(run(&args(&["s-plain-500x8"])).is_err());
    }
}
