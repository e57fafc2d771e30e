//! The drivers on real sockets, in front of an intake that only remembers. Nothing here touches a disk.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as the test does")]
#![expect(clippy::duplicate_mod, reason = "the same tests run against each driver")]

mod differential;
mod epoll;
mod portable;
mod uring;
