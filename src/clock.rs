//! The two clocks. The only place of the appliance that reads them; everything below is told the time.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use store_model::{Monotonic, UnixNanos};

static START: OnceLock<Instant> = OnceLock::new();

/// Nanoseconds since the process first asked; never goes back, whatever happens to the wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the rim")]
pub(crate) fn monotonic() -> Monotonic {
    let elapsed = Instant::now().duration_since(*START.get_or_init(Instant::now));
    Monotonic(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the rim")]
pub(crate) fn unix() -> UnixNanos {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixNanos(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
}

/// Waits; for retries against disks and full queues, where nothing else could wake the thread.
#[expect(clippy::disallowed_methods, reason = "this is the rim")]
pub(crate) fn sleep(span: Duration) {
    std::thread::sleep(span);
}
