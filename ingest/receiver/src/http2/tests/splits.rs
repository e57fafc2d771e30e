//! The same bytes in other pieces are the same to the core.

use proptest::prelude::*;

use super::support::{POST, Server, Told, block, data, frame, preface, request, settings, window_update};
use crate::http2::frame::{flag, kind, setting};
use crate::http2::{Cut, Limits};

/// A bit of everything, a fault of each sort of stream among it.
fn conversation() -> Vec<u8> {
    let huffman = [
        &[0x82, 0x86, 0x84, 0x41, 0x8c][..],
        &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff],
    ]
    .concat();
    let split_block = block(&[&POST[..], &[("x-long", &"y".repeat(200))]].concat());
    [
        preface(),
        frame(kind::SETTINGS, flag::ACK, 0, &[]),
        frame(kind::HEADERS, 5, 1, &huffman),
        request(3, false, &[("content-length", "600")]),
        data(3, false, &[7; 300]),
        frame(kind::PING, 0, 0, b"abcdefgh"),
        frame(kind::DATA, flag::PADDED | 1, 3, &[&[20][..], &[8; 300], &[0; 20]].concat()),
        frame(
            kind::HEADERS,
            flag::PADDED | flag::PRIORITY,
            5,
            &[&[4, 0, 0, 0, 3, 9][..], &split_block[..50], &[0; 4]].concat(),
        ),
        frame(kind::CONTINUATION, 0, 5, &split_block[50..90]),
        frame(kind::CONTINUATION, 4, 5, &split_block[90..]),
        settings(&[(setting::INITIAL_WINDOW_SIZE, 5), (77, 1)]),
        window_update(0, 1_000),
        frame(99, 255, 12, b"unknown"),
        data(5, false, b"abc"),
        frame(kind::HEADERS, 5, 5, &block(&[("x-trailer", "1")])),
        request(7, false, &[("Bad", "name")]),
        data(7, true, b"still under way"),
        request(9, false, &[]),
        frame(kind::DATA, flag::PADDED, 9, &[255; 256]),
        frame(kind::RST_STREAM, 0, 9, &[0, 0, 0, 8]),
        data(9, true, b"after its own reset"),
        request(11, false, &[("content-length", "3")]),
        data(11, true, b"four"),
        frame(kind::GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0bye"),
        request(13, false, &[]),
        data(13, true, b""),
        window_update(0, 0),
        b"never looked at".to_vec(),
    ]
    .concat()
}

type Outcome = (Vec<Told>, Vec<u8>, Result<(), Cut>);

/// Feeds the pieces; answers and credits at the end, so that only the cuts differ.
fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut server = Server::silent(Limits { stream_window: 1_000, ..Limits::default() });
    let mut result = Ok(());
    for piece in pieces {
        result = server.receive(piece);
        if result.is_err() {
            break;
        }
    }
    server.credit_all();
    for id in [1, 3, 5, 13] {
        server.respond(id, 200, b"longer than the window", Some(&[("grpc-status", b"0")]));
    }
    (server.sink.told, server.out, result)
}

#[test]
fn every_cut_in_two_and_every_size_of_piece_tells_the_same() {
    let bytes = conversation();
    let whole = run([&bytes[..]]);
    assert_eq!(whole.0.iter().filter(|told| matches!(told, Told::Head(..))).count(), 6, "{:?}", whole.0);
    assert_eq!(whole.2, Err(Cut::Protocol(crate::http2::ErrorCode::ProtocolError)));
    for at in 0..bytes.len() {
        let (a, b) = bytes.split_at(at);
        assert!(run([a, b]) == whole, "cut at {at}");
    }
    for size in 1..100 {
        assert!(run(bytes.chunks(size)) == whole, "pieces of {size}");
    }
}

proptest! {
    #[test]
    fn random_pieces_tell_the_same(sizes in proptest::collection::vec(0usize..400, 1..60)) {
        let bytes = conversation();
        let whole = run([&bytes[..]]);
        let mut rest = &bytes[..];
        let mut pieces = Vec::new();
        for size in sizes {
            let (piece, more) = rest.split_at(size.min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        pieces.push(rest);
        prop_assert!(run(pieces) == whole);
    }
}
