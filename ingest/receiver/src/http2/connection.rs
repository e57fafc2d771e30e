//! One connection's state.

use store_model::Monotonic;

use super::{Cut, ErrorCode, Fields, Limits, Sink, StreamId};

/// One HTTP/2 connection, seen from the server. A few hundred bytes while idle.
pub struct Http2 {
    limits: Limits,
}

impl Http2 {
    /// Writes our SETTINGS and the connection's window; the client's preface is expected next.
    pub fn new(limits: Limits, _now: Monotonic, _out: &mut Vec<u8>) -> Self {
        Self { limits }
    }

    /// Takes all of `bytes`, which may be cut anywhere.
    ///
    /// # Errors
    /// The connection is over: GOAWAY is in `out`; flush it and close.
    pub fn receive(
        &mut self,
        _bytes: &[u8],
        _now: Monotonic,
        _sink: &mut impl Sink,
        out: &mut Vec<u8>,
    ) -> Result<(), Cut> {
        if out.len() > self.limits.out_bytes_max { Err(Cut::OutputNotRead) } else { Ok(()) }
    }

    /// `bytes` of the body of `stream` were consumed: the peer may send as many again. For a stream already gone only
    /// the connection's share is given back. Withhold it to push back.
    pub fn credit(&mut self, _stream: StreamId, _bytes: usize, _out: &mut Vec<u8>) {}

    /// A whole answer. What the peer's windows do not allow yet waits inside and leaves with a later
    /// [`Self::receive`]. Does nothing for a stream that is gone.
    pub fn respond(
        &mut self,
        _stream: StreamId,
        _status: u16,
        _fields: Fields<'_>,
        _body: &[u8],
        _trailers: Option<Fields<'_>>,
        _out: &mut Vec<u8>,
    ) {
    }

    /// Ends `stream` without an answer. The sink is not told.
    pub fn reset(&mut self, _stream: StreamId, _code: ErrorCode, _out: &mut Vec<u8>) {}

    /// First call: announces the end; streams are still taken until the peer has seen it (or until the second call),
    /// then refused.
    pub fn go_away(&mut self, _out: &mut Vec<u8>) {}

    /// Streams that are not over, answers waiting for windows included.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        0
    }

    /// [`Self::go_away`] was called, or the peer said GOAWAY.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        false
    }

    /// No stream is open and none will come: the connection may be closed once `out` is flushed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        false
    }

    /// Gives memory back that only a busy connection needs; for a connection found idle.
    pub fn trim(&mut self) {}
}
