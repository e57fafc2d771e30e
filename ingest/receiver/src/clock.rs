//! The clock that drives the timers of the thread-per-core drivers. Only they read it: everything else is told the time.

use store_model::Monotonic;

/// Now.
pub(crate) fn monotonic() -> Monotonic {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos =
        now.tv_sec.unsigned_abs().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.unsigned_abs());
    Monotonic(nanos)
}
