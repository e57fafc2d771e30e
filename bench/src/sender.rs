//! Connections that carry export requests: gRPC on [`crate::client`], HTTP/1.1 on hyper, either with TLS. Reconnects, never
//! retries.
//!
//! The body is handed over as one `Bytes`; everything else of a request is constant.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::answer::{self, ANSWER_BYTES_MAX, Answer};
use crate::client::Client;
use crate::error::Error;
use crate::http2::Head;
use crate::template::GRPC_PREFIX;
use crate::tls::Trust;

/// The method that takes spans, as a path.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A connection that is not there by then will not come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf.
    Http,
}

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// As `grpc-encoding` and `content-encoding` say it.
    pub(crate) fn token(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// Where requests go and what stands above them.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `host:port`.
    pub(crate) endpoint: String,
    /// How.
    pub(crate) protocol: Protocol,
    /// `x-scope-orgid`.
    pub(crate) tenant: String,
    /// What the bodies are.
    pub(crate) compression: Compression,
    /// Whom to believe over TLS; plain connections without it.
    pub(crate) trust: Option<Trust>,
}

impl Target {
    /// What every gRPC call begins with.
    fn head(&self, headers: &HeaderMap) -> Result<Head, Error> {
        let scheme = if self.trust.is_some() { "https" } else { "http" };
        let authority: Authority = self
            .endpoint
            .parse()
            .map_err(|_invalid| Error::Options(format!("'{}' is not host:port", self.endpoint)))?;
        Ok(Head::new(scheme, authority.as_str(), EXPORT, headers))
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_invalid| Error::Options(format!("'{text}' is no header value")))
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-scope-orgid", value(&self.tenant)?);
        headers.insert("user-agent", HeaderValue::from_static("sluicebox-bench"));
        let (media_type, encoding) = match self.protocol {
            Protocol::Grpc => ("application/grpc", "grpc-encoding"),
            Protocol::Http => ("application/x-protobuf", "content-encoding"),
        };
        headers.insert("content-type", HeaderValue::from_static(media_type));
        if let Some(token) = self.compression.token() {
            headers.insert(encoding, HeaderValue::from_static(token));
        }
        match self.protocol {
            Protocol::Grpc => headers.insert("te", HeaderValue::from_static("trailers")),
            Protocol::Http => headers.insert("host", value(&self.endpoint)?),
        };
        Ok(headers)
    }
}

/// One connection, made when first needed and made again after it broke. Belongs to one thread.
pub(crate) struct Sender {
    target: Target,
    head: Head,
    headers: HeaderMap,
    state: Mutex<State>,
    /// Counts connections, so that a broken one is dropped once and not its successor.
    generation: Cell<u64>,
}

enum State {
    Closed,
    Grpc(Rc<Client>),
    Http(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
}

impl Sender {
    /// Checks the target; does not connect yet.
    ///
    /// # Errors
    /// [`Error::Options`] when endpoint or tenant cannot be written into a request.
    pub(crate) fn new(target: Target) -> Result<Self, Error> {
        let headers = target.headers()?;
        let head = target.head(&headers)?;
        Ok(Self { target, head, headers, state: Mutex::new(State::Closed), generation: Cell::new(0) })
    }

    /// Connects if it is not connected.
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody answers.
    pub(crate) async fn connect(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        self.ensure(&mut state).await
    }

    async fn ensure(&self, state: &mut State) -> Result<(), Error> {
        match state {
            State::Grpc(client) if client.is_open() => return Ok(()),
            State::Http(_) => return Ok(()),
            State::Grpc(_) | State::Closed => {}
        }
        let failed = |cause: String| Error::Connect { endpoint: self.target.endpoint.clone(), cause };
        let connected = timeout(CONNECT_TIMEOUT, self.open()).await;
        *state = connected.map_err(|elapsed| failed(elapsed.to_string()))?.map_err(failed)?;
        self.generation.set(self.generation.get() + 1);
        Ok(())
    }

    async fn open(&self) -> Result<State, String> {
        let stream = TcpStream::connect(&self.target.endpoint).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        match &self.target.trust {
            None => self.shake(stream).await,
            Some(trust) => self.shake(trust.connect(stream).await?).await,
        }
    }

    async fn shake(&self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<State, String> {
        match self.target.protocol {
            Protocol::Grpc => Ok(State::Grpc(Rc::new(Client::new(stream, self.head.clone())))),
            Protocol::Http => {
                let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
                let (send, connection) = handshake.await.map_err(|e| e.to_string())?;
                tokio::task::spawn_local(async move { drop(connection.await) });
                Ok(State::Http(send))
            }
        }
    }

    /// Sends one body that stands behind a gRPC prefix, and waits for what it came to.
    ///
    /// # Errors
    /// Any error means that nobody knows whether the request was taken in; the next call connects anew.
    pub(crate) async fn export(&self, body: Bytes, limit: Duration) -> Result<Answer, Error> {
        let mut generation = 0;
        let exchange = timeout(limit, self.exchange(body, &mut generation)).await;
        let result =
            exchange.unwrap_or_else(|_elapsed| Err(Error::Exchange(format!("no answer within {limit:?}"))));
        if result.is_err() && generation == self.generation.get() {
            *self.state.lock().await = State::Closed;
        }
        result
    }

    async fn exchange(&self, body: Bytes, generation: &mut u64) -> Result<Answer, Error> {
        let mut state = self.state.lock().await;
        self.ensure(&mut state).await?;
        *generation = self.generation.get();
        match &mut *state {
            State::Grpc(client) => {
                let client = Rc::clone(client);
                drop(state);
                client.export(body).await
            }
            // HTTP/1.1 carries one request at a time: the lock is held until the answer is there.
            State::Http(send) => self.over_http(send, body.slice(GRPC_PREFIX..)).await,
            State::Closed => Err(Error::Exchange("connection is closed".to_owned())),
        }
    }

    async fn over_http(
        &self,
        send: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let broke = |error: hyper::Error| Error::Exchange(error.to_string());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        // HTTP/1.1 sends a path; the host has a header of its own.
        *request.uri_mut() = Uri::from_static("/v1/traces");
        *request.headers_mut() = self.headers.clone();
        send.ready().await.map_err(broke)?;
        let (head, body) = send.send_request(request).await.map_err(broke)?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Error::Exchange(error.to_string()))?.to_bytes();
        answer::of_http(head.status, &head.headers, &body)
    }
}
