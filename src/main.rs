//! The appliance's binary: reads the command line, starts what it names.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command-line program")]

mod allocator;
mod appliance;
mod archiver;
mod bodies;
mod cli;
mod clock;
mod config;
mod cpus;
mod demo;
mod doors;
mod gate;
mod identities;
mod intake;
mod journal;
mod keeper;
mod live;
mod memory;
mod recover;
mod retention;
mod sealer;
mod serve;
mod shards;
mod status;
mod telemetry;
mod totals;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    allocator::init();
    cli::run(cli::Cli::parse())
}
