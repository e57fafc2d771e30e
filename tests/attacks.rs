//! Attacks on the real binary, one after the other, each on an appliance of its own with one ingest core, beside an honest
//! sender on the same core. Whoever attacks is cut and counted, memory stays, and every honest request is taken.
//!
//! How long the honest sender waits is measured and written down (`SLUICEBOX_ATTACK_RESULTS`), not asserted: on a shared machine
//! it says more about the others.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says so")]

#[path = "e2e/appliance.rs"]
#[allow(dead_code, reason = "made for tests that ask for more")]
mod appliance;
#[path = "conformance/drivers.rs"]
#[allow(dead_code, reason = "made for tests that ask for more")]
mod drivers;
#[path = "attacks/frames.rs"]
mod frames;
#[path = "attacks/honest.rs"]
mod honest;
#[path = "attacks/offender.rs"]
mod offender;
#[path = "e2e/spans.rs"]
#[allow(dead_code, reason = "made for tests that ask for more")]
mod spans;

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::offender::Offender;

/// What an attack may add to the resident memory.
const GROWTH_KIB_MAX: u64 = 64 << 10;

/// Ten thousand connections, and what else a process has open.
const FILES: u64 = 12_000;

/// Where it is seen that an attack was noticed.
#[derive(Clone, Copy)]
enum Seen {
    /// Connections cut for this reason.
    Cut(&'static str),
    /// Requests refused for this reason.
    Refused(&'static str),
    /// Connections closed as they came.
    TurnedAway,
}

impl Seen {
    /// The counters in `/metrics`, labels included.
    fn names(self) -> Vec<String> {
        let labelled = |name: &str, reason: &str| {
            let line = |protocol| {
                format!("sluicebox_receiver_{name}_total{{protocol=\"{protocol}\",reason=\"{reason}\"}}")
            };
            ["grpc", "http"].map(line).to_vec()
        };
        match self {
            Self::Cut(reason) => labelled("connections_cut", reason),
            Self::Refused(reason) => labelled("requests_refused", reason),
            Self::TurnedAway => vec!["sluicebox_receiver_connections_turned_away_total".to_owned()],
        }
    }

    fn count(self, appliance: &Appliance) -> f64 {
        self.names().iter().map(|name| appliance.metric(name)).sum()
    }
}

struct Attack {
    name: &'static str,
    seen: Seen,
    /// Deadlines take their time.
    seconds_min: u64,
    run: fn(&Offender),
}

/// Deadlines are seconds here, so that the slow attacks need not last minutes.
const ATTACKS: [Attack; 17] = {
    use Seen::{Cut, Refused, TurnedAway};
    const fn attack(name: &'static str, seen: Seen, seconds_min: u64, run: fn(&Offender)) -> Attack {
        Attack { name, seen, seconds_min, run }
    }
    [
        attack("rapid_reset", Cut("reset_flood"), 0, Offender::rapid_reset),
        attack("made_to_reset", Cut("reset_flood"), 0, Offender::made_to_reset),
        attack("many_streams", Cut("reset_flood"), 0, Offender::many_streams),
        attack("continuation_flood", Cut("continuation_flood"), 0, Offender::continuation_flood),
        attack("ping_flood", Cut("ping_flood"), 0, Offender::ping_flood),
        attack("settings_flood", Cut("settings_flood"), 0, Offender::settings_flood),
        attack("empty_data", Cut("empty_frame_flood"), 0, Offender::empty_data),
        attack("hpack_bomb", Cut("hpack_bomb"), 0, Offender::hpack_bomb),
        attack("large_headers", Cut("header_list_too_large"), 0, Offender::large_headers),
        attack("gzip_bomb", Refused("too_large"), 0, Offender::gzip_bomb),
        attack("lying_gzip_bomb", Refused("malformed"), 0, Offender::lying_gzip_bomb),
        attack("zstd_bomb", Refused("malformed"), 0, Offender::zstd_bomb),
        attack("slow_headers", Cut("header_timeout"), 5, Offender::slow_headers),
        attack("slow_bodies", Refused("timeout"), 6, Offender::slow_bodies),
        attack("never_reads", Cut("output_not_read"), 6, Offender::never_reads),
        attack("window_starvation", Cut("overstayed"), 11, Offender::window_starvation),
        attack("idle_connections", TurnedAway, 4, Offender::idle_connections),
    ]
};

fn config(attack: &Attack) -> Value {
    // The size that OTLP advises and larger hosts have by default: bombs may unfold to that.
    let protocols = json!({ "grpc": { "max_recv_msg_size": "64MiB" } });
    let otlp = json!({ "protocols": protocols, "max_connections": 10_000 });
    let mut config = json!({ "receivers": { "cores": 1, "otlp": otlp } });
    if attack.name != "idle_connections" {
        let otlp = &mut config["receivers"]["otlp"];
        for (deadline, value) in [("header_timeout", "2s"), ("body_timeout", "2s"), ("idle_timeout", "3s")] {
            otlp[deadline] = json!(value);
        }
    }
    config
}

/// What the process has resident, at the most, until the time is over.
#[expect(clippy::disallowed_methods, reason = "it looks for as long as an attack lasts")]
async fn watch(appliance: &Appliance, until: Instant) -> (u64, f64) {
    let (mut most, mut connections) = (0, 0.0_f64);
    while Instant::now() < until {
        most = most.max(appliance.memory_kib("VmRSS"));
        connections = connections.max(appliance.metric("sluicebox_receiver_connections{"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (most, connections)
}

#[expect(clippy::disallowed_methods, reason = "an attack has its end in real time")]
fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// One attack on one driver, measured.
async fn suffer(driver: &str, attack: &Attack, seconds: u64) -> Value {
    let home = drivers::home(driver, config(attack));
    let mut appliance = home.start().await;
    let sender = honest::Sender::start(appliance.http());
    let seconds = seconds.max(attack.seconds_min);
    let (resident, _) = watch(&appliance, in_seconds(seconds)).await;
    let mut quiet = sender.stop();

    let sender = honest::Sender::start(appliance.http());
    let until = in_seconds(seconds);
    let offender = Offender { grpc: appliance.grpc(), http: appliance.http(), until };
    let run = attack.run;
    let attacking = tokio::task::spawn_blocking(move || run(&offender));
    let (most, connections) = watch(&appliance, until).await;
    attacking.await.unwrap();
    let mut loud = sender.stop();

    assert!(appliance.is_running(), "{driver}: {}: it ended", attack.name);
    let growth = most.saturating_sub(resident);
    let count = attack.seen.count(&appliance);
    let result = json!({
        "driver": driver,
        "attack": attack.name,
        "seconds": seconds,
        "counted": count,
        "counter": attack.seen.names()[0],
        "connections_most": connections,
        "resident_kib_quiet": resident,
        "resident_kib_growth": growth,
        "honest_requests": [quiet.len(), loud.len()],
        // Quiet first, then under attack.
        "honest_p50_ms": [honest::quantile_ms(&mut quiet, 500), honest::quantile_ms(&mut loud, 500)],
        "honest_p99_ms": [honest::quantile_ms(&mut quiet, 990), honest::quantile_ms(&mut loud, 990)],
    });
    eprintln!("{result}");
    assert!(growth < GROWTH_KIB_MAX, "memory grows: {result}");
    // The library of the portable driver cuts as well and does not say why.
    assert!(count > 0.0 || driver == "portable", "nobody noticed: {result}");
    if attack.name == "idle_connections" {
        assert!(connections >= 9_900.0, "that many were to be held: {result}");
    }
    result
}

fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(FILES).min(FILES);
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).unwrap();
    }
    assert!(wanted >= FILES, "{FILES} open files are needed, {wanted} allowed (ulimit -Hn)");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_attacks_is_cut_and_counted_and_honest_senders_are_served() {
    raise_file_limit();
    offender::gzip_bytes();
    let given = |name: &str, or: &str| std::env::var(name).unwrap_or_else(|_unset| or.to_owned());
    let seconds = given("SLUICEBOX_ATTACK_SECONDS", "1").parse().unwrap();
    let (wanted, only) = (given("SLUICEBOX_ATTACK_DRIVERS", "io_uring,epoll"), given("SLUICEBOX_ATTACK", ""));
    let mut results = Vec::new();
    for driver in wanted.split(',').filter(|driver| drivers::has(driver)) {
        for attack in ATTACKS.iter().filter(|attack| attack.name.contains(&only)) {
            results.push(suffer(driver, attack, seconds).await);
        }
    }
    if let Ok(file) = std::env::var("SLUICEBOX_ATTACK_RESULTS") {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let whole = json!({
            "commit": given("SLUICEBOX_ATTACK_COMMIT", ""),
            "profile": profile,
            "processors": processors,
            "results": results,
        });
        std::fs::write(file, serde_json::to_string_pretty(&whole).unwrap()).unwrap();
    }
}
