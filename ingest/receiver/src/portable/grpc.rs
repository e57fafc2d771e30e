//! One OTLP/gRPC call on this driver: head, body, answer. The call's rules lie in [`crate::request`] and
//! [`crate::body`].

use http::{Request, Response};
use hyper::body::Incoming;

use super::core::Core;
use crate::answer::{Answer, Refusal};
use crate::body::GrpcMessage;
use crate::budget::Permit;
use crate::metrics::Protocol;
use crate::reply::Reply;
use crate::request::Head;

pub(crate) async fn answer(core: &Core, request: Request<Incoming>) -> Response<Reply> {
    let answer = match receive(core, request).await {
        Ok((head, stored, permit)) => core.take(Protocol::Grpc, head, stored, permit).await,
        Err(refusal) => core.answered(Protocol::Grpc, Answer::Refused(refusal), 0),
    };
    answer.grpc()
}

/// Up to a complete message. A call refused earlier leaves its body unread: HTTP/2 tells the sender to stop.
async fn receive(core: &Core, request: Request<Incoming>) -> Result<(Head, bytes::Bytes, Permit), Refusal> {
    let head = Head::of_grpc(request.method(), request.uri().path(), request.headers())?;
    core.admit()?;
    let mut message = GrpcMessage::new(core.shared.config.request_bytes_max, core.permit()?);
    let mut body = request.into_body();
    core.read(Protocol::Grpc, &mut body, |piece| message.push(piece)).await?;
    let (compressed, stored, permit) = message.finish()?;
    Ok((head.with_compressed_flag(compressed)?, stored, permit))
}
