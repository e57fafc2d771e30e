//! The portable driver on real sockets, in front of an intake that only remembers. Nothing here touches a disk.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as the test does")]

mod answers;
mod lifecycle;
mod limits;
mod support;
