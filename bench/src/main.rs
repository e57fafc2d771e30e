//! Measures the appliance from outside and its stages from inside; prints one JSON object.
//!
//! Talks to the appliance over loopback only, as its clients do, and links nothing of it but the stages that `walk` and
//! `journal` measure and the query client. Read in this order: `random`, `catalog`, `shape`, `wire`, `template`, `plan`
//! (what a run sends, deterministic), `ledger`, `supply`, `answer`, `sender`, `worker`, `load` (sending it), `sink`,
//! `walk`, `journal`, `check`, `verify`, `query`; `clock`, `latency`, `process`, `report` serve all.

#![expect(clippy::print_stdout, reason = "the result of a run is its standard output")]
#![expect(clippy::print_stderr, reason = "progress for people goes to standard error")]

mod answer;
mod catalog;
mod check;
mod clock;
mod error;
mod latency;
mod ledger;
mod load;
mod plan;
mod process;
mod random;
mod report;
mod sender;
mod shape;
mod sink;
mod supply;
mod template;
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
    Load(load::Args),
    /// Read OTLP and drop it: the floor to compare with
    Sink(sink::Args),
    /// Cost of looking at a span, beside decoding it
    Walk(walk::Args),
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
    match &cli.bench {
        Bench::Load(args) => print(cli, "load", &load::run(args)?),
        Bench::Sink(args) => print(cli, "sink", &sink::run(args)?),
        Bench::Walk(args) => print(cli, "walk", &walk::run(args)?),
    }?;
    Ok(true)
}

fn print(cli: &Cli, subcommand: &str, measured: &impl Serialize) -> Result<(), Error> {
    let text = format!("{:#}", report::result(subcommand, measured));
    println!("{text}");
    let Some(path) = &cli.out else { return Ok(()) };
    fs::write(path, text + "\n").map_err(|source| Error::File { path: path.clone(), source })
}
