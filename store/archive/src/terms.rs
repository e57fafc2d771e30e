//! What of a fragment is indexed: services, operations, statuses, kinds, and every attribute of its spans and resources
//! that has a text form. Reads OTLP; knows nothing of rows.

use ingest_otlp::{ResourceView, ValueView, WalkedSpan, span_attributes, visit_spans};
use store_index::Term;

/// Terms are handed on in portions of about this size, so that a trace of 100,000 spans neither fills memory nor holds
/// up readers.
const PORTION_BYTES: usize = 256 << 10;

/// Encoded terms, end to end. Kept from fragment to fragment for its memory.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    text: String,
}

impl Terms {
    /// Collects the terms of `otlp`, handing full portions to `each_portion`; the last portion is left in `self`. A term
    /// may come several times.
    ///
    /// # Errors
    /// When `otlp` cannot be read to its end; what was read is there.
    pub(crate) fn extract(
        &mut self,
        tenant_number: u32,
        otlp: &[u8],
        each_portion: &mut dyn FnMut(&Self),
    ) -> Result<(), ingest_otlp::Error> {
        self.clear();
        self.push(tenant_number, Term::Tenant);
        let mut resource_before = None;
        visit_spans(otlp, &mut |resource, span, span_bytes| {
            self.push_span(tenant_number, span);
            span_attributes(span_bytes, &mut |key, value| self.push_attribute(tenant_number, key, value));
            self.push_resource(tenant_number, resource, &mut resource_before);
            if self.bytes.len() >= PORTION_BYTES {
                each_portion(self);
                self.clear();
            }
        })
    }

    /// The terms of this portion.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn push(&mut self, tenant_number: u32, term: Term<'_>) {
        term.encode(tenant_number, &mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    fn push_span(&mut self, tenant_number: u32, span: &WalkedSpan<'_>) {
        let &WalkedSpan { service, operation, status, kind, .. } = span;
        self.push(tenant_number, Term::Service(service));
        self.push(tenant_number, Term::Operation(operation));
        self.push(tenant_number, Term::ServiceOperation(service, operation));
        self.push(tenant_number, Term::Status(status));
        self.push(tenant_number, Term::Kind(kind));
    }

    fn push_attribute(&mut self, tenant_number: u32, key: &[u8], value: ValueView<'_>) {
        // Nearly every value is text that is searched for as it stands.
        if let ValueView::Str(value) = value
            && str::from_utf8(value).is_ok()
        {
            return self.push(tenant_number, Term::Attribute { key, value });
        }
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        if value.to_text(&mut text) {
            self.push(tenant_number, Term::Attribute { key, value: text.as_bytes() });
        }
        self.text = text;
    }

    /// Spans come resource by resource. The place of a resource's first key tells it apart from the one before, so each
    /// is taken once however many spans it has.
    fn push_resource(
        &mut self,
        tenant_number: u32,
        resource: &ResourceView<'_>,
        before: &mut Option<*const u8>,
    ) {
        let mut known = None;
        resource.attributes(&mut |key, value| {
            let known = *known.get_or_insert_with(|| before.replace(key.as_ptr()) == Some(key.as_ptr()));
            if !known {
                self.push_attribute(tenant_number, key, value);
            }
        });
    }
}
