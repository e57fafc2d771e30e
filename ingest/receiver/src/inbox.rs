//! Answers on their way back to a receiving thread that sleeps in the kernel: a ticket and an outcome each, and one
//! wake for many. Knows neither connections nor requests; what a ticket stands for is its thread's to remember.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::intake::Outcome;
use crate::lane::Wake;

/// What a receiving thread calls one of its submitted requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(pub(crate) u64);

/// One receiving thread's answers.
///
/// Answers that the thread's own lane gives do not come this way, so the lock is for the others. It is held for a push or
/// for a swap of two vectors, a few nanoseconds each; no system call happens under it.
#[derive(Debug)]
pub(crate) struct Inbox {
    answers: Mutex<Vec<(Ticket, Outcome)>>,
    /// How many there are, so that an empty inbox is seen without its lock.
    count: AtomicUsize,
    /// Whether the thread sleeps, or is about to, and nobody has woken it since.
    parked: AtomicBool,
    wake: OwnedFd,
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            answers: Mutex::default(),
            count: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            wake,
        })
    }

    fn answers(&self) -> MutexGuard<'_, Vec<(Ticket, Outcome)>> {
        // Nothing panics under the lock.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an answer without waking anybody.
    pub(crate) fn put(&self, ticket: Ticket, outcome: Outcome) {
        let mut answers = self.answers();
        answers.push((ticket, outcome));
        // Under the lock, so that it is never behind; sequentially consistent with `parked`: see `park`.
        self.count.store(answers.len(), Ordering::SeqCst);
    }

    /// Moves every answer into `into`, which shall be empty.
    pub(crate) fn take(&self, into: &mut Vec<(Ticket, Outcome)>) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut answers = self.answers();
        std::mem::swap(&mut *answers, into);
        self.count.store(0, Ordering::SeqCst);
    }

    /// Says that the thread goes to sleep; false when there are answers and it must not.
    ///
    /// Nothing is missed: in the one order of all four accesses, either an answer was counted before this looks, or it is
    /// counted after `parked` was set, and then whoever put it sees that and wakes.
    pub(crate) fn park(&self) -> bool {
        self.parked.store(true, Ordering::SeqCst);
        let may_sleep = self.count.load(Ordering::SeqCst) == 0;
        if !may_sleep {
            self.unpark();
        }
        may_sleep
    }

    /// Says that the thread is awake.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Wakes the thread if it sleeps. A wake too many is harmless.
    pub(crate) fn wake_if_parked(&self) {
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }
}

impl Wake for Inbox {
    /// In any case, whether the thread sleeps or not.
    fn wake(&self) {
        // It cannot fail but by a full counter, and then a wake is pending anyway.
        let _pending = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Inbox {
    /// Readable when somebody woke the thread. Waiting for its edges needs no read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::Done;
    use std::sync::Arc;

    fn wakes(inbox: &Inbox) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&inbox.wake, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    #[test]
    fn a_sleeping_thread_is_woken_once_for_many_answers() {
        let inbox = Arc::new(Inbox::new().unwrap());
        let done = |ticket| Done::to_inbox(Arc::clone(&inbox), Ticket(ticket));
        assert!(inbox.park());
        Done::send_all((0..5).map(done), &Outcome::Stored);
        done(5).send(Outcome::Stored);
        assert_eq!(wakes(&inbox), 1);
        assert!(!inbox.park(), "there are answers");
        let mut answers = Vec::new();
        inbox.take(&mut answers);
        let tickets: Vec<_> = answers.iter().map(|(ticket, _)| ticket.0).collect();
        assert_eq!(tickets, [0, 1, 2, 3, 4, 5]);
        assert!(inbox.park());
        inbox.unpark();
        done(6).send(Outcome::Stored);
        assert_eq!(wakes(&inbox), 0, "the thread is awake and will look");
    }

    #[test]
    fn an_answer_that_is_dropped_counts_as_unavailable() {
        let inbox = Arc::new(Inbox::new().unwrap());
        drop(Done::to_inbox(Arc::clone(&inbox), Ticket(7)));
        let mut answers = Vec::new();
        inbox.take(&mut answers);
        assert_eq!(answers, [(Ticket(7), Outcome::lost())]);
        let (done, mut heard) = Done::awaited();
        drop(done);
        assert_eq!(heard.try_recv(), Ok(Outcome::lost()));
    }
}
