//! Whatever comes, the core does not panic, does not grow, and writes whole frames only.

use proptest::prelude::*;

use super::support::{POST, Server, block, frame, preface};
use crate::http2::{Limits, StreamId};

/// Small limits, so that the random meets them.
fn limits() -> Limits {
    Limits {
        max_concurrent_streams: 8,
        header_list_bytes_max: 400,
        stream_window: 500,
        connection_window: 70_000,
        out_bytes_max: 20_000,
        continuation_frames_max: 4,
        ..Limits::default()
    }
}

/// Frames that are mostly in order, since noise alone does not get past the first header.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        3 => Just(block(&POST)),
        1 => Just(block(&[("x-trailer", "1")])),
        1 => Just(vec![0x82, 0x86, 0x84, 0x40, 1, b'a', 3, b'b', b'c', b'd']),
        1 => Just(vec![0xbe, 0x82, 0x86, 0x84]),
        2 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![0, 0, 0, 0, 0, 0, 0, 0]),
        1 => Just(vec![0, 0, 0, 9]),
        1 => Just(vec![0, 4, 0, 0, 1, 0]),
        1 => Just(vec![]),
    ];
    let kind = prop_oneof![4 => Just(1u8), 4 => Just(0u8), 1 => 0u8..12];
    let flags = prop_oneof![4 => Just(4u8), 4 => Just(5u8), 1 => any::<u8>()];
    let stream = prop_oneof![1 => Just(0u32), 8 => (0u32..12).prop_map(|n| 2 * n + 1), 1 => 0u32..30];
    (kind, flags, stream, payload).prop_map(|(kind, flags, stream, payload)| {
        // Only what is 8, 4 and 6 bytes long by nature goes to stream 0.
        let stream = if matches!(kind, 4 | 6 | 7) { 0 } else { stream };
        frame(kind, flags, stream, &payload)
    })
}

/// Feeds pieces and acts as a hasty driver would: credits at once, answers and resets now and then.
fn run(pieces: &[Vec<u8>], acts: &[u8]) {
    let mut server = Server::silent(limits());
    for (n, piece) in pieces.iter().enumerate() {
        let result = server.receive(piece);
        let act = acts.get(n % acts.len().max(1)).copied().unwrap_or(0);
        if act % 2 == 0 {
            server.credit_all();
        }
        let stream = u32::from(act) / 4 % 24;
        match act % 7 {
            0 => server.respond(stream, 200, &[b'x'; 600], Some(&[("grpc-status", b"0")])),
            1 => server.respond(stream, 503, b"", None),
            2 => server.http2.reset(StreamId(stream), crate::http2::ErrorCode::Cancel, &mut server.out),
            3 if act > 250 => server.http2.go_away(&mut server.out),
            4 => server.http2.trim(),
            _ => {}
        }
        assert!(server.http2.memory_bytes() < 64 << 10, "{}", server.http2.memory_bytes());
        assert!(server.http2.open_streams() <= 8);
        drop(server.written());
        if result.is_err() {
            assert!(server.receive(b"more").is_err());
            break;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn frames_in_any_order(
        frames in proptest::collection::vec(any_frame(), 0..60),
        acts in proptest::collection::vec(any::<u8>(), 1..20),
    ) {
        let mut pieces = vec![preface()];
        pieces.extend(frames);
        run(&pieces, &acts);
    }

    #[test]
    fn frames_with_damage(
        frames in proptest::collection::vec(any_frame(), 1..30),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..10),
        cuts in 1usize..50,
        acts in proptest::collection::vec(any::<u8>(), 1..20),
    ) {
        let mut bytes = frames.concat();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let mut pieces = vec![preface()];
        pieces.extend(bytes.chunks(cuts).map(<[u8]>::to_vec));
        run(&pieces, &acts);
    }

    #[test]
    fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        run(&[preface(), bytes.clone()], &[0]);
        run(&[bytes], &[0]);
    }
}
