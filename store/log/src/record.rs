//! What a record of topic `spans` is: one request body with what was known when it came.
//! Never looks into the body.
//!
//! ```text
//! little endian; no checksum of its own, the log keeps one for the whole payload
//!
//!  0  version       u8    2
//!  1  encoding      u8    of the body: 0 identity, 1 gzip, 2 zstd
//!  2  tenant bytes  u8
//!  3  head sectors  u8    the body begins behind so many sectors of 512 bytes; 0 for right behind the tenant
//!  4  span count    u32   spans the body holds
//!  8  refused       u32   of those, spans that were not taken in
//! 12  arrived at    u64   nanoseconds since the Unix epoch
//! 20  tenant        UTF-8
//!     zeros         up to the body
//!     body          the rest, as received
//! ```

use bytes::Bytes;
use store_model::{Encoding, Tenant, UnixNanos};

use crate::error::FormatError;
use crate::format::{APART_BYTES, SECTOR_BYTES, u32_at, u64_at};

/// 1 had every body right behind the tenant.
const RECORD_VERSION: u8 = 2;
const RECORD_HEAD_BYTES: usize = 20;

/// One request body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyRecord {
    /// Whose spans.
    pub tenant: Tenant,
    /// When the body had arrived.
    pub arrived_at: UnixNanos,
    /// How the body is compressed.
    pub encoding: Encoding,
    /// How many spans it holds.
    pub span_count: u32,
    /// How many of them were not taken in.
    pub refused: u32,
    /// The body as received, still compressed if it came compressed.
    pub body: Bytes,
}

impl BodyRecord {
    /// Everything but the body. The payload of the record is this and the body after it. A large body begins on a sector, so
    /// that it can be written from where it lies.
    #[must_use]
    pub fn encode_head(&self) -> Vec<u8> {
        let mut head = Vec::new();
        self.encode_head_into(&mut head);
        head
    }

    /// As [`Self::encode_head`], over what `head` was.
    pub fn encode_head_into(&self, head: &mut Vec<u8>) {
        let Self { tenant, arrived_at, encoding, span_count, refused, body } = self;
        let name = tenant.as_str().as_bytes();
        let is_large = body.len() as u64 >= APART_BYTES;
        head.clear();
        // A tenant's name has at most 150 bytes.
        let name_bytes = u8::try_from(name.len()).unwrap_or(u8::MAX);
        head.extend([RECORD_VERSION, encoding.code(), name_bytes, u8::from(is_large)]);
        head.extend(span_count.to_le_bytes());
        head.extend(refused.to_le_bytes());
        head.extend(arrived_at.0.to_le_bytes());
        head.extend(name);
        if is_large {
            head.resize(SECTOR_BYTES, 0);
        }
    }

    /// Takes a payload apart; the body is a slice of it.
    ///
    /// # Errors
    /// [`FormatError`] says what is wrong with it.
    pub fn decode(payload: Bytes) -> Result<Self, FormatError> {
        let too_short = || FormatError::TooShort { bytes: payload.len() };
        let Some((head, rest)) = payload.split_first_chunk::<RECORD_HEAD_BYTES>() else {
            return Err(too_short());
        };
        if head[0] != RECORD_VERSION {
            return Err(FormatError::UnknownVersion { version: head[0] });
        }
        let encoding = Encoding::from_code(head[1]).ok_or(FormatError::UnknownEncoding { code: head[1] })?;
        let name_bytes = usize::from(head[2]);
        let name = rest.get(..name_bytes).ok_or_else(too_short)?;
        // A name that is not UTF-8 breaks the rule for names as an empty one does.
        let tenant = Tenant::new(std::str::from_utf8(name).unwrap_or_default())?;
        let body_start = match usize::from(head[3]) {
            0 => RECORD_HEAD_BYTES + name_bytes,
            sectors => sectors * SECTOR_BYTES,
        };
        if body_start > payload.len() {
            return Err(too_short());
        }
        Ok(Self {
            tenant,
            arrived_at: UnixNanos(u64_at(head, 12)),
            encoding,
            span_count: u32_at(head, 4),
            refused: u32_at(head, 8),
            body: payload.slice(body_start..),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was_written(
            name in "[a-z]{1,150}", at: u64, code in 0u8..3, span_count: u32, refused: u32,
            body in prop_oneof![any::<Vec<u8>>(), (16_300usize..16_500).prop_map(|length| vec![7; length])],
        ) {
            let record = BodyRecord {
                tenant: Tenant::new(&name).unwrap(),
                arrived_at: UnixNanos(at),
                encoding: Encoding::from_code(code).unwrap(),
                span_count,
                refused,
                body: body.into(),
            };
            let payload = [record.encode_head(), record.body.to_vec()].concat();
            prop_assert_eq!(BodyRecord::decode(payload.into()).unwrap(), record);
        }

        #[test]
        fn any_bytes_are_read_or_refused(version in 0u8..4, bytes: Vec<u8>) {
            let payload = [vec![version], bytes].concat();
            if let Ok(record) = BodyRecord::decode(payload.clone().into()) {
                prop_assert!(payload.ends_with(&record.body));
            }
        }
    }
}
