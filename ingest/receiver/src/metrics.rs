//! What the receiver counts: requests, spans, bytes and connections, by protocol and outcome. Counts only; names and
//! exposition belong to the telemetry rim.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::answer::{Answer, Reason};

/// Which port a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    Http,
}

/// Counters that all receiving threads share. They are touched once per request, never per span.
#[derive(Debug, Default)]
pub struct ReceiverMetrics {
    grpc: Meters,
    http: Meters,
    /// A gauge, and the memory budget's own count.
    pub(crate) inflight_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
pub(crate) struct Meters {
    accepted: AtomicU64,
    partial: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    spans_accepted: AtomicU64,
    spans_refused: AtomicU64,
    wire_bytes: AtomicU64,
    body_bytes: AtomicU64,
    connections_open: AtomicU64,
    connections_accepted: AtomicU64,
    connections_refused: AtomicU64,
}

/// Every counter at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverSnapshot {
    /// OTLP/gRPC.
    pub grpc: ProtocolSnapshot,
    /// OTLP/HTTP.
    pub http: ProtocolSnapshot,
    /// Gauge: what requests in flight hold of `inflight_bytes_max`.
    pub inflight_bytes: u64,
}

/// The counters of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolSnapshot {
    /// Requests taken whole, empty ones included.
    pub requests_accepted: u64,
    /// Requests taken but for some spans.
    pub requests_partial: u64,
    /// Requests refused, by reason, in the order of [`Reason::ALL`].
    pub requests_refused: Vec<(Reason, u64)>,
    /// Spans acknowledged.
    pub spans_accepted: u64,
    /// Spans known to have arrived and not taken.
    pub spans_refused: u64,
    /// Bytes of bodies as they came.
    pub wire_bytes: u64,
    /// Bytes of bodies decompressed; JSON counts as the protobuf it became.
    pub body_bytes: u64,
    /// Gauge: connections open now.
    pub connections_open: u64,
    /// Connections ever taken.
    pub connections_accepted: u64,
    /// Connections closed as they came, since `max_connections` were open.
    pub connections_refused: u64,
}

impl ReceiverMetrics {
    pub(crate) fn of(&self, protocol: Protocol) -> &Meters {
        match protocol {
            Protocol::Grpc => &self.grpc,
            Protocol::Http => &self.http,
        }
    }

    /// Every counter now. Not one consistent moment, but each number is exact.
    #[must_use]
    pub fn snapshot(&self) -> ReceiverSnapshot {
        let Self { grpc, http, inflight_bytes } = self;
        let inflight_bytes = inflight_bytes.load(Ordering::Relaxed) as u64;
        ReceiverSnapshot { grpc: grpc.snapshot(), http: http.snapshot(), inflight_bytes }
    }
}

fn add(counter: &AtomicU64, by: u64) {
    // Relaxed here and below: the numbers guard no other memory.
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Meters {
    /// Counts a finished request of which `spans` were acknowledged.
    pub(crate) fn answered(&self, answer: &Answer, spans: u64) {
        add(&self.spans_accepted, spans);
        match answer {
            Answer::Accepted { refused: 0, .. } => add(&self.accepted, 1),
            Answer::Accepted { refused, .. } => {
                add(&self.partial, 1);
                add(&self.spans_refused, u64::from(*refused));
            }
            Answer::Refused(refusal) => {
                add(&self.refused[refusal.reason as usize], 1);
                add(&self.spans_refused, refusal.spans);
            }
        }
    }

    pub(crate) fn received(&self, wire_bytes: usize) {
        add(&self.wire_bytes, wire_bytes as u64);
    }

    pub(crate) fn opened(&self, body_bytes: usize) {
        add(&self.body_bytes, body_bytes as u64);
    }

    pub(crate) fn connection_opened(&self) {
        add(&self.connections_accepted, 1);
        add(&self.connections_open, 1);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections_open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_refused(&self) {
        add(&self.connections_refused, 1);
    }

    fn snapshot(&self) -> ProtocolSnapshot {
        let Self {
            accepted,
            partial,
            refused,
            spans_accepted,
            spans_refused,
            wire_bytes,
            body_bytes,
            connections_open,
            connections_accepted,
            connections_refused,
        } = self;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProtocolSnapshot {
            requests_accepted: get(accepted),
            requests_partial: get(partial),
            requests_refused: Reason::ALL.into_iter().zip(refused.iter().map(get)).collect(),
            spans_accepted: get(spans_accepted),
            spans_refused: get(spans_refused),
            wire_bytes: get(wire_bytes),
            body_bytes: get(body_bytes),
            connections_open: get(connections_open),
            connections_accepted: get(connections_accepted),
            connections_refused: get(connections_refused),
        }
    }
}

impl ProtocolSnapshot {
    /// How many requests were refused for `reason`.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.requests_refused.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count)
    }
}
