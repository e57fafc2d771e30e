//! Variable-length integers and checked reading of bytes, for the formats of `store/index` and `store/archive`.
//!
//! Reading never panics and never trusts a length: it hands out slices of what is there.
//! A varint is LEB128: seven bits a byte, least significant first, the high bit set on all but the last.

use crate::error::Error;

/// The longest varint of 64 bits.
const VARINT_BYTES_MAX: u32 = 10;

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends the length of `bytes` and then `bytes`.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, count(bytes.len()));
    out.extend_from_slice(bytes);
}

/// Appends the difference `value - base` (wrapping, so every pair works), small differences of either sign in few bytes.
pub fn put_delta(out: &mut Vec<u8>, base: u64, value: u64) {
    let difference = value.wrapping_sub(base).cast_signed();
    let zigzag = (difference << 1) ^ (difference >> 63);
    put_varint(out, zigzag.cast_unsigned());
}

/// A length in memory as a number on disk.
#[must_use]
pub fn count(length: usize) -> u64 {
    // No supported machine has more than 64-bit addresses.
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Reads forward through bytes from an untrusted place.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// Stands before the first of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// How many bytes have been read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    fn truncated(&self) -> Error {
        Error::Truncated { position: self.position }
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let end = self.position.checked_add(length).ok_or_else(|| self.truncated())?;
        let taken = self.bytes.get(self.position..end).ok_or_else(|| self.truncated())?;
        self.position = end;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (&array, _) = self.bytes[self.position..].split_first_chunk().ok_or_else(|| self.truncated())?;
        self.position += N;
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`Error::Truncated`] at the end.
    pub fn byte(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Four bytes, little endian.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer.
    pub fn u32_le(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little endian.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer.
    pub fn u64_le(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// A varint of up to 64 bits.
    ///
    /// # Errors
    /// [`Error::Truncated`] when it has no end, [`Error::Corrupt`] when it passes 64 bits.
    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for index in 0..VARINT_BYTES_MAX {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if index == VARINT_BYTES_MAX - 1 && byte > 1 {
                break;
            }
            value |= bits << (7 * index);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::Corrupt { what: "a number" })
    }

    /// The bytes of the next `count` varints, which whoever reads them must still check.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer.
    pub fn varints(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.position..];
        let last_bytes = rest.iter().enumerate().filter(|(_, byte)| **byte < 0x80).map(|(at, _)| at);
        let length = match count.checked_sub(1) {
            None => 0,
            Some(others) => {
                last_bytes.skip(others).map(|at| at + 1).next().ok_or_else(|| self.truncated())?
            }
        };
        self.take(length)
    }

    /// A varint that must fit 32 bits.
    ///
    /// # Errors
    /// As [`Self::varint`], and [`Error::Corrupt`] when it passes 32 bits.
    pub fn varint_u32(&mut self) -> Result<u32, Error> {
        narrow(self.varint()?)
    }

    /// A varint that must fit 16 bits.
    ///
    /// # Errors
    /// As [`Self::varint`], and [`Error::Corrupt`] when it passes 16 bits.
    pub fn varint_u16(&mut self) -> Result<u16, Error> {
        narrow(self.varint()?)
    }

    /// A varint that must fit memory. Not a promise that as many bytes follow.
    ///
    /// # Errors
    /// As [`Self::varint`], and [`Error::Corrupt`] when it passes the address space.
    pub fn varint_usize(&mut self) -> Result<usize, Error> {
        narrow(self.varint()?)
    }

    /// A number of things that follow, each of at least `bytes_min` bytes: what a count may allocate is thereby bounded
    /// by what is there.
    ///
    /// # Errors
    /// As [`Self::varint`], and [`Error::Corrupt`] when so many cannot follow.
    pub fn count_of(&mut self, bytes_min: usize) -> Result<usize, Error> {
        let count = self.varint_usize()?;
        if count > self.remaining() / bytes_min.max(1) {
            return Err(Error::Corrupt { what: "a count" });
        }
        Ok(count)
    }

    /// What [`put_bytes`] wrote.
    ///
    /// # Errors
    /// As [`Self::varint`] and [`Self::take`].
    pub fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let length = self.varint_usize()?;
        self.take(length)
    }

    /// What [`put_delta`] wrote, given the same `base`.
    ///
    /// # Errors
    /// As [`Self::varint`].
    pub fn delta(&mut self, base: u64) -> Result<u64, Error> {
        let zigzag = self.varint()?;
        let difference = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        Ok(base.wrapping_add(difference.cast_unsigned()))
    }
}

fn narrow<T: TryFrom<u64>>(value: u64) -> Result<T, Error> {
    T::try_from(value).ok().ok_or(Error::Corrupt { what: "a number" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_varint_beyond_64_bits_is_refused() {
        let mut longest = vec![0xFF; 9];
        longest.push(1);
        assert_eq!(Cursor::new(&longest).varint().unwrap(), u64::MAX);
        longest[9] = 2;
        assert!(Cursor::new(&longest).varint().is_err());
        assert!(Cursor::new(&[0xFF; 11]).varint().is_err());
        assert!(Cursor::new(&[0x80]).varint().is_err());
    }

    #[test]
    fn a_count_is_bounded_by_what_follows() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 3);
        bytes.extend([0; 6]);
        assert_eq!(Cursor::new(&bytes).count_of(2).unwrap(), 3);
        assert!(Cursor::new(&bytes).count_of(3).is_err());
    }

    proptest! {
        #[test]
        fn numbers_come_back_as_they_were_written(values: Vec<u64>, base: u64) {
            let mut bytes = Vec::new();
            for &value in &values {
                put_varint(&mut bytes, value);
                put_delta(&mut bytes, base, value);
                put_bytes(&mut bytes, &value.to_le_bytes());
            }
            let mut cursor = Cursor::new(&bytes);
            for &value in &values {
                prop_assert_eq!(cursor.varint().unwrap(), value);
                prop_assert_eq!(cursor.delta(base).unwrap(), value);
                prop_assert_eq!(cursor.bytes().unwrap(), value.to_le_bytes());
            }
            prop_assert!(cursor.is_empty());
        }

        #[test]
        fn a_number_of_varints_is_cut_off_whole(values: Vec<u64>, taken in 0..8usize) {
            let mut bytes = Vec::new();
            values.iter().for_each(|&value| put_varint(&mut bytes, value));
            let mut cursor = Cursor::new(&bytes);
            let cut = cursor.varints(taken);
            prop_assert_eq!(cut.is_ok(), taken <= values.len());
            if let Ok(cut) = cut {
                let mut inner = Cursor::new(cut);
                for &value in &values[..taken] {
                    prop_assert_eq!(inner.varint().unwrap(), value);
                }
                prop_assert!(inner.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut cursor = Cursor::new(&bytes);
            while cursor.varint().is_ok() && cursor.bytes().is_ok() && cursor.delta(1).is_ok() {}
        }
    }
}
