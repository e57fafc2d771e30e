//! OTLP/JSON to protobuf and back, field by field along the tables of `schema`.
//!
//! Reading goes straight from the JSON text to protobuf bytes: no tree in between, so a small text cannot become a large
//! heap. Unknown fields are ignored and null means absent, as
//! <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding> asks.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::schema::{Field, Kind, Schema, TRACES_DATA};
use crate::wire::{Reader, put_delimited, put_varint};

/// How deep messages may nest in JSON. Two are used up by each level of an array value, three by a list of pairs; what
/// is accepted here stays far from the hundred that protobuf readers allow.
const DEPTH_MAX: u8 = 64;

/// Transcodes an OTLP/JSON request to protobuf.
///
/// # Errors
/// [`Error::Json`] when the text is no JSON, a field has a value of another type, or values nest too deep.
pub fn json_to_protobuf(json: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(json.len() / 2);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let root = MessageSeed { schema: &TRACES_DATA, out: &mut out, depth: DEPTH_MAX };
    root.deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|cause| Error::Json { cause })?;
    Ok(out)
}

/// Transcodes a `TracesData` to OTLP/JSON. Invalid UTF-8 is replaced, unknown fields are left out.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are no such message.
pub fn protobuf_to_json(otlp: &[u8]) -> Result<Value, Error> {
    let mut object = Map::new();
    read_message(Reader::new(otlp), &TRACES_DATA, &mut object)?;
    Ok(Value::Object(object))
}

/// Appends the fields of one JSON object to `out`.
struct MessageSeed<'o> {
    schema: &'static Schema,
    out: &'o mut Vec<u8>,
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { schema, out, depth } = self;
        while let Some(field) = map.next_key_seed(NameSeed(schema))? {
            match field {
                Some(field) => map.next_value_seed(FieldSeed { field, out, depth })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// The field that a JSON key names, if any.
struct NameSeed(&'static Schema);

impl<'de> DeserializeSeed<'de> for NameSeed {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.by_name(name))
    }
}

/// Appends one JSON value to `out` as a protobuf field: key and value.
struct FieldSeed<'o> {
    field: &'static Field,
    out: &'o mut Vec<u8>,
    depth: u8,
}

impl FieldSeed<'_> {
    fn put_number<E: serde::de::Error>(self, number: Number) -> Result<(), E> {
        let Self { field, out, .. } = self;
        let wrong = || E::custom(format_args!("{}: {number} does not fit", field.name));
        put_varint(out, u64::from(field.key()));
        match field.kind {
            Kind::Int64 => put_varint(out, number.to_i64().ok_or_else(wrong)?.cast_unsigned()),
            Kind::Enum(_) => {
                let number = number.to_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(wrong)?;
                // Protobuf writes a negative enum as a 64-bit number.
                put_varint(out, i64::from(number).cast_unsigned());
            }
            Kind::Fixed64 => out.extend(number.to_u64().ok_or_else(wrong)?.to_le_bytes()),
            Kind::Uint32 | Kind::Fixed32 => {
                let narrow = number.to_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(wrong)?;
                match field.kind {
                    Kind::Uint32 => put_varint(out, u64::from(narrow)),
                    _ => out.extend(narrow.to_le_bytes()),
                }
            }
            Kind::Double => out.extend(number.to_f64().to_le_bytes()),
            _ => return Err(wrong_type(field, "a number")),
        }
        Ok(())
    }

    fn put_message<'de, A: MapAccess<'de>>(self, schema: &'static Schema, map: A) -> Result<(), A::Error> {
        let Self { field, out, depth } = self;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(A::Error::custom("messages nested too deep"));
        };
        put_varint(out, u64::from(field.key()));
        let start = out.len();
        MessageSeed { schema, out: &mut *out, depth }.visit_map(map)?;
        // The length is known only now and moves in front of the message.
        let end = out.len();
        put_varint(out, (end - start) as u64);
        let length_bytes = out.len() - end;
        out[start..].rotate_right(length_bytes);
        Ok(())
    }
}

fn wrong_type<E: serde::de::Error>(field: &Field, found: &str) -> E {
    E::custom(format_args!("{}: {found} where it cannot be", field.name))
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value for {}", self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        let Self { field, out, .. } = self;
        if !matches!(field.kind, Kind::Bool) {
            return Err(wrong_type(field, "a boolean"));
        }
        put_varint(out, u64::from(field.key()));
        out.push(u8::from(value));
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.put_number(Number::Unsigned(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.put_number(Number::Signed(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.put_number(Number::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let field = self.field;
        let wrong = || E::custom(format_args!("{}: {text:?} is no such value", field.name));
        match field.kind {
            Kind::Text => put_delimited(self.out, field.key(), text.as_bytes()),
            Kind::Id => put_delimited(self.out, field.key(), &decode_hex(text).ok_or_else(wrong)?),
            Kind::Bytes => put_delimited(self.out, field.key(), &decode_base64(text).ok_or_else(wrong)?),
            Kind::Message(_) | Kind::Repeated(_) | Kind::Bool => return Err(wrong_type(field, "a string")),
            Kind::Enum(names) => {
                let named = names.iter().position(|&name| name == text).map(|n| Number::Unsigned(n as u64));
                self.put_number(named.or_else(|| Number::parse(text)).ok_or_else(wrong)?)?;
            }
            Kind::Int64 | Kind::Uint32 | Kind::Fixed32 | Kind::Fixed64 | Kind::Double => {
                self.put_number(Number::parse(text).ok_or_else(wrong)?)?;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        match self.field.kind {
            Kind::Message(schema) => self.put_message(schema, map),
            _ => Err(wrong_type(self.field, "an object")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { field, out, depth } = self;
        let Kind::Repeated(schema) = field.kind else {
            return Err(wrong_type(field, "an array"));
        };
        while seq.next_element_seed(ElementSeed { field, schema, out, depth })?.is_some() {}
        Ok(())
    }
}

/// One element of a repeated message. Null is an element without fields here, because dropping it would move the others.
struct ElementSeed<'o> {
    field: &'static Field,
    schema: &'static Schema,
    out: &'o mut Vec<u8>,
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for ElementSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ElementSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object in {}", self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        put_delimited(self.out, self.field.key(), b"");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Self { field, schema, out, depth } = self;
        FieldSeed { field, out, depth }.put_message(schema, map)
    }
}

/// A JSON number, or a string in its place, before the field says what it must be.
#[derive(Clone, Copy)]
enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let unsigned = text.parse().ok().map(Self::Unsigned);
        let signed = || text.parse().ok().map(Self::Signed);
        // Rust reads "NaN" and "Infinity" as protobuf's JSON writes them.
        unsigned.or_else(signed).or_else(|| text.parse().ok().map(Self::Float))
    }

    fn to_u64(self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            Self::Float(value) => u64::try_from(whole(value)?).ok(),
        }
    }

    fn to_i64(self) -> Option<i64> {
        match self {
            Self::Unsigned(value) => i64::try_from(value).ok(),
            Self::Signed(value) => Some(value),
            Self::Float(value) => i64::try_from(whole(value)?).ok(),
        }
    }

    fn to_f64(self) -> f64 {
        match self {
            Self::Unsigned(value) => value as f64,
            Self::Signed(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

/// A float without a fraction, such as `1e9`, as the integer it is.
fn whole(value: f64) -> Option<i128> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the value was just checked to be whole; the cast saturates"
    )]
    let whole = (value.fract() == 0.0).then_some(value as i128);
    whole
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
        }
    }
}

/// Adds the fields of one protobuf message to a JSON object. A message that comes in parts is merged by adding the
/// fields of each.
fn read_message(
    mut reader: Reader<'_>,
    schema: &'static Schema,
    object: &mut Map<String, Value>,
) -> Result<(), Error> {
    while !reader.is_done() {
        let key = reader.key()?;
        let Some(field) = schema.by_number(key >> 3) else {
            reader.skip(key)?;
            continue;
        };
        if key != field.key() {
            return Err(reader.malformed("a known field has the wrong wire type"));
        }
        if schema.oneof {
            object.retain(|name, _| name == field.name);
        }
        let value = match field.kind {
            Kind::Message(schema) => {
                let part = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(part) = part {
                    read_message(reader.message()?, schema, part)?;
                }
                continue;
            }
            Kind::Repeated(schema) => {
                let mut element = Map::new();
                read_message(reader.message()?, schema, &mut element)?;
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(Value::Object(element));
                }
                continue;
            }
            kind => read_scalar(&mut reader, kind)?,
        };
        object.insert(field.name.to_owned(), value);
    }
    Ok(())
}

fn read_scalar(reader: &mut Reader<'_>, kind: Kind) -> Result<Value, Error> {
    // Protobuf cuts a varint to the width of its field.
    let low_bits = |varint: u64| u32::try_from(varint & 0xFFFF_FFFF).unwrap_or_default();
    Ok(match kind {
        Kind::Text => String::from_utf8_lossy(reader.delimited()?).into(),
        Kind::Id => encode_hex(reader.delimited()?).into(),
        Kind::Bytes | Kind::Message(_) | Kind::Repeated(_) => encode_base64(reader.delimited()?).into(),
        Kind::Bool => (reader.varint()? != 0).into(),
        Kind::Int64 => reader.varint()?.cast_signed().to_string().into(),
        Kind::Uint32 => low_bits(reader.varint()?).into(),
        Kind::Enum(_) => low_bits(reader.varint()?).cast_signed().into(),
        Kind::Fixed32 => reader.fixed32()?.into(),
        Kind::Fixed64 => reader.fixed64()?.to_string().into(),
        Kind::Double => match f64::from_bits(reader.fixed64()?) {
            value if value.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            value => value.into(),
        },
    })
}

fn encode_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xF])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |&byte: &u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = text.as_bytes().as_chunks() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |n: usize| chunk.get(n).map_or(0, |&byte| usize::from(byte));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let symbol = char::from(BASE64[bits >> (18 - 6 * digit) & 63]);
            out.push(if digit > chunk.len() { '=' } else { symbol });
        }
    }
    out
}

/// Both alphabets, padded or not, as protobuf's JSON readers accept it.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.chunks(4) {
        if chunk.len() == 1 {
            return None;
        }
        let mut bits = 0;
        for &byte in chunk {
            bits = bits << 6 | u32::from(digit(byte)?);
        }
        let bytes = (bits << (32 - 6 * chunk.len())).to_be_bytes();
        out.extend_from_slice(&bytes[..chunk.len() - 1]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::messages::{Span, TracesData, any_value};

    fn read(json: &str) -> Result<TracesData, Error> {
        json_to_protobuf(json.as_bytes()).map(|bytes| TracesData::decode(&bytes[..]).unwrap())
    }

    fn read_span(fields: &str) -> Result<Span, Error> {
        let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#);
        read(&json).map(|mut data| data.resource_spans.remove(0).scope_spans.remove(0).spans.remove(0))
    }

    fn read_value(json: &str) -> Result<Option<any_value::Value>, Error> {
        let span = read_span(&format!(r#""attributes":[{{"key":"k","value":{json}}}]"#))?;
        Ok(span.attributes[0].value.clone().and_then(|any| any.value))
    }

    #[test]
    fn a_span_is_read_in_all_the_spellings_that_senders_use() {
        let span = read_span(
            r#""traceId":"5B8EFFF798038103D269B633813FC60C","span_id":"eee19b7ec3c1b174","parentSpanId":"",
               "name":"gr\u00fc\u00dfe","kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1544712660000000000",
               "end_time_unix_nano":1544712661000000000,"droppedEventsCount":2e0,"flags":257,"links":null,
               "status":{"code":2,"message":null},"somethingNew":[{"deep":[1,2,{}]}]"#,
        )
        .unwrap();
        assert_eq!(span.trace_id, 0x5B8E_FFF7_9803_8103_D269_B633_813F_C60C_u128.to_be_bytes());
        assert_eq!(span.span_id, 0xEEE1_9B7E_C3C1_B174_u64.to_be_bytes());
        assert_eq!((span.parent_span_id.len(), span.name.as_str(), span.kind), (0, "grüße", 2));
        assert_eq!(span.start_time_unix_nano, 1_544_712_660_000_000_000);
        assert_eq!(span.end_time_unix_nano, 1_544_712_661_000_000_000);
        assert_eq!((span.dropped_events_count, span.flags), (2, 257));
        assert_eq!(span.status.unwrap().code, 2);
    }

    #[test]
    fn values_are_read_by_the_type_they_name() {
        use any_value::Value as V;
        let check = |json: &str, expected: Option<V>| {
            let got = read_value(json).unwrap();
            assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{json}");
        };
        check(r#"{"stringValue":""}"#, Some(V::StringValue(String::new())));
        check(r#"{"boolValue":false}"#, Some(V::BoolValue(false)));
        check(r#"{"intValue":"-9223372036854775808"}"#, Some(V::IntValue(i64::MIN)));
        check(r#"{"intValue":-7}"#, Some(V::IntValue(-7)));
        check(r#"{"doubleValue":1}"#, Some(V::DoubleValue(1.0)));
        check(r#"{"doubleValue":"1e-3"}"#, Some(V::DoubleValue(0.001)));
        check(r#"{"doubleValue":"NaN"}"#, Some(V::DoubleValue(f64::NAN)));
        check(r#"{"doubleValue":"-Infinity"}"#, Some(V::DoubleValue(f64::NEG_INFINITY)));
        check(r#"{"bytesValue":"-_8="}"#, Some(V::BytesValue(vec![0xFB, 0xFF])));
        check(r#"{"bytesValue":"+/8"}"#, Some(V::BytesValue(vec![0xFB, 0xFF])));
        check(r#"{"intValue":1,"intValue":null}"#, Some(V::IntValue(1)));
        check("{}", None);
        check("null", None);
    }

    #[test]
    fn wrong_types_are_refused_with_their_place() {
        for span in [
            r#""traceId":"5b8"#.to_owned() + "\"",
            r#""traceId":"xyz0""#.to_owned(),
            r#""name":1"#.to_owned(),
            r#""kind":"SERVER""#.to_owned(),
            r#""kind":4294967296"#.to_owned(),
            r#""startTimeUnixNano":-1"#.to_owned(),
            r#""startTimeUnixNano":1.5"#.to_owned(),
            r#""startTimeUnixNano":1e300"#.to_owned(),
            r#""droppedLinksCount":4294967296"#.to_owned(),
            r#""events":{}"#.to_owned(),
            r#""events":[1]"#.to_owned(),
            r#""status":[]"#.to_owned(),
            r#""flags":true"#.to_owned(),
            r#""attributes":[{"value":{"bytesValue":"A"}}]"#.to_owned(),
            r#""attributes":[{"value":{"boolValue":"true"}}]"#.to_owned(),
        ] {
            let error = read_span(&span).unwrap_err().to_string();
            assert!(error.contains("line 1 column"), "{span}: {error}");
        }
        for text in ["", "[]", "{", "{}x", "\u{FEFF}{}", "null", "{\"resourceSpans\":[\"\\ud800\"]}"] {
            assert!(matches!(read(text), Err(Error::Json { .. })), "{text:?}");
        }
    }

    #[test]
    fn depth_is_bounded_on_both_ways() {
        let nested = |levels: usize| {
            let (open, close) = (r#"{"arrayValue":{"values":["#.repeat(levels), "]}}".repeat(levels));
            read_value(&format!("{open}{close}")).is_ok()
        };
        assert!(nested(30));
        assert!(!nested(31));
        assert!(!nested(100_000));
        // What is ignored is not followed, so it costs no stack.
        assert!(read_span(&format!(r#""unknown":{}{}"#, "[".repeat(100_000), "]".repeat(100_000))).is_ok());
        // A value in an array in a value ... of an attribute of a resource, innermost first.
        let nested = |levels: usize| {
            let keys = [0x0A, 0x2A].repeat(levels).into_iter().chain([0x12, 0x0A, 0x0A, 0x0A]);
            let body = keys.fold(Vec::new(), |inner, key| {
                let mut outer = Vec::new();
                put_delimited(&mut outer, key, &inner);
                outer
            });
            assert_eq!(protobuf_to_json(&body).is_ok(), TracesData::decode(&body[..]).is_ok());
            protobuf_to_json(&body).is_ok()
        };
        assert!(nested(48));
        assert!(!nested(49));
    }

    #[test]
    fn json_is_written_as_the_specification_shows_it() {
        let json = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":
            {"stringValue":"my.service"}}]},"scopeSpans":[{"scope":{"name":"my.library"},"spans":[{
            "traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","kind":2,
            "startTimeUnixNano":"1544712660000000000","flags":1,"attributes":[
            {"key":"a","value":{"doubleValue":0.1}},{"key":"b","value":{"bytesValue":"+/8="}},
            {"key":"c","value":{"arrayValue":{"values":[{"intValue":"3"},{"boolValue":true}]}}}]}]}]}]}"#;
        let back = protobuf_to_json(&json_to_protobuf(json.as_bytes()).unwrap()).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(json).unwrap());
    }

    proptest! {
        #[test]
        fn hexadecimal_and_base64_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode_hex(&encode_hex(&bytes)), Some(bytes.clone()));
            prop_assert_eq!(decode_base64(&encode_base64(&bytes)), Some(bytes));
        }
    }
}
