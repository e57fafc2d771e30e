//! Just enough protobuf to write OTLP with known byte positions and to read small answers.
//!
//! Never decodes whole messages: that is what the libraries under test are for. Fields are written in the order of
//! their numbers and defaults are left out, so that what is written equals any library's canonical encoding.

use crate::error::Error;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// How many bytes `value` takes as a varint.
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// How many bytes a length-delimited field takes with its key.
pub(crate) fn bytes_field_len(field: u32, content: usize) -> usize {
    varint_len(u64::from(field) << 3) + varint_len(content as u64) + content
}

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn put_key(out: &mut Vec<u8>, field: u32, wire_type: u8) {
    put_varint(out, u64::from(field) << 3 | u64::from(wire_type));
}

/// Appends the key and length of a length-delimited field; its `length` bytes are to follow.
pub(crate) fn put_header(out: &mut Vec<u8>, field: u32, length: usize) {
    put_key(out, field, BYTES);
    put_varint(out, length as u64);
}

/// Appends a string, bytes or message field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, content: &[u8]) {
    put_header(out, field, content.len());
    out.extend_from_slice(content);
}

/// Appends a varint field.
pub(crate) fn put_uint(out: &mut Vec<u8>, field: u32, value: u64) {
    put_key(out, field, VARINT);
    put_varint(out, value);
}

/// Appends a `fixed64` field.
pub(crate) fn put_fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    put_key(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a `fixed32` field.
pub(crate) fn put_fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    put_key(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// The value of one field on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A varint.
    Uint(u64),
    /// Eight bytes, little endian.
    Fixed64(u64),
    /// A string, bytes or message.
    Bytes(&'a [u8]),
    /// Four bytes, little endian.
    Fixed32(u32),
}

/// Walks the fields of one message. Ends after the first error.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// One field: its number, its value and the bytes it was written as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    /// The field number.
    pub(crate) number: u64,
    /// What it holds.
    pub(crate) value: Value<'a>,
    /// Key and value as they stand in the message.
    pub(crate) raw: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Over `message`.
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<Field<'a>> {
        let whole = self.rest;
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Uint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some(Field { number: key >> 3, value, raw: &whole[..whole.len() - self.rest.len()] })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field().ok_or(Error::Malformed { what: "protobuf message" });
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The length-delimited fields numbered `number`, others left out.
pub(crate) fn each_message(message: &[u8], number: u64) -> impl Iterator<Item = Result<&[u8], Error>> {
    Fields::new(message).filter_map(move |field| match field {
        Ok(Field { number: found, value: Value::Bytes(bytes), .. }) if found == number => Some(Ok(bytes)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_lengths_are_foreseen() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
        let mut out = Vec::new();
        put_bytes(&mut out, 1, b"abc");
        assert_eq!(out.len(), bytes_field_len(1, 3));
        put_uint(&mut out, 2, u64::MAX);
        put_fixed64(&mut out, 7, 99);
        put_fixed32(&mut out, 16, 0x101);
        let fields: Vec<_> = Fields::new(&out).map(Result::unwrap).map(|f| (f.number, f.value)).collect();
        let expected = [
            (1, Value::Bytes(b"abc")),
            (2, Value::Uint(u64::MAX)),
            (7, Value::Fixed64(99)),
            (16, Value::Fixed32(0x101)),
        ];
        assert_eq!(fields, expected);
        let raw: Vec<u8> = Fields::new(&out).flat_map(|field| field.unwrap().raw.to_vec()).collect();
        assert_eq!(raw, out);
    }

    #[test]
    fn a_message_cut_short_is_an_error_at_every_byte() {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, b"abc");
        for cut in 1..out.len() {
            assert!(Fields::new(&out[..cut]).any(|field| field.is_err()), "{cut}");
        }
    }
}
