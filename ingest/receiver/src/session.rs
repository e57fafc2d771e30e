//! One connection, from its first byte to its last, for every driver that brings its own sockets: finds out which HTTP is
//! spoken, keeps the deadlines, and turns answers into bytes. Bytes and `now` in, bytes out; no socket, no clock.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use store_model::Monotonic;

use crate::answer::{Answer, Form, GRPC_CONTENT_TYPE, GRPC_TRAILERS, Plain};
use crate::body::GRPC_PREFIX_BYTES;
use crate::budget::Permit;
use crate::calls::Calls;
use crate::desk::{Desk, Return};
use crate::http1::Http1;
use crate::http2::{self, Http2, StreamId};
use crate::metrics::{CutReason, Protocol};
use crate::slab::Key;

/// The first bytes of an HTTP/2 client (RFC 9113, section 3.4). No HTTP/1 request begins like this.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection that we ended is still read from. Closing on a sender that is still sending resets it, and our
/// last words are lost with it: a sender that never sees its 413 sends the same again.
const LINGER: Duration = Duration::from_secs(5);

/// How much a peer that was cut may go on to send in that time: enough for what was under way, not for going on.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// [`LINGER`] when the receiver stops.
const LINGER_ON_STOP: Duration = Duration::from_millis(500);

/// How long after the first GOAWAY the second one names the last stream, if the peer does not answer the first.
const SECOND_GOAWAY: Duration = Duration::from_secs(2);

/// Answers to pipelined requests that may wait for the socket; HTTP/2 has a limit of its own. Ten such requests fit where one
/// answer does, so a peer that does not read would else fill memory with what it never takes.
const OUT_BYTES_MAX: usize = 1 << 20;

/// No stream has this number; credit for it reaches the connection's window alone.
const NO_STREAM: StreamId = StreamId(0);

/// What a driver has to do with its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Read and write.
    Go,
    /// Write; an answer is due before more is read.
    Pause,
    /// Write what there is, say that nothing follows, and read on to throw it away.
    Finish,
    /// Close, whatever is left to write.
    Close,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    key: Key,
    /// The port it came to.
    port: Protocol,
    wire: Wire,
    phase: Phase,
    calls: Calls,
    opened_at: Monotonic,
    /// Since when an HTTP/1 head is awaited, or the rest of a refused body thrown away.
    quiet_since: Monotonic,
    /// Since when output has been waiting for the peer.
    stuck_since: Option<Monotonic>,
    /// Bytes that came after the peer was cut off.
    heard_since_cut: Option<usize>,
    /// For what HTTP/1 keeps of requests to come.
    kept: Option<(usize, Permit)>,
}

#[derive(Debug)]
enum Wire {
    /// So many bytes of the preface have come, and nothing else.
    Unknown(usize),
    Http1(Http1),
    Http2(Box<Http2>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// It was asked to go at this moment.
    Leaving(Monotonic),
    /// Nothing more is said or heard; it is closed by this moment.
    Over(Monotonic),
    Dead,
}

impl Session {
    /// Of a connection to the port of `port`, which its driver calls `key`.
    pub(crate) fn new(key: Key, port: Protocol, now: Monotonic) -> Self {
        Self {
            key,
            port,
            wire: Wire::Unknown(0),
            phase: Phase::Open,
            calls: Calls::new(now),
            opened_at: now,
            quiet_since: now,
            stuck_since: None,
            heard_since_cut: None,
            kept: None,
        }
    }

    /// Takes all of `bytes`, cut anywhere.
    pub(crate) fn receive(&mut self, bytes: &[u8], now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        if matches!(self.phase, Phase::Over(_) | Phase::Dead) {
            if let Some(heard) = &mut self.heard_since_cut {
                *heard += bytes.len();
                if *heard > LINGER_BYTES_MAX {
                    self.phase = Phase::Dead;
                }
            }
            return;
        }
        let Wire::Unknown(before) = self.wire else { return self.read(bytes, now, desk, out) };
        let matching = PREFACE[before..].iter().zip(bytes).take_while(|(wanted, got)| wanted == got).count();
        let known = before + matching;
        if known == PREFACE.len() {
            self.wire = Wire::Http2(Box::new(Http2::new(http2::Limits::default(), now, out)));
        } else if matching < bytes.len() {
            self.wire = Wire::Http1(Http1::new());
        } else {
            self.wire = Wire::Unknown(known);
            return;
        }
        self.read(&PREFACE[..before], now, desk, out);
        self.read(bytes, now, desk, out);
    }

    /// Once for `bytes`, and once more for each request that was kept until the one before it was answered.
    fn read(&mut self, mut bytes: &[u8], now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        while self.read_once(bytes, now, desk, out) {
            bytes = &[];
        }
    }

    fn read_once(&mut self, bytes: &[u8], now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) -> bool {
        let result = match &mut self.wire {
            Wire::Unknown(_) => Ok(()),
            Wire::Http1(http1) => {
                let mut sink = self.calls.sink(self.key, (self.port, false), now, desk);
                http1.receive(bytes, &mut sink, out).map_err(CutReason::from)
            }
            Wire::Http2(http2) => {
                let mut sink = self.calls.sink(self.key, (self.port, true), now, desk);
                http2.receive(bytes, now, &mut sink, out).map_err(CutReason::from)
            }
        };
        if let Err(reason) = result {
            desk.due.clear();
            self.cut(reason, now, desk);
            return false;
        }
        self.settle_once(now, desk, out)
    }

    /// Settles, and goes on with what was kept until then.
    fn settle(&mut self, now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        if self.settle_once(now, desk, out) {
            self.read(&[], now, desk, out);
        }
    }

    /// Writes the answers that are known and gives back what was consumed. Whether something was kept that can be read now.
    fn settle_once(&mut self, now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) -> bool {
        let mut answered = false;
        let mut due = std::mem::take(&mut desk.due);
        for (back, answer) in due.drain(..) {
            self.write(back, answer, now, desk, out);
            answered = true;
        }
        desk.due = due;
        match &mut self.wire {
            Wire::Unknown(_) => {}
            Wire::Http2(http2) => {
                // Withheld only from a peer that waits for us: its answers give memory back, and then it is paid.
                if !(desk.shared.budget.is_tight() && self.calls.await_answers()) {
                    for (stream, bytes) in self.calls.debts() {
                        http2.credit(stream, bytes, out);
                    }
                    let loose = std::mem::take(&mut self.calls.loose);
                    if loose > 0 {
                        http2.credit(NO_STREAM, loose, out);
                    }
                }
                if http2.is_drained() {
                    self.phase = Phase::Over(now.plus(LINGER));
                }
            }
            Wire::Http1(http1) => {
                http1.go_on(out);
                let more = answered && http1.wants_bytes() && http1.has_kept();
                if http1.is_over() {
                    self.phase = Phase::Over(now.plus(LINGER));
                } else if out.len() > OUT_BYTES_MAX {
                    self.cut(CutReason::OutputNotRead, now, desk);
                } else if more {
                    return true;
                }
                self.count_kept(now, desk);
            }
        }
        false
    }

    /// What a pipelining peer makes us keep is memory like any other.
    fn count_kept(&mut self, now: Monotonic, desk: &Desk) {
        let Wire::Http1(http1) = &self.wire else { return };
        let bytes = http1.kept_bytes();
        match &mut self.kept {
            _ if bytes == 0 => self.kept = None,
            Some((counted, _)) if *counted == bytes => {}
            kept => {
                *kept = None;
                let mut permit = desk.shared.budget.permit();
                if permit.grow(bytes).is_err() {
                    return self.cut(CutReason::PipelineTooLong, now, desk);
                }
                *kept = Some((bytes, permit));
            }
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
        if self.calls.end(back.stream, now) {
            desk.due.push((back, answer));
            self.settle(now, desk, out);
        }
    }

    fn write(&mut self, back: Return, answer: Answer, now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        let Return { connection: _, stream, protocol, form } = back;
        if protocol.is_grpc() && answer.is_plain_yes() {
            let fields = [("content-type", GRPC_CONTENT_TYPE.as_bytes())];
            let trailers = GRPC_TRAILERS.map(|(name, value)| (name, value.as_bytes()));
            let message = [0; GRPC_PREFIX_BYTES];
            self.put(stream, StatusCode::OK, &fields, &message, Some(&trailers), out);
        } else if protocol == Protocol::Http && answer.is_plain_yes() {
            let body: &[u8] = if form == Form::Json { b"{}" } else { b"" };
            let fields = [("content-type", form.content_type().as_bytes()), ("date", desk.date().as_bytes())];
            self.put(stream, StatusCode::OK, &fields, body, None, out);
        } else {
            self.write_plain(stream, protocol, answer.plain(protocol, form), desk, out);
        }
        self.quiet_since = now;
    }

    fn write_plain(
        &mut self,
        stream: StreamId,
        protocol: Protocol,
        plain: Plain,
        desk: &mut Desk,
        out: &mut Vec<u8>,
    ) {
        let Plain { status, mut fields, body, has_trailers, closes } = plain;
        if !protocol.is_grpc() {
            fields.push(("date", Cow::Owned(desk.date().to_owned())));
        }
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let trailers = GRPC_TRAILERS.map(|(name, value)| (name, value.as_bytes()));
        if let (Wire::Http1(http1), true) = (&mut self.wire, closes) {
            http1.go_away();
        }
        self.put(stream, status, &fields, &body, has_trailers.then_some(&trailers), out);
    }

    fn put(
        &mut self,
        stream: StreamId,
        status: StatusCode,
        fields: http2::Fields<'_>,
        body: &[u8],
        trailers: Option<http2::Fields<'_>>,
        out: &mut Vec<u8>,
    ) {
        match &mut self.wire {
            Wire::Unknown(_) => {}
            // Trailers are gRPC's, which is not spoken over HTTP/1.
            Wire::Http1(http1) => http1.respond(stream, status, fields, body, out),
            Wire::Http2(http2) => http2.respond(stream, status.as_u16(), fields, body, trailers, out),
        }
    }

    /// The peer says that nothing follows. One that still waits for an answer may hear it.
    pub(crate) fn end(&mut self, now: Monotonic, desk: &Desk) {
        match &mut self.wire {
            Wire::Http1(http1) if self.calls.await_answers() && self.phase == Phase::Open => {
                http1.go_away();
                self.phase = Phase::Leaving(now);
            }
            _ => self.die(desk),
        }
    }

    /// The connection is gone.
    pub(crate) fn die(&mut self, desk: &Desk) {
        self.calls.abandon(desk);
        self.phase = Phase::Dead;
    }

    /// Ends it for `reason`. What is in its output may still be read.
    pub(crate) fn cut(&mut self, reason: CutReason, now: Monotonic, desk: &Desk) {
        desk.shared.metrics.of(self.port).connection_cut(reason);
        self.calls.abandon(desk);
        self.heard_since_cut = Some(0);
        // What it was told last, it may still read.
        self.phase = Phase::Over(now.plus(LINGER));
    }

    /// Asks the peer to go: what is under way is finished, nothing new is begun.
    pub(crate) fn ask_to_go(&mut self, now: Monotonic, desk: &Desk, out: &mut Vec<u8>) {
        match (&mut self.phase, &mut self.wire) {
            (Phase::Open, Wire::Unknown(_)) => self.die(desk),
            (Phase::Open, Wire::Http1(http1)) => {
                http1.go_away();
                self.phase =
                    if http1.is_over() { Phase::Over(now.plus(LINGER)) } else { Phase::Leaving(now) };
            }
            (Phase::Open, Wire::Http2(http2)) => {
                http2.go_away(out);
                self.phase =
                    if http2.is_drained() { Phase::Over(now.plus(LINGER)) } else { Phase::Leaving(now) };
            }
            _ => {}
        }
    }

    /// The receiver stops: as [`Self::ask_to_go`], and without long goodbyes.
    pub(crate) fn stop(&mut self, now: Monotonic, desk: &Desk, out: &mut Vec<u8>) {
        self.ask_to_go(now, desk, out);
        if let Phase::Over(until) = &mut self.phase {
            *until = (*until).min(now.plus(LINGER_ON_STOP));
        }
    }

    /// Looks at the deadlines. `has_unsent` says that output waits for the peer.
    pub(crate) fn tick(&mut self, has_unsent: bool, now: Monotonic, desk: &mut Desk, out: &mut Vec<u8>) {
        let body_timeout = desk.shared.config.body_timeout;
        let stuck_since = *self.stuck_since.get_or_insert(now);
        if !has_unsent {
            self.stuck_since = None;
        } else if now.since(stuck_since) >= body_timeout {
            self.cut(CutReason::OutputNotRead, now, desk);
            self.phase = Phase::Dead;
        }
        match self.phase {
            Phase::Dead => return,
            Phase::Over(until) => {
                if now >= until {
                    self.phase = Phase::Dead;
                }
                return;
            }
            // Time for a body under way and for its answer.
            Phase::Leaving(since) if now.since(since) >= body_timeout * 2 => {
                return self.cut(CutReason::Overstayed, now, desk);
            }
            Phase::Leaving(since) => {
                if let Wire::Http2(http2) = &mut self.wire
                    && now.since(since) >= SECOND_GOAWAY
                {
                    http2.go_away(out);
                }
            }
            Phase::Open => self.look_at_age(now, desk, out),
        }
        self.look_at_heads(now, desk);
        if self.phase != Phase::Dead {
            self.calls.look_at_bodies(now, desk);
            self.settle(now, desk, out);
        }
    }

    fn look_at_age(&mut self, now: Monotonic, desk: &Desk, out: &mut Vec<u8>) {
        let config = &desk.shared.config;
        let is_idle = self.calls.are_none() && now.since(self.calls.active_at) >= config.idle_timeout;
        // Connections that were opened together, after a restart say, shall not all come back together.
        let spread = config.connection_age_max / 512 * (self.key.index() % 64);
        if self.calls.are_none()
            && let Wire::Http2(http2) = &mut self.wire
        {
            http2.trim();
            self.calls.trim();
        }
        let is_unknown = matches!(self.wire, Wire::Unknown(_));
        if !is_unknown && (is_idle || now.since(self.opened_at) + spread >= config.connection_age_max) {
            self.ask_to_go(now, desk, out);
        }
    }

    /// Heads that do not come, and refused bodies that do not end.
    fn look_at_heads(&mut self, now: Monotonic, desk: &Desk) {
        let config = &desk.shared.config;
        match &self.wire {
            Wire::Unknown(_) if now.since(self.opened_at) >= config.header_timeout => {
                self.cut(CutReason::HeaderTimeout, now, desk);
                self.phase = Phase::Dead;
            }
            Wire::Http1(http1)
                if http1.awaits_head() && now.since(self.quiet_since) >= config.header_timeout =>
            {
                if http1.has_kept() {
                    self.cut(CutReason::HeaderTimeout, now, desk);
                }
                self.die(desk);
            }
            Wire::Http1(http1) => {
                let is_endless = http1.discarded().is_some_and(|bytes| {
                    bytes > config.request_bytes_max as u64 || now.since(self.quiet_since) >= LINGER
                });
                if is_endless {
                    self.die(desk);
                }
            }
            _ => {}
        }
    }

    /// What the driver has to do with the socket now.
    pub(crate) fn wish(&self) -> Wish {
        match (&self.phase, &self.wire) {
            (Phase::Dead, _) => Wish::Close,
            (Phase::Over(_), _) => Wish::Finish,
            (_, Wire::Http1(http1)) if !http1.wants_bytes() => Wish::Pause,
            _ => Wish::Go,
        }
    }
}

#[cfg(test)]
mod tests;
