//! `flame`: what the stacks of `perf script` say about costs: by function, by group, and as one line a stack for whoever
//! draws flame graphs. Starts no profiler.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::Error;
use crate::report::per_second;

/// Frames beyond this are cut off at the root: nobody reads them.
const DEPTH_MAX: usize = 64;

/// A folded file is kept with the results; the rarest stacks are left out before it grows beyond this.
const FOLDED_BYTES_MAX: usize = 150_000;

/// Options of `flame`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What `perf script -F comm,tid,ip,sym,dso` printed
    #[arg(long)]
    stacks: PathBuf,
    /// Write one line a stack here, root first and its samples last
    #[arg(long)]
    folded: Option<PathBuf>,
    /// Leave out of that file what has less than this share of the samples
    #[arg(long, default_value_t = 0.001)]
    share_min: f64,
    /// Functions and groups that are named
    #[arg(long, default_value_t = 25)]
    top: usize,
}

/// Where the time went.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    samples: u64,
    /// The three largest groups.
    largest: Vec<Cost>,
    /// What belongs together: the kernel by what it was asked for, our code by module with all it calls of others.
    groups: Vec<Cost>,
    /// Where the processor was, without what was called from there.
    functions: Vec<Cost>,
    threads: Vec<Cost>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Cost {
    name: String,
    share: f64,
    samples: u64,
}

/// One sample: the thread's name, then its frames, leaf first.
#[derive(Debug, Default, PartialEq)]
struct Stack {
    thread: String,
    frames: Vec<Frame>,
}

#[derive(Clone, Debug, PartialEq)]
struct Frame {
    symbol: String,
    is_kernel: bool,
}

/// Reads, writes the folded stacks and reports.
///
/// # Errors
/// [`Error::File`] when a file cannot be read or written, [`Error::Malformed`] when there is no stack in it.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| Error::File { path, source }
    };
    let bytes = fs::read(&args.stacks).map_err(failed(&args.stacks))?;
    let stacks = parse(&String::from_utf8_lossy(&bytes));
    if stacks.is_empty() {
        return Err(Error::Malformed { what: "output of perf script" });
    }
    if let Some(path) = &args.folded {
        fs::write(path, folded(&stacks, args.share_min)).map_err(failed(path))?;
    }
    let groups = costs(stacks.iter().map(group), args.top);
    Ok(Report {
        samples: stacks.len() as u64,
        largest: groups.iter().take(3).cloned().collect(),
        groups,
        functions: costs(stacks.iter().map(leaf), args.top),
        threads: costs(stacks.iter().map(|stack| thread_kind(&stack.thread)), args.top),
    })
}

/// Samples stand apart by an empty line: one line with the thread, one for each frame.
fn parse(text: &str) -> Vec<Stack> {
    let mut stacks = Vec::new();
    for sample in text.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.is_empty());
        let Some(head) = lines.next() else { continue };
        // A thread's name may have spaces; its number is the last word.
        let thread = head.trim().rsplit_once(char::is_whitespace).map_or(head, |(name, _)| name.trim());
        let frames: Vec<Frame> = lines.filter_map(frame).collect();
        if !frames.is_empty() {
            stacks.push(Stack { thread: thread.to_owned(), frames });
        }
    }
    stacks
}

/// `    ffffffff81 symbol with spaces (file)`
fn frame(line: &str) -> Option<Frame> {
    let (_address, rest) = line.trim().split_once(' ')?;
    let (symbol, file) = rest.rsplit_once(" (")?;
    Some(Frame {
        symbol: short(symbol),
        is_kernel: file.starts_with("[kernel") || file.starts_with("[guest"),
    })
}

/// Without the hash at the end, so that one function has one name.
fn short(symbol: &str) -> String {
    let is_hash = |text: &str| text.len() == 16 && text.chars().all(|c| c.is_ascii_hexdigit());
    match symbol.rsplit_once("::h") {
        Some((name, hash)) if is_hash(hash) => name.to_owned(),
        _ => symbol.to_owned(),
    }
}

fn leaf(stack: &Stack) -> String {
    stack.frames.first().map(|frame| frame.symbol.clone()).unwrap_or_default()
}

/// What the kernel does, by a function that only does that; the first that is found counts.
const KERNEL_GROUPS: [(&str, &str); 18] = [
    ("exc_page_fault", "kernel: page faults"),
    ("tcp_recvmsg", "kernel: receive"),
    ("inet_recvmsg", "kernel: receive"),
    ("tcp_sendmsg", "kernel: send, with loopback's delivery"),
    ("inet_sendmsg", "kernel: send, with loopback's delivery"),
    ("net_rx_action", "kernel: delivery in an interrupt"),
    ("fdatasync", "kernel: write and sync"),
    ("fsync", "kernel: write and sync"),
    ("vfs_write", "kernel: write and sync"),
    ("io_write", "kernel: write and sync"),
    ("ext4_", "kernel: write and sync"),
    ("writeback", "kernel: write and sync"),
    ("blk_", "kernel: write and sync"),
    ("futex", "kernel: wake and wait"),
    ("epoll_wait", "kernel: wake and wait"),
    ("mmap", "kernel: mapping of memory"),
    ("munmap", "kernel: mapping of memory"),
    ("madvise", "kernel: mapping of memory"),
];

fn group(stack: &Stack) -> String {
    let kernel: Vec<&Frame> = stack.frames.iter().take_while(|frame| frame.is_kernel).collect();
    if !kernel.is_empty() {
        let does = |needle: &str| kernel.iter().any(|frame| frame.symbol.contains(needle));
        let known = KERNEL_GROUPS.iter().find(|(needle, _)| does(needle));
        let call = kernel.iter().find_map(|frame| frame.symbol.strip_prefix("__x64_sys_"));
        return match (known, call) {
            (Some((_, name)), _) => (*name).to_owned(),
            (None, Some(call)) => format!("kernel: {call}, the rest"),
            (None, None) => "kernel: others".to_owned(),
        };
    }
    let leaf = stack.frames.first().map(|frame| frame.symbol.as_str()).unwrap_or_default();
    if leaf.starts_with("mi_") || leaf.starts_with("_mi_") {
        return "allocator".to_owned();
    }
    let ours = stack.frames.iter().find_map(|frame| our_module(&frame.symbol));
    ours.unwrap_or_else(|| format!("others: {}", crate_of(leaf)))
}

/// The first segment of a path, whatever stands around it: `<&alloc::vec::Vec<T> as ...>` is of `alloc`.
fn crate_of(symbol: &str) -> &str {
    let start = symbol
        .trim_start_matches(['<', '&', '[', '(', '*'])
        .trim_start_matches("mut ")
        .trim_start_matches("dyn ");
    start.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default()
}

/// Crate and module, when it is one of ours.
fn our_module(symbol: &str) -> Option<String> {
    const ROOMS: [&str; 4] = ["ingest_", "store_", "query_", "sluicebox"];
    let name = crate_of(symbol);
    if !ROOMS.iter().any(|room| name.starts_with(room)) {
        return None;
    }
    let after = symbol.split_once(name).map_or("", |(_, after)| after);
    let module = after.strip_prefix("::").map(crate_of).unwrap_or_default();
    let is_module = module.starts_with(|c: char| c.is_ascii_lowercase());
    Some(if is_module { format!("{name}::{module}") } else { name.to_owned() })
}

/// Threads that differ by a number do the same.
fn thread_kind(name: &str) -> String {
    name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '/']).to_owned()
}

/// How often each name comes, the most frequent first.
fn costs(names: impl Iterator<Item = String>, top: usize) -> Vec<Cost> {
    let mut counts: HashMap<String, u64> = HashMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    let all: u64 = counts.values().sum();
    let share = |samples: u64| per_second(samples, per_second(all, 1.0));
    let mut costs: Vec<Cost> =
        counts.into_iter().map(|(name, samples)| Cost { name, share: share(samples), samples }).collect();
    costs.sort_by(|a, b| b.samples.cmp(&a.samples).then_with(|| a.name.cmp(&b.name)));
    costs.truncate(top);
    costs
}

/// `thread;root;...;leaf samples`, a line each, as inferno and flamegraph.pl read it.
fn folded(stacks: &[Stack], share_min: f64) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for stack in stacks {
        let frames = stack.frames.iter().take(DEPTH_MAX).rev();
        let mut line = thread_kind(&stack.thread);
        for frame in frames {
            line.push(';');
            // The separator must not stand in a name.
            line.push_str(&frame.symbol.replace(';', ":"));
        }
        *counts.entry(line).or_default() += 1;
    }
    let least = per_second(stacks.len() as u64, 1.0) * share_min;
    let mut worth: Vec<(String, u64)> =
        counts.into_iter().filter(|&(_, count)| per_second(count, 1.0) >= least).collect();
    worth.sort_by_key(|&(_, count)| Reverse(count));
    let mut text = String::new();
    for (line, count) in worth {
        let line = format!("{line} {count}\n");
        if text.len() + line.len() > FOLDED_BYTES_MAX {
            break;
        }
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "receive-0  4711
\tffffffff81c0 rep_movs_alternative ([kernel.kallsyms])
\tffffffff81d0 tcp_recvmsg ([kernel.kallsyms])
\tffffffff81e0 __x64_sys_io_uring_enter ([kernel.kallsyms])
\t    55d1 ingest_receiver::uring::turn::Turn::run::h0123456789abcdef (/t/sluicebox)

receive-1  4712
\t    55d2 __memmove_avx_unaligned_erms (/usr/lib/libc.so.6)
\t    55d3 <ingest_otlp::walk::Walker as core::iter::Iterator>::next (/t/sluicebox)
\t    55d4 std::thread::main (/t/sluicebox)

receive-1  4712
\t    55d2 mi_malloc (/t/sluicebox)
\t    55d3 store_log::writer::Writer::append (/t/sluicebox)

tokio runtime w  9
\tffffffff81c1 do_syscall_64 ([kernel.kallsyms])
\tffffffff81c2 __x64_sys_read ([kernel.kallsyms])
";

    #[test]
    fn stacks_are_read_with_threads_files_and_hashes() {
        let stacks = parse(TEXT);
        assert_eq!(stacks.len(), 4);
        assert_eq!(stacks[3].thread, "tokio runtime w");
        assert!(stacks[0].frames[2].is_kernel && !stacks[0].frames[3].is_kernel);
        assert_eq!(stacks[0].frames[3].symbol, "ingest_receiver::uring::turn::Turn::run");
        assert!(parse("").is_empty() && parse("\n\nno frames\n\n").is_empty());
    }

    #[test]
    fn every_sample_has_one_group() {
        let groups: Vec<String> = parse(TEXT).iter().map(group).collect();
        assert_eq!(groups, ["kernel: receive", "ingest_otlp::walk", "allocator", "kernel: read, the rest"]);
        let alone = |symbol: &str| {
            let frame = Frame { symbol: symbol.to_owned(), is_kernel: false };
            group(&Stack { thread: String::new(), frames: vec![frame] })
        };
        assert_eq!(alone("<&mut alloc::vec::Vec<store_log::T> as X>::y"), "others: alloc");
        assert_eq!(alone("sluicebox::shards::run"), "sluicebox::shards");
        assert_eq!(alone("<store_model::TraceId as Hash>::hash"), "store_model");
    }

    #[test]
    fn the_most_frequent_is_first_and_shares_add_up() {
        let names = ["a", "b", "a", "c"].map(str::to_owned);
        let found = costs(names.into_iter(), 2);
        assert_eq!((found[0].name.as_str(), found[0].samples), ("a", 2));
        assert!((found[0].share - 0.5).abs() < 1e-9 && found.len() == 2);
    }

    #[test]
    fn folded_stacks_begin_with_the_thread_and_leave_the_rare_out() {
        let stacks = parse(TEXT);
        let text = folded(&stacks, 0.0);
        assert_eq!(text.lines().count(), 4);
        let expected = "receive;std::thread::main;<ingest_otlp::walk::Walker as core::iter::Iterator>::next;__memmove_avx_unaligned_erms 1";
        assert!(text.lines().any(|line| line == expected), "{text}");
        assert!(folded(&stacks, 0.3).is_empty());
        let mut many = parse(TEXT);
        many.push(parse(TEXT).remove(2));
        let first = folded(&many, 0.0);
        assert!(first.starts_with("receive;store_log::writer::Writer::append;mi_malloc 2\n"), "{first}");
        let long = |number: usize| {
            let frame = Frame { symbol: format!("{number}{}", "x".repeat(999)), is_kernel: false };
            Stack { thread: String::new(), frames: vec![frame] }
        };
        let text = folded(&(0..1_000).map(long).collect::<Vec<_>>(), 0.0);
        assert!((FOLDED_BYTES_MAX - 2_000..=FOLDED_BYTES_MAX).contains(&text.len()), "{}", text.len());
    }
}
