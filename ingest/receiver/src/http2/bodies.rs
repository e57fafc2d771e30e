//! Bodies on their way in: whose they are, whether they keep their promises of length, and the windows they use up.

use super::connection::{Http2, Io, Reading, broken, bytes};
use super::frame::{self, FrameHeader, flag};
use super::streams::End;
use super::{Cut, ErrorCode, Sink, StreamId};

/// Credit is given once this share of a window has been consumed.
const CREDIT_SHARE: u32 = 4;

/// A DATA frame, whose payload is passed on as it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataFrame {
    pub stream: u32,
    /// The first byte, which says how much padding there is, has not come yet.
    pub padding_unknown: bool,
    pub payload: u32,
    pub padding: u32,
    pub ends: bool,
}

impl Http2 {
    pub(super) fn begin_data<S: Sink>(
        &mut self,
        header: FrameHeader,
        io: &mut Io<'_, S>,
    ) -> Result<Reading, Cut> {
        let FrameHeader { length, stream: id, .. } = header;
        if self.is_idle(id) {
            return Err(broken(ErrorCode::ProtocolError));
        }
        self.room = self.room.checked_sub(length).ok_or(broken(ErrorCode::FlowControlError))?;
        let fault = match self.streams.get(id) {
            Some(stream) if stream.request_ended => Some(ErrorCode::StreamClosed),
            Some(stream) => match stream.room.checked_sub(length) {
                Some(room) => {
                    stream.room = room;
                    None
                }
                None => Some(ErrorCode::FlowControlError),
            },
            None => match self.streams.end(id) {
                Some(End::Complete) => return Err(broken(ErrorCode::StreamClosed)),
                Some(End::ByPeer) => Some(ErrorCode::StreamClosed),
                Some(End::ByUs) | None => None,
            },
        };
        if let Some(code) = fault {
            self.owe(length, io.out);
            self.fail_stream(id, code, io)?;
            return Ok(Reading::Skip { left: bytes(length) });
        }
        let ends = header.has(flag::END_STREAM);
        let frame = DataFrame { stream: id, padding_unknown: false, payload: length, padding: 0, ends };
        if !header.has(flag::PADDED) {
            return self.begin_payload(frame, io);
        }
        let payload = length.checked_sub(1).ok_or(broken(ErrorCode::FrameSizeError))?;
        Ok(Reading::Data(DataFrame { padding_unknown: true, payload, ..frame }))
    }

    /// The length of the payload is known.
    fn begin_payload<S: Sink>(&mut self, frame: DataFrame, io: &mut Io<'_, S>) -> Result<Reading, Cut> {
        let DataFrame { stream: id, payload, padding, ends, .. } = frame;
        if payload == 0 && !ends {
            self.count_empty(io.now)?;
        }
        if let Some(stream) = self.streams.get(id)
            && let Some(left) = &mut stream.body_left
        {
            match left.checked_sub(u64::from(payload)) {
                Some(less) if !ends || less == 0 => *left = less,
                _ => {
                    self.owe(payload, io.out);
                    self.fail_stream(id, ErrorCode::ProtocolError, io)?;
                    return Ok(Reading::Skip { left: bytes(payload) + bytes(padding) });
                }
            }
        }
        Ok(Reading::Data(frame))
    }

    pub(super) fn take_data<S: Sink>(
        &mut self,
        frame: DataFrame,
        input: &mut &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<bool, Cut> {
        if frame.padding_unknown {
            let Some((&padding, rest)) = input.split_first() else { return Ok(false) };
            *input = rest;
            let padding = u32::from(padding);
            let payload = frame.payload.checked_sub(padding).ok_or(broken(ErrorCode::ProtocolError))?;
            // Nobody will consume the padding, so it is given back at once.
            self.owe(padding + 1, io.out);
            self.owe_stream(frame.stream, padding + 1, io.out);
            let frame = DataFrame { padding_unknown: false, payload, padding, ..frame };
            self.reading = self.begin_payload(frame, io)?;
            return Ok(true);
        }
        let (now, rest) = input.split_at(input.len().min(bytes(frame.payload)));
        if now.is_empty() && frame.payload > 0 {
            return Ok(false);
        }
        *input = rest;
        let taken = u32::try_from(now.len()).unwrap_or(frame.payload);
        let payload = frame.payload - taken;
        let ends = frame.ends && payload == 0;
        self.reading = match payload {
            0 => Reading::Skip { left: bytes(frame.padding) },
            _ => Reading::Data(DataFrame { payload, ..frame }),
        };
        let Some(stream) = self.streams.get(frame.stream) else {
            self.owe(taken, io.out);
            return Ok(true);
        };
        stream.request_ended = ends;
        if stream.waiting.is_some() {
            // Answered before it was complete: nobody wants the rest.
            self.owe(taken, io.out);
            self.owe_stream(frame.stream, taken, io.out);
        } else if ends || taken > 0 {
            io.sink.data(StreamId(frame.stream), now, ends);
        }
        Ok(true)
    }

    /// The connection's window shall grow by `bytes`; the peer is told once it is worth a frame.
    pub(super) fn owe(&mut self, bytes: u32, out: &mut Vec<u8>) {
        self.owed = self.owed.saturating_add(bytes);
        if self.owed >= self.limits.connection_window / CREDIT_SHARE {
            frame::write_window_update(0, self.owed, out);
            self.room = self.room.saturating_add(self.owed);
            self.owed = 0;
        }
    }

    /// The same for a stream, unless nothing more can come on it.
    pub(super) fn owe_stream(&mut self, id: u32, bytes: u32, out: &mut Vec<u8>) {
        let least = (self.limits.stream_window / CREDIT_SHARE).max(1);
        let Some(stream) = self.streams.get(id) else { return };
        stream.owed = stream.owed.saturating_add(bytes);
        if stream.owed >= least && !stream.request_ended {
            frame::write_window_update(id, stream.owed, out);
            stream.room = stream.room.saturating_add(stream.owed);
            stream.owed = 0;
        }
    }
}
