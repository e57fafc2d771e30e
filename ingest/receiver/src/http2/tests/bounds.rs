//! What a peer that means harm gets: each way of wasting our time or memory is counted and cut.

use super::support::{POST, Server, Told, Written, block, data, frame, request, settings, window_update};
use crate::http2::frame::{flag, kind, setting};
use crate::http2::{Cut, ErrorCode, Limits};
use store_model::Monotonic;

/// Sends `frames(n)` for n = 0, 1, ... until the server has had enough; returns why and at which one.
fn flood(limits: Limits, frames: impl Fn(u32) -> Vec<u8>) -> Option<(Cut, u32)> {
    let mut server = Server::new(limits);
    for n in 0..5_000 {
        if let Err(cut) = server.receive(&frames(n)) {
            let last = server.written().pop().unwrap();
            assert_eq!((last.kind, last.code()), (kind::GOAWAY, Some(cut.code().number())));
            assert_eq!(last.payload[8..], *cut.as_str().as_bytes(), "the peer's log says why");
            return Some((cut, n));
        }
        server.out.clear();
        assert!(server.http2.memory_bytes() < 64 << 10, "after {n}");
    }
    None
}

#[test]
fn rapid_resets_are_cut() {
    let frames =
        |n| [request(2 * n + 1, false, &[]), frame(kind::RST_STREAM, 0, 2 * n + 1, &[0; 4])].concat();
    let limits = Limits { resets_per_second_max: 100, ..Limits::default() };
    assert_eq!(flood(limits, frames), Some((Cut::ResetFlood, 100)));
}

#[test]
fn making_us_reset_is_cut_the_same() {
    let limits = Limits { resets_per_second_max: 100, ..Limits::default() };
    let frames = |n| [request(2 * n + 1, false, &[]), window_update(2 * n + 1, 0)].concat();
    assert_eq!(flood(limits, frames), Some((Cut::ResetFlood, 100)));
    let refused = Limits { max_concurrent_streams: 0, ..limits };
    assert_eq!(flood(refused, |n| request(2 * n + 1, true, &[])), Some((Cut::ResetFlood, 100)));
}

#[test]
fn pings_without_answers_are_cut() {
    let limits = Limits { pings_per_second_max: 50, ..Limits::default() };
    assert_eq!(flood(limits, |_| frame(kind::PING, 0, 0, &[0; 8])), Some((Cut::PingFlood, 50)));
}

#[test]
fn pings_that_measure_a_busy_connection_are_not() {
    let mut server = Server::new(Limits { pings_per_second_max: 2, ..Limits::default() });
    for n in 0..1_000 {
        server.receive(&[request(2 * n + 1, true, &[]), frame(kind::PING, 0, 0, &[0; 8])].concat()).unwrap();
        server.respond(2 * n + 1, 200, b"", None);
        server.out.clear();
    }
}

#[test]
fn settings_are_cut() {
    let limits = Limits { settings_per_second_max: 20, ..Limits::default() };
    // The preface held the first one.
    assert_eq!(flood(limits, |_| settings(&[])), Some((Cut::SettingsFlood, 19)));
    assert_eq!(flood(limits, |_| settings(&[(99, 0); 65])), Some((Cut::SettingsFlood, 0)));
}

#[test]
fn frames_that_carry_nothing_are_cut() {
    let limits = Limits { empty_frames_per_second_max: 30, ..Limits::default() };
    let open = |n: u32, then: Vec<u8>| if n == 0 { [request(1, false, &[]), then].concat() } else { then };
    let cut = Some((Cut::EmptyFrameFlood, 30));
    assert_eq!(flood(limits, |n| open(n, data(1, false, b""))), cut);
    assert_eq!(flood(limits, |n| open(n, frame(kind::DATA, flag::PADDED, 1, &[3, 0, 0, 0]))), cut);
    assert_eq!(flood(limits, |_| frame(kind::PRIORITY, 0, 1, &[0; 5])), cut);
    assert_eq!(flood(limits, |_| frame(0x42, 0, 0, b"anything")), cut);
    assert_eq!(flood(limits, |_| frame(kind::PING, flag::ACK, 0, &[0; 8])), cut);
}

#[test]
fn limits_count_by_the_second() {
    let mut server = Server::new(Limits { pings_per_second_max: 2, ..Limits::default() });
    for second in 1..100 {
        server.now = Monotonic(second * 1_000_000_000);
        for _ in 0..2 {
            server.receive(&frame(kind::PING, 0, 0, &[0; 8])).unwrap();
        }
    }
}

#[test]
fn continuation_without_end_is_cut_by_number_and_by_size() {
    let limits = Limits { continuation_frames_max: 10, ..Limits::default() };
    let begin = |n: u32, piece: &[u8]| match n {
        0 => frame(kind::HEADERS, 0, 1, piece),
        _ => frame(kind::CONTINUATION, 0, 1, piece),
    };
    assert_eq!(flood(limits, |n| begin(n, &[])), Some((Cut::ContinuationFlood, 11)));
    assert_eq!(flood(limits, |n| begin(n, &[0; 4096])), Some((Cut::HeaderListTooLarge, 8)));
    let whole = |_| frame(kind::HEADERS, 4, 1, &[0; (16 << 10) + 1]);
    assert_eq!(flood(limits, whole), Some((Cut::Protocol(ErrorCode::FrameSizeError), 0)));
}

#[test]
fn a_list_that_is_merely_too_large_is_answered() {
    let mut server = Server::new(Limits::default());
    let value = "x".repeat(4_000);
    let list = block(&[&POST[..], &[("a", &value[..]); 5]].concat());
    let (begin, end) = list.split_at(16_000);
    server.receive(&frame(kind::HEADERS, flag::END_STREAM, 1, begin)).unwrap();
    server.receive(&frame(kind::CONTINUATION, flag::END_HEADERS, 1, end)).unwrap();
    assert_eq!(server.sink.outline(), [Told::Reset(1)]);
    let answer = server.written();
    assert_eq!(answer, [Written { kind: 1, flags: 5, stream: 1, payload: b"\x08\x03431".to_vec() }]);
    server.receive(&request(3, true, &[])).unwrap();
    assert_eq!(server.sink.outline().last(), Some(&Told::Head(3, true)));
}

#[test]
fn a_small_block_that_unfolds_is_cut() {
    let mut bomb = block(&POST);
    bomb.extend([&[0x40, 1, b'a', 0x7F, 0x81, 0x1E][..], &[b'x'; 4000]].concat()[..].iter());
    bomb.extend([0xbe; 1000]);
    let frames = |_| frame(kind::HEADERS, 5, 1, &bomb);
    assert_eq!(flood(Limits::default(), frames), Some((Cut::HpackBomb, 0)));
}

#[test]
fn a_peer_that_does_not_read_is_cut() {
    let limits = Limits { out_bytes_max: 10_000, pings_per_second_max: u32::MAX, ..Limits::default() };
    let mut server = Server::new(limits);
    let cut = (0..5_000).find_map(|_| server.receive(&frame(kind::PING, 0, 0, &[0; 8])).err());
    assert_eq!(cut, Some(Cut::OutputNotRead));
    assert!(server.out.len() < 10_200);
}

#[test]
fn a_peer_that_keeps_its_windows_shut_is_cut() {
    let mut server = Server::new(Limits { out_bytes_max: 100_000, ..Limits::default() });
    server.receive(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])).unwrap();
    let mut cut = None;
    for n in 0..250 {
        cut = cut.or(server.receive(&request(2 * n + 1, true, &[])).err());
        server.respond(2 * n + 1, 200, &[b'x'; 1_000], None);
        server.out.clear();
        assert!(server.http2.memory_bytes() < 200_000);
    }
    assert_eq!(cut, Some(Cut::OutputNotRead));
}

#[test]
fn idle_connection_is_small_and_trimmed_smaller() {
    let mut server = Server::new(Limits::default());
    assert!(server.http2.memory_bytes() < 1_024, "{}", server.http2.memory_bytes());
    for n in 0..2_000 {
        let fields =
            [block(&POST), vec![0x40, 2, b'a', b'b', 1, b'0' + u8::try_from(n % 10).unwrap()]].concat();
        for byte in frame(kind::HEADERS, 5, 2 * n + 1, &fields).chunks(7) {
            server.receive(byte).unwrap();
        }
        server.respond(2 * n + 1, 200, b"", None);
        server.out.clear();
    }
    assert!(server.http2.memory_bytes() < 16 << 10, "{}", server.http2.memory_bytes());
    server.http2.trim();
    assert!(server.http2.memory_bytes() < 8 << 10, "{}", server.http2.memory_bytes());
    server.receive(&frame(kind::HEADERS, 5, 9_001, &[&block(&POST)[..], &[0xbe]].concat())).unwrap();
    assert_eq!(server.sink.outline().last(), Some(&Told::Head(9_001, true)), "the table survives");
}
