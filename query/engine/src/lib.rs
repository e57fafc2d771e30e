//! Answers questions over live traces, the open segment and sealed segments, as if they were one place.
//!
//! Read in this order: [`live`] (what the appliance tells of undecided traces), `conditions` (does a span match),
//! `cursor` (the order of answers), `search` (which traces make a page), `engine` (a trace by id, summaries, one answer
//! from all places), `names` (lists), `answer` (budgets, and what an answer misses).
//!
//! The engine owns no data, starts no thread and reads no clock.

mod answer;
mod conditions;
mod cursor;
mod engine;
mod error;
pub mod live;
mod names;
mod search;
mod summary;

pub use conditions::Conditions;
pub use cursor::Cursor;
pub use engine::{Engine, Limits, Trace};
pub use error::Error;
pub use live::{Live, LiveTrace};
pub use names::Names;
pub use search::{Page, Search};
pub use summary::TraceSummary;
