//! A connection as its driver sees it: a [`Session`], with TLS beneath where the port has it. A driver calls the same in
//! both cases and never knows which it is. No socket, no clock.

use std::mem;

use store_model::Monotonic;

use crate::answer::Answer;
use crate::desk::{Desk, Return};
use crate::metrics::{CutReason, Protocol};
use crate::session::{Session, Wish};
use crate::shared::Shared;
use crate::slab::Key;
use crate::tls::secured::{Secured, Side};

/// Output that waits for a peer with TLS. The session bounds its own, and cannot see what has been sealed already.
const OUT_BYTES_MAX: usize = 1 << 20;

/// One connection.
pub(crate) struct Connection {
    session: Session,
    secured: Option<Box<Secured>>,
    opened_at: Monotonic,
}

impl Connection {
    /// To the port of `port`, which its driver calls `key`.
    pub(crate) fn new(key: Key, port: Protocol, now: Monotonic, shared: &Shared) -> Self {
        let secured = shared.tls(port).map(|tls| Box::new(Secured::new(tls.server())));
        Self { session: Session::new(key, port, now), secured, opened_at: now }
    }

    /// Takes all of `bytes`, cut anywhere. They are scratch space afterwards.
    pub(crate) fn receive(&mut self, bytes: &mut [u8], now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        let Self { session, secured: Some(secured), .. } = self else {
            return self.session.receive(bytes, now, desk, out);
        };
        if matches!(session.wish(), Wish::Finish | Wish::Close) {
            return;
        }
        let mut text = mem::take(&mut desk.text);
        let opened = secured.open(bytes, out, &mut |piece| session.receive(piece, now, desk, &mut text));
        self.seal(text, now, desk, out);
        match opened {
            Ok(Side::Open) => {}
            Ok(Side::Ended) => self.session.end(now, desk),
            Err(reason) => self.session.cut(reason, now, desk),
        }
    }

    /// The answer of the intake to a request of this connection.
    pub(crate) fn answer(
        &mut self,
        back: Return,
        answer: Answer,
        now: Monotonic,
        desk: &mut Desk,
        out: &mut Vec<u8>,
    ) {
        self.say(now, desk, out, |session, desk, out| session.answer(back, answer, now, desk, out));
    }

    /// The peer says that nothing follows.
    pub(crate) fn end(&mut self, now: Monotonic, desk: &Desk) {
        self.session.end(now, desk);
    }

    /// The connection is gone.
    pub(crate) fn die(&mut self, desk: &Desk) {
        self.session.die(desk);
    }

    /// The receiver stops: what is under way is finished, nothing new is begun.
    pub(crate) fn stop(&mut self, now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        self.say(now, desk, out, |session, desk, out| session.stop(now, desk, out));
    }

    /// Looks at the deadlines. `has_unsent` says that output waits for the peer.
    pub(crate) fn tick(&mut self, has_unsent: bool, now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        let is_handshaking = self.secured.as_ref().is_some_and(|secured| secured.is_handshaking());
        if is_handshaking
            && self.session.wish() == Wish::Go
            && now.since(self.opened_at) >= desk.shared.config.header_timeout
        {
            self.session.cut(CutReason::TlsTimeout, now, desk);
            return self.session.die(desk);
        }
        self.say(now, desk, out, |session, desk, out| session.tick(has_unsent, now, desk, out));
    }

    /// What the driver has to do with the socket now.
    pub(crate) fn wish(&self) -> Wish {
        self.session.wish()
    }

    /// Has the session say something, and seals it where the port has TLS.
    fn say(
        &mut self,
        now: Monotonic,
        desk: &mut Desk,
        out: &mut Vec<u8>,
        say: impl FnOnce(&mut Session, &mut Desk, &mut Vec<u8>),
    ) {
        if self.secured.is_none() {
            return say(&mut self.session, desk, out);
        }
        let mut text = mem::take(&mut desk.text);
        say(&mut self.session, desk, &mut text);
        self.seal(text, now, desk, out);
    }

    /// Seals `text`, gives the buffer back, and adds the goodbye when nothing follows.
    fn seal(&mut self, mut text: Vec<u8>, now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        let Self { session, secured: Some(secured), .. } = self else { return };
        let sealed = secured.seal(&text, out);
        text.clear();
        desk.text = text;
        if let Err(reason) = sealed {
            session.cut(reason, now, desk);
        } else if out.len() > OUT_BYTES_MAX && matches!(session.wish(), Wish::Go | Wish::Pause) {
            session.cut(CutReason::OutputNotRead, now, desk);
        }
        if session.wish() == Wish::Finish {
            secured.close(out);
        }
    }
}
