//! Decoding of header blocks (RFC 7541). It owns the connection's dynamic table and knows the wire form; what a field
//! means is `head`'s matter, and how much a list may be is the caller's. There is no encoder: our answers use the
//! static table only, see `answer`.

mod huffman;
mod table;

pub use table::ENTRY_OVERHEAD;
use table::{CAPACITY_MAX, Dynamic, STATIC};

use super::head::{Class, classify};
use super::{Cut, ErrorCode};

/// The block is not HPACK. The tables of both ends no longer agree, so the connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError;

impl From<DecodeError> for Cut {
    fn from(DecodeError: DecodeError) -> Self {
        Self::Protocol(ErrorCode::CompressionError)
    }
}

/// Numbers beyond this are nonsense everywhere they can stand: a length, an index, a table size.
const INTEGER_MAX: usize = 1 << 24;

/// What one connection's header blocks are read with.
#[derive(Debug, Default)]
pub struct Decoder {
    table: Dynamic,
    /// The announced table, which a size update may not exceed.
    capacity_max: usize,
}

impl Decoder {
    /// With a dynamic table of at most `capacity_max` bytes, and never more than 4096.
    pub fn new(capacity_max: usize) -> Self {
        Self { table: Dynamic::default(), capacity_max: capacity_max.min(CAPACITY_MAX) }
    }

    /// Calls `each` with every field of a complete `block`. Time and memory are bounded by the size of the block, and
    /// by `each`, which may end it.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut each: impl FnMut(Class, &[u8], &[u8]) -> Result<(), Cut>,
    ) -> Result<(), Cut> {
        let mut rest = self.size_updates(block)?;
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (class, name, value) = self.indexed(index)?;
                each(class, name, value)?;
                continue;
            }
            let is_kept = match first >> 4 {
                0b0100..=0b0111 => true,
                0b0000 | 0b0001 => false,
                // A size update belongs at the beginning: section 4.2.
                _ => return Err(DecodeError.into()),
            };
            let mark = self.table.tail().len();
            let name_bytes = self.literal(&mut rest, if is_kept { 6 } else { 4 })?;
            let (name, value) = self.table.tail()[mark..].split_at(name_bytes);
            let class = classify(name, value);
            each(class, name, value)?;
            if is_kept {
                self.table.insert(mark, name_bytes, class);
            } else {
                self.table.truncate(mark);
            }
        }
        Ok(())
    }

    /// Gives memory back that only a busy connection needs.
    pub fn trim(&mut self) {
        self.table.trim();
    }

    /// What it holds, for tests that bound it.
    #[cfg(any(test, feature = "internals"))]
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }

    fn size_updates<'b>(&mut self, block: &'b [u8]) -> Result<&'b [u8], DecodeError> {
        let mut rest = block;
        while rest.first().is_some_and(|first| first >> 5 == 0b001) {
            let capacity = integer(&mut rest, 5)?;
            if capacity > self.capacity_max {
                return Err(DecodeError);
            }
            self.table.set_capacity(capacity);
        }
        Ok(rest)
    }

    fn indexed(&self, index: usize) -> Result<(Class, &[u8], &[u8]), DecodeError> {
        match STATIC.get(index.wrapping_sub(1)) {
            Some((name, value, class)) => Ok((*class, name.as_bytes(), value.as_bytes())),
            None => index.checked_sub(STATIC.len() + 1).and_then(|at| self.table.get(at)).ok_or(DecodeError),
        }
    }

    /// Puts a literal's name and value at the table's tail; returns how many bytes are the name.
    fn literal(&mut self, rest: &mut &[u8], prefix_bits: u8) -> Result<usize, DecodeError> {
        let mark = self.table.tail().len();
        let index = integer(rest, prefix_bits)?;
        if index == 0 {
            string(rest, self.table.tail())?;
        } else if let Some((name, _, _)) = STATIC.get(index - 1) {
            self.table.tail().extend_from_slice(name.as_bytes());
        } else {
            self.table.append_name(index - STATIC.len() - 1).ok_or(DecodeError)?;
        }
        let name_bytes = self.table.tail().len() - mark;
        string(rest, self.table.tail())?;
        Ok(name_bytes)
    }
}

/// A number whose first `prefix_bits` share a byte with flags: section 5.1.
fn integer(rest: &mut &[u8], prefix_bits: u8) -> Result<usize, DecodeError> {
    let (&first, mut tail) = rest.split_first().ok_or(DecodeError)?;
    let mask = 0xFF >> (8 - prefix_bits);
    let mut value = usize::from(first & mask);
    if first & mask == mask {
        let mut shift = 0;
        loop {
            let (&byte, after) = tail.split_first().ok_or(DecodeError)?;
            tail = after;
            value += usize::from(byte & 0x7F) << shift;
            shift += 7;
            if value > INTEGER_MAX || shift > 28 {
                return Err(DecodeError);
            }
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = tail;
    Ok(value)
}

/// Appends a string, Huffman-coded or not: section 5.2.
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let is_coded = rest.first().ok_or(DecodeError)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (bytes, tail) = rest.split_at_checked(length).ok_or(DecodeError)?;
    *rest = tail;
    if is_coded {
        huffman::decode(bytes, out)
    } else {
        out.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
