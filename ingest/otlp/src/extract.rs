//! Cutting kept spans out of bodies, byte for byte, together with what stands around them. Decides nothing about them.

use std::borrow::Cow;

use store_model::BodyRange;

use crate::error::Error;
use crate::walk::{RESOURCE_SPANS, SCOPE_SPANS, SPANS, body_range};
use crate::wire::{Key, Reader};

/// What stands around a span: its `ResourceSpans` without the `scope_spans` fields and its `ScopeSpans` without the
/// `spans` fields. Every other byte is there as it came, fields that nobody here knows included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container<'a> {
    pub(crate) resource: Cow<'a, [u8]>,
    pub(crate) scope: Cow<'a, [u8]>,
}

impl<'a> Container<'a> {
    #[cfg(test)]
    pub(crate) fn of(resource: &'a [u8], scope: &'a [u8]) -> Self {
        Self { resource: resource.into(), scope: scope.into() }
    }

    /// The fields of `ResourceSpans`: resource and schema URL.
    #[must_use]
    pub fn resource(&self) -> &[u8] {
        &self.resource
    }

    /// The fields of `ScopeSpans`: scope and schema URL.
    #[must_use]
    pub fn scope(&self) -> &[u8] {
        &self.scope
    }
}

/// Finds the spans at `wanted`, which is sorted by position, and hands out each with its index and its container.
/// All other spans are stepped over by length.
///
/// # Errors
/// When the body is malformed on the way, or a wanted span is not there; spans before that were handed out.
pub fn extract<'a>(
    body: &'a [u8],
    wanted: &[BodyRange],
    each: &mut impl FnMut(usize, &Container<'a>, &'a [u8]),
) -> Result<(), Error> {
    let mut wanted = Wanted { ranges: wanted, next: 0 };
    let mut reader = Reader::new(body);
    while wanted.remain() && !reader.is_done() {
        match reader.key()? {
            RESOURCE_SPANS => extract_from_resource(reader.message()?, &mut wanted, each)?,
            key => reader.skip(key)?,
        }
    }
    wanted.all_found()
}

/// Where every span of `body` lies, acceptable or not.
pub(crate) fn every_span(body: &[u8]) -> Result<Vec<BodyRange>, Error> {
    let mut ranges = Vec::new();
    each_nested(Reader::new(body), RESOURCE_SPANS, &mut |resource_spans| {
        each_nested(resource_spans, SCOPE_SPANS, &mut |scope_spans| {
            each_nested(scope_spans, SPANS, &mut |span| {
                ranges.push(range_of(span));
                Ok(())
            })
        })
    })?;
    Ok(ranges)
}

fn each_nested<'a>(
    mut reader: Reader<'a>,
    wanted: Key,
    each: &mut impl FnMut(Reader<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    while !reader.is_done() {
        match reader.key()? {
            key if key == wanted => each(reader.message()?)?,
            key => reader.skip(key)?,
        }
    }
    Ok(())
}

fn range_of(message: Reader<'_>) -> BodyRange {
    body_range(message.position(), message.rest().len())
}

/// The ranges still to be found.
struct Wanted<'w> {
    ranges: &'w [BodyRange],
    next: usize,
}

impl Wanted<'_> {
    fn remain(&self) -> bool {
        self.next < self.ranges.len()
    }

    /// Whether the next range lies inside `message`.
    fn lies_in(&self, message: Reader<'_>) -> bool {
        let end = message.position() + message.rest().len();
        self.ranges.get(self.next).is_some_and(|range| {
            let position = range.position as usize;
            (message.position()..=end).contains(&position)
        })
    }

    /// Whether the next range is exactly `span`; if so, it has been found.
    fn take(&mut self, span: BodyRange) -> Option<usize> {
        if self.ranges.get(self.next) != Some(&span) {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    fn all_found(&self) -> Result<(), Error> {
        match self.ranges.get(self.next) {
            None => Ok(()),
            Some(&BodyRange { position, length }) => Err(Error::NoSuchSpan { position, length }),
        }
    }
}

fn extract_from_resource<'a>(
    message: Reader<'a>,
    wanted: &mut Wanted<'_>,
    each: &mut impl FnMut(usize, &Container<'a>, &'a [u8]),
) -> Result<(), Error> {
    if !wanted.lies_in(message) {
        return Ok(());
    }
    let resource = without(message, SCOPE_SPANS, &mut |_| {})?;
    each_nested(message, SCOPE_SPANS, &mut |scope_spans| {
        if !wanted.lies_in(scope_spans) {
            return Ok(());
        }
        let mut found = Vec::new();
        let scope = without(scope_spans, SPANS, &mut |span| {
            // One range may be asked for twice.
            while let Some(index) = wanted.take(range_of(span)) {
                found.push((index, span.rest()));
            }
        })?;
        let container = Container { resource: resource.clone(), scope };
        for (index, span) in found {
            each(index, &container, span);
        }
        Ok(())
    })
}

/// The bytes of `message` without its fields under `key`, which go to `each` instead.
fn without<'a>(
    mut message: Reader<'a>,
    key: Key,
    each: &mut impl FnMut(Reader<'a>),
) -> Result<Cow<'a, [u8]>, Error> {
    let mut kept = Cow::Borrowed(&[][..]);
    let mut run_start = message.position();
    while !message.is_done() {
        let start = message.position();
        let found = message.key()?;
        if found == key {
            append(&mut kept, message.between(run_start, start));
            each(message.message()?);
            run_start = message.position();
        } else {
            message.skip(found)?;
        }
    }
    append(&mut kept, message.between(run_start, message.position()));
    Ok(kept)
}

/// Grows `kept`, borrowing as long as there is only one piece: the usual case.
pub(crate) fn append<'a>(kept: &mut Cow<'a, [u8]>, piece: &'a [u8]) {
    if kept.is_empty() {
        *kept = Cow::Borrowed(piece);
    } else if !piece.is_empty() {
        kept.to_mut().extend_from_slice(piece);
    }
}
