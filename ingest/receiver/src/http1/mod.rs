//! The server side of HTTP/1.1 (RFC 9112): bytes in, bytes and calls to a [`Sink`] out, one request after the other. It
//! owns the framing of requests and answers; it never reads a clock, never touches a socket and knows nothing of OTLP.
//!
//! Where two readers of one message could disagree about its end, the message is refused and the connection with it:
//! both `content-length` and `transfer-encoding`, either of them twice, any coding but `chunked`, folded lines, a bare
//! LF in chunk framing. `upgrade` is ignored.
//!
//! Read in this order: this file (a connection's state), `head`, `chunked`.

mod chunked;
mod head;

use std::mem;

use http::StatusCode;

use self::chunked::Chunks;
use self::head::Head;
use crate::http2::{Fields, Sink, StreamId};

/// A head beyond this is answered with 431.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Why a peer is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It broke the protocol, or might mean two things.
    Malformed,
    /// Its head is too large.
    HeadTooLarge,
    /// It does not speak HTTP/1, so it is not answered in it either: a broken HTTP/2 preface ends here.
    OtherProtocol,
}

/// One HTTP/1 connection, seen from the server.
#[derive(Debug)]
pub(crate) struct Http1 {
    /// Bytes that were received and not understood yet: half a line, or the next request while one awaits its answer.
    carry: Vec<u8>,
    /// How many of them have been understood since.
    carry_read: usize,
    state: State,
    /// Which request, so that an answer never meets another one.
    stream: StreamId,
    /// Whether another request may follow.
    keeps: bool,
    is_head_request: bool,
    /// HTTP/1.0 ends connections unless told otherwise.
    is_old: bool,
    /// The sender holds its body back until it hears `100 Continue`.
    awaits_continue: bool,
    discarded: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Body(Body),
    /// The request is complete and its answer is not there yet.
    Complete,
    /// It was answered early; what is left of it is thrown away.
    Rest(Body),
    /// Nothing more is read.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked(Chunks),
}

/// What a body made of the bytes it was given.
struct Taken {
    used: usize,
    ends: bool,
}

impl Http1 {
    pub(crate) fn new() -> Self {
        Self {
            carry: Vec::new(),
            carry_read: 0,
            state: State::Head,
            stream: StreamId(0),
            keeps: true,
            is_head_request: false,
            is_old: false,
            awaits_continue: false,
            discarded: 0,
        }
    }

    /// Takes all of `bytes`, which may be cut anywhere. While a request awaits its answer they are only kept, so call
    /// it again with nothing after [`Self::respond`].
    ///
    /// # Errors
    /// The connection is over: an answer that says so is in `out`; flush it and close.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        sink: &mut impl Sink,
        out: &mut Vec<u8>,
    ) -> Result<(), Cut> {
        let result = self.read(bytes, sink);
        if let Err(cut) = result {
            self.state = State::End;
            self.carry = Vec::new();
            self.carry_read = 0;
            let status = match cut {
                Cut::Malformed => "400 Bad Request",
                Cut::HeadTooLarge => "431 Request Header Fields Too Large",
                Cut::OtherProtocol => return result,
            };
            let lines = ["HTTP/1.1 ", status, "\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"];
            lines.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        }
        result
    }

    fn read(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Cut> {
        if self.carry.is_empty() {
            let used = self.feed(bytes, sink)?;
            self.carry.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        self.carry.extend_from_slice(bytes);
        let mut carry = mem::take(&mut self.carry);
        self.carry_read += self.feed(&carry[self.carry_read..], sink)?;
        if self.carry_read == carry.len() {
            // Heads are short and connections many: what was needed for a burst is not kept.
            carry = Vec::new();
            self.carry_read = 0;
        } else if self.carry_read > carry.len() / 2 {
            // Not for each request: thousands may have come at once.
            carry.drain(..self.carry_read);
            self.carry_read = 0;
        }
        self.carry = carry;
        Ok(())
    }

    /// As far as the bytes reach or the state allows; how many were used.
    fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, Cut> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            match self.state {
                State::Head => match self.begin(rest, sink)? {
                    Some(length) => used += length,
                    None => return Ok(used),
                },
                State::Body(mut body) => {
                    let stream = self.stream;
                    let taken = body.take(rest, &mut |piece, ends| sink.data(stream, piece, ends))?;
                    used += taken.used;
                    self.state = if taken.ends { State::Complete } else { State::Body(body) };
                    if !taken.ends {
                        return Ok(used);
                    }
                }
                State::Rest(mut body) => {
                    let taken = body.take(rest, &mut |piece, _| self.discarded += piece.len() as u64)?;
                    used += taken.used;
                    self.state = State::Rest(body);
                    if !taken.ends {
                        return Ok(used);
                    }
                    self.next();
                }
                State::Complete => return Ok(used),
                State::End => return Ok(bytes.len()),
            }
        }
    }

    /// Reads a head; `None` while it is not complete.
    fn begin(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<Option<usize>, Cut> {
        // An empty line before a request is an old habit (RFC 9112, section 2.2).
        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let bytes = &bytes[blank..];
        let stream = StreamId(self.stream.0.wrapping_add(1));
        let mut field = |name: &[u8], value: &[u8]| sink.field(stream, name, value);
        let Some(Head { length, body, keeps, is_old, is_head_request, awaits_continue }) =
            head::read(bytes, HEAD_BYTES_MAX, &mut field)?
        else {
            return Ok((blank > 0 && bytes.is_empty()).then_some(blank));
        };
        self.stream = stream;
        self.keeps &= keeps;
        (self.is_old, self.is_head_request, self.awaits_continue) =
            (is_old, is_head_request, awaits_continue);
        self.discarded = 0;
        let ends = body == Body::Length(0);
        self.state = if ends { State::Complete } else { State::Body(body) };
        sink.head(stream, ends);
        Ok(Some(blank + length))
    }

    /// Tells a sender that holds its body back to send it.
    pub(crate) fn go_on(&mut self, out: &mut Vec<u8>) {
        if mem::take(&mut self.awaits_continue) && matches!(self.state, State::Body(_)) {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// The answer to the request at hand. What is left of its body will be thrown away, unless the sender has not begun
    /// to send it: whether it will cannot be known, so the connection ends.
    pub(crate) fn respond(
        &mut self,
        stream: StreamId,
        status: StatusCode,
        fields: Fields<'_>,
        body: &[u8],
        out: &mut Vec<u8>,
    ) {
        if stream != self.stream || !matches!(self.state, State::Complete | State::Body(_)) {
            return;
        }
        self.awaits_continue &= self.state != State::Complete;
        self.keeps &= !self.awaits_continue;
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in fields {
            [name.as_bytes(), b": ", value, b"\r\n"].iter().for_each(|part| out.extend_from_slice(part));
        }
        if !self.keeps {
            out.extend_from_slice(b"connection: close\r\n");
        } else if self.is_old {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"content-length: ");
        push_decimal(body.len(), out);
        out.extend_from_slice(b"\r\n\r\n");
        if !self.is_head_request {
            out.extend_from_slice(body);
        }
        match self.state {
            State::Body(_) if self.awaits_continue => self.state = State::End,
            State::Body(body) => self.state = State::Rest(body),
            _ => self.next(),
        }
    }

    fn next(&mut self) {
        self.state = if self.keeps { State::Head } else { State::End };
    }

    /// No request after the one at hand; what has come of the next is forgotten, since its sender will hear so.
    pub(crate) fn go_away(&mut self) {
        self.keeps = false;
        if self.state == State::Head {
            self.state = State::End;
        }
    }

    /// A head is awaited, or has begun to come.
    pub(crate) fn awaits_head(&self) -> bool {
        self.state == State::Head
    }

    /// Whether reading more makes sense: not while an answer is due, or a sender could fill memory with requests.
    pub(crate) fn wants_bytes(&self) -> bool {
        self.state != State::Complete
    }

    /// A request was answered before it was complete, and so many bytes of it have been thrown away since.
    pub(crate) fn discarded(&self) -> Option<u64> {
        matches!(self.state, State::Rest(_)).then_some(self.discarded)
    }

    /// Nothing more will be read.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::End
    }

    /// Bytes kept for later, which count as memory of a request in flight.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.carry.capacity()
    }

    /// Whether kept bytes may hold more than the state they were kept in allowed to read.
    pub(crate) fn has_kept(&self) -> bool {
        !self.carry.is_empty()
    }
}

impl Body {
    /// Hands on what of `bytes` belongs to the body, and whether it ends there.
    fn take(&mut self, bytes: &[u8], give: &mut impl FnMut(&[u8], bool)) -> Result<Taken, Cut> {
        match self {
            Self::Chunked(chunks) => chunks.take(bytes, give),
            Self::Length(left) => {
                let used = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= used as u64;
                let ends = *left == 0;
                if used > 0 || ends {
                    give(&bytes[..used], ends);
                }
                Ok(Taken { used, ends })
            }
        }
    }
}

fn push_decimal(number: usize, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    let mut rest = number;
    loop {
        start -= 1;
        digits[start] = b"0123456789"[rest % 10];
        rest /= 10;
        if rest == 0 {
            return out.extend_from_slice(&digits[start..]);
        }
    }
}

#[cfg(test)]
mod tests;
