//! Everything that can be wrong with bytes from the network. Never says what to do about it.

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the protobuf wire form of the message it should be.
    #[error("malformed protobuf at byte {position}: {what}")]
    Malformed {
        /// How far the reader had come.
        position: usize,
        /// The rule that is broken.
        what: &'static str,
    },
    /// More bytes than the limit allows, counted after decompression.
    #[error("body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// Not OTLP/JSON.
    #[error("malformed OTLP/JSON: {cause}")]
    Json {
        /// What the JSON parser or the field's type objects to, with line and column.
        cause: serde_json::Error,
    },
    /// The compressed stream is damaged, truncated or followed by something else.
    #[error("bad {encoding} body: {what}")]
    BadCompression {
        /// `gzip` or `zstd`.
        encoding: &'static str,
        /// What the decompressor objects to.
        what: String,
    },
    /// The body holds no span at a place where one was asked for.
    #[error("no span of {length} bytes at byte {position} of the body")]
    NoSuchSpan {
        /// Where it should begin.
        position: u32,
        /// How long it should be.
        length: u32,
    },
}

impl Error {
    /// Whether the sender should send less at a time, rather than something else.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooLarge { .. })
    }
}
