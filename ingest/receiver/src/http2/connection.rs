//! One connection: its state, the bytes put together to frames, and which frame is allowed when. What frames change
//! is in `requests`, `bodies` and `control`; answers leave in `answer`.

use store_model::Monotonic;

use super::bodies::DataFrame;
use super::frame::{
    self, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, FrameHeader, HEADER_BYTES, PREFACE, WINDOW_DEFAULT,
    WINDOW_MAX, flag, kind,
};
use super::hpack::Decoder;
use super::meter::Meter;
use super::requests::{Block, depends_on};
use super::streams::{End, Streams};
use super::{Cut, ErrorCode, Limits, Sink, StreamId};

/// There are six settings; unknown ones must be skipped, but not by the thousand.
const SETTINGS_BYTES_MAX: u32 = 6 * 64;

/// A buffer for cut-up frames beyond this is not kept for the next one.
pub(super) const PARTIAL_BYTES_KEPT: usize = 1024;

/// The PING that tells whether the peer has seen our GOAWAY.
pub(super) const DRAIN_PING: [u8; 8] = *b"sluiceGO";

/// One HTTP/2 connection, seen from the server. A few hundred bytes while idle.
#[derive(Debug)]
pub struct Http2 {
    pub(super) limits: Limits,
    pub(super) reading: Reading,
    /// The beginning of a frame header that came cut up.
    pub(super) held: [u8; HEADER_BYTES],
    pub(super) held_bytes: usize,
    /// The beginning of a frame that came cut up.
    pub(super) partial: Vec<u8>,
    /// The header block that CONTINUATION frames are adding to.
    pub(super) block: Option<Block>,
    pub(super) block_bytes: Vec<u8>,
    pub(super) hpack: Decoder,
    pub(super) streams: Streams,
    pub(super) settings_seen: bool,
    pub(super) settings_acked: bool,
    /// What the peer may still send on all streams together, and what it has not been told was consumed.
    pub(super) room: u32,
    pub(super) owed: u32,
    pub(super) send_window: i64,
    pub(super) peer_window: i64,
    pub(super) peer_frame_bytes: u32,
    /// What answers that wait for windows hold.
    pub(super) waiting_bytes: usize,
    pub(super) leaving: Leaving,
    pub(super) peer_is_leaving: bool,
    pub(super) resets: Meter,
    pub(super) pings: Meter,
    pub(super) settings: Meter,
    pub(super) empties: Meter,
    /// An answer found no room to wait in.
    pub(super) answer_dropped: bool,
    /// Set once; nothing is read any more.
    pub(super) cut: Option<Cut>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reading {
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

/// How far we are in going away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// GOAWAY and a PING are out; streams that crossed them on the way are still served.
    Announced,
    /// Nothing above this stream is served.
    After(u32),
}

/// The caller's side of one [`Http2::receive`].
pub(super) struct Io<'a, S> {
    pub now: Monotonic,
    pub sink: &'a mut S,
    pub out: &'a mut Vec<u8>,
}

pub(super) const fn broken(code: ErrorCode) -> Cut {
    Cut::Protocol(code)
}

pub(super) fn bytes(count: u32) -> usize {
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
            answer_dropped: false,
            cut: None,
        }
    }

    /// Takes all of `bytes`, which may be cut anywhere.
    ///
    /// Without bytes it only says whether the connection is over, as it may be after [`Self::respond`].
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
        if let Some(cut) = self.cut {
            return Err(cut);
        }
        let mut io = Io { now, sink, out };
        self.read(bytes, &mut io).inspect_err(|&cut| {
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

    pub(super) fn leave(&mut self, out: &mut Vec<u8>) {
        self.leaving = Leaving::After(self.streams.last);
        frame::write_go_away(self.streams.last, ErrorCode::NoError, "", out);
    }

    /// Streams that are not over, answers waiting for windows included.
    #[must_use]
    #[allow(dead_code, reason = "a driver may do with `is_drained` alone")]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// [`Self::go_away`] was called, or the peer said GOAWAY.
    #[must_use]
    #[allow(dead_code, reason = "a driver may do with `is_drained` alone")]
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
        while !self.is_overfull(io.out) {
            if !self.step(&mut input, io)? {
                return Ok(());
            }
        }
        Err(Cut::OutputNotRead)
    }

    fn is_overfull(&self, out: &[u8]) -> bool {
        self.answer_dropped || out.len() + self.waiting_bytes > self.limits.out_bytes_max
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
    pub(super) fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || stream > self.streams.last
    }

    pub(super) fn count_empty(&mut self, now: Monotonic) -> Result<(), Cut> {
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

    /// What it holds, for tests that bound it.
    #[cfg(any(test, feature = "internals"))]
    pub fn memory_bytes(&self) -> usize {
        let buffers = self.partial.capacity() + self.block_bytes.capacity();
        size_of::<Self>()
            + buffers
            + self.hpack.memory_bytes()
            + self.streams.memory_bytes()
            + self.waiting_bytes
    }
}
