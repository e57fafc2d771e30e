//! `load`: sends OTLP at a rate or as fast as answers come, and counts what was acknowledged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clock::{self, parse_duration};
use crate::error::Error;
use crate::latency::{Quantiles, Schedule};
use crate::ledger::Header;
use crate::plan::{Plan, PlanOptions};
use crate::pool_file::{self, Contents};
use crate::process::{CpuPerSpan, CpuTime, Process, interrupt_time};
use crate::report::per_second;
use crate::sender::{Compression, Protocol, Target};
use crate::shape::Shape;
use crate::supply::{Pool, Source};
use crate::tls::Trust;
use crate::worker::{self, InFlight, Part, Run, Tally};

/// How often memory is sampled.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// A run that is bounded by its spans ends after this all the same.
const DURATION_MAX: Duration = Duration::from_secs(3_600);

/// Options of `load`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where the receiver listens [default: 127.0.0.1:4317, over HTTP 127.0.0.1:4318]
    #[arg(long)]
    pub(crate) endpoint: Option<String>,
    /// OTLP/gRPC, or OTLP/HTTP with protobuf
    #[arg(long, value_enum, default_value = "grpc")]
    pub(crate) protocol: Protocol,
    /// What the spans look like
    #[arg(long, value_enum, default_value = "s")]
    pub(crate) shape: Shape,
    /// Spans of a request
    #[arg(long, default_value_t = 500)]
    pub(crate) spans_per_request: u32,
    /// Spans of a trace [default: 8; 10 for tracegen and random]
    #[arg(long)]
    pub(crate) spans_per_trace: Option<u32>,
    /// Connections, spread over the threads
    #[arg(long, default_value_t = 8)]
    pub(crate) connections: u32,
    /// Requests in flight on each connection (over HTTP each takes a connection)
    #[arg(long, default_value_t = 4)]
    pub(crate) in_flight: u32,
    /// Requests in flight on all connections together, each on the next connection in turn; instead of --in-flight
    #[arg(long, conflicts_with = "in_flight")]
    pub(crate) in_flight_together: Option<u32>,
    /// Speak TLS, and believe whom these certificates have signed (PEM)
    #[arg(long)]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Spans a second on a constant schedule (open loop); without it each answer starts the next request
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// How long to send [default: 10s; an hour at the most when --traces or --requests is given]
    #[arg(long, value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Stop after this many traces, rounded up to whole requests
    #[arg(long)]
    pub(crate) traces: Option<u64>,
    /// Stop after this many requests, rounded up to whole groups of them
    #[arg(long)]
    pub(crate) requests: Option<u64>,
    /// How bodies are compressed
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compression: Compression,
    /// Compression level [default: 6 for gzip, 3 for zstd]
    #[arg(long)]
    pub(crate) level: Option<u32>,
    /// Compress every body while sending instead of taking it from a pool made beforehand
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Requests in the pool of compressed bodies; the run ends with it
    #[arg(long, default_value_t = 20_000)]
    pub(crate) pool_requests: u64,
    /// Keep the pool in this file, and take it from there when it was made with the same options
    #[arg(long, requires = "seed", conflicts_with = "fresh")]
    pub(crate) pool_file: Option<PathBuf>,
    /// Use the pool again and again; its trace ids then come again, too
    #[arg(long, conflicts_with = "ledger")]
    pub(crate) wrap: bool,
    /// Share of traces with an error
    #[arg(long, default_value_t = 0.01)]
    pub(crate) errors: f64,
    /// Share of traces that take seconds
    #[arg(long, default_value_t = 0.01)]
    pub(crate) slow: f64,
    /// Share of requests that are sent twice
    #[arg(long, default_value_t = 0.0)]
    pub(crate) duplicates: f64,
    /// Share of traces whose last span is sent later
    #[arg(long, default_value_t = 0.0)]
    pub(crate) late: f64,
    /// How much later
    #[arg(long, default_value = "4s", value_parser = parse_duration)]
    pub(crate) late_by: Duration,
    /// Spread the spans of each trace over four requests, in any order
    #[arg(long)]
    pub(crate) out_of_order: bool,
    /// Share of traces whose root is never sent
    #[arg(long, default_value_t = 0.0)]
    pub(crate) no_root: f64,
    /// Services that take part [default: 12; 1 for tracegen; 10 for random]
    #[arg(long)]
    pub(crate) services: Option<u16>,
    /// Where all ids come from [default: the time]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Sent as x-scope-orgid
    #[arg(long, default_value = "default")]
    pub(crate) tenant: String,
    /// Write what was sent and acknowledged, for `verify` and `query`
    #[arg(long)]
    pub(crate) ledger: Option<PathBuf>,
    /// Threads of the generator
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: u32,
    /// Processors to pin the threads to, in turn
    #[arg(long, value_delimiter = ',')]
    pub(crate) generator_cpu: Vec<usize>,
    /// Process to account: its processor time and memory
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Processors of the server, to account their interrupts
    #[arg(long, value_delimiter = ',')]
    pub(crate) server_cpu: Vec<usize>,
    /// Wait this long after the last answer and account what the server still does with the spans
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub(crate) settle: Duration,
    /// Account the time after this also by itself: by then memory has stopped growing
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub(crate) warm_up: Duration,
    /// Send again what was refused with leave to, after the time it asked for, and what failed
    #[arg(long)]
    pub(crate) retry: bool,
    /// How long an answer may take
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// How long to try to connect at the start, and to go on with --retry after the end
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) patience: Duration,
}

impl Args {
    fn plan_options(&self) -> PlanOptions {
        PlanOptions {
            shape: self.shape,
            spans_per_request: self.spans_per_request,
            spans_per_trace: self.spans_per_trace.unwrap_or(self.shape.spans_per_trace_default()),
            services: self.services.unwrap_or(self.shape.services_default()),
            errors: self.errors,
            slow: self.slow,
            late: self.late,
            no_root: self.no_root,
            out_of_order: self.out_of_order,
            seed: self.seed.unwrap_or_else(clock::unix_nanos),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let in_flight = self.in_flight_together.unwrap_or(self.in_flight);
        let counts = [self.connections, in_flight, self.threads];
        if counts.iter().any(|count| !(1..=10_000).contains(count)) || self.threads > self.connections {
            let what = "--connections, --in-flight and --threads must be 1 to 10000, threads no more than connections";
            return Err(Error::Options(what.to_owned()));
        }
        if self.threads > in_flight && self.in_flight_together.is_some() {
            let what = "--threads must be no more than --in-flight-together";
            return Err(Error::Options(what.to_owned()));
        }
        Ok(())
    }

    pub(crate) fn in_flight(&self) -> InFlight {
        self.in_flight_together.map_or(InFlight::EachConnection(self.in_flight), InFlight::Together)
    }

    fn trust(&self) -> Result<Option<Trust>, Error> {
        let read = |path: &PathBuf| Trust::read(path, &self.endpoint(), self.protocol);
        self.tls_ca.as_ref().map(read).transpose()
    }

    /// What thread number `thread` does.
    fn part(&self, thread: u32) -> Part {
        let share = |of: u32| share_of(of, self.threads, thread) as usize;
        Part {
            connections: share(self.connections),
            in_flight: self.in_flight_together.map_or(0, share),
            cpu: self.generator_cpu.get(thread as usize % self.generator_cpu.len().max(1)).copied(),
        }
    }

    /// How many groups a run may send at most.
    fn group_limit(&self, plan: &Plan) -> u64 {
        let requests_per_group = (plan.bodies_per_group() - usize::from(plan.has_late())) as u64;
        let by_traces = self.traces.map(|traces| traces.div_ceil(plan.traces_per_group()));
        let by_requests = self.requests.map(|requests| requests.div_ceil(requests_per_group));
        by_traces.into_iter().chain(by_requests).min().unwrap_or(u64::MAX)
    }

    fn endpoint(&self) -> String {
        let default = match self.protocol {
            Protocol::Grpc => "127.0.0.1:4317",
            Protocol::Http => "127.0.0.1:4318",
        };
        self.endpoint.clone().unwrap_or_else(|| default.to_owned())
    }

    fn duration(&self) -> Duration {
        let bounded = self.traces.is_some() || self.requests.is_some();
        let default = if bounded { DURATION_MAX } else { Duration::from_secs(10) };
        self.duration.unwrap_or(default).min(DURATION_MAX)
    }

    fn source(&self, plan: &Plan, group_limit: u64) -> Result<Source, Error> {
        let compression = self.compression;
        let level = self.level.unwrap_or(if compression == Compression::Zstd { 3 } else { 6 });
        if compression == Compression::None {
            return Ok(Source::Patched);
        }
        if self.fresh {
            return Ok(Source::Compressed { compression, level });
        }
        let requests_per_group = plan.bodies_per_group() as u64;
        let count = (self.pool_requests / requests_per_group).clamp(1, group_limit);
        let made = || Pool::build(plan, count, compression, level);
        let (pool, took) = clock::timed(|| match &self.pool_file {
            Some(path) => {
                pool_file::read_or_make(path, &Contents::new(plan, count, compression, level), made)
            }
            None => made(),
        });
        let pool = pool?;
        eprintln!("{} compressed groups of requests after {:.1} s", pool.len(), took.as_secs_f64());
        Ok(Source::Pooled(Arc::new(pool)))
    }
}

/// What a run measured.
#[derive(Serialize)]
pub(crate) struct Report {
    options: PlanOptions,
    protocol: Protocol,
    compression: Compression,
    bodies: &'static str,
    /// Version and cipher suite.
    tls: Option<String>,
    connections: u32,
    in_flight: InFlight,
    seconds: f64,
    traces: u64,
    spans_per_second: f64,
    requests_per_second: f64,
    body_bytes: u64,
    body_bytes_per_second: f64,
    body_bytes_per_span: f64,
    /// The rate asked for, and whether at least 99.5 % of it was sent.
    rate_asked: Option<f64>,
    kept_up: Option<bool>,
    spans_sent: u64,
    requests_acknowledged: u64,
    spans_acknowledged: u64,
    spans_rejected: u64,
    requests_refused: u64,
    spans_refused: u64,
    requests_failed: u64,
    spans_failed: u64,
    attempts_repeated: u64,
    retry_hints_seen: u64,
    requests_duplicated: u64,
    requests_late: u64,
    /// Share of the spans sent that were not acknowledged.
    loss: f64,
    reasons: BTreeMap<String, u64>,
    /// From when a request was due to its acknowledgement; in a closed loop the same as `service_time`.
    latency: Quantiles,
    /// The same of requests that were due after `--warm-up`.
    steady_latency: Quantiles,
    /// From when a request was sent.
    service_time: Quantiles,
    server: Option<ServerReport>,
    generator_cpu_ns_per_span: CpuPerSpan,
    /// Of the time of its threads; near 1 means that the generator was the limit.
    generator_busy: f64,
}

#[derive(Serialize)]
struct ServerReport {
    /// Until the last answer.
    cpu_ns_per_span: CpuPerSpan,
    /// From the end of `--warm-up` to the last answer.
    steady_cpu_ns_per_span: CpuPerSpan,
    /// Until the end of `--settle`: decisions, archive and index included.
    settled_cpu_ns_per_span: CpuPerSpan,
    /// Interrupts on `--server-cpu`, which no process is charged for.
    interrupt_ns_per_span: f64,
    /// Of one processor.
    busy: f64,
    rss_bytes_before: u64,
    rss_bytes_max: u64,
    rss_bytes_after: u64,
    /// Once a second from the start to the end of `--settle`.
    rss_bytes_by_second: Vec<u64>,
}

/// Runs the load and returns what it measured.
///
/// # Errors
/// When options do not fit, when nobody listens, or when the server process ends while it is measured.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    args.check()?;
    let plan = Arc::new(Plan::new(args.plan_options())?);
    let limit = args.group_limit(&plan);
    let source = args.source(&plan, limit)?;
    let group_limit = match &source {
        Source::Pooled(pool) if !args.wrap => limit.min(pool.len()),
        Source::Pooled(_) | Source::Patched | Source::Compressed { .. } => limit,
    };
    let requests_per_group = plan.bodies_per_group() - usize::from(plan.has_late());
    let run = Arc::new(Run {
        source,
        target: Target {
            endpoint: args.endpoint(),
            protocol: args.protocol,
            tenant: args.tenant.clone(),
            compression: args.compression,
            trust: args.trust()?,
        },
        schedule: Schedule::of_rate(args.rate, spans_per_request(&plan, requests_per_group)),
        in_flight: args.in_flight(),
        duration: args.duration(),
        warm_up: args.warm_up,
        group_limit,
        late_by: args.late_by,
        duplicates: args.duplicates,
        retry: args.retry,
        timeout: args.timeout,
        patience: args.patience,
        wants_notes: args.ledger.is_some(),
        next_group: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        ready: Barrier::new(args.threads as usize + 1),
        start: OnceLock::new(),
        plan: Arc::clone(&plan),
    });
    let measured = measure(args, &run)?;
    if let Some(path) = &args.ledger {
        let header = Header { plan: plan.options.clone(), tenant: args.tenant.clone() };
        measured.tally.notes.write(&header, path)?;
    }
    Ok(report(args, &run, measured))
}

/// Spans of an average request on time.
fn spans_per_request(plan: &Plan, requests_per_group: usize) -> f64 {
    let counts = plan.groups.iter().flat_map(|group| &group.bodies[..requests_per_group]);
    let spans: u64 = counts.map(|body| u64::from(body.span_count())).sum();
    per_second(spans, (plan.groups.len() * requests_per_group) as f64)
}

struct Measured {
    tally: Tally,
    elapsed: Duration,
    own: CpuTime,
    server: Option<ServerUse>,
}

struct ServerUse {
    loaded: CpuTime,
    steady: CpuPerSpan,
    settled: CpuTime,
    interrupts: Duration,
    rss_before: u64,
    rss_max: u64,
    rss_after: u64,
    rss_by_second: Vec<u64>,
}

fn measure(args: &Args, run: &Arc<Run>) -> Result<Measured, Error> {
    let (finished, results) = mpsc::channel();
    for thread in 0..args.threads {
        let part = args.part(thread);
        let (run, finished) = (Arc::clone(run), finished.clone());
        thread::spawn(move || {
            // Nobody listens any more only when the run has failed elsewhere.
            drop(finished.send(worker::work(&run, part)));
        });
    }
    drop(finished);
    run.ready.wait();
    let server = args.server_pid.map(Process::new);
    let cpu_before = server.as_ref().map(Process::cpu).transpose()?.unwrap_or_default();
    let rss_before = server.as_ref().map(Process::resident_bytes).transpose()?.unwrap_or_default();
    let interrupts_before = interrupt_time(&args.server_cpu)?;
    let own_before = Process::own().cpu()?;
    let start = *run.start.get_or_init(clock::now);
    run.ready.wait();

    let warm = Warm { cpu: cpu_before, spans: 0, due: Some(args.warm_up) };
    let mut watch = Watch {
        run,
        server: server.as_ref(),
        start,
        rss_max: rss_before,
        said: start,
        warm,
        rss_by_second: Vec::new(),
    };
    let tally = watch.until_all_are_back(&results, args.threads)?;
    let elapsed = start.elapsed();
    let own = Process::own().cpu()?.since(own_before);
    let Some(process) = &server else { return Ok(Measured { tally, elapsed, own, server: None }) };
    let (cpu, spans) = (process.cpu()?, run.acknowledged.load(Ordering::Relaxed));
    let loaded = cpu.since(cpu_before);
    let steady = cpu.since(watch.warm.cpu).per_span(spans.saturating_sub(watch.warm.spans));
    watch.settle(args.settle);
    let server = ServerUse {
        loaded,
        steady,
        settled: process.cpu()?.since(cpu_before),
        interrupts: interrupt_time(&args.server_cpu)?.saturating_sub(interrupts_before),
        rss_before,
        rss_max: watch.rss_max,
        rss_after: process.resident_bytes()?,
        rss_by_second: watch.rss_by_second,
    };
    Ok(Measured { tally, elapsed, own, server: Some(server) })
}

/// One thread's share of a number: an even one, the first threads take what is left over.
fn share_of(number: u32, threads: u32, thread: u32) -> u32 {
    number / threads + u32::from(thread < number % threads)
}

/// Looks on while the threads work.
struct Watch<'a> {
    run: &'a Run,
    server: Option<&'a Process>,
    start: Instant,
    rss_max: u64,
    rss_by_second: Vec<u64>,
    said: Instant,
    warm: Warm,
}

/// Where the server stood when the warm-up was over.
struct Warm {
    cpu: CpuTime,
    spans: u64,
    /// Not yet over.
    due: Option<Duration>,
}

impl Watch<'_> {
    fn until_all_are_back(
        &mut self,
        results: &mpsc::Receiver<Result<Tally, Error>>,
        threads: u32,
    ) -> Result<Tally, Error> {
        let mut tally = Tally::default();
        let mut back = 0;
        while back < threads {
            match results.recv_timeout(SAMPLE_EVERY) {
                Ok(part) => {
                    tally.add(part?);
                    back += 1;
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::ThreadLost),
            }
        }
        self.look();
        Ok(tally)
    }

    fn look(&mut self) {
        if let Some(rss) = self.server.and_then(|server| server.resident_bytes().ok()) {
            self.rss_max = self.rss_max.max(rss);
            if self.start.elapsed().as_secs() >= self.rss_by_second.len() as u64 {
                self.rss_by_second.push(rss);
            }
        }
        if let (Some(due), Some(server)) = (self.warm.due, self.server)
            && self.start.elapsed() >= due
            && let Ok(cpu) = server.cpu()
        {
            self.warm = Warm { cpu, spans: self.run.acknowledged.load(Ordering::Relaxed), due: None };
        }
        if self.said.elapsed() >= Duration::from_secs(1) {
            self.said = clock::now();
            let spans = self.run.acknowledged.load(Ordering::Relaxed);
            let seconds = self.start.elapsed().as_secs_f64();
            eprintln!(
                "{seconds:6.1} s  {spans:>12} spans acknowledged  {:>9.0}/s  rss max {} MiB",
                per_second(spans, seconds),
                self.rss_max >> 20
            );
        }
    }

    /// Waits without sending, and goes on sampling.
    fn settle(&mut self, time: Duration) {
        let (_keep, nothing) = mpsc::channel::<()>();
        let end = clock::now() + time;
        while clock::now() < end {
            // Nothing is ever sent: this is a pause that ends by its timeout.
            if nothing.recv_timeout(SAMPLE_EVERY.min(time)).is_err() {
                self.look();
            }
        }
    }
}

fn report(args: &Args, run: &Run, measured: Measured) -> Report {
    let Measured { tally, elapsed, own, server } = measured;
    let seconds = elapsed.as_secs_f64();
    let spans = tally.spans_acknowledged;
    let groups = run.next_group.load(Ordering::Relaxed).min(run.group_limit);
    let sent_per_second = per_second(tally.spans_sent, seconds.min(run.duration.as_secs_f64()));
    Report {
        options: run.plan.options.clone(),
        protocol: args.protocol,
        compression: args.compression,
        bodies: run.source.describe(groups),
        tls: run.target.trust.as_ref().and_then(Trust::spoken),
        connections: args.connections,
        in_flight: args.in_flight(),
        seconds,
        traces: groups.saturating_mul(run.plan.traces_per_group()),
        spans_per_second: per_second(spans, seconds),
        requests_per_second: per_second(tally.requests_acknowledged, seconds),
        body_bytes: tally.body_bytes,
        body_bytes_per_second: per_second(tally.body_bytes, seconds),
        body_bytes_per_span: per_second(tally.body_bytes, spans as f64),
        rate_asked: args.rate,
        kept_up: args.rate.map(|rate| sent_per_second >= 0.995 * rate),
        spans_sent: tally.spans_sent,
        requests_acknowledged: tally.requests_acknowledged,
        spans_acknowledged: spans,
        spans_rejected: tally.spans_rejected,
        requests_refused: tally.requests_refused,
        spans_refused: tally.spans_refused,
        requests_failed: tally.requests_failed,
        spans_failed: tally.spans_failed,
        attempts_repeated: tally.attempts_repeated,
        retry_hints_seen: tally.hints_seen,
        requests_duplicated: tally.requests_duplicated,
        requests_late: tally.requests_late,
        loss: 1.0 - per_second(spans, tally.spans_sent as f64),
        latency: tally.latency.map(|latency| latency.quantiles()).unwrap_or_default(),
        steady_latency: tally.steady_latency.map(|latency| latency.quantiles()).unwrap_or_default(),
        service_time: tally.service_time.map(|time| time.quantiles()).unwrap_or_default(),
        reasons: tally.reasons,
        server: server.map(|server| ServerReport {
            cpu_ns_per_span: server.loaded.per_span(spans),
            steady_cpu_ns_per_span: server.steady,
            settled_cpu_ns_per_span: server.settled.per_span(spans),
            interrupt_ns_per_span: CpuTime { user: Duration::ZERO, system: server.interrupts }
                .per_span(spans)
                .total,
            busy: server.loaded.total().as_secs_f64() / seconds,
            rss_bytes_before: server.rss_before,
            rss_bytes_max: server.rss_max,
            rss_bytes_after: server.rss_after,
            rss_bytes_by_second: server.rss_by_second,
        }),
        generator_cpu_ns_per_span: own.per_span(spans),
        generator_busy: own.total().as_secs_f64() / (seconds * f64::from(args.threads)),
    }
}
