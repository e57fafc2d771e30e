//! A request's meaning: what its head says, and what its body becomes. Bytes and `now` in, values out; no socket, no
//! clock. Drivers differ in how bytes come and go, and share everything here.

use bytes::Bytes;
use ingest_dialects::{Dialect, door, transcode};
use ingest_otlp::{Containers, decompress_into, json_to_protobuf, summarise};
use store_model::{
    BodyRange, Encoding, InvalidTenant, SpanRun, SpanRuns, SpanSummary, SymbolCache, Tenant, UnixNanos,
};

use crate::answer::{Form, Reason, Refusal};
use crate::budget::Permit;
use crate::intake::Received;
use crate::metrics::Protocol;
use crate::pool::Pool;

/// The one method of the trace service.
const GRPC_PATH: &[u8] = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const HTTP_PATH: &[u8] = b"/v1/traces";

/// There is room for a body of spans of this size at first, and it doubles: smaller spans are rare.
const SPAN_BYTES_LIKELY: usize = 256;

/// The most spans there is room for at first.
const SPANS_FIRST_MAX: usize = 1_024;

/// What may be said once. Twice is not a choice that is ours to make.
#[derive(Debug, Default)]
enum Once<T> {
    #[default]
    Never,
    Said(T),
    Twice,
}

impl<T> Once<T> {
    fn say(&mut self, value: T) {
        *self = match self {
            Self::Never => Self::Said(value),
            Self::Said(_) | Self::Twice => Self::Twice,
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Media {
    Http(Form),
    Grpc,
    /// On the path of a protocol that is not OTLP.
    Foreign(Dialect),
    /// gRPC, but not with protobuf in it.
    OtherGrpc,
    Other,
}

/// The fields of a head that mean something to us, gathered as they come. Nothing is allocated for a tenant seen before.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    is_post: bool,
    /// What it is the path of.
    path: Option<Protocol>,
    media: Once<Media>,
    grpc_encoding: Once<Option<Encoding>>,
    content_encoding: Once<Option<Encoding>>,
    content_length: Option<usize>,
    tenant: Once<Result<Tenant, InvalidTenant>>,
    /// The sender waits for `100 Continue` before it sends its body.
    pub(crate) expects_continue: bool,
}

impl Fields {
    /// Takes one field, its name in lower case; `:method` and `:path` first among them.
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8], tenants: &mut Tenants) {
        match name {
            b":method" => self.is_post = value == b"POST",
            b":path" => self.path = path(value),
            b"content-type" => self.media.say(media(self.path, value)),
            b"grpc-encoding" => self.grpc_encoding.say(encoding(value)),
            b"content-encoding" => self.content_encoding.say(encoding(value)),
            b"content-length" => {
                self.content_length = str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            }
            b"x-scope-orgid" => self.tenant.say(tenants.named(value)),
            b"expect" => self.expects_continue = value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
    }

    /// What is being spoken to the port of `port`. gRPC needs HTTP/2's trailers; whatever comes by another way is asked
    /// about as HTTP.
    pub(crate) fn protocol(&self, port: Protocol, is_http2: bool) -> Protocol {
        let (grpc, http) = match port {
            Protocol::Grpc | Protocol::Http => (Protocol::Grpc, Protocol::Http),
            Protocol::JaegerGrpc | Protocol::JaegerHttp => (Protocol::JaegerGrpc, Protocol::JaegerHttp),
            Protocol::Zipkin => return Protocol::Zipkin,
        };
        let is_grpc =
            self.path == Some(grpc) || matches!(self.media, Once::Said(Media::Grpc | Media::OtherGrpc));
        if is_http2 && is_grpc { grpc } else { http }
    }

    /// The form an OTLP/HTTP request is in, and its answer too; `None` for one we do not speak.
    fn form(&self) -> Option<Form> {
        match self.media {
            Once::Said(Media::Http(form)) => Some(form),
            _ => None,
        }
    }

    /// The form of whatever is answered.
    pub(crate) fn answer_form(&self) -> Form {
        self.form().unwrap_or(Form::Protobuf)
    }

    /// What the head says about the body.
    pub(crate) fn head(self, protocol: Protocol, tenants: &Tenants) -> Result<Head, Refusal> {
        if protocol.is_grpc() { self.grpc_head(protocol, tenants) } else { self.http_head(protocol, tenants) }
    }

    /// Whether `grpc-encoding` applies is for the message's compressed flag to say.
    fn grpc_head(self, protocol: Protocol, tenants: &Tenants) -> Result<Head, Refusal> {
        if !self.is_post {
            return Err(Refusal::new(Reason::Method, "only POST is served"));
        }
        if !matches!(self.media, Once::Said(Media::Grpc)) {
            return Err(Refusal::new(Reason::ContentType, "content-type must be application/grpc"));
        }
        if self.path != Some(protocol) {
            return Err(Refusal::new(Reason::Path, "unknown service or method"));
        }
        let encoding = known(self.grpc_encoding, "grpc-encoding")?;
        let is_jaeger = protocol == Protocol::JaegerGrpc;
        let content =
            if is_jaeger { Content::Foreign(Dialect::JaegerProto) } else { Content::Otlp(Form::Protobuf) };
        Ok(Head { tenant: tenant(self.tenant, tenants)?, encoding, content, declared: None })
    }

    fn http_head(self, protocol: Protocol, tenants: &Tenants) -> Result<Head, Refusal> {
        if self.path != Some(protocol) {
            return Err(Refusal::new(Reason::Path, only_path(protocol)));
        }
        if !self.is_post {
            return Err(Refusal::new(Reason::Method, "only POST is served"));
        }
        let unknown = || Refusal::new(Reason::ContentType, wanted_media(protocol));
        let content = self.content(protocol).ok_or_else(unknown)?;
        let encoding = known(self.content_encoding, "content-encoding")?;
        Ok(Head { tenant: tenant(self.tenant, tenants)?, encoding, content, declared: self.content_length })
    }

    /// What the body of an HTTP request holds; `None` for what we do not read.
    fn content(&self, protocol: Protocol) -> Option<Content> {
        match self.media {
            Once::Said(Media::Http(form)) => Some(Content::Otlp(form)),
            Once::Said(Media::Foreign(dialect)) => Some(Content::Foreign(dialect)),
            Once::Never if protocol == Protocol::Zipkin => door::zipkin_dialect(None).map(Content::Foreign),
            _ => None,
        }
    }
}

fn only_path(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Zipkin => "only /api/v2/spans is served",
        Protocol::JaegerGrpc | Protocol::JaegerHttp => "only /api/traces is served",
        Protocol::Grpc | Protocol::Http => "only /v1/traces is served",
    }
}

fn wanted_media(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::JaegerGrpc | Protocol::JaegerHttp => {
            "content-type must be application/x-thrift or application/vnd.apache.thrift.binary or .compact"
        }
        Protocol::Grpc | Protocol::Http | Protocol::Zipkin => {
            "content-type must be application/x-protobuf or application/json"
        }
    }
}

/// What a path, without its query, belongs to.
fn path(target: &[u8]) -> Option<Protocol> {
    const KNOWN: [(&[u8], Protocol); 5] = [
        (GRPC_PATH, Protocol::Grpc),
        (HTTP_PATH, Protocol::Http),
        (door::ZIPKIN_PATH.as_bytes(), Protocol::Zipkin),
        (door::JAEGER_GRPC_PATH.as_bytes(), Protocol::JaegerGrpc),
        (door::JAEGER_PATH.as_bytes(), Protocol::JaegerHttp),
    ];
    let end = target.iter().position(|&byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len());
    KNOWN.into_iter().find(|(known, _)| *known == &target[..end]).map(|(_, protocol)| protocol)
}

/// What a content type, without its parameters, means on this path.
fn media(path: Option<Protocol>, value: &[u8]) -> Media {
    const GRPC: &[u8] = b"application/grpc";
    const KNOWN: [(&[u8], Media); 4] = [
        (GRPC, Media::Grpc),
        (b"application/grpc+proto", Media::Grpc),
        (b"application/x-protobuf", Media::Http(Form::Protobuf)),
        (b"application/json", Media::Http(Form::Json)),
    ];
    let text = || str::from_utf8(value).ok();
    match path {
        Some(Protocol::Zipkin) => {
            let dialect = text().and_then(|text| door::zipkin_dialect(Some(text)));
            return dialect.map_or(Media::Other, Media::Foreign);
        }
        Some(Protocol::JaegerHttp) => {
            return door::jaeger_dialect(text()).map_or(Media::Other, Media::Foreign);
        }
        _ => {}
    }
    let name = value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if let Some((_, media)) = KNOWN.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        return media;
    }
    let is_grpc = name.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC));
    if is_grpc { Media::OtherGrpc } else { Media::Other }
}

fn encoding(token: &[u8]) -> Option<Encoding> {
    match token {
        b"gzip" => Some(Encoding::Gzip),
        b"identity" => Some(Encoding::Identity),
        b"zstd" => Some(Encoding::Zstd),
        _ => Encoding::from_token(str::from_utf8(token).ok()?),
    }
}

fn known(said: Once<Option<Encoding>>, name: &'static str) -> Result<Encoding, Refusal> {
    match said {
        Once::Never => Ok(Encoding::Identity),
        Once::Said(Some(encoding)) => Ok(encoding),
        // Two lines are a stack of encodings, which nobody needs and bombs like.
        Once::Said(None) | Once::Twice => {
            Err(Refusal::new(Reason::Encoding, format!("{name} must be one of identity, gzip, zstd")))
        }
    }
}

fn tenant(said: Once<Result<Tenant, InvalidTenant>>, tenants: &Tenants) -> Result<Tenant, Refusal> {
    match said {
        Once::Never => Ok(tenants.default.clone()),
        Once::Said(Ok(tenant)) => Ok(tenant),
        Once::Said(Err(error)) => Err(Refusal::new(Reason::Tenant, error.to_string())),
        Once::Twice => Err(Refusal::new(Reason::Tenant, "x-scope-orgid must be given once")),
    }
}

/// The tenants a core has just seen, so that their next request allocates no name.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    default: Tenant,
    last: Tenant,
}

impl Tenants {
    fn named(&mut self, name: &[u8]) -> Result<Tenant, InvalidTenant> {
        if self.last.as_str().as_bytes() != name {
            // The rule allows ASCII only, so bytes that are no text break it.
            self.last = Tenant::new(str::from_utf8(name).unwrap_or_default())?;
        }
        Ok(self.last.clone())
    }
}

/// The form of a body, decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Otlp(Form),
    Foreign(Dialect),
}

/// What a head says about its body.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) tenant: Tenant,
    pub(crate) encoding: Encoding,
    pub(crate) content: Content,
    pub(crate) declared: Option<usize>,
}

impl Head {
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
    pool: &Pool,
    now: UnixNanos,
) -> Result<Opened, Refusal> {
    let Head { tenant, encoding, content, declared: _ } = head;
    let (compressed, plain) = match encoding {
        Encoding::Identity => (None, stored),
        _ => {
            let plain = decompressed(encoding, &stored, bytes_max, permit, pool)?;
            (Some(stored), plain)
        }
    };
    let transcoded = match content {
        Content::Otlp(Form::Protobuf) => None,
        Content::Otlp(Form::Json) => Some(json_to_protobuf(&plain).map_err(|error| malformed(&error))?),
        Content::Foreign(dialect) => Some(to_otlp(dialect, &plain, bytes_max, permit)?),
    };
    let (encoding, compressed, body) = match transcoded {
        None => (encoding, compressed, plain),
        Some(body) => {
            permit.grow(body.len())?;
            (Encoding::Identity, None, Bytes::from(body))
        }
    };
    let first = (body.len() / SPAN_BYTES_LIKELY + 4).min(SPANS_FIRST_MAX);
    let mut spans = Collected { spans: SpanRuns::default(), first, starved: None, permit };
    let mut containers = Containers::default();
    let walked = summarise(&body, symbols, &mut containers, &mut |span| spans.push(&span))
        .map_err(|error| malformed(&error))?;
    let refused = walked.rejected;
    let because = walked.rejected_because.unwrap_or_default();
    if let Some(refusal) = spans.starved {
        return Err(refusal.with_spans(u64::from(walked.accepted) + u64::from(refused)));
    }
    let spans = spans.spans;
    let received =
        Received { tenant, arrived_at: now, encoding, compressed, body, containers, spans, refused };
    Ok(Opened { received, because })
}

/// The OTLP request that a body of another protocol becomes; counted by the caller.
fn to_otlp(dialect: Dialect, plain: &[u8], bytes_max: usize, permit: &Permit) -> Result<Vec<u8>, Refusal> {
    let room = permit.room();
    transcode(dialect, plain, bytes_max.min(room)).map_err(|error| {
        if !error.is_too_large() {
            Refusal::new(Reason::Malformed, error.to_string())
        } else if room < bytes_max {
            permit.refusal_beyond(room)
        } else {
            Refusal::too_large(bytes_max)
        }
    })
}

fn decompressed(
    encoding: Encoding,
    stored: &Bytes,
    bytes_max: usize,
    permit: &mut Permit,
    pool: &Pool,
) -> Result<Bytes, Refusal> {
    let room = permit.room();
    match decompress_into(encoding, stored, bytes_max.min(room), |bytes| pool.take(bytes)) {
        Ok(body) => permit.grow(body.capacity()).map(|()| pool.share(body, 0)),
        Err(error) if error.is_too_large() && room < bytes_max => Err(permit.refusal_beyond(room)),
        Err(error) if error.is_too_large() => Err(Refusal::too_large(bytes_max)),
        Err(error) => Err(malformed(&error)),
    }
}

fn malformed(error: &ingest_otlp::Error) -> Refusal {
    Refusal::new(Reason::Malformed, error.to_string())
}

/// Spans as they come out of the walk, which cannot be stopped: once memory is refused, the rest is dropped.
struct Collected<'a> {
    spans: SpanRuns,
    first: usize,
    starved: Option<Refusal>,
    permit: &'a mut Permit,
}

impl Collected<'_> {
    #[inline(always)]
    fn push(&mut self, span: &SpanSummary) {
        let SpanRuns { runs, ranges } = &self.spans;
        if (ranges.len() == ranges.capacity() || runs.len() == runs.capacity()) && !self.grow() {
            return;
        }
        self.spans.push(span);
    }

    /// Makes room for one more, whether it begins a run or not; false when there is no memory for it.
    #[cold]
    fn grow(&mut self) -> bool {
        if self.starved.is_some() {
            return false;
        }
        let SpanRuns { runs, ranges } = &mut self.spans;
        let more_ranges = if ranges.len() == ranges.capacity() { ranges.len().max(self.first) } else { 0 };
        // Nobody knows how many spans a trace has in a row, and what is reserved in vain weighs eight times a range.
        let more_runs = if runs.len() == runs.capacity() { runs.len().max(self.first / 8 + 1) } else { 0 };
        let bytes = more_ranges * size_of::<BodyRange>() + more_runs * size_of::<SpanRun>();
        if let Err(refusal) = self.permit.grow(bytes) {
            self.starved = Some(refusal);
            return false;
        }
        ranges.reserve_exact(more_ranges);
        runs.reserve_exact(more_runs);
        true
    }
}
