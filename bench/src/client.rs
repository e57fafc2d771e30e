//! A connection of [`crate::http2`] on a socket: one task reads, wakes whoever was answered, and writes what they send next
//! in one piece. Belongs to one thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::answer::Answer;
use crate::error::Error;
use crate::http2::{Head, Http2, PIECES_MAX};

/// Hundreds of answers; a frame is never larger than 16 KiB and its header.
const READ_BYTES: usize = 64 << 10;

/// Sends requests over one connection, which ends with it.
pub(crate) struct Client {
    link: Rc<Link>,
}

struct Link {
    http2: RefCell<Http2>,
    task: RefCell<Option<Waker>>,
}

impl Link {
    fn wake(&self) {
        if let Some(task) = self.task.borrow_mut().take() {
            task.wake();
        }
    }
}

impl Client {
    /// Over `stream`, served by a task on the current `LocalSet`.
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, head: Head) -> Self {
        let link = Rc::new(Link { http2: RefCell::new(Http2::new(head)), task: RefCell::default() });
        let mut socket = Socket { stream, link: Rc::clone(&link), input: vec![0; READ_BYTES], filled: 0 };
        tokio::task::spawn_local(async move {
            let cause = poll_fn(|context| socket.poll(context)).await;
            socket.link.http2.borrow_mut().fail(&cause);
        });
        Self { link }
    }

    /// Whether it takes new requests.
    pub(crate) fn is_open(&self) -> bool {
        self.link.http2.borrow().is_open()
    }

    /// Sends a body that stands behind a gRPC prefix, and waits for what it came to.
    ///
    /// # Errors
    /// When the connection or the stream ends before the answer is whole, or the answer is none.
    pub(crate) async fn export(&self, body: Bytes) -> Result<Answer, Error> {
        let call = self.link.http2.borrow_mut().call(body);
        self.link.wake();
        call.answer().await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.link.wake();
    }
}

struct Socket<S> {
    stream: S,
    link: Rc<Link>,
    input: Vec<u8>,
    filled: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Ready when the connection has ended, with the reason.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<String> {
        *self.link.task.borrow_mut() = Some(context.waker().clone());
        if Rc::strong_count(&self.link) == 1 {
            return Poll::Ready("nobody uses the connection any more".to_owned());
        }
        if let Poll::Ready(cause) = self.poll_read(context) {
            return Poll::Ready(cause);
        }
        match self.poll_write(context) {
            Poll::Ready(Err(cause)) => Poll::Ready(cause.to_string()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<String> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.input[self.filled..]);
            if let Err(cause) = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                return Poll::Ready(cause.to_string());
            }
            let count = buffer.filled().len();
            if count == 0 {
                return Poll::Ready("the server has closed the connection".to_owned());
            }
            self.filled += count;
            match self.link.http2.borrow_mut().receive(&self.input[..self.filled]) {
                Ok(taken) => {
                    self.input.copy_within(taken..self.filled, 0);
                    self.filled -= taken;
                }
                Err(cause) => return Poll::Ready(cause.to_string()),
            }
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut http2 = self.link.http2.borrow_mut();
        http2.advance();
        loop {
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            let count = http2.out.slices(&mut slices);
            if count == 0 {
                return Pin::new(&mut self.stream).poll_flush(context);
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, &slices[..count]))?;
            http2.out.written(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use h2::server;
    use http::{HeaderMap, HeaderValue, Request, Response};
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::{LocalSet, spawn_local};

    fn head() -> Head {
        let mut fields = HeaderMap::new();
        fields.insert("content-type", HeaderValue::from_static("application/grpc"));
        fields.insert("x-long", HeaderValue::from_str(&"v".repeat(300)).unwrap());
        Head::new("http", "localhost:4317", "/service/Method", &fields)
    }

    fn body(number: usize, length: usize) -> Bytes {
        (0..length).map(|at| (at * 31 + number).to_le_bytes()[0]).collect()
    }

    /// Runs `test` against h2's server, which hands every request to `serve`.
    fn with_server<F: Future<Output = ()> + 'static>(
        builder: server::Builder,
        requests_max: usize,
        serve: impl Fn(Request<h2::RecvStream>, server::SendResponse<Bytes>) -> F + 'static,
        test: impl AsyncFnOnce(Client),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            // A pipe so narrow that frames come in pieces, in both directions.
            let (near, far): (DuplexStream, DuplexStream) = duplex(700);
            spawn_local(async move {
                let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
                let mut count = 0;
                while let Some(Ok((request, respond))) = connection.accept().await {
                    spawn_local(serve(request, respond));
                    count += 1;
                    if count == requests_max {
                        connection.graceful_shutdown();
                    }
                }
            });
            test(Client::new(near, head())).await;
        });
    }

    /// Reads the body, and says its length and sum in the message of a status.
    async fn echo(request: Request<h2::RecvStream>, mut respond: server::SendResponse<Bytes>) {
        assert_eq!(request.uri(), "http://localhost:4317/service/Method");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert_eq!(request.headers()["x-long"].len(), 300);
        let mut stream = request.into_body();
        let mut whole = BytesMut::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk.unwrap();
            stream.flow_control().release_capacity(chunk.len()).unwrap();
            whole.extend_from_slice(&chunk);
        }
        let sum: u64 = whole.iter().map(|byte| u64::from(*byte)).sum();
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
        trailers.insert("grpc-message", HeaderValue::try_from(format!("{} {sum}", whole.len())).unwrap());
        send.send_trailers(trailers).unwrap();
    }

    async fn check_echo(client: &Client, number: usize, length: usize) {
        let body = body(number, length);
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        let Ok(Answer::Refused { status, .. }) = client.export(body).await else { panic!("no answer") };
        assert_eq!(status, format!("INTERNAL {length} {sum}"));
    }

    async fn check_many(client: Client) {
        let client = Rc::new(client);
        let lengths = [1, 600, 9_000, 70_000, 300_000, 20_000, 5];
        let mut calls = Vec::new();
        for (number, length) in lengths.into_iter().cycle().take(40).enumerate() {
            let client = Rc::clone(&client);
            calls.push(spawn_local(async move { check_echo(&client, number, length).await }));
        }
        for call in calls {
            call.await.unwrap();
        }
    }

    #[test]
    fn bodies_of_every_size_arrive_whole_within_narrow_windows() {
        let mut builder = server::Builder::new();
        builder.max_concurrent_streams(3).initial_window_size(1_000).initial_connection_window_size(70_000);
        with_server(builder, usize::MAX, echo, check_many);
        let mut builder = server::Builder::new();
        builder.max_frame_size(1 << 20).initial_window_size(1 << 20);
        with_server(builder, usize::MAX, echo, check_many);
    }

    #[test]
    fn an_answer_before_the_end_of_the_body_is_an_answer() {
        let refuse = async |request: Request<h2::RecvStream>, mut respond: server::SendResponse<Bytes>| {
            if request.into_body().is_end_stream() {
                return;
            }
            let head = Response::builder().header("grpc-status", "8").body(()).unwrap();
            respond.send_response(head, true).unwrap();
        };
        with_server(server::Builder::new(), usize::MAX, refuse, async |client| {
            for _ in 0..3 {
                let answer = client.export(body(1, 200_000)).await;
                assert!(matches!(answer, Ok(Answer::Refused { .. })), "{answer:?}");
            }
            assert!(client.is_open());
        });
    }

    #[test]
    fn a_server_that_says_goodbye_answers_what_it_has_and_gets_nothing_more() {
        with_server(server::Builder::new(), 2, echo, async |client| {
            check_echo(&client, 0, 10).await;
            check_echo(&client, 1, 100_000).await;
            while client.is_open() {
                tokio::task::yield_now().await;
            }
            assert!(client.export(body(2, 10)).await.is_err());
        });
    }

    #[test]
    fn reset_streams_and_closed_connections_are_errors_of_their_calls() {
        let reset = async |_request, mut respond: server::SendResponse<Bytes>| {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        };
        with_server(server::Builder::new(), usize::MAX, reset, async |client| {
            let answer = client.export(body(0, 10)).await;
            assert!(matches!(&answer, Err(Error::Exchange(cause)) if cause.contains("code 7")), "{answer:?}");
            assert!(client.is_open());
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (near, far) = duplex(700);
            let client = Client::new(near, head());
            drop(far);
            assert!(client.export(body(0, 10)).await.is_err());
            assert!(!client.is_open());
        });
    }

    #[test]
    fn what_is_not_http2_ends_the_connection() {
        for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0, 0, 1, 5, 4, 0, 0, 0, 1, 0]] {
            assert!(Http2::new(head()).receive(bytes).is_err());
        }
    }
}
