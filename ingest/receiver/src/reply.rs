//! An answer as the portable driver's HTTP library wants it: at most one piece of data and one set of trailers. Owns
//! nothing else.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderName};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};

use crate::answer::{GRPC_TRAILERS, Plain};

/// An answer's body.
#[derive(Debug)]
pub(crate) struct Reply {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Reply {
    /// `plain` as a response.
    pub(crate) fn response(plain: Plain) -> Response<Self> {
        let Plain { status, fields, body, has_trailers, closes } = plain;
        let trailers = has_trailers.then(|| {
            let named = GRPC_TRAILERS
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            HeaderMap::from_iter(named)
        });
        let data = Some(body).filter(|data| !data.is_empty() || has_trailers);
        let mut response = Response::new(Self { data, trailers });
        *response.status_mut() = status;
        for (name, value) in fields {
            // Whatever we say is printable; a value that were not is better left out than the answer.
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        if closes {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // With trailers no length is announced: gRPC has its own.
        if self.trailers.is_some() {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}
