//! An OTLP `TracesData` as the bytes it is. Never looks into a span, so that what was sent comes back to the bit.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{self, DecodeContext, WireType, encode_key, encode_varint};
use prost::{DecodeError, Message};

/// A `TracesData` message in its encoded form. Decode it with any OTLP library
/// (`ingest_otlp::messages::TracesData` in this workspace) to see spans.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RawTraces(pub Bytes);

impl Message for RawTraces {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes one field over: its key and length are written anew in their shortest form, its content is copied.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut out = BytesMut::from(std::mem::take(&mut self.0));
        match wire_type {
            WireType::LengthDelimited => {
                let mut content = Bytes::new();
                encoding::bytes::merge(wire_type, &mut content, buf, context)?;
                encoding::bytes::encode(tag, &content, &mut out);
            }
            WireType::Varint => {
                let value = encoding::decode_varint(buf)?;
                encode_key(tag, wire_type, &mut out);
                encode_varint(value, &mut out);
            }
            WireType::SixtyFourBit => {
                let mut value = 0;
                encoding::fixed64::merge(wire_type, &mut value, buf, context)?;
                encoding::fixed64::encode(tag, &value, &mut out);
            }
            WireType::ThirtyTwoBit => {
                let mut value = 0;
                encoding::fixed32::merge(wire_type, &mut value, buf, context)?;
                encoding::fixed32::encode(tag, &value, &mut out);
            }
            // OTLP has no groups; what a stranger puts there is no part of a span.
            WireType::StartGroup | WireType::EndGroup => encoding::skip_field(wire_type, tag, buf, context)?,
        }
        self.0 = out.freeze();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_pass_through_byte_for_byte() {
        // Field 1 twice, a varint, both fixed widths and a field number OTLP does not have.
        let wire = Bytes::from_static(
            b"\x0a\x03abc\x0a\x00\x10\x96\x01\x19\x01\x02\x03\x04\x05\x06\x07\x08\x25\x01\x02\x03\x04\xba\x3e\x01x",
        );
        let raw = RawTraces::decode(wire.clone()).unwrap();
        assert_eq!(raw.0, wire);
        assert_eq!(raw.encode_to_vec(), wire);
    }

    #[test]
    fn traces_cut_short_are_an_error_and_not_an_allocation() {
        for wire in [&b"\x0a\x05ab"[..], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x19\x01", b"\x0a"] {
            assert!(RawTraces::decode(wire).is_err(), "{wire:?}");
        }
    }
}
