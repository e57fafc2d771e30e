//! Any bytes behind a preface: the same is told and written however they are cut, whatever is written is whole frames,
//! and memory stays within bounds, also when a hasty driver answers in the middle.
//!
//! The first byte chooses the size of the pieces, the second what the driver does.
#![no_main]

use std::collections::BTreeMap;

use ingest_receiver::http2::{Cut, ErrorCode, Http2, Limits, Sink, StreamId};
use store_model::Monotonic;

const NOW: Monotonic = Monotonic(1);

/// Small, so that fuzzing meets them.
fn limits() -> Limits {
    Limits {
        max_concurrent_streams: 8,
        header_list_bytes_max: 1_000,
        stream_window: 1_000,
        connection_window: 70_000,
        out_bytes_max: 20_000,
        continuation_frames_max: 4,
        ..Limits::default()
    }
}

#[derive(Debug, PartialEq)]
enum Told {
    Field(u32, Vec<u8>, Vec<u8>),
    Head(u32, bool),
    Data(u32, Vec<u8>, bool),
    Reset(u32),
}

#[derive(Default)]
struct Recorder {
    told: Vec<Told>,
    consumed: Vec<(StreamId, usize)>,
}

impl Sink for Recorder {
    fn field(&mut self, stream: StreamId, name: &[u8], value: &[u8]) {
        assert!(!name.is_empty() && !name.iter().any(u8::is_ascii_uppercase));
        assert!(!value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')));
        self.told.push(Told::Field(stream.0, name.to_vec(), value.to_vec()));
    }

    fn head(&mut self, stream: StreamId, ends: bool) {
        self.told.push(Told::Head(stream.0, ends));
    }

    fn data(&mut self, stream: StreamId, bytes: &[u8], ends: bool) {
        self.consumed.push((stream, bytes.len()));
        match self.told.last_mut() {
            Some(Told::Data(id, body, ended @ false)) if *id == stream.0 => {
                body.extend_from_slice(bytes);
                *ended = ends;
            }
            _ => self.told.push(Told::Data(stream.0, bytes.to_vec(), ends)),
        }
    }

    fn reset(&mut self, stream: StreamId) {
        self.told.push(Told::Reset(stream.0));
    }
}

fn check_whole(mut out: &[u8]) {
    while let Some((header, rest)) = out.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        out = &rest[usize::try_from(length).expect("32 bits")..];
    }
    assert!(out.is_empty());
}

/// Answers and credits once all has been read.
fn patient<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Told>, Vec<u8>, Result<(), Cut>) {
    let (mut sink, mut out) = (Recorder::default(), Vec::new());
    let mut http2 = Http2::new(limits(), NOW, &mut out);
    let mut result = Ok(());
    for piece in pieces {
        result = http2.receive(piece, NOW, &mut sink, &mut out);
        assert!(http2.memory_bytes() < 64 << 10);
        assert!(http2.open_streams() <= 8);
        if result.is_err() {
            break;
        }
    }
    // Summed up, since when credit is written depends on the portions it is given in.
    let mut consumed = BTreeMap::<StreamId, usize>::new();
    for (stream, bytes) in sink.consumed.drain(..) {
        *consumed.entry(stream).or_default() += bytes;
    }
    for (stream, bytes) in consumed {
        http2.credit(stream, bytes, &mut out);
    }
    for id in 0..30 {
        http2.respond(StreamId(id), 200, &[], b"an answer", Some(&[("grpc-status", b"0")]), &mut out);
    }
    (sink.told, out, result)
}

/// Acts between the pieces.
fn hasty<'a>(pieces: impl Iterator<Item = &'a [u8]>, mut act: u8) {
    let (mut sink, mut out) = (Recorder::default(), Vec::new());
    let mut http2 = Http2::new(limits(), NOW, &mut out);
    for piece in pieces {
        let is_over = http2.receive(piece, NOW, &mut sink, &mut out).is_err();
        let stream = StreamId(u32::from(act / 8));
        match act % 8 {
            0 | 1 => http2.respond(stream, 200, &[], &[0; 1_500], Some(&[("grpc-status", b"0")]), &mut out),
            2 => http2.respond(stream, 503, &[("retry-after", b"1")], b"", None, &mut out),
            3 => http2.reset(stream, ErrorCode::Cancel, &mut out),
            4 => http2.trim(),
            5 if stream.0 > 28 => http2.go_away(&mut out),
            _ => {
                for (stream, bytes) in sink.consumed.drain(..) {
                    http2.credit(stream, bytes, &mut out);
                }
            }
        }
        act = act.wrapping_mul(5).wrapping_add(41);
        assert!(http2.memory_bytes() < 64 << 10);
        check_whole(&out);
        out.clear();
        if is_over {
            return;
        }
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [size, act, bytes @ ..] = input else { return };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let whole = [&preface[..], bytes].concat();
    let size = usize::from(*size) + 1;
    let first = patient([&whole[..]].into_iter());
    check_whole(&first.1);
    assert!(first == patient(whole.chunks(size)), "pieces of {size} tell something else");
    hasty(whole.chunks(size), *act);
});
