//! What a span must be. Decides for one span; knows nothing of traces, segments or pages.

use ingest_otlp::{ResourceView, ValueView, WalkedSpan, span_attributes, visit_spans};
use store_index::Term;
use store_model::{SpanKind, StatusCode};

/// Conditions that one and the same span must meet. `None` and empty mean any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `service.name` of its resource.
    pub service: Option<String>,
    /// Its name.
    pub operation: Option<String>,
    /// Attributes of the span or of its resource, by the text form of their values.
    pub tags: Vec<(String, String)>,
    /// Its status.
    pub status: Option<StatusCode>,
    /// Its kind.
    pub kind: Option<SpanKind>,
    /// It took this long or longer.
    pub min_duration_ns: Option<u64>,
    /// It took this long or less.
    pub max_duration_ns: Option<u64>,
}

impl Conditions {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What the index can say: a fragment without all of these has no span that meets the conditions.
    pub(crate) fn terms(&self) -> Vec<Term<'_>> {
        let Self { service, operation, tags, status, kind, min_duration_ns: _, max_duration_ns: _ } = self;
        let mut terms = Vec::new();
        match (service, operation) {
            (Some(service), Some(operation)) => {
                terms.push(Term::ServiceOperation(service.as_bytes(), operation.as_bytes()));
            }
            (Some(service), None) => terms.push(Term::Service(service.as_bytes())),
            (None, Some(operation)) => terms.push(Term::Operation(operation.as_bytes())),
            (None, None) => {}
        }
        for (key, value) in tags {
            terms.push(Term::Attribute { key: key.as_bytes(), value: value.as_bytes() });
        }
        terms.extend(status.map(Term::Status));
        terms.extend(kind.map(Term::Kind));
        terms
    }

    /// Whether any span of an OTLP message meets all conditions. Spans behind damage count as absent.
    pub(crate) fn any_span_meets(&self, otlp: &[u8]) -> bool {
        let mut found = false;
        let _damage_hides_the_rest = visit_spans(otlp, &mut |resource, span, bytes| {
            found = found || self.meets(resource, span, bytes);
        });
        found
    }

    /// Whether this span meets all conditions. Cheap ones are looked at first.
    pub(crate) fn meets(&self, resource: &ResourceView<'_>, span: &WalkedSpan<'_>, bytes: &[u8]) -> bool {
        let Self { service, operation, tags, status, kind, min_duration_ns, max_duration_ns } = self;
        status.is_none_or(|status| span.status == status)
            && kind.is_none_or(|kind| span.kind == kind)
            && min_duration_ns.is_none_or(|shortest| span.duration_ns >= shortest)
            && max_duration_ns.is_none_or(|longest| span.duration_ns <= longest)
            && service.as_ref().is_none_or(|service| span.service == service.as_bytes())
            && operation.as_ref().is_none_or(|operation| span.operation == operation.as_bytes())
            && tags.iter().all(|(key, value)| has_tag(resource, bytes, key, value))
    }
}

fn has_tag(resource: &ResourceView<'_>, span: &[u8], key: &str, value: &str) -> bool {
    let mut found = false;
    let mut look = |name: &[u8], is: ValueView<'_>| {
        found = found || (name == key.as_bytes() && reads(&is, value));
    };
    span_attributes(span, &mut look);
    resource.attributes(&mut look);
    found
}

/// Whether `text` is the value's text form.
fn reads(value: &ValueView<'_>, text: &str) -> bool {
    if let ValueView::Str(bytes) = value
        && *bytes == text.as_bytes()
    {
        return true;
    }
    let mut form = String::new();
    value.to_text(&mut form) && form == text
}
