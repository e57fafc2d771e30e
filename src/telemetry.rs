//! What the appliance says about itself: logs, `/metrics`, `/healthz`, `/readyz`. Rooms return outcomes; this rim counts.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use ingest_receiver::Protocol;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use store_model::{Counts, Reason};

use crate::allocator;
use crate::status::StatusBoard;

/// Logs to standard error. `SLUICEBOX_LOG` takes a filter such as `debug` or `sluicebox=trace`.
pub(crate) fn init_logging(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SLUICEBOX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { builder.json().init() } else { builder.with_target(false).init() }
}

/// The admin endpoints.
pub(crate) fn router(board: Arc<StatusBoard>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(board)
}

async fn ready(State(board): State<Arc<StatusBoard>>) -> impl IntoResponse {
    match board.gate.reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn metrics(State(board): State<Arc<StatusBoard>>) -> impl IntoResponse {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match render(&board) {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTenant {
    tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    tenant: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProtocol {
    protocol: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    protocol: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPart {
    part: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByThread {
    thread: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByListener {
    listener: &'static str,
}

/// The rooms keep the numbers; a registry is made for each scrape and filled with them.
fn render(board: &StatusBoard) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("sluicebox");
    span_metrics(&mut registry, board);
    receiver_metrics(&mut registry, board);
    state_metrics(&mut registry, board);
    tls_metrics(&mut registry, board);
    memory_metrics(&mut registry, board);
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

fn span_metrics(registry: &mut Registry, board: &StatusBoard) {
    type Term = (&'static str, &'static str, fn(&Counts) -> u64);
    const TERMS: [Term; 6] = [
        ("spans_arrived", "Spans taken off the network", |counts| counts.arrived),
        ("spans_kept", "Spans in the archive", |counts| counts.kept),
        ("spans_sampled_out", "Spans whose trace was decided against", |counts| counts.sampled_out),
        ("spans_shed", "Spans whose trace was given up under memory pressure", |counts| counts.shed),
        ("spans_expired", "Spans to be kept that the journal no longer held", |counts| counts.expired),
        ("spans_refused", "Spans malformed, doubled or without room", |counts| counts.refused),
    ];
    let totals = board.totals.by_tenant();
    for (name, help, term) in TERMS {
        let family = Family::<ByTenant, Counter>::default();
        for (tenant, total) in &totals {
            family.get_or_create(&ByTenant { tenant: tenant.to_string() }).inc_by(term(&total.counts));
        }
        registry.register(name, help, family);
    }
    let undecided = Family::<ByTenant, Gauge>::default();
    let dropped = Family::<ByTenant, Counter>::default();
    let spans = Family::<ByReason, Counter>::default();
    let traces = Family::<ByReason, Counter>::default();
    for (tenant, total) in &totals {
        let label = ByTenant { tenant: tenant.to_string() };
        let open = total.counts.arrived.saturating_sub(total.counts.settled());
        undecided.get_or_create(&label).set(i64::try_from(open).unwrap_or(i64::MAX));
        dropped.get_or_create(&label).inc_by(total.dropped_traces);
        for (index, reason) in Reason::ALL.iter().enumerate() {
            let label = ByReason { tenant: tenant.to_string(), reason: reason.as_str() };
            spans.get_or_create(&label).inc_by(total.kept_spans[index]);
            traces.get_or_create(&label).inc_by(total.kept_traces[index]);
        }
    }
    registry.register("spans_undecided", "Spans of traces that are not decided yet", undecided);
    registry.register("traces_dropped", "Traces sampled out or shed", dropped);
    registry.register("spans_kept_by_reason", "Spans in the archive by the reason of their trace", spans);
    registry.register("traces_kept", "Traces in the archive by reason", traces);
}

fn receiver_metrics(registry: &mut Registry, board: &StatusBoard) {
    let snapshot = board.receiver.snapshot();
    let requests = Family::<ByProtocol, Counter>::default();
    let refused = Family::<Refusal, Counter>::default();
    let wire = Family::<ByProtocol, Counter>::default();
    let bodies = Family::<ByProtocol, Counter>::default();
    let connections = Family::<ByProtocol, Gauge>::default();
    let accepted = Family::<ByProtocol, Counter>::default();
    let turned_away = Family::<ByProtocol, Counter>::default();
    let cut = Family::<Refusal, Counter>::default();
    for protocol in Protocol::ALL {
        let (numbers, protocol) = (snapshot.of(protocol), protocol.as_str());
        let label = ByProtocol { protocol };
        requests.get_or_create(&label).inc_by(numbers.requests_accepted + numbers.requests_partial);
        wire.get_or_create(&label).inc_by(numbers.wire_bytes);
        bodies.get_or_create(&label).inc_by(numbers.body_bytes);
        let open = i64::try_from(numbers.connections_open).unwrap_or(i64::MAX);
        connections.get_or_create(&label).set(open);
        accepted.get_or_create(&label).inc_by(numbers.connections_accepted);
        turned_away.get_or_create(&label).inc_by(numbers.connections_refused);
        for (reason, count) in &numbers.requests_refused {
            refused.get_or_create(&Refusal { protocol, reason: reason.as_str() }).inc_by(*count);
        }
        for (reason, count) in &numbers.connections_cut {
            cut.get_or_create(&Refusal { protocol, reason: reason.as_str() }).inc_by(*count);
        }
    }
    registry.register("receiver_requests", "Requests taken in", requests);
    registry.register("receiver_requests_refused", "Requests refused, by reason", refused);
    registry.register_with_unit("receiver_wire", "Bytes of bodies as received", Unit::Bytes, wire);
    registry.register_with_unit("receiver_body", "Bytes of bodies after decompression", Unit::Bytes, bodies);
    registry.register("receiver_connections", "Open connections", connections);
    registry.register("receiver_connections_accepted", "Connections ever taken", accepted);
    let help = "Connections closed as they came, since max_connections were open";
    registry.register("receiver_connections_turned_away", help, turned_away);
    let help = "Connections that were cut off, by reason; the portable driver counts those of TLS";
    registry.register("receiver_connections_cut", help, cut);
    let help = "How often a connection was asked again since no receive buffer was free";
    let short = Counter::<u64>::default();
    short.inc_by(snapshot.receive_buffers_short);
    registry.register("receiver_receive_buffers_short", help, short);
    let bytes: [(&str, &str, u64); 2] = [
        ("receiver_inflight", "Memory of requests in flight", snapshot.inflight_bytes),
        ("receiver_receive_buffers", "What the io_uring driver receives into", snapshot.receive_buffer_bytes),
    ];
    for (name, help, value) in bytes {
        registry.register_with_unit(name, help, Unit::Bytes, gauge(value));
    }
}

/// Budgets, and in builds that count them, allocations.
fn memory_metrics(registry: &mut Registry, board: &StatusBoard) {
    let parts = Family::<ByPart, Gauge>::default();
    for &(part, bytes) in board.core_memory.parts() {
        parts.get_or_create(&ByPart { part }).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    let help = "What a core takes at start (receive buffers and rings) or may come to hold, fixed at start";
    registry.register_with_unit("core_memory", help, Unit::Bytes, parts);
    if let Some(counts) = allocator::counts() {
        let allocations = Family::<ByThread, Counter>::default();
        for (thread, count) in counts {
            allocations.get_or_create(&ByThread { thread }).inc_by(count);
        }
        registry.register("allocations", "Allocations and reallocations, by thread", allocations);
    }
}

fn tls_metrics(registry: &mut Registry, board: &StatusBoard) {
    let expiry = Family::<ByListener, Gauge>::default();
    let reloads = Family::<ByListener, Counter>::default();
    let failures = Family::<ByListener, Counter>::default();
    for (listener, tls) in board.identities.all() {
        let label = ByListener { listener };
        expiry.get_or_create(&label).set(i64::try_from(tls.expires_at_seconds()).unwrap_or(i64::MAX));
        reloads.get_or_create(&label).inc_by(tls.reloads());
        failures.get_or_create(&label).inc_by(tls.failures());
    }
    let help = "When the certificate that new connections see ends, since 1970";
    registry.register_with_unit("tls_certificate_not_after", help, Unit::Seconds, expiry);
    registry.register("tls_reloads", "New certificates taken while running", reloads);
    registry.register("tls_reload_failures", "New certificates that could not be used", failures);
}

fn state_metrics(registry: &mut Registry, board: &StatusBoard) {
    let gauges = board.gauges();
    let archive = board.archive.stats();
    let plain: [(&str, &str, u64); 5] = [
        ("live_traces", "Traces that still receive spans", gauges.live_traces as u64),
        ("live_spans", "Spans of live traces", gauges.live_spans as u64),
        ("archive_segments", "Sealed archive segments", archive.segments),
        (
            "quarantined_segments",
            "Segments set aside as damaged",
            archive.quarantined + board.quarantined_logs().len() as u64,
        ),
        ("accepting", "1 while requests are taken in", u64::from(board.gate.reason().is_none())),
    ];
    for (name, help, value) in plain {
        registry.register(name, help, gauge(value));
    }
    let bytes: [(&str, &str, u64); 6] = [
        ("live", "Memory of live traces, bodies apart", gauges.live_bytes as u64),
        (
            "live_bodies",
            "Memory of bodies held for live traces, and for kept ones until they are archived",
            gauges.body_bytes as u64,
        ),
        ("archive_open", "Memory of open archive segments", archive.open_bytes),
        ("archive", "Disk space of sealed archive segments", archive.bytes),
        ("journal", "Disk space of the journal", board.journal_bytes()),
        ("memory_limit", "The memory budget", board.memory_limit),
    ];
    for (name, help, value) in bytes {
        registry.register_with_unit(name, help, Unit::Bytes, gauge(value));
    }
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}
