//! Flow control, both ways.

use super::support::{Server, Told, data, frame, request, settings, window_update};
use crate::http2::frame::{flag, kind, setting};
use crate::http2::{Cut, ErrorCode, Limits, StreamId};

fn narrow() -> Limits {
    Limits { stream_window: 100_000, connection_window: 200_000, ..Limits::default() }
}

/// Window updates: (stream, increment).
fn updates(server: &mut Server) -> Vec<(u32, u32)> {
    let frames = server.written().into_iter().filter(|frame| frame.kind == kind::WINDOW_UPDATE);
    frames.map(|f| (f.stream, u32::from_be_bytes(f.payload.try_into().unwrap()))).collect()
}

#[test]
fn body_beyond_the_streams_window_ends_the_stream() {
    let mut server = Server::new(narrow());
    server.receive(&[request(1, false, &[]), data(1, false, &[0; 100_000])].concat()).unwrap();
    server.receive(&data(1, false, b"x")).unwrap();
    assert_eq!(server.resets(), [(1, ErrorCode::FlowControlError.number())]);
    assert_eq!(server.sink.outline().last(), Some(&Told::Reset(1)));
}

#[test]
fn bodies_beyond_the_connections_window_end_the_connection() {
    let mut server = Server::new(narrow());
    for id in [1, 3] {
        server.receive(&[request(id, false, &[]), data(id, false, &[0; 100_000])].concat()).unwrap();
    }
    let over = [request(5, false, &[]), data(5, false, b"x")].concat();
    assert_eq!(server.receive(&over), Err(Cut::Protocol(ErrorCode::FlowControlError)));
}

#[test]
fn credit_is_given_in_quarters_of_a_window() {
    let mut server = Server::new(narrow());
    server.receive(&[request(1, false, &[]), data(1, false, &[0; 60_000])].concat()).unwrap();
    server.http2.credit(StreamId(1), 24_999, &mut server.out);
    assert_eq!(updates(&mut server), []);
    server.http2.credit(StreamId(1), 1, &mut server.out);
    assert_eq!(updates(&mut server), [(1, 25_000)]);
    server.http2.credit(StreamId(1), 35_000, &mut server.out);
    assert_eq!(updates(&mut server), [(0, 60_000), (1, 35_000)]);
    // All of it may come again.
    server.receive(&data(1, false, &[0; 100_000])).unwrap();
    assert_eq!(server.resets(), []);
}

#[test]
fn credit_for_a_stream_that_is_gone_goes_to_the_connection() {
    let mut server = Server::new(narrow());
    server.receive(&[request(1, false, &[]), data(1, false, &[0; 60_000])].concat()).unwrap();
    server.http2.reset(StreamId(1), ErrorCode::Cancel, &mut server.out);
    server.out.clear();
    server.http2.credit(StreamId(1), 60_000, &mut server.out);
    assert_eq!(updates(&mut server), [(0, 60_000)]);
}

#[test]
fn padding_and_unwanted_bytes_are_given_back_without_being_asked() {
    let mut server = Server::new(narrow());
    server.receive(&request(1, false, &[])).unwrap();
    let padded = [&[255u8][..], &[0; 255]].concat();
    for _ in 0..99 {
        server.receive(&frame(kind::DATA, flag::PADDED, 1, &padded)).unwrap();
    }
    assert_eq!(updates(&mut server), [(1, 25_088)]);
    for _ in 0..100 {
        server.receive(&frame(kind::DATA, flag::PADDED, 1, &padded)).unwrap();
    }
    assert_eq!(updates(&mut server), [(0, 50_176), (1, 25_088)]);
    server.respond(1, 200, b"enough", None);
    for _ in 0..3 {
        server.receive(&data(1, false, &[0; 60_000])).unwrap();
    }
    let given: u32 = updates(&mut server).iter().map(|(stream, given)| given * u32::from(*stream == 0)).sum();
    assert!(given >= 180_000, "{given}");
    assert_eq!(server.sink.outline(), [Told::Head(1, false)]);
}

#[test]
fn answer_waits_for_the_windows_and_keeps_its_order() {
    let mut server = Server::new(Limits::default());
    server.receive(&settings(&[(setting::INITIAL_WINDOW_SIZE, 3)])).unwrap();
    server.receive(&request(1, true, &[])).unwrap();
    server.out.clear();
    let trailers: &[(&str, &[u8])] = &[("grpc-status", b"0")];
    server.respond(1, 200, b"0123456789", Some(trailers));
    let outline = |server: &mut Server| {
        let frames = server.written().into_iter();
        frames.map(|f| (f.kind, f.ends(), f.payload.len())).collect::<Vec<_>>()
    };
    assert_eq!(outline(&mut server), [(1, false, 1), (0, false, 3)]);
    server.receive(&window_update(1, 4)).unwrap();
    assert_eq!(outline(&mut server), [(0, false, 4)]);
    server.receive(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])).unwrap();
    server.receive(&window_update(1, 3)).unwrap();
    assert_eq!(outline(&mut server), [(4, false, 0)], "the window is at zero now");
    server.receive(&window_update(1, 3)).unwrap();
    assert_eq!(outline(&mut server), [(0, false, 3), (1, true, 15)]);
    assert_eq!((server.http2.open_streams(), server.http2.memory_bytes() < 4096), (0, true));
}

#[test]
fn settings_that_widen_the_windows_let_answers_go() {
    let mut server = Server::new(Limits::default());
    server.receive(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])).unwrap();
    server.receive(&request(1, true, &[])).unwrap();
    server.respond(1, 200, b"at last", None);
    assert_eq!(server.http2.open_streams(), 1);
    server.out.clear();
    server.receive(&settings(&[(setting::INITIAL_WINDOW_SIZE, 7)])).unwrap();
    assert_eq!(server.written().last().map(|f| (f.kind, f.ends())), Some((kind::DATA, true)));
    assert_eq!(server.http2.open_streams(), 0);
}

#[test]
fn empty_body_with_trailers_needs_no_window() {
    let mut server = Server::new(Limits::default());
    server.receive(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])).unwrap();
    server.receive(&request(1, true, &[])).unwrap();
    server.out.clear();
    server.respond(1, 200, b"", Some(&[("grpc-status", b"0")]));
    let frames = server.written();
    assert_eq!(frames.iter().map(|f| (f.kind, f.ends())).collect::<Vec<_>>(), [(1, false), (1, true)]);
}

#[test]
fn connections_window_is_shared_by_the_answers() {
    let mut server = Server::new(Limits::default());
    server.receive(&[request(1, true, &[]), request(3, true, &[])].concat()).unwrap();
    for id in [1, 3] {
        server.respond(id, 200, &[b'x'; 40_000], None);
    }
    let sent = |server: &mut Server, id| {
        let frames = server.written().into_iter().filter(|f| f.kind == kind::DATA && f.stream == id);
        frames.map(|f| f.payload.len()).sum::<usize>()
    };
    assert_eq!(sent(&mut server, 3), 65_535 - 40_000);
    server.receive(&window_update(0, 100_000)).unwrap();
    assert_eq!(sent(&mut server, 3), 80_000 - 65_535);
    assert_eq!(server.http2.open_streams(), 0);
}

#[test]
fn answer_before_the_end_of_the_request_refuses_the_rest_politely() {
    let mut server = Server::new(Limits::default());
    server.receive(&[request(1, false, &[]), data(1, false, b"a")].concat()).unwrap();
    server.respond(1, 413, b"too much", None);
    let frames = server.written();
    assert_eq!(frames.iter().map(|f| f.kind).collect::<Vec<_>>(), [1, 0, kind::RST_STREAM]);
    assert_eq!(frames[2].code(), Some(0));
    server.receive(&data(1, true, b"rest")).unwrap();
    assert_eq!(server.written(), []);
}

#[test]
fn waiting_answer_survives_the_end_of_its_request_without_a_reset() {
    let mut server = Server::new(Limits::default());
    server.receive(&settings(&[(setting::INITIAL_WINDOW_SIZE, 1)])).unwrap();
    server.receive(&request(1, false, &[])).unwrap();
    server.respond(1, 200, b"ab", None);
    server.receive(&[data(1, true, b"rest"), window_update(1, 1)].concat()).unwrap();
    assert_eq!(server.resets(), []);
    assert_eq!((server.http2.open_streams(), server.sink.outline()), (0, vec![Told::Head(1, false)]));
}

#[test]
fn before_our_settings_are_acknowledged_the_default_window_holds() {
    let limits = Limits { stream_window: 10, ..Limits::default() };
    let mut server = Server::new(limits);
    server.receive(&[request(1, false, &[]), data(1, true, &[0; 65_535])].concat()).unwrap();
    server.receive(&frame(kind::SETTINGS, flag::ACK, 0, &[])).unwrap();
    assert_eq!(server.resets(), []);
    server.receive(&[request(3, false, &[]), data(3, true, &[0; 11])].concat()).unwrap();
    assert_eq!(server.resets(), [(3, ErrorCode::FlowControlError.number())]);
}
