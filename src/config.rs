//! The configuration: one YAML file, every key with a default, unknown keys refused with their place and the nearest name.
//!
//! What was typed becomes what is meant here, once: rooms receive checked values and never a string.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ingest_aggregator::{Limits, ShardConfig, Timing};
use ingest_receiver::{DriverChoice, ReceiverConfig, TlsConfig, TlsVersion, ZeroCopy};
use ingest_sampler::{Policy, SlowPolicy};
use serde::{Deserialize, Deserializer};
use store_model::Threshold;

use crate::cpus::{self, Cpus};

/// Smallest journal segment that makes sense: one maximal request fits.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Segments that a core's part of the journal's budget has at least. Space is reserved and freed by whole segments, and neither
/// the open one nor the newest with a record can go: with fewer, the budget would be met by refusing everything for ever.
const SEGMENTS_MIN: u64 = 4;

/// Shares of the memory budget. What is left is for receive buffers, the archive's open segments and queries.
const LIVE_SHARE: f64 = 0.20;
const BODIES_SHARE: f64 = 0.45;
const RINGS_SHARE: f64 = 0.05;
const OPEN_SEGMENTS_SHARE: f64 = 0.05;
const REMEMBERED_SHARE: f64 = 0.05;

/// What a remembered decision costs with its part of a table that has just grown: kept ones exactly, dropped ones as
/// fingerprints.
pub(crate) const KEPT_MEMORY_BYTES: usize = 74;
pub(crate) const DROPPED_MEMORY_BYTES: usize = 26;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where everything lies that must outlive the process. Default: `./sluicebox-data`.
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) receivers: Receivers,
    pub(crate) journal: Journal,
    pub(crate) aggregator: Aggregator,
    pub(crate) sampling: Sampling,
    pub(crate) archive: Archive,
    pub(crate) query: Query,
    pub(crate) admin: Admin,
    pub(crate) memory: Memory,
}

/// Where spans come in.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Receivers {
    pub(crate) otlp: Otlp,
    pub(crate) zipkin: Listen,
    pub(crate) jaeger: Jaeger,
    /// Ingest cores: journal partitions and shards alike. 0 means as many as the affinity mask allows. Fixed by the data
    /// directory once it exists.
    pub(crate) cores: u16,
    /// The CPUs they stay on, one each; empty for those of the affinity mask. With fewer CPUs than cores nothing is pinned.
    pub(crate) cpus: Vec<usize>,
    /// Tenants beyond this many are refused, so that invented names cannot grow memory.
    pub(crate) max_tenants: usize,
    /// Distinct service and span names that sampling tells apart; later ones share one name for sampling (and keep their
    /// own in what is stored).
    pub(crate) max_names: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Otlp {
    pub(crate) protocols: Protocols,
    /// What does the I/O: `auto` takes the fastest this host allows and says which and why in the log.
    pub(crate) driver: ReceiverDriver,
    /// Zero-copy receive: `auto` takes the last receive queues of the first network card, one a core, away from everything
    /// else on this host, and pins 16 MiB for each; where that cannot be had the log says why. Needs the io_uring driver,
    /// CAP_NET_ADMIN and a card whose headers are split off and whose flows are steered (`ethtool`).
    pub(crate) zero_copy: ReceiverZeroCopy,
    /// Of all cores and both protocols together; each idle one costs less than a kilobyte here and a few in the kernel.
    pub(crate) max_connections: usize,
    /// For the first byte of a connection and for the head of an HTTP/1 request.
    pub(crate) header_timeout: Span,
    /// A body must be complete or have advanced by 1 KiB a second each time this passes.
    pub(crate) body_timeout: Span,
    /// A connection without a request is closed.
    pub(crate) idle_timeout: Span,
}

/// Whether zero-copy receive is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReceiverZeroCopy {
    #[default]
    Off,
    Auto,
}

impl From<ReceiverZeroCopy> for ZeroCopy {
    fn from(zero_copy: ReceiverZeroCopy) -> Self {
        match zero_copy {
            ReceiverZeroCopy::Off => Self::Off,
            ReceiverZeroCopy::Auto => Self::Auto,
        }
    }
}

/// The drivers by their names in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReceiverDriver {
    #[default]
    Auto,
    IoUring,
    Epoll,
    Portable,
}

impl From<ReceiverDriver> for DriverChoice {
    fn from(driver: ReceiverDriver) -> Self {
        match driver {
            ReceiverDriver::Auto => Self::Auto,
            ReceiverDriver::IoUring => Self::IoUring,
            ReceiverDriver::Epoll => Self::Epoll,
            ReceiverDriver::Portable => Self::Portable,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Protocols {
    pub(crate) grpc: Grpc,
    pub(crate) http: Http,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Grpc {
    pub(crate) enabled: bool,
    pub(crate) endpoint: SocketAddr,
    /// After decompression; by default what OTLP advises, or what the memory allows where that is less.
    pub(crate) max_recv_msg_size: Option<Size>,
    pub(crate) tls: Option<TlsSection>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Http {
    pub(crate) enabled: bool,
    pub(crate) endpoint: SocketAddr,
    pub(crate) tls: Option<TlsSection>,
}

/// What a listener identifies itself with; without this section its connections are plain. It costs about 0.15 CPU-ns a
/// byte received, and a handshake a connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsSection {
    /// PEM, the listener's own certificate first.
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
    /// Clients must show a certificate that one of these has signed. Without it everyone is let in.
    #[serde(default)]
    pub(crate) client_ca_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) min_version: Version,
    /// How often the files are looked at; `0s` for only on SIGHUP.
    #[serde(default = "TlsSection::reload_interval")]
    pub(crate) reload_interval: Span,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Jaeger {
    pub(crate) protocols: JaegerProtocols,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct JaegerProtocols {
    pub(crate) grpc: Listen,
    pub(crate) thrift_http: Listen,
}

/// Whether and where a protocol is served; without an endpoint, on its usual port of this host.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Listen {
    pub(crate) enabled: bool,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) tls: Option<TlsSection>,
}

impl Listen {
    fn address(&self, usual: Option<SocketAddr>) -> Option<SocketAddr> {
        self.endpoint.or(usual).filter(|_| self.enabled)
    }

    /// What it is secured with, if it listens.
    pub(crate) fn tls(&self) -> Option<&TlsSection> {
        self.tls.as_ref().filter(|_| self.enabled)
    }
}

/// The journal of what arrived.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Journal {
    /// When a request is answered: `local` after fdatasync, `memory` at once (a crash loses what was not written yet).
    pub(crate) ack: Ack,
    /// Requests are written together: at the latest after this long, or at `group_bytes`.
    pub(crate) group_interval: Span,
    pub(crate) group_bytes: Size,
    pub(crate) segment_bytes: Size,
    /// Requests waiting for the journal, per core. Beyond it clients are asked to come back later.
    pub(crate) queue_bytes: Size,
    pub(crate) retention: Retention,
}

/// The acknowledgement levels of this version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ack {
    Memory,
    #[default]
    Local,
}

/// How long data stays: whichever limit comes first.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retention {
    pub(crate) max_age: Span,
    pub(crate) max_bytes: Size,
}

/// When a trace is finished.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Aggregator {
    pub(crate) quiet_after_root: Span,
    pub(crate) idle_timeout: Span,
    pub(crate) trace_timeout: Span,
    pub(crate) max_spans_per_trace: u32,
}

/// What is kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Sampling {
    /// The fair share of all traces, 0 to 1.
    pub(crate) head_probability: f64,
    pub(crate) keep_errors: bool,
    pub(crate) slow: Slow,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Slow {
    pub(crate) enabled: bool,
    pub(crate) quantile: f64,
    /// Never slow below this.
    pub(crate) floor: Span,
    /// Roots of an operation before its quantile counts.
    pub(crate) min_count: u64,
    /// Slow above this while no quantile is known.
    pub(crate) fallback: Span,
    pub(crate) window: Span,
    pub(crate) max_operations: usize,
}

/// Where kept traces lie.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Archive {
    /// The open segment is sealed at this size or age.
    pub(crate) open_bytes: Size,
    pub(crate) open_age: Span,
    pub(crate) zstd_level: i32,
    pub(crate) retention: Retention,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Query {
    pub(crate) endpoint: SocketAddr,
    pub(crate) tls: Option<TlsSection>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    pub(crate) endpoint: SocketAddr,
    pub(crate) tls: Option<TlsSection>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Memory {
    /// Budget for live traces, their bodies, buffers and open segments. Default: a quarter of the machine's memory.
    pub(crate) limit: Option<Size>,
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

impl Default for Receivers {
    fn default() -> Self {
        Self {
            otlp: Otlp::default(),
            zipkin: Listen::default(),
            jaeger: Jaeger::default(),
            cores: 0,
            cpus: Vec::new(),
            max_tenants: 1_000,
            max_names: 100_000,
        }
    }
}

impl Default for Otlp {
    fn default() -> Self {
        let ReceiverConfig { max_connections, header_timeout, body_timeout, idle_timeout, .. } =
            ReceiverConfig::default();
        Self {
            protocols: Protocols::default(),
            driver: ReceiverDriver::default(),
            zero_copy: ReceiverZeroCopy::default(),
            max_connections,
            header_timeout: Span(header_timeout),
            body_timeout: Span(body_timeout),
            idle_timeout: Span(idle_timeout),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self { enabled: true, endpoint: loopback(4317), max_recv_msg_size: None, tls: None }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { enabled: true, endpoint: loopback(4318), tls: None }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { enabled: true, endpoint: None, tls: None }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            ack: Ack::Local,
            group_interval: Span(Duration::from_millis(5)),
            group_bytes: Size(1 << 20),
            segment_bytes: Size(256 << 20),
            queue_bytes: Size(64 << 20),
            retention: Retention::default(),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_age: Span(Duration::from_hours(24)), max_bytes: Size(20 << 30) }
    }
}

impl Default for Aggregator {
    fn default() -> Self {
        let Timing { quiet_after_root, idle_timeout, trace_timeout } = Timing::default();
        Self {
            quiet_after_root: Span(quiet_after_root),
            idle_timeout: Span(idle_timeout),
            trace_timeout: Span(trace_timeout),
            max_spans_per_trace: Limits::default().trace_spans_max,
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { head_probability: 0.01, keep_errors: true, slow: Slow::default() }
    }
}

impl Default for Slow {
    fn default() -> Self {
        let SlowPolicy { quantile, floor, count_min, fallback, window, operations_max } =
            SlowPolicy::default();
        Self {
            enabled: true,
            quantile,
            floor: Span(floor),
            min_count: count_min,
            fallback: Span(fallback),
            window: Span(window),
            max_operations: operations_max,
        }
    }
}

impl Default for Archive {
    fn default() -> Self {
        let two_weeks = Duration::from_hours(14 * 24);
        Self {
            open_bytes: Size(64 << 20),
            open_age: Span(Duration::from_secs(300)),
            zstd_level: 1,
            retention: Retention { max_age: Span(two_weeks), max_bytes: Size(100 << 30) },
        }
    }
}

impl Default for Query {
    fn default() -> Self {
        Self { endpoint: loopback(4320), tls: None }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { endpoint: loopback(4319), tls: None }
    }
}

/// What is wrong with a configuration file, ready to be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {problem}")]
    Wrong { path: PathBuf, problem: String },
}

impl Config {
    /// Reads and checks a file; `None` means all defaults.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let checked = Self::parse(&text).and_then(|config| config.check().map(|()| config));
        checked.map_err(|problem| Error::Wrong { path: path.to_owned(), problem })
    }

    fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| {
            let hint = nearest_name(&error.without_snippet().to_string());
            let hint = hint.map(|name| format!("\n  did you mean `{name}`?"));
            said_once(&error.to_string()) + &hint.unwrap_or_default()
        })
    }

    fn check(&self) -> Result<(), String> {
        let wrong = |key: &str, problem: &str| Err(format!("{key}: {problem}"));
        if !(0.0..=1.0).contains(&self.sampling.head_probability) {
            return wrong(
                "sampling.head_probability",
                "must lie between 0 and 1 (0.01 keeps one trace in a hundred)",
            );
        }
        if !(0.5..1.0).contains(&self.sampling.slow.quantile) {
            return wrong(
                "sampling.slow.quantile",
                "must lie between 0.5 and 1 (0.95 keeps the slowest 5 %)",
            );
        }
        if self.journal.segment_bytes.0 < SEGMENT_BYTES_MIN {
            return wrong("journal.segment_bytes", "must be at least 1MiB");
        }
        if self.journal.group_interval.0 > Duration::from_secs(1) {
            return wrong("journal.group_interval", "must be at most 1s: senders wait for it");
        }
        if !(1..=19).contains(&self.archive.zstd_level) {
            return wrong("archive.zstd_level", "must lie between 1 and 19");
        }
        if self.memory.limit.is_some_and(|limit| limit.0 < 64 << 20) {
            return wrong("memory.limit", "must be at least 64MiB");
        }
        let Otlp { header_timeout, body_timeout, idle_timeout, .. } = &self.receivers.otlp;
        if [header_timeout, body_timeout, idle_timeout].iter().any(|timeout| timeout.0.is_zero()) {
            return wrong("receivers.otlp", "header_timeout, body_timeout and idle_timeout must not be 0");
        }
        if self.receivers.cores > 1_024 {
            return wrong("receivers.cores", "must be at most 1024");
        }
        let allowed = cpus::allowed();
        if let Some(cpu) = self.receivers.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            return wrong(
                "receivers.cpus",
                &format!("CPU {cpu} is none of those this process may use: {allowed:?}"),
            );
        }
        if self.aggregator.max_spans_per_trace == 0 {
            return wrong("aggregator.max_spans_per_trace", "must be at least 1");
        }
        Ok(())
    }

    /// What the receiver is told.
    pub(crate) fn receiver(&self, cores: u16, cpus: &Cpus, memory_bytes: u64) -> ReceiverConfig {
        let Receivers { otlp, zipkin, jaeger, .. } = &self.receivers;
        let Otlp {
            protocols,
            driver,
            zero_copy,
            max_connections,
            header_timeout,
            body_timeout,
            idle_timeout,
        } = otlp;
        let Protocols { grpc, http } = protocols;
        // An eighth of the budget, as design section 5 leaves for buffers; never less than two maximal requests.
        let usual = ReceiverConfig::default();
        let eighth = to_usize(memory_bytes / 8);
        let request_bytes_max =
            grpc.max_recv_msg_size.map_or(usual.request_bytes_max.min(eighth / 2), |size| to_usize(size.0));
        ReceiverConfig {
            driver: (*driver).into(),
            zero_copy: (*zero_copy).into(),
            grpc: grpc.enabled.then_some(grpc.endpoint),
            http: http.enabled.then_some(http.endpoint),
            zipkin: zipkin.address(usual.zipkin),
            jaeger_grpc: jaeger.protocols.grpc.address(usual.jaeger_grpc),
            jaeger_http: jaeger.protocols.thrift_http.address(usual.jaeger_http),
            request_bytes_max,
            inflight_bytes_max: eighth.max(request_bytes_max.saturating_mul(2)),
            // Not half of what may be in flight: large requests are allowed more of a small budget than their share.
            pool_bytes: to_usize(memory_bytes / 16),
            cores: usize::from(cores),
            cpus: cpus.list().to_vec(),
            max_connections: *max_connections,
            header_timeout: header_timeout.0,
            body_timeout: body_timeout.0,
            idle_timeout: idle_timeout.0,
            ..usual
        }
    }

    /// How large a journal segment of one of so many cores is made.
    pub(crate) fn journal_segment_bytes(&self, cores: u16) -> u64 {
        let Journal { segment_bytes, retention, .. } = &self.journal;
        let part = retention.max_bytes.0 / u64::from(cores.max(1)) / SEGMENTS_MIN;
        segment_bytes.0.min(part).max(SEGMENT_BYTES_MIN)
    }

    /// Bytes that may wait in the rings of one shard.
    pub(crate) fn ring_bytes_max(shards: u16, memory_bytes: u64) -> usize {
        share(memory_bytes / u64::from(shards), RINGS_SHARE)
    }

    /// Bytes an open archive segment may have before it is sealed. Another one may be open until that is done.
    pub(crate) fn open_segment_bytes(&self, shards: u16, memory_bytes: u64) -> usize {
        let both = share(memory_bytes / u64::from(shards), OPEN_SEGMENTS_SHARE);
        to_usize(self.archive.open_bytes.0).min(both / 2)
    }

    /// What each of `shards` shards is told.
    pub(crate) fn shard(&self, shards: u16, memory_bytes: u64) -> ShardConfig {
        let Sampling { head_probability, keep_errors, slow } = &self.sampling;
        let Aggregator { quiet_after_root, idle_timeout, trace_timeout, max_spans_per_trace } =
            &self.aggregator;
        let remembered = Limits::default();
        // Two generations of each kind share what remembered decisions get.
        let memory_each = share(memory_bytes / u64::from(shards), REMEMBERED_SHARE);
        ShardConfig {
            partitions: shards,
            policy: Policy {
                head: Threshold::from_probability(*head_probability),
                keep_errors: *keep_errors,
                keep_slow: slow.enabled,
            },
            slow: SlowPolicy {
                quantile: slow.quantile,
                floor: slow.floor.0,
                count_min: slow.min_count,
                fallback: slow.fallback.0,
                window: slow.window.0,
                operations_max: slow.max_operations,
            },
            timing: Timing {
                quiet_after_root: quiet_after_root.0,
                idle_timeout: idle_timeout.0,
                trace_timeout: trace_timeout.0,
            },
            limits: Limits {
                live_bytes_max: share(memory_bytes / u64::from(shards), LIVE_SHARE),
                body_bytes_max: share(memory_bytes / u64::from(shards), BODIES_SHARE),
                trace_spans_max: *max_spans_per_trace,
                kept_remembered_max: remembered.kept_remembered_max.min(memory_each / 4 / KEPT_MEMORY_BYTES),
                dropped_remembered_max: remembered
                    .dropped_remembered_max
                    .min(memory_each / 4 / DROPPED_MEMORY_BYTES),
            },
        }
    }
}

impl TlsSection {
    const fn reload_interval() -> Span {
        Span(Duration::from_mins(1))
    }

    /// What the receiver's TLS is told.
    pub(crate) fn checked(&self) -> TlsConfig {
        let Self { cert_file, key_file, client_ca_file, min_version, reload_interval } = self.clone();
        TlsConfig {
            certificate_file: cert_file,
            key_file,
            client_ca_file,
            min_version: min_version.0,
            reload_interval: reload_interval.0,
        }
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "a share of a budget is smaller than the budget")]
#[expect(clippy::cast_sign_loss, reason = "both factors are positive")]
#[expect(clippy::cast_precision_loss, reason = "a budget needs no 53rd bit")]
fn share(bytes: u64, part: f64) -> usize {
    (bytes as f64 * part) as usize
}

/// A parser's report without what our own line has already: whose it is, and below the place again what is wrong there.
fn said_once(report: &str) -> String {
    let lines = report.lines().filter(|line| !line.trim_start().starts_with("--> "));
    let lines = lines.map(|line| match line.split_once("^ ") {
        Some((before, _)) if before.trim_start().starts_with('|') => format!("{before}^"),
        _ => line.to_owned(),
    });
    let all: Vec<String> = lines.collect();
    all.join("\n").trim_start_matches("error: ").to_owned()
}

/// Of "unknown field `x`, expected one of a, b" the name that `x` was probably meant to be.
fn nearest_name(message: &str) -> Option<String> {
    let (unknown, rest) = message.split_once("unknown field `")?.1.split_once('`')?;
    let names = rest
        .split(" at line ")
        .next()?
        .trim_start_matches(", expected one of ")
        .trim_start_matches(", expected ");
    let names = names.split([',', ' ']).map(|name| name.trim_matches('`')).filter(|name| !name.is_empty());
    let scored = names.map(|name| (strsim::damerau_levenshtein(unknown, name), name));
    scored.min().filter(|(distance, _)| *distance <= 3).map(|(_, name)| name.to_owned())
}

/// A number of bytes: `512`, `64KiB`, `1MiB`, `20GiB`, also `KB`, `MB`, `GB` (powers of ten).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// A span of time: `5ms`, `2s`, `1m`, `24h`, `14d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A TLS version: `"1.2"` or `"1.3"`, with or without the quotes that make it no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version(pub(crate) TlsVersion);

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim()))
}

impl Size {
    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_unit(text)?;
        let factor: u64 = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return None,
        };
        number.checked_mul(factor).map(Self)
    }
}

impl Span {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_unit(text)?;
        let unit = match unit {
            "us" | "µs" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            "d" => Duration::from_hours(24),
            _ => return None,
        };
        unit.checked_mul(u32::try_from(number).ok()?).map(Self)
    }
}

struct TextVisitor<T> {
    parse: fn(&str) -> Option<T>,
    wanted: &'static str,
}

impl<T> serde::de::Visitor<'_> for TextVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::custom(format!("`{text}` is not {}", self.wanted)))
    }
    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = "a size such as 64MiB or 20GiB";
        deserializer.deserialize_str(TextVisitor { parse: Self::parse, wanted })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = "a span of time such as 5ms, 30s, 5m, 24h or 14d";
        deserializer.deserialize_str(TextVisitor { parse: Self::parse, wanted })
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| text.parse().ok().map(Self);
        deserializer.deserialize_any(TextVisitor { parse, wanted: "a TLS version, \"1.2\" or \"1.3\"" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        match Config::parse(text) {
            Err(message) => message,
            Ok(config) => config.check().unwrap_err(),
        }
    }

    #[test]
    fn an_empty_file_means_all_defaults() {
        let config = Config::parse("").unwrap();
        config.check().unwrap();
        assert_eq!(config.query.endpoint.port(), 4320);
        assert_eq!(config.journal.ack, Ack::Local);
    }

    #[test]
    fn free_memory_for_bodies_has_its_share_of_a_small_budget_too() {
        let config = Config::default();
        let pool_bytes = |limit| config.receiver(1, &Cpus::choose(&[], 1), limit).pooled_bytes();
        assert_eq!([256 << 20, 10 << 30].map(pool_bytes), [16 << 20, 640 << 20]);
    }

    #[test]
    fn requests_in_flight_have_an_eighth_of_the_memory_unless_larger_ones_are_asked_for() {
        let mib = |yaml: &str, limit_mib: u64| {
            let config = Config::parse(yaml).unwrap().receiver(1, &Cpus::choose(&[], 1), limit_mib << 20);
            (config.request_bytes_max >> 20, config.inflight_bytes_max >> 20)
        };
        assert_eq!(mib("", 256), (16, 32));
        assert_eq!(mib("", 10 << 10), (64, 1280));
        let asked = "receivers: { otlp: { protocols: { grpc: { max_recv_msg_size: 50MiB } } } }";
        assert_eq!(mib(asked, 256), (50, 100));
    }

    #[test]
    fn a_small_journal_has_several_segments_all_the_same() {
        let segment_mib = |max_bytes: &str, cores| {
            let config = Config::parse(&format!("journal: {{ retention: {{ max_bytes: {max_bytes} }} }}"));
            config.unwrap().journal_segment_bytes(cores) >> 20
        };
        assert_eq!(
            [("20GiB", 20), ("20GiB", 80), ("200MiB", 2)].map(|(max, n)| segment_mib(max, n)),
            [256, 64, 25]
        );
        assert_eq!(segment_mib("1MiB", 8), 1);
    }

    #[test]
    fn a_driver_goes_by_its_own_name() {
        for name in ["auto", "io_uring", "epoll", "portable"] {
            let config = Config::parse(&format!("receivers: {{ otlp: {{ driver: {name} }} }}")).unwrap();
            assert_eq!(DriverChoice::from(config.receivers.otlp.driver).as_str(), name);
        }
        assert!(refusal("receivers: { otlp: { driver: uring } }").contains("io_uring"));
    }

    #[test]
    fn zipkin_and_jaeger_listen_on_their_usual_ports_unless_told_otherwise() {
        let ports = |text: &str| {
            let config = Config::parse(text).unwrap().receiver(1, &Cpus::choose(&[], 1), 1 << 30);
            let all = [config.zipkin, config.jaeger_grpc, config.jaeger_http];
            all.map(|address| address.map(|address| address.to_string()))
        };
        let usual = ["127.0.0.1:9411", "127.0.0.1:14250", "127.0.0.1:14268"];
        assert_eq!(ports(""), usual.map(|address| Some(address.to_owned())));
        let text = "receivers:
  zipkin: { endpoint: 0.0.0.0:1 }
  jaeger: { protocols: { grpc: { enabled: false }, thrift_http: { endpoint: 127.0.0.1:2 } } }";
        assert_eq!(ports(text), [Some("0.0.0.0:1".to_owned()), None, Some("127.0.0.1:2".to_owned())]);
    }

    #[test]
    fn every_listener_takes_a_tls_section() {
        let section =
            "{ cert_file: a, key_file: b, min_version: 1.3, client_ca_file: c, reload_interval: 0s }";
        let both = |other: &str| {
            format!("protocols: {{ grpc: {{ tls: {section} }}, {other}: {{ tls: {section} }} }}")
        };
        let (otlp, jaeger) = (both("http"), both("thrift_http"));
        let text = format!(
            "receivers: {{ otlp: {{ {otlp} }}, jaeger: {{ {jaeger} }}, zipkin: {{ tls: {section} }} }}\n\
             query: {{ tls: {section} }}\nadmin: {{ tls: {section} }}\n"
        );
        let config = Config::parse(&text).unwrap();
        for (listener, section) in crate::identities::sections(&config) {
            let tls = section.unwrap_or_else(|| panic!("{listener} has one")).checked();
            assert_eq!(
                (tls.min_version, tls.reload_interval),
                (TlsVersion::V1_3, Duration::ZERO),
                "{listener}"
            );
        }
        let config =
            Config::parse("query: { tls: { cert_file: a, key_file: b, min_version: \"1.2\" } }").unwrap();
        let tls = config.query.tls.unwrap().checked();
        assert_eq!((tls.min_version, tls.reload_interval), (TlsVersion::V1_2, Duration::from_mins(1)));
        assert!(refusal("query:\n  tls: { cert_file: a }\n").contains("key_file"));
        assert!(
            refusal("admin: { tls: { cert_file: a, key_file: b, min_version: 1.1 } }").contains("\"1.2\" or")
        );
        assert!(
            refusal("admin: { tls: { cert_fil: a, key_file: b } }").contains("did you mean `cert_file`?")
        );
    }

    #[test]
    fn a_typo_is_refused_with_its_place_and_the_nearest_name() {
        let message = refusal("sampling:\n  head_probabilty: 0.1\n");
        assert!(message.contains("line 2 column 3"), "{message}");
        assert!(message.contains("did you mean `head_probability`?"), "{message}");
        let message = refusal("receivers:\n  otlp:\n    protocols:\n      grcp: {}\n");
        assert!(message.contains("line 4") && message.contains("did you mean `grpc`?"), "{message}");
    }

    #[test]
    fn a_problem_is_said_once_above_its_place() {
        assert_eq!(
            refusal("journal:\n  segment_bytes: 12 bananas\n"),
            "line 2 column 18: `12 bananas` is not a size such as 64MiB or 20GiB\n  |\n1 | journal:\n\
             2 |   segment_bytes: 12 bananas\n  |                  ^"
        );
    }

    #[test]
    fn a_wrong_value_is_refused_with_what_would_be_right() {
        assert!(refusal("journal:\n  group_interval: 5\n").contains("a span of time such as 5ms"));
        assert!(refusal("journal:\n  segment_bytes: 12 bananas\n").contains("a size such as 64MiB"));
        assert!(refusal("sampling:\n  head_probability: 1.5\n").contains("between 0 and 1"));
        assert!(refusal("journal:\n  ack: disk\n").contains("line 2"));
    }

    #[test]
    fn units_mean_what_they_say() {
        assert_eq!(Size::parse("64MiB"), Some(Size(64 << 20)));
        assert_eq!(Size::parse("2 GB"), Some(Size(2_000_000_000)));
        assert_eq!(Size::parse("-1"), None);
        assert_eq!(Span::parse("14d"), Some(Span(Duration::from_hours(336))));
        assert_eq!(Span::parse("99999999999d"), None);
    }
}
