//! The tag index of one segment: terms to roaring bitmaps of rows. Bytes and values only: no files, no clocks.
//!
//! Read in this order: [`term`] (what can be asked for, and its bytes), [`builder`] (in memory, while a segment is
//! open), [`write()`] and [`reader`] (the bytes of a sealed segment's index), [`codec`] (the integers underneath).
//! The index has no checksum of its own: the segment's footer holds one over all of it.

pub mod builder;
pub mod codec;
mod error;
pub mod reader;
pub mod term;
mod write;

pub use builder::{IndexBuilder, TermNumber};
pub use error::Error;
pub use reader::IndexReader;
pub use term::Term;
pub use write::write;
