//! The judge of differential tests and fuzzing: decodes the same bytes with prost and compares everything this crate says
//! about them. Panics on the first difference.
//!
//! The skeleton messages declare what the walk steps over as plain bytes, so that prost and the walk must agree on
//! every single input, also on those that are wrong only inside an attribute.

use ingest_otlp::messages::{KeyValue, TracesData, any_value};
use ingest_otlp::{
    Body, Container, Containers, Error, TraceBuilder, ValueView, WalkedSpan, extract, json_to_protobuf,
    merge, protobuf_to_json, span_attributes, summarise, visit_spans, walk,
};
use prost::{Message, Oneof};
use store_model::sampling::{OtState, with_threshold};
use store_model::{BodyRange, SpanFlags, SpanKind, StatusCode, Symbols, Threshold};

#[derive(Clone, PartialEq, Message)]
struct Traces {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
    #[prost(bytes = "vec", tag = "3")]
    schema_url: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
    #[prost(uint32, tag = "2")]
    dropped_attributes_count: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    value_parts: Vec<Vec<u8>>,
}

/// Four levels of this stand for the four messages around a resource attribute's value, so that prost counts the same
/// depth in both places.
#[derive(Clone, PartialEq, Message)]
struct Level {
    #[prost(message, optional, boxed, tag = "1")]
    inner: Option<Box<Level>>,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5, 6, 7")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Value {
    #[prost(bytes, tag = "1")]
    Text(Vec<u8>),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(bytes, tag = "5")]
    Array(Vec<u8>),
    #[prost(bytes, tag = "6")]
    KvList(Vec<u8>),
    #[prost(bytes, tag = "7")]
    Bytes(Vec<u8>),
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(bytes = "vec", repeated, tag = "1")]
    scope_parts: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
    #[prost(bytes = "vec", tag = "3")]
    schema_url: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    trace_state: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    name: Vec<u8>,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(bytes = "vec", repeated, tag = "9")]
    attributes: Vec<Vec<u8>>,
    #[prost(uint32, tag = "10")]
    dropped_attributes_count: u32,
    #[prost(bytes = "vec", repeated, tag = "11")]
    events: Vec<Vec<u8>>,
    #[prost(uint32, tag = "12")]
    dropped_events_count: u32,
    #[prost(bytes = "vec", repeated, tag = "13")]
    links: Vec<Vec<u8>>,
    #[prost(uint32, tag = "14")]
    dropped_links_count: u32,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(bytes = "vec", tag = "2")]
    message: Vec<u8>,
    #[prost(int32, tag = "3")]
    code: i32,
}

/// A span with all that stands around it.
type Placed = (Option<Resource>, Vec<u8>, Vec<Vec<u8>>, Vec<u8>, Span);

impl Traces {
    fn placed(&self) -> Vec<Placed> {
        let mut all = Vec::new();
        for outer in &self.resource_spans {
            for inner in &outer.scope_spans {
                for span in &inner.spans {
                    all.push((
                        outer.resource.clone(),
                        outer.schema_url.clone(),
                        inner.scope_parts.clone(),
                        inner.schema_url.clone(),
                        span.clone(),
                    ));
                }
            }
        }
        all
    }
}

/// Compares all readings of `body`. True when the body is acceptable as a whole.
pub(crate) fn check(body: &[u8]) -> bool {
    let mut spans = Vec::new();
    let walked = walk(body, &mut |span| spans.push(*span));
    let expected = decode(body);
    assert_eq!(walked.is_ok(), expected.is_some(), "walk says {walked:?}");
    let full = TracesData::decode(body).ok();
    let (Ok(walked), Some((traces, services))) = (walked, expected) else {
        assert!(full.is_none(), "prost accepts what the walk does not");
        check_tolerance(body);
        return false;
    };
    let placed = traces.placed();
    let accepted: Vec<&Placed> = placed.iter().filter(|(.., span)| is_acceptable(span)).collect();
    assert_eq!(walked.accepted as usize, accepted.len());
    assert_eq!(walked.rejected as usize, placed.len() - accepted.len());
    assert_eq!(walked.rejected_because.is_some(), walked.rejected > 0);
    let services: Vec<&[u8]> = services
        .iter()
        .zip(placed.iter())
        .filter(|(_, (.., span))| is_acceptable(span))
        .map(|(service, _)| &service[..])
        .collect();
    assert_eq!(spans.len(), accepted.len());
    for ((span, (.., expected)), service) in spans.iter().zip(&accepted).zip(services) {
        compare(span, expected, service);
        assert_eq!(Span::decode(slice(body, span.range)).unwrap(), *expected);
    }
    check_extract(body, &spans, &accepted);
    check_merge(body, &placed);
    if let Some(full) = full {
        check_views(body, &full);
        check_json(body, &full);
    }
    true
}

fn slice(body: &[u8], range: BodyRange) -> &[u8] {
    &body[range.position as usize..][..range.length as usize]
}

/// The skeleton and the service of each of its spans, if prost accepts both.
fn decode(body: &[u8]) -> Option<(Traces, Vec<Vec<u8>>)> {
    let traces = Traces::decode(body).ok()?;
    let mut services = Vec::new();
    for outer in &traces.resource_spans {
        let attributes = outer.resource.iter().flat_map(|resource| &resource.attributes);
        let service = attributes.clone().find(|attribute| attribute.key == b"service.name").map(value);
        let service = match service {
            None => Vec::new(),
            Some(None) => return None,
            Some(Some(AnyValue { value: Some(Value::Text(name)) })) => name,
            Some(Some(_)) => Vec::new(),
        };
        let count = outer.scope_spans.iter().map(|scope| scope.spans.len()).sum();
        services.extend(std::iter::repeat_n(service, count));
    }
    Some((traces, services))
}

fn value(attribute: &Attribute) -> Option<AnyValue> {
    let field = |number: u8, bytes: &[u8]| {
        let mut out = vec![number << 3 | 2];
        prost::encode_length_delimiter(bytes.len(), &mut out).unwrap();
        out.extend_from_slice(bytes);
        out
    };
    let parts: Vec<u8> = attribute.value_parts.iter().flat_map(|part| field(2, part)).collect();
    let wrapped = (0..3).fold(parts, |inner, _| field(1, &inner));
    let level = Level::decode(&wrapped[..]).ok()?;
    Some(level.inner?.inner?.inner?.value.unwrap_or_default())
}

fn is_acceptable(span: &Span) -> bool {
    let nonzero = |id: &[u8]| id.iter().any(|&byte| byte != 0);
    span.trace_id.len() == 16
        && nonzero(&span.trace_id)
        && span.span_id.len() == 8
        && nonzero(&span.span_id)
        && matches!(span.parent_span_id.len(), 0 | 8)
}

fn compare(span: &WalkedSpan<'_>, expected: &Span, service: &[u8]) {
    assert_eq!(span.trace_id.0[..], expected.trace_id);
    assert_eq!(span.span_id.0[..], expected.span_id);
    let root = expected.parent_span_id.iter().all(|&byte| byte == 0);
    if root {
        assert!(span.parent_span_id.is_zero());
    } else {
        assert_eq!(span.parent_span_id.0[..], expected.parent_span_id);
    }
    assert_eq!(span.start.0, expected.start);
    assert_eq!(span.duration_ns, expected.end.saturating_sub(expected.start));
    assert_eq!(span.operation, expected.name);
    assert_eq!(span.service, service);
    let kind = SpanKind::ALL.into_iter().find(|&kind| kind as i32 == expected.kind);
    assert_eq!(span.kind, kind.unwrap_or_default());
    let code = expected.status.as_ref().map_or(0, |status| status.code);
    assert_eq!(span.status, StatusCode::from_number(u64::try_from(code).unwrap_or(0)));
    let state = str::from_utf8(&expected.trace_state).map(OtState::parse);
    let ot = state.unwrap_or_default();
    assert_eq!(span.threshold, ot.threshold.unwrap_or(Threshold::ALWAYS));
    assert_eq!(span.randomness, ot.randomness.unwrap_or(span.trace_id.randomness()));
    let texts = [&expected.name[..], service, &expected.trace_state];
    for (flag, is_set) in [
        (SpanFlags::ROOT, root),
        (SpanFlags::ERROR, code == 2),
        (SpanFlags::HAS_THRESHOLD, ot.threshold.is_some()),
        (SpanFlags::INVALID_UTF8, texts.iter().any(|text| str::from_utf8(text).is_err())),
    ] {
        assert_eq!(span.flags.has(flag), is_set, "{flag:?}");
    }
}

/// Readers that never refuse must at least return.
fn check_tolerance(body: &[u8]) {
    span_attributes(body, &mut |_, value| {
        value.to_text(&mut String::new());
    });
    let _outcome = protobuf_to_json(body);
    let _outcome = merge(&[(body, Some(Threshold::from_bits(1 << 40)))]);
    let wanted = [BodyRange { position: 4, length: 2 }, BodyRange { position: 9, length: 30 }];
    let _outcome = extract(body, &wanted, &mut |_, _, _| {});
}

fn check_extract(bytes: &[u8], spans: &[WalkedSpan<'_>], placed: &[&Placed]) {
    let mut containers = Containers::default();
    summarise(bytes, &mut Symbols::new(8).cache(), &mut containers, &mut |_| {}).unwrap();
    let walked = Body { bytes: bytes.to_vec().into(), containers };
    let unwalked = Body::unwalked(bytes.to_vec().into());
    for body in [&walked, &unwalked] {
        check_cutting(body, spans, placed);
    }
    if let Some(span) = spans.first() {
        let BodyRange { position, length } = span.range;
        let absent = [BodyRange { position, length: length + 1 }];
        let refused = extract(bytes, &absent, &mut |_, _, _| panic!("no such span"));
        assert!(matches!(refused, Err(Error::NoSuchSpan { .. })));
        let beyond = [BodyRange { position, length: u32::MAX }];
        let refused = walked.extract(&beyond, &mut |_, _, _| panic!("no such span"));
        assert!(matches!(refused, Err(Error::NoSuchSpan { .. })));
    }
}

fn check_cutting(body: &Body, spans: &[WalkedSpan<'_>], placed: &[&Placed]) {
    for step in 1..4 {
        let chosen: Vec<usize> = (0..spans.len()).skip(step - 1).step_by(step).collect();
        let wanted: Vec<BodyRange> = chosen.iter().map(|&n| spans[n].range).collect();
        let mut builder = TraceBuilder::new();
        let mut next = 0;
        body.extract(&wanted, &mut |index, container, span| {
            assert_eq!(index, next);
            assert_eq!(span, slice(&body.bytes, wanted[index]));
            check_container(container, placed[chosen[index]]);
            builder.push(container, span);
            next += 1;
        })
        .unwrap();
        assert_eq!((next, builder.span_count() as usize), (wanted.len(), wanted.len()));
        let estimate = builder.byte_len();
        let built = builder.finish();
        assert!(built.len() >= estimate);
        let expected: Vec<Placed> = chosen.iter().map(|&n| placed[n].clone()).collect();
        compare_placed(Traces::decode(built).unwrap().placed(), expected);
    }
}

fn check_container(container: &Container<'_>, placed: &Placed) {
    let (resource, resource_url, scope, scope_url, _) = placed;
    let outer = ResourceSpans::decode(container.resource()).unwrap();
    assert_eq!((&outer.resource, &outer.schema_url), (resource, resource_url));
    assert!(outer.scope_spans.is_empty());
    let inner = ScopeSpans::decode(container.scope()).unwrap();
    assert_eq!((&inner.scope_parts, &inner.schema_url), (scope, scope_url));
    assert!(inner.spans.is_empty());
}

/// Grouping may change the order, so both sides are compared as sets.
fn compare_placed(got: Vec<Placed>, mut expected: Vec<Placed>) {
    assert_eq!(got.len(), expected.len());
    for span in got {
        let found = expected.iter().position(|other| *other == span);
        expected.swap_remove(found.unwrap_or_else(|| panic!("{span:?} is not among {expected:?}")));
    }
}

fn check_merge(body: &[u8], placed: &[Placed]) {
    let (merged, count) = merge(&[(body, None), (body, None)]).unwrap();
    let unchanged = Traces::decode(merged).unwrap().placed();
    assert_eq!(unchanged.len(), count as usize);
    assert!(unchanged.iter().all(|span| placed.contains(span)));

    let threshold = Threshold::from_probability(0.25);
    let (merged, marked_count) = merge(&[(body, Some(threshold)), (body, None)]).unwrap();
    let marked = Traces::decode(merged).unwrap().placed();
    assert_eq!((marked.len(), marked_count), (count as usize, count));
    let mut expected = unchanged;
    for (.., span) in &mut expected {
        let old = String::from_utf8_lossy(&span.trace_state).into_owned();
        span.trace_state = with_threshold(&old, threshold).into_bytes();
    }
    compare_placed(marked, expected);
}

fn check_views(body: &[u8], full: &TracesData) {
    let mut expected = Vec::new();
    for outer in &full.resource_spans {
        let resource: &[KeyValue] = outer.resource.as_ref().map_or(&[], |resource| &resource.attributes);
        for span in outer.scope_spans.iter().flat_map(|inner| &inner.spans) {
            if !span.trace_id.iter().all(|&byte| byte == 0) && !span.span_id.iter().all(|&byte| byte == 0) {
                let lengths = (span.trace_id.len(), span.span_id.len(), span.parent_span_id.len());
                if matches!(lengths, (16, 8, 0 | 8)) {
                    expected.push((resource, &span.attributes[..]));
                }
            }
        }
    }
    let mut expected = expected.into_iter();
    visit_spans(body, &mut |resource, _, message| {
        let (resource_attributes, attributes) = expected.next().unwrap();
        let mut next = resource_attributes.iter();
        resource.attributes(&mut |key, value| compare_attribute(next.next().unwrap(), key, value));
        assert!(next.next().is_none());
        let mut next = attributes.iter();
        span_attributes(message, &mut |key, value| compare_attribute(next.next().unwrap(), key, value));
        assert!(next.next().is_none());
    })
    .unwrap();
    assert!(expected.next().is_none());
}

fn compare_attribute(expected: &KeyValue, key: &[u8], value: ValueView<'_>) {
    use any_value::Value as Full;
    assert_eq!(expected.key.as_bytes(), key);
    let full = expected.value.as_ref().and_then(|any| any.value.as_ref());
    let equal = match (value, full) {
        (ValueView::Empty, None)
        | (ValueView::Array(_), Some(Full::ArrayValue(_)))
        | (ValueView::KvList(_), Some(Full::KvlistValue(_))) => true,
        (ValueView::Str(ours), Some(Full::StringValue(theirs))) => ours == theirs.as_bytes(),
        (ValueView::Bool(ours), Some(Full::BoolValue(theirs))) => ours == *theirs,
        (ValueView::Int(ours), Some(Full::IntValue(theirs))) => ours == *theirs,
        (ValueView::Double(ours), Some(Full::DoubleValue(theirs))) => ours.to_bits() == theirs.to_bits(),
        (ValueView::Bytes(ours), Some(Full::BytesValue(theirs))) => ours == theirs,
        _ => false,
    };
    assert!(equal, "{value:?} is not {full:?}");
    value.to_text(&mut String::new());
}

fn check_json(body: &[u8], full: &TracesData) {
    let json = protobuf_to_json(body).unwrap();
    match json_to_protobuf(json.to_string().as_bytes()) {
        Ok(back) => {
            let back = TracesData::decode(&back[..]).unwrap();
            // Compared as text, in which all NaNs are equal.
            assert_eq!(format!("{back:?}"), format!("{full:?}"));
        }
        Err(error) => {
            let reason = error.to_string();
            assert!(reason.contains("too deep") || reason.contains("recursion"), "{reason}");
        }
    }
}
