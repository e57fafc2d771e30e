//! What stands around the spans of a body, noted down while the walk passes it, so that a kept span can be cut out later
//! without stepping over the others again: by then the body has left the cache.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use store_model::BodyRange;

use crate::error::Error;
use crate::extract::{Container, append, extract};
use crate::walk::body_range;

/// A request body with the places of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The body, decompressed.
    pub bytes: Bytes,
    /// As [`crate::summarise`] found them in these very bytes; empty when nobody has looked yet.
    pub containers: Containers,
}

impl Body {
    /// A body that was not walked: its spans are found by stepping over all others.
    #[must_use]
    pub fn unwalked(bytes: Bytes) -> Arc<Self> {
        Arc::new(Self { bytes, containers: Containers::default() })
    }

    /// Hands out the spans at `wanted`, which is sorted by position, each with its index and its container.
    ///
    /// # Errors
    /// When a wanted span is not there, or an unwalked body is malformed; spans before that were handed out.
    pub fn extract<'a>(
        &'a self,
        wanted: &[BodyRange],
        each: &mut impl FnMut(usize, &Container<'a>, &'a [u8]),
    ) -> Result<(), Error> {
        if self.containers.scopes.is_empty() {
            return extract(&self.bytes, wanted, each);
        }
        self.containers.cut(&self.bytes, wanted, each)
    }
}

/// Where the containers of one body lie: for each `ScopeSpans` the pieces of it and of its `ResourceSpans` that are not
/// spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    scopes: Vec<Scope>,
    pieces: Vec<BodyRange>,
    /// Pieces of the `ResourceSpans` that the walk is in.
    resource: Range<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    message: BodyRange,
    /// Which of `pieces`.
    resource: Range<u32>,
    scope: Range<u32>,
}

impl Containers {
    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.scopes.capacity() * size_of::<Scope>() + self.pieces.capacity() * size_of::<BodyRange>()
    }

    fn piece_count(&self) -> u32 {
        // Each piece is a byte or more of a body shorter than 4 GiB.
        u32::try_from(self.pieces.len()).unwrap_or(u32::MAX)
    }

    /// Adds a run of bytes between the fields that are cut out.
    pub(crate) fn piece(&mut self, start: usize, end: usize) {
        if start < end {
            self.pieces.push(body_range(start, end - start));
        }
    }

    /// Pieces added from now on belong to the resource, until [`Self::end_resource`].
    pub(crate) fn begin_resource(&mut self) {
        self.resource.start = self.piece_count();
    }

    pub(crate) fn end_resource(&mut self) {
        self.resource.end = self.piece_count();
    }

    /// The `ScopeSpans` that began when `first_piece` pieces were there, and whose bytes are `start..end`.
    pub(crate) fn end_scope(&mut self, first_piece: u32, start: usize, end: usize) {
        let (resource, scope) = (self.resource.clone(), first_piece..self.piece_count());
        self.scopes.push(Scope { message: body_range(start, end - start), resource, scope });
    }

    pub(crate) fn begin_scope(&self) -> u32 {
        self.piece_count()
    }

    /// As [`Body::extract`]. The ranges are taken on trust: they came out of the same walk.
    fn cut<'a>(
        &self,
        body: &'a [u8],
        wanted: &[BodyRange],
        each: &mut impl FnMut(usize, &Container<'a>, &'a [u8]),
    ) -> Result<(), Error> {
        let mut scopes = self.scopes.iter();
        let mut current: Option<(&Scope, Container<'a>)> = None;
        for (index, &range) in wanted.iter().enumerate() {
            if !current.as_ref().is_some_and(|(scope, _)| contains(scope.message, range)) {
                current = scopes
                    .find(|scope| contains(scope.message, range))
                    .map(|scope| (scope, self.container(body, scope)));
            }
            let absent = Error::NoSuchSpan { position: range.position, length: range.length };
            let Some((_, container)) = &current else { return Err(absent) };
            each(index, container, slice(body, range).ok_or(absent)?);
        }
        Ok(())
    }

    fn container<'a>(&self, body: &'a [u8], scope: &Scope) -> Container<'a> {
        let joined = |pieces: &Range<u32>| {
            let mut joined = Cow::Borrowed(&[][..]);
            for &piece in &self.pieces[pieces.start as usize..pieces.end as usize] {
                append(&mut joined, slice(body, piece).unwrap_or_default());
            }
            joined
        };
        Container { resource: joined(&scope.resource), scope: joined(&scope.scope) }
    }
}

fn contains(outer: BodyRange, inner: BodyRange) -> bool {
    let end = |range: BodyRange| u64::from(range.position) + u64::from(range.length);
    outer.position <= inner.position && end(inner) <= end(outer)
}

fn slice(body: &[u8], range: BodyRange) -> Option<&[u8]> {
    let start = range.position as usize;
    body.get(start..start.checked_add(range.length as usize)?)
}
