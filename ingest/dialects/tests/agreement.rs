//! One batch says the same in every wire form of its protocol, and prost has the last word on protobuf.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

#[expect(clippy::expect_used, reason = "the judge panics at the first difference")]
mod oracle;
mod wild;

use ingest_dialects::{Dialect, transcode};
use oracle::{NO_LIMIT, check, check_jaeger, check_zipkin, jaeger, zipkin};
use proptest::prelude::*;
use prost::Message;
use wild::{Call, Protocol, Wild, jaeger_batch, jaeger_proto, jaeger_thrift, zipkin_json, zipkin_list};

const EVERY_DIALECT: [Dialect; 5] = [
    Dialect::ZipkinJson,
    Dialect::ZipkinProto,
    Dialect::JaegerProto,
    Dialect::JaegerThriftBinary,
    Dialect::JaegerThriftCompact,
];

fn dialect(protocol: Protocol) -> Dialect {
    match protocol {
        Protocol::Binary => Dialect::JaegerThriftBinary,
        Protocol::Compact => Dialect::JaegerThriftCompact,
    }
}

/// A valid body of any dialect.
fn body(dialect: Dialect, seed: u64) -> Vec<u8> {
    match dialect {
        Dialect::ZipkinJson => zipkin_json(&zipkin_list(seed)).into_bytes(),
        Dialect::ZipkinProto => zipkin_list(seed).encode_to_vec(),
        Dialect::JaegerProto => jaeger_proto(&jaeger_batch(seed)),
        Dialect::JaegerThriftBinary => jaeger_thrift(&jaeger_batch(seed), Protocol::Binary, Call::None),
        Dialect::JaegerThriftCompact => jaeger_thrift(&jaeger_batch(seed), Protocol::Compact, Call::None),
    }
}

fn judge(dialect: Dialect, body: &[u8]) {
    match dialect {
        Dialect::ZipkinProto => drop(check_zipkin(body)),
        Dialect::JaegerProto => drop(check_jaeger(body)),
        _ => drop(check(dialect, body)),
    }
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// Every span with its resource and its scope, as text, in an order that does not depend on grouping.
fn everything(dialect: Dialect, body: &[u8]) -> Vec<String> {
    let request = check(dialect, body).unwrap();
    let spans = request.resource_spans.iter().flat_map(|resource| {
        let scopes = resource.scope_spans.iter();
        scopes.flat_map(move |scope| {
            scope.spans.iter().map(move |span| format!("{:?} {:?} {span:?}", resource.resource, scope.scope))
        })
    });
    sorted(spans)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn zipkin_says_the_same_in_json_and_in_protobuf(seed: u64) {
        let list = zipkin_list(seed);
        let (json, proto) = (zipkin_json(&list), list.encode_to_vec());
        let from_json = transcode(Dialect::ZipkinJson, json.as_bytes(), NO_LIMIT).unwrap();
        let from_proto = transcode(Dialect::ZipkinProto, &proto, NO_LIMIT).unwrap();
        // The fields come in opposite orders; only what is derived from order may differ, and nothing is.
        prop_assert_eq!(from_json, from_proto, "{}", json);
        prop_assert!(check_zipkin(&proto));
    }

    #[test]
    fn jaeger_says_the_same_in_protobuf_and_in_every_thrift(seed: u64) {
        let batch = jaeger_batch(seed);
        let proto = jaeger_proto(&batch);
        let expected = transcode(Dialect::JaegerProto, &proto, NO_LIMIT).unwrap();
        prop_assert!(check_jaeger(&proto));
        for protocol in [Protocol::Binary, Protocol::Compact] {
            for call in [Call::None, Call::EmitBatch, Call::OldEmitBatch, Call::SubmitBatches, Call::ProcessLast] {
                let thrift = jaeger_thrift(&batch, protocol, call);
                let found = transcode(dialect(protocol), &thrift, NO_LIMIT).unwrap();
                prop_assert_eq!(&found, &expected, "{:?} {:?} {:?}", protocol, call, batch);
            }
        }
    }

    /// One draft serves all spans of a body; what one leaves behind must not show in the next.
    #[test]
    fn spans_come_out_of_a_list_as_they_would_alone(seed: u64) {
        let list = zipkin_list(seed);
        let alone = list.spans.iter().flat_map(|span| {
            everything(Dialect::ZipkinProto, &zipkin::ListOfSpans { spans: vec![span.clone()] }.encode_to_vec())
        });
        prop_assert_eq!(everything(Dialect::ZipkinProto, &list.encode_to_vec()), sorted(alone));

        let batch = jaeger_batch(seed);
        let alone = batch.spans.iter().flat_map(|span| {
            let batch = jaeger::Batch { spans: vec![span.clone()], process: batch.process.clone() };
            everything(Dialect::JaegerProto, &jaeger_proto(&batch))
        });
        prop_assert_eq!(everything(Dialect::JaegerProto, &jaeger_proto(&batch)), sorted(alone));
    }

    #[test]
    fn random_bytes_harm_nothing(bytes: Vec<u8>) {
        for dialect in EVERY_DIALECT {
            judge(dialect, &bytes);
        }
    }

    #[test]
    fn damaged_bodies_harm_nothing(seed: u64) {
        let mut wild = Wild::new(seed);
        for dialect in EVERY_DIALECT {
            let mut body = body(dialect, seed);
            for _ in 0..=wild.below(4) {
                if body.is_empty() {
                    break;
                }
                let place = wild.index(body.len());
                match wild.below(4) {
                    0 => body.truncate(place),
                    1 => body[place] ^= 1 << wild.below(8),
                    2 => body[place] = wild.number().to_le_bytes()[0],
                    _ => {
                        let other = wild.index(body.len());
                        let (start, end) = (place.min(other), place.max(other));
                        let piece = body[start..end].to_vec();
                        body.splice(place..place, piece);
                    }
                }
            }
            judge(dialect, &body);
        }
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_judged() {
    for dialect in EVERY_DIALECT {
        let body = (1..).map(|seed| body(dialect, seed)).find(|body| body.len() > 500).unwrap();
        for cut in 0..body.len() {
            judge(dialect, &body[..cut]);
        }
        for bit in 0..body.len().min(600) * 8 {
            let mut flipped = body.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            judge(dialect, &flipped);
        }
    }
}

#[test]
fn a_thrift_body_cut_short_or_followed_by_more_is_refused() {
    for protocol in [Protocol::Binary, Protocol::Compact] {
        let mut body = jaeger_thrift(&jaeger_batch(7), protocol, Call::None);
        assert!(transcode(dialect(protocol), &body[..body.len() - 1], NO_LIMIT).is_err());
        body.push(0);
        let error = transcode(dialect(protocol), &body, NO_LIMIT).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("malformed thrift at byte {}: something follows the batch", body.len() - 1)
        );
    }
}

#[test]
fn deep_bodies_cost_no_stack() {
    let deep = 1_000_000;
    let json = format!("[{{\"unknown\":{}{}}}]", "[".repeat(deep), "]".repeat(deep));
    assert!(transcode(Dialect::ZipkinJson, json.as_bytes(), NO_LIMIT).is_ok());
    let tags = format!("[{{\"tags\":{{\"a\":{}}}}}]", "[".repeat(deep));
    assert!(transcode(Dialect::ZipkinJson, tags.as_bytes(), NO_LIMIT).is_err());
    for (dialect, unit) in [
        (Dialect::ZipkinProto, &[0x1B][..]),
        (Dialect::JaegerProto, &[0x1B]),
        (Dialect::JaegerThriftBinary, &[12, 0, 9]),
        (Dialect::JaegerThriftCompact, &[0x9C]),
    ] {
        assert!(transcode(dialect, &unit.repeat(deep), NO_LIMIT).is_err());
    }
}

#[test]
fn many_tiny_things_stay_within_the_limit() {
    let bytes_max = 1 << 20;
    let empty_tags = [&[0x0A, 0x80, 0x80, 0x80, 0x01][..], &[0x5A, 0x00].repeat(1 << 20)].concat();
    let empty_spans = [0x0A, 0x00].repeat(1 << 20);
    let services: Vec<String> =
        (0..50_000).map(|n| format!(r#"{{"localEndpoint":{{"serviceName":"{n}"}}}}"#)).collect();
    for (dialect, body) in [
        (Dialect::ZipkinProto, empty_tags),
        (Dialect::ZipkinProto, empty_spans),
        (Dialect::ZipkinJson, format!("[{}]", services.join(",")).into_bytes()),
    ] {
        let error = transcode(dialect, &body, bytes_max).unwrap_err();
        assert!(error.is_too_large(), "{error}");
        assert_eq!((error.http_status(), error.grpc_status()), (413, 8));
    }
}
