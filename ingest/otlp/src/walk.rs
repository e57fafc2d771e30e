//! The hot path: one forward walk over a request body that yields what a sampling decision needs of every span.
//!
//! It allocates nothing, builds no message and steps over attributes, events and links by their length, so it does not
//! see what is wrong inside them. It never judges a trace.
//!
//! The body is an `ExportTraceServiceRequest` or a `TracesData`, which have one wire form. Fields:
//! <https://github.com/open-telemetry/opentelemetry-proto/blob/v1.11.0/opentelemetry/proto/trace/v1/trace.proto>

use store_model::sampling::OtState;
use store_model::{
    BodyRange, Randomness, SpanFlags, SpanId, SpanKind, SpanSummary, StatusCode, SymbolCache, Threshold,
    TraceId, UnixNanos,
};

use crate::containers::Containers;
use crate::error::Error;
use crate::view::ResourceView;
use crate::wire::{Key, Reader, delimited, fixed32, fixed64, varint};

/// `TracesData.resource_spans`.
pub(crate) const RESOURCE_SPANS: Key = delimited(1);
/// `ResourceSpans.resource`.
pub(crate) const RESOURCE: Key = delimited(1);
/// `ResourceSpans.scope_spans`.
pub(crate) const SCOPE_SPANS: Key = delimited(2);
/// `ScopeSpans.scope`.
const SCOPE: Key = delimited(1);
/// `ScopeSpans.spans`.
pub(crate) const SPANS: Key = delimited(2);
/// `schema_url` of `ResourceSpans` and `ScopeSpans`.
const SCHEMA_URL: Key = delimited(3);
/// `Span.span_id`.
pub(crate) const SPAN_ID: Key = delimited(2);
/// `Span.trace_state`.
pub(crate) const TRACE_STATE: Key = delimited(3);
/// `Span.attributes`.
pub(crate) const ATTRIBUTES: Key = delimited(9);

/// The numbers of the fields that [`RESOURCE_SPANS`]'s and [`SCOPE_SPANS`]'s messages have; both have three.
pub(crate) const CONTAINER_FIELDS: &[u32] = &[1, 2, 3];
const SPAN_FIELDS: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// One span, as the walk sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkedSpan<'a> {
    /// The trace it belongs to; never zero.
    pub trace_id: TraceId,
    /// Its own id; never zero.
    pub span_id: SpanId,
    /// Its parent's id; zero for a root.
    pub parent_span_id: SpanId,
    /// When it began, as its sender says.
    pub start: UnixNanos,
    /// How long it took; zero when its sender says it ended before it began.
    pub duration_ns: u64,
    /// `ot=rv` of its tracestate, else the trace id's last 56 bits.
    pub randomness: Randomness,
    /// `ot=th` of its tracestate, else [`Threshold::ALWAYS`].
    pub threshold: Threshold,
    /// Its kind.
    pub kind: SpanKind,
    /// Its status.
    pub status: StatusCode,
    /// ROOT, ERROR, `HAS_THRESHOLD`, and `INVALID_UTF8` for its name, its tracestate or its service.
    pub flags: SpanFlags,
    /// `service.name` of its resource: the first one if there are several, empty if there is none or it is no text.
    pub service: &'a [u8],
    /// Its name.
    pub operation: &'a [u8],
    /// Where its message lies in the body.
    pub range: BodyRange,
}

/// How many spans a body held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Walked {
    /// Visited.
    pub accepted: u32,
    /// Not visited, for an id that OTLP forbids.
    pub rejected: u32,
    /// What was wrong with the first rejected one.
    pub rejected_because: Option<&'static str>,
}

/// Visits every acceptable span of `body`, in order.
///
/// # Errors
/// When the body as a whole is unreadable. Spans before the damage have been visited by then; a caller who answers for
/// whole requests forgets them.
pub fn walk<'a>(body: &'a [u8], visit: &mut impl FnMut(&WalkedSpan<'a>)) -> Result<Walked, Error> {
    each_span(body, None, &mut |_, span| visit(span))
}

/// Visits a summary of every acceptable span of `body`, in order, and notes in `containers`, which come empty, what stands
/// around them.
///
/// # Errors
/// As [`walk`].
pub fn summarise(
    body: &[u8],
    symbols: &mut SymbolCache,
    containers: &mut Containers,
    visit: &mut impl FnMut(SpanSummary),
) -> Result<Walked, Error> {
    // Spans of one resource come in a row, so its name is looked up once.
    let mut last_service: &[u8] = b"";
    let mut last_symbol = symbols.intern(last_service);
    each_span(body, Some(containers), &mut |_, span| {
        if span.service != last_service {
            (last_service, last_symbol) = (span.service, symbols.intern(span.service));
        }
        visit(SpanSummary {
            trace_id: span.trace_id,
            span_id: span.span_id,
            parent_span_id: span.parent_span_id,
            start: span.start,
            duration_ns: span.duration_ns,
            randomness: span.randomness,
            threshold: span.threshold,
            service: last_symbol,
            operation: symbols.intern(span.operation),
            range: span.range,
            kind: span.kind,
            status: span.status,
            flags: span.flags,
        });
    })
}

/// Reads one span, given as its message, of a `ResourceSpans`, given as the field it is. `None` when an id is one that OTLP
/// forbids. Its range is that of its bytes in themselves.
///
/// # Errors
/// When the span, or what the resource says beside its spans, is malformed.
pub fn read_span<'a>(resource_spans: &'a [u8], span: &'a [u8]) -> Result<Option<WalkedSpan<'a>>, Error> {
    let mut reader = Reader::new(resource_spans);
    match reader.key()? {
        RESOURCE_SPANS => {}
        _ => return Err(reader.malformed("no resource")),
    }
    let resource = ResourceView::read(reader.message()?, None)?;
    let span = Reader::new(span);
    Ok(SpanFields::read(span)?.check(span, &resource).ok())
}

/// The walk itself.
#[inline]
pub(crate) fn each_span<'a>(
    body: &'a [u8],
    mut containers: Option<&mut Containers>,
    visit: &mut impl FnMut(&ResourceView<'a>, &WalkedSpan<'a>),
) -> Result<Walked, Error> {
    if u32::try_from(body.len()).is_err() {
        return Err(Error::TooLarge { limit_bytes: u32::MAX as usize });
    }
    let mut walked = Walked::default();
    let mut reader = Reader::new(body);
    while !reader.is_done() {
        match reader.key()? {
            RESOURCE_SPANS => {
                let containers = containers.as_deref_mut();
                each_span_of_resource(reader.message()?, containers, &mut walked, visit)?;
            }
            key => reader.other(key, &[1])?,
        }
    }
    Ok(walked)
}

fn each_span_of_resource<'a>(
    mut reader: Reader<'a>,
    mut containers: Option<&mut Containers>,
    walked: &mut Walked,
    visit: &mut impl FnMut(&ResourceView<'a>, &WalkedSpan<'a>),
) -> Result<(), Error> {
    // The resource may stand behind its spans, so it is sought first; that steps over each ScopeSpans in one go.
    let resource = ResourceView::read(reader, containers.as_deref_mut())?;
    while !reader.is_done() {
        match reader.key()? {
            SCOPE_SPANS => {
                let containers = containers.as_deref_mut();
                each_span_of_scope(reader.message()?, containers, &resource, walked, visit)?;
            }
            key => reader.skip(key)?,
        }
    }
    Ok(())
}

fn each_span_of_scope<'a>(
    mut reader: Reader<'a>,
    mut containers: Option<&mut Containers>,
    resource: &ResourceView<'a>,
    walked: &mut Walked,
    visit: &mut impl FnMut(&ResourceView<'a>, &WalkedSpan<'a>),
) -> Result<(), Error> {
    let scope_start = reader.position();
    let first_piece = containers.as_ref().map_or(0, |containers| containers.begin_scope());
    // What is not a span is kept in runs as long as they come: mostly the scope in front, and nothing behind.
    let mut run_start = scope_start;
    while !reader.is_done() {
        let field_start = reader.position();
        match reader.key()? {
            SPANS => {
                let span = reader.message()?;
                if run_start < field_start
                    && let Some(containers) = &mut containers
                {
                    containers.piece(run_start, field_start);
                }
                run_start = reader.position();
                match SpanFields::read(span)?.check(span, resource) {
                    Ok(span) => {
                        walked.accepted += 1;
                        visit(resource, &span);
                    }
                    Err(reason) => {
                        walked.rejected += 1;
                        walked.rejected_because.get_or_insert(reason);
                    }
                }
            }
            SCOPE | SCHEMA_URL => drop(reader.delimited()?),
            key => reader.other(key, CONTAINER_FIELDS)?,
        }
    }
    if let Some(containers) = containers {
        containers.piece(run_start, reader.position());
        containers.end_scope(first_piece, scope_start, reader.position());
    }
    Ok(())
}

/// What the walk takes from a span's message, before anybody asks whether it makes sense. The last value of a field
/// wins, as protobuf demands.
#[derive(Default)]
struct SpanFields<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    trace_state: &'a [u8],
    parent_span_id: &'a [u8],
    name: &'a [u8],
    kind: u64,
    start: u64,
    end: u64,
    status: u64,
}

impl<'a> SpanFields<'a> {
    #[inline(always)]
    fn read(mut reader: Reader<'a>) -> Result<Self, Error> {
        let mut fields = Self::default();
        // Nearly every sender starts with a trace id of 16 bytes and a span id of 8: 28 bytes with one check each.
        if let Some((ids, _)) = reader.rest().split_at_checked(28)
            && ids[..2] == [0x0A, 16]
            && ids[18..20] == [0x12, 8]
        {
            (fields.trace_id, fields.span_id) = (&ids[2..18], &ids[20..]);
            reader.advance(28)?;
        }
        while !reader.is_done() {
            match reader.key()? {
                ATTRIBUTES => {
                    reader.delimited()?;
                    reader.skip_run(0x4A)?;
                }
                EVENTS | LINKS => drop(reader.delimited()?),
                TRACE_ID => fields.trace_id = reader.delimited()?,
                SPAN_ID => fields.span_id = reader.delimited()?,
                TRACE_STATE => fields.trace_state = reader.delimited()?,
                PARENT_SPAN_ID => fields.parent_span_id = reader.delimited()?,
                NAME => fields.name = reader.delimited()?,
                KIND => fields.kind = reader.varint()?,
                START => fields.start = reader.fixed64()?,
                END => fields.end = reader.fixed64()?,
                DROPPED_ATTRIBUTES | DROPPED_EVENTS | DROPPED_LINKS => drop(reader.varint()?),
                STATUS => read_status(reader.message()?, &mut fields.status)?,
                FLAGS => drop(reader.fixed32()?),
                key => reader.other(key, SPAN_FIELDS)?,
            }
        }
        Ok(fields)
    }

    /// The span behind the fields, or why OTLP forbids it.
    #[inline(always)]
    fn check(self, message: Reader<'a>, resource: &ResourceView<'a>) -> Result<WalkedSpan<'a>, &'static str> {
        let Self { trace_id, span_id, trace_state, parent_span_id, name, kind, start, end, status } = self;
        let trace_id = TraceId(trace_id.try_into().or(Err("trace id is not 16 bytes long"))?);
        let span_id = SpanId(span_id.try_into().or(Err("span id is not 8 bytes long"))?);
        let parent_span_id = match parent_span_id {
            [] => SpanId::default(),
            id => SpanId(id.try_into().or(Err("parent span id is neither empty nor 8 bytes long"))?),
        };
        if trace_id.is_zero() {
            return Err("trace id is all zero");
        }
        if span_id.is_zero() {
            return Err("span id is all zero");
        }
        let status = StatusCode::from_number(enum_number(status));
        let mut flags = SpanFlags::default();
        if parent_span_id.is_zero() {
            flags = flags.with(SpanFlags::ROOT);
        }
        if status == StatusCode::Error {
            flags = flags.with(SpanFlags::ERROR);
        }
        if !(resource.service_is_utf8 && is_utf8(name)) {
            flags = flags.with(SpanFlags::INVALID_UTF8);
        }
        let (mut randomness, mut threshold) = (trace_id.randomness(), Threshold::ALWAYS);
        if !trace_state.is_empty() {
            match str::from_utf8(trace_state).map(OtState::parse) {
                Ok(OtState { threshold: th, randomness: rv }) => {
                    randomness = rv.unwrap_or(randomness);
                    if let Some(th) = th {
                        threshold = th;
                        flags = flags.with(SpanFlags::HAS_THRESHOLD);
                    }
                }
                Err(_) => flags = flags.with(SpanFlags::INVALID_UTF8),
            }
        }
        Ok(WalkedSpan {
            trace_id,
            span_id,
            parent_span_id,
            start: UnixNanos(start),
            duration_ns: end.saturating_sub(start),
            randomness,
            threshold,
            kind: SpanKind::from_number(enum_number(kind)),
            status,
            flags,
            service: resource.service(),
            operation: name,
            range: body_range(message.position(), message.rest().len()),
        })
    }
}

const TRACE_ID: Key = delimited(1);
const PARENT_SPAN_ID: Key = delimited(4);
const NAME: Key = delimited(5);
const KIND: Key = varint(6);
const START: Key = fixed64(7);
const END: Key = fixed64(8);
const DROPPED_ATTRIBUTES: Key = varint(10);
const EVENTS: Key = delimited(11);
const DROPPED_EVENTS: Key = varint(12);
const LINKS: Key = delimited(13);
const DROPPED_LINKS: Key = varint(14);
const STATUS: Key = delimited(15);
const FLAGS: Key = fixed32(16);

/// `Status`: message = 2, code = 3.
fn read_status(mut reader: Reader<'_>, code: &mut u64) -> Result<(), Error> {
    while !reader.is_done() {
        match reader.key()? {
            key if key == varint(3) => *code = reader.varint()?,
            key if key == delimited(2) => drop(reader.delimited()?),
            key => reader.other(key, &[2, 3])?,
        }
    }
    Ok(())
}

/// Nearly all names are ASCII, which is quicker to see.
#[inline(always)]
fn is_utf8(text: &[u8]) -> bool {
    text.is_ascii() || str::from_utf8(text).is_ok()
}

/// Protobuf cuts an enum's varint to 32 bits.
fn enum_number(varint: u64) -> u64 {
    varint & 0xFFFF_FFFF
}

/// The range of a message that lies in a body which was checked to be shorter than 4 GiB.
pub(crate) fn body_range(position: usize, length: usize) -> BodyRange {
    let fit = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    BodyRange { position: fit(position), length: fit(length) }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use store_model::Symbols;

    use super::*;
    use crate::messages::{
        AnyValue, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, TracesData, any_value::Value,
    };

    fn span(trace_id: &[u8], span_id: &[u8], parent_span_id: &[u8]) -> Span {
        let (trace_id, span_id, parent_span_id) = (trace_id.into(), span_id.into(), parent_span_id.into());
        Span { trace_id, span_id, parent_span_id, name: "GET /".to_owned(), ..Span::default() }
    }

    fn resource_spans(services: &[&str], spans: Vec<Span>) -> ResourceSpans {
        let name = |name: &&str| KeyValue {
            key: "service.name".to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue((*name).to_owned())) }),
        };
        let resource = Resource { attributes: services.iter().map(name).collect(), ..Resource::default() };
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        ResourceSpans { resource: Some(resource), scope_spans, schema_url: String::new() }
    }

    #[test]
    fn spans_with_ids_that_cannot_be_are_counted_and_the_rest_is_taken() {
        let (trace, id) = ([7; 16], [9; 8]);
        for (bad, reason) in [
            (span(&trace[1..], &id, &id), "trace id is not 16 bytes long"),
            (span(&[0; 16], &id, &id), "trace id is all zero"),
            (span(&trace, b"", &id), "span id is not 8 bytes long"),
            (span(&trace, &[0; 8], &id), "span id is all zero"),
            (span(&trace, &id, &trace), "parent span id is neither empty nor 8 bytes long"),
        ] {
            let spans = vec![span(&trace, &id, b""), bad, span(b"", b"", b""), span(&trace, &id, &[0; 8])];
            let body = TracesData { resource_spans: vec![resource_spans(&["a"], spans)] }.encode_to_vec();
            let mut roots = 0;
            let walked =
                walk(&body, &mut |span| roots += u32::from(span.flags.has(SpanFlags::ROOT))).unwrap();
            assert_eq!(walked, Walked { accepted: 2, rejected: 2, rejected_because: Some(reason) });
            assert_eq!(roots, 2);
        }
    }

    #[test]
    fn summaries_carry_the_first_service_name_even_when_it_stands_behind_the_spans() {
        let spans = || vec![span(&[7; 16], &[9; 8], &[8; 8])];
        let mut body = Vec::new();
        for services in [&["a", "x"][..], &[], &["b"], &["a"]] {
            let ResourceSpans { resource, scope_spans, .. } = resource_spans(services, spans());
            // The fields of one message in another order: its spans first, then its resource.
            let spans_first = ResourceSpans { resource: None, scope_spans, schema_url: String::new() };
            let then_resource = ResourceSpans { resource, ..ResourceSpans::default() };
            let message = [spans_first.encode_to_vec(), then_resource.encode_to_vec()].concat();
            crate::wire::put_delimited(&mut body, RESOURCE_SPANS, &message);
        }
        let symbols = Symbols::new(10);
        let mut names = Vec::new();
        let walked = summarise(&body, &mut symbols.cache(), &mut Containers::default(), &mut |summary| {
            names.push((symbols.name(summary.service), symbols.name(summary.operation)));
            let BodyRange { position, length } = summary.range;
            let message = &body[position as usize..][..length as usize];
            assert_eq!(Span::decode(message).unwrap(), spans()[0]);
        })
        .unwrap();
        assert_eq!(walked.accepted, 4);
        let services: Vec<&str> = names.iter().map(|(service, _)| service.as_str()).collect();
        assert_eq!(services, ["a", "", "b", "a"]);
        assert!(names.iter().all(|(_, operation)| operation == "GET /"));
    }
}
