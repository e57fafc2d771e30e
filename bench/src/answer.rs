//! What an OTLP receiver's answer means to a sender: taken over, refused with or without a hint, or unknown.
//!
//! The rules are those of the OTLP specification 1.11 (`docs/specification.md`, "Failures" and "Throttling"). Sans I/O.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::error::Error;
use crate::wire::{Fields, Value, each_message};

/// An export answer is a few dozen bytes; an error page may be more.
pub(crate) const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Hints beyond this are not believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Taken over, but for the spans that `partial_success` names.
    Acknowledged {
        /// Spans not taken in.
        rejected_spans: u64,
        /// Why, in the receiver's words.
        message: String,
    },
    /// Not taken in.
    Refused {
        /// The status, as a word and a message.
        status: String,
        /// Whether the same request may be sent again.
        retryable: bool,
        /// After how long, if the receiver said so.
        retry_after: Option<Duration>,
    },
}

/// Reads the body of an `ExportTraceServiceResponse`.
pub(crate) fn acknowledged(response: &[u8]) -> Result<Answer, Error> {
    let mut rejected_spans = 0;
    let mut message = String::new();
    for partial in each_message(response, 1) {
        for field in Fields::new(partial?) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Uint(count)) => rejected_spans = count,
                (2, Value::Bytes(text)) => message = String::from_utf8_lossy(text).into_owned(),
                _ => {}
            }
        }
    }
    Ok(Answer::Acknowledged { rejected_spans, message })
}

/// Reads gRPC's trailers (or headers, when there is no body) and the message before them.
pub(crate) fn of_grpc(trailers: &HeaderMap, body: &[u8]) -> Result<Answer, Error> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    let code: u8 = text("grpc-status")
        .and_then(|code| code.parse().ok())
        .ok_or(Error::Malformed { what: "grpc-status" })?;
    if code == 0 {
        return acknowledged(grpc_message(body)?);
    }
    let details = text("grpc-status-details-bin").and_then(decode_base64).unwrap_or_default();
    let retry_after = retry_info(&details).ok().flatten();
    // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS; RESOURCE_EXHAUSTED only with a hint.
    let retryable = matches!(code, 1 | 4 | 10 | 11 | 14 | 15) || (code == 8 && retry_after.is_some());
    let message = text("grpc-message").unwrap_or_default();
    Ok(Answer::Refused { status: format!("{} {message}", grpc_word(code)), retryable, retry_after })
}

/// Reads an OTLP/HTTP answer.
pub(crate) fn of_http(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Answer, Error> {
    if status.is_success() {
        return acknowledged(body);
    }
    let seconds = headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(Answer::Refused {
        status: status.to_string(),
        retryable: matches!(status.as_u16(), 429 | 502 | 503 | 504),
        retry_after: seconds.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
    })
}

/// The one message of a unary answer; answers of an export are never compressed here, as none is asked for.
fn grpc_message(body: &[u8]) -> Result<&[u8], Error> {
    const WHAT: Error = Error::Malformed { what: "gRPC message" };
    let (prefix, message) = body.split_first_chunk::<5>().ok_or(WHAT)?;
    let [flag, length @ ..] = *prefix;
    if flag != 0 || u32::from_be_bytes(length) as usize != message.len() {
        return Err(WHAT);
    }
    Ok(message)
}

fn grpc_word(code: u8) -> &'static str {
    const WORDS: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    WORDS.get(usize::from(code)).copied().unwrap_or("UNKNOWN")
}

/// `google.rpc.Status` (details = 3, each an `Any`) with a `google.rpc.RetryInfo` (retry_delay = 1) among its details.
fn retry_info(status: &[u8]) -> Result<Option<Duration>, Error> {
    for any in each_message(status, 3) {
        let any = any?;
        let is_retry_info =
            each_message(any, 1).any(|url| url.is_ok_and(|url| url.ends_with(b"/google.rpc.RetryInfo")));
        if !is_retry_info {
            continue;
        }
        let info = each_message(any, 2).next().unwrap_or(Ok(&[]))?;
        return delay_of(each_message(info, 1).next().unwrap_or(Ok(&[]))?).map(Some);
    }
    Ok(None)
}

/// `google.protobuf.Duration`: seconds = 1, nanos = 2.
fn delay_of(message: &[u8]) -> Result<Duration, Error> {
    let mut delay = Duration::ZERO;
    for field in Fields::new(message) {
        let field = field?;
        delay += match (field.number, field.value) {
            (1, Value::Uint(seconds)) => Duration::from_secs(seconds.min(RETRY_AFTER_MAX.as_secs())),
            (2, Value::Uint(nanos)) => Duration::from_nanos(nanos.min(999_999_999)),
            _ => Duration::ZERO,
        };
    }
    Ok(delay.min(RETRY_AFTER_MAX))
}

/// Standard alphabet, padding optional, as gRPC writes binary metadata.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for quartet in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0u32;
        for &byte in quartet {
            bits = bits << 6 | u32::from(digit(byte)?);
        }
        let bits = bits << (6 * (4 - quartet.len()));
        out.extend_from_slice(&bits.to_be_bytes()[1..quartet.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{put_bytes, put_uint};
    use http::HeaderValue;

    fn trailers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn ok_is_acknowledged_with_what_was_rejected() {
        let ok = trailers(&[("grpc-status", "0")]);
        let nothing = Answer::Acknowledged { rejected_spans: 0, message: String::new() };
        assert_eq!(of_grpc(&ok, &[0; 5]).unwrap(), nothing);
        let mut partial = Vec::new();
        put_uint(&mut partial, 1, 3);
        put_bytes(&mut partial, 2, b"zero id");
        let mut body = vec![0, 0, 0, 0, 13];
        put_bytes(&mut body, 1, &partial);
        let expected = Answer::Acknowledged { rejected_spans: 3, message: "zero id".to_owned() };
        assert_eq!(of_grpc(&ok, &body).unwrap(), expected);
        assert!(of_grpc(&ok, &[0, 0, 0]).is_err());
        assert!(of_grpc(&HeaderMap::new(), &[]).is_err());
    }

    #[test]
    fn overload_carries_its_hint_and_bad_requests_none() {
        // Status{code 14, details [Any{RetryInfo{2.5 s}}]}
        let mut delay = Vec::new();
        put_uint(&mut delay, 1, 2);
        put_uint(&mut delay, 2, 500_000_000);
        let mut info = Vec::new();
        put_bytes(&mut info, 1, &delay);
        let mut any = Vec::new();
        put_bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
        put_bytes(&mut any, 2, &info);
        let mut status = Vec::new();
        put_uint(&mut status, 1, 14);
        put_bytes(&mut status, 3, &any);
        assert_eq!(retry_info(&status).unwrap(), Some(Duration::from_millis(2_500)));

        let hint = "CA4aNgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIKCggIAhCAyrXuAQ";
        let refused = |pairs: &[(&'static str, &str)]| match of_grpc(&trailers(pairs), &[]).unwrap() {
            Answer::Refused { retryable, retry_after, .. } => (retryable, retry_after),
            other => panic!("{other:?}"),
        };
        let overload = refused(&[("grpc-status", "14"), ("grpc-status-details-bin", hint)]);
        assert_eq!(overload, (true, Some(Duration::from_millis(2_500))));
        assert_eq!(refused(&[("grpc-status", "8")]), (false, None));
        assert_eq!(refused(&[("grpc-status", "3")]), (false, None));
    }

    #[test]
    fn http_answers_follow_their_status() {
        let after = trailers(&[("retry-after", "3")]);
        let answer = of_http(StatusCode::SERVICE_UNAVAILABLE, &after, b"").unwrap();
        let Answer::Refused { retryable, retry_after, .. } = answer else { panic!("{answer:?}") };
        assert_eq!((retryable, retry_after), (true, Some(Duration::from_secs(3))));
        let answer = of_http(StatusCode::PAYLOAD_TOO_LARGE, &HeaderMap::new(), b"").unwrap();
        assert!(matches!(answer, Answer::Refused { retryable: false, .. }));
        assert!(matches!(of_http(StatusCode::OK, &after, b""), Ok(Answer::Acknowledged { .. })));
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zg", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")]
        {
            assert_eq!(decode_base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(decode_base64("Z!"), None);
    }
}
