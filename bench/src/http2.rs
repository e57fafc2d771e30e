//! The client's side of HTTP/2 (RFC 9113), as far as unary gRPC needs it: bodies in, bytes out; bytes in, answers out.
//! Sans I/O; [`crate::client`] moves the bytes.
//!
//! A request costs the generator a few stores: its head is the same every time and stands in the peer's HPACK table
//! after the first, small bodies are gathered into one write, large ones are never copied.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::mem;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use ingest_receiver::http2::frame::{
    FRAME_BYTES_DEFAULT, FrameHeader, HEADER_BYTES, PREFACE, WINDOW_DEFAULT, flag, kind, setting, unpadded,
    write_ping, write_reset, write_settings_ack, write_window_update,
};
use ingest_receiver::http2::{ErrorCode, hpack};

use crate::answer::{self, ANSWER_BYTES_MAX, Answer};
use crate::error::Error;
use crate::wire::put_varint;

/// A head of several frames beyond this is no answer to an export.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What the connection may receive before it is given more: answers shall never wait for it.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// Our own table of the peer's answers: RFC 7541's default, which we leave as it is.
const TABLE_BYTES: u32 = 4_096;

/// Bodies up to here are copied behind their head; above, a place in the vector of a write is cheaper.
const COPIED_BYTES_MAX: usize = 8 << 10;

/// Pieces of one write; Linux takes no more than 1,024.
pub(crate) const PIECES_MAX: usize = 64;

/// Far from the end of the numbers, so that what waits still gets one: a connection that came so far is made anew.
const STREAM_ID_ENOUGH: u32 = 1 << 30;

/// The fields of an answer that mean something here.
const FIELDS_READ: [&str; 4] = ["grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after"];

/// A request under way.
#[derive(Debug, Default)]
pub(crate) struct Call {
    answer: RefCell<Option<Result<Answer, Error>>>,
    waiting: RefCell<Option<Waker>>,
}

impl Call {
    fn end(&self, answer: Result<Answer, Error>) {
        *self.answer.borrow_mut() = Some(answer);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits for what the request came to.
    pub(crate) async fn answer(&self) -> Result<Answer, Error> {
        poll_fn(|context| match self.answer.borrow_mut().take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                *self.waiting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// The head that every request has.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// Names and values, pseudo fields first.
    fields: Vec<(String, String)>,
}

impl Head {
    /// Of a gRPC call to `path`, with more `fields`.
    pub(crate) fn new(scheme: &str, authority: &str, path: &str, fields: &HeaderMap) -> Self {
        let pseudo = [(":method", "POST"), (":scheme", scheme), (":authority", authority), (":path", path)];
        let pseudo = pseudo.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let fields = fields.iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
        Self { fields: pseudo.into_iter().chain(fields).collect() }
    }

    /// RFC 7541, section 6.2: literals with a new name, which the peer puts into its table or not.
    fn literals(&self, are_kept: bool) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in &self.fields {
            block.push(if are_kept { 0x40 } else { 0 });
            for text in [name, value] {
                put_integer(text.len(), 7, &mut block);
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }

    /// Section 6.1: the same fields out of the peer's table, where the last one put in comes first.
    fn indices(&self) -> Vec<u8> {
        const FIRST_DYNAMIC: usize = 62;
        let mut block = Vec::new();
        for place in (0..self.fields.len()).rev() {
            let at = block.len();
            put_integer(FIRST_DYNAMIC + place, 7, &mut block);
            block[at] |= 0x80;
        }
        block
    }

    /// What the fields take in a table: section 4.1.
    fn table_bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len() + hpack::ENTRY_OVERHEAD).sum()
    }
}

/// A number whose first `prefix_bits` share a byte with flags, which are left zero: RFC 7541, section 5.1.
fn put_integer(value: usize, prefix_bits: u8, out: &mut Vec<u8>) {
    let mask = (1usize << prefix_bits) - 1;
    if value < mask {
        out.push(u8::try_from(value).unwrap_or(0));
        return;
    }
    out.push(u8::try_from(mask).unwrap_or(0));
    put_varint(out, (value - mask) as u64);
}

/// What the peer's settings say.
#[derive(Debug)]
struct Peer {
    table_bytes: u32,
    streams_max: u32,
    stream_window: u32,
    frame_bytes_max: u32,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            table_bytes: TABLE_BYTES,
            streams_max: u32::MAX,
            stream_window: WINDOW_DEFAULT,
            frame_bytes_max: FRAME_BYTES_DEFAULT,
        }
    }
}

/// A request that has its stream.
struct Stream {
    /// None once it has ended.
    call: Option<Rc<Call>>,
    /// What is still to be sent.
    body: Bytes,
    window: i64,
    status: Option<StatusCode>,
    fields: HeaderMap,
    message: Vec<u8>,
}

/// A head of which frames are still to come.
struct Unfinished {
    stream: u32,
    ends: bool,
    block: Vec<u8>,
}

/// Bytes to be written, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Behind the pieces.
    tail: BytesMut,
}

impl Outbox {
    fn small(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = Vec::new();
        write(&mut frame);
        self.tail.extend_from_slice(&frame);
    }

    fn header(&mut self, header: FrameHeader) {
        self.tail.extend_from_slice(&header.bytes());
    }

    fn body(&mut self, body: Bytes) {
        if body.len() <= COPIED_BYTES_MAX {
            self.tail.extend_from_slice(&body);
        } else {
            self.close_tail();
            self.pieces.push_back(body);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    /// What to write next; none when nothing waits.
    pub(crate) fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>; PIECES_MAX]) -> usize {
        self.close_tail();
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// `count` bytes have been written.
    pub(crate) fn written(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                return piece.advance(count);
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }
}

/// One connection.
pub(crate) struct Http2 {
    head: Head,
    /// The block of every request from the second on; empty before the peer's settings are there.
    block: Vec<u8>,
    /// That of the first.
    first_block: Vec<u8>,
    decoder: hpack::Decoder,
    peer: Peer,
    window: i64,
    /// Of the stream in front of `streams`; the others follow in steps of two.
    first_stream: u32,
    streams: VecDeque<Stream>,
    open: u32,
    /// Streams with a body that is not all sent.
    sending: VecDeque<u32>,
    /// Requests without a stream.
    waiting: VecDeque<(Rc<Call>, Bytes)>,
    unfinished: Option<Unfinished>,
    /// Received since the window was opened again.
    received: u32,
    /// Why no more requests can be sent.
    ended: Option<String>,
    pub(crate) out: Outbox,
}

const MALFORMED: Error = Error::Malformed { what: "HTTP/2 frame" };

impl Http2 {
    /// A connection whose first bytes wait to be written.
    pub(crate) fn new(head: Head) -> Self {
        let mut out = Outbox::default();
        out.tail.extend_from_slice(PREFACE);
        out.header(FrameHeader { length: 6, kind: kind::SETTINGS, flags: 0, stream: 0 });
        out.tail.extend_from_slice(&setting::ENABLE_PUSH.to_be_bytes());
        out.tail.extend_from_slice(&0u32.to_be_bytes());
        out.small(|out| write_window_update(0, CONNECTION_WINDOW - WINDOW_DEFAULT, out));
        Self {
            head,
            block: Vec::new(),
            first_block: Vec::new(),
            decoder: hpack::Decoder::new(TABLE_BYTES as usize),
            peer: Peer::default(),
            window: i64::from(WINDOW_DEFAULT),
            first_stream: 1,
            streams: VecDeque::new(),
            open: 0,
            sending: VecDeque::new(),
            waiting: VecDeque::new(),
            unfinished: None,
            received: 0,
            ended: None,
            out,
        }
    }

    /// Whether new requests can be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.ended.is_none() && self.first_stream < STREAM_ID_ENOUGH
    }

    /// Takes a request whose body has a gRPC prefix; [`Self::advance`] sends it when it may be sent.
    pub(crate) fn call(&mut self, body: Bytes) -> Rc<Call> {
        let call = Rc::new(Call::default());
        match &self.ended {
            Some(cause) => call.end(Err(Error::Exchange(cause.clone()))),
            None => self.waiting.push_back((Rc::clone(&call), body)),
        }
        call
    }

    /// The connection is of no use any more: whoever waits is told `cause`.
    pub(crate) fn fail(&mut self, cause: &str) {
        self.ended.get_or_insert_with(|| cause.to_owned());
        let streams = self.streams.drain(..).filter_map(|stream| stream.call);
        for call in streams.chain(self.waiting.drain(..).map(|(call, _)| call)) {
            call.end(Err(Error::Exchange(cause.to_owned())));
        }
        self.sending.clear();
        self.open = 0;
    }

    /// Reads the whole frames of `bytes`; returns how many bytes they are.
    ///
    /// # Errors
    /// When it is not HTTP/2 or what no server may say.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let mut rest = bytes;
        while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
            let header = FrameHeader::read(*header);
            if header.length > FRAME_BYTES_DEFAULT {
                return Err(MALFORMED);
            }
            let Some((payload, behind)) = behind.split_at_checked(header.length as usize) else { break };
            self.frame(header, payload)?;
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    fn frame(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Error> {
        if self.unfinished.is_some() != (header.kind == kind::CONTINUATION) {
            return Err(MALFORMED);
        }
        match header.kind {
            kind::DATA => self.data(header, payload),
            kind::HEADERS if header.has(flag::PRIORITY) => Err(MALFORMED),
            kind::HEADERS => {
                let payload = unpadded(header, payload).map_err(|_cut| MALFORMED)?;
                let ends = header.has(flag::END_STREAM);
                if header.has(flag::END_HEADERS) {
                    return self.fields(header.stream, ends, payload);
                }
                self.unfinished = Some(Unfinished { stream: header.stream, ends, block: payload.to_vec() });
                Ok(())
            }
            kind::CONTINUATION => self.continuation(header, payload),
            kind::RST_STREAM => {
                let code = payload.first_chunk().map(|code| u32::from_be_bytes(*code)).ok_or(MALFORMED)?;
                self.end(header.stream, |_| Err(Error::Exchange(format!("stream reset, code {code}"))));
                Ok(())
            }
            kind::SETTINGS if header.has(flag::ACK) => Ok(()),
            kind::SETTINGS => self.settings(payload),
            kind::PING if header.has(flag::ACK) => Ok(()),
            kind::PING => {
                let payload = *payload.first_chunk().ok_or(MALFORMED)?;
                self.out.small(|out| write_ping(payload, flag::ACK, out));
                Ok(())
            }
            kind::GOAWAY => self.go_away(payload),
            kind::WINDOW_UPDATE => {
                let more = payload.first_chunk().map(|more| u32::from_be_bytes(*more)).ok_or(MALFORMED)?;
                let window = match header.stream {
                    0 => Some(&mut self.window),
                    stream => self.stream(stream).map(|stream| &mut stream.window),
                };
                // Of a stream that has ended it says nothing.
                if let Some(window) = window {
                    *window += i64::from(more);
                }
                Ok(())
            }
            kind::PUSH_PROMISE => Err(MALFORMED),
            // Section 4.1: what is unknown is ignored.
            _ => Ok(()),
        }
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        let place = id.checked_sub(self.first_stream)? / 2;
        self.streams.get_mut(place as usize).filter(|stream| stream.call.is_some())
    }

    fn data(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Error> {
        self.received += header.length;
        if self.received > CONNECTION_WINDOW / 2 {
            let more = self.received;
            self.out.small(|out| write_window_update(0, more, out));
            self.received = 0;
        }
        let payload = unpadded(header, payload).map_err(|_cut| MALFORMED)?;
        // Answers end within the window that a stream begins with, which is therefore never opened again.
        let Some(stream) = self.stream(header.stream) else { return Ok(()) };
        if stream.message.len() + payload.len() > ANSWER_BYTES_MAX {
            return Err(Error::Malformed { what: "answer" });
        }
        stream.message.extend_from_slice(payload);
        if header.has(flag::END_STREAM) {
            self.end(header.stream, Stream::read);
        }
        Ok(())
    }

    fn continuation(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Error> {
        let Some(unfinished) = &mut self.unfinished else { return Err(MALFORMED) };
        if unfinished.stream != header.stream || unfinished.block.len() + payload.len() > HEAD_BYTES_MAX {
            return Err(MALFORMED);
        }
        unfinished.block.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(());
        }
        let Some(Unfinished { stream, ends, block }) = self.unfinished.take() else { return Err(MALFORMED) };
        self.fields(stream, ends, &block)
    }

    /// A head or trailers. Decoded even if nobody waits for them: the table must follow the peer's.
    fn fields(&mut self, id: u32, ends: bool, block: &[u8]) -> Result<(), Error> {
        let (mut status, mut fields) = (None, HeaderMap::new());
        let decoded = self.decoder.decode(block, |_class, name, value| {
            if name == b":status" {
                status = StatusCode::from_bytes(value).ok();
            } else if let Some(name) = FIELDS_READ.into_iter().find(|known| known.as_bytes() == name)
                && let Ok(value) = HeaderValue::from_bytes(value)
            {
                fields.insert(HeaderName::from_static(name), value);
            }
            Ok(())
        });
        decoded.map_err(|_cut| Error::Malformed { what: "header block" })?;
        if let Some(stream) = self.stream(id) {
            stream.status = stream.status.or(status);
            stream.fields.extend(fields);
        }
        if ends {
            self.end(id, Stream::read);
        }
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(MALFORMED);
        }
        let before = i64::from(self.peer.stream_window);
        for &[i0, i1, value @ ..] in settings {
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([i0, i1]) {
                setting::HEADER_TABLE_SIZE => self.peer.table_bytes = value,
                setting::MAX_CONCURRENT_STREAMS => self.peer.streams_max = value,
                setting::INITIAL_WINDOW_SIZE => self.peer.stream_window = value,
                setting::MAX_FRAME_SIZE => self.peer.frame_bytes_max = value.max(FRAME_BYTES_DEFAULT),
                _ => {}
            }
        }
        for stream in &mut self.streams {
            stream.window += i64::from(self.peer.stream_window) - before;
        }
        if self.block.is_empty() {
            self.choose_blocks();
        }
        self.out.small(write_settings_ack);
        Ok(())
    }

    /// With a table that has room for the head, it goes there with the first request. A smaller one is not used at all,
    /// which has to be said where it is below the size that tables begin with: RFC 7541, section 4.2.
    fn choose_blocks(&mut self) {
        if self.peer.table_bytes >= TABLE_BYTES && self.head.table_bytes() <= TABLE_BYTES as usize {
            (self.first_block, self.block) = (self.head.literals(true), self.head.indices());
        } else {
            const SIZE_UPDATE_TO_NONE: u8 = 0x20;
            self.block = self.head.literals(false);
            self.first_block = [&[SIZE_UPDATE_TO_NONE], &self.block[..]].concat();
        }
    }

    fn go_away(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (last, rest) = payload.split_first_chunk::<4>().ok_or(MALFORMED)?;
        let (code, word) = rest.split_first_chunk::<4>().ok_or(MALFORMED)?;
        let last = u32::from_be_bytes(*last);
        let (code, word) = (u32::from_be_bytes(*code), String::from_utf8_lossy(word));
        let cause = format!("the server ends the connection, code {code} {word}");
        while let Some((call, _)) = self.waiting.pop_front() {
            call.end(Err(Error::Exchange(cause.clone())));
        }
        for place in 0..self.streams.len() {
            let id = self.id(place);
            if id > last {
                self.end(id, |_| Err(Error::Exchange(cause.clone())));
            }
        }
        self.ended.get_or_insert(cause);
        Ok(())
    }

    fn id(&self, place: usize) -> u32 {
        self.first_stream + 2 * u32::try_from(place).unwrap_or(u32::MAX / 2)
    }

    fn end(&mut self, id: u32, answer: impl FnOnce(&Stream) -> Result<Answer, Error>) {
        let Some(stream) = self.stream(id) else { return };
        let answer = answer(stream);
        let Some(call) = stream.call.take() else { return };
        let is_sent = stream.body.is_empty();
        stream.body = Bytes::new();
        call.end(answer);
        self.open -= 1;
        if !is_sent {
            self.sending.retain(|&sending| sending != id);
            self.out.small(|out| write_reset(id, ErrorCode::Cancel, out));
        }
        while self.streams.front().is_some_and(|stream| stream.call.is_none()) {
            self.streams.pop_front();
            self.first_stream += 2;
        }
    }

    /// Puts out what the peer's windows allow.
    pub(crate) fn advance(&mut self) {
        while !self.block.is_empty() && self.open < self.peer.streams_max {
            let Some((call, body)) = self.waiting.pop_front() else { break };
            self.start(call, body);
        }
        let mut sending = mem::take(&mut self.sending);
        sending.retain(|&id| !self.send_body(id));
        self.sending = sending;
    }

    fn start(&mut self, call: Rc<Call>, body: Bytes) {
        let stream = self.id(self.streams.len());
        let block = if stream == 1 { &self.first_block } else { &self.block };
        let length = u32::try_from(block.len()).unwrap_or(0);
        self.out.header(FrameHeader { length, kind: kind::HEADERS, flags: flag::END_HEADERS, stream });
        self.out.tail.extend_from_slice(block);
        self.streams.push_back(Stream {
            call: Some(call),
            body,
            window: i64::from(self.peer.stream_window),
            status: None,
            fields: HeaderMap::new(),
            message: Vec::new(),
        });
        self.open += 1;
        self.sending.push_back(stream);
    }

    /// Whether all of its body is out, or nobody wants it any more.
    fn send_body(&mut self, id: u32) -> bool {
        let (window, frame_bytes_max) = (self.window, self.peer.frame_bytes_max);
        let Some(place) = id.checked_sub(self.first_stream).map(|distance| distance / 2) else { return true };
        let Some(stream) = self.streams.get_mut(place as usize) else { return true };
        let mut sent = 0;
        while !stream.body.is_empty() {
            let allowed = (window - sent).min(stream.window).min(i64::from(frame_bytes_max)).max(0);
            let length = stream.body.len().min(usize::try_from(allowed).unwrap_or(0));
            if length == 0 {
                break;
            }
            let piece = stream.body.split_to(length);
            let flags = if stream.body.is_empty() { flag::END_STREAM } else { 0 };
            let frame_length = u32::try_from(length).unwrap_or(0);
            self.out.header(FrameHeader { length: frame_length, kind: kind::DATA, flags, stream: id });
            self.out.body(piece);
            stream.window -= i64::from(frame_length);
            sent += i64::from(frame_length);
        }
        self.window -= sent;
        stream.body.is_empty()
    }
}

impl Stream {
    /// The answer, once all of it is there.
    fn read(&self) -> Result<Answer, Error> {
        match self.status {
            Some(status) if status.is_success() => answer::of_grpc(&self.fields, &self.message),
            Some(status) => answer::of_http(status, &self.fields, &self.message),
            None => Err(Error::Malformed { what: "head of an answer" }),
        }
    }
}
