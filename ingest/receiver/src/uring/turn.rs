//! One thread's loop: wait, take what happened, take answers, ask for more. Everything that a turn makes necessary goes to
//! the kernel with the next wait.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_nodelay;
use store_model::Monotonic;

use super::peers::Peers;
use super::ring::{Event, File, Ring};
use super::token::Operation;
use super::{files, plan, zero_copy};
use crate::clock;
use crate::config::{ReceiverConfig, ZeroCopy};
use crate::connection::Connection;
use crate::desk::Desk;
use crate::inbox::{Inbox, Ticket};
use crate::intake::Outcome;
use crate::metrics::Protocol;
use crate::rounds::Rounds;
use crate::shared::{Slot, is_of_one_connection};
use crate::threads::{Post, Stop, Work};

/// Without room in the table of files or memory, accepting again at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long a thread that ends waits for a write of its lane.
const LAST_WAIT: Duration = Duration::from_millis(10);
const LAST_WAITS_MAX: usize = 100;

/// One thread.
pub(crate) struct Turning {
    core: usize,
    ring: Ring,
    doors: Vec<Door>,
    peers: Peers,
    desk: Desk,
    inbox: Arc<Inbox>,
    stop: Arc<Stop>,
    rounds: Rounds,
    /// Once a stop was asked for: when it is over.
    stop_at: Option<Monotonic>,
}

/// A listening socket. Its number is its place.
struct Door {
    listener: TcpListener,
    protocol: Protocol,
    /// Closed until then, for want of room.
    closed_until: Option<Monotonic>,
}

impl Work for Turning {
    const NAME: &'static str = "io_uring";

    fn begin(post: Post) -> io::Result<Self> {
        let Post { core, shared, inbox, listeners, stop } = post;
        let mut ring = make_ring(core, &shared.config)?;
        shared.metrics.add_receive_buffers(ring.buffer_bytes());
        ring.watch(&*inbox);
        let mut doors = Vec::with_capacity(listeners.len());
        for (protocol, listener) in listeners {
            // The ring waits for connections only where the socket would.
            listener.set_nonblocking(false)?;
            // Answers are small and awaited: they must not linger for more to join them. Connections inherit it.
            set_tcp_nodelay(&listener, true)?;
            ring.accept(u32::try_from(doors.len()).unwrap_or(u32::MAX), listener.as_fd());
            doors.push(Door { listener, protocol, closed_until: None });
        }
        let rounds = Rounds::new(&shared.config, clock::monotonic());
        let desk = Desk::new(core, shared, Arc::clone(&inbox), true);
        let peers = Peers::default();
        Ok(Self { core, ring, doors, peers, desk, inbox, stop, rounds, stop_at: None })
    }

    fn run(mut self) {
        let mut answers = Vec::new();
        loop {
            let now = self.wait();
            while let Some(event) = self.ring.event() {
                self.take(event, now);
            }
            if let Some(write) = self.desk.turn(now) {
                self.ring.write(write);
            }
            self.take_answers(&mut answers, now);
            if self.rounds.is_due(now) {
                self.peers.round(self.stop_at.is_some(), now, &mut self.desk);
            }
            self.peers.flush(&mut self.ring);
            if self.is_over(now) {
                break;
            }
        }
        if self.peers.len() > 0 && self.desk.waiting() > 0 {
            tracing::warn!(core = self.core, "receiver stopped with requests unanswered");
        }
        self.peers.abandon(&self.desk);
        self.desk.shared.metrics.remove_receive_buffers(self.ring.buffer_bytes());
        self.end_write();
        self.desk.finish();
    }
}

/// A ring with a network card's queue where that is wanted and can be had.
fn make_ring(core: usize, config: &ReceiverConfig) -> io::Result<Ring> {
    if config.zero_copy == ZeroCopy::Auto {
        match zero_copy_ring(core, config) {
            Ok(ring) => {
                tracing::info!(core, "zero-copy receive is on");
                return Ok(ring);
            }
            Err(reason) => tracing::info!(core, reason, "zero-copy receive is off"),
        }
    }
    Ring::new(files(config), plan(config))
}

/// The ring of a thread that has a network card's queue to itself, or why it cannot have one.
pub(super) fn zero_copy_ring(core: usize, config: &ReceiverConfig) -> Result<Ring, String> {
    let queue = zero_copy::queue(core)?;
    Ring::zero_copy(files(config), plan(config), &queue).map_err(|error| zero_copy::reason(&queue, &error))
}

impl Turning {
    /// Sleeps until something happens or is due; not at all when there is something to do.
    fn wait(&mut self) -> Monotonic {
        let may_sleep = !self.peers.are_starved() && self.inbox.park();
        let rest = if may_sleep { self.rest() } else { Some(Duration::ZERO) };
        self.ring.wait(rest);
        self.inbox.unpark();
        clock::monotonic()
    }

    /// How long nothing is due; `None` for ever.
    fn rest(&self) -> Option<Duration> {
        let now = clock::monotonic();
        let waits_for_door = self.doors.iter().any(|door| door.closed_until.is_some());
        let has_deadlines = self.peers.len() > 0 || self.stop_at.is_some() || waits_for_door;
        let rests = [
            has_deadlines.then(|| self.rounds.rest(now)),
            waits_for_door.then_some(ACCEPT_RETRY),
            self.stop_at.map(|at| at.since(now)),
            self.desk.rest(now),
        ];
        rests.into_iter().flatten().min()
    }

    fn take(&mut self, event: Event, now: Monotonic) {
        match event {
            Event::Woken { ends: false } => {}
            Event::Woken { ends: true } => self.ring.watch(&*self.inbox),
            Event::Accepted { door, result, ends } => self.accepted(door, result, ends, now),
            Event::Received { peer, result, ends } => {
                self.peers.received(peer, result, ends, now, &mut self.desk, &mut self.ring);
            }
            Event::Sent { peer, result, buffer } => self.peers.sent(peer, result, buffer, &self.desk),
            Event::Shut { peer } => self.peers.shut(peer),
            Event::Written { result } => {
                self.desk.written(result.map_err(io::Error::from), now);
            }
        }
    }

    /// Waits for a write that is under way, so that its lane can go on with the memory; not for long, since nobody waits for
    /// an answer any more.
    fn end_write(&mut self) {
        for _ in 0..LAST_WAITS_MAX {
            if !self.ring.is_writing() {
                return;
            }
            self.ring.wait(Some(LAST_WAIT));
            let now = clock::monotonic();
            while let Some(event) = self.ring.event() {
                if let Event::Written { result } = event {
                    self.desk.written(result.map_err(io::Error::from), now);
                }
            }
        }
        tracing::warn!(core = self.core, "receiver stopped before its last write had ended");
    }

    fn accepted(&mut self, number: u32, result: Result<File, Errno>, ends: bool, now: Monotonic) {
        let Self { doors, ring, peers, desk, .. } = self;
        // Without doors, the receiver is stopping.
        let door = doors.get_mut(number as usize);
        match (&door, result) {
            (Some(door), Ok(file)) => match Slot::take(&desk.shared, door.protocol) {
                Some(slot) => {
                    peers.add(file, slot, |key| Connection::new(key, door.protocol, now, &desk.shared))
                }
                None => ring.close(file),
            },
            (None, Ok(file)) => ring.close(file),
            (_, Err(Errno::CANCELED)) => {}
            (_, Err(errno)) if is_of_one_connection(&errno.into()) => {}
            (_, Err(error)) => tracing::warn!(%error, "accept failed"),
        }
        if let (Some(door), true) = (door, ends) {
            // An end without an error means that events came faster than they were taken.
            let is_short = result.is_err_and(|errno| !is_of_one_connection(&errno.into()));
            let pause = if is_short { ACCEPT_RETRY } else { Duration::ZERO };
            door.closed_until = Some(now.plus(pause));
        }
    }

    fn take_answers(&mut self, answers: &mut Vec<(Ticket, Outcome)>, now: Monotonic) {
        self.desk.take_answers(answers);
        for (ticket, outcome) in answers.drain(..) {
            if let Some((back, answer)) = self.desk.answered(ticket, outcome) {
                self.peers.answer(back, answer, now, &mut self.desk);
            }
        }
    }

    /// Whether the thread is done. Notices a stop, and opens doors again.
    fn is_over(&mut self, now: Monotonic) -> bool {
        let Self { doors, ring, .. } = self;
        for (number, door) in (0..).zip(doors) {
            if door.closed_until.is_some_and(|until| now >= until) {
                door.closed_until = None;
                ring.accept(number, door.listener.as_fd());
            }
        }
        let Some(at) = self.stop_at else {
            return self.stop.asked().is_some_and(|grace| self.begin_stop(grace, now));
        };
        now >= at || self.peers.len() == 0
    }

    /// Closes the doors and asks everyone to go; whether nobody is left already.
    fn begin_stop(&mut self, grace: Duration, now: Monotonic) -> bool {
        self.stop_at = Some(now.plus(grace));
        for number in (0..).take(self.doors.len()) {
            self.ring.cancel(Operation::Accept, number);
        }
        self.doors.clear();
        self.rounds.hurry(now);
        self.peers.round(true, now, &mut self.desk);
        self.peers.flush(&mut self.ring);
        grace.is_zero() || self.peers.len() == 0
    }
}
