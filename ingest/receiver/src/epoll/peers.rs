//! The connections of one thread: sockets with what is said on them, read from and written to once per turn. Waits for
//! nothing.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use store_model::Monotonic;

use crate::answer::Answer;
use crate::connection::Connection;
use crate::desk::{Desk, Return};
use crate::session::Wish;
use crate::shared::Slot;
use crate::slab::{Key, Slab};

/// One receive takes this much. Smaller buffers cost more calls: 64 KiB were measured a tenth slower.
pub(crate) const RECEIVE_BYTES: usize = 256 << 10;

/// Empty output buffers kept for the next answers, and how large one may have become.
const SPARE_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 64 << 10;

/// One connection.
pub(super) struct Peer {
    socket: OwnedFd,
    connection: Connection,
    out: Vec<u8>,
    sent: usize,
    /// The kernel may have bytes for us.
    is_readable: bool,
    /// The peer has closed its side: a short read is not the last one.
    is_hung_up: bool,
    /// The socket took everything so far.
    is_writable: bool,
    is_shut: bool,
    is_listed: bool,
    _slot: Slot,
}

/// All of one thread.
pub(super) struct Peers {
    peers: Slab<Peer>,
    buffer: Vec<u8>,
    spare: Vec<Vec<u8>>,
    /// Those that something happened to in this turn.
    touched: Vec<Key>,
    /// Those that have more to read.
    unread: Vec<Key>,
    scratch: Vec<Key>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            peers: Slab::default(),
            buffer: vec![0; RECEIVE_BYTES],
            spare: Vec::new(),
            touched: Vec::new(),
            unread: Vec::new(),
            scratch: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether something can be read without waiting.
    pub(super) fn have_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Takes a connection in, once `register` has made its key known to the kernel.
    pub(super) fn add(
        &mut self,
        socket: OwnedFd,
        slot: Slot,
        connection: impl FnOnce(Key) -> Connection,
        register: impl FnOnce(&OwnedFd, Key) -> io::Result<()>,
    ) -> io::Result<()> {
        let key = self.peers.insert_with(|key| Peer {
            socket,
            connection: connection(key),
            out: Vec::new(),
            sent: 0,
            is_readable: false,
            is_hung_up: false,
            is_writable: true,
            is_shut: false,
            is_listed: false,
            _slot: slot,
        });
        let registered = self.peers.get_mut(key).map_or(Ok(()), |peer| register(&peer.socket, key));
        if registered.is_err() {
            drop(self.peers.remove(key));
        }
        registered
    }

    /// The kernel says that there is something to read, room to write, or an end.
    pub(super) fn has_news(&mut self, key: Key, readable: bool, writable: bool, hung_up: bool) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if writable && !peer.is_writable {
            peer.is_writable = true;
            touch(&mut self.touched, peer, key);
        }
        peer.is_hung_up |= hung_up;
        if (readable || hung_up) && !peer.is_readable {
            peer.is_readable = true;
            self.unread.push(key);
        }
    }

    /// Reads once from everyone who has something to say.
    pub(super) fn read(&mut self, now: Monotonic, desk: &mut Desk) {
        let mut keys = mem::replace(&mut self.unread, mem::take(&mut self.scratch));
        for key in keys.drain(..) {
            let Self { peers, buffer, spare, touched, unread, .. } = self;
            let Some(peer) = peers.get_mut(key) else { continue };
            if peer.connection.wish() == Wish::Pause {
                // It stays readable; `flush` sees when it may be read again.
                continue;
            }
            peer.lend(spare);
            peer.read(buffer, now, desk);
            if peer.is_readable {
                unread.push(key);
            }
            touch(touched, peer, key);
        }
        self.scratch = keys;
    }

    /// Gives an answer to the connection it belongs to, if that is still there.
    pub(super) fn answer(&mut self, back: Return, answer: Answer, now: Monotonic, desk: &mut Desk) {
        let Some(peer) = self.peers.get_mut(back.connection) else { return };
        peer.lend(&mut self.spare);
        peer.on_connection(desk, |connection, desk, out| connection.answer(back, answer, now, desk, out));
        touch(&mut self.touched, peer, back.connection);
    }

    /// Looks at everyone's deadlines, and asks everyone to go when the receiver is stopping.
    pub(super) fn round(&mut self, is_stopping: bool, now: Monotonic, desk: &mut Desk) {
        let mut keys = mem::take(&mut self.scratch);
        keys.extend(self.peers.keys());
        for key in keys.drain(..) {
            let Some(peer) = self.peers.get_mut(key) else { continue };
            // What was said in this turn has not been tried yet; what found no room has.
            let has_unsent = !peer.is_writable && peer.sent < peer.out.len();
            peer.on_connection(desk, |connection, desk, out| {
                if is_stopping {
                    connection.stop(now, desk, out);
                }
                connection.tick(has_unsent, now, desk, out);
            });
            if peer.sent < peer.out.len() || matches!(peer.connection.wish(), Wish::Finish | Wish::Close) {
                touch(&mut self.touched, peer, key);
            }
        }
        self.scratch = keys;
    }

    /// Writes what was said in this turn, and lets go of whom nothing more is to be heard.
    pub(super) fn flush(&mut self, desk: &Desk) {
        while let Some(key) = self.touched.pop() {
            let Self { peers, spare, unread, .. } = self;
            let Some(peer) = peers.get_mut(key) else { continue };
            peer.is_listed = false;
            peer.write(desk);
            if peer.out.is_empty() {
                peer.take_back(spare);
            }
            match peer.connection.wish() {
                Wish::Close => drop(peers.remove(key)),
                Wish::Finish if peer.out.is_empty() && !peer.is_shut => {
                    peer.is_shut = true;
                    // Failing means that the peer is gone, which reading will tell.
                    let _gone = shutdown(&peer.socket, Shutdown::Write);
                }
                Wish::Go if peer.is_readable && !unread.contains(&key) => unread.push(key),
                _ => {}
            }
        }
    }

    /// Nobody is served any more.
    pub(super) fn abandon(&mut self, desk: &Desk) {
        for key in self.peers.keys().collect::<Vec<_>>() {
            if let Some(mut peer) = self.peers.remove(key) {
                peer.connection.die(desk);
            }
        }
    }
}

fn touch(touched: &mut Vec<Key>, peer: &mut Peer, key: Key) {
    if !mem::replace(&mut peer.is_listed, true) {
        touched.push(key);
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

    fn take_back(&mut self, spare: &mut Vec<Vec<u8>>) {
        let buffer = mem::take(&mut self.out);
        if spare.len() < SPARE_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            spare.push(buffer);
        }
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

    fn read(&mut self, buffer: &mut [u8], now: Monotonic, desk: &mut Desk) {
        match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => {
                self.is_readable = false;
                self.connection.end(now, desk);
            }
            Ok((length, _)) => {
                self.is_readable = length == buffer.len() || self.is_hung_up;
                self.on_connection(desk, |connection, desk, out| {
                    connection.receive(&mut buffer[..length], now, desk, out)
                });
            }
            Err(rustix::io::Errno::AGAIN) => self.is_readable = false,
            Err(rustix::io::Errno::INTR) => {}
            Err(_reset) => {
                self.is_readable = false;
                self.connection.die(desk);
            }
        }
    }

    fn write(&mut self, desk: &Desk) {
        while self.is_writable && self.sent < self.out.len() {
            match send(&self.socket, &self.out[self.sent..], SendFlags::NOSIGNAL) {
                Ok(length) => {
                    self.sent += length;
                    // What did not fit waits for the next edge.
                    self.is_writable = self.sent == self.out.len();
                }
                Err(rustix::io::Errno::AGAIN) => self.is_writable = false,
                Err(rustix::io::Errno::INTR) => {}
                Err(_reset) => {
                    self.sent = self.out.len();
                    self.connection.die(desk);
                }
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }
}
