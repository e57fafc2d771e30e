//! The connections of one thread: what is said on them and what the kernel does for them. Decides what to ask of the ring for each,
//! once per turn; waits for nothing.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use store_model::Monotonic;

use super::ring::{File, Filled, Ring};
use super::token::Operation;
use crate::answer::Answer;
use crate::connection::Connection;
use crate::desk::{Desk, Return};
use crate::session::Wish;
use crate::shared::Slot;
use crate::slab::{Key, Slab};

/// Empty output buffers kept for the next answers, and how large one may have become.
const SPARE_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 64 << 10;

/// What the kernel does about a connection's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    /// Nothing; it can be asked to.
    Not,
    /// Nothing: it found no buffer, and waits for its turn to be asked again.
    Starved,
    /// It brings what comes.
    Armed,
    /// It was asked to stop, and its last word is still to come.
    Ending,
    /// Nothing more will come.
    Over,
}

/// One connection. It stays until the last of its operations has ended, so that their numbers mean nobody else.
struct Peer {
    file: File,
    connection: Connection,
    /// Said and not yet being sent.
    out: Vec<u8>,
    is_sending: bool,
    receiving: Receiving,
    /// It was told that nothing follows, or is being told.
    is_shut: bool,
    is_shutting: bool,
    /// The send was asked to end.
    is_closing: bool,
    is_listed: bool,
    _slot: Slot,
}

/// All of one thread.
#[derive(Default)]
pub(super) struct Peers {
    peers: Slab<Peer>,
    spare: Vec<Vec<u8>>,
    /// Those that something happened to in this turn.
    touched: Vec<Key>,
    /// Those that found no receive buffer, in the order in which they are asked again.
    starved: VecDeque<Key>,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Takes a connection in.
    pub(super) fn add(&mut self, file: File, slot: Slot, connection: impl FnOnce(Key) -> Connection) {
        let key = self.peers.insert_with(|key| Peer {
            file,
            connection: connection(key),
            out: Vec::new(),
            is_sending: false,
            receiving: Receiving::Not,
            is_shut: false,
            is_shutting: false,
            is_closing: false,
            is_listed: false,
            _slot: slot,
        });
        self.touch(key);
    }

    /// What a receive brought. Its buffer goes back at once: what is to be kept was copied to where it is needed.
    pub(super) fn received(
        &mut self,
        index: u32,
        result: Result<Option<Filled>, Errno>,
        ends: bool,
        now: Monotonic,
        desk: &mut Desk,
        ring: &mut Ring,
    ) {
        let Some((key, peer)) = self.peers.at(index) else { return };
        peer.lend(&mut self.spare);
        if ends {
            peer.receiving = Receiving::Not;
        }
        match result {
            Ok(Some(mut filled)) => {
                if peer.connection.wish() == Wish::Pause && peer.receiving == Receiving::Armed {
                    // Only now: most peers wait for their answer anyway. What comes until this takes effect is kept by
                    // it, counted.
                    ring.cancel(Operation::Receive, index);
                    peer.receiving = Receiving::Ending;
                }
                let bytes = ring.bytes(&mut filled);
                peer.on_connection(desk, |connection, desk, out| connection.receive(bytes, now, desk, out));
                ring.give_back(filled);
            }
            Ok(None) => {
                peer.receiving = Receiving::Over;
                peer.connection.end(now, desk);
            }
            Err(Errno::NOBUFS | Errno::NOMEM) if peer.receiving == Receiving::Not => {
                desk.shared.metrics.receive_buffers_short();
                peer.receiving = Receiving::Starved;
                self.starved.push_back(key);
            }
            Err(Errno::CANCELED | Errno::INTR | Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {}
            Err(_reset) => {
                peer.receiving = Receiving::Over;
                peer.connection.die(desk);
            }
        }
        self.touch(key);
    }

    /// What became of a send.
    pub(super) fn sent(&mut self, index: u32, result: Result<(), Errno>, mut buffer: Vec<u8>, desk: &Desk) {
        buffer.clear();
        if self.spare.len() < SPARE_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            self.spare.push(buffer);
        }
        let Some((key, peer)) = self.peers.at(index) else { return };
        peer.is_sending = false;
        if result.is_err() {
            peer.connection.die(desk);
        }
        if !peer.out.is_empty() || peer.connection.wish() != Wish::Go {
            self.touch(key);
        }
    }

    /// A peer was told that nothing follows.
    pub(super) fn shut(&mut self, index: u32) {
        let Some((key, peer)) = self.peers.at(index) else { return };
        peer.is_shutting = false;
        self.touch(key);
    }

    /// Gives an answer to the connection it belongs to, if that is still there.
    pub(super) fn answer(&mut self, back: Return, answer: Answer, now: Monotonic, desk: &mut Desk) {
        let Some(peer) = self.peers.get_mut(back.connection) else { return };
        peer.lend(&mut self.spare);
        peer.on_connection(desk, |connection, desk, out| connection.answer(back, answer, now, desk, out));
        self.touch(back.connection);
    }

    /// Looks at everyone's deadlines, and asks everyone to go when the receiver is stopping.
    pub(super) fn round(&mut self, is_stopping: bool, now: Monotonic, desk: &mut Desk) {
        for key in self.peers.keys().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(key) else { continue };
            // What was said in this turn has not been tried yet; what is being sent has, and found no room.
            let has_unsent = peer.is_sending;
            peer.on_connection(desk, |connection, desk, out| {
                if is_stopping {
                    connection.stop(now, desk, out);
                }
                connection.tick(has_unsent, now, desk, out);
            });
            if !peer.out.is_empty() || matches!(peer.connection.wish(), Wish::Finish | Wish::Close) {
                self.touch(key);
            }
        }
    }

    /// Asks the ring for what this turn made necessary, and lets go of whom nothing more is to be heard.
    pub(super) fn flush(&mut self, ring: &mut Ring) {
        self.feed(ring);
        while let Some(key) = self.touched.pop() {
            let Some(peer) = self.peers.get_mut(key) else { continue };
            peer.is_listed = false;
            let wish = peer.connection.wish();
            if wish == Wish::Close {
                if peer.is_released(key.index(), ring) {
                    ring.close(peer.file);
                    drop(self.peers.remove(key));
                }
                continue;
            }
            if !peer.is_sending && !peer.out.is_empty() {
                peer.is_sending = true;
                ring.send(key.index(), peer.file, mem::take(&mut peer.out));
            } else if peer.out.capacity() > 0 && peer.out.is_empty() && self.spare.len() < SPARE_MAX {
                self.spare.push(mem::take(&mut peer.out));
            }
            if wish == Wish::Finish && !peer.is_sending && !mem::replace(&mut peer.is_shut, true) {
                peer.is_shutting = true;
                ring.shut(key.index(), peer.file);
            }
            if wish != Wish::Pause && peer.receiving == Receiving::Not {
                ring.receive(key.index(), peer.file);
                peer.receiving = Receiving::Armed;
            }
        }
    }

    /// Whether somebody waits for a receive buffer. All are the kernel's again by the end of a turn.
    pub(super) fn are_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Asks again for those that found no buffer, no more of them than there are buffers: each takes one at least, and whoever
    /// finds none costs as much as whoever does.
    fn feed(&mut self, ring: &mut Ring) {
        for _ in 0..ring.buffer_count() {
            let Some(key) = self.starved.pop_front() else { return };
            let Some(peer) = self.peers.get_mut(key) else { continue };
            if peer.receiving == Receiving::Starved {
                peer.receiving = Receiving::Not;
                self.touch(key);
            }
        }
    }

    /// Nobody is served any more. The ring closes what it has.
    pub(super) fn abandon(&mut self, desk: &Desk) {
        for key in self.peers.keys().collect::<Vec<_>>() {
            if let Some(mut peer) = self.peers.remove(key) {
                peer.connection.die(desk);
            }
        }
    }

    fn touch(&mut self, key: Key) {
        if let Some(peer) = self.peers.get_mut(key)
            && !mem::replace(&mut peer.is_listed, true)
        {
            self.touched.push(key);
        }
    }
}

impl Peer {
    /// Gives it a buffer to write into.
    fn lend(&mut self, spare: &mut Vec<Vec<u8>>) {
        if self.out.capacity() == 0
            && let Some(buffer) = spare.pop()
        {
            self.out = buffer;
        }
    }

    /// Whether the kernel is done with it; asks it to be.
    fn is_released(&mut self, index: u32, ring: &mut Ring) -> bool {
        if self.receiving == Receiving::Armed {
            self.receiving = Receiving::Ending;
            ring.cancel(Operation::Receive, index);
        }
        if self.is_sending && !mem::replace(&mut self.is_closing, true) {
            ring.cancel(Operation::Send, index);
        }
        self.receiving != Receiving::Ending && !self.is_sending && !self.is_shutting
    }

    /// Calls into the connection. A mistake in it that a sender finds must cost one connection, not the core: nothing it
    /// leaves half done is looked at again.
    fn on_connection(
        &mut self,
        desk: &mut Desk,
        call: impl FnOnce(&mut Connection, &mut Desk, &mut Vec<u8>),
    ) {
        let Self { connection, out, .. } = self;
        if catch_unwind(AssertUnwindSafe(|| call(connection, desk, out))).is_err() {
            tracing::error!("a connection made the receiver panic");
            desk.due.clear();
            self.connection.die(desk);
        }
    }
}
