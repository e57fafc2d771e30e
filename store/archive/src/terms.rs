//! What of a fragment is indexed: services, operations, statuses, kinds, and every attribute of its spans and resources
//! that has a text form; and its packed form, which falls out of the same pass. Reads OTLP; knows nothing of rows.
//!
//! Traces repeat themselves: nearly every attribute of a span was seen before, byte for byte. So pieces of OTLP are kept
//! and numbered, and only what is new is parsed and spelled out as terms.

use std::ops::Range;

use hashbrown::HashMap;
use ingest_otlp::{
    ResourceView, ValueView, WalkedSpan, each_attribute, each_container_attribute, each_resource_attribute,
    read_attribute, read_span, visit_spans,
};
use store_index::{IndexBuilder, Term, TermNumber};
use store_model::Fragment;

use crate::pack::{Number, Packed, Packer, Part, Said, Tail};
use crate::pieces::Pieces;
use crate::prints::{Keys, Print, Prints};

/// Terms are handed on in portions of about this size, so that a trace of 100,000 spans neither fills memory nor holds
/// up readers.
const PORTION_BYTES: usize = 256 << 10;

/// The terms of one fragment on their way into one index, and the pieces on their way to its rows. Made anew with each
/// open segment.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    packer: Packer,
    numbers: Numbers,
}

/// Pieces and terms that were seen before, and those of this portion that were not.
#[derive(Debug, Default)]
struct Numbers {
    keys: Keys,
    pieces: Prints<Piece>,
    /// How many pieces there are, those included that a writer before numbered.
    piece_count: u32,
    /// The pieces of a batch that is being numbered.
    prints: Vec<(Print, Option<usize>)>,
    /// What is known to be said beside attributes.
    said: HashMap<SayingKey, usize>,
    sayings: Vec<Group>,
    /// The terms of groups that do not have one, and which are whose.
    several: Vec<TermNumber>,
    runs: Vec<Range<u32>>,
    /// Of this portion: terms the index has, groups it has not seen, and the terms of those, end to end.
    old: Vec<TermNumber>,
    fresh: Vec<Fresh>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Pieces of this portion that are new, end to end.
    new_pieces: Vec<u8>,
    new_ends: Vec<usize>,
    text: String,
    tenant_number: u32,
    row: u32,
}

/// Notes about a piece.
#[derive(Clone, Debug, Default)]
struct Piece {
    number: u32,
    group: Group,
}

/// What a piece or a saying stands for.
#[derive(Clone, Debug)]
struct Group {
    /// The last row that has it.
    row: u32,
    terms: TermsOfGroup,
}

#[derive(Clone, Copy, Debug)]
enum TermsOfGroup {
    /// Nearly every piece is an attribute.
    One(TermNumber),
    /// A run of several, or of none.
    Run(u32),
    /// They are being added, to a row that thereby has them.
    Unspelled,
}

/// What a trace or a span is found by beside attributes.
#[derive(Clone, Copy, Debug)]
enum Saying {
    Tenant,
    Span(Said),
}

/// A saying of one tenant as one number, which hashes faster than its parts.
type SayingKey = u128;

impl Saying {
    fn key(self, tenant_number: u32) -> SayingKey {
        // Pieces are fewer than 2^32 by far: the open segment is sealed before.
        let [resource, name, tail] = match self {
            Self::Tenant => [u32::MAX; 3],
            Self::Span(Said { resource, name, tail: Tail::Piece(tail) }) => [resource, name, tail],
            Self::Span(Said { resource, name, tail: Tail::None }) => [resource, name, u32::MAX],
            Self::Span(Said { resource, name, tail: Tail::Long }) => [resource, name, u32::MAX - 1],
        };
        [tenant_number, resource, name, tail].into_iter().fold(0, |key, part| key << 32 | u128::from(part))
    }
}

/// A group whose terms are the next `count`.
#[derive(Debug)]
struct Fresh {
    group: Place,
    count: u32,
}

/// Where a fresh group is to be found again.
#[derive(Clone, Copy, Debug)]
enum Place {
    Piece(Print),
    Saying(usize),
    /// Nowhere: what is not as senders write it is spelled out each time.
    Passing,
}

impl Terms {
    /// For an open segment that has so many pieces.
    pub(crate) fn new(pieces: u32) -> Self {
        Self { packer: Packer::default(), numbers: Numbers { piece_count: pieces, ..Numbers::default() } }
    }

    /// Collects the terms of a fragment and packs it, handing full portions to `each_portion`; the last portion is left in
    /// `self`. A term may come several times, though a piece that was known before comes once a row.
    ///
    /// The second value is an error when the OTLP cannot be read to its end; what was read is there.
    pub(crate) fn extract(
        &mut self,
        tenant_number: u32,
        row: u32,
        fragment: &Fragment,
        each_portion: &mut dyn FnMut(Portion<'_>),
    ) -> (Packed, Result<(), ingest_otlp::Error>) {
        let Self { packer, numbers } = self;
        let otlp = &fragment.otlp;
        numbers.clear();
        (numbers.tenant_number, numbers.row) = (tenant_number, row);
        numbers.say(Saying::Tenant, |numbers| numbers.push(Term::Tenant));
        packer.begin(fragment.trace_id, fragment.trace_start);
        let mut each_full_portion = |numbers: &mut Numbers| {
            if numbers.portion_bytes() >= PORTION_BYTES {
                each_portion(Portion(numbers));
                numbers.clear();
            }
        };
        // Where all of a span's pieces are known there is nothing left to be read.
        let mut said_to = 0;
        while let Some(range) = packer.next_span(otlp) {
            let said = packer.span(otlp, range.clone(), numbers);
            let Some(said) = said else { break };
            if !numbers.say_span(said, packer.resource_spans(otlp), &otlp[range.clone()]) {
                break;
            }
            said_to = range.end;
            each_full_portion(numbers);
        }
        if said_to == otlp.len() {
            return (packer.finish(otlp), Ok(()));
        }
        // Something is not as senders write it, so the rest is read by the book.
        let result = visit_spans(otlp, &mut |resource, span, span_bytes| {
            let start = span.range.position as usize;
            if start < said_to {
                return;
            }
            if start >= packer.done() {
                packer.span(otlp, start..start + span_bytes.len(), numbers);
            }
            numbers.span_by_the_book(span, span_bytes, resource);
            each_full_portion(numbers);
        });
        (packer.finish(otlp), result)
    }

    /// The portion that was left.
    pub(crate) fn portion(&mut self) -> Portion<'_> {
        Portion(&mut self.numbers)
    }

    /// About how much memory is held for what is known.
    pub(crate) fn bytes(&self) -> usize {
        let Numbers { pieces, said, sayings, several, runs, .. } = &self.numbers;
        pieces.bytes()
            + said.allocation_size()
            + sayings.capacity() * size_of::<Group>()
            + several.capacity() * size_of::<TermNumber>()
            + runs.capacity() * size_of::<Range<u32>>()
    }
}

/// Terms and pieces to be added.
pub(crate) struct Portion<'a>(&'a mut Numbers);

impl Portion<'_> {
    /// Puts this portion where all portions so far went.
    pub(crate) fn add_to(&mut self, index: &mut IndexBuilder, pieces: &mut Pieces) {
        self.0.add_to(index, pieces);
    }
}

impl Numbers {
    fn add_to(&mut self, index: &mut IndexBuilder, rows_pieces: &mut Pieces) {
        let Self {
            pieces, new_pieces, new_ends, sayings, several, runs, old, fresh, bytes, ends, row, ..
        } = self;
        index.add_rows(old, *row);
        let mut terms = cut(bytes, ends);
        for &Fresh { group, count } in &*fresh {
            let start = several.len();
            several.extend(terms.by_ref().take(count as usize).map(|term| index.add(term, *row)));
            let terms = match several[start..] {
                [number] => {
                    several.pop();
                    TermsOfGroup::One(number)
                }
                _ => {
                    runs.push(number(start)..number(several.len()));
                    TermsOfGroup::Run(number(runs.len() - 1))
                }
            };
            match group {
                Place::Piece(print) => {
                    let at = pieces.find(print).expect("a fresh piece was added");
                    pieces.noted(at).group.terms = terms;
                }
                Place::Saying(at) => sayings[at].terms = terms,
                Place::Passing => {
                    several.truncate(start);
                    runs.truncate(runs.len() - usize::from(matches!(terms, TermsOfGroup::Run(_))));
                }
            }
        }
        cut(new_pieces, new_ends).for_each(|piece| rows_pieces.push(piece));
    }

    fn clear(&mut self) {
        self.old.clear();
        self.fresh.clear();
        self.bytes.clear();
        self.ends.clear();
        self.new_pieces.clear();
        self.new_ends.clear();
    }

    fn portion_bytes(&self) -> usize {
        self.bytes.len() + self.new_pieces.len() + self.old.len() * size_of::<TermNumber>()
    }

    /// Takes a saying: as it is known, or as `spell` pushes its terms.
    fn say(&mut self, saying: Saying, spell: impl FnOnce(&mut Self)) {
        let Self { said, sayings, several, runs, old, row, .. } = self;
        let at = *said.entry(saying.key(self.tenant_number)).or_insert(sayings.len());
        if let Some(group) = sayings.get_mut(at) {
            group.take(*row, several, runs, old);
            return;
        }
        sayings.push(Group::unspelled(*row));
        self.spell(Place::Saying(at), spell);
    }

    fn spell(&mut self, group: Place, spell: impl FnOnce(&mut Self)) {
        let before = self.ends.len();
        spell(self);
        let count = number(self.ends.len() - before);
        self.fresh.push(Fresh { group, count });
    }

    fn push(&mut self, term: Term<'_>) {
        term.encode(self.tenant_number, &mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// Takes what is said of a span that was packed. `false`, and nothing taken, when it cannot be read or OTLP forbids it.
    fn say_span(&mut self, said: Said, resource_spans: &[u8], span_bytes: &[u8]) -> bool {
        let saying = Saying::Span(said);
        if said.tail != Tail::Long
            && let Some(&at) = self.said.get(&saying.key(self.tenant_number))
        {
            let Self { sayings, several, runs, old, row, .. } = self;
            sayings[at].take(*row, several, runs, old);
            return true;
        }
        let Ok(Some(span)) = read_span(resource_spans, span_bytes) else { return false };
        match said.tail {
            Tail::Long => self.spell(Place::Passing, |numbers| numbers.spell_span(&span)),
            Tail::None | Tail::Piece(_) => self.say(saying, |numbers| numbers.spell_span(&span)),
        }
        true
    }

    fn spell_span(&mut self, span: &WalkedSpan<'_>) {
        let &WalkedSpan { service, operation, status, kind, .. } = span;
        self.push(Term::Service(service));
        self.push(Term::Operation(operation));
        self.push(Term::ServiceOperation(service, operation));
        self.push(Term::Status(status));
        self.push(Term::Kind(kind));
    }

    /// Spells out everything; attributes of a packed span come twice, but what is that odd is rare.
    fn span_by_the_book(&mut self, span: &WalkedSpan<'_>, span_bytes: &[u8], resource: &ResourceView<'_>) {
        self.spell(Place::Passing, |numbers| {
            numbers.spell_span(span);
            each_attribute(span_bytes, &mut |attribute| numbers.spell_attribute(attribute));
            resource.each_part(&mut |part| {
                each_resource_attribute(part, &mut |attribute| numbers.spell_attribute(attribute));
            });
        });
    }

    fn spell_attribute(&mut self, attribute: &[u8]) {
        let Ok((key, value)) = read_attribute(attribute) else { return };
        // Nearly every value is text that is searched for as it stands.
        if let ValueView::Str(value) = value
            && str::from_utf8(value).is_ok()
        {
            return self.push(Term::Attribute { key, value });
        }
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        if value.to_text(&mut text) {
            self.push(Term::Attribute { key, value: text.as_bytes() });
        }
        self.text = text;
    }

    fn spell_piece(&mut self, part: Part, fields: &[u8]) {
        match part {
            Part::Attribute | Part::Fields => {
                each_attribute(fields, &mut |attribute| self.spell_attribute(attribute));
            }
            Part::Resource => {
                each_container_attribute(fields, &mut |attribute| self.spell_attribute(attribute));
            }
            Part::Plain => {}
        }
    }
}

impl Number for Numbers {
    fn pieces(&mut self, bytes: &[u8], parts: &[(Part, Range<usize>)], taken: &mut Vec<u32>) {
        // One thing at a time, so that memory is asked for all of them before any is waited for.
        let mut prints = std::mem::take(&mut self.prints);
        prints.clear();
        let Self { keys, tenant_number, .. } = &*self;
        prints
            .extend(parts.iter().map(|(_, range)| (keys.print(*tenant_number, &bytes[range.clone()]), None)));
        let mut are_known = true;
        for (print, found) in &mut prints {
            *found = self.pieces.find(*print);
            are_known &= found.is_some();
        }
        if are_known {
            for at in prints.iter().filter_map(|(_, found)| *found) {
                taken.push(self.take(at));
            }
        } else {
            for ((part, range), &(print, _)) in parts.iter().zip(&prints) {
                taken.push(self.take_or_add(*part, &bytes[range.clone()], print));
            }
        }
        self.prints = prints;
    }

    fn loose(&mut self, fields: &[u8]) {
        self.spell(Place::Passing, |numbers| numbers.spell_piece(Part::Fields, fields));
    }
}

impl Numbers {
    /// The number of a piece that is known, whose terms the row has then.
    #[inline(always)]
    fn take(&mut self, at: usize) -> u32 {
        let Self { pieces, several, runs, old, row, .. } = self;
        let Piece { number, group } = pieces.noted(at);
        group.take(*row, several, runs, old);
        *number
    }

    fn take_or_add(&mut self, part: Part, fields: &[u8], print: Print) -> u32 {
        if let Some(at) = self.pieces.find(print) {
            return self.take(at);
        }
        let number = self.piece_count;
        self.piece_count = number.checked_add(1).expect("a segment is sealed before it has 2^32 pieces");
        self.pieces.add(print, Piece { number, group: Group::unspelled(self.row) });
        self.new_pieces.extend_from_slice(fields);
        self.new_ends.push(self.new_pieces.len());
        self.spell(Place::Piece(print), |numbers| numbers.spell_piece(part, fields));
        number
    }
}

impl Default for Group {
    fn default() -> Self {
        Self::unspelled(0)
    }
}

impl Group {
    /// Its terms are known when the portion is added, and not needed before: the row has them.
    fn unspelled(row: u32) -> Self {
        Self { row, terms: TermsOfGroup::Unspelled }
    }

    /// Adds the terms to those of `row`, unless it has them. Spans of one trace say much the same.
    #[inline(always)]
    fn take(&mut self, row: u32, several: &[TermNumber], runs: &[Range<u32>], terms: &mut Vec<TermNumber>) {
        let is_new = self.row != row;
        self.row = row;
        match self.terms {
            TermsOfGroup::One(number) => {
                // Whether a row has a piece already cannot be foreseen, so there is no branch on it.
                let length = terms.len() + usize::from(is_new);
                terms.push(number);
                terms.truncate(length);
            }
            TermsOfGroup::Run(run) if is_new => {
                let Range { start, end } = runs[run as usize];
                terms.extend_from_slice(&several[start as usize..end as usize]);
            }
            TermsOfGroup::Run(_) | TermsOfGroup::Unspelled => {}
        }
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a segment is sealed before it has 2^32 of anything")
}

/// What stands in `bytes` up to each of `ends`.
fn cut<'a>(bytes: &'a [u8], ends: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| &bytes[start..end])
}
