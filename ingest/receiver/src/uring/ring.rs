//! One thread's ring: operations go in, events come out, a call of the kernel at a time for many of both. It owns whatever
//! an operation under way may touch. Knows neither sessions nor clocks.
#![expect(unsafe_code, reason = "the kernel reads and writes memory that operations under way name")]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Parameters, Submitter, cqueue, opcode, squeue};
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::buffers::{Buffers, GROUP, Plan, Taken};
use super::token::{Operation, Token};
use super::zero_copy::{Loan, Queue, Region};
use crate::lane::Write;

/// Operations that one call takes to the kernel; more cost another call.
const SUBMISSIONS: u32 = 512;

/// Completions that wait for us without detours. One call brings a few dozen connections' news, each up to 32 buffers.
const COMPLETIONS: u32 = 4_096;

/// What the kernel keeps for each: a submission, a completion, a place in the table of files.
const SUBMISSION_BYTES: usize = 64;
const COMPLETION_BYTES: usize = 16;
const FILE_BYTES: usize = 8;

/// `MSG_NOSIGNAL | MSG_WAITALL`: no signal when the peer is gone, and one completion when everything is sent.
const SEND_FLAGS: i32 = 0x4000 | 0x100;

/// `RWF_DSYNC`: done when the disk has it, as if an fdatasync followed. As an operation of its own the sync would go to a
/// thread of the kernel, which was measured dearer.
const WRITE_FLAGS: i32 = 0x2;

/// `SHUT_WR`.
const SHUT_WRITE: i32 = 1;

/// How long a ring that is dropped waits for its operations to end. They end at once.
const LAST_WAIT: Duration = Duration::from_millis(10);
const LAST_WAITS_MAX: usize = 100;

/// Fixed memory of a ring with room for `files` connections, what is received into apart.
pub(super) fn queue_bytes(files: u32) -> usize {
    SUBMISSIONS as usize * SUBMISSION_BYTES
        + COMPLETIONS as usize * COMPLETION_BYTES
        + files as usize * FILE_BYTES
}

/// A place in the ring's own table of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File(u32);

/// Received bytes, in memory that is the kernel's again with [`Ring::give_back`].
#[derive(Debug)]
pub(super) enum Filled {
    /// Copied by the kernel.
    Buffer(Taken),
    /// Written by a network card.
    Loan(Loan),
}

/// The kernel's side. Zero-copy receive needs completions of twice the size, which tell where the bytes are.
enum Queues {
    Narrow(IoUring),
    Wide(IoUring<squeue::Entry, cqueue::Entry32>),
}

impl Queues {
    fn submitter(&self) -> Submitter<'_> {
        match self {
            Self::Narrow(ring) => ring.submitter(),
            Self::Wide(ring) => ring.submitter(),
        }
    }

    fn submission(&mut self) -> squeue::SubmissionQueue<'_> {
        match self {
            Self::Narrow(ring) => ring.submission(),
            Self::Wide(ring) => ring.submission(),
        }
    }

    fn params(&self) -> &Parameters {
        match self {
            Self::Narrow(ring) => ring.params(),
            Self::Wide(ring) => ring.params(),
        }
    }

    fn take(&mut self, into: &mut VecDeque<Completion>) {
        match self {
            Self::Narrow(ring) => into.extend(ring.completion().map(|entry| Completion {
                token: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
                offset: 0,
            })),
            Self::Wide(ring) => into.extend(ring.completion().map(|entry| Completion {
                token: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
                offset: entry.big_cqe()[0],
            })),
        }
    }
}

/// What the kernel says about an operation.
struct Completion {
    token: u64,
    result: i32,
    flags: u32,
    /// Of zero-copy receives: where the bytes are.
    offset: u64,
}

/// What happened. `ends` says that no more comes of the operation.
#[derive(Debug)]
pub(super) enum Event {
    /// A door let somebody in, or could not.
    Accepted { door: u32, result: Result<File, Errno>, ends: bool },
    /// Somebody woke the inbox.
    Woken { ends: bool },
    /// A peer said something, or nothing more.
    Received { peer: u32, result: Result<Option<Filled>, Errno>, ends: bool },
    /// All was sent, or it cannot be. The buffer comes back as it went.
    Sent { peer: u32, result: Result<(), Errno>, buffer: Vec<u8> },
    /// A peer was told that nothing follows, or is gone.
    Shut { peer: u32 },
    /// A write is durable, or it cannot be. What was written is let go of.
    Written { result: Result<(), Errno> },
}

/// A piece of a write, as the kernel reads it: `struct iovec`.
#[repr(C)]
struct IoVector {
    base: *const u8,
    length: usize,
}

/// A write under way, and what the kernel is told about it.
struct Writing {
    write: Write,
    vectors: Vec<IoVector>,
}

/// A ring.
///
/// Invariant: what an operation under way may touch lives in `buffers`, `region`, `sends` and `write`, and is neither moved, changed nor freed
/// before the operation's last completion was taken from the ring. `under_way` counts the operations of which that is
/// still to come; no others touch memory of ours.
pub(super) struct Ring {
    ring: Queues,
    buffers: mem::ManuallyDrop<Buffers>,
    /// What a network card writes into.
    region: mem::ManuallyDrop<Option<Region>>,
    /// Buffers being sent, by connection; empty where none is.
    sends: mem::ManuallyDrop<Vec<Vec<u8>>>,
    /// What is being written.
    write: mem::ManuallyDrop<Option<Writing>>,
    under_way: usize,
    /// Whether something is being sent since the last wait.
    has_fresh_sends: bool,
    /// What found no place among the submissions.
    waiting: VecDeque<squeue::Entry>,
    /// Completions taken and not yet looked at.
    taken: VecDeque<Completion>,
}

impl Ring {
    /// With room for `files` connections.
    pub(super) fn new(files: u32, plan: Plan) -> io::Result<Self> {
        Self::with(Queues::Narrow(build()?), files, plan)
    }

    /// The same, receiving from `queue` of a network card without a copy.
    pub(super) fn zero_copy(files: u32, plan: Plan, queue: &Queue) -> io::Result<Self> {
        let mut ring = Self::with(Queues::Wide(build()?), files, plan)?;
        // SAFETY: the region is dropped when no receive is under way, or never (invariant on `Ring`).
        *ring.region = Some(unsafe { Region::register(&ring.ring.submitter(), queue) }?);
        Ok(ring)
    }

    fn with(ring: Queues, files: u32, plan: Plan) -> io::Result<Self> {
        ring.submitter().register_files_sparse(files)?;
        let buffers = mem::ManuallyDrop::new(Buffers::new(plan)?);
        let ring = Self {
            ring,
            buffers,
            region: mem::ManuallyDrop::default(),
            sends: mem::ManuallyDrop::default(),
            write: mem::ManuallyDrop::default(),
            under_way: 0,
            has_fresh_sends: false,
            waiting: VecDeque::new(),
            taken: VecDeque::new(),
        };
        // SAFETY: dropping the ring drops the buffers, once nothing is under way, or never (invariant on `Ring`).
        unsafe { ring.buffers.register(&ring.ring.submitter()) }?;
        Ok(ring)
    }

    /// Whether the kernel knows all of `operations`.
    pub(super) fn offers(&self, operations: &[u8]) -> io::Result<bool> {
        let mut probe = io_uring::Probe::new();
        self.ring.submitter().register_probe(&mut probe)?;
        let params = self.ring.params();
        let has_features = params.is_feature_nodrop()
            && params.is_feature_ext_arg()
            && params.is_feature_skip_cqe_on_success();
        Ok(has_features && operations.iter().all(|&code| probe.is_supported(code)))
    }

    /// Whether the kernel does its work on completions only where and when they are waited for.
    pub(super) fn is_single_issuer(&self) -> bool {
        self.ring.params().is_setup_single_issuer()
    }

    /// Receives that find a buffer before any is given back.
    pub(super) fn buffer_count(&self) -> u16 {
        self.buffers.count()
    }

    /// Fixed memory: what is received into.
    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffers.bytes_total() + self.region.as_ref().map_or(0, Region::bytes_total)
    }

    /// Takes connections in from now on.
    pub(super) fn accept(&mut self, door: u32, listener: BorrowedFd<'_>) {
        let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
        self.begin(Operation::Accept, door, accept);
        // A number of a file is only good as long as the file is open, so it does not wait.
        self.submit();
    }

    /// Tells of wakes from now on.
    pub(super) fn watch(&mut self, wake: &impl AsFd) {
        let flags = u32::from(PollFlags::IN.bits());
        let poll = opcode::PollAdd::new(Fd(wake.as_fd().as_raw_fd()), flags).multi(true).build();
        self.begin(Operation::Wake, 0, poll);
        self.submit();
    }

    /// Brings what `peer` says from now on.
    pub(super) fn receive(&mut self, peer: u32, file: File) {
        let receive = match &*self.region {
            None => opcode::RecvMulti::new(Fixed(file.0), GROUP).build(),
            Some(region) => opcode::RecvZc::new(Fixed(file.0), 0).ifq(region.id()).build(),
        };
        self.begin(Operation::Receive, peer, receive);
    }

    /// Sends all of `buffer`. One at a time for each peer.
    pub(super) fn send(&mut self, peer: u32, file: File, buffer: Vec<u8>) {
        let index = peer as usize;
        if self.sends.len() <= index {
            self.sends.resize_with(index + 1, Vec::new);
        }
        let kept = &mut self.sends[index];
        assert!(kept.is_empty(), "a connection sends one buffer at a time");
        *kept = buffer;
        let length = u32::try_from(kept.len()).unwrap_or(u32::MAX);
        let send = opcode::Send::new(Fixed(file.0), kept.as_ptr(), length).flags(SEND_FLAGS).build();
        self.has_fresh_sends = true;
        self.begin(Operation::Send, peer, send);
    }

    /// Writes through to the disk. One at a time.
    pub(super) fn write(&mut self, write: Write) {
        assert!(self.write.is_none(), "a lane has one write under way");
        let vector = |piece: &Bytes| IoVector { base: piece.as_ptr(), length: piece.len() };
        let vectors = write.pieces.iter().map(vector).collect();
        let Writing { write, vectors } = self.write.insert(Writing { write, vectors });
        // The file may be closed by its owner meanwhile, but `write.file` keeps it open. It goes with one call, so
        // that a number of a file is not waiting anywhere.
        let file = Fd(write.file.as_fd().as_raw_fd());
        let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
        let entry = opcode::Writev::new(file, vectors.as_ptr().cast(), count);
        let entry = entry.offset(write.position).rw_flags(WRITE_FLAGS);
        self.begin(Operation::Write, 0, entry.build());
    }

    /// Whether a write is under way.
    pub(super) fn is_writing(&self) -> bool {
        self.write.is_some()
    }

    /// Asks an operation to end. Its last event comes all the same.
    pub(super) fn cancel(&mut self, operation: Operation, number: u32) {
        let token = Token { operation, number };
        self.control(opcode::AsyncCancel::new(token.to_bits()).build());
    }

    /// Says to `peer` that nothing follows.
    pub(super) fn shut(&mut self, peer: u32, file: File) {
        self.begin(Operation::Shut, peer, opcode::Shutdown::new(Fixed(file.0), SHUT_WRITE).build());
    }

    /// Closes a connection of which no operation is under way.
    pub(super) fn close(&mut self, file: File) {
        self.control(opcode::Close::new(Fixed(file.0)).build());
    }

    /// What was received, to be read and, where it is encrypted, opened in place.
    pub(super) fn bytes<'a>(&'a mut self, filled: &'a mut Filled) -> &'a mut [u8] {
        match filled {
            Filled::Buffer(taken) => self.buffers.bytes(taken),
            Filled::Loan(loan) => match &mut *self.region {
                Some(region) => region.bytes(loan),
                None => &mut [],
            },
        }
    }

    pub(super) fn give_back(&mut self, filled: Filled) {
        match filled {
            Filled::Buffer(taken) => self.buffers.give_back(taken),
            Filled::Loan(loan) => {
                if let Some(region) = &mut *self.region {
                    region.give_back(loan);
                }
            }
        }
    }

    fn begin(&mut self, operation: Operation, number: u32, entry: squeue::Entry) {
        self.under_way += 1;
        self.queue(entry.user_data(Token { operation, number }.to_bits()));
    }

    fn control(&mut self, entry: squeue::Entry) {
        let token = Token { operation: Operation::Control, number: 0 };
        self.queue(entry.user_data(token.to_bits()).flags(squeue::Flags::SKIP_SUCCESS));
    }

    fn queue(&mut self, entry: squeue::Entry) {
        self.waiting.push_back(entry);
        self.move_up();
        if !self.waiting.is_empty() {
            self.submit();
        }
    }

    /// Moves what waits to the submissions, as far as there is room.
    fn move_up(&mut self) {
        let mut submissions = self.ring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: the entry names memory in `buffers`, `sends` and `write` at most, which outlives it (invariant on `Ring`).
            if unsafe { submissions.push(entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    fn submit(&mut self) {
        self.move_up();
        check(self.ring.submitter().submit());
        self.move_up();
    }

    /// Submits everything and waits until something happens, for no longer than `rest`.
    pub(super) fn wait(&mut self, rest: Option<Duration>) {
        while !self.waiting.is_empty() && self.taken.is_empty() {
            self.submit();
            self.take();
        }
        if !self.taken.is_empty() {
            return;
        }
        if mem::take(&mut self.has_fresh_sends) {
            // Sends mostly end as they are submitted, and such an end would end the wait too. A timer that gathers more news
            // (`min_wait_usec`) was measured a third dearer at ten spans a request: setting it costs more than this call.
            self.submit();
            self.take();
            if !self.taken.is_empty() {
                return;
            }
        }
        let timeout = rest.map(|rest| Timespec::new().sec(rest.as_secs()).nsec(rest.subsec_nanos()));
        let mut args = SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        check(self.ring.submitter().submit_with_args(1, &args));
        self.take();
    }

    fn take(&mut self) {
        self.ring.take(&mut self.taken);
    }

    /// What happened next, if anything.
    pub(super) fn event(&mut self) -> Option<Event> {
        loop {
            let completion = self.taken.pop_front()?;
            if let Some(event) = self.understand(&completion) {
                return Some(event);
            }
        }
    }

    fn understand(&mut self, completion: &Completion) -> Option<Event> {
        let Token { operation, number } = Token::from_bits(completion.token)?;
        let ends = !cqueue::more(completion.flags);
        let result = match completion.result {
            error @ ..0 => Err(Errno::from_raw_os_error(error.saturating_neg())),
            value => Ok(value.unsigned_abs()),
        };
        if operation != Operation::Control && ends {
            self.under_way -= 1;
        }
        match operation {
            Operation::Control => None,
            Operation::Shut => Some(Event::Shut { peer: number }),
            Operation::Write => self.write.take().map(|Writing { vectors, .. }| {
                let length: usize = vectors.iter().map(|vector| vector.length).sum();
                let is_whole = |count| if count as usize == length { Ok(()) } else { Err(Errno::INVAL) };
                Event::Written { result: result.and_then(is_whole) }
            }),
            Operation::Wake => Some(Event::Woken { ends }),
            Operation::Accept => Some(Event::Accepted { door: number, result: result.map(File), ends }),
            Operation::Receive => {
                let length = result.unwrap_or(0);
                let filled = match &mut *self.region {
                    Some(region) if length > 0 => region.lend(completion.offset, length).map(Filled::Loan),
                    Some(_) => None,
                    None => cqueue::buffer_select(completion.flags).map(|id| {
                        // SAFETY: the completion of a receive named it, and a completion is understood once.
                        Filled::Buffer(unsafe { self.buffers.taken(id, length as usize) })
                    }),
                };
                let result = match result {
                    // An end has no bytes, but in some kernels a buffer.
                    Ok(0) | Err(_) => {
                        filled.into_iter().for_each(|filled| self.give_back(filled));
                        result.map(|_| None)
                    }
                    Ok(_) => Ok(filled),
                };
                Some(Event::Received { peer: number, result, ends })
            }
            Operation::Send => {
                let buffer = mem::take(&mut self.sends[number as usize]);
                let is_whole = |sent| if sent as usize == buffer.len() { Ok(()) } else { Err(Errno::PIPE) };
                Some(Event::Sent { peer: number, result: result.and_then(is_whole), buffer })
            }
        }
    }

    /// Ends every operation and closes every connection; whether nothing is left.
    fn finish(&mut self) -> bool {
        self.control(opcode::AsyncCancel2::new(CancelBuilder::any().all()).build());
        for _ in 0..LAST_WAITS_MAX {
            while let Some(event) = self.event() {
                drop(event);
            }
            if self.under_way == 0 {
                break;
            }
            self.wait(Some(LAST_WAIT));
        }
        // The last ones to leave their files are the operations; what is still in the table has no other owner.
        let _never_had_any = self.ring.submitter().unregister_files();
        self.under_way == 0
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.finish() {
            // Memory is lost rather than written to by an operation that nobody waits for.
            tracing::error!(
                operations = self.under_way,
                "a ring keeps its memory for operations that do not end"
            );
            return;
        }
        // SAFETY: nothing is under way that could touch them (invariant on `Ring`), and this is the only drop.
        unsafe { mem::ManuallyDrop::drop(&mut self.buffers) };
        // SAFETY: as above.
        unsafe { mem::ManuallyDrop::drop(&mut self.sends) };
        // SAFETY: as above.
        unsafe { mem::ManuallyDrop::drop(&mut self.write) };
        // SAFETY: as above. The card may write until the ring is gone, but to pages that the kernel keeps until then.
        unsafe { mem::ManuallyDrop::drop(&mut self.region) };
    }
}

/// The newest way of running a ring that the kernel knows.
fn build<C: cqueue::EntryMarker>() -> io::Result<IoUring<squeue::Entry, C>> {
    let build = |set: fn(&mut io_uring::Builder<squeue::Entry, C>)| {
        let mut builder = IoUring::<squeue::Entry, C>::builder();
        builder.setup_cqsize(COMPLETIONS).setup_clamp().setup_submit_all().dontfork();
        set(&mut builder);
        builder.build(SUBMISSIONS)
    };
    // The thread that waits does the kernel's work on completions, when it waits; since 6.1. Without the array that maps
    // submissions since 6.6.
    let ways: [fn(&mut io_uring::Builder<squeue::Entry, C>); 3] = [
        |ring| {
            ring.setup_single_issuer().setup_defer_taskrun().setup_no_sqarray();
        },
        |ring| {
            ring.setup_single_issuer().setup_defer_taskrun();
        },
        |ring| {
            ring.setup_coop_taskrun();
        },
    ];
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for way in ways {
        match build(way) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => last = error,
            result => return result,
        }
    }
    Err(last)
}

/// Calls end early for reasons that the next call mends. Others mean that what was said to the kernel made no sense.
fn check(result: io::Result<usize>) {
    let Err(error) = result else { return };
    let may_pass = [Errno::TIME, Errno::INTR, Errno::BUSY, Errno::AGAIN, Errno::NOMEM];
    let passes = Errno::from_io_error(&error).is_some_and(|errno| may_pass.contains(&errno));
    assert!(passes, "the kernel takes what a ring submits: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const PLAN: Plan = Plan { count: 2, bytes_each: 1_000 };

    /// `None` where there is no io_uring, which is said.
    fn ring() -> Option<Ring> {
        Ring::new(8, PLAN).inspect_err(|error| println!("SKIP: nothing here tests io_uring: {error}")).ok()
    }

    fn next(ring: &mut Ring) -> Event {
        loop {
            if let Some(event) = ring.event() {
                return event;
            }
            ring.wait(None);
        }
    }

    fn accepted(ring: &mut Ring) -> (TcpStream, File) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        ring.accept(0, listener.as_fd());
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let Event::Accepted { result: Ok(file), .. } = next(ring) else { panic!("a connection comes") };
        ring.cancel(Operation::Accept, 0);
        assert!(matches!(next(ring), Event::Accepted { result: Err(Errno::CANCELED), ends: true, .. }));
        (client, file)
    }

    #[test]
    fn bytes_come_in_order_and_a_receive_without_buffers_ends() {
        let Some(mut ring) = ring() else { return };
        let (mut client, file) = accepted(&mut ring);
        let sent: Vec<u8> = (0..=u8::MAX).cycle().take(5_000).collect();
        client.write_all(&sent).unwrap();
        let mut received = Vec::new();
        let mut held = Vec::new();
        let mut was_short = false;
        ring.receive(3, file);
        while received.len() < sent.len() {
            let Event::Received { peer: 3, result, ends } = next(&mut ring) else {
                panic!("only that is asked")
            };
            match result {
                Ok(filled) => {
                    let mut filled = filled.expect("the client is still there");
                    received.extend_from_slice(ring.bytes(&mut filled));
                    held.push(filled);
                }
                Err(errno) => assert_eq!(errno, Errno::NOBUFS),
            }
            if ends && received.len() < sent.len() {
                was_short = true;
                held.drain(..).for_each(|filled| ring.give_back(filled));
                ring.receive(3, file);
            }
        }
        assert_eq!(received, sent);
        assert!(was_short, "two buffers of 1,000 bytes were held back");
    }

    #[test]
    fn a_buffer_being_sent_comes_back_when_it_is_sent_or_cannot_be() {
        let Some(mut ring) = ring() else { return };
        let (mut client, file) = accepted(&mut ring);
        let large = vec![7; 32 << 20];
        ring.send(1, file, large.clone());
        ring.wait(Some(Duration::ZERO));
        assert!(ring.event().is_none(), "the client reads nothing yet");
        let reading = std::thread::spawn(move || {
            let mut heard = vec![0; 32 << 20];
            client.read_exact(&mut heard).unwrap();
            (heard, client)
        });
        let Event::Sent { peer: 1, result, buffer } = next(&mut ring) else { panic!("only that is asked") };
        let (heard, _client) = reading.join().unwrap();
        assert_eq!((result, buffer.len()), (Ok(()), large.len()));
        assert!(heard == large, "what was sent is what was given");
        ring.send(1, file, large);
        ring.wait(Some(Duration::ZERO));
        ring.cancel(Operation::Send, 1);
        let Event::Sent { peer: 1, result: Err(_), buffer } = next(&mut ring) else {
            panic!("it is cancelled")
        };
        assert_eq!(buffer.len(), 32 << 20);
    }

    #[test]
    fn a_ring_is_let_go_of_with_operations_under_way() {
        let Some(mut ring) = ring() else { return };
        let (mut client, file) = accepted(&mut ring);
        ring.receive(0, file);
        ring.send(0, file, vec![7; 32 << 20]);
        ring.wait(Some(Duration::ZERO));
        assert_eq!(ring.under_way, 2);
        drop(ring);
        let mut heard = Vec::new();
        drop(client.read_to_end(&mut heard));
        assert!(heard.len() < 32 << 20, "the connection ends, and what was not sent is not");
    }

    #[test]
    fn loopback_gives_no_queue_for_zero_copy() {
        if ring().is_none() {
            return;
        }
        let queue = Queue { name: "lo".to_owned(), interface: 1, number: 0 };
        let refused = Ring::zero_copy(8, PLAN, &queue).err().expect("loopback has no such queues");
        let reason = super::super::zero_copy::reason(&queue, &refused);
        println!("{reason}");
        assert!(reason.starts_with("queue 0 of lo cannot be had"), "{reason}");
    }
}
