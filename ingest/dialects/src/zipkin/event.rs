//! Annotations as events. OpenTelemetry's exporters put the attributes of an event beside its name, as JSON, in two
//! spellings: `"name": {...}` and `{"name": {...}}`. Any other annotation is the name of an event without attributes.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use crate::error::Error;
use crate::otlp::{Draft, EVENT_ATTRIBUTES, Value, put_attribute};

/// A longer annotation is not looked into: parsed, it could take many times its size.
const JSON_BYTES_MAX: usize = 64 << 10;

/// Adds the event that `annotation` stands for.
pub(super) fn put(span: &mut Draft, time_ns: u64, annotation: &str) -> Result<(), Error> {
    let Some((name, attributes)) = named_attributes(annotation) else {
        return span.event(time_ns, annotation, b"");
    };
    let mut encoded = Vec::new();
    for (key, value) in &attributes {
        put_json(&mut encoded, key, value);
    }
    span.event(time_ns, &name, &encoded)
}

fn named_attributes(annotation: &str) -> Option<(String, Map<String, Json>)> {
    if annotation.len() > JSON_BYTES_MAX {
        return None;
    }
    let object = match annotation.as_bytes() {
        [b'{', ..] => Cow::Borrowed(annotation),
        [b'"', ..] => Cow::Owned(format!("{{{annotation}}}")),
        _ => return None,
    };
    let object: Map<String, Json> = serde_json::from_str(&object).ok()?;
    let mut members = object.into_iter();
    match (members.next(), members.next()) {
        (Some((name, Json::Object(attributes))), None) => Some((name, attributes)),
        (Some((name, Json::Null)), None) => Some((name, Map::new())),
        _ => None,
    }
}

/// Encodes one attribute; what has no type of its own in Zipkin's JSON stays JSON.
fn put_json(out: &mut Vec<u8>, key: &str, value: &Json) {
    let text;
    let value = match value {
        Json::Null => return,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::String(text) => Value::Text(text),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(int), _) => Value::Int(int),
            (None, double) => Value::Double(double.unwrap_or(f64::NAN)),
        },
        Json::Array(_) | Json::Object(_) => {
            text = value.to_string();
            Value::Text(&text)
        }
    };
    put_attribute(out, EVENT_ATTRIBUTES, key, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_in_both_spellings_and_nowhere_else() {
        for (annotation, expected) in [
            (r#""retry": {"n": 2}"#, Some(("retry", r#"{"n":2}"#))),
            (r#"{"retry": {"n": 2, "why": "slow"}}"#, Some(("retry", r#"{"n":2,"why":"slow"}"#))),
            (r#"{"bare": {}}"#, Some(("bare", "{}"))),
            (r#"{"bare": null}"#, Some(("bare", "{}"))),
            ("ws", None),
            ("", None),
            (r#""quoted""#, None),
            (r#"{"a": 1}"#, None),
            (r#"{"a": {}, "b": {}}"#, None),
            (r#"{"a": {}"#, None),
            ("{}", None),
        ] {
            let found = named_attributes(annotation);
            let found = found.map(|(name, attributes)| (name, Json::Object(attributes).to_string()));
            let found = found.as_ref().map(|(name, attributes)| (name.as_str(), attributes.as_str()));
            assert_eq!(found, expected, "{annotation}");
        }
        assert!(
            named_attributes(&format!(r#"{{"a": {{"b": "{}"}}}}"#, "x".repeat(JSON_BYTES_MAX))).is_none()
        );
        assert!(named_attributes(&"{\"a\":".repeat(10_000)).is_none());
    }
}
