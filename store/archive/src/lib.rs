//! Kept fragments: the open segment, sealed segments, and the settlement records that tie them to the journal. Decides
//! nothing about traces, reads no clock and no journal: fragments and times are handed in.
//!
//! Read in this order: [`settlement`] (the record of topic `decisions`), [`archive`] (the handle, opening, coverage),
//! [`writer`] (one per shard: insert, seal), [`snapshot`] (what queries read), then the insides: `terms` (what of a
//! fragment is indexed), `pack`, `pieces` and `prints` (how its bytes are kept), `open`, `format` (the bytes of a segment
//! file), `write`, `sealed`, `files` (names), `retention`, `pages` (a cache), `map` (the one unsafe file).

pub mod archive;
mod error;
mod files;
mod format;
mod map;
mod open;
mod pack;
mod pages;
mod pieces;
mod prints;
mod retention;
mod sealed;
pub mod settlement;
pub mod snapshot;
mod terms;
mod write;
pub mod writer;

pub use archive::{Archive, ArchiveOptions, ArchiveStats, OpenReport, SetAside};
pub use error::Error;
pub use retention::Expired;
pub use settlement::{DroppedDecision, KeptDecision, Settlement, TenantCounts};
pub use snapshot::{SegmentView, Snapshot, TermKind};
pub use store_index::Term;
pub use writer::{Sealing, ShardWriter};
