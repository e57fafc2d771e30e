//! What of a fragment is indexed: services, operations, statuses, kinds, and every attribute of its spans and resources
//! that has a text form. Reads OTLP; knows nothing of rows.
//!
//! Traces repeat themselves: nearly every attribute of a span was seen before, byte for byte. So a piece of OTLP is
//! recognised by a fingerprint of its bytes, and only what is new is parsed and spelled out as terms.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use ingest_otlp::{
    ResourceView, ValueView, WalkedSpan, each_attribute, each_resource_attribute, read_attribute, visit_spans,
};
use store_index::{IndexBuilder, Term, TermNumber};

/// Terms are handed on in portions of about this size, so that a trace of 100,000 spans neither fills memory nor holds
/// up readers.
const PORTION_BYTES: usize = 256 << 10;

/// The terms of one fragment on their way into one index. Made anew with each open segment.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    hasher: DefaultHashBuilder,
    /// Pieces seen before. Two pieces with one fingerprint of 64 keyed bits would share their terms: with a million
    /// pieces a chance of 1 in 10^7, for a search that verifies what it finds.
    known: HashTable<Piece>,
    /// What known pieces stand for that have several terms.
    numbers: Vec<TermNumber>,
    /// Of this portion: terms the index has, pieces it has not seen, and the terms of those, end to end.
    old: Vec<TermNumber>,
    fresh: Vec<Fresh>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    text: String,
    row: u32,
}

#[derive(Debug)]
struct Piece {
    print: u64,
    /// The last row that has it.
    row: u32,
    terms: TermsOfPiece,
}

#[derive(Clone, Copy, Debug)]
enum TermsOfPiece {
    /// Nearly every piece is an attribute.
    One(TermNumber),
    /// So many of `numbers` from there on.
    Several { start: u32, count: u32 },
}

/// A piece whose terms are the next `count`.
#[derive(Debug)]
struct Fresh {
    print: u64,
    count: u32,
}

impl Terms {
    /// Collects the terms of `otlp`, handing full portions to `each_portion`; the last portion is left in `self`. A term
    /// may come several times, though a piece that was known before comes once a row.
    ///
    /// # Errors
    /// When `otlp` cannot be read to its end; what was read is there.
    pub(crate) fn extract(
        &mut self,
        tenant_number: u32,
        row: u32,
        otlp: &[u8],
        each_portion: &mut dyn FnMut(&mut Self),
    ) -> Result<(), ingest_otlp::Error> {
        self.clear();
        self.row = row;
        self.piece(self.print(tenant_number, "tenant"), |terms| terms.push(tenant_number, Term::Tenant));
        let mut resource_before = None;
        visit_spans(otlp, &mut |resource, span, span_bytes| {
            self.span(tenant_number, span);
            each_attribute(span_bytes, &mut |attribute| self.attribute(tenant_number, attribute));
            self.resource(tenant_number, resource, &mut resource_before);
            if self.bytes.len() + self.old.len() * size_of::<TermNumber>() >= PORTION_BYTES {
                each_portion(self);
                self.clear();
            }
        })
    }

    /// Puts this portion into the index that all portions so far went to.
    pub(crate) fn add_to(&mut self, index: &mut IndexBuilder, row: u32) {
        for &number in &self.old {
            index.add_row(number, row);
        }
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let mut terms = starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end]);
        for &Fresh { print, count } in &self.fresh {
            let start = u32::try_from(self.numbers.len()).expect("a segment is sealed before 2^32 terms");
            self.numbers.extend(terms.by_ref().take(count as usize).map(|term| index.add(term, row)));
            let terms = match self.numbers[start as usize..] {
                [number] => {
                    self.numbers.pop();
                    TermsOfPiece::One(number)
                }
                _ => TermsOfPiece::Several { start, count },
            };
            // A piece that came twice in one portion is known by its first coming.
            let piece = Piece { print, row, terms };
            self.known.entry(print, |piece| piece.print == print, |piece| piece.print).or_insert(piece);
        }
    }

    /// About how much memory is held for known pieces.
    pub(crate) fn bytes(&self) -> usize {
        self.known.allocation_size() + self.numbers.capacity() * size_of::<TermNumber>()
    }

    fn clear(&mut self) {
        self.old.clear();
        self.fresh.clear();
        self.bytes.clear();
        self.ends.clear();
    }

    fn print(&self, tenant_number: u32, bytes: impl std::hash::Hash) -> u64 {
        self.hasher.hash_one((tenant_number, bytes))
    }

    /// Takes a piece: as it is known, or as `spell` pushes its terms.
    fn piece(&mut self, print: u64, spell: impl FnOnce(&mut Self)) {
        if let Some(piece) = self.known.find_mut(print, |piece| piece.print == print) {
            // Spans of one trace say much the same.
            if piece.row == self.row {
                return;
            }
            piece.row = self.row;
            match piece.terms {
                TermsOfPiece::One(number) => self.old.push(number),
                TermsOfPiece::Several { start, count } => {
                    self.old.extend_from_slice(&self.numbers[start as usize..][..count as usize]);
                }
            }
            return;
        }
        let before = self.ends.len();
        spell(self);
        let count = u32::try_from(self.ends.len() - before).expect("a piece has a handful of terms");
        self.fresh.push(Fresh { print, count });
    }

    fn push(&mut self, tenant_number: u32, term: Term<'_>) {
        term.encode(tenant_number, &mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    fn span(&mut self, tenant_number: u32, span: &WalkedSpan<'_>) {
        let &WalkedSpan { service, operation, status, kind, .. } = span;
        self.piece(self.print(tenant_number, (service, operation, status, kind)), |terms| {
            terms.push(tenant_number, Term::Service(service));
            terms.push(tenant_number, Term::Operation(operation));
            terms.push(tenant_number, Term::ServiceOperation(service, operation));
            terms.push(tenant_number, Term::Status(status));
            terms.push(tenant_number, Term::Kind(kind));
        });
    }

    /// `attribute` is the message as it stands in the span.
    fn attribute(&mut self, tenant_number: u32, attribute: &[u8]) {
        self.piece(self.print(tenant_number, attribute), |terms| {
            terms.spell_attribute(tenant_number, attribute)
        });
    }

    fn spell_attribute(&mut self, tenant_number: u32, attribute: &[u8]) {
        let Ok((key, value)) = read_attribute(attribute) else { return };
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

    /// A resource is one piece: there are few, and each comes with every trace. Its spans come one after the other, so its
    /// place tells whether it was taken with the span before.
    fn resource(&mut self, tenant_number: u32, resource: &ResourceView<'_>, before: &mut Option<*const u8>) {
        let mut first = None;
        resource.each_part(&mut |part| {
            let known = *first.get_or_insert_with(|| before.replace(part.as_ptr()) == Some(part.as_ptr()));
            if known {
                return;
            }
            self.piece(self.print(tenant_number, ("resource", part)), |terms| {
                each_resource_attribute(part, &mut |attribute| {
                    terms.spell_attribute(tenant_number, attribute)
                });
            });
        });
    }
}
