//! One OTLP/HTTP request on this driver: head, body, answer. The request's rules lie in [`crate::request`] and
//! [`crate::body`].

use std::time::Duration;

use http::header::EXPECT;
use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{task, time};

use super::core::Core;
use crate::answer::{Answer, Form, Reason, Refusal};
use crate::body::Buffer;
use crate::budget::Permit;
use crate::metrics::Protocol;
use crate::reply::Reply;
use crate::request::{self, Head};

/// How long the rest of a refused body is read and thrown away.
const LINGER: Duration = Duration::from_secs(5);

pub(crate) async fn answer(core: &Core, request: Request<Incoming>) -> Response<Reply> {
    let form = request::form(request.headers());
    let (parts, mut body) = request.into_parts();
    let answer = match receive(core, &parts, form, &mut body).await {
        Ok((head, stored, permit)) => core.take(Protocol::Http, head, stored, permit).await,
        Err(refusal) => {
            // A sender that was promised "100 Continue" first has sent nothing yet, and shall not.
            let is_sending = parts.version < Version::HTTP_2 && !parts.headers.contains_key(EXPECT);
            if is_sending && !body.is_end_stream() && refusal.reason != Reason::Timeout {
                linger(core, body);
            }
            core.answered(Protocol::Http, Answer::Refused(refusal), 0)
        }
    };
    answer.http(form.unwrap_or(Form::Protobuf))
}

/// Up to a complete body.
async fn receive(
    core: &Core,
    parts: &http::request::Parts,
    form: Option<Form>,
    body: &mut Incoming,
) -> Result<(Head, bytes::Bytes, Permit), Refusal> {
    let head = Head::of_http(&parts.method, parts.uri.path(), &parts.headers, form)?;
    core.admit()?;
    let mut buffer = Buffer::new(head.declared, core.shared.config.request_bytes_max, core.permit()?)?;
    core.read(Protocol::Http, body, |piece| buffer.push(piece)).await?;
    let (stored, permit) = buffer.finish();
    Ok((head, stored, permit))
}

/// Closing an HTTP/1 connection on a sender that is still sending resets it, and the answer is lost with it: a sender
/// that never sees its 413 sends the same again. So the rest is read and dropped, within limits, while the answer goes.
fn linger(core: &Core, mut body: Incoming) {
    let mut left = core.shared.config.request_bytes_max;
    let drain = async move {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
            let Some(rest) = left.checked_sub(bytes) else { return };
            left = rest;
        }
    };
    task::spawn_local(async move { drop(time::timeout(LINGER, drain).await) });
}
