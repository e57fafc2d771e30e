//! The OpenTelemetry SDKs for Python and JavaScript, and their Zipkin and Jaeger exporters, unmodified, against the real binary: what comes back is what they sent.
//!
//! The senders in `tests/sdk` keep a ledger of every span; this file compares it with the answers. It never looks into
//! the data directory.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ingest_otlp::messages::{AnyValue, KeyValue, Span, TracesData, any_value::Value};
use prost::Message as _;
use query_api::proto::trace_query_client::TraceQueryClient;
use query_api::proto::{
    Decision, GetStatusRequest, GetStatusResponse, GetTraceRequest, SearchTracesRequest, SpanCounts,
    TraceSummary,
};
use serde_json::json;
use tonic::transport::Channel;

/// How long anything may take that is waited for; a loaded machine gets generous time, a hung one an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The threshold of 1 % as the OpenTelemetry specification writes it (`th:fd70a`), in its 56 bits.
const ONE_PERCENT: u64 = 0xfd_70a0_0000_0000;

/// The services of one trace flush on their own; on a busy machine they may be seconds apart, and what comes after the
/// decision would be late.
const CONFIG: &str = "
receivers:
  otlp:
    protocols:
      grpc: { endpoint: 127.0.0.1:0 }
      http: { endpoint: 127.0.0.1:0 }
  zipkin: { endpoint: 127.0.0.1:0 }
  jaeger:
    protocols:
      grpc: { endpoint: 127.0.0.1:0 }
      thrift_http: { endpoint: 127.0.0.1:0 }
query: { endpoint: 127.0.0.1:0 }
admin: { endpoint: 127.0.0.1:0 }
aggregator: { quiet_after_root: 4s }
";

type Spans = BTreeMap<String, serde_json::Value>;

/// A trace as the ledger has it.
struct Sent {
    class: String,
    /// By span id.
    spans: Spans,
}

type Ledger = BTreeMap<String, Sent>;

/// The binary, running; killed when the test ends early.
struct Appliance {
    process: Child,
    folder: tempfile::TempDir,
    endpoints: serde_json::Value,
    /// Tests of this file share two cores; one after the other they say more.
    _turn: MutexGuard<'static, ()>,
}

impl Appliance {
    async fn start() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        install_sdks();
        let folder = tempfile::tempdir().unwrap();
        let (config, data) = (folder.path().join("sluicebox.yaml"), folder.path().join("data"));
        std::fs::write(&config, CONFIG).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_sluicebox"))
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut appliance = Self { process, folder, endpoints: serde_json::Value::Null, _turn: turn };
        let written = data.join("endpoints.json");
        let mut waited = 0;
        while !written.exists() {
            let ended = appliance.process.try_wait().unwrap();
            assert!(ended.is_none() && waited < 600, "the appliance does not start: {}", appliance.log());
            waited += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        appliance.endpoints = serde_json::from_slice(&std::fs::read(&written).unwrap()).unwrap();
        appliance
    }

    /// What the appliance and the senders said, for whoever reads a failure.
    fn log(&self) -> String {
        let said = |name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        said("log") + &said("senders")
    }

    /// An SDK that cannot export says so here and goes on; `settled` then misses its spans and shows what it said.
    fn words(&self) -> std::fs::File {
        let path = self.folder.path().join("senders");
        std::fs::File::options().create(true).append(true).open(path).unwrap()
    }

    fn url(&self, port: &str) -> String {
        format!("http://{}", self.endpoints[port].as_str().unwrap())
    }

    async fn queries(&self) -> TraceQueryClient<Channel> {
        query_api::client(Channel::from_shared(self.url("query")).unwrap().connect().await.unwrap())
    }

    /// Runs a sender to its end and reads its ledger.
    fn send(&self, sdk: Sdk, protocol: &str, load: &[&str]) -> Ledger {
        let port = if protocol == "grpc" { "otlp_grpc" } else { "otlp_http" };
        let ledger = self.folder.path().join("ledger");
        let status = sdk
            .command()
            .args(["--endpoint", &self.url(port), "--protocol", protocol, "--compression", "gzip"])
            .arg("--ledger")
            .arg(&ledger)
            .args(load)
            .stderr(self.words())
            .status()
            .unwrap();
        assert!(status.success(), "the {sdk:?} sender over {protocol} failed: {}", self.log());
        read_ledger(&ledger)
    }

    /// The same with an exporter of Zipkin's or Jaeger's.
    fn send_foreign(&self, protocol: &str, load: &[&str]) -> Ledger {
        let port = match protocol {
            "jaeger-grpc" => "jaeger_grpc",
            "jaeger-thrift" => "jaeger_thrift_http",
            _ => "zipkin",
        };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ledger = self.folder.path().join("ledger");
        let status = Command::new(root.join(".cache/sdk-venv-older/bin/python"))
            .arg(root.join("tests/sdk/zipkin_jaeger.py"))
            .args(["--protocol", protocol, "--endpoint", self.endpoints[port].as_str().unwrap()])
            .arg("--ledger")
            .arg(&ledger)
            .args(load)
            .stderr(self.words())
            .status()
            .unwrap();
        assert!(status.success(), "the {protocol} sender failed: {}", self.log());
        read_ledger(&ledger)
    }

    /// Waits until `spans` have arrived and every trace is decided.
    async fn settled(&self, spans: usize) -> GetStatusResponse {
        let mut queries = self.queries().await;
        let mut last = GetStatusResponse::default();
        let wait = async {
            loop {
                last = queries.get_status(GetStatusRequest {}).await.unwrap().into_inner();
                let SpanCounts { arrived, undecided, .. } = last.counts.unwrap();
                if arrived >= spans as u64 && undecided == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, wait).await;
        assert!(in_time.is_ok(), "{spans} spans were sent; status is {last:?}\n{}", self.log());
        last
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[derive(Clone, Copy, Debug)]
enum Sdk {
    Python,
    JavaScript,
}

impl Sdk {
    fn command(self) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (cache, senders) = (root.join(".cache"), root.join("tests/sdk"));
        match self {
            Self::Python => {
                let mut command = Command::new(cache.join("sdk-venv/bin/python"));
                command.arg(senders.join("send.py"));
                command
            }
            Self::JavaScript => {
                let mut command = Command::new("node");
                command.arg(senders.join("send.mjs")).current_dir(cache.join("sdk-node"));
                command
            }
        }
    }
}

/// Once per run of the tests. They cannot do without the SDKs, so a failure here fails them.
fn install_sdks() {
    static SAID: OnceLock<Result<(), String>> = OnceLock::new();
    let result = SAID.get_or_init(|| {
        let setup: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/setup");
        let output = Command::new(setup).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    });
    if let Err(message) = result {
        panic!("the OpenTelemetry SDKs could not be installed: {message}");
    }
}

fn read_ledger(path: &Path) -> Ledger {
    let mut ledger = Ledger::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let mut span: serde_json::Value = serde_json::from_str(line).unwrap();
        let class = span.as_object_mut().unwrap().remove("class").unwrap().as_str().unwrap().to_owned();
        let text = |key: &str| span[key].as_str().unwrap().to_owned();
        let (trace_id, span_id) = (text("trace_id"), text("span_id"));
        let sent = ledger.entry(trace_id).or_insert_with(|| Sent { class, spans: Spans::new() });
        sent.spans.insert(span_id, span);
    }
    ledger
}

fn span_count(ledger: &Ledger) -> usize {
    ledger.values().map(|sent| sent.spans.len()).sum()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// R: the last 56 bits of the trace id.
fn is_sampled(trace_id: &str) -> bool {
    u64::from_str_radix(&trace_id[18..], 16).unwrap() >= ONE_PERCENT
}

/// A value as the senders write it in their ledger.
fn value(given: Option<&AnyValue>) -> serde_json::Value {
    match given.and_then(|given| given.value.as_ref()) {
        None => serde_json::Value::Null,
        Some(Value::StringValue(text)) => json!({ "text": text }),
        Some(Value::BoolValue(flag)) => json!({ "bool": flag }),
        Some(Value::IntValue(number)) => json!({ "int": number.to_string() }),
        Some(Value::DoubleValue(number)) => json!({ "double": format!("{:016x}", number.to_bits()) }),
        Some(Value::ArrayValue(array)) => {
            json!({ "array": array.values.iter().map(|item| value(Some(item))).collect::<Vec<_>>() })
        }
        Some(Value::KvlistValue(map)) => json!({ "map": attributes(&map.values) }),
        Some(Value::BytesValue(bytes)) => json!({ "bytes": hex(bytes) }),
    }
}

/// Pairs, not a map: order and repetition are part of what was sent.
fn attributes(given: &[KeyValue]) -> serde_json::Value {
    given.iter().map(|pair| json!([pair.key, value(pair.value.as_ref())])).collect()
}

fn span_entry(span: &Span) -> serde_json::Value {
    let status = span.status.clone().unwrap_or_default();
    let dropped = [span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count];
    assert_eq!(dropped, [0, 0, 0], "the senders stay below every limit");
    json!({
        "trace_id": hex(&span.trace_id),
        "span_id": hex(&span.span_id),
        "parent_id": hex(&span.parent_span_id),
        // OTLP: bit 8 says that bit 9 is known, bit 9 that the parent is in another process.
        "parent_is_remote": (span.flags & 0x100 != 0).then_some(span.flags & 0x200 != 0),
        "trace_state": span.trace_state,
        "name": span.name,
        "kind": span.kind,
        "start": span.start_time_unix_nano.to_string(),
        "end": span.end_time_unix_nano.to_string(),
        "attributes": attributes(&span.attributes),
        "events": span.events.iter().map(|event| json!({
            "name": event.name,
            "time": event.time_unix_nano.to_string(),
            "attributes": attributes(&event.attributes),
        })).collect::<Vec<_>>(),
        "links": span.links.iter().map(|link| json!({
            "trace_id": hex(&link.trace_id),
            "span_id": hex(&link.span_id),
            "trace_state": link.trace_state,
            "attributes": attributes(&link.attributes),
        })).collect::<Vec<_>>(),
        "status": { "code": status.code, "message": status.message },
    })
}

/// What came back, in the ledger's form. A span that came twice would be a mistake of its own.
fn entries(answer: &TracesData) -> Spans {
    let mut spans = Spans::new();
    for group in &answer.resource_spans {
        let resource = group.resource.clone().unwrap_or_default();
        for scoped in &group.scope_spans {
            let scope = scoped.scope.clone().unwrap_or_default();
            for span in &scoped.spans {
                let mut entry = span_entry(span);
                entry["resource"] = json!({
                    "attributes": attributes(&resource.attributes), "schema_url": group.schema_url,
                });
                entry["scope"] = json!({
                    "name": scope.name, "version": scope.version,
                    "attributes": attributes(&scope.attributes), "schema_url": scoped.schema_url,
                });
                assert!(spans.insert(hex(&span.span_id), entry).is_none(), "a span came back twice");
            }
        }
    }
    spans
}

/// The spans of one trace, or nothing if it was not kept.
async fn fetch(queries: &mut TraceQueryClient<Channel>, id: &str) -> Option<(TraceSummary, Spans)> {
    match queries.get_trace(GetTraceRequest { trace_id: from_hex(id) }).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let traces = TracesData::decode(answer.trace.unwrap().0).unwrap();
            Some((answer.summary.unwrap(), entries(&traces)))
        }
        Err(status) if status.code() == tonic::Code::NotFound => None,
        Err(status) => panic!("trace {id}: {status}"),
    }
}

/// What must be true of a trace that was sent; the answer says whether it was kept.
async fn check(queries: &mut TraceQueryClient<Channel>, id: &str, sent: &Sent) -> bool {
    let answer = fetch(queries, id).await;
    let (decision, threshold) = match sent.class.as_str() {
        "error" => (Decision::KeptError, "0"),
        "slow" => (Decision::KeptSlow, "0"),
        _ => (Decision::KeptHead, "fd70a"),
    };
    let is_due = sent.class != "plain" || is_sampled(id);
    assert_eq!(answer.is_some(), is_due, "{} trace {id}: kept or not against the rule", sent.class);
    let Some((summary, spans)) = answer else { return false };
    assert_eq!(summary.decision(), decision, "{} trace {id}", sent.class);
    assert!(summary.complete, "trace {id} had its root");
    assert_eq!(summary.span_count as usize, sent.spans.len(), "trace {id}");
    let weight = if threshold == "0" { 1.0 } else { 100.0 };
    assert!((summary.adjusted_count / weight - 1.0).abs() < 0.001, "trace {id}: {}", summary.adjusted_count);
    let ids: BTreeSet<_> = spans.keys().collect();
    assert_eq!(ids, sent.spans.keys().collect(), "trace {id}: spans");
    for (span_id, came_back) in &spans {
        let mut expected = sent.spans[span_id].clone();
        // The one thing that is added: how many traces this one stands for. The senders' own tracestate is empty.
        assert_eq!(expected["trace_state"], "");
        expected["trace_state"] = json!(format!("ot=th:{threshold}"));
        assert_same(&format!("{} trace {id} span {span_id}", sent.class), came_back, &expected);
    }
    true
}

/// Field by field, so that a failure names the one that differs.
fn assert_same(what: &str, came_back: &serde_json::Value, sent: &serde_json::Value) {
    for (field, sent) in sent.as_object().unwrap() {
        assert_eq!(&came_back[field], sent, "{what}: {field} came back otherwise than it was sent");
    }
    assert_eq!(came_back, sent, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_and_slow_traces_of_both_sdks_come_back_as_they_were_sent() {
    let appliance = Appliance::start().await;
    // The p95 of the shop's root is learned from these: each shard needs 200 of them.
    let mut ledger = appliance.send(Sdk::Python, "grpc", &["--traces", "1500"]);
    appliance.settled(span_count(&ledger)).await;

    // Fewer than one in twenty is slow, so that slow never becomes usual.
    let mixed = ["--traces", "400", "--errors", "30", "--slow", "12"];
    let senders = [
        (Sdk::Python, "grpc"),
        (Sdk::Python, "http"),
        (Sdk::JavaScript, "grpc"),
        (Sdk::JavaScript, "http/protobuf"),
        (Sdk::JavaScript, "http/json"),
    ];
    for (sdk, protocol) in senders {
        ledger.extend(appliance.send(sdk, protocol, &mixed));
    }
    let status = appliance.settled(span_count(&ledger)).await;
    assert_eq!(status.counts.unwrap().arrived, span_count(&ledger) as u64, "nothing was sent twice");

    let mut queries = appliance.queries().await;
    let mut kept = BTreeMap::<&str, u64>::new();
    for (id, sent) in &ledger {
        if check(&mut queries, id, sent).await {
            *kept.entry(&sent.class).or_default() += 1;
        }
    }
    let by_reason = |reason: &str| status.kept_traces_by_reason.get(reason).copied().unwrap_or_default();
    assert_eq!(kept["error"], 30 * 5);
    assert_eq!(kept["slow"], 12 * 5);
    assert_eq!((by_reason("error"), by_reason("slow")), (kept["error"], kept["slow"]));
    assert_eq!(by_reason("head"), kept.get("plain").copied().unwrap_or_default());
}

/// A ledger's or an answer's value as text, which is all that Zipkin knows. Arrays have a text of each exporter's own.
fn plain(value: &serde_json::Value) -> Option<String> {
    let (kind, given) = value.as_object()?.iter().next()?;
    match kind.as_str() {
        "double" => {
            let bits = u64::from_str_radix(given.as_str()?, 16).ok()?;
            Some(f64::from_bits(bits).to_string())
        }
        "bool" => Some(given.to_string()),
        "array" => None,
        _ => given.as_str().map(str::to_owned),
    }
}

/// What Zipkin and Jaeger can say of a span came back as it was sent.
fn assert_said(what: &str, protocol: &str, came_back: &serde_json::Value, sent: &serde_json::Value) {
    for field in ["parent_id", "name", "kind", "status"] {
        assert_eq!(came_back[field], sent[field], "{what}: {field}");
    }
    // Both count in microseconds, and the exporter over gRPC computes them with floats.
    let tolerated_ns = if protocol == "jaeger-grpc" { 1_000 } else { 0 };
    let time = |value: &serde_json::Value| value.as_str().unwrap().parse::<u64>().unwrap();
    for field in ["start", "end"] {
        let apart = time(&came_back[field]).abs_diff(time(&sent[field]));
        assert!(apart <= tolerated_ns, "{what}: {field} is {apart} ns off");
    }
    let attributes = |entry: &serde_json::Value| -> BTreeMap<String, Option<String>> {
        let pairs = entry["attributes"].as_array().unwrap().iter();
        pairs.map(|pair| (pair[0].as_str().unwrap().to_owned(), plain(&pair[1]))).collect()
    };
    let came = attributes(came_back);
    for (key, value) in attributes(sent) {
        assert!(came.contains_key(&key), "{what}: attribute {key} is lost");
        assert!(value.is_none() || came[&key] == value, "{what}: attribute {key} is {:?}", came[&key]);
    }
    let names = |entry: &serde_json::Value| -> Vec<serde_json::Value> {
        entry["events"].as_array().unwrap().iter().map(|event| event["name"].clone()).collect()
    };
    assert_eq!(names(came_back), names(sent), "{what}: events");
    let resource = attributes(&came_back["resource"]);
    assert_eq!(resource["service.name"].as_deref(), sent["service"].as_str(), "{what}: service");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zipkin_and_jaeger_exporters_are_heard_and_their_spans_come_back() {
    let appliance = Appliance::start().await;
    let mut queries = appliance.queries().await;
    let mut arrived = 0;
    for protocol in ["zipkin-json", "zipkin-proto", "jaeger-thrift", "jaeger-grpc"] {
        let ledger = appliance.send_foreign(protocol, &["--traces", "200", "--errors", "20"]);
        assert_eq!(ledger.len(), 220);
        arrived += span_count(&ledger);
        let status = appliance.settled(arrived).await;
        assert_eq!(status.counts.unwrap().arrived, arrived as u64, "nothing was sent twice");
        for (id, sent) in &ledger {
            let is_due = sent.class == "error" || is_sampled(id);
            let answer = fetch(&mut queries, id).await;
            assert_eq!(answer.is_some(), is_due, "{protocol}: {} trace {id}", sent.class);
            let Some((summary, spans)) = answer else { continue };
            let decision = if sent.class == "error" { Decision::KeptError } else { Decision::KeptHead };
            assert_eq!(summary.decision(), decision, "{protocol}: trace {id}");
            assert!(spans.keys().eq(sent.spans.keys()), "{protocol}: trace {id}: spans");
            for (span_id, sent) in &sent.spans {
                assert_said(&format!("{protocol}: span {span_id}"), protocol, &spans[span_id], sent);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_traces_of_the_sdk_are_kept_at_one_percent_by_their_randomness() {
    const TRACES: usize = 100_000;
    let appliance = Appliance::start().await;
    let ledger = appliance.send(Sdk::Python, "grpc", &["--single", "--traces", &TRACES.to_string()]);
    assert_eq!(ledger.len(), TRACES);
    let status = appliance.settled(TRACES).await;
    let counts = status.counts.unwrap();
    assert_eq!(counts.arrived, TRACES as u64);
    assert_eq!((counts.shed, counts.expired, counts.refused), (0, 0, 0));

    let mut queries = appliance.queries().await;
    let found = search_all(&mut queries, "ticker").await;
    let due: BTreeSet<String> = ledger.keys().filter(|id| is_sampled(id)).cloned().collect();
    assert_eq!(found, due, "kept iff R >= T");
    assert_eq!((counts.kept, counts.sampled_out), (due.len() as u64, (TRACES - due.len()) as u64));
    for id in &due {
        assert!(check(&mut queries, id, &ledger[id]).await);
    }

    // 1 % of 100,000 with a standard deviation of sqrt(100,000 * 0.01 * 0.99) = 31.5; four of them on either side.
    assert!((874..=1_126).contains(&found.len()), "{} of {TRACES} were kept", found.len());
}

/// The ids of all kept traces of a service, page by page.
async fn search_all(queries: &mut TraceQueryClient<Channel>, service: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut cursor = Vec::new();
    loop {
        let request = SearchTracesRequest {
            service: service.to_owned(),
            limit: 400,
            cursor,
            ..SearchTracesRequest::default()
        };
        let mut pages = queries.search_traces(request).await.unwrap().into_inner();
        let mut next = Vec::new();
        while let Some(page) = pages.message().await.unwrap() {
            assert_eq!(page.incomplete, "");
            for trace in page.traces {
                assert!(found.insert(hex(&trace.trace_id)), "a trace was found twice");
            }
            next = page.next_cursor.to_vec();
        }
        if next.is_empty() {
            return found;
        }
        cursor = next;
    }
}
