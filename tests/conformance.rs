//! What programs of others say about the real binary, on every driver: h2spec about HTTP/2, curl and h2load about OTLP/HTTP,
//! five gRPC libraries about every answer of OTLP's table. Installs what it needs (`tests/conformance/setup`) and leaves out,
//! loudly, what cannot be had. Never looks into the process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says so")]

#[path = "e2e/appliance.rs"]
#[allow(dead_code, reason = "made for tests that ask for more")]
mod appliance;
#[path = "conformance/drivers.rs"]
#[allow(dead_code, reason = "shared with the attacks")]
mod drivers;
#[path = "conformance/grpc.rs"]
mod grpc;
#[path = "e2e/spans.rs"]
#[allow(dead_code, reason = "made for tests that ask for more")]
mod spans;
#[path = "conformance/tonic_client.rs"]
mod tonic_client;
#[path = "conformance/tools.rs"]
mod tools;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use prost::Message as _;
use serde_json::{Value, json};

use crate::appliance::{PATIENCE, text};

/// The portable driver is left out: its HTTP/2 is hyper's, which reads a broken preface as HTTP/1 and answers in it, takes
/// HEADERS frames beyond SETTINGS_MAX_FRAME_SIZE, and answers some requests before h2spec has broken the rules.
#[tokio::test(flavor = "multi_thread")]
async fn h2spec_finds_no_fault() {
    for driver in drivers::OWN {
        if !tools::has("h2spec") || !drivers::has(driver) {
            continue;
        }
        let home = drivers::home(driver, json!({}));
        let appliance = home.start().await;
        for (port, path) in [(appliance.grpc(), "/"), (appliance.http(), "/v1/traces")] {
            let output = Command::new(tools::cache().join("h2spec/h2spec"))
                // Of the frames that it waits for, each may take five seconds: the machine may be busy.
                .args(["--strict", "-o", "5", "-h", "127.0.0.1", "-P", path, "-p", &port.port().to_string()])
                .output()
                .unwrap();
            let said = text(&output);
            let failures = said.split("Failures:").nth(1).unwrap_or(&said);
            assert!(output.status.success() && said.contains(" 0 failed"), "{driver}, {path}: {failures}");
            assert!(said.contains("146 tests"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_heard_by_every_grpc_client() {
    for driver in drivers::ALL {
        if !drivers::has(driver) {
            continue;
        }
        let limited = json!({
            "receivers": {
                "max_tenants": 1,
                "otlp": { "protocols": { "grpc": { "max_recv_msg_size": "1MiB" } } },
            },
        });
        ask(driver, limited, &grpc::cases()).await;
        ask(driver, json!({ "journal": { "queue_bytes": "0" } }), &grpc::overload()).await;
    }
}

async fn ask(driver: &str, config: Value, cases: &[grpc::Case]) {
    let home = drivers::home(driver, config);
    let appliance = home.start().await;
    let folder = tempfile::tempdir().unwrap();
    grpc::write(cases, folder.path());
    grpc::check(&format!("tonic on {driver}"), cases, &tonic_client::call_all(appliance.grpc(), cases).await);
    for client in tools::CLIENTS.into_iter().filter(|client| tools::has(client)) {
        let heard = tools::call_all(client, &appliance.grpc().to_string(), folder.path());
        grpc::check(&format!("{client} on {driver}"), cases, &heard);
    }
}

/// A body in a file.
fn otlp_body(folder: &Path, name: &str, spans: u64, padding: usize) -> String {
    let mut request = spans::request("curl", spans::trace(spans::Dice(spans).trace_id(), spans));
    let padding = spans::attribute("padding", &"x".repeat(padding));
    request.resource_spans[0].scope_spans[0].spans[0].attributes.push(padding);
    let file = folder.join(name);
    std::fs::write(&file, request.encode_to_vec()).unwrap();
    file.display().to_string()
}

/// Runs curl; the status of each answer, how many connections it opened, and the headers it heard.
fn curl(arguments: &[&str], urls: usize, to: &str) -> (Vec<String>, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "60", "--dump-header", "-", "--output", "/dev/null"])
        .args(["--write-out", "answer %{http_version} %{http_code} %{num_connects}\n"])
        .args(arguments)
        .args((1..urls).flat_map(|_| [to, "--output", "/dev/null"]))
        .arg(to)
        .output()
        .unwrap();
    let said = text(&output);
    let answers = said.lines().filter_map(|line| line.strip_prefix("answer ")).map(str::to_owned);
    (answers.collect(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_answered_in_every_version_and_framing() {
    const PROTOBUF: &str = "content-type: application/x-protobuf";
    for driver in drivers::ALL {
        if !tools::has("curl") || !drivers::has(driver) {
            continue;
        }
        let home = drivers::home(driver, json!({}));
        let appliance = home.start().await;
        let folder = tempfile::tempdir().unwrap();
        let small = format!("@{}", otlp_body(folder.path(), "small", 20, 0));
        let large = format!("@{}", otlp_body(folder.path(), "large", 20, 3 << 20));
        let url = format!("http://{}/v1/traces", appliance.http());
        let post = |version: &str, extra: &[&str], body: &str, count| {
            let arguments = [&[version, "-H", PROTOBUF, "--data-binary", body], extra].concat();
            curl(&arguments, count, &url)
        };
        let old = "--http1.1";
        // curl 7.88 cannot use a connection twice that began with prior knowledge, whoever serves; h2load does that.
        let new = "--http2-prior-knowledge";
        let all = [
            ("one", post(old, &[], &small, 1), &["1.1 200 1"][..]),
            ("kept alive", post(old, &[], &small, 3), &["1.1 200 1", "1.1 200 0", "1.1 200 0"]),
            (
                "chunked",
                post(old, &["-H", "transfer-encoding: chunked", "-H", "expect:"], &large, 1),
                &["1.1 200 1"],
            ),
            ("expecting", post(old, &["-H", "expect: 100-continue"], &large, 1), &["1.1 200 1"]),
            ("offering an upgrade", post("--http2", &[], &small, 1), &["1.1 200 1"]),
            ("prior knowledge", post(new, &[], &small, 1), &["2 200 1"]),
            ("large", post(new, &[], &large, 1), &["2 200 1"]),
        ];
        // A server may answer HTTP/1.0 in HTTP/1.1; the drivers differ in it.
        let (answers, said) = post("--http1.0", &[], &small, 1);
        assert!(answers.len() == 1 && answers[0].ends_with(" 200 1"), "{driver}: HTTP/1.0: {said}");
        for (what, (answers, said), expected) in all {
            assert_eq!(answers, expected, "{driver}: {what}: {said}");
            let continued = said.matches("HTTP/1.1 100").count();
            assert_eq!(continued, usize::from(what == "expecting"), "{driver}: {what}: {said}");
        }
    }
}

/// Sends what curl cannot: several requests at once on one HTTP/1.1 connection.
fn pipelined(to: SocketAddr, body: &[u8], requests: usize) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = |close: &str| {
        let length = body.len();
        format!(
            "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: {length}\r\n{close}\r\n"
        )
    };
    let mut all = Vec::new();
    for number in 1..=requests {
        all.extend_from_slice(head(if number == requests { "connection: close\r\n" } else { "" }).as_bytes());
        all.extend_from_slice(body);
    }
    stream.write_all(&all).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_one_after_the_other() {
    for driver in drivers::ALL {
        if !drivers::has(driver) {
            continue;
        }
        let home = drivers::home(driver, json!({}));
        let appliance = home.start().await;
        let folder = tempfile::tempdir().unwrap();
        let body = std::fs::read(otlp_body(folder.path(), "body", 5, 0)).unwrap();
        let answer = pipelined(appliance.http(), &body, 20);
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 20, "{driver}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 20, "{driver}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h2load_hears_nothing_but_success() {
    const REQUESTS: &str = "4000";
    for driver in drivers::ALL {
        if !tools::has("h2load") || !drivers::has(driver) {
            continue;
        }
        let home = drivers::home(driver, json!({}));
        let appliance = home.start().await;
        let folder = tempfile::tempdir().unwrap();
        let body = otlp_body(folder.path(), "body", 20, 0);
        let url = format!("http://{}/v1/traces", appliance.http());
        for version in [&["-m", "16"][..], &["--h1"]] {
            let output = Command::new("h2load")
                .args(["-n", REQUESTS, "-c", "16", "-d", &body, "-H", "content-type: application/x-protobuf"])
                .args(version)
                .arg(&url)
                .output()
                .unwrap();
            let said = text(&output);
            let all = format!("status codes: {REQUESTS} 2xx, 0 3xx, 0 4xx, 0 5xx");
            let done = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
            assert!(said.contains(&all) && said.contains(&done), "{driver} {version:?}: {said}");
        }
        // A request that was answered is one that was taken.
        tokio::time::timeout(PATIENCE, async {
            while appliance.metric("sluicebox_receiver_requests_total{protocol=\"http\"}") < 8_000.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
    }
}
