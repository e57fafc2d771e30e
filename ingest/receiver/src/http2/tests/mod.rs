//! The core as a whole: its rules, its bounds, and the `h2` crate as its client.

mod bounds;
mod client;
mod flow;
mod random;
mod rules;
mod splits;
mod support;
