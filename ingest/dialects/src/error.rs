//! Everything that can be wrong with a body. How to answer it is asked of the error, in the words of HTTP or gRPC.

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a JSON array of Zipkin spans.
    #[error("malformed zipkin json: {cause}")]
    Json {
        /// What the parser objects to, with line and column.
        #[source]
        cause: serde_json::Error,
    },
    /// Not the protobuf wire form.
    #[error("malformed protobuf: {cause}")]
    Protobuf {
        /// What the parser objects to.
        #[source]
        cause: prost::DecodeError,
    },
    /// A known protobuf field is there in another form than its own.
    #[error("malformed protobuf: field {number} has the wrong wire type")]
    WrongWireType {
        /// The field.
        number: u32,
    },
    /// Not the Thrift wire form, or not that of a Jaeger batch.
    #[error("malformed thrift at byte {position}: {what}")]
    Thrift {
        /// How far the reader had come.
        position: usize,
        /// The rule that is broken.
        what: &'static str,
    },
    /// More bytes of OTLP than the limit allows.
    #[error("spans take more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
}

impl Error {
    /// Whether the sender should send less at a time, rather than something else.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooLarge { .. })
    }

    /// 413 or 400. The message goes beside it as plain text.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        if self.is_too_large() { 413 } else { 400 }
    }

    /// `RESOURCE_EXHAUSTED` or `INVALID_ARGUMENT`. Senders repeat neither.
    #[must_use]
    pub fn grpc_status(&self) -> u8 {
        if self.is_too_large() { 8 } else { 3 }
    }
}
