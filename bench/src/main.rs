//! Measures the appliance from outside and its stages from inside; prints one JSON object.
//!
//! Talks to the appliance over loopback only, as its clients do, and links nothing of it but the stages that `walk` and
//! `journal` measure, the receiver that `sink` can be and the query client. Read in this order: `random`, `catalog`,
//! `shape`, `wire`, `template`, `plan` (what a run sends, deterministic), `ledger`, `supply`, `pool_file`, `answer`, `tls`,
//! `sender`, `worker`, `load` (sending it), `sink`, `drain`, `walk`, `journal`, `memory`, `check`, `verify`, `query`; `cells`, `matrix`,
//! `gather`, `table` (results put together), `flame`; `clock`, `latency`, `process`, `report` serve all.

#![expect(clippy::print_stdout, reason = "the result of a run is its standard output")]
#![expect(clippy::print_stderr, reason = "progress for people goes to standard error")]

mod answer;
mod appliance;
mod catalog;
mod cells;
mod check;
mod client;
mod clock;
mod drain;
mod error;
mod flame;
mod gather;
mod http2;
mod journal;
mod latency;
mod ledger;
mod load;
mod matrix;
mod memory;
mod pairs;
mod plan;
mod pool_file;
mod process;
mod query;
mod random;
mod report;
mod sender;
mod shape;
mod sink;
mod supply;
mod table;
mod template;
mod tls;
mod verify;
mod walk;
mod wire;
mod worker;

use std::error::Error as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, iter};

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::error::Error;

/// The appliance's allocator, so that stages cost here what they cost there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load, floors, stage benches and verification for Sluicebox
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    /// Write the result to this file, too
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand, Debug)]
enum Bench {
    /// Send OTLP at a rate or as fast as answers come
    Load(Box<load::Args>),
    /// Read OTLP and drop it: the floor to compare with
    Sink(sink::Args),
    /// Cost of looking at a span, beside decoding it
    Walk(walk::Args),
    /// Bytes made durable by the journal, beside what the disk can do
    Journal(journal::Args),
    /// Touch memory and give it back, so that a server that starts now finds it at the price of its own machine
    Memory(memory::Args),
    /// Ask a running appliance for everything it must have
    Verify(verify::Args),
    /// How fast a running appliance answers
    Query(query::Args),
    /// Results of load against the appliance beside results against the sink
    Pairs(pairs::Args),
    /// A certificate for a run, and the authority to trust
    Certificate(tls::Args),
    /// The cells of the matrix, for scripts
    Cells(cells::Args),
    /// Results of the cells put together
    Matrix(matrix::Args),
    /// Results of several commands as one
    Gather(gather::Args),
    /// What stacks of `perf script` say about costs
    Flame(flame::Args),
    /// A result as a table for people
    Table(table::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let causes = iter::successors(error.source(), |&cause| cause.source());
            eprintln!("{}", causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")));
            ExitCode::from(2)
        }
    }
}

/// Runs what was asked for and prints its result. False means that it was measured and is not as it must be.
fn run(cli: &Cli) -> Result<bool, Error> {
    let mut passed = true;
    process::raise_file_limit();
    match &cli.bench {
        Bench::Load(args) => print(cli, "load", &load::run(args)?),
        Bench::Sink(args) => print(cli, "sink", &sink::run(args)?),
        Bench::Walk(args) => print(cli, "walk", &walk::run(args)?),
        Bench::Journal(args) => print(cli, "journal", &journal::run(args)?),
        Bench::Memory(args) => print(cli, "memory", &memory::run(args)),
        Bench::Verify(args) => {
            let report = verify::run(args)?;
            passed = report.passed;
            print(cli, "verify", &report)
        }
        Bench::Query(args) => print(cli, "query", &query::run(args)?),
        Bench::Pairs(args) => print(cli, "pairs", &pairs::run(args)?),
        Bench::Certificate(args) => print(cli, "certificate", &tls::issue(args)?),
        Bench::Cells(args) => cells::run(args).map(|text| print!("{text}")),
        Bench::Matrix(args) => print(cli, "matrix", &matrix::run(args)?),
        Bench::Gather(args) => print(cli, &args.name, &gather::run(args)?),
        Bench::Flame(args) => print(cli, "flame", &flame::run(args)?),
        Bench::Table(args) => table::run(args).map(|text| print!("{text}")),
    }?;
    Ok(passed)
}

fn print(cli: &Cli, subcommand: &str, measured: &impl Serialize) -> Result<(), Error> {
    let text = format!("{:#}", report::result(subcommand, measured));
    println!("{text}");
    let Some(path) = &cli.out else { return Ok(()) };
    fs::write(path, text + "\n").map_err(|source| Error::File { path: path.clone(), source })
}
