//! Partitions of segments on disk: group commit, recovery, retention.
//!
//! A partition is an ordered log of opaque records with dense offsets and one writer. Read in this order: [`disk`] (the
//! seam to the system), `format` (every byte), `segment` and `recovery` (reading and judging them), [`stage`] and
//! [`writer`], [`reader`], [`retention`], and [`record`] (what a record of topic `spans` is). Reads no clock: `now` comes in.

mod direct;
pub mod disk;
mod error;
mod format;
pub mod reader;
pub mod record;
mod recovery;
pub mod retention;
mod segment;
#[cfg(test)]
mod simulation;
pub mod stage;
mod view;
pub mod writer;

#[cfg(any(test, feature = "sim"))]
pub use disk::sim;
pub use disk::{Disk, DiskFile, RealDisk, RealFile};
pub use error::{Error, FormatError};
pub use reader::{Reader, Scan, SegmentInfo};
pub use record::BodyRecord;
pub use recovery::Quarantined;
pub use retention::{Remover, Retention, choose, over_budget};
pub use stage::Stage;
pub use writer::{Committed, Flight, PartitionOptions, Recovery, Sync, Truncated, Writer};
