//! The Thrift wire form in its binary and its compact protocol, borrowed from the body. Knows no struct.
//!
//! A count or a length is never believed before the bytes for it are there: every element takes at least one byte.
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-binary-protocol.md>,
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

use crate::error::Error;

/// How deep unknown values may nest. A Jaeger batch needs five levels.
const DEPTH_MAX: u8 = 64;

/// The type of a value, in the numbers of the binary protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Bool,
    Byte,
    Double,
    I16,
    I32,
    I64,
    Bytes,
    Struct,
    Map,
    Set,
    List,
    Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Binary,
    Compact,
}

/// Reads values one after the other. The caller knows what comes, from the types it was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    protocol: Protocol,
    bytes: &'a [u8],
    position: usize,
    /// The value of a compact boolean field, which stands in the field's header.
    pending_bool: Option<bool>,
}

/// The fields of one struct, in the order they come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields {
    last_id: i16,
}

impl Fields {
    /// The id and type of the next field, none at the end.
    pub(crate) fn next(&mut self, reader: &mut Reader<'_>) -> Result<Option<(i16, Type)>, Error> {
        let header = reader.byte()?;
        if header == 0 {
            return Ok(None);
        }
        let kind = reader.kind(header)?;
        let id = match reader.protocol {
            Protocol::Binary => i16::from_be_bytes(reader.array()?),
            Protocol::Compact => match header >> 4 {
                0 => {
                    i16::try_from(reader.zigzag()?).or(Err(reader.malformed("a field id beyond 16 bits")))?
                }
                delta => self.last_id.wrapping_add(i16::from(delta)),
            },
        };
        self.last_id = id;
        if reader.protocol == Protocol::Compact && kind == Type::Bool {
            reader.pending_bool = Some(header & 0x0F == 1);
        }
        Ok(Some((id, kind)))
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn binary(bytes: &'a [u8]) -> Self {
        Self { protocol: Protocol::Binary, bytes, position: 0, pending_bool: None }
    }

    pub(crate) fn compact(bytes: &'a [u8]) -> Self {
        Self { protocol: Protocol::Compact, ..Self::binary(bytes) }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.position >= self.bytes.len()
    }

    pub(crate) fn malformed(&self, what: &'static str) -> Error {
        Error::Thrift { position: self.position, what }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let end = self.position.checked_add(length);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.position..end)) else {
            return Err(self.malformed("a value ends beyond the body"));
        };
        self.position += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let taken = self.take(N)?;
        taken.first_chunk().copied().ok_or(self.malformed("a value ends beyond the body"))
    }

    fn byte(&mut self) -> Result<u8, Error> {
        self.array().map(|[byte]| byte)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a varint that does not end"))
    }

    fn zigzag(&mut self) -> Result<i64, Error> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// The type in the header of a field or a list.
    fn kind(&self, header: u8) -> Result<Type, Error> {
        let kind = match (self.protocol, header) {
            (Protocol::Binary, 2) => Type::Bool,
            (Protocol::Binary, 3) => Type::Byte,
            (Protocol::Binary, 4) => Type::Double,
            (Protocol::Binary, 6) => Type::I16,
            (Protocol::Binary, 8) => Type::I32,
            (Protocol::Binary, 10) => Type::I64,
            (Protocol::Binary, 11) => Type::Bytes,
            (Protocol::Binary, 12) => Type::Struct,
            (Protocol::Binary, 13) => Type::Map,
            (Protocol::Binary, 14) => Type::Set,
            (Protocol::Binary, 15) => Type::List,
            (Protocol::Binary, 16) => Type::Uuid,
            (Protocol::Compact, header) => match header & 0x0F {
                1 | 2 => Type::Bool,
                3 => Type::Byte,
                4 => Type::I16,
                5 => Type::I32,
                6 => Type::I64,
                7 => Type::Double,
                8 => Type::Bytes,
                9 => Type::List,
                10 => Type::Set,
                11 => Type::Map,
                12 => Type::Struct,
                13 => Type::Uuid,
                _ => return Err(self.malformed("a type that does not exist")),
            },
            _ => return Err(self.malformed("a type that does not exist")),
        };
        Ok(kind)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Error> {
        match self.pending_bool.take() {
            Some(value) => Ok(value),
            None => self.byte().map(|byte| byte == 1),
        }
    }

    /// A number of any width.
    pub(crate) fn int(&mut self, kind: Type) -> Result<i64, Error> {
        match (self.protocol, kind) {
            (_, Type::Byte) => self.byte().map(|byte| i64::from(byte.cast_signed())),
            (Protocol::Compact, Type::I16 | Type::I32 | Type::I64) => self.zigzag(),
            (Protocol::Binary, Type::I16) => self.array().map(|bytes| i64::from(i16::from_be_bytes(bytes))),
            (Protocol::Binary, Type::I32) => self.array().map(|bytes| i64::from(i32::from_be_bytes(bytes))),
            (Protocol::Binary, Type::I64) => self.array().map(i64::from_be_bytes),
            _ => Err(self.malformed("no number where one belongs")),
        }
    }

    pub(crate) fn double(&mut self) -> Result<f64, Error> {
        match self.protocol {
            Protocol::Binary => self.array().map(f64::from_be_bytes),
            Protocol::Compact => self.array().map(f64::from_le_bytes),
        }
    }

    /// Text or bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let length = self.length()?;
        self.take(length)
    }

    fn length(&mut self) -> Result<usize, Error> {
        let length = match self.protocol {
            Protocol::Binary => u64::try_from(i32::from_be_bytes(self.array()?)).ok(),
            Protocol::Compact => self.varint().ok(),
        };
        let left = self.bytes.len() - self.position;
        length
            .and_then(|length| usize::try_from(length).ok())
            .filter(|&length| length <= left)
            .ok_or(self.malformed("a length beyond the body"))
    }

    /// The type and the number of elements of a list or set.
    pub(crate) fn list(&mut self) -> Result<(Type, usize), Error> {
        let header = self.byte()?;
        let kind = self.kind(header)?;
        let count = match (self.protocol, header >> 4) {
            (Protocol::Compact, count @ ..15) => usize::from(count),
            _ => self.length()?,
        };
        Ok((kind, count))
    }

    /// Begins a list of structs.
    pub(crate) fn structs(&mut self) -> Result<usize, Error> {
        let (kind, count) = self.list()?;
        // Some writers give an empty list a type that does not exist, which `kind` refuses, or one that means nothing.
        if kind != Type::Struct && count > 0 {
            return Err(self.malformed("a list of something else than structs"));
        }
        Ok(count)
    }

    /// Steps over a value.
    pub(crate) fn skip(&mut self, kind: Type) -> Result<(), Error> {
        self.skip_nested(kind, DEPTH_MAX)
    }

    fn skip_nested(&mut self, kind: Type, depth: u8) -> Result<(), Error> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(self.malformed("values nested too deep"));
        };
        match kind {
            Type::Bool => drop(self.bool()?),
            Type::Byte | Type::I16 | Type::I32 | Type::I64 => drop(self.int(kind)?),
            Type::Double => drop(self.double()?),
            Type::Bytes => drop(self.bytes()?),
            Type::Uuid => drop(self.take(16)?),
            Type::Struct => {
                let mut fields = Fields::default();
                while let Some((_, kind)) = fields.next(self)? {
                    self.skip_nested(kind, depth)?;
                }
            }
            Type::Set | Type::List => {
                let (kind, count) = self.list()?;
                for _ in 0..count {
                    self.skip_nested(kind, depth)?;
                }
            }
            Type::Map => self.skip_map(depth)?,
        }
        Ok(())
    }

    fn skip_map(&mut self, depth: u8) -> Result<(), Error> {
        let (key, value, count) = match self.protocol {
            Protocol::Binary => {
                let [key, value] = self.array()?;
                (key, value, self.length()?)
            }
            Protocol::Compact => {
                let count = self.length()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (kinds >> 4, kinds & 0x0F, count)
            }
        };
        if count > 0 {
            let (key, value) = (self.kind(key)?, self.kind(value)?);
            for _ in 0..count {
                self.skip_nested(key, depth)?;
                self.skip_nested(value, depth)?;
            }
        }
        Ok(())
    }

    /// Steps over the header of a call, if there is one: what `emitBatch` and `submitBatches` are sent as. A struct that
    /// stands alone begins with a field, whose type no header can be mistaken for.
    pub(crate) fn skip_call_header(&mut self) -> Result<bool, Error> {
        match (self.protocol, self.bytes) {
            // Strict: version and type in a word, name, sequence number.
            (Protocol::Binary, [0x80, 0x01, ..]) => {
                self.take(4)?;
                self.bytes()?;
                self.take(4)?;
            }
            // Old: name, type, sequence number. A lone zero would be an empty struct.
            (Protocol::Binary, [0, _, ..]) => {
                self.bytes()?;
                self.take(5)?;
            }
            // Protocol, version and type, sequence number, name.
            (Protocol::Compact, [0x82, ..]) => {
                self.take(2)?;
                self.varint()?;
                self.bytes()?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_both_protocols() {
        for (bytes, kind, expected) in [
            (&[0x01][..], Type::I64, -1),
            (&[0x02], Type::I32, 1),
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], Type::I64, i64::MIN),
            (&[0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], Type::I64, i64::MAX),
            (&[0x80], Type::Byte, -128),
        ] {
            assert_eq!(Reader::compact(bytes).int(kind).unwrap(), expected, "{bytes:x?}");
        }
        assert_eq!(Reader::binary(&[0xFF, 0xFE]).int(Type::I16).unwrap(), -2);
        assert_eq!(Reader::binary(&[0, 0, 1, 0]).int(Type::I32).unwrap(), 256);
        assert_eq!(Reader::binary(&1.5_f64.to_be_bytes()).double().unwrap(), 1.5);
        assert_eq!(Reader::compact(&1.5_f64.to_le_bytes()).double().unwrap(), 1.5);
    }

    #[test]
    fn lengths_beyond_the_body_are_refused_before_anything_is_done() {
        assert!(Reader::binary(&[0x7F, 0xFF, 0xFF, 0xFF, 1]).bytes().is_err());
        assert!(Reader::binary(&[0xFF, 0xFF, 0xFF, 0xFF, 1]).bytes().is_err());
        assert!(Reader::binary(&[12, 0x7F, 0xFF, 0xFF, 0xFF]).structs().is_err());
        assert!(Reader::compact(&[0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).structs().is_err());
        assert!(Reader::compact(&[0xFF; 12]).bytes().is_err());
    }

    #[test]
    fn unknown_values_nest_to_a_bound() {
        let nested = |levels: usize| {
            // A list of one list of one list ... of no bytes.
            let mut bytes = [0x19].repeat(levels);
            bytes.push(0x08);
            Reader::compact(&bytes).skip(Type::List).is_ok()
        };
        assert!(nested(62));
        assert!(!nested(64));
        assert!(!nested(1_000_000));
    }

    #[test]
    fn every_type_is_stepped_over() {
        let binary = [
            &[2, 0, 1, 1][..],
            &[3, 0, 2, 9],
            &[4, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 4, 0, 0],
            &[8, 0, 5, 0, 0, 0, 0],
            &[10, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0],
            &[11, 0, 7, 0, 0, 0, 1, 65],
            &[12, 0, 8, 0],
            &[13, 0, 9, 11, 2, 0, 0, 0, 1, 0, 0, 0, 0, 1],
            &[14, 0, 10, 3, 0, 0, 0, 2, 1, 2],
            &[15, 0, 11, 6, 0, 0, 0, 1, 0, 5],
            &[0],
        ]
        .concat();
        let mut reader = Reader::binary(&binary);
        reader.skip(Type::Struct).unwrap();
        assert!(reader.is_done());
        let compact = [
            &[0x11, 0x12][..],
            &[0x13, 9],
            &[0x14, 2],
            &[0x15, 2],
            &[0x16, 2],
            &[0x17, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x18, 1, 65],
            &[0x19, 0x21, 1, 2],
            &[0x1A, 0xF3, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x1B, 1, 0x81, 0, 1],
            &[0x1B, 0],
            &[0x1C, 0],
            &[0x05, 0x80, 0x02, 1],
            &[0],
        ]
        .concat();
        let mut reader = Reader::compact(&compact);
        reader.skip(Type::Struct).unwrap();
        assert!(reader.is_done());
    }
}
