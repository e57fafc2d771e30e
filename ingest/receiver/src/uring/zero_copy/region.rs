//! The memory that a network card writes into, and the ring in which its pieces go back: mapped, registered, read and
//! written here and nowhere else. Who holds what is [`Accounts`]' to know.
#![expect(
    unsafe_code,
    reason = "a network card writes into this memory, and the kernel reads the ring beside it"
)]

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::Submitter;
use io_uring::types::{
    IORING_MEM_REGION_TYPE_USER, IORING_ZCRX_AREA_MASK, io_uring_region_desc, io_uring_zcrx_area_reg,
    io_uring_zcrx_ifq_reg, io_uring_zcrx_rqe,
};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::Queue;
use super::accounts::{Accounts, Loan, Nonsense, room};

/// The card's unit: one page.
const CHUNK_BYTES: u32 = 4 << 10;

/// What a card may fill before we give anything back: 16 MiB a queue.
const CHUNKS: u32 = 4_096;

/// One mapping, given back when dropped.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    bytes: usize,
}

impl Map {
    fn new(bytes: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole of what was mapped. Whoever has the mapping drops it when nobody uses it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}

/// A registered memory.
///
/// Invariant: `area` holds `CHUNKS` chunks, and `ring` two counters of four bytes at `head` and `tail` and `CHUNKS` entries
/// from `entries` on, all in bounds and aligned (checked when made). Bytes of the area that a [`Loan`] names are not written
/// to until it is repaid. The kernel pins the pages of both mappings until the ring that they are registered with is gone, so
/// a card that writes late writes to nobody's memory.
#[derive(Debug)]
pub(in crate::uring) struct Region {
    area: Map,
    ring: Map,
    head: usize,
    tail: usize,
    entries: usize,
    /// Where the next loan is repaid.
    next: u32,
    /// What the kernel calls this memory, in the upper bits of an offset.
    token: u64,
    id: u32,
    accounts: Accounts,
}

impl Region {
    /// Takes `queue` of a network card for the ring of `submitter`.
    ///
    /// # Safety
    /// This is dropped when no receive is under way on the ring.
    pub(in crate::uring) unsafe fn register(submitter: &Submitter<'_>, queue: &Queue) -> io::Result<Self> {
        let area = Map::new((CHUNKS * CHUNK_BYTES) as usize)?;
        let entry_bytes = size_of::<io_uring_zcrx_rqe>();
        let ring = Map::new(CHUNK_BYTES as usize + CHUNKS as usize * entry_bytes)?;
        let mut area_reg =
            io_uring_zcrx_area_reg { addr: area.address(), len: area.bytes as u64, ..Default::default() };
        let mut region = io_uring_region_desc {
            user_addr: ring.address(),
            size: ring.bytes as u64,
            flags: IORING_MEM_REGION_TYPE_USER,
            ..Default::default()
        };
        let mut queue_reg = io_uring_zcrx_ifq_reg {
            if_idx: queue.interface,
            if_rxq: queue.number,
            rq_entries: CHUNKS,
            area_ptr: (&raw mut area_reg).expose_provenance() as u64,
            region_ptr: (&raw mut region).expose_provenance() as u64,
            ..Default::default()
        };
        let answer = &raw mut queue_reg;
        // SAFETY: the pointer is to the value above, and nobody else has a reference to it.
        submitter.register_ifq(unsafe { &*answer })?;
        // The kernel answered in place, behind a reference that promises otherwise, so what it wrote is read as it lies.
        // SAFETY: as above.
        let answer = unsafe { answer.read_volatile() };
        // SAFETY: the value above; the kernel wrote through the pointer it was given.
        let token = unsafe { (&raw const area_reg).read_volatile() }.rq_area_token;
        let offsets = answer.offsets;
        let [head, tail, entries] = [offsets.head, offsets.tail, offsets.rqes].map(|offset| offset as usize);
        let is_inside = |offset: usize, bytes: usize, align: usize| {
            offset.is_multiple_of(align) && offset.checked_add(bytes).is_some_and(|end| end <= ring.bytes)
        };
        let fits = is_inside(head, 4, 4)
            && is_inside(tail, 4, 4)
            && is_inside(entries, CHUNKS as usize * entry_bytes, align_of::<io_uring_zcrx_rqe>())
            && answer.rq_entries == CHUNKS;
        let accounts = Accounts::new(CHUNKS as usize, CHUNK_BYTES);
        let region = Self { area, ring, head, tail, entries, next: 0, token, id: answer.zcrx_id, accounts };
        if fits {
            Ok(region)
        } else {
            Err(io::Error::other("the kernel lays out its refill ring in a new way"))
        }
    }

    /// What receives on this memory name it by.
    pub(in crate::uring) fn id(&self) -> u32 {
        self.id
    }

    pub(in crate::uring) fn bytes_total(&self) -> usize {
        self.area.bytes + self.ring.bytes
    }

    /// What a completion lent.
    pub(in crate::uring) fn lend(&mut self, offset: u64, length: u32) -> Option<Loan> {
        let lent = self.accounts.lend(offset & !IORING_ZCRX_AREA_MASK, length);
        if let Err(Nonsense) = lent {
            tracing::error!(offset, length, "the kernel lends memory that it was not given");
        }
        lent.ok()
    }

    pub(in crate::uring) fn bytes<'a>(&'a mut self, loan: &'a mut Loan) -> &'a mut [u8] {
        let offset = usize::try_from(loan.offset()).unwrap_or(usize::MAX);
        let start = self.area.start.as_ptr().wrapping_add(offset);
        // SAFETY: a loan lies in the area (checked when it was lent). The kernel lends no byte twice at a time and does not
        // write to what is lent (invariant on `Region`), and nobody else has the bytes while `loan` is borrowed.
        unsafe { slice::from_raw_parts_mut(start, loan.length() as usize) }
    }

    pub(in crate::uring) fn give_back(&mut self, loan: Loan) {
        self.accounts.give_back(loan);
        // Acquire: pairs with the kernel's release after it has read entries.
        let room = room(CHUNKS, self.counter(self.head).load(Ordering::Acquire), self.next);
        let (start, token, next) = (self.ring.start, self.token, self.next);
        let entries = start.as_ptr().wrapping_add(self.entries).cast::<io_uring_zcrx_rqe>();
        let repaid = self.accounts.repay(room, |loan| {
            let place = entries.wrapping_add((self.next & (CHUNKS - 1)) as usize);
            let entry =
                io_uring_zcrx_rqe { off: loan.offset() | token, len: loan.length(), ..Default::default() };
            // SAFETY: the place lies in the ring's entries (invariant on `Region`), and the kernel reads none at or beyond
            // the tail, of which there are at least `room`.
            unsafe { place.write(entry) };
            self.next = self.next.wrapping_add(1);
        });
        debug_assert_eq!(self.next, next.wrapping_add(repaid), "each loan repaid takes one place");
        // Release: pairs with the kernel's acquire before it reads the entries.
        self.counter(self.tail).store(self.next, Ordering::Release);
    }

    fn counter(&self, offset: usize) -> &AtomicU32 {
        let counter = self.ring.start.as_ptr().wrapping_add(offset).cast::<u32>();
        // SAFETY: four aligned bytes of the ring (invariant on `Region`), which both sides access atomically only.
        unsafe { AtomicU32::from_ptr(counter) }
    }
}
