//! What can go wrong with the bytes of an index. Owns no policy: whoever opened the segment knows its path.

/// Why an index cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes end inside something.
    #[error("ends early at byte {position}")]
    Truncated {
        /// Where the reader stood.
        position: usize,
    },
    /// The bytes contradict themselves.
    #[error("{what} is damaged")]
    Corrupt {
        /// Which part.
        what: &'static str,
    },
    /// A posting list is not a roaring bitmap.
    #[error("a posting list is damaged")]
    Postings(#[source] std::io::Error),
    /// The dictionary or the postings would pass 4 GiB, which the block table cannot address.
    #[error("index of more than {bytes} bytes is too large")]
    TooLarge {
        /// How large it is so far.
        bytes: usize,
    },
}
