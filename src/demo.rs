//! `serve --demo`: a simulated shop of a dozen services sends its traces over OTLP/gRPC, with errors, slow calls and late
//! spans; then says what became of them. It goes through the front door like any sender.

use std::time::Duration;

use ingest_otlp::messages::{
    AnyValue, ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Resource, ResourceSpans,
    ScopeSpans, Span, Status, any_value,
};
use query_api::proto::{self, SearchTracesRequest, TraceSummary};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::cli::{decision_word, status_text};
use crate::clock;
use crate::serve::Listening;

/// Traces a second: enough for a fair sample to show within a minute.
const TRACES_PER_SECOND: u64 = 200;

/// Requests a second; each carries the spans of that slice of time.
const TICKS_PER_SECOND: u64 = 10;

/// How late a late span is.
const LATE_TICKS: usize = 30;

/// Shares of traces, in thousandths.
const ERRORS_PER_MILLE: u64 = 10;
const SLOW_PER_MILLE: u64 = 10;
const LATE_PER_MILLE: u64 = 20;

/// Who calls whom: service, span name, OTLP kind, parent (index in this table), typical duration in microseconds.
const SHOP: [(&str, &str, i32, Option<usize>, u64); 14] = [
    ("frontend", "GET /checkout", 2, None, 80_000),
    ("cart", "GetCart", 2, Some(0), 9_000),
    ("redis-cart", "HGETALL", 3, Some(1), 800),
    ("catalog", "ListProducts", 2, Some(0), 12_000),
    ("catalog-db", "SELECT products", 3, Some(3), 4_000),
    ("currency", "Convert", 2, Some(0), 1_500),
    ("shipping", "GetQuote", 2, Some(0), 7_000),
    ("checkout", "PlaceOrder", 2, Some(0), 45_000),
    ("payment", "Charge", 2, Some(7), 20_000),
    ("fraud", "Score", 2, Some(8), 6_000),
    ("orders-db", "INSERT orders", 3, Some(7), 5_000),
    ("queue", "orders publish", 4, Some(7), 900),
    ("email", "orders process", 5, Some(11), 15_000),
    ("recommendation", "ListRecommendations", 2, Some(0), 10_000),
];

/// A small seeded generator (`SplitMix64`): the shop needs variety, not secrecy.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn one_in(&mut self, mille: u64) -> bool {
        self.next() % 1_000 < mille
    }

    /// Between half and one and a half times `typical`.
    fn around(&mut self, typical: u64) -> u64 {
        typical / 2 + self.next() % typical.max(1)
    }
}

/// Feeds the appliance for `seconds`, waits until everything is decided, and prints what came of it.
pub(crate) async fn run(listening: Listening, seconds: u64) {
    if let Err(error) = feed_and_report(&listening, seconds).await {
        tracing::error!(%error, "the demo ended early");
    }
}

async fn feed_and_report(
    listening: &Listening,
    seconds: u64,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(grpc) = listening.otlp_grpc else {
        return Err("receivers.otlp.protocols.grpc is off, the demo needs it".into());
    };
    println!(
        "\ndemo: a shop of {} services sends {TRACES_PER_SECOND} traces a second for {seconds} s ...",
        SHOP.len()
    );
    let channel = Channel::from_shared(format!("http://{grpc}"))?.connect().await?;
    let mut exporter = tonic::client::Grpc::new(channel);
    let mut dice = Dice(clock::unix().0);
    let mut late: std::collections::VecDeque<Vec<(usize, Span)>> =
        (0..LATE_TICKS).map(|_| Vec::new()).collect();
    let mut ticks = tokio::time::interval(Duration::from_millis(1_000 / TICKS_PER_SECOND));
    let last = seconds * TICKS_PER_SECOND;
    for tick in 0..last + LATE_TICKS as u64 {
        ticks.tick().await;
        let mut now = late.pop_front().unwrap_or_default();
        let mut later = Vec::new();
        if tick < last {
            for _ in 0..TRACES_PER_SECOND / TICKS_PER_SECOND {
                trace(&mut dice, &mut now, &mut later);
            }
        }
        late.push_back(later);
        if !now.is_empty() {
            export(&mut exporter, now).await?;
        }
    }
    report(listening).await
}

/// One visit to the shop: spans for now, and those that come late.
fn trace(dice: &mut Dice, now: &mut Vec<(usize, Span)>, later: &mut Vec<(usize, Span)>) {
    let trace_id: Vec<u8> = [dice.next(), dice.next()].iter().flat_map(|half| half.to_be_bytes()).collect();
    let ids: Vec<[u8; 8]> = SHOP.iter().map(|_| (dice.next() | 1).to_be_bytes()).collect();
    let (has_error, is_slow, is_late) =
        (dice.one_in(ERRORS_PER_MILLE), dice.one_in(SLOW_PER_MILLE), dice.one_in(LATE_PER_MILLE));
    let victim = usize::try_from(dice.next()).unwrap_or(0) % SHOP.len();
    let began = clock::unix().0;
    for (index, &(_, name, kind, parent, typical_us)) in SHOP.iter().enumerate() {
        let slowdown = if is_slow && index == 0 { 40 } else { 1 };
        let start = began + index as u64 * 1_000_000;
        let failed = has_error && index == victim;
        let attribute = |key: &str, value: String| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(value)) }),
        };
        let span = Span {
            trace_id: trace_id.clone(),
            span_id: ids[index].to_vec(),
            parent_span_id: parent.map_or(Vec::new(), |parent| ids[parent].to_vec()),
            name: name.to_owned(),
            kind,
            start_time_unix_nano: start,
            end_time_unix_nano: start + dice.around(typical_us) * slowdown * 1_000,
            attributes: vec![
                attribute(
                    "customer.tier",
                    ["gold", "silver", "none"][usize::try_from(dice.next() % 3).unwrap_or(0)].to_owned(),
                ),
                attribute("cart.items", (dice.next() % 20).to_string()),
            ],
            status: failed.then(|| Status { message: "upstream said no".to_owned(), code: 2 }),
            ..Span::default()
        };
        // The e-mail goes out long after the visitor is gone.
        let target = if is_late && index == 12 { &mut *later } else { &mut *now };
        target.push((index, span));
    }
}

async fn export(
    exporter: &mut tonic::client::Grpc<Channel>,
    spans: Vec<(usize, Span)>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut by_service: Vec<Vec<Span>> = SHOP.iter().map(|_| Vec::new()).collect();
    spans.into_iter().for_each(|(service, span)| by_service[service].push(span));
    let resource_spans = by_service.into_iter().zip(SHOP).filter(|(spans, _)| !spans.is_empty());
    let request = ExportTraceServiceRequest {
        resource_spans: resource_spans
            .map(|(spans, (service, ..))| ResourceSpans {
                resource: Some(Resource {
                    attributes: vec![KeyValue {
                        key: "service.name".to_owned(),
                        value: Some(AnyValue {
                            value: Some(any_value::Value::StringValue(service.to_owned())),
                        }),
                    }],
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            })
            .collect(),
    };
    let path = PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let codec = ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
    exporter.ready().await?;
    exporter.unary(tonic::Request::new(request), path, codec).await?;
    Ok(())
}

async fn report(listening: &Listening) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let channel = Channel::from_shared(format!("http://{}", listening.query))?.connect().await?;
    let mut queries = query_api::client(channel);
    // What was acknowledged last may not have reached its shard yet: wait until nothing moves any more.
    let mut arrived_before = None;
    let status = loop {
        let status = queries.get_status(proto::GetStatusRequest {}).await?.into_inner();
        let counts = status.counts.unwrap_or_default();
        if counts.undecided == 0 && arrived_before == Some(counts.arrived) {
            break status;
        }
        arrived_before = Some(counts.arrived);
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    println!("\ndemo: every trace is decided\n\n{}", status_text("default", &status));
    let mut examples: Vec<TraceSummary> = Vec::new();
    let mut stream =
        queries.search_traces(SearchTracesRequest { limit: 1_000, ..Default::default() }).await?.into_inner();
    while let Some(page) = stream.message().await? {
        for trace in page.traces {
            if examples.iter().all(|example| example.decision != trace.decision) {
                examples.push(trace);
            }
        }
    }
    println!("three of the kept traces, and the commands that show them:");
    for trace in examples.iter().take(3) {
        let id: String = trace.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let endpoint = listening.query;
        println!("  {:<6} sluicebox trace {id} --endpoint {endpoint}", decision_word(trace.decision));
    }
    println!("\nstill running; stop with Ctrl-C");
    Ok(())
}
