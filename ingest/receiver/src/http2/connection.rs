//! One connection: which frame is allowed when, and what it changes. It owns the state machine, the flow control of
//! what comes in and the going away; heads are judged in `head`, answers leave in `answer`.

use store_model::Monotonic;

use super::frame::{
    self, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, FrameHeader, HEADER_BYTES, PREFACE, WINDOW_DEFAULT,
    WINDOW_MAX, flag, kind, setting,
};
use super::head::{Head, trimmed};
use super::hpack::{Decoder, ENTRY_OVERHEAD};
use super::meter::Meter;
use super::streams::{End, Stream, Streams};
use super::{Cut, ErrorCode, Limits, Sink, StreamId};

/// A peer that unfolds a list beyond this many times the announced size means harm; a list that is merely too large
/// is answered with 431.
const BOMB_FACTOR: usize = 4;

/// A header block may be this many times the announced list: no honest encoder makes a list larger than it counts.
const BLOCK_FACTOR: usize = 2;

/// There are six settings; unknown ones must be skipped, but not by the thousand.
const SETTINGS_BYTES_MAX: u32 = 6 * 64;

/// A buffer for cut-up frames beyond this is not kept for the next one.
const PARTIAL_BYTES_KEPT: usize = 1024;

/// Credit is given once this share of a window has been consumed.
const CREDIT_SHARE: u32 = 4;

/// The PING that tells whether the peer has seen our GOAWAY.
const DRAIN_PING: [u8; 8] = *b"sluiceGO";

/// One HTTP/2 connection, seen from the server. A few hundred bytes while idle.
#[derive(Debug)]
pub struct Http2 {
    pub(super) limits: Limits,
    reading: Reading,
    /// The beginning of a frame header that came cut up.
    held: [u8; HEADER_BYTES],
    held_bytes: usize,
    /// The beginning of a frame that came cut up.
    partial: Vec<u8>,
    /// The header block that CONTINUATION frames are adding to.
    block: Option<Block>,
    block_bytes: Vec<u8>,
    hpack: Decoder,
    pub(super) streams: Streams,
    settings_seen: bool,
    settings_acked: bool,
    /// What the peer may still send on all streams together, and what it has not been told was consumed.
    room: u32,
    owed: u32,
    pub(super) send_window: i64,
    peer_window: i64,
    pub(super) peer_frame_bytes: u32,
    /// What answers that wait for windows hold.
    pub(super) waiting_bytes: usize,
    leaving: Leaving,
    peer_is_leaving: bool,
    resets: Meter,
    pub(super) pings: Meter,
    settings: Meter,
    empties: Meter,
    /// Set once; nothing is read any more.
    pub(super) cut: Option<Cut>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug)]
enum Reading {
    Preface {
        seen: usize,
    },
    Header,
    /// A frame that is handled once it is complete.
    Whole(FrameHeader),
    Data(DataFrame),
    Skip {
        left: usize,
    },
}

/// A DATA frame, whose payload is passed on as it comes.
#[derive(Clone, Copy, Debug)]
struct DataFrame {
    stream: u32,
    /// The first byte, which says how much padding there is, has not come yet.
    padding_unknown: bool,
    payload: u32,
    padding: u32,
    ends: bool,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    stream: u32,
    ends: bool,
    self_dependent: bool,
    frames: u32,
}

/// How far we are in going away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// GOAWAY and a PING are out; streams that crossed them on the way are still served.
    Announced,
    /// Nothing above this stream is served.
    After(u32),
}

/// What becomes of a header block. Even one nobody wants must be decoded, for the table's sake.
enum Fate {
    Request,
    Trailers,
    Refuse(ErrorCode),
    Drop,
}

/// The caller's side of one [`Http2::receive`].
struct Io<'a, S> {
    now: Monotonic,
    sink: &'a mut S,
    out: &'a mut Vec<u8>,
}

const fn broken(code: ErrorCode) -> Cut {
    Cut::Protocol(code)
}

fn bytes(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

impl Http2 {
    /// Writes our SETTINGS and the connection's window; the client's preface is expected next.
    pub fn new(limits: Limits, now: Monotonic, out: &mut Vec<u8>) -> Self {
        let limits = Limits {
            max_frame_bytes: limits.max_frame_bytes.clamp(FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX),
            stream_window: limits.stream_window.min(WINDOW_MAX),
            // A window that every connection starts with cannot be taken back.
            connection_window: limits.connection_window.clamp(WINDOW_DEFAULT, WINDOW_MAX),
            ..limits
        };
        frame::write_settings(&limits, out);
        let more = limits.connection_window - WINDOW_DEFAULT;
        if more > 0 {
            frame::write_window_update(0, more, out);
        }
        let meter = Meter::starting(now);
        Self {
            limits,
            reading: Reading::Preface { seen: 0 },
            held: [0; HEADER_BYTES],
            held_bytes: 0,
            partial: Vec::new(),
            block: None,
            block_bytes: Vec::new(),
            hpack: Decoder::new(limits.dynamic_table_bytes),
            streams: Streams::default(),
            settings_seen: false,
            settings_acked: false,
            room: limits.connection_window,
            owed: 0,
            send_window: i64::from(WINDOW_DEFAULT),
            peer_window: i64::from(WINDOW_DEFAULT),
            peer_frame_bytes: FRAME_BYTES_DEFAULT,
            waiting_bytes: 0,
            leaving: Leaving::No,
            peer_is_leaving: false,
            resets: meter,
            pings: meter,
            settings: meter,
            empties: meter,
            cut: None,
        }
    }

    /// Takes all of `bytes`, which may be cut anywhere.
    ///
    /// # Errors
    /// The connection is over: GOAWAY is in `out`; flush it and close. Nothing is read after that.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        now: Monotonic,
        sink: &mut impl Sink,
        out: &mut Vec<u8>,
    ) -> Result<(), Cut> {
        let already = self.cut.map_or(Ok(()), Err);
        let mut io = Io { now, sink, out };
        let read = already.and_then(|()| self.read(bytes, &mut io));
        read.inspect_err(|&cut| {
            self.cut = Some(cut);
            let last = match self.leaving {
                Leaving::After(last) => last,
                Leaving::No | Leaving::Announced => self.streams.last,
            };
            frame::write_go_away(last, cut.code(), cut.as_str(), out);
        })
    }

    /// `bytes` of the body of `stream` were consumed: the peer may send as many again. For a stream already gone only
    /// the connection's share is given back. Withhold it to push back.
    pub fn credit(&mut self, stream: StreamId, bytes: usize, out: &mut Vec<u8>) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.owe(bytes, out);
        self.owe_stream(stream.0, bytes, out);
    }

    /// Ends `stream` without an answer. The sink is not told.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode, out: &mut Vec<u8>) {
        if self.remove(stream.0, End::ByUs).is_some() {
            frame::write_reset(stream.0, code, out);
        }
    }

    /// First call: announces the end; streams are still taken until the peer has seen it (or until the second call),
    /// then refused. RFC 9113, section 6.8.
    pub fn go_away(&mut self, out: &mut Vec<u8>) {
        match self.leaving {
            Leaving::No => {
                self.leaving = Leaving::Announced;
                frame::write_go_away(WINDOW_MAX, ErrorCode::NoError, "", out);
                frame::write_ping(DRAIN_PING, 0, out);
            }
            Leaving::Announced => self.leave(out),
            Leaving::After(_) => {}
        }
    }

    fn leave(&mut self, out: &mut Vec<u8>) {
        self.leaving = Leaving::After(self.streams.last);
        frame::write_go_away(self.streams.last, ErrorCode::NoError, "", out);
    }

    /// Streams that are not over, answers waiting for windows included.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// [`Self::go_away`] was called, or the peer said GOAWAY.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.peer_is_leaving || self.leaving != Leaving::No
    }

    /// No stream is open and none will come: the connection may be closed once `out` is flushed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let none_will_come = self.peer_is_leaving || matches!(self.leaving, Leaving::After(_));
        none_will_come && self.streams.len() == 0
    }

    /// Gives memory back that only a busy connection needs; for a connection found idle.
    pub fn trim(&mut self) {
        self.hpack.trim();
        self.streams.trim();
        self.partial.shrink_to_fit();
        self.block_bytes.shrink_to_fit();
    }

    fn read<S: Sink>(&mut self, mut input: &[u8], io: &mut Io<'_, S>) -> Result<(), Cut> {
        while self.step(&mut input, io)? {
            if io.out.len() + self.waiting_bytes > self.limits.out_bytes_max {
                return Err(Cut::OutputNotRead);
            }
        }
        Ok(())
    }

    /// Goes on by one piece of a frame. False: more input is needed.
    fn step<S: Sink>(&mut self, input: &mut &[u8], io: &mut Io<'_, S>) -> Result<bool, Cut> {
        match self.reading {
            Reading::Header => {
                let Some(header) = self.take_header(input) else { return Ok(false) };
                self.reading = self.begin(header, io)?;
            }
            Reading::Whole(header) => return self.take_whole(header, input, io),
            Reading::Data(frame) => return self.take_data(frame, input, io),
            Reading::Skip { left: 0 } => self.reading = Reading::Header,
            Reading::Preface { .. } | Reading::Skip { .. } if input.is_empty() => return Ok(false),
            Reading::Preface { seen } => {
                let (now, rest) = input.split_at(input.len().min(PREFACE.len() - seen));
                if PREFACE[seen..seen + now.len()] != *now {
                    return Err(broken(ErrorCode::ProtocolError));
                }
                *input = rest;
                let seen = seen + now.len();
                self.reading =
                    if seen == PREFACE.len() { Reading::Header } else { Reading::Preface { seen } };
            }
            Reading::Skip { left } => {
                let skipped = left.min(input.len());
                *input = &input[skipped..];
                self.reading = Reading::Skip { left: left - skipped };
            }
        }
        Ok(true)
    }

    fn take_header(&mut self, input: &mut &[u8]) -> Option<FrameHeader> {
        if self.held_bytes == 0
            && let Some((header, rest)) = input.split_first_chunk()
        {
            *input = rest;
            return Some(FrameHeader::read(*header));
        }
        let (now, rest) = input.split_at(input.len().min(HEADER_BYTES - self.held_bytes));
        self.held[self.held_bytes..self.held_bytes + now.len()].copy_from_slice(now);
        *input = rest;
        self.held_bytes += now.len();
        if self.held_bytes < HEADER_BYTES {
            return None;
        }
        self.held_bytes = 0;
        Some(FrameHeader::read(self.held))
    }

    /// Judges a frame by its header: section 4 and the beginnings of those of section 6.
    fn begin<S: Sink>(&mut self, header: FrameHeader, io: &mut Io<'_, S>) -> Result<Reading, Cut> {
        let FrameHeader { length, kind, stream, .. } = header;
        if length > self.limits.max_frame_bytes {
            return Err(broken(ErrorCode::FrameSizeError));
        }
        let is_preface = kind == kind::SETTINGS && !header.has(flag::ACK);
        let is_expected = self.block.is_none_or(|b| kind == kind::CONTINUATION && stream == b.stream);
        if !(self.settings_seen || is_preface) || !is_expected {
            return Err(broken(ErrorCode::ProtocolError));
        }
        let is_sized = match kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE => length == 4,
            kind::SETTINGS if header.has(flag::ACK) => length == 0,
            kind::SETTINGS => length % 6 == 0,
            kind::PING => length == 8,
            kind::GOAWAY => length >= 8,
            _ => true,
        };
        if !is_sized {
            return Err(broken(ErrorCode::FrameSizeError));
        }
        let is_placed = match kind {
            kind::SETTINGS | kind::PING | kind::GOAWAY => stream == 0,
            kind::DATA | kind::PRIORITY => stream != 0,
            kind::HEADERS => !stream.is_multiple_of(2),
            kind::RST_STREAM => !self.is_idle(stream),
            kind::WINDOW_UPDATE => stream == 0 || !self.is_idle(stream),
            kind::CONTINUATION => self.block.is_some(),
            kind::PUSH_PROMISE => false,
            _ => true,
        };
        if !is_placed {
            return Err(broken(ErrorCode::ProtocolError));
        }
        match kind {
            kind::DATA => return self.begin_data(header, io),
            kind::HEADERS | kind::CONTINUATION => self.bound_block(header)?,
            kind::SETTINGS if length > SETTINGS_BYTES_MAX => return Err(Cut::SettingsFlood),
            kind::GOAWAY => {
                self.peer_is_leaving = true;
                return Ok(Reading::Skip { left: bytes(length) });
            }
            kind::PRIORITY if length != 5 => {
                self.count_empty(io.now)?;
                self.fail_stream(stream, ErrorCode::FrameSizeError, io)?;
                return Ok(Reading::Skip { left: bytes(length) });
            }
            kind::RST_STREAM | kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE => {}
            kind::PRIORITY => self.count_empty(io.now)?,
            _ => {
                self.count_empty(io.now)?;
                return Ok(Reading::Skip { left: bytes(length) });
            }
        }
        Ok(Reading::Whole(header))
    }

    /// Never used, or ours to use, which we do not.
    fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || stream > self.streams.last
    }

    /// A header block is bounded before a byte of it is kept.
    fn bound_block(&mut self, header: FrameHeader) -> Result<(), Cut> {
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

    fn count_empty(&mut self, now: Monotonic) -> Result<(), Cut> {
        let is_flood = self.empties.exceeds(self.limits.empty_frames_per_second_max, now);
        if is_flood { Err(Cut::EmptyFrameFlood) } else { Ok(()) }
    }

    fn take_whole<S: Sink>(
        &mut self,
        header: FrameHeader,
        input: &mut &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<bool, Cut> {
        let length = bytes(header.length);
        if self.partial.is_empty()
            && let Some((payload, rest)) = input.split_at_checked(length)
        {
            *input = rest;
            self.reading = Reading::Header;
            return self.handle(header, payload, io).map(|()| true);
        }
        let (now, rest) = input.split_at(input.len().min(length - self.partial.len()));
        self.partial.extend_from_slice(now);
        *input = rest;
        if self.partial.len() < length {
            return Ok(false);
        }
        self.reading = Reading::Header;
        let mut payload = std::mem::take(&mut self.partial);
        let handled = self.handle(header, &payload, io);
        if payload.capacity() <= PARTIAL_BYTES_KEPT {
            payload.clear();
            self.partial = payload;
        }
        handled.map(|()| true)
    }

    fn handle<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        match header.kind {
            kind::HEADERS => self.headers(header, payload, io),
            kind::CONTINUATION => self.continuation(header, payload, io),
            kind::PRIORITY if depends_on(payload) == Some(header.stream) => {
                self.fail_stream(header.stream, ErrorCode::ProtocolError, io)
            }
            kind::RST_STREAM => self.peer_reset(header.stream, io),
            kind::SETTINGS => self.settings(header, payload, io),
            kind::PING => self.ping(header, payload, io),
            kind::WINDOW_UPDATE => self.window_update(header.stream, payload, io),
            _ => Ok(()),
        }
    }

    // Header blocks.

    fn headers<S: Sink>(
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

    fn continuation<S: Sink>(
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

    // Bodies.

    fn begin_data<S: Sink>(&mut self, header: FrameHeader, io: &mut Io<'_, S>) -> Result<Reading, Cut> {
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

    fn take_data<S: Sink>(
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
    fn owe(&mut self, bytes: u32, out: &mut Vec<u8>) {
        self.owed = self.owed.saturating_add(bytes);
        if self.owed >= self.limits.connection_window / CREDIT_SHARE {
            frame::write_window_update(0, self.owed, out);
            self.room = self.room.saturating_add(self.owed);
            self.owed = 0;
        }
    }

    /// The same for a stream, unless nothing more can come on it.
    fn owe_stream(&mut self, id: u32, bytes: u32, out: &mut Vec<u8>) {
        let least = (self.limits.stream_window / CREDIT_SHARE).max(1);
        let Some(stream) = self.streams.get(id) else { return };
        stream.owed = stream.owed.saturating_add(bytes);
        if stream.owed >= least && !stream.request_ended {
            frame::write_window_update(id, stream.owed, out);
            stream.room = stream.room.saturating_add(stream.owed);
            stream.owed = 0;
        }
    }

    // Ends of streams.

    /// A stream error: section 5.4.2.
    fn fail_stream<S: Sink>(&mut self, id: u32, code: ErrorCode, io: &mut Io<'_, S>) -> Result<(), Cut> {
        frame::write_reset(id, code, io.out);
        if let Some(stream) = self.remove(id, End::ByUs)
            && stream.waiting.is_none()
        {
            io.sink.reset(StreamId(id));
        }
        self.count_reset(io.now)
    }

    fn peer_reset<S: Sink>(&mut self, id: u32, io: &mut Io<'_, S>) -> Result<(), Cut> {
        if let Some(stream) = self.remove(id, End::ByPeer)
            && stream.waiting.is_none()
        {
            io.sink.reset(StreamId(id));
        }
        self.count_reset(io.now)
    }

    fn count_reset(&mut self, now: Monotonic) -> Result<(), Cut> {
        let is_flood = self.resets.exceeds(self.limits.resets_per_second_max, now);
        if is_flood { Err(Cut::ResetFlood) } else { Ok(()) }
    }

    pub(super) fn remove(&mut self, id: u32, end: End) -> Option<Stream> {
        let stream = self.streams.remove(id, end)?;
        self.waiting_bytes -= stream.waiting.as_ref().map_or(0, |waiting| waiting.bytes());
        Some(stream)
    }

    // The connection's own frames.

    fn settings<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        if self.settings.exceeds(self.limits.settings_per_second_max, io.now) {
            return Err(Cut::SettingsFlood);
        }
        if header.has(flag::ACK) {
            self.settings_acked = true;
            return Ok(());
        }
        self.settings_seen = true;
        for entry in payload.as_chunks::<6>().0 {
            let [i0, i1, v0, v1, v2, v3] = *entry;
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                setting::ENABLE_PUSH if value > 1 => return Err(broken(ErrorCode::ProtocolError)),
                setting::INITIAL_WINDOW_SIZE => self.resize_windows(value)?,
                setting::MAX_FRAME_SIZE if (FRAME_BYTES_DEFAULT..=FRAME_BYTES_MAX).contains(&value) => {
                    self.peer_frame_bytes = value;
                }
                setting::MAX_FRAME_SIZE => return Err(broken(ErrorCode::ProtocolError)),
                _ => {}
            }
        }
        frame::write_settings_ack(io.out);
        self.flush_all(io.out);
        Ok(())
    }

    /// Section 6.9.2: the change applies to the streams that are open, too.
    fn resize_windows(&mut self, value: u32) -> Result<(), Cut> {
        if value > WINDOW_MAX {
            return Err(broken(ErrorCode::FlowControlError));
        }
        let change = i64::from(value) - self.peer_window;
        self.peer_window = i64::from(value);
        for stream in self.streams.iter_mut() {
            stream.send_window += change;
            if stream.send_window > i64::from(WINDOW_MAX) {
                return Err(broken(ErrorCode::FlowControlError));
            }
        }
        Ok(())
    }

    fn ping<S: Sink>(&mut self, header: FrameHeader, payload: &[u8], io: &mut Io<'_, S>) -> Result<(), Cut> {
        let Ok(payload) = <[u8; 8]>::try_from(payload) else { return Ok(()) };
        if !header.has(flag::ACK) {
            if self.pings.exceeds(self.limits.pings_per_second_max, io.now) {
                return Err(Cut::PingFlood);
            }
            frame::write_ping(payload, flag::ACK, io.out);
            return Ok(());
        }
        if payload == DRAIN_PING && self.leaving == Leaving::Announced {
            self.leave(io.out);
            return Ok(());
        }
        self.count_empty(io.now)
    }

    fn window_update<S: Sink>(&mut self, id: u32, payload: &[u8], io: &mut Io<'_, S>) -> Result<(), Cut> {
        let Ok(payload) = <[u8; 4]>::try_from(payload) else { return Ok(()) };
        let increment = i64::from(u32::from_be_bytes(payload) & WINDOW_MAX);
        let fault = |window: i64| match increment {
            0 => Some(ErrorCode::ProtocolError),
            _ if window > i64::from(WINDOW_MAX) => Some(ErrorCode::FlowControlError),
            _ => None,
        };
        if id == 0 {
            self.send_window += increment;
            if let Some(code) = fault(self.send_window) {
                return Err(broken(code));
            }
            self.flush_all(io.out);
        } else if let Some(stream) = self.streams.get(id) {
            stream.send_window += increment;
            if let Some(code) = fault(stream.send_window) {
                return self.fail_stream(id, code, io);
            }
            self.flush(id, io.out);
        }
        Ok(())
    }

    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        let buffers = self.partial.capacity() + self.block_bytes.capacity();
        size_of::<Self>()
            + buffers
            + self.hpack.memory_bytes()
            + self.streams.memory_bytes()
            + self.waiting_bytes
    }
}

/// The stream that a priority field names: section 6.3. Priorities are not used, but to depend on oneself was an
/// error in RFC 7540 and checkers still look for it.
fn depends_on(priority: &[u8]) -> Option<u32> {
    let [s0, s1, s2, s3, _, ..] = *priority else { return None };
    Some(u32::from_be_bytes([s0 & 0x7F, s1, s2, s3]))
}
