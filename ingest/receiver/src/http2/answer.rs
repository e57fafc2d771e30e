//! Answers: header blocks, bodies and trailers on their way out, and what waits for the peer's windows.
//!
//! Fields are written as literals that enter no table. Answers are few and short, and a peer that has no table of ours
//! to keep cannot disagree with us about it.

use super::connection::Http2;
use super::frame::{FrameHeader, HEADER_BYTES, flag, kind, write_reset};
use super::streams::{End, Waiting};
use super::{ErrorCode, Fields, StreamId};

impl Http2 {
    /// A whole answer. What the peer's windows do not allow yet waits inside and leaves with a later
    /// [`Self::receive`]. If the request has not ended, its rest is refused once the answer is out. Does nothing for a
    /// stream that is gone or answered.
    pub fn respond(
        &mut self,
        stream: StreamId,
        status: u16,
        fields: Fields<'_>,
        body: &[u8],
        trailers: Option<Fields<'_>>,
        out: &mut Vec<u8>,
    ) {
        let frame_bytes = self.peer_frame_bytes;
        let Some(open) = self.streams.get(stream.0).filter(|open| open.waiting.is_none()) else { return };
        // An answer carries the measurement PINGs of its round trip.
        self.pings.forgive();
        let is_short = body.is_empty() && trailers.is_none();
        let flags = if is_short { flag::END_STREAM } else { 0 };
        write_block(stream.0, flags, frame_bytes, out, |out| {
            write_status(status, out);
            write_fields(fields, out);
        });
        if is_short {
            return self.finish(stream.0, out);
        }
        let window = open.send_window.min(self.send_window);
        let body_bytes = i64::try_from(body.len()).unwrap_or(i64::MAX);
        if body_bytes <= window {
            self.send_window -= body_bytes;
            write_data(stream.0, body, trailers.is_none(), frame_bytes, out);
            if let Some(fields) = trailers {
                write_block(stream.0, flag::END_STREAM, frame_bytes, out, |out| write_fields(fields, out));
            }
            return self.finish(stream.0, out);
        }
        let trailers = trailers.map(|fields| {
            let mut block = Vec::new();
            write_fields(fields, &mut block);
            block
        });
        let waiting = Waiting { body: body.to_vec(), sent: 0, trailers };
        if self.waiting_bytes + waiting.bytes() + out.len() > self.limits.out_bytes_max {
            self.answer_dropped = true;
            return self.reset(stream, ErrorCode::EnhanceYourCalm, out);
        }
        self.waiting_bytes += waiting.bytes();
        open.waiting = Some(Box::new(waiting));
        self.flush(stream.0, out);
    }

    /// Sends what the windows allow of the answers that wait, the oldest stream first.
    pub(super) fn flush_all(&mut self, out: &mut Vec<u8>) {
        let mut id = 0;
        while self.waiting_bytes > 0
            && let Some(next) = self.streams.next_after(id)
        {
            self.flush(next, out);
            id = next;
        }
    }

    /// The same for one stream.
    pub(super) fn flush(&mut self, id: u32, out: &mut Vec<u8>) {
        let frame_bytes = self.peer_frame_bytes;
        let Some(stream) = self.streams.get(id) else { return };
        let Some(waiting) = &mut stream.waiting else { return };
        let rest = &waiting.body[waiting.sent..];
        let window = usize::try_from(stream.send_window.min(self.send_window)).unwrap_or(0);
        let (now, later) = rest.split_at(window.min(rest.len()));
        let is_last = later.is_empty();
        if now.is_empty() && !is_last {
            return;
        }
        let sent = i64::try_from(now.len()).unwrap_or(i64::MAX);
        stream.send_window -= sent;
        self.send_window -= sent;
        write_data(id, now, is_last && waiting.trailers.is_none(), frame_bytes, out);
        waiting.sent += now.len();
        if is_last {
            if let Some(block) = &waiting.trailers {
                write_block(id, flag::END_STREAM, frame_bytes, out, |out| out.extend_from_slice(block));
            }
            self.finish(id, out);
        }
    }

    /// The answer is out. A client that is still sending is told that nobody listens: RFC 9113, section 8.1.
    fn finish(&mut self, id: u32, out: &mut Vec<u8>) {
        if self.streams.get(id).is_some_and(|stream| stream.request_ended) {
            self.remove(id, End::Complete);
        } else {
            write_reset(id, ErrorCode::NoError, out);
            self.remove(id, End::ByUs);
        }
    }
}

/// DATA frames of what the peer takes at a time; for an empty `bytes` only the one that ends the stream.
fn write_data(stream: u32, bytes: &[u8], ends: bool, frame_bytes: u32, out: &mut Vec<u8>) {
    let most = usize::try_from(frame_bytes).unwrap_or(usize::MAX);
    let mut rest = bytes;
    while !rest.is_empty() || ends {
        let (now, later) = rest.split_at(rest.len().min(most));
        let is_last = ends && later.is_empty();
        let length = u32::try_from(now.len()).unwrap_or(frame_bytes);
        let flags = if is_last { flag::END_STREAM } else { 0 };
        FrameHeader { length, kind: kind::DATA, flags, stream }.write(out);
        out.extend_from_slice(now);
        rest = later;
        if is_last {
            break;
        }
    }
}

/// A HEADERS frame around what `write` writes, and CONTINUATION frames for what the peer does not take in one.
fn write_block(
    stream: u32,
    flags: u8,
    frame_bytes: u32,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let position = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    write(out);
    let length = u32::try_from(out.len() - position - HEADER_BYTES).unwrap_or(u32::MAX);
    let mut header = FrameHeader { length, kind: kind::HEADERS, flags: flags | flag::END_HEADERS, stream };
    if length <= frame_bytes {
        return header.overwrite(out, position);
    }
    let block = out.split_off(position + HEADER_BYTES);
    out.truncate(position);
    let mut pieces = block.chunks(usize::try_from(frame_bytes).unwrap_or(usize::MAX)).peekable();
    header.flags = flags;
    while let Some(piece) = pieces.next() {
        header.length = u32::try_from(piece.len()).unwrap_or(frame_bytes);
        header.flags |= if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
        header.write(out);
        out.extend_from_slice(piece);
        header = FrameHeader { kind: kind::CONTINUATION, flags: 0, ..header };
    }
}

fn write_status(status: u16, out: &mut Vec<u8>) {
    // RFC 7541, appendix A: entries 8 to 14.
    let index = match status {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            let digit = |unit: u16| b'0' + u8::try_from(status / unit % 10).unwrap_or(0);
            out.extend_from_slice(&[8, 3, digit(100), digit(10), digit(1)]);
            return;
        }
    };
    out.push(0x80 | index);
}

fn write_fields(fields: Fields<'_>, out: &mut Vec<u8>) {
    for (name, value) in fields {
        debug_assert!(!value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')), "{name}: {value:?}");
        match name_index(name) {
            Some(index) => write_integer(0, 4, index, out),
            None => {
                out.push(0);
                write_string(name.as_bytes(), out);
            }
        }
        write_string(value, out);
    }
}

/// RFC 7541, appendix A, as far as our answers need it.
fn name_index(name: &str) -> Option<usize> {
    match name {
        "content-type" => Some(31),
        "content-length" => Some(28),
        "content-encoding" => Some(26),
        "retry-after" => Some(53),
        "allow" => Some(22),
        "www-authenticate" => Some(61),
        _ => None,
    }
}

fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    write_integer(0, 7, bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// RFC 7541, section 5.1.
fn write_integer(flags: u8, prefix_bits: u8, value: usize, out: &mut Vec<u8>) {
    let mask = 0xFF >> (8 - prefix_bits);
    match u8::try_from(value) {
        Ok(value) if value < mask => out.push(flags | value),
        _ => {
            out.push(flags | mask);
            let mut rest = value - usize::from(mask);
            while rest >= 0x80 {
                out.push(0x80 | u8::try_from(rest & 0x7F).unwrap_or(0));
                rest >>= 7;
            }
            out.push(u8::try_from(rest).unwrap_or(0));
        }
    }
}
