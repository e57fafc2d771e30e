//! A span in brief: what is known of it while its bytes stay where they landed.

use crate::id::{Offset, PartitionId, SpanId, TraceId};
use crate::sampling::{Randomness, Threshold};
use crate::symbol::Symbol;
use crate::time::UnixNanos;

/// How a request body is compressed, on the wire and in the journal alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// As is.
    #[default]
    Identity,
    /// RFC 1952, possibly several members.
    Gzip,
    /// RFC 8878, possibly several frames.
    Zstd,
}

impl Encoding {
    /// The number that stands for it on disk.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Identity => 0,
            Self::Gzip => 1,
            Self::Zstd => 2,
        }
    }

    /// The encoding that `code` stands for, if this version knows it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Identity, Self::Gzip, Self::Zstd].into_iter().find(|encoding| encoding.code() == code)
    }

    /// The token of `content-encoding` and `grpc-encoding` (case does not matter); `None` for one we do not speak.
    #[must_use]
    pub fn from_token(token: &str) -> Option<Self> {
        match token.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// OTLP `Span.SpanKind`. Numbers this version does not know count as unspecified here; the span's bytes keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
#[expect(missing_docs, reason = "OTLP's own words")]
pub enum SpanKind {
    #[default]
    Unspecified = 0,
    Internal = 1,
    Server = 2,
    Client = 3,
    Producer = 4,
    Consumer = 5,
}

impl SpanKind {
    /// All kinds, by number.
    pub const ALL: [Self; 6] =
        [Self::Unspecified, Self::Internal, Self::Server, Self::Client, Self::Producer, Self::Consumer];

    /// From OTLP's number.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        usize::try_from(number).ok().and_then(|n| Self::ALL.get(n).copied()).unwrap_or_default()
    }

    /// The lower-case word used in queries and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// OTLP `Status.StatusCode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
#[expect(missing_docs, reason = "OTLP's own words")]
pub enum StatusCode {
    #[default]
    Unset = 0,
    Ok = 1,
    Error = 2,
}

impl StatusCode {
    /// From OTLP's number; an unknown one counts as unset.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Ok,
            2 => Self::Error,
            _ => Self::Unset,
        }
    }

    /// The lower-case word used in queries and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

/// Facts about a span that a decision may need, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SpanFlags(pub u8);

impl SpanFlags {
    /// The span has no parent.
    pub const ROOT: Self = Self(1);
    /// Status code ERROR.
    pub const ERROR: Self = Self(1 << 1);
    /// Earlier stages wrote `ot=th`.
    pub const HAS_THRESHOLD: Self = Self(1 << 2);
    /// A string of the span is not UTF-8; it is kept as the bytes it came as.
    pub const INVALID_UTF8: Self = Self(1 << 3);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where a span lies inside one decompressed request body: the value of its `ScopeSpans.spans` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BodyRange {
    /// First byte of the span message.
    pub position: u32,
    /// Length of the span message in bytes.
    pub length: u32,
}

/// Where a span's bytes lie for good: a record of the journal and a range of its decompressed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SpanLocation {
    /// Which partition of topic `spans`.
    pub partition: PartitionId,
    /// Which record.
    pub offset: Offset,
    /// Which bytes of its body, decompressed.
    pub range: BodyRange,
}

/// One span, as much of it as a sampling decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanSummary {
    /// The trace it belongs to.
    pub trace_id: TraceId,
    /// Its own id.
    pub span_id: SpanId,
    /// Its parent's id; zero for a root.
    pub parent_span_id: SpanId,
    /// When it began, as its sender says.
    pub start: UnixNanos,
    /// How long it took in nanoseconds; zero when its sender says it ended before it began.
    pub duration_ns: u64,
    /// R: from `ot=rv`, else from the trace id.
    pub randomness: Randomness,
    /// T of earlier stages: `ot=th`, else [`Threshold::ALWAYS`].
    pub threshold: Threshold,
    /// `service.name` of its resource.
    pub service: Symbol,
    /// Its name.
    pub operation: Symbol,
    /// Its bytes in the body it came in.
    pub range: BodyRange,
    /// Its kind.
    pub kind: SpanKind,
    /// Its status.
    pub status: StatusCode,
    /// Root, error and the like.
    pub flags: SpanFlags,
}

impl SpanSummary {
    /// When it ended; no later than time does.
    #[inline(always)]
    #[must_use]
    pub fn end(&self) -> UnixNanos {
        UnixNanos(self.start.0.saturating_add(self.duration_ns))
    }
}
