//! `memory`: makes the machine's free memory what it is on bare metal. A virtual machine hands memory that nobody uses back to
//! its host, and gets it again page by page, at twenty times the usual price; a server that fills gigabytes would be
//! measured by that for half a minute.

use std::hint::black_box;

use serde::Serialize;

use crate::clock;

/// A page, at the least.
const PAGE_BYTES: usize = 4096;

/// Options of `memory`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How much to touch, in mebibytes
    #[arg(long, default_value_t = 5_000)]
    pub(crate) mebibytes: usize,
    /// How often
    #[arg(long, default_value_t = 2)]
    pub(crate) rounds: u32,
}

/// What touching memory cost.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    mebibytes: usize,
    /// Of each round, nanoseconds a page of 4 KiB. On memory that the machine has they are all alike.
    ns_per_page: Vec<f64>,
}

/// Touches memory and gives it back.
pub(crate) fn run(args: &Args) -> Report {
    let bytes = args.mebibytes << 20;
    let mut ns_per_page = Vec::new();
    for _ in 0..args.rounds.max(1) {
        let start = clock::now();
        let mut memory: Vec<u8> = vec![0; bytes];
        memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        drop(black_box(memory));
        ns_per_page.push(start.elapsed().as_nanos() as f64 / (bytes / PAGE_BYTES).max(1) as f64);
    }
    Report { mebibytes: args.mebibytes, ns_per_page }
}
