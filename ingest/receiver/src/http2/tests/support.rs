//! A client made of bytes, and a server that writes down what it is told.

use std::collections::BTreeMap;

use store_model::Monotonic;

use crate::http2::frame::{FrameHeader, HEADER_BYTES, PREFACE, flag, kind};
use crate::http2::{Cut, Fields, Http2, Limits, Sink, StreamId};

/// One call to a [`Sink`]; pieces of one body are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Field(u32, String, String),
    Head(u32, bool),
    Data(u32, Vec<u8>, bool),
    Reset(u32),
}

#[derive(Debug, Default)]
pub struct Recorder {
    pub told: Vec<Told>,
    /// Body bytes not credited yet.
    pub uncredited: BTreeMap<u32, usize>,
}

impl Sink for Recorder {
    fn field(&mut self, stream: StreamId, name: &[u8], value: &[u8]) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.told.push(Told::Field(stream.0, text(name), text(value)));
    }

    fn head(&mut self, stream: StreamId, ends: bool) {
        self.told.push(Told::Head(stream.0, ends));
    }

    fn data(&mut self, stream: StreamId, bytes: &[u8], ends: bool) {
        *self.uncredited.entry(stream.0).or_default() += bytes.len();
        if let Some(Told::Data(id, body, ended @ false)) = self.told.last_mut()
            && *id == stream.0
        {
            body.extend_from_slice(bytes);
            *ended = ends;
            return;
        }
        self.told.push(Told::Data(stream.0, bytes.to_vec(), ends));
    }

    fn reset(&mut self, stream: StreamId) {
        self.told.push(Told::Reset(stream.0));
    }
}

impl Recorder {
    /// Everything but the fields.
    pub fn outline(&self) -> Vec<Told> {
        self.told.iter().filter(|told| !matches!(told, Told::Field(..))).cloned().collect()
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let length = u32::try_from(payload.len()).unwrap();
    FrameHeader { length, kind, flags, stream }.write(&mut out);
    out.extend_from_slice(payload);
    out
}

/// A header block of plain literals.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            match text.len() {
                short @ ..127 => out.push(u8::try_from(short).unwrap()),
                long => {
                    let rest = long - 127;
                    let low = u8::try_from(rest % 128).unwrap();
                    out.extend([127, 0x80 | low, u8::try_from(rest / 128).unwrap()]);
                }
            }
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

pub const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/x"), ("te", "trailers")];

/// HEADERS of a request, with more fields.
pub fn request(stream: u32, ends: bool, more: &[(&str, &str)]) -> Vec<u8> {
    let fields = [&POST[..], more].concat();
    let flags = flag::END_HEADERS | if ends { flag::END_STREAM } else { 0 };
    frame(kind::HEADERS, flags, stream, &block(&fields))
}

pub fn data(stream: u32, ends: bool, bytes: &[u8]) -> Vec<u8> {
    frame(kind::DATA, if ends { flag::END_STREAM } else { 0 }, stream, bytes)
}

pub fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let bytes = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(kind::SETTINGS, 0, 0, &entries.iter().flat_map(bytes).collect::<Vec<u8>>())
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn preface() -> Vec<u8> {
    [&PREFACE[..], &settings(&[])].concat()
}

/// A frame that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Written {
    /// The number a RST_STREAM or GOAWAY gives.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap()))
    }

    pub fn ends(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & flag::END_STREAM != 0
    }
}

pub fn written(mut out: &[u8]) -> Vec<Written> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = out.split_first_chunk::<HEADER_BYTES>() {
        let FrameHeader { length, kind, flags, stream } = FrameHeader::read(*header);
        let (payload, rest) = rest.split_at(usize::try_from(length).unwrap());
        frames.push(Written { kind, flags, stream, payload: payload.to_vec() });
        out = rest;
    }
    assert!(out.is_empty(), "half a frame was written");
    frames
}

/// A connection past its preface.
#[derive(Debug)]
pub struct Server {
    pub http2: Http2,
    pub sink: Recorder,
    pub out: Vec<u8>,
    pub now: Monotonic,
}

impl Server {
    pub fn new(limits: Limits) -> Self {
        let mut server = Self::silent(limits);
        server.receive(&preface()).unwrap();
        server.out.clear();
        server
    }

    /// Before the client has said a word.
    pub fn silent(limits: Limits) -> Self {
        let (mut out, now) = (Vec::new(), Monotonic(1));
        Self { http2: Http2::new(limits, now, &mut out), sink: Recorder::default(), out, now }
    }

    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        self.http2.receive(bytes, self.now, &mut self.sink, &mut self.out)
    }

    pub fn respond(&mut self, stream: u32, status: u16, body: &[u8], trailers: Option<Fields<'_>>) {
        self.http2.respond(StreamId(stream), status, &[], body, trailers, &mut self.out);
    }

    pub fn credit_all(&mut self) {
        for (stream, bytes) in std::mem::take(&mut self.sink.uncredited) {
            self.http2.credit(StreamId(stream), bytes, &mut self.out);
        }
    }

    /// What was written since the last look.
    pub fn written(&mut self) -> Vec<Written> {
        written(&std::mem::take(&mut self.out))
    }

    /// The codes of the RST_STREAMs among them.
    pub fn resets(&mut self) -> Vec<(u32, u32)> {
        let frames = self.written().into_iter().filter(|frame| frame.kind == kind::RST_STREAM);
        frames.map(|frame| (frame.stream, frame.code().unwrap())).collect()
    }
}
