//! Memory for bodies, taken from where bodies have been before. A body lives for seconds and is let go on another thread, so
//! from an allocator the next one mostly gets pages that nobody has touched, and clearing those cost the kernel more than
//! everything else that happens to a body here.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};

/// Smaller pieces of memory are the allocator's: it is good at those.
const POOLED_BYTES_MIN: usize = 16 << 10;

/// Larger ones are rare.
const POOLED_BYTES_MAX: usize = 1 << 20;

/// Sizes between two powers of two; the slack of a body is a ninth of it at the most. The allocator has these sizes, too.
const STEPS: usize = 8;

const CLASSES: usize = (POOLED_BYTES_MAX / POOLED_BYTES_MIN).ilog2() as usize * STEPS + 1;

/// Where a body can begin so that a disk takes it from where it lies. Pooled memory has so much more than is asked for.
pub(crate) const ALIGNMENT: usize = 512;

/// Free memory, by size class.
type Free = [Vec<Vec<u8>>; CLASSES];

/// What of a pool all threads see.
#[derive(Debug)]
struct Home {
    /// What came back.
    returned: Mutex<Free>,
    /// Free memory, here and with the receiving thread. What is beyond `bytes_max` goes back to the allocator.
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Home {
    /// Whether memory of so many bytes is kept; then it counts from now on.
    fn keeps(&self, bytes: usize) -> bool {
        let fits = |held: usize| held.checked_add(bytes).filter(|&sum| sum <= self.bytes_max);
        // Relaxed: the number guards no other memory.
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// One receiving thread's memory for bodies.
#[derive(Debug)]
pub(crate) struct Pool {
    free: RefCell<Free>,
    home: Arc<Home>,
}

impl Pool {
    /// Keeps up to `bytes_max` of free memory.
    pub(crate) fn new(bytes_max: usize) -> Rc<Self> {
        let none = || std::array::from_fn(|_| Vec::new());
        let returned = Mutex::new(none());
        let home = Arc::new(Home { returned, bytes: AtomicUsize::new(0), bytes_max });
        Rc::new(Self { free: RefCell::new(none()), home })
    }

    /// How much memory is taken for so many bytes.
    pub(crate) fn bytes_for(bytes: usize) -> usize {
        class_of(bytes).map_or(bytes, bytes_of)
    }

    /// Empty memory for `bytes`, or somewhat more; also behind [`body_start`].
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        let Some(class) = class_of(bytes) else { return Vec::with_capacity(bytes) };
        let mut free = self.free.borrow_mut();
        if free[class].is_empty() {
            self.fetch(&mut free);
        }
        let Some(memory) = free[class].pop() else { return Vec::with_capacity(bytes_of(class)) };
        self.home.bytes.fetch_sub(memory.capacity(), Ordering::Relaxed);
        memory
    }

    /// Takes over what came back. Not at the price of waiting: then the allocator has to help out.
    fn fetch(&self, free: &mut Free) {
        let Ok(mut returned) = self.home.returned.try_lock() else { return };
        for (ours, theirs) in free.iter_mut().zip(&mut *returned) {
            if ours.is_empty() {
                mem::swap(ours, theirs);
            } else {
                ours.append(theirs);
            }
        }
    }

    /// Takes memory back that nobody has seen.
    pub(crate) fn give(&self, mut memory: Vec<u8>) {
        if let Some(class) = class_of_memory(&memory)
            && self.home.keeps(memory.capacity())
        {
            memory.clear();
            self.free.borrow_mut()[class].push(memory);
        }
    }

    /// What was filled from `start` on, shared; its memory comes back when the last one has let go of it.
    pub(crate) fn share(&self, bytes: Vec<u8>, start: usize) -> Bytes {
        match class_of_memory(&bytes) {
            Some(class) => Bytes::from_owner(Lent { bytes, start, class, home: Arc::clone(&self.home) }),
            None => {
                let mut body = Bytes::from(bytes);
                body.advance(start);
                body
            }
        }
    }
}

/// Where in this memory a body can begin so that a disk takes it from there.
pub(crate) fn body_start(memory: &Vec<u8>) -> usize {
    match class_of_memory(memory) {
        // Alignment cannot be had in a few environments; then every place is as good.
        Some(_) => memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT),
        None => 0,
    }
}

/// Memory of a pool, in use.
struct Lent {
    bytes: Vec<u8>,
    start: usize,
    class: usize,
    home: Arc<Home>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut memory = mem::take(&mut self.bytes);
        if self.home.keeps(memory.capacity()) {
            memory.clear();
            self.home.returned.lock().unwrap_or_else(PoisonError::into_inner)[self.class].push(memory);
        }
    }
}

/// The class whose memory holds so many bytes from an aligned place on, with the least slack; `None` for what is not pooled.
fn class_of(bytes: usize) -> Option<usize> {
    let needed = bytes.saturating_add(ALIGNMENT);
    if !(POOLED_BYTES_MIN..=POOLED_BYTES_MAX).contains(&needed) {
        return None;
    }
    let base = needed.ilog2() as usize;
    let power = 1 << base;
    let steps = (needed - power).div_ceil(power / STEPS);
    Some((base - POOLED_BYTES_MIN.ilog2() as usize) * STEPS + steps)
}

/// The class that this memory was made for, if it came from a pool.
fn class_of_memory(memory: &Vec<u8>) -> Option<usize> {
    let class = class_of(memory.capacity().checked_sub(ALIGNMENT)?)?;
    (bytes_of(class) == memory.capacity()).then_some(class)
}

/// How much memory a class has.
fn bytes_of(class: usize) -> usize {
    let power = POOLED_BYTES_MIN << (class / STEPS);
    power + power / STEPS * (class % STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_what_it_is_taken_for_with_little_slack() {
        let (least, most) = (POOLED_BYTES_MIN - ALIGNMENT, POOLED_BYTES_MAX - ALIGNMENT);
        for bytes in (least..=most).step_by(97) {
            let room = bytes_of(class_of(bytes).unwrap()) - ALIGNMENT;
            assert!(room >= bytes && room - bytes <= room / 9 + ALIGNMENT, "{bytes} in {room}");
        }
        for class in 0..CLASSES {
            assert_eq!(class_of_memory(&Vec::with_capacity(bytes_of(class))), Some(class));
        }
        assert_eq!((class_of(least - 1), class_of(most + 1)), (None, None));
    }

    #[test]
    fn a_body_that_begins_where_a_disk_likes_it_fits_all_the_same() {
        let pool = Pool::new(0);
        for bytes in [POOLED_BYTES_MIN, 200_000, POOLED_BYTES_MAX - ALIGNMENT] {
            let mut memory = pool.take(bytes);
            let (start, room) = (body_start(&memory), memory.capacity());
            memory.resize(start, 0);
            memory.resize(start + bytes, 7);
            assert_eq!(memory.capacity(), room, "it did not have to grow");
            let body = pool.share(memory, start);
            assert!(body.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert_eq!(body, vec![7; bytes]);
        }
        assert_eq!(body_start(&pool.take(10_000)), 0);
    }

    #[test]
    fn memory_comes_back_from_another_thread() {
        let pool = Pool::new(POOLED_BYTES_MAX);
        let mut memory = pool.take(200_000);
        memory.extend_from_slice(b"body");
        let place = memory.as_ptr();
        let bytes = pool.share(memory, 0);
        let part = bytes.slice(1..);
        assert_eq!(part, "ody");
        drop(bytes);
        let other = pool.take(200_000);
        assert_ne!(other.as_ptr(), place, "somebody still has it");
        std::thread::spawn(move || drop(part)).join().unwrap();
        let again = pool.take(200_000);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn no_more_is_kept_than_was_agreed() {
        let each = bytes_of(CLASSES - 1);
        let pool = Pool::new(3 * each);
        let held = || pool.home.bytes.load(Ordering::Relaxed);
        let many: Vec<_> = (0..5).map(|_| pool.share(pool.take(POOLED_BYTES_MAX - ALIGNMENT), 0)).collect();
        drop(many);
        assert_eq!(held(), 3 * each);
        let one = pool.take(POOLED_BYTES_MAX - ALIGNMENT);
        assert_eq!(held(), 2 * each);
        let another = pool.share(Vec::with_capacity(each), 0);
        pool.give(one);
        drop(another);
        assert_eq!(held(), 3 * each);
        assert_eq!(pool.free.borrow()[CLASSES - 1].len(), 3, "what was fetched and not taken stays here");
    }
}
