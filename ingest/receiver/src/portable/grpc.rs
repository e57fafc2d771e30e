//! One gRPC call on this driver: head, body, answer. The call's rules lie in [`crate::request`] and
//! [`crate::body`].

use http::Response;
use hyper::body::Incoming;

use super::core::Core;
use crate::answer::{Answer, Refusal};
use crate::body::GrpcMessage;
use crate::budget::Permit;
use crate::metrics::Protocol;
use crate::reply::Reply;
use crate::request::{Fields, Head};

pub(crate) async fn answer(
    core: &Core,
    protocol: Protocol,
    fields: Fields,
    body: Incoming,
) -> Response<Reply> {
    let form = fields.answer_form();
    let answer = match receive(core, protocol, fields, body).await {
        Ok(body) => core.take(protocol, body).await,
        Err(refusal) => core.answered(protocol, Answer::Refused(refusal), 0),
    };
    Reply::response(answer.plain(protocol, form))
}

/// Up to a complete message. A call refused earlier leaves its body unread: HTTP/2 tells the sender to stop.
async fn receive(
    core: &Core,
    protocol: Protocol,
    fields: Fields,
    mut body: Incoming,
) -> Result<(Head, bytes::Bytes, Permit), Refusal> {
    let head = fields.head(protocol, &core.tenants.borrow())?;
    let mut message =
        GrpcMessage::new(core.shared.config.request_bytes_max, core.shared.admit()?, core.pool());
    core.read(protocol, &mut body, |piece| message.push(piece)).await?;
    let (compressed, stored, permit) = message.finish()?;
    Ok((head.with_compressed_flag(compressed)?, stored, permit))
}
