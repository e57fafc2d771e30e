//! Memory for bodies, taken from where bodies have been before. A body lives for seconds and is let go on another thread, so
//! from an allocator the next one mostly gets pages that nobody has touched, and clearing those cost the kernel more than
//! everything else that happens to a body here.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Smaller bodies are the allocator's: it is good at those.
const POOLED_BYTES_MIN: usize = 16 << 10;

/// Larger ones are rare.
const POOLED_BYTES_MAX: usize = 1 << 20;

/// Sizes between two powers of two; the slack of a body is a fifth of it at the most.
const STEPS: usize = 4;

const CLASSES: usize = (POOLED_BYTES_MAX / POOLED_BYTES_MIN).ilog2() as usize * STEPS + 1;

/// Free memory, by size class. What is beyond `bytes_max` goes back to the allocator.
#[derive(Debug)]
struct Free {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
    bytes_max: usize,
}

impl Free {
    fn new(bytes_max: usize) -> Self {
        Self { classes: Default::default(), bytes: 0, bytes_max }
    }

    fn take(&mut self, class: usize) -> Option<Vec<u8>> {
        let memory = self.classes[class].pop()?;
        self.bytes -= memory.capacity();
        Some(memory)
    }

    fn give(&mut self, class: usize, memory: Vec<u8>) {
        if self.bytes + memory.capacity() <= self.bytes_max {
            self.bytes += memory.capacity();
            self.classes[class].push(memory);
        }
    }
}

/// One receiving thread's memory for bodies.
#[derive(Debug)]
pub(crate) struct Pool {
    free: RefCell<Free>,
    returned: Arc<Mutex<Free>>,
}

impl Pool {
    /// Keeps up to `bytes_max` of free memory here, and as much that came back.
    pub(crate) fn new(bytes_max: usize) -> Rc<Self> {
        let returned = Arc::new(Mutex::new(Free::new(bytes_max)));
        Rc::new(Self { free: RefCell::new(Free::new(bytes_max)), returned })
    }

    /// How much memory is taken for so many bytes.
    pub(crate) fn bytes_for(bytes: usize) -> usize {
        class_of(bytes).map_or(bytes, bytes_of)
    }

    /// Empty memory for `bytes`, or somewhat more.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        let Some(class) = class_of(bytes) else { return Vec::with_capacity(bytes) };
        let mut free = self.free.borrow_mut();
        if free.classes[class].is_empty() {
            self.fetch(&mut free);
        }
        free.take(class).unwrap_or_else(|| Vec::with_capacity(bytes_of(class)))
    }

    /// Takes over what came back. Not at the price of waiting: then the allocator has to help out.
    fn fetch(&self, free: &mut Free) {
        let Ok(mut returned) = self.returned.try_lock() else { return };
        if free.bytes == 0 {
            mem::swap(free, &mut returned);
            return;
        }
        for (class, memories) in returned.classes.iter_mut().enumerate() {
            memories.drain(..).for_each(|memory| free.give(class, memory));
        }
        returned.bytes = 0;
    }

    /// Takes memory back that nobody has seen.
    pub(crate) fn give(&self, mut memory: Vec<u8>) {
        if let Some(class) = class_of_memory(&memory) {
            memory.clear();
            self.free.borrow_mut().give(class, memory);
        }
    }

    /// What was filled, shared; its memory comes back when the last one has let go of it.
    pub(crate) fn share(&self, bytes: Vec<u8>) -> Bytes {
        match class_of_memory(&bytes) {
            Some(class) => Bytes::from_owner(Lent { bytes, class, home: Arc::clone(&self.returned) }),
            None => Bytes::from(bytes),
        }
    }
}

/// Memory of a pool, in use.
struct Lent {
    bytes: Vec<u8>,
    class: usize,
    home: Arc<Mutex<Free>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut memory = mem::take(&mut self.bytes);
        memory.clear();
        self.home.lock().unwrap_or_else(PoisonError::into_inner).give(self.class, memory);
    }
}

/// The class whose memory holds so many bytes with the least slack; `None` for what is not pooled.
fn class_of(bytes: usize) -> Option<usize> {
    if !(POOLED_BYTES_MIN..=POOLED_BYTES_MAX).contains(&bytes) {
        return None;
    }
    let base = bytes.ilog2() as usize;
    let power = 1 << base;
    let steps = (bytes - power).div_ceil(power / STEPS);
    Some((base - POOLED_BYTES_MIN.ilog2() as usize) * STEPS + steps)
}

/// The class that this memory was made for, if it came from a pool.
fn class_of_memory(memory: &Vec<u8>) -> Option<usize> {
    class_of(memory.capacity()).filter(|&class| bytes_of(class) == memory.capacity())
}

fn bytes_of(class: usize) -> usize {
    let power = POOLED_BYTES_MIN << (class / STEPS);
    power + power / STEPS * (class % STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_what_it_is_taken_for_with_a_fifth_of_slack_at_most() {
        for bytes in (POOLED_BYTES_MIN..=POOLED_BYTES_MAX).step_by(97) {
            let held = bytes_of(class_of(bytes).unwrap());
            assert!(held >= bytes && held - bytes <= held / 5, "{bytes} in {held}");
        }
        for class in 0..CLASSES {
            assert_eq!(class_of(bytes_of(class)), Some(class));
        }
        assert_eq!((class_of(POOLED_BYTES_MIN - 1), class_of(POOLED_BYTES_MAX + 1)), (None, None));
    }

    #[test]
    fn memory_comes_back_from_another_thread() {
        let pool = Pool::new(POOLED_BYTES_MAX);
        let mut memory = pool.take(200_000);
        memory.extend_from_slice(b"body");
        let place = memory.as_ptr();
        let bytes = pool.share(memory);
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
        let pool = Pool::new(3 * POOLED_BYTES_MAX);
        let many: Vec<_> = (0..5).map(|_| pool.share(pool.take(POOLED_BYTES_MAX))).collect();
        drop(many);
        assert_eq!(pool.returned.lock().unwrap().bytes, 3 * POOLED_BYTES_MAX);
        drop(pool.take(POOLED_BYTES_MAX));
        assert_eq!(
            (pool.free.borrow().bytes, pool.returned.lock().unwrap().bytes),
            (2 * POOLED_BYTES_MAX, 0)
        );
    }
}
