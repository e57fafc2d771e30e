//! The live traces of one shard: from span summaries to decisions, out of order, late, doubled or never finished.
//!
//! A [`Shard`] is a deterministic state machine. Batches of summaries go in through [`Shard::take`]; once per turn
//! [`Shard::end_turn`] takes every decision that is due and returns a [`Turn`]. It owns no thread, no clock and no
//! file, and it never looks at a span's bytes: it only remembers where they lie. [`gather`] fetches the bytes of
//! what is kept.
//!
//! Read in this order: [`batch`] (what goes in and comes out), [`shard`], then its parts: `table`, `cells`, `slab`, `wheel`,
//! `bodies`, `ranges`, `remembered`, `in_flight`, `tally`, and [`resume`] (how a shard finds back after a crash).

pub mod batch;
mod bodies;
mod cells;
pub mod gather;
mod in_flight;
mod prefetch;
mod ranges;
mod remembered;
pub mod resume;
pub mod shard;
mod slab;
mod table;
mod tally;
mod wheel;

pub use batch::{Batch, DroppedTrace, KeptSpan, KeptTrace, Settled, Turn};
pub use gather::{BodySource, Gathered, gather};
pub use remembered::KeptMemory;
pub use resume::{Observed, Resume};
pub use shard::{Gauges, Limits, LiveSpans, Shard, ShardConfig, Timing};
