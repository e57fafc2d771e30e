//! What RFC 9113 demands of a server, frame by frame.

use super::support::{
    POST, Server, Told, Written, block, data, frame, preface, request, settings, window_update,
};
use crate::http2::frame::{PREFACE, flag, kind, setting};
use crate::http2::{Cut, ErrorCode, Limits, StreamId};

const PROTOCOL: u32 = 1;
const FLOW: u32 = 3;
const CLOSED: u32 = 5;
const SIZE: u32 = 6;
const REFUSED: u32 = 7;

fn server() -> Server {
    Server::new(Limits::default())
}

/// The connection ends with this code, and says so.
fn check_cut(frames: &[Vec<u8>], code: ErrorCode) {
    let mut server = server();
    assert_eq!(server.receive(&frames.concat()), Err(Cut::Protocol(code)), "{frames:?}");
    let last = server.written().pop().unwrap();
    assert_eq!((last.kind, last.code()), (kind::GOAWAY, Some(code.number())), "{frames:?}");
    assert!(server.receive(&[]).is_err(), "nothing is read afterwards");
}

/// The stream ends with this code and the connection lives on.
fn check_reset(frames: &[Vec<u8>], stream: u32, code: u32) {
    let mut server = server();
    assert_eq!(server.receive(&frames.concat()), Ok(()), "{frames:?}");
    assert_eq!(server.resets(), [(stream, code)], "{frames:?}");
    server.receive(&request(99, true, &[])).unwrap();
    assert_eq!(server.sink.outline().last(), Some(&Told::Head(99, true)));
}

#[test]
fn a_request_is_told_piece_by_piece() {
    let mut server = server();
    let parts = [request(1, false, &[("x", " y ")]), data(1, false, b"ab"), data(1, true, b"c")];
    server.receive(&parts.concat()).unwrap();
    let field = |name: &str, value: &str| Told::Field(1, name.into(), value.into());
    let mut expected: Vec<Told> = POST.iter().map(|(name, value)| field(name, value)).collect();
    expected.extend([field("x", "y"), Told::Head(1, false), Told::Data(1, b"abc".to_vec(), true)]);
    assert_eq!(server.sink.told, expected);
    assert_eq!(server.http2.open_streams(), 1);

    let trailers: &[(&str, &[u8])] = &[("grpc-status", b"0")];
    server.respond(1, 200, b"hello", Some(trailers));
    assert_eq!(server.http2.open_streams(), 0);
    let frames = server.written();
    assert_eq!(
        frames.iter().map(|f| (f.kind, f.ends())).collect::<Vec<_>>(),
        [(1, false), (0, false), (1, true)]
    );
    assert_eq!((&frames[0].payload[..], &frames[1].payload[..]), (&[0x88][..], &b"hello"[..]));
}

#[test]
fn our_settings_come_first_and_theirs_are_acknowledged() {
    let mut server = Server::silent(Limits::default());
    let frames = server.written();
    assert_eq!(frames.iter().map(|f| (f.kind, f.flags)).collect::<Vec<_>>(), [(4, 0), (8, 0)]);
    server.receive(&preface()).unwrap();
    assert_eq!(server.written(), [Written { kind: 4, flags: flag::ACK, stream: 0, payload: vec![] }]);
}

#[test]
fn anything_but_the_preface_is_cut() {
    let protocol = Err(Cut::Protocol(ErrorCode::ProtocolError));
    assert_eq!(Server::silent(Limits::default()).receive(b"GET / HTTP/1.1\r\n"), protocol);
    let headers_first = [PREFACE.to_vec(), request(1, true, &[])].concat();
    assert_eq!(Server::silent(Limits::default()).receive(&headers_first), protocol);
    let ack_first = [PREFACE.to_vec(), frame(kind::SETTINGS, flag::ACK, 0, &[])].concat();
    assert_eq!(Server::silent(Limits::default()).receive(&ack_first), protocol);
}

#[test]
fn frames_out_of_place_cut_the_connection() {
    let cut = |frames: &[Vec<u8>]| check_cut(frames, ErrorCode::ProtocolError);
    let open = request(1, false, &[]);
    cut(&[request(0, true, &[])]);
    cut(&[request(2, true, &[])]);
    cut(&[request(3, true, &[]), request(1, true, &[])]);
    cut(&[data(0, true, b"")]);
    cut(&[data(1, true, b"")]);
    cut(&[frame(kind::RST_STREAM, 0, 0, &[0; 4])]);
    cut(&[frame(kind::RST_STREAM, 0, 1, &[0; 4])]);
    cut(&[window_update(1, 1)]);
    cut(&[window_update(0, 0)]);
    cut(&[frame(kind::PRIORITY, 0, 0, &[0; 5])]);
    cut(&[frame(kind::SETTINGS, 0, 1, &[])]);
    cut(&[frame(kind::PING, 0, 1, &[0; 8])]);
    cut(&[frame(kind::GOAWAY, 0, 1, &[0; 8])]);
    cut(&[frame(kind::PUSH_PROMISE, 4, 1, &[0; 8])]);
    cut(&[frame(kind::CONTINUATION, 4, 1, &[])]);
    cut(&[open.clone(), frame(kind::CONTINUATION, 4, 1, &[])]);
    let half = frame(kind::HEADERS, 0, 1, &block(&POST));
    cut(&[half.clone(), frame(kind::PING, 0, 0, &[0; 8])]);
    cut(&[half.clone(), frame(kind::CONTINUATION, 4, 3, &[])]);
    cut(&[half, frame(77, 0, 1, &[])]);
    cut(&[open.clone(), frame(kind::DATA, flag::PADDED, 1, &[2, 0])]);
    cut(&[frame(kind::HEADERS, flag::PADDED | flag::END_HEADERS, 1, &[9, 0x82])]);
    cut(&[settings(&[(setting::ENABLE_PUSH, 2)])]);
    cut(&[settings(&[(setting::MAX_FRAME_SIZE, 16_383)])]);
    cut(&[settings(&[(setting::MAX_FRAME_SIZE, 1 << 24)])]);
}

#[test]
fn frames_of_wrong_size_cut_the_connection() {
    let cut = |frames: &[Vec<u8>]| check_cut(frames, ErrorCode::FrameSizeError);
    cut(&[request(1, false, &[]), data(1, false, &[0; (256 << 10) + 1])]);
    cut(&[frame(kind::SETTINGS, 0, 0, &[0; 5])]);
    cut(&[frame(kind::SETTINGS, flag::ACK, 0, &[0; 6])]);
    cut(&[frame(kind::PING, 0, 0, &[0; 7])]);
    cut(&[frame(kind::GOAWAY, 0, 0, &[0; 7])]);
    cut(&[frame(kind::WINDOW_UPDATE, 0, 0, &[0; 3])]);
    cut(&[request(1, false, &[]), frame(kind::RST_STREAM, 0, 1, &[0; 5])]);
    cut(&[request(1, false, &[]), frame(kind::DATA, flag::PADDED, 1, &[])]);
    cut(&[frame(kind::HEADERS, flag::PRIORITY | flag::END_HEADERS, 1, &[0; 4])]);
    check_reset(&[request(1, false, &[]), frame(kind::PRIORITY, 0, 1, &[0; 4])], 1, SIZE);
}

#[test]
fn windows_beyond_31_bits_are_flow_control_errors() {
    let cut = |frames: &[Vec<u8>]| check_cut(frames, ErrorCode::FlowControlError);
    cut(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)])]);
    cut(&[window_update(0, (1 << 31) - 1)]);
    let grown = [request(1, false, &[]), window_update(1, 1 << 30)];
    cut(&[grown.concat(), settings(&[(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)])]);
    check_reset(&[request(1, false, &[]), window_update(1, (1 << 31) - 1)], 1, FLOW);
    check_reset(&[request(1, false, &[]), window_update(1, 0)], 1, PROTOCOL);
}

#[test]
fn malformed_requests_end_their_stream_only() {
    let reset = |frames: &[Vec<u8>], code| check_reset(frames, 1, code);
    reset(&[request(1, true, &[("Upper", "x")])], PROTOCOL);
    reset(&[request(1, true, &[("content-length", "1")])], PROTOCOL);
    reset(&[request(1, false, &[("content-length", "2")]), data(1, true, b"a")], PROTOCOL);
    reset(&[request(1, false, &[("content-length", "2")]), data(1, false, b"abc")], PROTOCOL);
    let trailers = |flags, fields: &[(&str, &str)]| frame(kind::HEADERS, flags, 1, &block(fields));
    let short = [request(1, false, &[("content-length", "2")]), data(1, false, b"a"), trailers(5, &[])];
    reset(&short, PROTOCOL);
    reset(&[request(1, false, &[]), trailers(4, &[("a", "b")])], PROTOCOL);
    reset(&[request(1, false, &[]), trailers(5, &[(":path", "/")])], PROTOCOL);
    let on_itself = [&[0, 0, 0, 1, 7][..], &block(&POST)].concat();
    reset(&[frame(kind::HEADERS, flag::PRIORITY | 5, 1, &on_itself)], PROTOCOL);
    reset(&[request(1, false, &[]), frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 7])], PROTOCOL);
}

#[test]
fn what_follows_the_end_of_a_request_is_refused() {
    check_reset(&[request(1, true, &[]), data(1, true, b"x")], 1, CLOSED);
    check_reset(&[request(1, true, &[]), request(1, true, &[])], 1, CLOSED);
    let peer_reset = frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    check_reset(&[request(1, false, &[]), peer_reset.clone(), data(1, true, b"x")], 1, CLOSED);
    check_reset(&[request(1, false, &[]), peer_reset, request(1, true, &[])], 1, CLOSED);
    for late in [data(1, true, b"x"), request(1, true, &[])] {
        let mut server = server();
        server.receive(&request(1, true, &[])).unwrap();
        server.respond(1, 200, b"", None);
        server.receive(&window_update(1, 5)).unwrap();
        server.receive(&frame(kind::RST_STREAM, 0, 1, &[0; 4])).unwrap();
        assert_eq!(server.receive(&late), Err(Cut::Protocol(ErrorCode::StreamClosed)));
    }
}

#[test]
fn peers_reset_is_told_once() {
    let mut server = server();
    server.receive(&[request(1, false, &[]), data(1, false, b"a")].concat()).unwrap();
    let reset = frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    server.receive(&[reset.clone(), reset].concat()).unwrap();
    let told = [Told::Head(1, false), Told::Data(1, b"a".to_vec(), false), Told::Reset(1)];
    assert_eq!(server.sink.outline(), told);
    server.respond(1, 200, b"late", None);
    assert_eq!(server.written(), []);
}

#[test]
fn trailers_and_padding_and_priority_are_taken_off() {
    let mut server = server();
    let padded = [&[3, 0, 0, 0, 0, 9][..], &block(&POST), &[0; 3]].concat();
    server.receive(&frame(kind::HEADERS, flag::PADDED | flag::PRIORITY | 4, 1, &padded)).unwrap();
    server.receive(&frame(kind::DATA, flag::PADDED, 1, b"\x02ab\0\0")).unwrap();
    server.receive(&frame(kind::HEADERS, 5, 1, &block(&[("x-checksum", "1")]))).unwrap();
    let told = [Told::Head(1, false), Told::Data(1, b"ab".to_vec(), true)];
    assert_eq!(server.sink.outline(), told);
}

#[test]
fn header_blocks_may_come_in_any_number_of_pieces() {
    let mut server = server();
    let block = block(&POST);
    let mut parts = vec![frame(kind::HEADERS, flag::END_STREAM, 1, &[])];
    parts.extend(block.chunks(9).map(|piece| frame(kind::CONTINUATION, 0, 1, piece)));
    parts.push(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]));
    server.receive(&parts.concat()).unwrap();
    assert_eq!(server.sink.told.len(), POST.len() + 1);
    assert_eq!(server.sink.told.last(), Some(&Told::Head(1, true)));
}

#[test]
fn unknown_frames_settings_and_flags_are_ignored() {
    let mut server = server();
    server.receive(&frame(0x42, 0xFF, 7, &[1; 1000])).unwrap();
    server.receive(&settings(&[(0x4242, 7), (setting::ENABLE_PUSH, 0)])).unwrap();
    server.receive(&request(1, true, &[])).unwrap();
    assert_eq!(server.sink.outline(), [Told::Head(1, true)]);
}

#[test]
fn one_stream_too_many_is_refused_and_its_fields_still_counted_in_the_table() {
    let mut server = Server::new(Limits { max_concurrent_streams: 1, ..Limits::default() });
    server.receive(&request(1, false, &[])).unwrap();
    // The refused request puts `a: b` into the table; the next one uses it.
    let indexing = [block(&POST), vec![0x40, 1, b'a', 1, b'b']].concat();
    server.receive(&frame(kind::HEADERS, 5, 3, &indexing)).unwrap();
    assert_eq!(server.resets(), [(3, REFUSED)]);
    server.respond(1, 200, b"", None);
    let indexed = [block(&POST), vec![0xbe]].concat();
    server.receive(&frame(kind::HEADERS, 5, 5, &indexed)).unwrap();
    assert_eq!(server.sink.told[server.sink.told.len() - 2], Told::Field(5, "a".into(), "b".into()));
}

#[test]
fn going_away_takes_what_crossed_it_and_refuses_the_rest() {
    let mut server = server();
    server.receive(&request(1, true, &[])).unwrap();
    server.http2.go_away(&mut server.out);
    assert!(server.http2.is_draining());
    let frames = server.written();
    assert_eq!(frames.iter().map(|f| f.kind).collect::<Vec<_>>(), [kind::GOAWAY, kind::PING]);
    assert_eq!(frames[0].payload[..4], [0x7F, 0xFF, 0xFF, 0xFF]);

    server.receive(&request(3, true, &[])).unwrap();
    server.receive(&frame(kind::PING, flag::ACK, 0, &frames[1].payload)).unwrap();
    let last = server.written();
    assert_eq!((last[0].kind, &last[0].payload[..4]), (kind::GOAWAY, &[0, 0, 0, 3][..]));
    server.receive(&request(5, true, &[])).unwrap();
    assert_eq!(server.resets(), [(5, REFUSED)]);
    assert!(!server.http2.is_drained());
    server.respond(1, 200, b"", None);
    server.respond(3, 200, b"", None);
    assert!(server.http2.is_drained());
}

#[test]
fn peers_going_away_leaves_its_open_streams_alone() {
    let mut server = server();
    server.receive(&[request(1, false, &[]), frame(kind::GOAWAY, 0, 0, &[0; 20])].concat()).unwrap();
    assert!(server.http2.is_draining() && !server.http2.is_drained());
    server.receive(&data(1, true, b"x")).unwrap();
    server.respond(1, 200, b"", None);
    assert!(server.http2.is_drained());
}

#[test]
fn pings_are_answered_with_their_own_bytes() {
    let mut server = server();
    server.receive(&frame(kind::PING, 0, 0, b"12345678")).unwrap();
    let pong = Written { kind: kind::PING, flags: flag::ACK, stream: 0, payload: b"12345678".to_vec() };
    assert_eq!(server.written(), [pong]);
}

#[test]
fn resetting_tells_the_peer_and_nobody_else() {
    let mut server = server();
    server.receive(&request(1, false, &[])).unwrap();
    server.http2.reset(StreamId(1), ErrorCode::Cancel, &mut server.out);
    server.http2.reset(StreamId(1), ErrorCode::Cancel, &mut server.out);
    assert_eq!(server.resets(), [(1, 8)]);
    // What was under way is no fault.
    server.receive(&[data(1, false, b"x"), request(1, true, &[])].concat()).unwrap();
    assert_eq!((server.sink.outline(), server.written()), (vec![Told::Head(1, false)], vec![]));
}

#[test]
fn long_header_blocks_of_ours_are_cut_to_what_the_peer_takes() {
    let mut server = server();
    server.receive(&request(1, true, &[])).unwrap();
    let long = vec![b'x'; 40_000];
    let fields: &[(&str, &[u8])] = &[("content-type", b"text/plain"), ("x-long", &long)];
    server.http2.respond(StreamId(1), 418, fields, b"", None, &mut server.out);
    let frames = server.written();
    let outline: Vec<_> = frames.iter().map(|f| (f.kind, f.flags, f.payload.len() <= 16_384)).collect();
    assert_eq!(outline, [(1, 1, true), (9, 0, true), (9, 4, true)]);
    let whole: Vec<u8> = frames.into_iter().flat_map(|f| f.payload).collect();
    let mut seen = Vec::new();
    let each = |_, name: &[u8], value: &[u8]| {
        seen.push((String::from_utf8_lossy(name).into_owned(), value.len()));
        Ok(())
    };
    crate::http2::hpack::Decoder::new(4096).decode(&whole, each).unwrap();
    let expected = [(":status", 3), ("content-type", 10), ("x-long", 40_000)];
    assert_eq!(seen, expected.map(|(name, length)| (name.to_owned(), length)));
}
