//! The protobuf wire form: a reader that borrows from the body and knows its place in it, and the few writers that put
//! spans back together. Knows no message.
//!
//! It accepts and rejects exactly what prost does: varints of up to ten bytes, over-long ones included; groups only
//! where a field is unknown; at most [`DEPTH_MAX`] levels. <https://protobuf.dev/programming-guides/encoding/>

use crate::error::Error;

/// How deep messages and groups may nest: the limit that prost and Google's own parsers share.
const DEPTH_MAX: u8 = 100;

/// A field's number and wire type, as they stand in front of its value.
pub(crate) type Key = u32;

/// The key of a varint field.
pub(crate) const fn varint(number: u32) -> Key {
    number << 3
}

/// The key of an eight-byte field.
pub(crate) const fn fixed64(number: u32) -> Key {
    number << 3 | 1
}

/// The key of a field that says its length: text, bytes or a message.
pub(crate) const fn delimited(number: u32) -> Key {
    number << 3 | 2
}

/// The key of a four-byte field.
pub(crate) const fn fixed32(number: u32) -> Key {
    number << 3 | 5
}

/// Reads one message, field by field. Positions count from the start of the body, in nested messages too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    /// The body up to the end of this message.
    bytes: &'a [u8],
    position: usize,
    depth: u8,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, depth: DEPTH_MAX }
    }

    #[inline(always)]
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    #[inline(always)]
    pub(crate) fn is_done(&self) -> bool {
        self.position >= self.bytes.len()
    }

    /// What is left of the message.
    #[inline(always)]
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.position..]
    }

    /// The bytes between two positions that this reader has passed.
    pub(crate) fn between(&self, start: usize, end: usize) -> &'a [u8] {
        &self.bytes[start..end]
    }

    /// Steps over `count` bytes.
    #[inline(always)]
    pub(crate) fn advance(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let start = self.position;
        match start.checked_add(count).and_then(|end| self.bytes.get(start..end)) {
            Some(bytes) => {
                self.position = start + count;
                Ok(bytes)
            }
            None => Err(self.malformed("a value ends beyond its message")),
        }
    }

    #[inline(always)]
    pub(crate) fn varint(&mut self) -> Result<u64, Error> {
        // Keys and most lengths take one byte, lengths of spans two.
        match *self.rest() {
            [byte @ ..0x80, ..] => {
                self.position += 1;
                Ok(u64::from(byte))
            }
            [low, high @ ..0x80, ..] => {
                self.position += 2;
                Ok(u64::from(low & 0x7F) | u64::from(high) << 7)
            }
            _ => {
                let (value, position) = long_varint(*self)?;
                self.position = position;
                Ok(value)
            }
        }
    }

    #[inline(always)]
    pub(crate) fn key(&mut self) -> Result<Key, Error> {
        let key = self.varint()?;
        match Key::try_from(key) {
            Ok(key) if key >= 8 => Ok(key),
            _ => Err(self.malformed("a field number that is zero or too large")),
        }
    }

    /// A value that says its length.
    #[inline(always)]
    pub(crate) fn delimited(&mut self) -> Result<&'a [u8], Error> {
        let length = self.varint()?;
        // A length that does not fit usize is beyond any message, and so is usize::MAX.
        self.advance(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// A nested message.
    #[inline(always)]
    pub(crate) fn message(&mut self) -> Result<Self, Error> {
        if self.depth == 0 {
            return Err(self.malformed("messages nested too deep"));
        }
        let length = self.delimited()?.len();
        let bytes = &self.bytes[..self.position];
        Ok(Self { bytes, position: self.position - length, depth: self.depth - 1 })
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.rest().first_chunk() {
            Some(&chunk) => {
                self.position += N;
                Ok(chunk)
            }
            None => Err(self.malformed("a value ends beyond its message")),
        }
    }

    #[inline(always)]
    pub(crate) fn fixed64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline(always)]
    pub(crate) fn fixed32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    /// Steps over all values of less than 128 bytes that follow under one key: the attributes of a span, which make up
    /// half of its fields, in a loop that does nothing else.
    #[inline(always)]
    pub(crate) fn skip_run(&mut self, key: u8) -> Result<(), Error> {
        let mut position = self.position;
        while let Some(&[found, length @ ..0x80]) =
            self.bytes.get(position..).and_then(|rest| rest.first_chunk())
            && found == key
        {
            position += 2 + usize::from(length);
        }
        self.advance(position - self.position).map(drop)
    }

    /// Steps over the value of a field that nobody here knows.
    #[inline(always)]
    pub(crate) fn skip(&mut self, key: Key) -> Result<(), Error> {
        self.position = skip_nested(*self, key, self.depth)?;
        Ok(())
    }

    /// For the keys that no arm of a message's `match` took: a known number has the wrong type, others are skipped.
    #[inline(always)]
    pub(crate) fn other(&mut self, key: Key, known: &[u32]) -> Result<(), Error> {
        if known.contains(&(key >> 3)) {
            return Err(self.malformed("a known field has the wrong wire type"));
        }
        self.skip(key)
    }

    #[inline(always)]
    pub(crate) fn malformed(&self, what: &'static str) -> Error {
        malformed(self.position, what)
    }
}

// The rare paths take their reader by value: one whose address is known elsewhere could not live in registers.

#[cold]
#[inline(never)]
fn malformed(position: usize, what: &'static str) -> Error {
    Error::Malformed { position, what }
}

/// A varint and the position behind it.
#[inline(never)]
fn long_varint(reader: Reader<'_>) -> Result<(u64, usize), Error> {
    let mut value = 0;
    for (count, &byte) in reader.rest().iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * count);
        if byte < 0x80 {
            // The tenth byte has room for one bit of a 64-bit number.
            if count == 9 && byte > 1 {
                break;
            }
            return Ok((value, reader.position + count + 1));
        }
    }
    Err(reader.malformed("a varint that does not end or does not fit 64 bits"))
}

/// The position behind the value under `key`.
#[inline(never)]
fn skip_nested(mut reader: Reader<'_>, key: Key, depth: u8) -> Result<usize, Error> {
    if depth == 0 {
        return Err(reader.malformed("groups nested too deep"));
    }
    match key & 7 {
        0 => drop(reader.varint()?),
        1 => drop(reader.advance(8)?),
        2 => drop(reader.delimited()?),
        3 => loop {
            let inner = reader.key()?;
            if inner & 7 != 4 {
                reader.position = skip_nested(reader, inner, depth - 1)?;
            } else if inner >> 3 == key >> 3 {
                break;
            } else {
                return Err(reader.malformed("a group that ends under another number"));
            }
        },
        4 => return Err(reader.malformed("the end of a group that never began")),
        5 => drop(reader.advance(4)?),
        _ => return Err(reader.malformed("a wire type that does not exist")),
    }
    Ok(reader.position)
}

/// How many bytes [`put_varint`] writes.
pub(crate) fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7F) as u8);
}

/// Writes what stands before a value of `length` bytes.
pub(crate) fn put_delimiter(out: &mut Vec<u8>, key: Key, length: usize) {
    put_varint(out, u64::from(key));
    put_varint(out, length as u64);
}

pub(crate) fn put_delimited(out: &mut Vec<u8>, key: Key, value: &[u8]) {
    put_delimiter(out, key, value.len());
    out.extend_from_slice(value);
}

/// How many bytes a value of `length` bytes takes under a key of one byte.
pub(crate) fn delimited_bytes(length: usize) -> usize {
    1 + varint_bytes(length as u64) + length
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn varint_of(bytes: &[u8]) -> Option<u64> {
        Reader::new(bytes).varint().ok()
    }

    #[test]
    fn varints_may_be_long_but_neither_endless_nor_too_big() {
        assert_eq!(varint_of(&[0x81, 0x00]), Some(1));
        assert_eq!(varint_of(&[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), Some(1));
        let all_ones = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
        assert_eq!(varint_of(&all_ones), Some(u64::MAX));
        let mut too_big = all_ones;
        too_big[9] = 2;
        assert_eq!(varint_of(&too_big), None);
        assert_eq!(varint_of(&[0x80; 11]), None);
        assert_eq!(varint_of(&[0x80]), None);
        assert_eq!(varint_of(&[]), None);
    }

    #[test]
    fn groups_nest_to_a_bound_and_must_end_as_they_began() {
        let nested = |levels: usize| {
            let mut bytes = vec![0x0B; levels];
            bytes.extend(vec![0x0C; levels]);
            let mut reader = Reader::new(&bytes);
            reader.key().and_then(|key| reader.skip(key)).is_ok() && reader.is_done()
        };
        assert!(nested(1) && nested(100));
        assert!(!nested(101));
        for bad in [&[0x0B][..], &[0x0B, 0x14], &[0x0C], &[0x0E], &[0x0B, 0x10, 0x80, 0x0C]] {
            let mut reader = Reader::new(bad);
            assert!(reader.key().and_then(|key| reader.skip(key)).is_err(), "{bad:x?}");
        }
    }

    proptest! {
        #[test]
        fn varints_come_back_and_their_size_is_foretold(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_bytes(value));
            prop_assert_eq!(varint_of(&out), Some(value));
        }
    }
}
