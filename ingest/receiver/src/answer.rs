//! What a sender is told: OTLP's answer table, once as values and once in each wire form. Owns which situation gives
//! which code, and which of them invite a retry; never decides that a situation exists.
//!
//! | situation | gRPC | HTTP |
//! |---|---|---|
//! | accepted, or nothing in it | OK, `partial_success` unset | 200 |
//! | a warning only | OK, `rejected_spans` 0 and the warning | 200, likewise |
//! | some spans refused | OK, `rejected_spans` and why | 200, likewise |
//! | malformed, bad tenant | INVALID_ARGUMENT + BadRequest | 400 |
//! | too large | RESOURCE_EXHAUSTED | 413 |
//! | rate limit | RESOURCE_EXHAUSTED + RetryInfo | 429 + Retry-After |
//! | overload, draining, journal poisoned | UNAVAILABLE + RetryInfo | 503 + Retry-After |
//!
//! Every answer of 400 and above carries a `google.rpc.Status` over HTTP, in the request's own form.
//!
//! Zipkin and Jaeger hear the same codes, but for what [`ingest_dialects::door`] says: 202 without a body or an empty
//! message where OTLP has a response, no word about spans refused, errors as plain text.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use ingest_dialects::door;
use ingest_otlp::messages::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message;
use tonic::Code;

use crate::body::GRPC_PREFIX_BYTES;
use crate::intake::Outcome;
use crate::metrics::Protocol;
use crate::rpc;

/// The compressions both protocols take.
const ENCODINGS: &str = "identity,gzip,zstd";

pub(crate) const GRPC_CONTENT_TYPE: &str = "application/grpc";

/// What follows the message of a gRPC call that went well.
pub(crate) const GRPC_TRAILERS: [(&str, &str); 1] = [("grpc-status", "0")];

/// A status travels in headers, and some clients take no more than 8 KiB of them.
const MESSAGE_BYTES_MAX: usize = 512;

/// Hints to come back are spread over this range, so that senders refused together do not return together.
const HINT_MS: std::ops::Range<u64> = 1_000..5_000;

/// What a sender is told.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Taken, but for `refused` spans. Words without a refused span are a warning.
    Accepted { refused: u32, because: &'static str },
    /// Not taken.
    Refused(Refusal),
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The body is not what its content type says, or does not decompress.
    Malformed,
    /// The tenant name breaks its rule or was given twice.
    Tenant,
    /// Larger than the limit: sent again it will be no smaller.
    TooLarge,
    /// This tenant sends more than it may.
    RateLimited,
    /// No room just now.
    Overloaded,
    /// Draining, or the journal refuses writes.
    Unavailable,
    /// A compression we do not speak.
    Encoding,
    /// gRPC framing: a second message, a truncated one, a compressed one without `grpc-encoding`.
    Framing,
    /// The body came too slowly.
    Timeout,
    /// No such method or path.
    Path,
    /// Not POST.
    Method,
    /// Neither protobuf nor JSON.
    ContentType,
    /// The sender went away; it will not read this.
    Gone,
    /// A mistake of ours.
    Internal,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 14] = [
        Self::Malformed,
        Self::Tenant,
        Self::TooLarge,
        Self::RateLimited,
        Self::Overloaded,
        Self::Unavailable,
        Self::Encoding,
        Self::Framing,
        Self::Timeout,
        Self::Path,
        Self::Method,
        Self::ContentType,
        Self::Gone,
        Self::Internal,
    ];

    /// The word that names it in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The answer table: label, gRPC code, HTTP status.
    fn row(self) -> (&'static str, Code, StatusCode) {
        match self {
            Self::Malformed => ("malformed", Code::InvalidArgument, StatusCode::BAD_REQUEST),
            Self::Tenant => ("tenant", Code::InvalidArgument, StatusCode::BAD_REQUEST),
            Self::TooLarge => ("too_large", Code::ResourceExhausted, StatusCode::PAYLOAD_TOO_LARGE),
            Self::RateLimited => ("rate_limited", Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS),
            Self::Overloaded => ("overloaded", Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
            Self::Unavailable => ("unavailable", Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
            Self::Encoding => ("encoding", Code::Unimplemented, StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Self::Framing => ("framing", Code::Internal, StatusCode::BAD_REQUEST),
            Self::Timeout => ("timeout", Code::DeadlineExceeded, StatusCode::REQUEST_TIMEOUT),
            Self::Path => ("path", Code::Unimplemented, StatusCode::NOT_FOUND),
            Self::Method => ("method", Code::Unimplemented, StatusCode::METHOD_NOT_ALLOWED),
            Self::ContentType => ("content_type", Code::Unimplemented, StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Self::Gone => ("gone", Code::Cancelled, StatusCode::BAD_REQUEST),
            Self::Internal => ("internal", Code::Internal, StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// Whether the sender is told when to come back.
    fn invites_retry(self) -> bool {
        matches!(self, Self::RateLimited | Self::Overloaded | Self::Unavailable)
    }

    /// The field to blame in a `google.rpc.BadRequest`.
    fn bad_field(self) -> Option<&'static str> {
        match self {
            Self::Malformed => Some("body"),
            Self::Tenant => Some("x-scope-orgid"),
            _ => None,
        }
    }
}

/// A request that is not taken.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    /// Spans known to have arrived with it.
    pub(crate) spans: u64,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = reason.invites_retry().then(next_hint);
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
            message.to_mut().truncate(end);
        }
        Self { reason, message, retry_after, spans: 0 }
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        Self::new(Reason::TooLarge, format!("request is larger than {bytes_max} bytes"))
    }

    pub(crate) fn no_room() -> Self {
        Self::new(Reason::Overloaded, "requests in flight fill the receiver's memory budget")
    }

    /// What `outcome` means to the sender; `None` when the request was stored.
    pub(crate) fn from_outcome(outcome: Outcome) -> Option<Self> {
        let (reason, message, retry_after) = match outcome {
            Outcome::Stored => return None,
            Outcome::Overloaded { retry_after } => {
                (Reason::Overloaded, "the appliance is overloaded".into(), retry_after)
            }
            Outcome::RateLimited { retry_after } => {
                (Reason::RateLimited, "the tenant's rate limit is exceeded".into(), retry_after)
            }
            Outcome::Unavailable { retry_after, reason } => {
                (Reason::Unavailable, Cow::Owned(reason), retry_after)
            }
        };
        Some(Self { retry_after: Some(retry_after), ..Self::new(reason, message) })
    }

    /// Whether the request was no export at all, rather than one that cannot be taken.
    pub(crate) fn is_of_another_kind(&self) -> bool {
        matches!(self.reason, Reason::Path | Reason::Method | Reason::ContentType)
    }

    /// The same, with the number of spans that arrived for nothing.
    pub(crate) fn with_spans(self, spans: u64) -> Self {
        Self { spans, ..self }
    }

    fn status(&self) -> rpc::Status {
        let (_, code, _) = self.reason.row();
        let retry = self.retry_after.map(rpc::Any::retry_info);
        let bad = self.reason.bad_field().map(|field| rpc::Any::bad_request(field, &self.message));
        let details = retry.into_iter().chain(bad).collect();
        rpc::Status { code: i32::from(code), message: self.message.to_string(), details }
    }

    /// The same as [`Self::status`] in protobuf's JSON form.
    fn status_json(&self) -> serde_json::Value {
        let (_, code, _) = self.reason.row();
        let retry = self.retry_after.map(|after| {
            let delay = format!("{}.{:03}s", after.as_secs(), after.subsec_millis());
            serde_json::json!({ "@type": rpc::RETRY_INFO, "retryDelay": delay })
        });
        let bad = self.reason.bad_field().map(|field| {
            let violation = serde_json::json!({ "field": field, "description": self.message });
            serde_json::json!({ "@type": rpc::BAD_REQUEST, "fieldViolations": [violation] })
        });
        let details: Vec<_> = retry.into_iter().chain(bad).collect();
        serde_json::json!({ "code": i32::from(code), "message": self.message, "details": details })
    }
}

/// The next hint, spread by a counter: no randomness is needed to keep senders apart.
fn next_hint() -> Duration {
    static REFUSALS: AtomicU64 = AtomicU64::new(0);
    // A step that shares no factor with the range visits all of it before it repeats.
    let step = REFUSALS.fetch_add(1, Ordering::Relaxed).wrapping_mul(1_237);
    Duration::from_millis(HINT_MS.start + step % (HINT_MS.end - HINT_MS.start))
}

/// The form of an OTLP/HTTP body; an answer has the form of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Protobuf,
    Json,
}

impl Form {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }
}

/// An answer in HTTP's words, whatever its version.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) status: StatusCode,
    pub(crate) fields: Vec<(&'static str, Cow<'static, str>)>,
    pub(crate) body: Bytes,
    /// Whether [`GRPC_TRAILERS`] follow.
    pub(crate) has_trailers: bool,
    /// Whether the connection ends with it, where requests come one after the other.
    pub(crate) closes: bool,
}

impl Plain {
    fn new(status: StatusCode) -> Self {
        Self { status, fields: Vec::new(), body: Bytes::new(), has_trailers: false, closes: false }
    }

    fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.fields.push((name, value.into()));
        self
    }
}

impl Answer {
    /// Whether nothing but the form of the request decides how it looks: every such answer is the same bytes.
    pub(crate) fn is_plain_yes(&self) -> bool {
        matches!(self, Self::Accepted { refused: 0, because: "" })
    }

    /// As a response of `protocol`, and where that has several forms, in this one.
    pub(crate) fn plain(self, protocol: Protocol, form: Form) -> Plain {
        match (protocol, self) {
            (Protocol::Grpc, answer) => answer.grpc(),
            (Protocol::Http, answer) => answer.http(form),
            (Protocol::JaegerGrpc, Self::Accepted { .. }) => grpc_message(&door::JAEGER_GRPC_ANSWER),
            (Protocol::JaegerGrpc, Self::Refused(refusal)) => grpc_refused(&refusal),
            (Protocol::Zipkin | Protocol::JaegerHttp, Self::Accepted { .. }) => {
                Plain::new(StatusCode::ACCEPTED)
            }
            (Protocol::Zipkin | Protocol::JaegerHttp, Self::Refused(refusal)) => {
                text_refused(refusal, protocol)
            }
        }
    }

    /// As an OTLP/gRPC response.
    fn grpc(self) -> Plain {
        match self {
            Self::Accepted { refused, because } => grpc_accepted(&export_response(refused, because)),
            Self::Refused(refusal) => grpc_refused(&refusal),
        }
    }

    /// As an OTLP/HTTP response in the request's own form.
    fn http(self, form: Form) -> Plain {
        match self {
            Self::Accepted { refused, because } => {
                let body = match form {
                    Form::Protobuf => export_response(refused, because).encode_to_vec().into(),
                    Form::Json => export_response_json(refused, because),
                };
                Plain { body, ..Plain::new(StatusCode::OK).with("content-type", form.content_type()) }
            }
            Self::Refused(refusal) => http_refused(&refusal, form),
        }
    }
}

fn export_response(refused: u32, because: &str) -> ExportTraceServiceResponse {
    let partial_success = (refused > 0 || !because.is_empty()).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::from(refused),
        error_message: because.into(),
    });
    ExportTraceServiceResponse { partial_success }
}

fn export_response_json(refused: u32, because: &str) -> Bytes {
    if refused == 0 && because.is_empty() {
        return Bytes::from_static(b"{}");
    }
    // 64-bit numbers are strings in protobuf's JSON form.
    let partial = serde_json::json!({ "rejectedSpans": refused.to_string(), "errorMessage": because });
    serde_json::json!({ "partialSuccess": partial }).to_string().into()
}

fn grpc_accepted(message: &ExportTraceServiceResponse) -> Plain {
    let length = message.encoded_len();
    let mut data = BytesMut::with_capacity(GRPC_PREFIX_BYTES + length);
    data.put_u8(0);
    data.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    data.put_slice(&message.encode_to_vec());
    grpc_message(&data)
}

/// A message behind its prefix.
fn grpc_message(framed: &[u8]) -> Plain {
    let plain = Plain::new(StatusCode::OK).with("content-type", GRPC_CONTENT_TYPE);
    Plain { body: Bytes::copy_from_slice(framed), has_trailers: true, ..plain }
}

/// Trailers alone, as gRPC calls it: the status stands in the header block and there is no body.
fn grpc_refused(refusal: &Refusal) -> Plain {
    let (_, code, http_status) = refusal.reason.row();
    // These two are no gRPC calls at all, and the gRPC protocol wants HTTP's answer for them.
    if matches!(refusal.reason, Reason::ContentType | Reason::Method) {
        return Plain::new(http_status);
    }
    let mut plain = Plain::new(StatusCode::OK).with("content-type", GRPC_CONTENT_TYPE);
    let status = refusal.status();
    let details = if status.details.is_empty() { Bytes::new() } else { status.encode_to_vec().into() };
    let mut headers = HeaderMap::new();
    // Both the message and the details are encoded to printable characters, so no header can be illegal.
    if tonic::Status::with_details(code, status.message, details).add_header(&mut headers).is_err() {
        plain = plain.with("grpc-status", i32::from(code).to_string());
    }
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        if let Some(Ok(value)) = headers.get(name).map(|value| value.to_str()) {
            plain = plain.with(name, value.to_owned());
        }
    }
    if refusal.reason == Reason::Encoding {
        plain = plain.with("grpc-accept-encoding", ENCODINGS);
    }
    plain
}

fn http_refused(refusal: &Refusal, form: Form) -> Plain {
    let (_, _, status) = refusal.reason.row();
    let body = match form {
        Form::Protobuf => refusal.status().encode_to_vec().into(),
        Form::Json => refusal.status_json().to_string().into(),
    };
    let plain = Plain { body, ..Plain::new(status).with("content-type", form.content_type()) };
    with_advice(plain, refusal)
}

/// As Zipkin's and Jaeger's clients log it.
fn text_refused(refusal: Refusal, protocol: Protocol) -> Plain {
    let (_, _, status) = refusal.reason.row();
    // Jaeger's collector says 400 for this, and its clients know no 415.
    let is_unknown_to_jaeger = protocol == Protocol::JaegerHttp && refusal.reason == Reason::ContentType;
    let status = if is_unknown_to_jaeger { StatusCode::BAD_REQUEST } else { status };
    let plain = Plain::new(status).with("content-type", "text/plain; charset=utf-8");
    let body = Bytes::copy_from_slice(refusal.message.as_bytes());
    with_advice(Plain { body, ..plain }, &refusal)
}

/// What else HTTP's fields say about a refusal.
fn with_advice(mut plain: Plain, refusal: &Refusal) -> Plain {
    if let Some(after) = refusal.retry_after {
        // Whole seconds, rounded up: never earlier than asked for.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        plain = plain.with("retry-after", seconds.max(1).to_string());
    }
    match refusal.reason {
        Reason::Method => plain.with("allow", "POST"),
        Reason::Encoding => plain.with("accept-encoding", ENCODINGS),
        Reason::Timeout => Plain { closes: true, ..plain },
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_full_acceptance_is_an_empty_message() {
        assert!(export_response(0, "").encode_to_vec().is_empty());
        assert_eq!(&export_response_json(0, "")[..], b"{}");
    }

    #[test]
    fn the_bytes_of_a_plain_yes_are_constants() {
        let yes = || Answer::Accepted { refused: 0, because: "" };
        assert!(yes().is_plain_yes());
        assert_eq!(&yes().grpc().body[..], [0; GRPC_PREFIX_BYTES]);
        assert_eq!(&yes().http(Form::Json).body[..], b"{}");
        assert!(yes().http(Form::Protobuf).body.is_empty());
        assert!(!Answer::Accepted { refused: 0, because: "a warning" }.is_plain_yes());
    }

    #[test]
    fn zipkin_and_jaeger_hear_what_their_door_says() {
        let foreign = [Protocol::Zipkin, Protocol::JaegerHttp];
        for protocol in foreign {
            let partly = Answer::Accepted { refused: 3, because: "zero trace id" };
            let taken = partly.plain(protocol, Form::Json);
            assert_eq!((taken.status.as_u16(), taken.body.len()), (door::HTTP_ACCEPTED, 0));
            for error in [
                ingest_dialects::Error::WrongWireType { number: 1 },
                ingest_dialects::Error::TooLarge { limit_bytes: 1 },
            ] {
                let reason = if error.is_too_large() { Reason::TooLarge } else { Reason::Malformed };
                let refused =
                    Answer::Refused(Refusal::new(reason, error.to_string())).plain(protocol, Form::Json);
                assert_eq!(refused.status.as_u16(), error.http_status());
                assert_eq!(refused.body, error.to_string());
            }
        }
        let unknown = || Answer::Refused(Refusal::new(Reason::ContentType, "x"));
        assert_eq!(foreign.map(|protocol| unknown().plain(protocol, Form::Json).status.as_u16()), [415, 400]);
        let partly = Answer::Accepted { refused: 3, because: "zero trace id" };
        assert_eq!(partly.plain(Protocol::JaegerGrpc, Form::Json).body[..], door::JAEGER_GRPC_ANSWER);
        assert_eq!(door::JAEGER_GRPC_ANSWER, [0; GRPC_PREFIX_BYTES], "the same constant is OTLP's plain yes");
    }

    #[test]
    fn only_temporary_reasons_invite_a_retry() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(reason, "x");
            let plain = Answer::Refused(Refusal::new(reason, "x")).http(Form::Protobuf);
            let temporary = [429, 503].contains(&plain.status.as_u16());
            let says_when = plain.fields.iter().any(|(name, _)| *name == "retry-after");
            assert_eq!(says_when, temporary, "{reason:?}");
            let has_info = refusal.status().details.iter().any(|any| any.type_url == rpc::RETRY_INFO);
            assert_eq!(has_info, temporary, "{reason:?}");
        }
    }

    #[test]
    fn reasons_have_labels_of_their_own() {
        let labels: HashSet<_> = Reason::ALL.into_iter().map(Reason::as_str).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "metrics count by position");
        }
    }

    #[test]
    fn hints_spread_over_their_range() {
        let hints: HashSet<_> = (0..1_000).map(|_| next_hint().as_millis()).collect();
        assert!(hints.len() > 900, "{} different hints", hints.len());
        assert!(hints.iter().all(|&ms| (1_000..5_000).contains(&ms)));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let refusal = Refusal::new(Reason::Malformed, "ü".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(refusal.message.len(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn a_partial_success_says_how_many_and_why_in_both_forms() {
        let json = export_response_json(3, "zero trace id");
        assert_eq!(&json[..], br#"{"partialSuccess":{"errorMessage":"zero trace id","rejectedSpans":"3"}}"#);
        let message = export_response(3, "zero trace id").encode_to_vec();
        assert_eq!(message, [b"\x0a\x11\x08\x03\x12\x0d".as_slice(), b"zero trace id"].concat());
    }
}
