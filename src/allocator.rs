//! The allocator and its one setting. Owns no memory itself.
#![expect(unsafe_code, reason = "the allocator's options are reached through its C interface only")]

use std::ffi::{c_int, c_long};

/// Spans arrive and leave by the million; the default allocator's arenas would hold on to what they leave.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2 and 3 (`mimalloc.h`); the test below notices when it moves.
const PURGE_DELAY: c_int = 15;

/// How long freed memory waits before it goes back to the system, in milliseconds. Bodies live for seconds, so what they
/// leave is wanted again at once; giving it back after the default 10 ms measured as a seventh of all processor time,
/// spent by the kernel on clearing pages.
const PURGE_DELAY_MS: c_long = -1;

/// Sets the allocator up; called first thing.
pub(crate) fn init() {
    // SAFETY: any option number and value are legal, and the call only stores the value.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_DELAY_MS) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_option_is_the_purge_delay() {
        // SAFETY: any option number is legal, and the call only reads.
        let default = unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) };
        // It is the only option whose default is ten milliseconds (1,000 in builds that never called `init`: version 3).
        assert!(default == 10 || default == 1_000, "option {} has the default {default}", super::PURGE_DELAY);
    }
}
