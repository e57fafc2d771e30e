//! Header blocks: put together from their frames, decoded in order even when nobody wants them (the table must see
//! each), and turned into requests, trailers or refusals. How a list is spelled is `hpack`'s matter, whether it makes a
//! request is `head`'s.

use super::connection::{Http2, Io, Leaving, PARTIAL_BYTES_KEPT, broken, bytes};
use super::frame::{self, FRAME_BYTES_DEFAULT, FrameHeader, WINDOW_DEFAULT, flag};
use super::head::{Head, trimmed};
use super::hpack::ENTRY_OVERHEAD;
use super::streams::{End, Stream};
use super::{Cut, ErrorCode, Sink, StreamId};

/// A peer that unfolds a list beyond this many times the announced size means harm; a list that is merely too large
/// is answered with 431.
const BOMB_FACTOR: usize = 4;

/// A header block may be this many times the announced list: no honest encoder makes a list larger than it counts.
const BLOCK_FACTOR: usize = 2;

/// A header block on its way: what its HEADERS frame said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub stream: u32,
    pub ends: bool,
    pub self_dependent: bool,
    pub frames: u32,
}

/// What becomes of a header block. Even one nobody wants must be decoded, for the table's sake.
enum Fate {
    Request,
    Trailers,
    Refuse(ErrorCode),
    Drop,
}

impl Http2 {
    /// A header block is bounded before a byte of it is kept.
    pub(super) fn bound_block(&mut self, header: FrameHeader) -> Result<(), Cut> {
        // No list we announced to take needs a larger frame: "any limit defined for the frame type", section 4.2.
        if bytes(header.length) > self.limits.header_list_bytes_max.max(bytes(FRAME_BYTES_DEFAULT)) {
            return Err(broken(ErrorCode::FrameSizeError));
        }
        let most = BLOCK_FACTOR * self.limits.header_list_bytes_max;
        if self.block_bytes.len() + bytes(header.length) > most {
            return Err(Cut::HeaderListTooLarge);
        }
        if let Some(block) = &mut self.block {
            block.frames += 1;
            if block.frames > self.limits.continuation_frames_max {
                return Err(Cut::ContinuationFlood);
            }
        }
        Ok(())
    }

    pub(super) fn headers<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        let mut fragment = frame::unpadded(header, payload)?;
        let mut self_dependent = false;
        if header.has(flag::PRIORITY) {
            self_dependent = depends_on(fragment) == Some(header.stream);
            fragment = fragment.get(5..).ok_or(broken(ErrorCode::FrameSizeError))?;
        }
        let ends = header.has(flag::END_STREAM);
        let block = Block { stream: header.stream, ends, self_dependent, frames: 0 };
        if header.has(flag::END_HEADERS) {
            return self.decode(block, fragment, io);
        }
        self.block_bytes.extend_from_slice(fragment);
        self.block = Some(block);
        Ok(())
    }

    pub(super) fn continuation<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        self.block_bytes.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(());
        }
        let Some(block) = self.block.take() else { return Ok(()) };
        let mut fragments = std::mem::take(&mut self.block_bytes);
        let decoded = self.decode(block, &fragments, io);
        if fragments.capacity() <= PARTIAL_BYTES_KEPT {
            fragments.clear();
            self.block_bytes = fragments;
        }
        decoded
    }

    /// Reads a complete header block and acts on it.
    fn decode<S: Sink>(&mut self, block: Block, fragments: &[u8], io: &mut Io<'_, S>) -> Result<(), Cut> {
        let id = block.stream;
        let fate = self.fate(&block)?;
        let is_request = matches!(fate, Fate::Request);
        let list_bytes_max = self.limits.header_list_bytes_max;
        let (mut head, mut list_bytes) = (Head::default(), 0);
        self.hpack.decode(fragments, |class, name, value| {
            list_bytes += name.len() + value.len() + ENTRY_OVERHEAD;
            if list_bytes > BOMB_FACTOR * list_bytes_max {
                return Err(Cut::HpackBomb);
            }
            let value = trimmed(value);
            head.take(class, value);
            if is_request && !head.is_malformed() && list_bytes <= list_bytes_max {
                io.sink.field(StreamId(id), name, value);
            }
            Ok(())
        })?;
        match fate {
            Fate::Drop => Ok(()),
            Fate::Refuse(code) => {
                self.streams.remember(id, End::ByUs);
                self.fail_stream(id, code, io)
            }
            Fate::Trailers if !head.is_trailers() => self.fail_stream(id, ErrorCode::ProtocolError, io),
            Fate::Trailers => self.end_request(id, io),
            Fate::Request => {
                self.open(&block, &head);
                let body_is_missing = block.ends && head.content_length().is_some_and(|length| length > 0);
                if !head.is_request() || body_is_missing {
                    self.fail_stream(id, ErrorCode::ProtocolError, io)
                } else if list_bytes > list_bytes_max {
                    io.sink.reset(StreamId(id));
                    self.respond(StreamId(id), 431, &[], &[], None, io.out);
                    Ok(())
                } else {
                    io.sink.head(StreamId(id), block.ends);
                    Ok(())
                }
            }
        }
    }

    /// What a header block on this stream means: section 5.1.
    fn fate(&mut self, block: &Block) -> Result<Fate, Cut> {
        let id = block.stream;
        if id > self.streams.last {
            self.streams.last = id;
            let is_full = self.streams.len() >= bytes(self.limits.max_concurrent_streams);
            return Ok(match self.leaving {
                _ if block.self_dependent => Fate::Refuse(ErrorCode::ProtocolError),
                Leaving::After(_) => Fate::Refuse(ErrorCode::RefusedStream),
                _ if is_full => Fate::Refuse(ErrorCode::RefusedStream),
                Leaving::No | Leaving::Announced => Fate::Request,
            });
        }
        if let Some(stream) = self.streams.get(id) {
            return Ok(match stream.request_ended {
                true => Fate::Refuse(ErrorCode::StreamClosed),
                false if block.self_dependent || !block.ends => Fate::Refuse(ErrorCode::ProtocolError),
                false => Fate::Trailers,
            });
        }
        match self.streams.end(id) {
            Some(End::ByUs) => Ok(Fate::Drop),
            Some(End::ByPeer) => Ok(Fate::Refuse(ErrorCode::StreamClosed)),
            Some(End::Complete) => Err(broken(ErrorCode::StreamClosed)),
            // Skipped, and thereby closed for good.
            None => Err(broken(ErrorCode::ProtocolError)),
        }
    }

    fn open(&mut self, block: &Block, head: &Head) {
        // Until the peer has seen our settings it goes by the default.
        let least = if self.settings_acked { 0 } else { WINDOW_DEFAULT };
        self.streams.push(Stream {
            id: block.stream,
            room: self.limits.stream_window.max(least),
            owed: 0,
            send_window: self.peer_window,
            body_left: head.content_length(),
            request_ended: block.ends,
            waiting: None,
        });
    }

    /// Trailers came: the body is complete, or shorter than promised.
    fn end_request<S: Sink>(&mut self, id: u32, io: &mut Io<'_, S>) -> Result<(), Cut> {
        let Some(stream) = self.streams.get(id) else { return Ok(()) };
        if stream.body_left.is_some_and(|left| left > 0) {
            return self.fail_stream(id, ErrorCode::ProtocolError, io);
        }
        stream.request_ended = true;
        if stream.waiting.is_none() {
            io.sink.data(StreamId(id), &[], true);
        }
        Ok(())
    }
}

/// The stream that a priority field names: section 6.3. Priorities are not used, but to depend on oneself was an
/// error in RFC 7540 and checkers still look for it.
pub(super) fn depends_on(priority: &[u8]) -> Option<u32> {
    let [s0, s1, s2, s3, _, ..] = *priority else { return None };
    Some(u32::from_be_bytes([s0 & 0x7F, s1, s2, s3]))
}
