//! Who holds which piece of the memory that a network card writes into. The kernel lends a piece with each completion, any
//! number of times, and wants each loan back once. Touches no memory but its own: the ring that takes pieces back is its
//! caller's.

use std::collections::VecDeque;

/// Received bytes, on loan. They are given back with [`Accounts::give_back`] or lost until the ring is gone.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::uring) struct Loan {
    /// From the start of the memory.
    offset: u64,
    length: u32,
}

impl Loan {
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn length(&self) -> u32 {
        self.length
    }
}

/// The kernel named something that it was never given, which must not become an access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// The loans of one registered memory.
#[derive(Debug)]
pub(super) struct Accounts {
    chunk_bytes: u64,
    /// How many loans of each chunk are out.
    loans: Vec<u32>,
    /// Given back by us and not yet to the kernel, whose ring had no room.
    owed: VecDeque<Loan>,
}

impl Accounts {
    pub(super) fn new(chunks: usize, chunk_bytes: u32) -> Self {
        Self { chunk_bytes: chunk_bytes.into(), loans: vec![0; chunks], owed: VecDeque::new() }
    }

    fn chunk(&mut self, offset: u64) -> Option<&mut u32> {
        let index = usize::try_from(offset / self.chunk_bytes).ok()?;
        self.loans.get_mut(index)
    }

    /// A completion lent `length` bytes at `offset`.
    pub(super) fn lend(&mut self, offset: u64, length: u32) -> Result<Loan, Nonsense> {
        let end = (offset % self.chunk_bytes).checked_add(length.into());
        if end.is_none_or(|end| end > self.chunk_bytes) {
            return Err(Nonsense);
        }
        *self.chunk(offset).ok_or(Nonsense)? += 1;
        Ok(Loan { offset, length })
    }

    /// Its bytes have been read.
    pub(super) fn give_back(&mut self, loan: Loan) {
        self.owed.push_back(loan);
    }

    /// Puts up to `room` of what is owed into the kernel's ring; how many.
    pub(super) fn repay(&mut self, room: u32, mut put: impl FnMut(&Loan)) -> u32 {
        let mut count = 0;
        while count < room
            && let Some(loan) = self.owed.pop_front()
        {
            put(&loan);
            if let Some(loans) = self.chunk(loan.offset) {
                *loans -= 1;
            }
            count += 1;
        }
        count
    }

    /// Loans that are out, read or unread.
    #[cfg(test)]
    fn out(&self) -> usize {
        self.loans.iter().map(|&loans| loans as usize).sum()
    }
}

/// Where our side of a ring of `entries` places stands: how many more fit, given both of its ends.
pub(super) fn room(entries: u32, head: u32, tail: u32) -> u32 {
    entries.saturating_sub(tail.wrapping_sub(head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u32 = 4_096;

    #[test]
    fn what_the_kernel_was_never_given_is_nonsense() {
        let mut accounts = Accounts::new(2, CHUNK);
        assert_eq!(accounts.lend(2 * u64::from(CHUNK), 1), Err(Nonsense), "beyond the memory");
        assert_eq!(accounts.lend(u64::MAX, 1), Err(Nonsense));
        assert_eq!(accounts.lend(4_000, 97), Err(Nonsense), "across two chunks");
        assert_eq!(accounts.lend(0, u32::MAX), Err(Nonsense));
        assert_eq!(accounts.out(), 0);
        assert!(accounts.lend(4_000, 96).is_ok());
    }

    #[test]
    fn a_ring_has_room_for_what_is_not_between_its_ends() {
        assert_eq!(room(8, 0, 0), 8);
        assert_eq!(room(8, 3, 11), 0);
        assert_eq!(room(8, u32::MAX, 1), 6, "its ends wrap around");
        assert_eq!(room(8, 5, 3), 0, "a head beyond the tail makes no room");
    }

    /// The other side: chunks that are free or lent, and a ring in which they come back.
    struct Kernel {
        free: Vec<usize>,
        /// Loans of each chunk that are out, and bytes of it that were used.
        lent: Vec<(u32, u32)>,
        ring: VecDeque<u64>,
        entries: u32,
    }

    impl Kernel {
        /// A packet of `length` bytes goes into a chunk that has room, or into a fresh one, or is dropped.
        fn deliver(&mut self, length: u32, shares: bool) -> Option<u64> {
            let shared = shares
                .then(|| self.lent.iter().position(|&(loans, used)| loans > 0 && used + length <= CHUNK));
            let chunk = shared.flatten().or_else(|| self.free.pop())?;
            let (loans, used) = &mut self.lent[chunk];
            let offset = chunk as u64 * u64::from(CHUNK) + u64::from(*used);
            *loans += 1;
            *used += length;
            Some(offset)
        }

        fn take_back(&mut self, count: usize) {
            for offset in self.ring.drain(..count.min(self.ring.len())) {
                let chunk = usize::try_from(offset / u64::from(CHUNK)).unwrap();
                let (loans, used) = &mut self.lent[chunk];
                assert!(*loans > 0, "a chunk came back more often than it was lent");
                *loans -= 1;
                if *loans == 0 {
                    *used = 0;
                    self.free.push(chunk);
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver { length: u32, shares: bool },
        GiveBack { which: usize },
        Repay,
        TakeBack { count: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..=CHUNK, any::<bool>()).prop_map(|(length, shares)| Step::Deliver { length, shares }),
            2 => any::<usize>().prop_map(|which| Step::GiveBack { which }),
            1 => Just(Step::Repay),
            1 => (0..8_usize).prop_map(|count| Step::TakeBack { count }),
        ]
    }

    fn repay(accounts: &mut Accounts, kernel: &mut Kernel) {
        let waiting = u32::try_from(kernel.ring.len()).unwrap();
        accounts.repay(room(kernel.entries, 0, waiting), |loan| kernel.ring.push_back(loan.offset()));
        assert!(kernel.ring.len() <= kernel.entries as usize, "the ring has so many places");
    }

    proptest! {
        #[test]
        fn every_loan_comes_back_once_whatever_the_order(steps in prop::collection::vec(step(), 1..400)) {
            const CHUNKS: usize = 8;
            let mut accounts = Accounts::new(CHUNKS, CHUNK);
            let mut kernel = Kernel {
                free: (0..CHUNKS).collect(),
                lent: vec![(0, 0); CHUNKS],
                ring: VecDeque::new(),
                entries: 4,
            };
            let mut held = Vec::new();
            for step in steps {
                match step {
                    Step::Deliver { length, shares } => {
                        if let Some(offset) = kernel.deliver(length, shares) {
                            held.push(accounts.lend(offset, length).unwrap());
                        }
                    }
                    Step::GiveBack { which } if !held.is_empty() => {
                        accounts.give_back(held.swap_remove(which % held.len()));
                    }
                    Step::GiveBack { .. } => {}
                    Step::Repay => repay(&mut accounts, &mut kernel),
                    Step::TakeBack { count } => kernel.take_back(count),
                }
                let lent: usize = kernel.lent.iter().map(|&(loans, _)| loans as usize).sum();
                prop_assert_eq!(accounts.out() + kernel.ring.len(), lent, "both sides count the same");
            }
            held.drain(..).for_each(|loan| accounts.give_back(loan));
            while accounts.out() > 0 {
                repay(&mut accounts, &mut kernel);
                kernel.take_back(usize::MAX);
            }
            kernel.take_back(usize::MAX);
            prop_assert_eq!(kernel.free.len(), CHUNKS, "all memory is the kernel's again");
        }
    }
}
