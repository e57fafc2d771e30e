//! A JSON array of Zipkin v2 spans, read straight from the text: no tree in between. Unknown keys are ignored, null
//! means absent, and numbers may come as text or text as numbers, as Zipkin's own server has it.
//! <https://zipkin.io/zipkin-api/#/default/post_spans>

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Builder, Endpoint};
use crate::error::Error;
use crate::otlp::{Id, Request, kind};

/// Adds every span of the array.
pub(crate) fn read(body: &[u8], request: &mut Request) -> Result<(), Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let mut reading = Reading { builder: Builder::new(request), request, failure: None };
    let outcome = Spans(&mut reading).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (outcome, reading.failure) {
        (_, Some(failure)) => Err(failure),
        (Err(cause), None) => Err(Error::Json { cause }),
        (Ok(()), None) => Ok(()),
    }
}

/// Where the visitors put what they find.
struct Reading<'r> {
    builder: Builder,
    request: &'r mut Request,
    /// An error of ours, which serde cannot carry.
    failure: Option<Error>,
}

impl Reading<'_> {
    fn kept<E: serde::de::Error>(&mut self, outcome: Result<(), Error>) -> Result<(), E> {
        outcome.map_err(|error| {
            let message = E::custom(&error);
            self.failure = Some(error);
            message
        })
    }
}

/// A string, or what a careless sender writes in its place.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyScalar;

        impl Visitor<'_> for AnyScalar {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Text, E> {
                Ok(Text(flag.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
        }

        deserializer.deserialize_any(AnyScalar)
    }
}

/// A natural number, as a number or as text. A fraction is cut off: some senders divide to get microseconds.
struct Natural(u64);

impl<'de> Deserialize<'de> for Natural {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        let float = || text.parse().ok().filter(|float: &f64| *float >= 0.0 && *float < 2_f64.powi(63));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "just checked to be in range"
        )]
        let natural = text.parse().ok().or_else(|| float().map(|float| float as u64));
        natural.map(Self).ok_or_else(|| D::Error::custom(format_args!("{text:?} is no natural number")))
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum SpanKey {
    TraceId,
    ParentId,
    Id,
    Kind,
    Name,
    Timestamp,
    Duration,
    LocalEndpoint,
    RemoteEndpoint,
    Annotations,
    Tags,
    Debug,
    Shared,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointJson {
    service_name: Option<Text>,
    ipv4: Option<Text>,
    ipv6: Option<Text>,
    port: Option<Natural>,
}

impl EndpointJson {
    fn put(self, endpoint: &mut Endpoint) {
        let Self { service_name, ipv4, ipv6, port } = self;
        if let Some(Text(name)) = service_name {
            endpoint.set_service(&name);
        }
        for (address, is_v6) in [(ipv4, false), (ipv6, true)] {
            if let Some(Text(address)) = address {
                endpoint.set_address(&address, is_v6);
            }
        }
        endpoint.port = port.and_then(|Natural(port)| i64::try_from(port).ok()).unwrap_or_default();
    }
}

#[derive(Deserialize)]
struct AnnotationJson {
    timestamp: Option<Natural>,
    value: Option<Text>,
}

/// The array.
struct Spans<'a, 'r>(&'a mut Reading<'r>);

impl<'de> DeserializeSeed<'de> for Spans<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Spans<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of spans")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut spans: A) -> Result<(), A::Error> {
        while spans.next_element_seed(Span(&mut *self.0))?.is_some() {
            let Reading { builder, request, .. } = &mut *self.0;
            let outcome = builder.finish(request);
            self.0.kept(outcome)?;
        }
        Ok(())
    }
}

/// One span.
struct Span<'a, 'r>(&'a mut Reading<'r>);

impl<'de> DeserializeSeed<'de> for Span<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Span<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a span")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            let builder = &mut self.0.builder;
            match key {
                SpanKey::TraceId => builder.span.trace_id = Id::of_hex(&id(&mut map)?),
                SpanKey::ParentId => builder.span.parent_id = Id::of_hex(&id(&mut map)?),
                SpanKey::Id => builder.span.span_id = Id::of_hex(&id(&mut map)?),
                SpanKey::Kind => builder.span.kind = span_kind(map.next_value()?),
                SpanKey::Name => {
                    let name: Option<Text> = map.next_value()?;
                    builder.span.set_name(name.as_ref().map_or("", |Text(name)| name));
                }
                SpanKey::Timestamp => builder.timestamp = natural(&mut map)?,
                SpanKey::Duration => builder.duration = natural(&mut map)?,
                SpanKey::LocalEndpoint => put_endpoint(&mut map, &mut builder.local)?,
                SpanKey::RemoteEndpoint => put_endpoint(&mut map, &mut builder.remote)?,
                SpanKey::Annotations => map.next_value_seed(Annotations(&mut *self.0))?,
                SpanKey::Tags => map.next_value_seed(Tags(&mut *self.0))?,
                SpanKey::Debug => builder.debug(flag(&mut map)?),
                SpanKey::Shared => builder.shared = flag(&mut map)?,
                SpanKey::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

fn id<'de, A: MapAccess<'de>>(map: &mut A) -> Result<String, A::Error> {
    map.next_value().map(Option::unwrap_or_default)
}

fn natural<'de, A: MapAccess<'de>>(map: &mut A) -> Result<u64, A::Error> {
    let value: Option<Natural> = map.next_value()?;
    Ok(value.map_or(0, |Natural(value)| value))
}

fn flag<'de, A: MapAccess<'de>>(map: &mut A) -> Result<bool, A::Error> {
    map.next_value().map(Option::unwrap_or_default)
}

fn put_endpoint<'de, A: MapAccess<'de>>(map: &mut A, endpoint: &mut Endpoint) -> Result<(), A::Error> {
    let value: Option<EndpointJson> = map.next_value()?;
    if let Some(value) = value {
        value.put(endpoint);
    }
    Ok(())
}

fn span_kind(name: Option<Text>) -> u64 {
    let known = [
        ("CLIENT", kind::CLIENT),
        ("SERVER", kind::SERVER),
        ("PRODUCER", kind::PRODUCER),
        ("CONSUMER", kind::CONSUMER),
    ];
    let name = name.map(|Text(name)| name).unwrap_or_default();
    known
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(&name))
        .map_or(kind::UNSPECIFIED, |&(_, kind)| kind)
}

/// The annotations of a span.
struct Annotations<'a, 'r>(&'a mut Reading<'r>);

impl<'de> DeserializeSeed<'de> for Annotations<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Annotations<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of annotations")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut annotations: A) -> Result<(), A::Error> {
        while let Some(AnnotationJson { timestamp, value }) = annotations.next_element()? {
            let timestamp = timestamp.map_or(0, |Natural(timestamp)| timestamp);
            let value = value.as_ref().map_or("", |Text(value)| value);
            let outcome = self.0.builder.annotation(timestamp, value);
            self.0.kept(outcome)?;
        }
        Ok(())
    }
}

/// The tags of a span.
struct Tags<'a, 'r>(&'a mut Reading<'r>);

impl<'de> DeserializeSeed<'de> for Tags<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tags<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tags")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut tags: A) -> Result<(), A::Error> {
        while let Some((Text(key), value)) = tags.next_entry()? {
            let value: Option<Text> = value;
            if let Some(Text(value)) = value {
                let outcome = self.0.builder.tag(&key, &value);
                self.0.kept(outcome)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ingest_otlp::protobuf_to_json;
    use serde_json::{Value as Json, json};

    use super::*;

    fn read_all(text: &str) -> Result<Json, Error> {
        let mut request = Request::new(1 << 20);
        read(text.as_bytes(), &mut request)?;
        Ok(protobuf_to_json(&request.finish()).unwrap())
    }

    /// The place in the answer that one span with these fields gives.
    fn field(fields: &str, pointer: &str) -> Json {
        let answer = read_all(&format!("[{{{fields}}}]")).unwrap();
        let pointer = match pointer.strip_prefix("span") {
            Some(rest) => format!("/resourceSpans/0/scopeSpans/0/spans/0{rest}"),
            None => format!("/resourceSpans/0{pointer}"),
        };
        answer.pointer(&pointer).cloned().unwrap_or_default()
    }

    fn attributes(members: &[(&str, Json)]) -> Json {
        members.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
    }

    fn text(value: &str) -> Json {
        json!({ "stringValue": value })
    }

    fn check(fields: &str, pointer: &str, expected: Json) {
        assert_eq!(field(fields, pointer), expected, "{fields}");
    }

    #[test]
    fn every_field_of_a_span_has_its_place() {
        let timed = r#""timestamp":1,"#;
        check(r#""traceId":"00000000000000a1""#, "span/traceId", json!("000000000000000000000000000000a1"));
        check(
            r#""traceId":"000102030405060708090A0B0C0D0E0F""#,
            "span/traceId",
            json!("000102030405060708090a0b0c0d0e0f"),
        );
        check(r#""id":"1","parentId":"2""#, "span/spanId", json!("0000000000000001"));
        check(r#""id":"1","parentId":"2""#, "span/parentSpanId", json!("0000000000000002"));
        check(r#""id":"1","parentId":"1""#, "span/parentSpanId", json!(null));
        check(r#""id":"1","parentId":"0000000000000000""#, "span/parentSpanId", json!(null));
        check(r#""name":"get /""#, "span/name", json!("get /"));
        check(r#""kind":"CLIENT""#, "span/kind", json!(3));
        check(r#""kind":"SERVER""#, "span/kind", json!(2));
        check(r#""kind":"PRODUCER""#, "span/kind", json!(4));
        check(r#""kind":"CONSUMER""#, "span/kind", json!(5));
        check(r#""kind":null"#, "span/kind", json!(null));
        check(
            r#""timestamp":1502787600000000,"duration":150"#,
            "span/startTimeUnixNano",
            json!("1502787600000000000"),
        );
        check(
            r#""timestamp":1502787600000000,"duration":150"#,
            "span/endTimeUnixNano",
            json!("1502787600000150000"),
        );
        check(r#""timestamp":"1502787600000000""#, "span/startTimeUnixNano", json!("1502787600000000000"));
        check(r#""timestamp":1502787600000000.75"#, "span/startTimeUnixNano", json!("1502787600000000000"));
        check(
            r#""annotations":[{"timestamp":5,"value":"b"},{"timestamp":4,"value":"a"}]"#,
            "span/startTimeUnixNano",
            json!("4000"),
        );
        check(
            "",
            "span/attributes",
            attributes(&[("otel.zipkin.absentField.startTime", json!({ "boolValue": true }))]),
        );
        check(&format!(r#"{timed}"debug":true"#), "span/flags", json!(1));
        check(
            &format!(r#"{timed}"shared":true"#),
            "span/attributes",
            attributes(&[("zipkin.shared", json!({ "boolValue": true }))]),
        );
        check(
            r#""annotations":[{"timestamp":7,"value":"ws"}]"#,
            "span/events",
            json!([{ "timeUnixNano": "7000", "name": "ws" }]),
        );
        check(
            r#""localEndpoint":{"serviceName":"shop"}"#,
            "/resource/attributes",
            attributes(&[("service.name", text("shop"))]),
        );
        let expected = attributes(&[
            ("network.local.address", text("10.0.0.1")),
            ("network.local.port", json!({ "intValue": "80" })),
            ("network.peer.address", text("2001:db8::2")),
            ("peer.service", text("redis")),
        ]);
        let endpoints = r#""localEndpoint":{"ipv4":"10.0.0.1","port":80},
            "remoteEndpoint":{"serviceName":"redis","ipv6":"2001:db8::2","ipv4":"10.0.0.2","port":0}"#;
        check(&format!("{timed}{endpoints}"), "span/attributes", expected);
    }

    #[test]
    fn tags_with_a_field_in_otlp_go_there_and_others_stay() {
        let of = |tags: &str| format!(r#""timestamp":1,"tags":{{{tags}}}"#);
        check(
            &of(r#""a":"b","n":1,"f":true,"none":null"#),
            "span/attributes",
            attributes(&[("a", text("b")), ("n", text("1")), ("f", text("true"))]),
        );
        check(&of(r#""error":"true""#), "span/status", json!({ "code": 2 }));
        check(&of(r#""error":"""#), "span/status", json!({ "code": 2 }));
        check(&of(r#""error":"timeout""#), "span/status", json!({ "code": 2, "message": "timeout" }));
        check(
            &of(r#""error":"timeout","otel.status_description":"late""#),
            "span/status",
            json!({ "code": 2, "message": "late" }),
        );
        check(&of(r#""error":"false""#), "span/status", json!(null));
        check(&of(r#""error":"false""#), "span/attributes", attributes(&[("error", text("false"))]));
        check(&of(r#""otel.status_code":"OK""#), "span/status", json!({ "code": 1 }));
        check(&of(r#""otel.status_code":"STATUS_CODE_ERROR""#), "span/status", json!({ "code": 2 }));
        check(&of(r#""span.kind":"internal""#), "span/kind", json!(1));
        check(&of(r#""w3c.tracestate":"ot=th:8""#), "span/traceState", json!("ot=th:8"));
        check(
            &of(r#""otel.library.name":"lib","otel.library.version":"2""#),
            "/scopeSpans/0/scope",
            json!({ "name": "lib", "version": "2" }),
        );
        check(
            &of(r#""service.name":"shop","host.name":"h""#),
            "/resource/attributes",
            attributes(&[("service.name", text("shop")), ("host.name", text("h"))]),
        );
        check(
            &of(r#""service.peer.name":"db""#),
            "span/attributes",
            attributes(&[("service.peer.name", text("db"))]),
        );
        let said = of(r#""peer.service":"db""#) + r#","remoteEndpoint":{"serviceName":"other"}"#;
        check(&said, "span/attributes", attributes(&[("peer.service", text("db"))]));
    }

    #[test]
    fn spans_share_the_resource_and_the_scope_they_name() {
        let span = |service: &str, library: &str, id: u8| {
            format!(
                r#"{{"id":"{id}","localEndpoint":{{"serviceName":"{service}"}},"tags":{{"otel.scope.name":"{library}"}}}}"#
            )
        };
        let spans = [span("a", "x", 1), span("b", "x", 2), span("a", "x", 3), span("a", "y", 4)];
        let answer = read_all(&format!("[{}]", spans.join(","))).unwrap();
        let ids = |pointer: &str| answer.pointer(pointer).and_then(|spans| spans.as_array()).map(Vec::len);
        assert_eq!(ids("/resourceSpans"), Some(2));
        assert_eq!(ids("/resourceSpans/0/scopeSpans"), Some(2));
        assert_eq!(ids("/resourceSpans/0/scopeSpans/0/spans"), Some(2));
        assert_eq!(ids("/resourceSpans/1/scopeSpans/0/spans"), Some(1));
    }

    #[test]
    fn what_is_no_list_of_spans_is_refused_with_its_place() {
        for text in [
            "",
            "{}",
            "null",
            "[1]",
            "[{}] x",
            "[{}",
            r#"[{"traceId":7}]"#,
            r#"[{"timestamp":-1}]"#,
            r#"[{"timestamp":1e300}]"#,
            r#"[{"timestamp":"NaN"}]"#,
            r#"[{"tags":[]}]"#,
            r#"[{"tags":{"a":{}}}]"#,
            r#"[{"annotations":{}}]"#,
            r#"[{"annotations":[1]}]"#,
            r#"[{"localEndpoint":[[]]}]"#,
            r#"[{"debug":1}]"#,
        ] {
            let error = read_all(text).unwrap_err();
            assert_eq!((error.http_status(), error.grpc_status()), (400, 3));
            assert!(error.to_string().starts_with("malformed zipkin json: "), "{text}: {error}");
            assert!(error.to_string().contains("line 1 column"), "{text}: {error}");
        }
        assert_eq!(read_all("[]").unwrap(), json!({}));
    }

    #[test]
    fn a_span_without_a_usable_id_is_left_to_the_walk() {
        let id = r#""id":"1""#;
        for (fields, reason) in [
            (r#""id":"1""#, "trace id is not 16 bytes long"),
            (r#""id":"1","traceId":"xyz""#, "trace id is not 16 bytes long"),
            (r#""id":"1","traceId":"0000000000000000""#, "trace id is all zero"),
            (r#""traceId":"1""#, "span id is not 8 bytes long"),
            (r#""traceId":"1","id":"00000000000000001""#, "span id is not 8 bytes long"),
            (r#""traceId":"1","id":"1","parentId":"?""#, "parent span id is neither empty nor 8 bytes long"),
        ] {
            let mut request = Request::new(1 << 20);
            read(format!(r#"[{{{fields}}},{{"traceId":"1",{id}}}]"#).as_bytes(), &mut request).unwrap();
            let walked = ingest_otlp::walk(&request.finish(), &mut |_| {}).unwrap();
            assert_eq!(
                (walked.accepted, walked.rejected, walked.rejected_because),
                (1, 1, Some(reason)),
                "{fields}"
            );
        }
    }
}
