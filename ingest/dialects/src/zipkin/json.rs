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
