//! Where each dialect comes in and what its senders want to hear: paths, content types, answers. Owns no listener.
//!
//! | | Zipkin | Jaeger over HTTP | Jaeger over gRPC |
//! |---|---|---|---|
//! | usual port | 9411 | 14268 | 14250 |
//! | `POST` | [`ZIPKIN_PATH`] | [`JAEGER_PATH`] | [`JAEGER_GRPC_PATH`] |
//! | taken in | 202, no body | 202, no body | OK, [`JAEGER_GRPC_ANSWER`] |
//! | malformed | 400, the error as plain text | 400, the same | `INVALID_ARGUMENT`, the error as message |
//! | too large | 413 | 413 | `RESOURCE_EXHAUSTED` without `RetryInfo` |
//! | unknown content type | 415 | 400, as Jaeger does | - |
//! | overload | 503 with `Retry-After` | 503 with `Retry-After` | `UNAVAILABLE` with `RetryInfo` |
//!
//! Neither protocol can say that a part of a batch was refused; spans with unusable ids are counted, not answered.
//! Zipkin's clients compress with gzip, as `Content-Encoding` says.

use crate::Dialect;

/// Where Zipkin's clients `POST`.
pub const ZIPKIN_PATH: &str = "/api/v2/spans";
/// The port they expect it on.
pub const ZIPKIN_PORT: u16 = 9411;
/// Where Jaeger's clients `POST` Thrift. A query such as `?format=jaeger.thrift` may follow and says nothing.
pub const JAEGER_PATH: &str = "/api/traces";
/// The port they expect it on.
pub const JAEGER_PORT: u16 = 14268;
/// The one gRPC method that takes spans.
pub const JAEGER_GRPC_PATH: &str = "/jaeger.api_v2.CollectorService/PostSpans";
/// The port Jaeger's agents and exporters expect it on.
pub const JAEGER_GRPC_PORT: u16 = 14250;
/// The body of a gRPC success: one uncompressed frame around an empty `PostSpansResponse`.
pub const JAEGER_GRPC_ANSWER: [u8; 5] = [0; 5];
/// The status of an HTTP success.
pub const HTTP_ACCEPTED: u16 = 202;

/// The content type without its parameters.
fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// What a request to [`ZIPKIN_PATH`] holds; none for a type that answers 415. Without a content type it is JSON, as
/// Zipkin's own server reads it.
#[must_use]
pub fn zipkin_dialect(content_type: Option<&str>) -> Option<Dialect> {
    let known = [
        ("", Dialect::ZipkinJson),
        ("application/json", Dialect::ZipkinJson),
        ("application/x-protobuf", Dialect::ZipkinProto),
        ("application/protobuf", Dialect::ZipkinProto),
    ];
    find(&known, content_type.unwrap_or_default())
}

/// What a request to [`JAEGER_PATH`] holds; none for a type, or a lack of one, that answers 400.
#[must_use]
pub fn jaeger_dialect(content_type: Option<&str>) -> Option<Dialect> {
    let known = [
        ("application/x-thrift", Dialect::JaegerThriftBinary),
        ("application/vnd.apache.thrift.binary", Dialect::JaegerThriftBinary),
        ("application/vnd.apache.thrift.compact", Dialect::JaegerThriftCompact),
    ];
    find(&known, content_type?)
}

fn find(known: &[(&str, Dialect)], content_type: &str) -> Option<Dialect> {
    let wanted = media_type(content_type);
    known.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|&(_, dialect)| dialect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_choose_the_dialect() {
        for (content_type, expected) in [
            (None, Some(Dialect::ZipkinJson)),
            (Some("application/json"), Some(Dialect::ZipkinJson)),
            (Some("Application/JSON; charset=UTF-8"), Some(Dialect::ZipkinJson)),
            (Some("application/x-protobuf"), Some(Dialect::ZipkinProto)),
            (Some("application/x-thrift"), None),
        ] {
            assert_eq!(zipkin_dialect(content_type), expected, "{content_type:?}");
        }
        for (content_type, expected) in [
            (None, None),
            (Some("application/x-thrift"), Some(Dialect::JaegerThriftBinary)),
            (Some("application/vnd.apache.thrift.binary;v=1"), Some(Dialect::JaegerThriftBinary)),
            (Some("application/vnd.apache.thrift.compact"), Some(Dialect::JaegerThriftCompact)),
            (Some("application/json"), None),
        ] {
            assert_eq!(jaeger_dialect(content_type), expected, "{content_type:?}");
        }
    }
}
