//! What can go wrong while measuring. Never what a measurement found: that is a result.

use std::io;
use std::path::PathBuf;

use crate::ledger;

/// Every failure of this program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file could not be read or written.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something of the system did not work.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Bytes of an answer are not what they should be.
    #[error("{what} is malformed")]
    Malformed {
        /// What was read.
        what: &'static str,
    },
    /// Options that cannot be meant together.
    #[error("{0}")]
    Options(String),
    /// No connection within the time given.
    #[error("cannot connect to {endpoint}: {cause}")]
    Connect {
        /// Where to.
        endpoint: String,
        /// Why.
        cause: String,
    },
    /// The connection broke or the exchange did not end in time.
    #[error("exchange failed: {0}")]
    Exchange(String),
    /// The appliance answered with an error.
    #[error("the appliance answered {code}: {message}")]
    Answer {
        /// Its status.
        code: String,
        /// Its words.
        message: String,
    },
    /// A ledger does not come from this version.
    #[error("ledger {path}")]
    Ledger {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ledger::Unreadable,
    },
    /// A thread of the generator ended without a result.
    #[error("a generator thread ended early")]
    ThreadLost,
    /// A room under test failed.
    #[error("{stage} failed: {cause}")]
    Stage {
        /// Which stage.
        stage: &'static str,
        /// Its words.
        cause: String,
    },
}
