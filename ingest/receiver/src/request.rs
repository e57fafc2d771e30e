//! A request's meaning: what its head says, and what its body becomes. Bytes and `now` in, values out; no socket, no
//! clock. Drivers differ in how bytes come and go, and share everything here.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method};
use ingest_otlp::{Containers, decompress, json_to_protobuf, summarise};
use store_model::{Encoding, SpanSummary, SymbolCache, Tenant, UnixNanos};

use crate::answer::{Form, Reason, Refusal};
use crate::budget::Permit;
use crate::intake::Received;

/// The one method of the trace service.
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const HTTP_PATH: &str = "/v1/traces";
const TENANT_HEADER: &str = "x-scope-orgid";
const GRPC_ENCODING: &str = "grpc-encoding";

/// A summary list starts with room for this many spans and doubles: an SDK's batch is 512 at most by default.
const SUMMARIES_FIRST: usize = 512;

/// What a head says about its body.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) tenant: Tenant,
    pub(crate) encoding: Encoding,
    pub(crate) form: Form,
    pub(crate) declared: Option<usize>,
}

impl Head {
    /// Of a gRPC call. Whether `grpc-encoding` applies is for the message's compressed flag to say.
    pub(crate) fn of_grpc(method: &Method, path: &str, headers: &HeaderMap) -> Result<Self, Refusal> {
        if method != Method::POST {
            return Err(Refusal::new(Reason::Method, "only POST is served"));
        }
        if !matches!(media_type(headers), Some("application/grpc" | "application/grpc+proto")) {
            return Err(Refusal::new(Reason::ContentType, "content-type must be application/grpc"));
        }
        if path != GRPC_PATH {
            return Err(Refusal::new(Reason::Path, "unknown service or method"));
        }
        let encoding = encoding(headers, GRPC_ENCODING)?;
        Ok(Self { tenant: tenant(headers)?, encoding, form: Form::Protobuf, declared: None })
    }

    /// Of an OTLP/HTTP request whose content type was found to mean `form`.
    pub(crate) fn of_http(
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        form: Option<Form>,
    ) -> Result<Self, Refusal> {
        if path != HTTP_PATH {
            return Err(Refusal::new(Reason::Path, "only /v1/traces is served"));
        }
        if method != Method::POST {
            return Err(Refusal::new(Reason::Method, "only POST is served"));
        }
        let wanted = "content-type must be application/x-protobuf or application/json";
        let form = form.ok_or_else(|| Refusal::new(Reason::ContentType, wanted))?;
        let encoding = encoding(headers, CONTENT_ENCODING.as_str())?;
        let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Self { tenant: tenant(headers)?, encoding, form, declared })
    }

    /// A gRPC message says for itself whether it is compressed.
    pub(crate) fn with_compressed_flag(self, compressed: bool) -> Result<Self, Refusal> {
        match (compressed, self.encoding) {
            (true, Encoding::Identity) => Err(Refusal::new(
                Reason::Framing,
                "message is compressed but grpc-encoding names no compression",
            )),
            (true, _) => Ok(self),
            (false, _) => Ok(Self { encoding: Encoding::Identity, ..self }),
        }
    }
}

/// The form an OTLP/HTTP request is in, and its answer too; `None` for one we do not speak.
pub(crate) fn form(headers: &HeaderMap) -> Option<Form> {
    match media_type(headers)? {
        "application/x-protobuf" => Some(Form::Protobuf),
        "application/json" => Some(Form::Json),
        _ => None,
    }
}

/// The content type without its parameters; `None` when there is not exactly one.
fn media_type(headers: &HeaderMap) -> Option<&'static str> {
    const KNOWN: [&str; 4] =
        ["application/x-protobuf", "application/json", "application/grpc", "application/grpc+proto"];
    let value = only(headers, CONTENT_TYPE.as_str()).ok()??;
    let name = value.split(';').next()?.trim();
    KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(name))
}

fn encoding(headers: &HeaderMap, name: &'static str) -> Result<Encoding, Refusal> {
    let known = match only(headers, name) {
        Ok(None) => Some(Encoding::Identity),
        Ok(Some(token)) => Encoding::from_token(token),
        // Two lines are a stack of encodings, which nobody needs and bombs like.
        Err(NotOne) => None,
    };
    known.ok_or_else(|| Refusal::new(Reason::Encoding, format!("{name} must be one of identity, gzip, zstd")))
}

fn tenant(headers: &HeaderMap) -> Result<Tenant, Refusal> {
    match only(headers, TENANT_HEADER) {
        Ok(None) => Ok(Tenant::default()),
        Ok(Some(name)) => Tenant::new(name).map_err(|error| Refusal::new(Reason::Tenant, error.to_string())),
        Err(NotOne) => Err(Refusal::new(Reason::Tenant, "x-scope-orgid must be given once, in ASCII")),
    }
}

/// A header that was given twice, or whose value is no text.
struct NotOne;

fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, NotOne> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_not_text| NotOne),
        (Some(_), Some(_)) => Err(NotOne),
    }
}

/// What a body turned out to hold.
#[derive(Debug)]
pub(crate) struct Opened {
    /// For the intake; without summaries when there is nothing to store.
    pub(crate) received: Received,
    /// Why spans were refused, if any were.
    pub(crate) because: &'static str,
}

/// Decompresses and walks a body. `stored` is what came over the wire and is already counted in `permit`; whatever else
/// comes into being is counted too.
pub(crate) fn open(
    head: Head,
    stored: Bytes,
    bytes_max: usize,
    permit: &mut Permit,
    symbols: &mut SymbolCache,
    now: UnixNanos,
) -> Result<Opened, Refusal> {
    let Head { tenant, encoding, form, declared: _ } = head;
    let plain = decompressed(encoding, &stored, bytes_max, permit)?;
    let (encoding, stored, body) = match form {
        Form::Protobuf => (encoding, stored, plain),
        Form::Json => {
            let body = Bytes::from(json_to_protobuf(&plain).map_err(|error| malformed(&error))?);
            permit.grow(body.len())?;
            (Encoding::Identity, body.clone(), body)
        }
    };
    let mut summaries = Summaries { list: Vec::new(), starved: None, permit };
    let mut containers = Containers::default();
    let walked = summarise(&body, symbols, &mut containers, &mut |summary| summaries.push(summary))
        .map_err(|error| malformed(&error))?;
    let refused = walked.rejected;
    let because = walked.rejected_because.unwrap_or_default();
    if let Some(refusal) = summaries.starved {
        return Err(refusal.with_spans(u64::from(walked.accepted) + u64::from(refused)));
    }
    let summaries = summaries.list;
    let received = Received { tenant, arrived_at: now, encoding, stored, body, containers, summaries, refused };
    Ok(Opened { received, because })
}

fn decompressed(
    encoding: Encoding,
    stored: &Bytes,
    bytes_max: usize,
    permit: &mut Permit,
) -> Result<Bytes, Refusal> {
    if encoding == Encoding::Identity {
        return Ok(stored.clone());
    }
    let room = permit.room();
    match decompress(encoding, stored, bytes_max.min(room)) {
        Ok(body) => permit.grow(body.len()).map(|()| body),
        Err(error) if error.is_too_large() && room < bytes_max => Err(permit.refusal_beyond(room)),
        Err(error) if error.is_too_large() => Err(Refusal::too_large(bytes_max)),
        Err(error) => Err(malformed(&error)),
    }
}

fn malformed(error: &ingest_otlp::Error) -> Refusal {
    Refusal::new(Reason::Malformed, error.to_string())
}

/// Summaries as they come out of the walk, which cannot be stopped: once memory is refused, the rest is dropped.
struct Summaries<'a> {
    list: Vec<SpanSummary>,
    starved: Option<Refusal>,
    permit: &'a mut Permit,
}

impl Summaries<'_> {
    fn push(&mut self, summary: SpanSummary) {
        if self.starved.is_some() {
            return;
        }
        if self.list.len() == self.list.capacity() {
            let more = self.list.len().max(SUMMARIES_FIRST);
            if let Err(refusal) = self.permit.grow(more * size_of::<SpanSummary>()) {
                self.starved = Some(refusal);
                return;
            }
            self.list.reserve_exact(more);
        }
        self.list.push(summary);
    }
}
