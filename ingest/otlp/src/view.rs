//! The second pass: attributes of resources and spans, for policies, for kept spans and for queries.
//!
//! Values are borrowed from the body. Nothing here refuses a span any more: what cannot be read is passed over.

use std::fmt::Write as _;

use crate::containers::Containers;
use crate::error::Error;
use crate::walk::{ATTRIBUTES, CONTAINER_FIELDS, RESOURCE, SCOPE_SPANS, WalkedSpan, each_span};
use crate::wire::{Key, Reader, delimited, fixed64, varint};

/// `Resource.attributes`.
const RESOURCE_ATTRIBUTES: Key = delimited(1);
const RESOURCE_DROPPED: Key = varint(2);
/// `KeyValue.key`.
const KEY: Key = delimited(1);
/// `KeyValue.value`.
const VALUE: Key = delimited(2);

/// An attribute's value, borrowed from the body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueView<'a> {
    /// No value at all.
    Empty,
    /// Text, as the bytes it came as: UTF-8 unless its sender broke the rule.
    Str(&'a [u8]),
    /// True or false.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// A floating-point number.
    Double(f64),
    /// Opaque bytes.
    Bytes(&'a [u8]),
    /// An `ArrayValue` message; the last part of one that came in several.
    Array(&'a [u8]),
    /// A `KeyValueList` message; the last part of one that came in several.
    KvList(&'a [u8]),
}

impl ValueView<'_> {
    /// Appends the form in which the value is searched for: text as it is (invalid UTF-8 replaced), true and false, numbers as
    /// JavaScript and therefore JSON prints them. `false`, and nothing appended, for values without such a form.
    pub fn to_text(&self, out: &mut String) -> bool {
        // Writing to a String cannot fail.
        let _infallible = match *self {
            Self::Str(text) => out.write_str(&String::from_utf8_lossy(text)),
            Self::Bool(value) => write!(out, "{value}"),
            Self::Int(value) => write!(out, "{value}"),
            Self::Double(value) => write_double(value, out),
            Self::Empty | Self::Bytes(_) | Self::Array(_) | Self::KvList(_) => return false,
        };
        true
    }
}

fn write_double(value: f64, out: &mut String) -> std::fmt::Result {
    let size = value.abs();
    if value == 0.0 {
        // Negative zero prints as zero.
        out.write_char('0')
    } else if value.is_infinite() {
        out.write_str(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else if value.is_nan() || (1e-6..1e21).contains(&size) {
        write!(out, "{value}")
    } else {
        let text = format!("{value:e}");
        out.write_str(&if size < 1.0 { text } else { text.replace('e', "e+") })
    }
}

/// What stands around the spans of one `ResourceSpans`.
#[derive(Clone, Copy, Debug)]
pub struct ResourceView<'a> {
    resource_spans: Reader<'a>,
    service: &'a [u8],
    pub(crate) service_is_utf8: bool,
}

impl<'a> ResourceView<'a> {
    /// Checks the fields of a `ResourceSpans` and finds the service, without looking into the spans.
    ///
    /// `service.name` is the first attribute of that name, as the Collector reads it. The first one is also the only
    /// choice that a later part of a split resource cannot change.
    pub(crate) fn read(
        resource_spans: Reader<'a>,
        mut containers: Option<&mut Containers>,
    ) -> Result<Self, Error> {
        let mut service = None;
        let mut reader = resource_spans;
        let mut run_start = reader.position();
        if let Some(containers) = &mut containers {
            containers.begin_resource();
        }
        while !reader.is_done() {
            let field_start = reader.position();
            match reader.key()? {
                RESOURCE => read_resource(reader.message()?, &mut service)?,
                SCOPE_SPANS => {
                    reader.delimited()?;
                    if let Some(containers) = &mut containers {
                        containers.piece(run_start, field_start);
                    }
                    run_start = reader.position();
                }
                // The schema's URL.
                key if key == delimited(3) => drop(reader.delimited()?),
                key => reader.other(key, CONTAINER_FIELDS)?,
            }
        }
        if let Some(containers) = containers {
            containers.piece(run_start, reader.position());
            containers.end_resource();
        }
        let service = service.unwrap_or_default();
        Ok(Self { resource_spans, service, service_is_utf8: str::from_utf8(service).is_ok() })
    }

    /// `service.name`; empty if there is none or it is no text.
    #[must_use]
    pub fn service(&self) -> &'a [u8] {
        self.service
    }

    /// Visits the resource's attributes in order, duplicates included.
    pub fn attributes(&self, visit: &mut impl FnMut(&'a [u8], ValueView<'a>)) {
        self.each_part(&mut |resource| {
            each_resource_attribute(resource, &mut |attribute| {
                if let Ok((key, value)) = read_attribute(attribute) {
                    visit(key, value);
                }
            });
        });
    }

    /// Visits the resource as it came: one `Resource` message, or the parts of it that came under one key.
    pub fn each_part(&self, visit: &mut impl FnMut(&'a [u8])) {
        each_delimited(self.resource_spans, RESOURCE, &mut |resource| visit(resource.rest()));
    }
}

/// Visits the messages of the attributes of a `Resource`, for [`read_attribute`].
pub fn each_resource_attribute<'a>(resource: &'a [u8], visit: &mut impl FnMut(&'a [u8])) {
    each_delimited(Reader::new(resource), RESOURCE_ATTRIBUTES, &mut |attribute| visit(attribute.rest()));
}

/// As [`each_resource_attribute`], of the fields of a `ResourceSpans`.
pub fn each_container_attribute<'a>(fields: &'a [u8], visit: &mut impl FnMut(&'a [u8])) {
    each_delimited(Reader::new(fields), RESOURCE, &mut |resource| {
        each_delimited(resource, RESOURCE_ATTRIBUTES, &mut |attribute| visit(attribute.rest()));
    });
}

/// Visits every acceptable span with its resource and its message's bytes.
///
/// # Errors
/// As [`crate::walk()`].
pub fn visit_spans<'a>(
    otlp: &'a [u8],
    visit: &mut impl FnMut(&ResourceView<'a>, &WalkedSpan<'a>, &'a [u8]),
) -> Result<(), Error> {
    each_span(otlp, None, &mut |resource, span| {
        let start = span.range.position as usize;
        visit(resource, span, &otlp[start..start + span.range.length as usize]);
    })
    .map(drop)
}

/// Visits the attributes of a span's message in order, duplicates included; skips those it cannot read.
pub fn span_attributes<'a>(span: &'a [u8], visit: &mut impl FnMut(&'a [u8], ValueView<'a>)) {
    each_attribute(span, &mut |attribute| {
        if let Ok((key, value)) = read_attribute(attribute) {
            visit(key, value);
        }
    });
}

/// Visits the messages of a span's attributes, for [`read_attribute`].
pub fn each_attribute<'a>(span: &'a [u8], visit: &mut impl FnMut(&'a [u8])) {
    each_delimited(Reader::new(span), ATTRIBUTES, &mut |attribute| visit(attribute.rest()));
}

/// Calls `each` with every value under `wanted`, up to the first byte that makes no sense.
fn each_delimited<'a>(mut reader: Reader<'a>, wanted: Key, each: &mut impl FnMut(Reader<'a>)) {
    while let Ok(key) = reader.key() {
        if key == wanted {
            let Ok(message) = reader.message() else { return };
            each(message);
        } else if reader.skip(key).is_err() {
            return;
        }
    }
}

fn read_resource<'a>(mut reader: Reader<'a>, service: &mut Option<&'a [u8]>) -> Result<(), Error> {
    while !reader.is_done() {
        match reader.key()? {
            RESOURCE_ATTRIBUTES => {
                let attribute = reader.message()?;
                if read_key(attribute)? == b"service.name" && service.is_none() {
                    *service = Some(match read_value(attribute)? {
                        ValueView::Str(name) => name,
                        _ => b"",
                    });
                }
            }
            RESOURCE_DROPPED => drop(reader.varint()?),
            key => reader.other(key, &[1, 2])?,
        }
    }
    Ok(())
}

/// The key and the value of an attribute's message, a `KeyValue`.
///
/// # Errors
/// When it is malformed.
pub fn read_attribute(attribute: &[u8]) -> Result<(&[u8], ValueView<'_>), Error> {
    let reader = Reader::new(attribute);
    Ok((read_key(reader)?, read_value(reader)?))
}

/// The key of a `KeyValue`, whose value is not looked into.
fn read_key<'a>(mut reader: Reader<'a>) -> Result<&'a [u8], Error> {
    let mut name = &b""[..];
    while !reader.is_done() {
        match reader.key()? {
            KEY => name = reader.delimited()?,
            VALUE => drop(reader.delimited()?),
            key => reader.other(key, &[1, 2])?,
        }
    }
    Ok(name)
}

/// The value of a `KeyValue`. It may come in parts, of which the last that says anything counts.
fn read_value<'a>(mut reader: Reader<'a>) -> Result<ValueView<'a>, Error> {
    let mut value = ValueView::Empty;
    while !reader.is_done() {
        match reader.key()? {
            VALUE => read_any_value(reader.message()?, &mut value)?,
            key => reader.skip(key)?,
        }
    }
    Ok(value)
}

fn read_any_value<'a>(mut reader: Reader<'a>, value: &mut ValueView<'a>) -> Result<(), Error> {
    const STRING: Key = delimited(1);
    const BOOL: Key = varint(2);
    const INT: Key = varint(3);
    const DOUBLE: Key = fixed64(4);
    const ARRAY: Key = delimited(5);
    const KVLIST: Key = delimited(6);
    const BYTES: Key = delimited(7);
    while !reader.is_done() {
        *value = match reader.key()? {
            STRING => ValueView::Str(reader.delimited()?),
            BOOL => ValueView::Bool(reader.varint()? != 0),
            INT => ValueView::Int(reader.varint()?.cast_signed()),
            DOUBLE => ValueView::Double(f64::from_bits(reader.fixed64()?)),
            ARRAY => ValueView::Array(reader.delimited()?),
            KVLIST => ValueView::KvList(reader.delimited()?),
            BYTES => ValueView::Bytes(reader.delimited()?),
            key => {
                reader.other(key, &[1, 2, 3, 4, 5, 6, 7])?;
                continue;
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_as_json_prints_them() {
        let check = |value: ValueView<'_>, expected: Option<&str>| {
            let mut out = String::new();
            assert_eq!(value.to_text(&mut out).then_some(out.as_str()), expected, "{value:?}");
        };
        check(ValueView::Str(b"a\xFFb"), Some("a\u{FFFD}b"));
        check(ValueView::Bool(true), Some("true"));
        check(ValueView::Int(i64::MIN), Some("-9223372036854775808"));
        for (value, text) in [
            (1.0, "1"),
            (-0.0, "0"),
            (0.1, "0.1"),
            (1e-6, "0.000001"),
            (1.5e-7, "1.5e-7"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (-2.5e300, "-2.5e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            check(ValueView::Double(value), Some(text));
        }
        for none in [ValueView::Empty, ValueView::Bytes(b"x"), ValueView::Array(b""), ValueView::KvList(b"")]
        {
            check(none, None);
        }
    }
}
