//! The memory that the kernel receives into: one mapping, made at start and never grown, cut into equal buffers that wait
//! for data in a ring of their own. Reads no socket.
#![expect(unsafe_code, reason = "the kernel writes into this memory and reads the ring beside it")]

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The one group of buffers on a ring.
pub(super) const GROUP: u16 = 0;

/// The kernel wants the ring of buffers to begin a page.
const PAGE_BYTES: usize = 4 << 10;

/// How much memory, in how many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// A power of two.
    pub(super) count: u16,
    pub(super) bytes_each: u32,
}

impl Plan {
    /// Of the ring in which buffers wait.
    fn entries_bytes(self) -> usize {
        (usize::from(self.count) * size_of::<BufRingEntry>()).next_multiple_of(PAGE_BYTES)
    }

    /// Of everything.
    pub(super) fn bytes_total(self) -> usize {
        self.entries_bytes() + usize::from(self.count) * self.bytes_each as usize
    }
}

/// A buffer with received bytes. Whoever has it has the buffer; the kernel gets it again with [`Buffers::give_back`].
#[derive(Debug)]
pub(super) struct Taken {
    id: u16,
    length: usize,
}

/// All buffers of one ring.
///
/// Invariant: `map` covers `entries_bytes` for the ring and then `plan.count * plan.bytes_each` bytes for the buffers,
/// readable and writable, until this is dropped. A buffer belongs to exactly one side: to us while a [`Taken`] names it, to
/// the kernel otherwise. Whoever registered this drops it only when no operation is left that might write.
#[derive(Debug)]
pub(super) struct Buffers {
    map: NonNull<u8>,
    map_bytes: usize,
    entries_bytes: usize,
    plan: Plan,
    /// Where the next buffer is given back.
    tail: u16,
}

impl Buffers {
    pub(super) fn new(plan: Plan) -> io::Result<Self> {
        assert!(plan.count.is_power_of_two(), "a ring of buffers has a power of two of places");
        let (entries_bytes, map_bytes) = (plan.entries_bytes(), plan.bytes_total());
        // Faulted in now: what the steady path needs is there before the first byte comes.
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let map =
            unsafe { mmap_anonymous(ptr::null_mut(), map_bytes, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        let map = NonNull::new(map.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut buffers = Self { map, map_bytes, entries_bytes, plan, tail: 0 };
        (0..plan.count).for_each(|id| buffers.enqueue(id));
        buffers.publish();
        Ok(buffers)
    }

    pub(super) fn count(&self) -> u16 {
        self.plan.count
    }

    pub(super) fn bytes_total(&self) -> usize {
        self.map_bytes
    }

    /// Makes the buffers known to a ring.
    ///
    /// # Safety
    /// This is dropped after the ring's last operation that may take a buffer.
    pub(super) unsafe fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let entries = self.map.as_ptr().expose_provenance() as u64;
        // SAFETY: the mapping is there until this is dropped, and then nothing uses it any more (the caller's promise).
        unsafe { submitter.register_buf_ring_with_flags(entries, self.plan.count, GROUP, 0) }
    }

    /// The buffer that a completion brought.
    ///
    /// # Safety
    /// The completion of a receive on the ring that this is registered with named buffer `id` and `length`, and has been
    /// asked about once.
    pub(super) unsafe fn taken(&self, id: u16, length: usize) -> Taken {
        assert!(id < self.plan.count, "the kernel brings a buffer that it was given");
        assert!(length <= self.plan.bytes_each as usize, "the kernel fills no more than a buffer");
        Taken { id, length }
    }

    pub(super) fn bytes<'a>(&'a mut self, taken: &'a mut Taken) -> &'a mut [u8] {
        let start = self.place(taken.id).cast_mut();
        // SAFETY: the range lies in the mapping (checked by `taken`), it was zeroed when it was mapped, and neither the kernel
        // nor anybody else has it while `taken` is borrowed (invariant on `Buffers`).
        unsafe { slice::from_raw_parts_mut(start, taken.length) }
    }

    /// Gives a buffer to the kernel again.
    pub(super) fn give_back(&mut self, taken: Taken) {
        self.enqueue(taken.id);
        self.publish();
    }

    fn place(&self, id: u16) -> *const u8 {
        let offset = self.entries_bytes + usize::from(id) * self.plan.bytes_each as usize;
        self.map.as_ptr().cast_const().wrapping_add(offset)
    }

    fn enqueue(&mut self, id: u16) {
        let address = self.place(id).expose_provenance() as u64;
        let index = usize::from(self.tail & (self.plan.count - 1));
        let entry = self.map.as_ptr().cast::<BufRingEntry>().wrapping_add(index);
        // SAFETY: the entry lies in the mapping's ring (invariant on `Buffers`), and the kernel reads entries below the
        // published tail only. Every bit pattern is an entry.
        let entry = unsafe { &mut *entry };
        // Field by field: in the first entry, the kernel keeps the tail where others have padding.
        entry.set_addr(address);
        entry.set_len(self.plan.bytes_each);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        let ring = self.map.as_ptr().cast::<BufRingEntry>().cast_const();
        // SAFETY: the ring begins the mapping, and its first entry was filled when this was made.
        let tail = unsafe { BufRingEntry::tail(ring) };
        // SAFETY: the tail is two aligned bytes in the mapping, which we write in this one place and the kernel only reads.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: pairs with the kernel's acquiring load before it reads the entries.
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let map = self.map.as_ptr().cast::<c_void>();
        // SAFETY: the whole of what was mapped, which nobody uses any more (invariant on `Buffers`).
        let unmapped = unsafe { munmap(map, self.map_bytes) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}
