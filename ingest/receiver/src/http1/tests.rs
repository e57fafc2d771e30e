//! What a connection says and hears, wherever its bytes are cut.

use super::*;

/// What the sink heard, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Field(String, String),
    Head(bool),
    Data(Vec<u8>),
    End,
}

#[derive(Default)]
struct Ear(Vec<Said>);

impl Sink for Ear {
    fn field(&mut self, _: StreamId, name: &[u8], value: &[u8]) {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        self.0.push(Said::Field(text(name), text(value)));
    }

    fn head(&mut self, _: StreamId, ends: bool) {
        self.0.push(Said::Head(ends));
    }

    fn data(&mut self, _: StreamId, bytes: &[u8], ends: bool) {
        match self.0.last_mut() {
            Some(Said::Data(data)) => data.extend_from_slice(bytes),
            _ => self.0.push(Said::Data(bytes.to_vec())),
        }
        if ends {
            self.0.push(Said::End);
        }
    }

    fn reset(&mut self, _: StreamId) {}
}

/// Feeds `pieces` and answers 200 to each request as soon as it is complete.
fn converse(pieces: &[&[u8]]) -> (Vec<Said>, String, Result<(), Cut>) {
    let (mut http1, mut ear, mut out) = (Http1::new(), Ear::default(), Vec::new());
    for piece in pieces {
        let mut piece = *piece;
        loop {
            if let Err(cut) = http1.receive(piece, &mut ear, &mut out) {
                return (ear.0, String::from_utf8(out).unwrap(), Err(cut));
            }
            http1.go_on(&mut out);
            if http1.wants_bytes() {
                break;
            }
            let stream = http1.stream;
            http1.respond(stream, StatusCode::OK, &[], b"yes", &mut out);
            piece = &[];
        }
    }
    (ear.0, String::from_utf8(out).unwrap(), Ok(()))
}

fn bodies(said: &[Said]) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    for said in said {
        match said {
            Said::Head(_) => bodies.push(Vec::new()),
            Said::Data(data) => bodies.last_mut().unwrap().extend_from_slice(data),
            Said::Field(..) | Said::End => {}
        }
    }
    bodies
}

const TWO: &[u8] = b"POST /v1/traces?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-Scope-OrgID:  me \r\n\r\nhello\
\r\nPOST http://a/v1/traces HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=\"1\"\r\nworld\r\n00\r\nx: y\r\n\r\n\
GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nignored";

#[test]
fn requests_are_the_same_wherever_their_bytes_are_cut() {
    let whole = converse(&[TWO]);
    assert_eq!(bodies(&whole.0), [b"hello".to_vec(), b"world".to_vec(), b"".to_vec()]);
    assert!(whole.0.contains(&Said::Field("x-scope-orgid".into(), "me".into())));
    assert!(whole.0.contains(&Said::Field(":path".into(), "/v1/traces".into())));
    assert!(whole.0.contains(&Said::Field(":path".into(), "/v1/traces?x=1".into())));
    assert_eq!(whole.1.matches("HTTP/1.1 200 OK\r\n").count(), 3);
    assert_eq!(whole.1.matches("connection: close").count(), 1);
    for cut in 0..=TWO.len() {
        let (said, out, result) = converse(&[&TWO[..cut], &TWO[cut..]]);
        assert_eq!((bodies(&said), &out, result), (bodies(&whole.0), &whole.1, Ok(())), "cut at {cut}");
    }
    let bytes: Vec<_> = TWO.chunks(1).collect();
    let (said, out, _) = converse(&bytes);
    assert_eq!((bodies(&said), out), (bodies(&whole.0), whole.1));
}

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    let heads: [&[u8]; 16] = [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551617\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n",
        b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\nx: 1\r\n content-length: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n",
        b"POST  / HTTP/1.1 x\r\nhost: a\r\n\r\n",
    ];
    for head in heads {
        let (said, out, result) = converse(&[head]);
        assert_eq!(result, Err(Cut::Malformed), "{}", head.escape_ascii());
        assert!(!said.iter().any(|said| matches!(said, Said::Head(_))));
        assert!(out.starts_with("HTTP/1.1 400 ") && out.contains("connection: close"), "{out}");
    }
    let framings: [&[u8]; 12] = [
        b"\r\n",
        b"g\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhellox\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5 x\r\nhello\r\n0\r\n\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"1000000000000000\r\n",
        b"5;a\nb\r\nhello\r\n",
        b"0\r\n no name\r\n\r\n",
        b"0\r\nx\n\r\n",
    ];
    for framing in framings {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let (_, _, result) = converse(&[&[head, framing].concat()]);
        assert_eq!(result, Err(Cut::Malformed), "{}", framing.escape_ascii());
    }
}

#[test]
fn who_speaks_something_else_is_left_without_words() {
    for other in [&b"INVALID CONNECTION PREFACE\r\n\r\n"[..], b"GET / HTTP/3.0\r\nhost: a\r\n\r\n"] {
        assert_eq!(converse(&[other]), (Vec::new(), String::new(), Err(Cut::OtherProtocol)));
    }
}

#[test]
fn heads_lines_and_trailers_have_ends() {
    let long = "x".repeat(HEAD_BYTES_MAX);
    let many = "x: y\r\n".repeat(101);
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    for message in [
        format!("POST /{long}"),
        format!("POST / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nhost: a\r\n{many}\r\n"),
        format!("{chunked}1;{}", "x".repeat(300)),
        format!("{chunked}0\r\n{}", "x: y\r\n".repeat(1_000)),
    ] {
        let pieces: Vec<_> = message.as_bytes().chunks(1_000).collect();
        assert_eq!(converse(&pieces).2, Err(Cut::HeadTooLarge), "{}", &message[..20]);
    }
}

#[test]
fn old_clients_are_let_go_unless_they_ask_to_stay() {
    let (said, out, _) = converse(&[b"POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\nhiGET / HTTP/1.0\r\n\r\n"]);
    assert_eq!(bodies(&said), [b"hi"]);
    assert!(out.contains("connection: close"));
    let keep: &[u8] = b"POST / HTTP/1.0\r\nconnection: Keep-Alive\r\ncontent-length: 2\r\n\r\nhi";
    let (said, out, _) = converse(&[keep, keep]);
    assert_eq!((bodies(&said).len(), out.matches("connection: keep-alive").count()), (2, 2));
}

#[test]
fn a_body_is_asked_for_when_its_sender_waits_for_that() {
    let head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    let (said, out, _) = converse(&[head, b"hi"]);
    assert_eq!(bodies(&said), [b"hi"]);
    assert!(out.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));

    let (mut http1, mut ear, mut out) = (Http1::new(), Ear::default(), Vec::new());
    http1.receive(head, &mut ear, &mut out).unwrap();
    http1.respond(StreamId(1), StatusCode::PAYLOAD_TOO_LARGE, &[], b"", &mut out);
    assert!(http1.is_over(), "whether a body follows cannot be known");
    assert!(String::from_utf8(out).unwrap().contains("connection: close"));
}

#[test]
fn the_rest_of_an_early_answered_request_is_thrown_away() {
    let (mut http1, mut ear, mut out) = (Http1::new(), Ear::default(), Vec::new());
    http1.receive(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc", &mut ear, &mut out).unwrap();
    http1.respond(StreamId(1), StatusCode::NOT_FOUND, &[], b"no", &mut out);
    http1.respond(StreamId(1), StatusCode::OK, &[], b"twice", &mut out);
    assert_eq!(http1.discarded(), Some(0));
    http1.receive(b"defgh", &mut ear, &mut out).unwrap();
    assert_eq!(http1.discarded(), Some(5));
    http1.receive(b"iHEAD / HTTP/1.1\r\nhost: a\r\n\r\n", &mut ear, &mut out).unwrap();
    assert_eq!(http1.discarded(), None);
    http1.respond(StreamId(2), StatusCode::OK, &[], b"", &mut out);
    assert_eq!(bodies(&ear.0), [b"abc".to_vec(), vec![]]);
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.matches("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").count(), 1);
    assert_eq!((out.contains("twice"), out.matches("HTTP/1.1 200").count()), (false, 1));
}

#[test]
fn an_answer_to_head_has_no_body() {
    let (_, out, _) = converse(&[b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"]);
    assert_eq!(out, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_no_cut_makes_a_difference(
        start in 0usize..TWO.len(), noise: Vec<u8>, cuts in proptest::collection::vec(0usize..400, 0..6),
    ) {
        let bytes = [&TWO[..start], &noise, &TWO[start..]].concat();
        let mut cuts: Vec<_> = cuts.into_iter().filter(|&cut| cut <= bytes.len()).collect();
        cuts.sort_unstable();
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let pieces: Vec<_> = starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect();
        let (whole, cut) = (converse(&[&bytes]), converse(&pieces));
        proptest::prop_assert_eq!((bodies(&whole.0), whole.1, whole.2), (bodies(&cut.0), cut.1, cut.2));
    }
}
