//! Any bytes as an HTTP/1.1 connection: nothing panics, memory stays in its budget and comes back, and the same spans are taken
//! and the same is said however the bytes are cut.
//!
//! The first byte chooses the size of the pieces, the second what happens between them.
#![no_main]

use std::time::Duration;

use ingest_receiver::conversation::Conversation;

const MIB: usize = 1 << 20;

/// `expect` of a sender who wants to be asked for the body.
const ASKS_FIRST: &[u8] = b"100-continue";

/// Spans taken and what is said, apart from the invitations to go on, which depend on what has come already.
fn patient<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (u64, Vec<u8>) {
    const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut talk = Conversation::new(MIB).expect("a descriptor");
    for piece in pieces {
        if !talk.hear(piece) {
            break;
        }
    }
    let mut out = std::mem::take(&mut talk.out);
    if talk.was_cut() {
        out.clear();
    }
    while let Some(at) = out.windows(GO_ON.len()).position(|found| found == GO_ON) {
        out.drain(at..at + GO_ON.len());
    }
    (talk.end(), out)
}

fn hasty<'a>(pieces: impl Iterator<Item = &'a [u8]>, mut act: u8) {
    let mut talk = Conversation::new(MIB).expect("a descriptor");
    for piece in pieces {
        match act % 8 {
            0 | 1 => talk.hold(),
            2 => talk.release(true),
            3 => talk.release(false),
            4 => talk.wait(Duration::from_millis(300)),
            5 => talk.wait(Duration::from_secs(11)),
            6 if act > 240 => talk.ask_to_go(),
            _ => {}
        }
        talk.hear(piece);
        act = act.wrapping_mul(5).wrapping_add(41);
    }
    talk.end();
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [size, act, bytes @ ..] = input else { return };
    let size = usize::from(*size) + 1;
    let (whole, cut) = (patient([bytes].into_iter()), patient(bytes.chunks(size)));
    // A refused sender who asked before sending may or may not have begun to send: the connection goes on when the body
    // has come, and ends when it has not.
    if !bytes.windows(ASKS_FIRST.len()).any(|part| part.eq_ignore_ascii_case(ASKS_FIRST)) {
        assert_eq!(whole, cut, "pieces of {size}");
    }
    hasty(bytes.chunks(size), *act);
});
