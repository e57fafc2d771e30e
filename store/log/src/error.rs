//! What can go wrong with a partition, as facts. Logs nothing: whoever handles an error does that.

use std::io;
use std::path::{Path, PathBuf};

use store_model::{InvalidTenant, Offset};

/// Why an operation on a partition failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that once were right are not any more. The file is kept as it is.
    #[error("{} is damaged at byte {position}: {reason}; lost offsets from {first} to before {end}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// The first byte in doubt.
        position: u64,
        /// What does not fit.
        reason: String,
        /// The first offset that cannot be read because of it.
        first: Offset,
        /// The first offset after those.
        end: Offset,
    },
    /// A write or a sync failed before; nothing is written until [`Writer::reopen`](crate::Writer::reopen) succeeds.
    #[error("partition refuses writes after a failed write or sync")]
    Poisoned,
    /// The disk is full. Nothing of the commit stays, and the same commit may be tried again later.
    #[error("no space left to {operation} {}", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A record is not of the form its topic has.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl Error {
    /// Whether the same call may succeed later without reopening the partition.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// Wraps what the system said, `NoSpace` apart from the rest.
    pub(crate) fn io(path: &Path, operation: &'static str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if is_no_space(&source) {
            Self::NoSpace { path, operation, source }
        } else {
            Self::Io { path, operation, source }
        }
    }

    /// As [`Error::io`] where running out of space leaves a file in doubt and so is no different from any failure.
    pub(crate) fn fatal(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), operation, source }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

pub(crate) fn is_no_space(source: &io::Error) -> bool {
    matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why the payload of a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The payload ends inside its own head.
    #[error("record of {bytes} bytes ends inside its head")]
    TooShort {
        /// Its length.
        bytes: usize,
    },
    /// Written by a version this one does not know.
    #[error("record version {version} is not known")]
    UnknownVersion {
        /// The number found.
        version: u8,
    },
    /// The encoding's number means nothing here.
    #[error("encoding {code} is not known")]
    UnknownEncoding {
        /// The number found.
        code: u8,
    },
    /// The tenant's name breaks the rule for names.
    #[error("tenant of the record is not valid")]
    Tenant(#[from] InvalidTenant),
}
