//! Identifiers: traces, spans, tenants, shards, partitions, offsets.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::sampling::Randomness;

/// A W3C trace id: 16 bytes, never all zero once accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TraceId(pub [u8; 16]);

/// A W3C span id: 8 bytes, never all zero once accepted (a missing parent is all zero).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SpanId(pub [u8; 8]);

/// The text is not the lower- or upper-case hexadecimal form of an id of the right length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hexadecimal digits")]
pub struct ParseIdError {
    /// How many digits the id has.
    pub expected: usize,
}

impl TraceId {
    /// All zero: the id OTLP forbids.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }

    /// The last 56 bits, which W3C Trace Context level 2 calls random.
    #[must_use]
    pub fn randomness(self) -> Randomness {
        let [.., a, b, c, d, e, f, g] = self.0;
        Randomness::from_low_bits(u64::from_be_bytes([0, a, b, c, d, e, f, g]))
    }

    /// Which of `shards` owns this trace. Stable for ever: settlement records rely on it.
    #[must_use]
    pub fn shard(self, shards: u16) -> ShardId {
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7] = self.0;
        let a = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let b = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
        // Both halves are mixed, since some senders fill only 8 of the 16 bytes with randomness.
        let mixed = (a ^ b.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // The high 32 bits are scaled to the range; the product fits 48 bits, so its upper part fits u16.
        let scaled = ((mixed >> 32) * u64::from(shards.max(1))) >> 32;
        ShardId(u16::try_from(scaled).unwrap_or(0))
    }
}

impl SpanId {
    /// All zero: "no parent" in a parent field, forbidden in a span's own id.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 8]
    }
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let error = ParseIdError { expected: N * 2 };
    let bytes = text.as_bytes();
    if bytes.len() != N * 2 {
        return Err(error);
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(error),
    };
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *slot = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(out)
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! hex_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }
    };
}
hex_id!(TraceId);
hex_id!(SpanId);

/// A tenant's name, from `X-Scope-OrgID`. Cheap to clone.
///
/// 1 to 150 bytes of `[0-9A-Za-z!-_.*'()]`, never `.` or `..`: Grafana's rule, so that a name is safe in paths
/// and headers alike.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

/// The tenant name breaks the rule that [`Tenant`] states.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant must be 1 to {} characters of letters, digits and !-_.*'() and not '.' or '..'",
    Tenant::BYTES_MAX
)]
pub struct InvalidTenant;

impl Tenant {
    /// A name beyond this is refused; it travels in every record.
    pub const BYTES_MAX: usize = 150;

    /// Checks the rule and takes the name.
    ///
    /// # Errors
    /// [`InvalidTenant`] when the rule is broken.
    pub fn new(name: &str) -> Result<Self, InvalidTenant> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!-_.*'()".contains(&byte);
        let fits = !name.is_empty() && name.len() <= Self::BYTES_MAX;
        if fits && name != "." && name != ".." && name.bytes().all(legal) {
            Ok(Self(name.into()))
        } else {
            Err(InvalidTenant)
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A trace of a tenant: two tenants may use one trace id and must never meet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceKey {
    /// Whose trace.
    pub tenant: Tenant,
    /// Which trace.
    pub trace_id: TraceId,
}

/// One in-memory slice of the traces, owned by one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShardId(pub u16);

/// One ordered log with one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PartitionId(pub u16);

/// A record's number in its partition: dense, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `count` records further.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }
}

/// The leadership number of a partition's writer; raised whenever a writer opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u32);

macro_rules! display_number {
    ($($name:ident),*) => { $(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )* };
}
display_number!(ShardId, PartitionId, Offset, Epoch);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hex_ids_come_back_as_they_were_written() {
        let id: TraceId = "0102030405060708090a0b0c0d0e0f10".parse().unwrap();
        assert_eq!(id.to_string(), "0102030405060708090a0b0c0d0e0f10");
        assert_eq!(id.randomness().get(), 0x0a_0b0c_0d0e_0f10);
        assert!("0102".parse::<TraceId>().is_err());
        assert!("010203040506070g".parse::<SpanId>().is_err());
    }

    #[test]
    fn tenants_that_could_walk_a_path_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "ü", "a\0", &"x".repeat(151)] {
            assert_eq!(Tenant::new(name), Err(InvalidTenant), "{name:?}");
        }
        for name in ["default", "team-a", "(x)!*'._", &"x".repeat(150)] {
            assert!(Tenant::new(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn shards_are_even_even_when_half_of_the_id_is_constant() {
        for half in [0, 1] {
            let mut counts = [0u32; 7];
            for n in 0..70_000u64 {
                let mut id = [0xAB; 16];
                let noise = n.wrapping_mul(0xD134_2543_DE82_EF95).to_be_bytes();
                id[half * 8..half * 8 + 8].copy_from_slice(&noise);
                counts[usize::from(TraceId(id).shard(7).0)] += 1;
            }
            assert!(counts.iter().all(|&count| (9_000..11_000).contains(&count)), "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn a_shard_is_always_in_range(bytes: [u8; 16], shards in 1u16..) {
            prop_assert!(TraceId(bytes).shard(shards).0 < shards);
        }
    }
}
