//! Where a page ended. The order of answers is defined here: newest trace start first, ties by trace id.

use store_model::{TraceId, UnixNanos};

use crate::error::Error;

/// What answers are sorted by, descending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) trace_start: UnixNanos,
    pub(crate) trace_id: TraceId,
}

/// The place in the order after which the next page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor(pub(crate) Key);

/// ```text
/// version u8 = 1 | trace_start u64 big-endian | trace_id 16 bytes
/// ```
const VERSION: u8 = 1;

impl Cursor {
    /// The cursor of a page that ended with this trace.
    #[must_use]
    pub fn new(trace_start: UnixNanos, trace_id: TraceId) -> Self {
        Self(Key { trace_start, trace_id })
    }

    /// The opaque form that clients carry from page to page.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let Key { trace_start, trace_id } = self.0;
        [&[VERSION][..], &trace_start.0.to_be_bytes(), &trace_id.0].concat()
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::BadCursor`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let Some((&VERSION, rest)) = bytes.split_first() else { return Err(Error::BadCursor) };
        let Some((start, id)) = rest.split_first_chunk() else { return Err(Error::BadCursor) };
        let Ok(id) = <[u8; 16]>::try_from(id) else { return Err(Error::BadCursor) };
        Ok(Self::new(UnixNanos(u64::from_be_bytes(*start)), TraceId(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back_from_their_bytes_and_strangers_are_refused() {
        let cursor = Cursor::new(UnixNanos(u64::MAX - 1), TraceId([7; 16]));
        let bytes = cursor.to_bytes();
        assert_eq!(Cursor::from_bytes(&bytes).unwrap(), cursor);
        let mut newer = bytes.clone();
        newer[0] = 2;
        for bad in [&[][..], &newer, &bytes[..24], &[&bytes[..], &[0]].concat()] {
            assert!(matches!(Cursor::from_bytes(bad), Err(Error::BadCursor)), "{bad:?}");
        }
    }
}
