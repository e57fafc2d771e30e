//! Zipkin v2 and Jaeger batches to OTLP: bytes in, the bytes of an `ExportTraceServiceRequest` out. No sockets, no
//! clocks, no threads, and no judgement of spans: one with an unusable id stays in, and the walk refuses it by name.
//!
//! Read in this order: [`door`] (paths, content types and answers of the two protocols), `otlp` (the span in the making
//! and the request around it), `zipkin` and `jaeger` (what each field means, then the wire forms), `protobuf` and
//! `thrift` (the wire forms as such).

pub mod door;
pub mod error;
mod jaeger;
mod otlp;
mod protobuf;
mod thrift;
mod zipkin;

pub use error::Error;

/// The form a body is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// A JSON array of Zipkin v2 spans.
    ZipkinJson,
    /// The protobuf message `zipkin.proto3.ListOfSpans`.
    ZipkinProto,
    /// The protobuf message `jaeger.api_v2.PostSpansRequest`, out of its gRPC frame.
    JaegerProto,
    /// A Jaeger `Batch` in Thrift's binary protocol, or a call that has one as its argument.
    JaegerThriftBinary,
    /// The same in Thrift's compact protocol.
    JaegerThriftCompact,
}

/// Makes an OTLP request of at most `bytes_max` bytes out of `body`, which is already decompressed. Memory beside the
/// body stays within a small multiple of `bytes_max`, whatever the body says.
///
/// # Errors
/// When the body is not in this dialect, or would become larger than `bytes_max`.
pub fn transcode(dialect: Dialect, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, Error> {
    let mut request = otlp::Request::new(bytes_max);
    match dialect {
        Dialect::ZipkinJson => zipkin::json::read(body, &mut request)?,
        Dialect::ZipkinProto => zipkin::proto::read(body, &mut request)?,
        Dialect::JaegerProto => jaeger::proto::read(body, &mut request)?,
        Dialect::JaegerThriftBinary => jaeger::thrift::read(thrift::Reader::binary(body), &mut request)?,
        Dialect::JaegerThriftCompact => jaeger::thrift::read(thrift::Reader::compact(body), &mut request)?,
    }
    Ok(request.finish())
}
