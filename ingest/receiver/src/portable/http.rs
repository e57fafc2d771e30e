//! One HTTP request on this driver: head, body, answer. The request's rules lie in [`crate::request`] and
//! [`crate::body`].

use std::time::Duration;

use http::{Response, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{task, time};

use super::core::Core;
use crate::answer::{Answer, Reason, Refusal};
use crate::body::Buffer;
use crate::budget::Permit;
use crate::metrics::Protocol;
use crate::reply::Reply;
use crate::request::{Fields, Head};

/// How long the rest of a refused body is read and thrown away.
const LINGER: Duration = Duration::from_secs(5);

pub(crate) async fn answer(
    core: &Core,
    protocol: Protocol,
    version: Version,
    fields: Fields,
    mut body: Incoming,
) -> Response<Reply> {
    let (form, expects_continue) = (fields.answer_form(), fields.expects_continue);
    let answer = match receive(core, protocol, fields, &mut body).await {
        Ok(body) => core.take(protocol, body).await,
        Err(refusal) => {
            // A sender that was promised "100 Continue" first has sent nothing yet, and shall not.
            let is_sending = version < Version::HTTP_2 && !expects_continue;
            if is_sending && !body.is_end_stream() && refusal.reason != Reason::Timeout {
                linger(core, body);
            }
            core.answered(protocol, Answer::Refused(refusal), 0)
        }
    };
    Reply::response(answer.plain(protocol, form))
}

/// Up to a complete body.
async fn receive(
    core: &Core,
    protocol: Protocol,
    fields: Fields,
    body: &mut Incoming,
) -> Result<(Head, bytes::Bytes, Permit), Refusal> {
    let head = fields.head(protocol, &core.tenants.borrow())?;
    let mut buffer =
        Buffer::new(head.declared, core.shared.config.request_bytes_max, core.shared.admit()?, core.pool())?;
    core.read(protocol, body, |piece| buffer.push(piece)).await?;
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
