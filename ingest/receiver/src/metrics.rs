//! What the receiver counts: requests, spans, bytes and connections, by protocol and outcome. Counts only; names and
//! exposition belong to the telemetry rim.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::answer::{Answer, Reason};
use crate::http1;
use crate::http2;

/// What a request speaks, and what a port is for. OTLP's two are served on each other's ports, and so are Jaeger's;
/// requests are counted by what they speak, connections by the port they came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP.
    Http,
    /// Zipkin v2, JSON and protobuf.
    Zipkin,
    /// Jaeger's `PostSpans`.
    JaegerGrpc,
    /// Jaeger's Thrift over HTTP.
    JaegerHttp,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 5] = [Self::Grpc, Self::Http, Self::Zipkin, Self::JaegerGrpc, Self::JaegerHttp];

    /// The word that names it in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Zipkin => "zipkin",
            Self::JaegerGrpc => "jaeger_grpc",
            Self::JaegerHttp => "jaeger_http",
        }
    }

    pub(crate) fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::JaegerGrpc)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why we ended a connection that its peer had not ended and that was not merely idle or old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CutReason {
    /// It broke the rules of HTTP/1 or HTTP/2.
    Protocol,
    /// It opens streams only to reset them, or makes us reset them.
    ResetFlood,
    /// PING after PING without requests.
    PingFlood,
    /// SETTINGS after SETTINGS.
    SettingsFlood,
    /// Frames that carry nothing.
    EmptyFrameFlood,
    /// A header block in too many frames.
    ContinuationFlood,
    /// A head beyond the limit.
    HeaderListTooLarge,
    /// A small header block that unfolds into a huge list.
    HpackBomb,
    /// It makes us answer and does not read the answers.
    OutputNotRead,
    /// It never said anything, or only half a head.
    HeaderTimeout,
    /// It went on with requests ahead of their answers until they filled the memory budget.
    PipelineTooLong,
    /// It was asked to go and did not.
    Overstayed,
    /// It came to a port with TLS and spoke something else.
    NotTls,
    /// Its TLS handshake failed, or it broke the rules of TLS later: no version in common, no certificate where one is
    /// asked for, one that we do not know, or our certificate was refused.
    TlsFailed,
    /// Its TLS handshake took too long.
    TlsTimeout,
}

impl CutReason {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::Protocol,
        Self::ResetFlood,
        Self::PingFlood,
        Self::SettingsFlood,
        Self::EmptyFrameFlood,
        Self::ContinuationFlood,
        Self::HeaderListTooLarge,
        Self::HpackBomb,
        Self::OutputNotRead,
        Self::HeaderTimeout,
        Self::PipelineTooLong,
        Self::Overstayed,
        Self::NotTls,
        Self::TlsFailed,
        Self::TlsTimeout,
    ];

    /// The word that names it in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::ResetFlood => "reset_flood",
            Self::PingFlood => "ping_flood",
            Self::SettingsFlood => "settings_flood",
            Self::EmptyFrameFlood => "empty_frame_flood",
            Self::ContinuationFlood => "continuation_flood",
            Self::HeaderListTooLarge => "header_list_too_large",
            Self::HpackBomb => "hpack_bomb",
            Self::OutputNotRead => "output_not_read",
            Self::HeaderTimeout => "header_timeout",
            Self::PipelineTooLong => "pipeline_too_long",
            Self::Overstayed => "overstayed",
            Self::NotTls => "not_tls",
            Self::TlsFailed => "tls_failed",
            Self::TlsTimeout => "tls_timeout",
        }
    }
}

impl From<http2::Cut> for CutReason {
    fn from(cut: http2::Cut) -> Self {
        match cut {
            http2::Cut::Protocol(_) => Self::Protocol,
            http2::Cut::ResetFlood => Self::ResetFlood,
            http2::Cut::PingFlood => Self::PingFlood,
            http2::Cut::SettingsFlood => Self::SettingsFlood,
            http2::Cut::EmptyFrameFlood => Self::EmptyFrameFlood,
            http2::Cut::ContinuationFlood => Self::ContinuationFlood,
            http2::Cut::HeaderListTooLarge => Self::HeaderListTooLarge,
            http2::Cut::HpackBomb => Self::HpackBomb,
            http2::Cut::OutputNotRead => Self::OutputNotRead,
        }
    }
}

impl From<http1::Cut> for CutReason {
    fn from(cut: http1::Cut) -> Self {
        match cut {
            http1::Cut::Malformed | http1::Cut::OtherProtocol => Self::Protocol,
            http1::Cut::HeadTooLarge => Self::HeaderListTooLarge,
        }
    }
}

/// Counters that all receiving threads share. They are touched once per request, never per span.
#[derive(Debug, Default)]
pub struct ReceiverMetrics {
    meters: [Meters; Protocol::ALL.len()],
    /// A gauge, and the memory budget's own count.
    pub(crate) inflight_bytes: AtomicUsize,
    receive_buffer_bytes: AtomicUsize,
    receive_buffers_short: AtomicU64,
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
    connections_cut: [AtomicU64; CutReason::ALL.len()],
}

/// Every counter at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverSnapshot {
    /// OTLP/gRPC.
    pub grpc: ProtocolSnapshot,
    /// OTLP/HTTP.
    pub http: ProtocolSnapshot,
    /// Zipkin.
    pub zipkin: ProtocolSnapshot,
    /// Jaeger over gRPC.
    pub jaeger_grpc: ProtocolSnapshot,
    /// Jaeger over HTTP.
    pub jaeger_http: ProtocolSnapshot,
    /// Gauge: what requests in flight hold of `inflight_bytes_max`.
    pub inflight_bytes: u64,
    /// Gauge: what the threads of the io_uring driver receive into. Fixed while they run.
    pub receive_buffer_bytes: u64,
    /// How often a connection had to be asked again since no receive buffer was free.
    pub receive_buffers_short: u64,
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
    /// Bytes of bodies decompressed; what was not OTLP's protobuf counts as the protobuf it became.
    pub body_bytes: u64,
    /// Gauge: connections open now.
    pub connections_open: u64,
    /// Connections ever taken.
    pub connections_accepted: u64,
    /// Connections closed as they came, since `max_connections` were open.
    pub connections_refused: u64,
    /// Connections cut off, by reason, in the order of [`CutReason::ALL`]. The portable driver counts those of TLS
    /// alone: of the others its library does not say why.
    pub connections_cut: Vec<(CutReason, u64)>,
}

impl ReceiverMetrics {
    pub(crate) fn of(&self, protocol: Protocol) -> &Meters {
        &self.meters[protocol as usize]
    }

    pub(crate) fn add_receive_buffers(&self, bytes: usize) {
        self.receive_buffer_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove_receive_buffers(&self, bytes: usize) {
        self.receive_buffer_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn receive_buffers_short(&self) {
        add(&self.receive_buffers_short, 1);
    }

    /// Every counter now. Not one consistent moment, but each number is exact.
    #[must_use]
    pub fn snapshot(&self) -> ReceiverSnapshot {
        let Self { meters: _, inflight_bytes, receive_buffer_bytes, receive_buffers_short } = self;
        let of = |protocol| self.of(protocol).snapshot();
        ReceiverSnapshot {
            grpc: of(Protocol::Grpc),
            http: of(Protocol::Http),
            zipkin: of(Protocol::Zipkin),
            jaeger_grpc: of(Protocol::JaegerGrpc),
            jaeger_http: of(Protocol::JaegerHttp),
            inflight_bytes: inflight_bytes.load(Ordering::Relaxed) as u64,
            receive_buffer_bytes: receive_buffer_bytes.load(Ordering::Relaxed) as u64,
            receive_buffers_short: receive_buffers_short.load(Ordering::Relaxed),
        }
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

    pub(crate) fn received(&self, wire_bytes: u64) {
        add(&self.wire_bytes, wire_bytes);
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

    pub(crate) fn connection_cut(&self, reason: CutReason) {
        add(&self.connections_cut[reason as usize], 1);
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
            connections_cut,
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
            connections_cut: CutReason::ALL.into_iter().zip(connections_cut.iter().map(get)).collect(),
        }
    }
}

impl ReceiverSnapshot {
    /// The counters of `protocol`.
    #[must_use]
    pub fn of(&self, protocol: Protocol) -> &ProtocolSnapshot {
        match protocol {
            Protocol::Grpc => &self.grpc,
            Protocol::Http => &self.http,
            Protocol::Zipkin => &self.zipkin,
            Protocol::JaegerGrpc => &self.jaeger_grpc,
            Protocol::JaegerHttp => &self.jaeger_http,
        }
    }
}

impl ProtocolSnapshot {
    /// How many requests were refused for `reason`.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.requests_refused.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count)
    }

    /// How many connections were cut off for `reason`.
    #[must_use]
    pub fn cut(&self, reason: CutReason) -> u64 {
        self.connections_cut.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_protocols_stand_where_they_are_counted() {
        for (index, protocol) in Protocol::ALL.into_iter().enumerate() {
            assert_eq!(protocol as usize, index, "{protocol}");
        }
        for (index, reason) in CutReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.as_str());
        }
    }
}
