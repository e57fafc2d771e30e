//! The allocator and its one setting; with the feature `count-allocations`, which thread asks it how often. Owns no memory
//! itself.
#![expect(unsafe_code, reason = "the allocator's options are reached through its C interface only")]

use std::ffi::{c_int, c_long};

/// Spans arrive and leave by the million; the default allocator's arenas would hold on to what they leave.
#[cfg(not(feature = "count-allocations"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The same, counted.
#[cfg(feature = "count-allocations")]
#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// `mi_option_purge_delay` of mimalloc 2 and 3 (`mimalloc.h`); the test below notices when it moves.
const PURGE_DELAY: c_int = 15;

/// How long freed memory waits before it goes back to the system, in milliseconds. Bodies live for seconds, so what they
/// leave is wanted again at once; giving it back after the default 10 ms measured as a seventh of all processor time,
/// spent by the kernel on clearing pages.
const PURGE_DELAY_MS: c_long = -1;

/// Under a smaller budget than this, what lies unused counts for more than the time that clearing pages takes.
const SMALL_BUDGET_BYTES: u64 = 1 << 30;

/// As [`PURGE_DELAY_MS`], under a small budget: what a second brings and takes is still used again at once.
const SMALL_PURGE_DELAY_MS: c_long = 1_000;

/// Sets the allocator up; called first thing.
pub(crate) fn init() {
    // SAFETY: any option number and value are legal, and the call only stores the value.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_DELAY_MS) };
}

/// Suits the allocator to the memory that there may be.
pub(crate) fn suit(budget_bytes: u64) {
    if budget_bytes < SMALL_BUDGET_BYTES {
        // SAFETY: as in `init`; threads that are there already see the new value with their next free.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, SMALL_PURGE_DELAY_MS) };
    }
}

/// Allocations and reallocations so far, by the name of the thread; `None` in a build that does not count.
#[cfg(feature = "count-allocations")]
pub(crate) fn counts() -> Option<Vec<(String, u64)>> {
    Some(counting::counts())
}

/// As above.
#[cfg(not(feature = "count-allocations"))]
pub(crate) fn counts() -> Option<Vec<(String, u64)>> {
    None
}

/// For `bench/steady.sh`, never for production: a shared cell is touched with every allocation.
#[cfg(feature = "count-allocations")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout};
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

    use mimalloc::MiMalloc;

    /// Threads that are told apart; later ones share the last place. The appliance has six a core and a few more.
    const THREADS: usize = 256;

    /// One thread. It cannot be named here, where nothing may allocate, so its number is kept for whoever asks later.
    struct Place {
        thread: AtomicI32,
        count: AtomicU64,
    }

    static PLACES: [Place; THREADS] =
        [const { Place { thread: AtomicI32::new(0), count: AtomicU64::new(0) } }; THREADS];
    static TAKEN: AtomicUsize = AtomicUsize::new(0);

    /// No place yet.
    const NOWHERE: usize = usize::MAX;

    thread_local! {
        // Without a destructor and without an initialiser that runs: it can be had at every moment of a thread.
        static PLACE: Cell<usize> = const { Cell::new(NOWHERE) };
    }

    /// Counts, and leaves the work to mimalloc.
    pub(super) struct Counting;

    fn count() {
        let mut place = PLACE.get();
        if place == NOWHERE {
            // Relaxed here and below: the numbers guard no other memory.
            place = TAKEN.fetch_add(1, Ordering::Relaxed).min(THREADS - 1);
            PLACE.set(place);
            PLACES[place].thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        }
        PLACES[place].count.fetch_add(1, Ordering::Relaxed);
    }

    // SAFETY: every call goes to mimalloc as it came, and mimalloc keeps the trait's promises.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count();
            // SAFETY: the caller's promise is passed on.
            unsafe { MiMalloc.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            count();
            // SAFETY: as above.
            unsafe { MiMalloc.alloc_zeroed(layout) }
        }

        unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
            count();
            // SAFETY: as above; what was allocated was so by mimalloc.
            unsafe { MiMalloc.realloc(at, layout, bytes) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            // SAFETY: as above.
            unsafe { MiMalloc.dealloc(at, layout) }
        }
    }

    /// By name; threads that have ended stand together.
    pub(super) fn counts() -> Vec<(String, u64)> {
        let mut by_name = BTreeMap::new();
        for Place { thread, count } in &PLACES[..TAKEN.load(Ordering::Relaxed).min(THREADS)] {
            let thread = thread.load(Ordering::Relaxed);
            let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
            let name = name.map_or_else(|_gone| "ended".to_owned(), |name| name.trim_end().to_owned());
            *by_name.entry(name).or_insert(0) += count.load(Ordering::Relaxed);
        }
        by_name.into_iter().collect()
    }

    #[cfg(test)]
    mod tests {
        use std::thread;

        #[test]
        fn allocations_count_for_the_thread_that_asks() {
            let of = |name: &str| super::counts().into_iter().find(|(known, _)| known == name);
            let asking = thread::Builder::new().name("asking".to_owned()).spawn(move || {
                let before = of("asking").map_or(0, |(_, count)| count);
                let kept: Vec<Box<u64>> = (0..100).map(Box::new).collect();
                let after = of("asking").expect("a thread that has allocated is known").1;
                assert!(after - before >= kept.len() as u64, "{before} before, {after} after");
            });
            asking.unwrap().join().unwrap();
        }
    }
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
