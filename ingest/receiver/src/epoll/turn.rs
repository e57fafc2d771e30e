//! One thread's loop: wait, accept, read, take answers, write. Everything that happened in one turn is written at its
//! end, once per connection.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{SocketFlags, accept_with};
use rustix::time::Timespec;
use store_model::Monotonic;

use super::peers::Peers;
use crate::clock;
use crate::connection::Connection;
use crate::desk::Desk;
use crate::inbox::{Inbox, Ticket};
use crate::intake::Outcome;
use crate::metrics::Protocol;
use crate::rounds::Rounds;
use crate::shared::{Slot, is_of_one_connection};
use crate::slab::Key;
use crate::threads::{Post, Stop, Work};

/// News taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// Connections accepted per turn and port, so that a flood of them does not silence those that are there.
const ACCEPTS_MAX: usize = 64;

/// Without file descriptors or memory, accepting again at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What the kernel hands back for what is no connection. No key of a slab looks like these.
const WAKE: u64 = u64::MAX;
/// The first listening socket; the others follow.
const DOORS: u64 = u64::MAX - Protocol::ALL.len() as u64;

/// One thread.
pub(crate) struct Turning {
    core: usize,
    epoll: OwnedFd,
    doors: Vec<Door>,
    peers: Peers,
    desk: Desk,
    inbox: Arc<Inbox>,
    stop: Arc<Stop>,
    rounds: Rounds,
    /// Once a stop was asked for: when it is over.
    stop_at: Option<Monotonic>,
}

/// A listening socket.
struct Door {
    listener: TcpListener,
    protocol: Protocol,
    token: u64,
    /// Closed until then, for want of file descriptors.
    closed_until: Option<Monotonic>,
}

impl Work for Turning {
    const NAME: &'static str = "epoll";

    fn begin(post: Post) -> io::Result<Self> {
        let Post { core, shared, inbox, listeners, stop } = post;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*inbox, EventData::new_u64(WAKE), EventFlags::IN | EventFlags::ET)?;
        let mut doors = Vec::with_capacity(listeners.len());
        for ((protocol, listener), token) in listeners.into_iter().zip(DOORS..WAKE) {
            epoll::add(&epoll, &listener, EventData::new_u64(token), EventFlags::IN)?;
            doors.push(Door { listener, protocol, token, closed_until: None });
        }
        let rounds = Rounds::new(&shared.config, clock::monotonic());
        let desk = Desk::new(core, shared, Arc::clone(&inbox), false);
        Ok(Self { core, epoll, doors, peers: Peers::new(), desk, inbox, stop, rounds, stop_at: None })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut answers = Vec::new();
        loop {
            let now = self.wait(&mut events);
            for event in events.drain(..) {
                self.take(event, now);
            }
            self.peers.read(now, &mut self.desk);
            let write = self.desk.turn(now);
            debug_assert!(write.is_none(), "this driver was not to be asked for writes");
            self.take_answers(&mut answers, now);
            if self.rounds.is_due(now) {
                self.round(now);
            }
            self.peers.flush(&self.desk);
            if self.is_over(now) {
                break;
            }
        }
        if self.peers.len() > 0 && self.desk.waiting() > 0 {
            tracing::warn!(core = self.core, "receiver stopped with requests unanswered");
        }
        self.peers.abandon(&self.desk);
        self.desk.finish();
    }
}

impl Turning {
    /// Sleeps until something happens or is due; not at all when there is something to do.
    fn wait(&mut self, events: &mut Vec<Event>) -> Monotonic {
        let may_sleep = !self.peers.have_unread() && self.inbox.park();
        let rest = if may_sleep { self.rest() } else { Some(Duration::ZERO) };
        let timeout = rest.map(|rest| Timespec {
            tv_sec: i64::try_from(rest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: rest.subsec_nanos().into(),
        });
        // It fails only when a signal interrupts it, and then the next turn finds what there is.
        let _interrupted = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref());
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
        let (flags, token) = (event.flags, event.data.u64());
        match token {
            WAKE => {}
            DOORS.. => self.accept(token, now),
            _ => {
                let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
                self.peers.has_news(
                    Key::from_bits(token),
                    flags.contains(EventFlags::IN),
                    flags.contains(EventFlags::OUT),
                    flags.intersects(ends),
                );
            }
        }
    }

    fn accept(&mut self, token: u64, now: Monotonic) {
        let Self { doors, epoll, peers, desk, .. } = self;
        let Some(door) = doors.iter_mut().find(|door| door.token == token) else { return };
        for _ in 0..ACCEPTS_MAX {
            match accept_with(&door.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    let Some(slot) = Slot::take(&desk.shared, door.protocol) else { continue };
                    // Answers are small and awaited: they must not linger for more to join them. Failing costs time.
                    let _slower = set_tcp_nodelay(&socket, true);
                    let connection = |key| Connection::new(key, door.protocol, now, &desk.shared);
                    if let Err(error) =
                        peers.add(socket, slot, connection, |socket, key| register(epoll, socket, key))
                    {
                        tracing::warn!(%error, "a connection cannot be watched and is closed");
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(errno) if is_of_one_connection(&errno.into()) => {}
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    door.close_until(now.plus(ACCEPT_RETRY), epoll);
                    return;
                }
            }
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

    fn round(&mut self, now: Monotonic) {
        self.peers.round(self.stop_at.is_some(), now, &mut self.desk);
    }

    /// Whether the thread is done. Notices a stop, and opens doors again.
    fn is_over(&mut self, now: Monotonic) -> bool {
        for door in &mut self.doors {
            door.open_after(now, &self.epoll);
        }
        let Some(at) = self.stop_at else {
            if let Some(grace) = self.stop.asked() {
                self.stop_at = Some(now.plus(grace));
                self.doors.clear();
                self.rounds.hurry(now);
                self.round(now);
                self.peers.flush(&self.desk);
                return grace.is_zero() || self.peers.len() == 0;
            }
            return false;
        };
        now >= at || self.peers.len() == 0
    }
}

/// Once, for everything that will ever be of interest.
fn register(epoll: &OwnedFd, socket: &OwnedFd, key: Key) -> io::Result<()> {
    let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    Ok(epoll::add(epoll, socket, EventData::new_u64(key.to_bits()), interest)?)
}

impl Door {
    fn close_until(&mut self, until: Monotonic, epoll: impl AsFd) {
        self.closed_until = Some(until);
        // Failing only means that the kernel tells us again, and accepting fails again.
        let _told_again =
            epoll::modify(epoll, &self.listener, EventData::new_u64(self.token), EventFlags::empty());
    }

    fn open_after(&mut self, now: Monotonic, epoll: impl AsFd) {
        if self.closed_until.is_some_and(|until| now >= until) {
            let opened = epoll::modify(epoll, &self.listener, EventData::new_u64(self.token), EventFlags::IN);
            self.closed_until = opened.is_err().then(|| now.plus(ACCEPT_RETRY));
        }
    }
}
