//! Any bytes as one connection, behind an HTTP/2 preface and with gRPC calls to begin with: nothing panics, memory stays in its
//! budget and comes back, and as many spans are taken however the bytes are cut.
//!
//! The first byte chooses the size of the pieces, the second what happens between them.
#![no_main]

use std::time::Duration;

use ingest_receiver::conversation::Conversation;

const MIB: usize = 1 << 20;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn check_whole(mut out: &[u8]) {
    while let Some((header, rest)) = out.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        out = &rest[usize::try_from(length).expect("32 bits")..];
    }
    assert!(out.is_empty(), "half a frame");
}

/// Answers at once.
fn patient<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut talk = Conversation::new(MIB).expect("a descriptor");
    for piece in pieces {
        let goes_on = talk.hear(piece);
        check_whole(&talk.out);
        if !goes_on {
            break;
        }
    }
    talk.end()
}

/// Answers late, lets time pass, asks to go.
fn hasty<'a>(pieces: impl Iterator<Item = &'a [u8]>, mut act: u8) {
    let mut talk = Conversation::new(MIB).expect("a descriptor");
    for piece in pieces {
        match act % 8 {
            0 | 1 => talk.hold(),
            2 => talk.release(true),
            3 => talk.release(false),
            4 => talk.wait(Duration::from_millis(300)),
            5 => talk.wait(Duration::from_secs(31)),
            6 if act > 240 => talk.ask_to_go(),
            _ => {}
        }
        talk.hear(piece);
        check_whole(&talk.out);
        if act % 3 == 0 {
            talk.out.clear();
        }
        act = act.wrapping_mul(5).wrapping_add(41);
    }
    talk.end();
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [size, act, bytes @ ..] = input else { return };
    let whole = [PREFACE, bytes].concat();
    let size = usize::from(*size) + 1;
    assert_eq!(patient([&whole[..]].into_iter()), patient(whole.chunks(size)), "pieces of {size}");
    hasty(whole.chunks(size), *act);
});
