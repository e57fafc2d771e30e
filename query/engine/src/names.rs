//! Lists of names: services, operations, attribute keys and values, of the archive and of live spans in one.

use std::collections::BTreeSet;

use hashbrown::HashSet;
use ingest_otlp::{ResourceView, ValueView, WalkedSpan, span_attributes, visit_spans};
use store_archive::TermKind;
use store_index::Term;
use store_model::Tenant;

use crate::answer::Gaps;
use crate::engine::Engine;
use crate::error::Error;
use crate::summary::text;

/// Names, sorted by their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The first of them. Bytes that are no UTF-8 are replaced; names beyond 1,024 bytes are cut.
    pub names: Vec<String>,
    /// There are more.
    pub truncated: bool,
    /// What is missing and why.
    pub incomplete: Option<String>,
}

impl Engine {
    /// Names of services.
    ///
    /// # Errors
    /// None today: what cannot be read is left out and named in [`Names::incomplete`].
    pub fn services(&self, tenant: &Tenant) -> Result<Names, Error> {
        self.names(
            tenant,
            TermKind::Services,
            self.limits.names_max,
            &mut |_, span, _, add| add(span.service),
        )
    }

    /// Names of spans, of one service or of all.
    ///
    /// # Errors
    /// As [`Self::services`].
    pub fn operations(&self, tenant: &Tenant, service: Option<&str>) -> Result<Names, Error> {
        let service = service.map(str::as_bytes);
        let kind = TermKind::Operations { service };
        self.names(tenant, kind, self.limits.names_max, &mut |_, span, _, add| {
            if service.is_none_or(|service| span.service == service) {
                add(span.operation);
            }
        })
    }

    /// Attribute keys of spans and resources whose values have a text form.
    ///
    /// # Errors
    /// As [`Self::services`].
    pub fn tag_keys(&self, tenant: &Tenant) -> Result<Names, Error> {
        let mut form = String::new();
        self.names(tenant, TermKind::Keys, self.limits.names_max, &mut |resource, _, bytes, add| {
            each_attribute(resource, bytes, &mut |key, value| {
                form.clear();
                if value.to_text(&mut form) {
                    add(key);
                }
            });
        })
    }

    /// The first `limit` values of an attribute, in text form.
    ///
    /// # Errors
    /// As [`Self::services`].
    pub fn tag_values(&self, tenant: &Tenant, key: &str, limit: usize) -> Result<Names, Error> {
        let wanted = key.as_bytes();
        let mut form = String::new();
        let limit = limit.min(self.limits.names_max);
        self.names(tenant, TermKind::Values { key: wanted }, limit, &mut |resource, _, bytes, add| {
            each_attribute(resource, bytes, &mut |key, value| {
                form.clear();
                if key == wanted && value.to_text(&mut form) {
                    add(form.as_bytes());
                }
            });
        })
    }

    fn names(
        &self,
        tenant: &Tenant,
        kind: TermKind<'_>,
        limit: usize,
        of_span: OfSpan<'_>,
    ) -> Result<Names, Error> {
        let mut gaps = Gaps::default();
        let mut first = FirstNames { names: BTreeSet::new(), limit, truncated: false };
        self.add_live_names(tenant, of_span, &mut first, &mut gaps);
        for view in self.archive.snapshot().segments() {
            let visited = view.terms(tenant, kind, &mut |name| first.add(name));
            if let Err(cause) = visited {
                gaps.damaged(cause);
            }
        }
        Ok(first.finish(&gaps))
    }

    /// Two passes: a body does not say which of its traces are live, and asking span by span would cost a message each.
    fn add_live_names(&self, tenant: &Tenant, of_span: OfSpan<'_>, first: &mut FirstNames, gaps: &mut Gaps) {
        let mut ids = HashSet::new();
        self.each_live_body(tenant, gaps, &mut |body| {
            let _rest_is_damaged = visit_spans(body, &mut |_, span, _| {
                ids.insert(span.trace_id);
            });
        });
        let live = self.live_starts(tenant, ids);
        if live.is_empty() {
            return;
        }
        let mut cut = Vec::new();
        self.each_live_body(tenant, gaps, &mut |body| {
            let _rest_is_damaged = visit_spans(body, &mut |resource, span, bytes| {
                if live.contains_key(&span.trace_id) {
                    of_span(resource, span, bytes, &mut |name| {
                        // Cut as the index cuts, so that a long name is one name wherever it lies.
                        cut.clear();
                        Term::Service(name).encode(0, &mut cut);
                        first.add(cut.get(TERM_HEADER_BYTES..).unwrap_or_default());
                    });
                }
            });
        });
    }
}

/// A tenant's number and a kind stand before a term's text.
const TERM_HEADER_BYTES: usize = 5;

/// Passes a span's names on to its last argument.
type OfSpan<'a> = &'a mut dyn FnMut(&ResourceView<'_>, &WalkedSpan<'_>, &[u8], &mut dyn FnMut(&[u8]));

fn each_attribute(resource: &ResourceView<'_>, span: &[u8], visit: &mut dyn FnMut(&[u8], &ValueView<'_>)) {
    span_attributes(span, &mut |key, value| visit(key, &value));
    resource.attributes(&mut |key, value| visit(key, &value));
}

/// The least names of all that were added.
struct FirstNames {
    names: BTreeSet<Vec<u8>>,
    limit: usize,
    truncated: bool,
}

impl FirstNames {
    /// Takes a name; false when it is beyond the limit, as every later one of a sorted list then is.
    fn add(&mut self, name: &[u8]) -> bool {
        if name.is_empty() || self.names.contains(name) {
            return true;
        }
        if self.names.len() < self.limit {
            return self.names.insert(name.to_vec());
        }
        self.truncated = true;
        let Some(last) = self.names.last().filter(|last| name < last.as_slice()).cloned() else {
            return false;
        };
        self.names.remove(&last);
        self.names.insert(name.to_vec())
    }

    fn finish(self, gaps: &Gaps) -> Names {
        let mut names: Vec<String> = self.names.iter().map(|name| text(name)).collect();
        // Two names that differ in their broken bytes only read the same.
        names.dedup();
        Names { names, truncated: self.truncated, incomplete: gaps.to_text() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_the_first_names_and_says_when_there_are_more() {
        let mut first = FirstNames { names: BTreeSet::new(), limit: 2, truncated: false };
        assert!(first.add(b"c") && first.add(b"b") && first.add(b"c"));
        assert!(!first.truncated);
        assert!(first.add(b"a"), "a takes the place of c");
        assert!(!first.add(b"d"));
        let names = first.finish(&Gaps::default());
        assert_eq!(names, Names { names: vec!["a".into(), "b".into()], truncated: true, incomplete: None });
    }
}
