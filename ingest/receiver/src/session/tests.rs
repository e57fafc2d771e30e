//! A conversation is the same wherever its bytes are cut: over HTTP/1.1 and HTTP/2, good requests and bad ones, a session
//! hands on the same requests and says the same to each stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ingest_otlp::messages::{ExportTraceServiceRequest, ResourceSpans, ScopeSpans, Span};
use ingest_otlp::protobuf_to_json;
use prost::Message;
use store_model::{Encoding, Symbols, Tenant, UnixNanos};

use super::*;
use crate::config::ReceiverConfig;
use crate::inbox::Inbox;
use crate::intake::{Done, Intake, Outcome, Received};
use crate::lane::{Berth, HandOver, Lane};
use crate::metrics::{ProtocolSnapshot, ReceiverMetrics};
use crate::shared::Shared;
use crate::slab::Slab;

const MIB: usize = 1 << 20;

/// Remembers what it is given and answers at once, unless it is told to hold.
struct Memory {
    symbols: Symbols,
    received: Mutex<Vec<Received>>,
    held: Mutex<Option<Vec<Done>>>,
}

impl Memory {
    fn submit(&self, request: Received, done: Done) {
        self.received.lock().unwrap().push(request);
        match &mut *self.held.lock().unwrap() {
            Some(held) => held.push(done),
            None => done.send(Outcome::Stored),
        }
    }
}

impl Intake for Memory {
    fn lane(self: Arc<Self>, _: Berth) -> Box<dyn Lane> {
        Box::new(HandOver(move |request, done| self.submit(request, done)))
    }

    fn refuse(&self, _: &Tenant, _: u64) {}

    fn ready(&self) -> Result<(), Outcome> {
        Ok(())
    }

    fn now(&self) -> UnixNanos {
        UnixNanos(1_700_000_000_000_000_000)
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }
}

/// One session without a socket.
struct Talk {
    session: Session,
    desk: Desk,
    intake: Arc<Memory>,
    out: Vec<u8>,
    now: Monotonic,
}

impl Talk {
    fn new() -> Self {
        let config = ReceiverConfig {
            request_bytes_max: MIB,
            inflight_bytes_max: 4 * MIB,
            ..ReceiverConfig::default()
        };
        Self::with(&config)
    }

    fn with(config: &ReceiverConfig) -> Self {
        let (received, held) = (Mutex::default(), Mutex::default());
        let intake = Arc::new(Memory { symbols: Symbols::new(100), received, held });
        let seam: Arc<dyn Intake> = Arc::<Memory>::clone(&intake);
        let shared = Shared::new(config, seam, Arc::new(ReceiverMetrics::default()));
        let desk = Desk::new(0, shared, Arc::new(Inbox::new().unwrap()), false);
        let key = Slab::default().insert_with(|_| ());
        let now = Monotonic(1);
        Self { session: Session::new(key, Protocol::Grpc, now), desk, intake, out: Vec::new(), now }
    }

    /// As a driver does: bytes in, answers out, and no bytes while it asks for a pause.
    fn hear(&mut self, bytes: &[u8]) {
        let Self { session, desk, out, now, .. } = self;
        assert_ne!(session.wish(), Wish::Pause);
        session.receive(bytes, *now, desk, out);
        self.answers();
    }

    fn answers(&mut self) {
        let mut answers = Vec::new();
        loop {
            self.desk.inbox.take(&mut answers);
            if answers.is_empty() {
                return;
            }
            for (ticket, outcome) in answers.drain(..) {
                let Some((back, answer)) = self.desk.answered(ticket, outcome) else { continue };
                self.session.answer(back, answer, self.now, &mut self.desk, &mut self.out);
            }
        }
    }

    fn after(&mut self, span: Duration) {
        self.now = self.now.plus(span);
        self.session.tick(false, self.now, &mut self.desk, &mut self.out);
    }

    fn metrics(&self) -> ProtocolSnapshot {
        self.desk.shared.metrics.snapshot().grpc
    }

    fn in_flight(&self) -> u64 {
        self.desk.shared.metrics.snapshot().inflight_bytes
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

fn body(count: u64) -> Vec<u8> {
    let span = |number: u64| Span {
        trace_id: [[7; 8], number.to_be_bytes()].concat(),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name: format!("operation-{number}"),
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: (0..count).map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut reader = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    std::io::Read::read_to_end(&mut reader, &mut out).unwrap();
    out
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[flag], length.to_be_bytes().as_slice(), message].concat()
}

fn http1(fields: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n{fields}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// A header block of literals.
fn block(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a")];
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let literal = |&(name, value): &(&str, &str)| [vec![0], text(name), text(value)].concat();
    pseudo.iter().chain(fields).flat_map(literal).collect()
}

const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const GRPC: (&str, &str) = ("content-type", "application/grpc");
const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");

fn headers(stream: u32, flags: u8, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(path, fields))
}

/// A connection's start and `frames`.
fn http2(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat()
}

fn http2_corpus() -> Vec<(&'static str, Vec<u8>)> {
    let plain = framed(0, &body(5));
    let (start, end) = plain.split_at(plain.len() / 2);
    let call = |stream| headers(stream, 0, GRPC_PATH, &[GRPC]);
    let data = |stream, bytes: &[u8]| frame(DATA, 0, stream, bytes);
    let last = |stream, bytes: &[u8]| frame(DATA, END_STREAM, stream, bytes);
    let padded = [&[3][..], start, &[0; 3]].concat();
    let (first, rest) = (block(GRPC_PATH, &[GRPC]), b"ping pon");
    let json = protobuf_to_json(&body(2)).unwrap().to_string();
    let zipped = headers(3, 0, GRPC_PATH, &[GRPC, ("grpc-encoding", "gzip"), ("x-scope-orgid", "me")]);
    let zstd = zstd::bulk::compress(&body(7), 1).unwrap();
    let refused: Vec<_> = [
        headers(1, END_STREAM, "/", &[GRPC]),
        headers(3, END_STREAM, GRPC_PATH, &[("content-type", "text/plain")]),
        headers(5, 0, "/v1/traces", &[PROTOBUF, ("content-encoding", "br")]),
        data(5, start),
        last(5, end),
        headers(7, 0, GRPC_PATH, &[GRPC, ("x-scope-orgid", "..")]),
        last(7, &plain),
        headers(9, END_STREAM, "/v1/traces", &[("content-type", "text/plain")]),
    ]
    .concat();
    vec![
        ("one call", http2(&[call(1), last(1, &plain)])),
        ("two calls side by side", http2(&[call(1), data(1, start), call(3), last(3, &plain), last(1, end)])),
        ("padding", http2(&[call(1), frame(DATA, PADDED, 1, &padded), last(1, end)])),
        (
            "continuation, ping and trailers",
            http2(&[
                frame(HEADERS, 0, 1, &first[..20]),
                frame(CONTINUATION, END_HEADERS, 1, &first[20..]),
                frame(PING, 0, 0, rest),
                data(1, &plain),
                frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0, 1, b'x', 1, b'y']),
            ]),
        ),
        (
            "gzip, zstd and a tenant",
            http2(&[
                zipped,
                last(3, &framed(1, &gzip(&body(9)))),
                headers(5, 0, "/v1/traces?x", &[PROTOBUF, ("content-encoding", "zstd")]),
                last(5, &zstd),
            ]),
        ),
        (
            "JSON over HTTP/2",
            http2(&[
                headers(1, 0, "/v1/traces", &[("content-type", "application/json")]),
                last(1, json.as_bytes()),
            ]),
        ),
        ("refusals", http2(&[refused])),
        (
            "broken framing",
            http2(&[
                call(1),
                last(1, start),
                call(3),
                last(3, &[plain.clone(), plain.clone()].concat()),
                call(5),
                last(5, &[9]),
            ]),
        ),
        (
            "a reset, then another",
            http2(&[
                call(1),
                data(1, start),
                frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
                call(3),
                last(3, &plain),
            ]),
        ),
        (
            "a length that lies",
            http2(&[
                headers(1, 0, GRPC_PATH, &[GRPC, ("content-length", "3")]),
                last(1, &plain),
                call(3),
                last(3, &plain),
            ]),
        ),
        ("the client says goodbye", http2(&[call(1), last(1, &plain), frame(GOAWAY, 0, 0, &[0; 8])])),
        (
            "a broken frame",
            http2(&[call(1), last(1, &plain), frame(PING, 0, 0, b"short"), call(3), last(3, &plain)]),
        ),
        ("no preface after all", [&PREFACE[..18], b"XX\r\n\r\n"].concat()),
    ]
}

fn http1_corpus() -> Vec<(&'static str, Vec<u8>)> {
    let json = protobuf_to_json(&body(2)).unwrap().to_string();
    let protobuf = "content-type: application/x-protobuf\r\n";
    let good = http1(protobuf, &body(3));
    let chunks: Vec<u8> = body(4)
        .chunks(50)
        .flat_map(|chunk| [format!("{:x};x=y\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
        .collect();
    let head = format!("POST /v1/traces HTTP/1.1\r\nHost: a\r\n{protobuf}transfer-encoding: chunked\r\n\r\n");
    let chunked = [head.as_bytes(), &chunks, b"0\r\nx: y\r\n\r\n"].concat();
    let gzipped =
        http1(&format!("{protobuf}Content-Encoding: gzip\r\nX-Scope-OrgID: me\r\n"), &gzip(&body(30)));
    let oversize =
        format!("POST /v1/traces HTTP/1.1\r\nhost: a\r\n{protobuf}content-length: {}\r\n\r\n", MIB + 1);
    let waits = http1(&format!("{protobuf}expect: 100-continue\r\n"), &body(1));
    vec![
        ("one request", good.clone()),
        ("three in a row", [good.clone(), chunked, gzipped].concat()),
        ("JSON", http1("content-type: application/json\r\n", json.as_bytes())),
        (
            "a refusal between two",
            [good.clone(), http1("content-type: text/plain\r\n", &body(3)), good.clone()].concat(),
        ),
        (
            "wrong path",
            [b"POST /v1/metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", &good[..]].concat(),
        ),
        (
            "GET and HEAD",
            b"GET /v1/traces HTTP/1.1\r\nhost: a\r\n\r\nHEAD / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        ),
        (
            "gRPC without HTTP/2",
            [b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n\r\n", &good[..]].concat(),
        ),
        ("malformed body", [http1(protobuf, &body(3)[..20]), good.clone()].concat()),
        ("too large", [oversize.as_bytes(), &[0; 999]].concat()),
        ("expects to be asked", waits),
        (
            "HTTP/1.0",
            b"POST /v1/traces HTTP/1.0\r\ncontent-length: 0\r\ncontent-type: application/json\r\n\r\n"
                .to_vec(),
        ),
        (
            "both lengths",
            [
                &good[..],
                b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            ]
            .concat(),
        ),
    ]
}

/// What must not depend on where bytes are cut: what the intake got, what each stream was told, and the counters.
#[derive(Debug, PartialEq)]
struct Outcomes {
    received: Vec<(String, Encoding, Vec<u8>, usize, u32)>,
    told: BTreeMap<u32, Vec<u8>>,
    requests: (u64, u64, Vec<(crate::answer::Reason, u64)>),
    cut: Vec<(CutReason, u64)>,
    wish: Wish,
}

/// What was said to each stream, without what depends on timing: WINDOW_UPDATE, the acknowledgements of stream 0, and
/// what tells a sender to go on or to stop, which is needless once all of its body is there.
fn told(out: &[u8], is_http2: bool) -> BTreeMap<u32, Vec<u8>> {
    const STOP: [u8; 4] = [0; 4];
    if !is_http2 {
        let out = out.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(out);
        return BTreeMap::from([(0, out.to_vec())]);
    }
    let (mut streams, mut rest) = (BTreeMap::<u32, Vec<u8>>::new(), out);
    while let [a, b, c, kind, flags, s0, s1, s2, s3, after @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, next) = after.split_at(length);
        let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
        let is_timing = *kind == WINDOW_UPDATE || (*kind == RST_STREAM && payload == STOP);
        if !is_timing && (stream > 0 || *kind == GOAWAY || *kind == PING) {
            streams.entry(stream).or_default().extend([&[*kind, *flags], payload].concat());
        }
        rest = next;
    }
    assert!(rest.is_empty(), "half a frame");
    streams
}

fn outcomes(pieces: &[&[u8]]) -> Outcomes {
    let mut talk = Talk::new();
    pieces.iter().for_each(|piece| talk.hear(piece));
    let is_http2 = matches!(talk.session.wire, Wire::Http2(_));
    let received = std::mem::take(&mut *talk.intake.received.lock().unwrap());
    let received = received.iter().map(|request| {
        let Received { tenant, encoding, body, spans, refused, .. } = request;
        let stored = request.stored();
        assert_eq!(&ingest_otlp::decompress(*encoding, stored, MIB).unwrap(), body);
        (tenant.to_string(), *encoding, stored.to_vec(), spans.len(), *refused)
    });
    let received = received.collect();
    let (grpc, http) = (talk.metrics(), talk.desk.shared.metrics.snapshot().http);
    let refused = grpc
        .requests_refused
        .iter()
        .zip(&http.requests_refused)
        .map(|((reason, a), (_, b))| (*reason, a + b));
    let requests = (grpc.requests_accepted, http.requests_accepted, refused.collect());
    let (mut told, cut, wish) = (told(&talk.out, is_http2), grpc.connections_cut, talk.session.wish());
    if is_http2 && cut.iter().any(|(_, count)| *count > 0) {
        // Answers that were still due when the peer broke the rules are lost; which ones were due is timing.
        told.retain(|stream, _| *stream == 0);
    }
    talk.session.die(&talk.desk);
    talk.session = Session::new(talk.session.key, Protocol::Grpc, talk.now);
    assert_eq!(talk.in_flight(), 0, "all memory comes back");
    Outcomes { received, told, requests, cut, wish }
}

fn check_cuts(name: &str, bytes: &[u8]) {
    let whole = outcomes(&[bytes]);
    for cut in 1..bytes.len() {
        assert_eq!(outcomes(&[&bytes[..cut], &bytes[cut..]]), whole, "{name}, cut at {cut}");
    }
    for size in [1, 2, 7, 100] {
        let pieces: Vec<_> = bytes.chunks(size).collect();
        assert_eq!(outcomes(&pieces), whole, "{name}, in pieces of {size}");
    }
}

#[test]
fn http2_is_understood_the_same_wherever_it_is_cut() {
    http2_corpus().iter().for_each(|(name, bytes)| check_cuts(name, bytes));
}

#[test]
fn http1_is_understood_the_same_wherever_it_is_cut() {
    http1_corpus().iter().for_each(|(name, bytes)| check_cuts(name, bytes));
}

/// That they agree is worth something only if they do something.
#[test]
fn the_corpus_says_what_it_is_meant_to_say() {
    let expected_http2 = [1, 2, 1, 1, 2, 1, 0, 0, 1, 1, 1, 1, 0];
    let taken = |corpus: Vec<(&'static str, Vec<u8>)>| -> Vec<_> {
        corpus.iter().map(|(_, bytes)| outcomes(&[bytes]).received.len()).collect()
    };
    assert_eq!(taken(http2_corpus()), expected_http2);
    assert_eq!(taken(http1_corpus()), [1, 3, 1, 2, 1, 0, 1, 1, 0, 1, 0, 1]);
    let refusals = outcomes(&[&http2_corpus()[6].1]);
    assert_eq!(refusals.told.len(), 5, "each stream has its answer");
    let broken = outcomes(&[&http2_corpus()[11].1]);
    assert_eq!(broken.cut[CutReason::Protocol as usize].1, 1);
    assert!(broken.told.contains_key(&0) && broken.wish == Wish::Finish, "GOAWAY is said");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]
    #[test]
    fn larger_bodies_are_understood_the_same_in_random_pieces(
        sizes in proptest::collection::vec(1usize..40_000, 1..20), spans in 1u64..4_000, is_http2: bool, zip: bool,
    ) {
        let plain = body(spans);
        let message = if zip { gzip(&plain) } else { plain };
        let bytes = if is_http2 {
            let name = if zip { "gzip" } else { "identity" };
            let call = headers(1, 0, GRPC_PATH, &[GRPC, ("grpc-encoding", name)]);
            let stream = framed(u8::from(zip), &message);
            let data = stream.chunks(16_384).map(|piece| frame(DATA, 0, 1, piece));
            http2(&[vec![call], data.collect(), vec![frame(DATA, END_STREAM, 1, &[])]].concat())
        } else {
            let encoding = if zip { "content-encoding: gzip\r\n" } else { "" };
            http1(&format!("content-type: application/x-protobuf\r\n{encoding}"), &message)
        };
        let whole = outcomes(&[&bytes]);
        proptest::prop_assert_eq!(whole.received.len(), 1);
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for size in sizes.iter().cycle() {
            let (piece, next) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = next;
            if rest.is_empty() {
                break;
            }
        }
        proptest::prop_assert_eq!(outcomes(&pieces), whole);
    }

    #[test]
    fn noise_never_panics_and_gives_its_memory_back(
        corpus in 0usize..25, at in 0usize..2_000, noise in proptest::collection::vec(0u8.., 0..30), size in 1usize..300,
    ) {
        let all: Vec<_> = http2_corpus().into_iter().chain(http1_corpus()).collect();
        let mut bytes = all[corpus % all.len()].1.clone();
        let at = at % bytes.len();
        let end = (at + noise.len()).min(bytes.len());
        bytes.splice(at..end, noise);
        let mut talk = Talk::new();
        for piece in bytes.chunks(size) {
            if talk.session.wish() == Wish::Pause {
                break;
            }
            talk.hear(piece);
        }
        talk.after(Duration::from_secs(100));
        talk.session.die(&talk.desk);
        talk.session = Session::new(talk.session.key, Protocol::Grpc, talk.now);
        proptest::prop_assert_eq!(talk.in_flight(), 0);
    }
}

fn slow() -> ReceiverConfig {
    let second = Duration::from_secs(1);
    ReceiverConfig {
        header_timeout: second * 10,
        body_timeout: second * 30,
        idle_timeout: second * 60,
        connection_age_max: second * 1_800,
        ..ReceiverConfig::default()
    }
}

#[test]
fn who_says_nothing_or_half_a_head_is_cut_in_time() {
    for start in [&b""[..], b"PRI * HT", b"POST / HTTP/1.1\r\nhost"] {
        let mut talk = Talk::with(&slow());
        if !start.is_empty() {
            talk.hear(start);
        }
        talk.after(Duration::from_secs(9));
        assert_eq!(talk.session.wish(), Wish::Go);
        talk.after(Duration::from_secs(1));
        assert_eq!(talk.session.wish(), Wish::Close, "{start:?}");
        assert_eq!(talk.metrics().cut(CutReason::HeaderTimeout), 1);
    }
    // Between two requests there is nothing to blame anybody for.
    let mut talk = Talk::with(&slow());
    talk.hear(&http1("content-type: application/x-protobuf\r\n", &body(1)));
    talk.after(Duration::from_secs(10));
    assert_eq!((talk.session.wish(), talk.metrics().cut(CutReason::HeaderTimeout)), (Wish::Close, 0));
}

#[test]
fn a_body_must_advance_or_is_refused() {
    let mut talk = Talk::with(&slow());
    let plain = framed(0, &body(5_000));
    talk.hear(&http2(&[headers(1, 0, GRPC_PATH, &[GRPC]), frame(DATA, 0, 1, &plain[..40_000])]));
    talk.after(Duration::from_secs(30));
    assert_eq!(talk.metrics().refused(crate::answer::Reason::Timeout), 0, "it came fast enough until now");
    talk.after(Duration::from_secs(30));
    assert_eq!(talk.metrics().refused(crate::answer::Reason::Timeout), 1);
    assert_eq!((talk.in_flight(), talk.session.wish()), (0, Wish::Go), "the connection may stay");

    let mut talk = Talk::with(&slow());
    let whole = http1("content-type: application/x-protobuf\r\n", &body(100));
    talk.hear(&whole[..200]);
    talk.after(Duration::from_secs(30));
    assert!(talk.said().starts_with("HTTP/1.1 408 ") && talk.said().contains("connection: close"));
    talk.after(LINGER);
    assert_eq!(talk.session.wish(), Wish::Close, "it will not be waited for for ever");
}

#[test]
fn a_refused_request_is_heard_out_for_a_while_before_it_is_answered() {
    const END: u8 = 1;
    let refused = headers(1, 4, "/nowhere", &[("content-type", "application/json")]);
    let piece = frame(0, 0, 1, &[0; 16 << 10]);
    let mut ends = Talk::new();
    ends.hear(&http2(&[refused.clone(), piece.clone()]));
    assert!(!ends.said().contains("only /v1/traces"), "it may still keep the rules");
    ends.hear(&frame(0, END, 1, b"x"));
    assert!(ends.said().contains("only /v1/traces"), "{}", ends.said());
    let mut goes_on = Talk::new();
    goes_on.hear(&http2(&[refused.clone(), piece.clone(), piece.clone(), piece.clone()]));
    assert!(!goes_on.said().contains("only /v1/traces"));
    goes_on.hear(&piece);
    assert!(goes_on.said().contains("only /v1/traces"), "64 KiB are enough");
    let mut stays = Talk::new();
    stays.hear(&http2(std::slice::from_ref(&refused)));
    assert!(stays.in_flight() > 0, "what is held is counted");
    stays.after(Duration::from_millis(300));
    assert!(stays.said().contains("only /v1/traces"), "and a quarter of a second");
    assert_eq!(stays.in_flight(), 0);
    let mut lies = Talk::new();
    lies.hear(&http2(&[refused, headers(1, 4, "/nowhere", &[])]));
    let reset = frame(3, 0, 1, &1_u32.to_be_bytes());
    assert!(lies.out.windows(reset.len()).any(|said| said == reset), "PROTOCOL_ERROR");
    let http = lies.desk.shared.metrics.snapshot().http;
    assert_eq!(http.requests_refused.iter().map(|(_, count)| count).sum::<u64>(), 1);
}

#[test]
fn an_idle_or_old_connection_is_asked_to_go_and_then_made_to() {
    let goaway = |talk: &Talk| told(&talk.out, true).get(&0).is_some_and(|frames| frames.contains(&GOAWAY));
    let call = |stream| {
        [headers(stream, 0, GRPC_PATH, &[GRPC]), frame(DATA, END_STREAM, stream, &framed(0, &body(1)))]
    };
    let mut talk = Talk::with(&slow());
    talk.hear(&http2(&call(1)));
    talk.after(Duration::from_secs(59));
    assert!(!goaway(&talk));
    talk.hear(&call(3).concat());
    talk.after(Duration::from_secs(59));
    assert!(!goaway(&talk));
    talk.after(Duration::from_secs(1));
    assert!(goaway(&talk));
    talk.after(Duration::from_secs(3));
    assert_eq!(talk.session.wish(), Wish::Finish, "nothing is open and nothing new is taken");

    let mut talk = Talk::with(&slow());
    *talk.intake.held.lock().unwrap() = Some(Vec::new());
    talk.hear(&http2(&call(1)));
    talk.after(Duration::from_secs(1_800));
    assert!(goaway(&talk));
    talk.after(Duration::from_secs(59));
    assert_eq!(talk.session.wish(), Wish::Go, "its request is not answered yet");
    talk.after(Duration::from_secs(1));
    assert_eq!(talk.session.wish(), Wish::Finish);
    assert_eq!(talk.metrics().cut(CutReason::Overstayed), 1);
}

#[test]
fn who_does_not_read_is_cut() {
    let mut talk = Talk::with(&slow());
    talk.hear(&http2(&[]));
    for _ in 0..2 {
        talk.session.tick(true, talk.now, &mut talk.desk, &mut talk.out);
        talk.now = talk.now.plus(Duration::from_secs(29));
    }
    assert_eq!(talk.session.wish(), Wish::Go);
    talk.session.tick(true, talk.now, &mut talk.desk, &mut talk.out);
    assert_eq!((talk.session.wish(), talk.metrics().cut(CutReason::OutputNotRead)), (Wish::Close, 1));
}

#[test]
fn thousands_of_pipelined_requests_are_answered_or_cut_and_not_stacked() {
    let requests = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2_000);
    let mut talk = Talk::new();
    talk.hear(&requests);
    assert_eq!(talk.said().matches("HTTP/1.1 404").count(), 2_000);
    for _ in 0..10 {
        if talk.session.wish() == Wish::Go {
            talk.hear(&requests);
        }
    }
    assert_eq!(talk.session.wish(), Wish::Finish);
    assert!(talk.out.len() < 2 * MIB, "{} bytes that nobody reads", talk.out.len());
    let cut = talk.metrics().connections_cut;
    assert!(cut.contains(&(CutReason::OutputNotRead, 1)), "{cut:?}");
    for _ in 0..1 + LINGER_BYTES_MAX / requests.len() {
        assert_eq!(talk.session.wish(), Wish::Finish);
        talk.hear(&requests);
    }
    assert_eq!(talk.session.wish(), Wish::Close, "it went on all the same");
}

#[test]
fn a_body_that_did_not_wait_to_be_invited_costs_no_connection() {
    let mut talk = Talk::new();
    talk.hear(
        &http1("content-type: application/x-protobuf\r\nexpect: 100-continue\r\n", b"no spans").repeat(2),
    );
    let said = talk.said();
    assert!(said.matches("HTTP/1.1 400").count() == 2 && !said.contains("connection: close"), "{said}");
}

#[test]
fn nothing_is_read_ahead_of_an_answer_without_being_counted() {
    let mut talk =
        Talk::with(&ReceiverConfig { inflight_bytes_max: 2 * MIB, request_bytes_max: MIB, ..slow() });
    *talk.intake.held.lock().unwrap() = Some(Vec::new());
    let request = http1("content-type: application/x-protobuf\r\n", &body(1));
    let counted = |talk: &Talk| talk.in_flight();
    talk.hear(&request);
    let one = counted(&talk);
    let mut talk =
        Talk::with(&ReceiverConfig { inflight_bytes_max: 2 * MIB, request_bytes_max: MIB, ..slow() });
    *talk.intake.held.lock().unwrap() = Some(Vec::new());
    talk.hear(&request.repeat(100));
    assert_eq!(talk.session.wish(), Wish::Pause);
    assert!(counted(&talk) >= one + 99 * request.len() as u64);
    // As each is answered the next is begun.
    for answered in 1..=100 {
        assert_eq!(talk.intake.received.lock().unwrap().len(), answered);
        let held = std::mem::take(talk.intake.held.lock().unwrap().as_mut().unwrap());
        Done::send_all(held, &Outcome::Stored);
        talk.answers();
    }
    assert_eq!((counted(&talk), talk.said().matches("HTTP/1.1 200").count()), (0, 100));

    let mut talk =
        Talk::with(&ReceiverConfig { inflight_bytes_max: 2 * MIB, request_bytes_max: MIB, ..slow() });
    *talk.intake.held.lock().unwrap() = Some(Vec::new());
    talk.hear(&request.repeat(4 * MIB / request.len()));
    assert_eq!(talk.metrics().cut(CutReason::PipelineTooLong), 1);
}

#[test]
fn credit_is_withheld_while_memory_is_tight_and_answers_are_due() {
    let config = ReceiverConfig { inflight_bytes_max: 10 * MIB, request_bytes_max: 5 * MIB, ..slow() };
    let mut talk = Talk::with(&config);
    *talk.intake.held.lock().unwrap() = Some(Vec::new());
    let plain = framed(0, &body(66_000));
    let frames = |stream| {
        let data = plain.chunks(16_384).map(move |piece| frame(DATA, 0, stream, piece));
        [
            vec![headers(stream, 0, GRPC_PATH, &[GRPC])],
            data.collect(),
            vec![frame(DATA, END_STREAM, stream, &[])],
        ]
        .concat()
    };
    talk.hear(&http2(&frames(1)));
    assert!(talk.desk.shared.budget.is_tight(), "{}", talk.in_flight());
    talk.hear(&frames(3)[..60].concat());
    assert!(talk.session.calls.loose >= plain.len());
    assert!(talk.session.calls.debts().count() == 1);
    let held = talk.intake.held.lock().unwrap().take().unwrap();
    Done::send_all(held, &Outcome::Stored);
    talk.answers();
    assert_eq!(talk.session.calls.loose, 0, "its answer gave memory back");
}
