//! What can go wrong with a question. Damage in one place is no error while the rest can answer.

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cursor was not made by this version of the engine, or was altered.
    #[error("cursor is not one that an earlier page returned")]
    BadCursor,
    /// Parts of the trace are in the archive, and none of them could be read.
    #[error("the trace is damaged in the archive")]
    Damaged(#[source] store_archive::Error),
    /// The trace's fragments could not be put together.
    #[error("the trace's spans cannot be decoded")]
    Spans(#[source] ingest_otlp::Error),
}
