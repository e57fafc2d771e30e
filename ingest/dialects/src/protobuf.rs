//! The protobuf wire form, field by field and borrowed from the body. Knows no message. What it accepts is what prost
//! accepts, so that there is one opinion about it.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::Error;

/// What is left of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    rest: &'a [u8],
}

/// One field with its value as it stands there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    wire_type: WireType,
    value: &'a [u8],
}

fn malformed(cause: DecodeError) -> Error {
    Error::Protobuf { cause }
}

impl<'a> Message<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field, none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = decode_key(&mut self.rest).map_err(malformed)?;
        let start = self.rest;
        // Only unknown groups nest here, and prost limits how deep.
        skip_field(wire_type, number, &mut self.rest, DecodeContext::default()).map_err(malformed)?;
        Ok(Some(Field { number, wire_type, value: &start[..start.len() - self.rest.len()] }))
    }
}

impl<'a> Field<'a> {
    fn expect(self, wire_type: WireType) -> Result<&'a [u8], Error> {
        if self.wire_type == wire_type {
            Ok(self.value)
        } else {
            Err(Error::WrongWireType { number: self.number })
        }
    }

    /// Text or bytes.
    pub(crate) fn bytes(self) -> Result<&'a [u8], Error> {
        let mut value = self.expect(WireType::LengthDelimited)?;
        decode_varint(&mut value).map_err(malformed)?;
        Ok(value)
    }

    pub(crate) fn message(self) -> Result<Message<'a>, Error> {
        self.bytes().map(Message::new)
    }

    pub(crate) fn varint(self) -> Result<u64, Error> {
        decode_varint(&mut self.expect(WireType::Varint)?).map_err(malformed)
    }

    /// An `int64`.
    pub(crate) fn int(self) -> Result<i64, Error> {
        self.varint().map(u64::cast_signed)
    }

    /// An `int32` or an enum.
    pub(crate) fn int32(self) -> Result<i32, Error> {
        #[expect(clippy::cast_possible_truncation, reason = "protobuf says that only the low half counts")]
        self.int().map(|value| value as i32)
    }

    pub(crate) fn bool(self) -> Result<bool, Error> {
        self.varint().map(|value| value != 0)
    }

    pub(crate) fn fixed64(self) -> Result<u64, Error> {
        let value = self.expect(WireType::SixtyFourBit)?;
        Ok(value.first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes)))
    }

    pub(crate) fn double(self) -> Result<f64, Error> {
        self.fixed64().map(f64::from_bits)
    }
}
