//! How long the receiving thread runs before others of its CPU may. Sets that, and nothing else.
#![expect(unsafe_code, reason = "rustix has no sched_setattr")]

use std::io;
use std::mem;
use std::time::Duration;

/// Everybody's is 1.4 ms on two CPUs and 2.8 ms from eight on, rounded up to the timer's ticks. A thread that asks for less goes
/// first when there is something for it: the shard and the archiver of its core always have something to do, and
/// acknowledgements waited for the end of their turns.
const SLICE: Duration = Duration::from_micros(300);

/// Asks for short turns of this thread, of which it gets the more: Linux 6.12 (`sched_runtime` of an ordinary thread, `sched(7)`);
/// older kernels ignore the number. A wish, not a need: failing is logged. Threads of a class that somebody chose stay in it.
pub(crate) fn shorten() {
    if let Err(error) = try_shorten() {
        tracing::debug!(%error, "receiver thread keeps the usual time slice");
    }
}

fn try_shorten() -> io::Result<()> {
    let mut attributes = get()?;
    if attributes.sched_policy == libc::SCHED_OTHER.cast_unsigned() {
        attributes.sched_runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
        set(&attributes)?;
    }
    Ok(())
}

/// The scheduler's attributes of this thread.
fn get() -> io::Result<libc::sched_attr> {
    // SAFETY: a struct of integers, for which all zeroes are a value.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    let size = u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0);
    // SAFETY: the kernel writes no more than `size` bytes to `attributes`, which is so large and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the struct says it has: `get` filled that in.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_thread_gets_short_turns_and_keeps_the_rest_of_its_place() {
        thread::spawn(|| {
            rustix::process::nice(3).unwrap();
            let before = get().unwrap();
            try_shorten().unwrap();
            let after = get().unwrap();
            assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
            assert_eq!(after.sched_nice, 3);
            if before.sched_runtime == 0 {
                eprintln!("SKIPPED: this kernel (before 6.12) gives ordinary threads no slices of their own");
            } else {
                assert_eq!(after.sched_runtime, 300_000);
            }
        })
        .join()
        .unwrap();
    }
}
