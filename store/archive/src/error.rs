//! What can go wrong in the archive. Variants carry the path, so that a person knows where to look.

use std::path::{Path, PathBuf};

use store_model::Offset;

/// Why the archive cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A segment's bytes are not those that were written.
    #[error("{what} of segment {path} is damaged")]
    Damaged {
        /// Which segment.
        path: PathBuf,
        /// Which part of it.
        what: &'static str,
        /// What the decoder said, if the checksum was right.
        #[source]
        cause: Option<store_index::Error>,
    },
    /// One page of a segment is damaged; the rest can be read.
    #[error("page {page} of segment {path} is damaged: {row_count} rows from {first_row} on cannot be read")]
    DamagedPage {
        /// Which segment.
        path: PathBuf,
        /// Which page.
        page: usize,
        /// Its first row.
        first_row: u32,
        /// How many rows it holds.
        row_count: u32,
    },
    /// A newer version wrote the segment.
    #[error("segment {path} has version {version}, which this program does not know")]
    UnknownVersion {
        /// Which segment.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The open segment cannot be sealed for fewer settlement records than are covered already.
    #[error("cannot seal up to settlement record {covered_to}, records below {covered} are covered already")]
    CoverageGoesBack {
        /// Where coverage ends.
        covered: Offset,
        /// Where it was to end.
        covered_to: Offset,
    },
    /// The index of the open segment cannot be written.
    #[error("cannot write the index of segment {path}")]
    Index {
        /// Which segment.
        path: PathBuf,
        /// Why.
        #[source]
        source: store_index::Error,
    },
    /// A settlement record is not what was written.
    #[error("settlement record is damaged")]
    Settlement(#[source] store_index::Error),
    /// A newer version wrote the settlement record.
    #[error("settlement record has version {0}, which this program does not know")]
    SettlementVersion(u8),
}

impl Error {
    /// Whether trying again later may work, with nothing lost in between.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    /// Whether bytes were lost or altered on disk.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DamagedPage { .. } | Self::Settlement(_))
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, what: &'static str) -> Self {
        Self::Damaged { path: path.to_owned(), what, cause: None }
    }

    pub(crate) fn undecodable(path: &Path, what: &'static str) -> impl Fn(store_index::Error) -> Self {
        move |cause| Self::Damaged { path: path.to_owned(), what, cause: Some(cause) }
    }
}
