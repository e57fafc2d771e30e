//! Decides on a trace: a pure function of its facts, the policy, what was learned of its operation, and pressure.
//!
//! Owns the hybrid of head and tail sampling and the online p95 per (service, operation). It reads no clock, draws no
//! random number and never sees a span's bytes.
//!
//! Read [`decide`] first, then [`sketch`].

mod decide;
pub mod sketch;

pub use decide::{Policy, Root, TraceFacts, decide};
pub use sketch::{Sketches, SlowPolicy};
