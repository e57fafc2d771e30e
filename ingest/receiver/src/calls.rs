//! The requests of one connection: heads gathered, bodies received, answers awaited. It is what the protocol cores call
//! while they read; it never writes to the connection, which happens when they are done.

use std::mem;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use store_model::Monotonic;

use crate::answer::{Answer, Form, Reason, Refusal};
use crate::body::{Buffer, GrpcMessage};
use crate::budget::Permit;
use crate::desk::{Desk, Return};
use crate::http2::{Sink, StreamId};
use crate::metrics::Protocol;
use crate::request::{Fields, Head};
use crate::shared::REQUEST_BYTES;
use crate::slab::Key;

/// A request that is nothing for us is heard out this far and this long: most of these bodies are small or have mistakes
/// of their own, and a stream that is answered half way is reset and cannot be told of them any more.
const HEARD_OUT_BYTES: usize = 64 << 10;
const HEARD_OUT_FOR: Duration = Duration::from_millis(250);

/// A connection's requests.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    fields: Fields,
    open: Vec<Call>,
    /// Bytes received for requests that need no more of them: only the connection's window hears of those.
    pub(crate) loose: usize,
    /// When the last request began or ended.
    pub(crate) active_at: Monotonic,
}

#[derive(Debug)]
struct Call {
    back: Return,
    state: State,
    received: u64,
    /// How much must have been received when the body is looked at again, and when it was looked at last.
    due: u64,
    looked_at: Monotonic,
    /// Received and not yet given back to the peer's window.
    owed: usize,
}

#[derive(Debug)]
enum State {
    Grpc(Head, GrpcMessage),
    Http(Head, Buffer),
    /// Its answer is known; so many bytes more are heard before it is given.
    Refused {
        refusal: Refusal,
        patience: usize,
        _permit: Permit,
    },
    /// The intake has it.
    Submitted,
}

impl State {
    fn push(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        match self {
            Self::Grpc(_, message) => message.push(piece),
            Self::Http(_, buffer) => buffer.push(piece),
            Self::Refused { patience, .. } if piece.len() < *patience => {
                *patience -= piece.len();
                Ok(())
            }
            Self::Refused { .. } => mem::replace(self, Self::Submitted).finish().map(drop),
            Self::Submitted => Ok(()),
        }
    }

    fn finish(self) -> Result<(Head, Bytes, Permit), Refusal> {
        match self {
            Self::Grpc(head, message) => {
                let (compressed, stored, permit) = message.finish()?;
                Ok((head.with_compressed_flag(compressed)?, stored, permit))
            }
            Self::Http(head, buffer) => {
                let (stored, permit) = buffer.finish();
                Ok((head, stored, permit))
            }
            Self::Refused { refusal, .. } => Err(refusal),
            Self::Submitted => Err(Refusal::new(Reason::Internal, "a request was complete twice")),
        }
    }
}

impl Calls {
    pub(crate) fn new(now: Monotonic) -> Self {
        Self { active_at: now, ..Self::default() }
    }

    /// The sink of one connection for one call of its protocol core.
    pub(crate) fn sink<'a>(
        &'a mut self,
        connection: Key,
        (port, is_http2): (Protocol, bool),
        now: Monotonic,
        desk: &'a mut Desk,
    ) -> Reading<'a> {
        Reading { calls: self, connection, port, is_http2, now, desk }
    }

    pub(crate) fn are_none(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether an answer of the intake is awaited: memory will be given back without this peer's help.
    pub(crate) fn await_answers(&self) -> bool {
        self.open.iter().any(|call| matches!(call.state, State::Submitted))
    }

    /// Forgets the request that is being answered; false when it is gone already.
    pub(crate) fn end(&mut self, stream: StreamId, now: Monotonic) -> bool {
        let found = self.find(stream);
        if let Some(index) = found {
            self.loose += self.open.swap_remove(index).owed;
            self.active_at = now;
        }
        found.is_some()
    }

    fn find(&self, stream: StreamId) -> Option<usize> {
        self.open.iter().rposition(|call| call.back.stream == stream)
    }

    /// Each stream's bytes that its peer may be told are consumed; they count as told.
    pub(crate) fn debts(&mut self) -> impl Iterator<Item = (StreamId, usize)> {
        let owing = self.open.iter_mut().filter(|call| call.owed > 0);
        owing.map(|call| (call.back.stream, mem::take(&mut call.owed)))
    }

    /// Refuses the bodies that came too slowly, and those that were heard out long enough.
    pub(crate) fn look_at_bodies(&mut self, now: Monotonic, desk: &mut Desk) {
        let advance = desk.shared.body_advance_min();
        let timeout = desk.shared.config.body_timeout;
        let mut index = 0;
        while let Some(call) = self.open.get_mut(index) {
            let waited = now.since(call.looked_at);
            let refusal = match &mut call.state {
                State::Refused { .. } if waited >= HEARD_OUT_FOR => {
                    mem::replace(&mut call.state, State::Submitted).finish().err()
                }
                State::Grpc(..) | State::Http(..) if waited >= timeout => {
                    let is_slow = call.received < call.due;
                    (call.due, call.looked_at) = (call.received + advance, now);
                    is_slow.then(|| Refusal::new(Reason::Timeout, "the body came too slowly"))
                }
                _ => None,
            };
            let Some(refusal) = refusal else {
                index += 1;
                continue;
            };
            let call = self.open.swap_remove(index);
            self.loose += call.owed;
            self.active_at = now;
            call.refused(refusal, desk);
        }
    }

    /// The connection is gone, and whoever might read an answer.
    pub(crate) fn abandon(&mut self, desk: &Desk) {
        self.open.drain(..).for_each(|call| call.abandon(desk));
    }

    /// Gives memory back that only a busy connection needs.
    pub(crate) fn trim(&mut self) {
        if self.open.is_empty() {
            self.open = Vec::new();
        }
    }
}

impl Call {
    fn count_bytes(&self, desk: &Desk) {
        desk.shared.metrics.of(self.back.protocol).received(self.received);
    }

    fn refused(self, refusal: Refusal, desk: &mut Desk) {
        self.count_bytes(desk);
        desk.refuse(self.back, refusal);
    }

    /// Its sender left. What the intake has stays counted until it is answered.
    fn abandon(self, desk: &Desk) {
        if matches!(self.state, State::Submitted) {
            return;
        }
        self.count_bytes(desk);
        let refusal = match self.state {
            State::Refused { refusal, .. } => refusal,
            _ => Refusal::new(Reason::Gone, "the body was cut off"),
        };
        let _unread = desk.counted(self.back.protocol, Answer::Refused(refusal), 0);
    }
}

/// What a protocol core calls while it reads one connection.
pub(crate) struct Reading<'a> {
    calls: &'a mut Calls,
    connection: Key,
    /// The port it came to.
    port: Protocol,
    is_http2: bool,
    now: Monotonic,
    desk: &'a mut Desk,
}

impl Reading<'_> {
    /// From a head to a body to be received.
    fn begin(&mut self, protocol: Protocol, fields: Fields) -> Result<State, Refusal> {
        let head = fields.head(protocol, &self.desk.tenants)?;
        let permit = self.desk.shared.admit()?;
        let bytes_max = self.desk.shared.config.request_bytes_max;
        let pool = Rc::clone(&self.desk.pool);
        if protocol.is_grpc() {
            return Ok(State::Grpc(head, GrpcMessage::new(bytes_max, permit, pool)));
        }
        let buffer = Buffer::new(head.declared, bytes_max, permit, pool)?;
        Ok(State::Http(head, buffer))
    }

    /// A refused request whose rest is worth hearing. Over HTTP/1 the sender may be waiting for the answer instead of
    /// sending, and nothing is reset there; without memory nobody is heard out.
    fn hear_out(&self, ends: bool, refusal: Refusal) -> Result<State, Refusal> {
        let mut permit = self.desk.shared.budget.permit();
        let is_heard = self.is_http2 && !ends && refusal.is_of_another_kind();
        if !is_heard || permit.grow(REQUEST_BYTES).is_err() {
            return Err(refusal);
        }
        Ok(State::Refused { refusal, patience: HEARD_OUT_BYTES, _permit: permit })
    }

    fn finish(&mut self, index: usize) {
        let call = &mut self.calls.open[index];
        call.count_bytes(self.desk);
        // Only the connection's window is of interest from here on.
        self.calls.loose += mem::take(&mut call.owed);
        let back = call.back;
        let outcome = match mem::replace(&mut call.state, State::Submitted).finish() {
            Ok(body) => self.desk.take(back, body).map(|answer| (back, answer)),
            Err(refusal) => {
                self.calls.open.swap_remove(index);
                return self.desk.refuse(back, refusal);
            }
        };
        if let Some(answer) = outcome {
            self.calls.open.swap_remove(index);
            self.desk.due.push(answer);
        }
    }
}

impl Sink for Reading<'_> {
    fn field(&mut self, _: StreamId, name: &[u8], value: &[u8]) {
        self.calls.fields.add(name, value, &mut self.desk.tenants);
    }

    fn head(&mut self, stream: StreamId, ends: bool) {
        self.calls.active_at = self.now;
        let fields = mem::take(&mut self.calls.fields);
        let (protocol, form): (_, Form) = (fields.protocol(self.port, self.is_http2), fields.answer_form());
        let back = Return { connection: self.connection, stream, protocol, form };
        let state = match self.begin(protocol, fields) {
            Ok(state) => state,
            Err(refusal) => match self.hear_out(ends, refusal) {
                Ok(state) => state,
                Err(refusal) => return self.desk.refuse(back, refusal),
            },
        };
        let due = self.desk.shared.body_advance_min();
        self.calls.open.push(Call { back, state, received: 0, due, looked_at: self.now, owed: 0 });
        if ends {
            self.finish(self.calls.open.len() - 1);
        }
    }

    fn data(&mut self, stream: StreamId, bytes: &[u8], ends: bool) {
        let Some(index) = self.calls.find(stream) else {
            self.calls.loose += bytes.len();
            return;
        };
        let call = &mut self.calls.open[index];
        call.received += bytes.len() as u64;
        call.owed += bytes.len();
        if let Err(refusal) = call.state.push(bytes) {
            let call = self.calls.open.swap_remove(index);
            self.calls.loose += call.owed;
            return call.refused(refusal, self.desk);
        }
        if ends {
            self.finish(index);
        }
    }

    fn reset(&mut self, stream: StreamId) {
        // A head that broke a rule half way leaves nothing to the next one.
        self.calls.fields = Fields::default();
        if let Some(index) = self.calls.find(stream) {
            let call = self.calls.open.swap_remove(index);
            self.calls.loose += call.owed;
            self.calls.active_at = self.now;
            call.abandon(self.desk);
        }
    }
}
