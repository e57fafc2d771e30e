//! OTLP's trace messages as tables, which the transcoder follows in both directions. Holds no data.

use crate::wire::{Key, delimited, fixed32, fixed64, varint};

/// One message type.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) fields: &'static [Field],
    /// Whether at most one of the fields is set, the last one.
    pub(crate) oneof: bool,
}

/// One field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    /// `lowerCamelCase`, as OTLP/JSON writes it.
    pub(crate) name: &'static str,
    /// As the `.proto` file names it; readers accept it too.
    pub(crate) original_name: &'static str,
    pub(crate) number: u32,
    pub(crate) kind: Kind,
}

/// What a field holds, and so how it is written on either side.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Message(&'static Schema),
    Repeated(&'static Schema),
    Text,
    /// Trace and span ids: bytes that are hexadecimal in JSON.
    Id,
    /// Other bytes: base64 in JSON.
    Bytes,
    Bool,
    Int64,
    Uint32,
    Fixed32,
    Fixed64,
    Double,
    /// A number in JSON; the names, from 0 on, are accepted when read.
    Enum(&'static [&'static str]),
}

impl Field {
    pub(crate) fn key(&self) -> Key {
        match self.kind {
            Kind::Message(_) | Kind::Repeated(_) | Kind::Text | Kind::Id | Kind::Bytes => {
                delimited(self.number)
            }
            Kind::Bool | Kind::Int64 | Kind::Uint32 | Kind::Enum(_) => varint(self.number),
            Kind::Fixed64 | Kind::Double => fixed64(self.number),
            Kind::Fixed32 => fixed32(self.number),
        }
    }
}

impl Schema {
    pub(crate) fn by_name(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name || field.original_name == name)
    }

    pub(crate) fn by_number(&self, number: u32) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.number == number)
    }
}

const fn field(number: u32, name: &'static str, original_name: &'static str, kind: Kind) -> Field {
    Field { name, original_name, number, kind }
}

const fn message(fields: &'static [Field]) -> Schema {
    Schema { fields, oneof: false }
}

const fn attributes(number: u32) -> Field {
    field(number, "attributes", "attributes", Kind::Repeated(&KEY_VALUE))
}

const fn dropped_attributes(number: u32) -> Field {
    field(number, "droppedAttributesCount", "dropped_attributes_count", Kind::Uint32)
}

const fn schema_url(number: u32) -> Field {
    field(number, "schemaUrl", "schema_url", Kind::Text)
}

/// `TracesData` and `ExportTraceServiceRequest`.
pub(crate) static TRACES_DATA: Schema =
    message(&[field(1, "resourceSpans", "resource_spans", Kind::Repeated(&RESOURCE_SPANS))]);

static RESOURCE_SPANS: Schema = message(&[
    field(1, "resource", "resource", Kind::Message(&RESOURCE)),
    field(2, "scopeSpans", "scope_spans", Kind::Repeated(&SCOPE_SPANS)),
    schema_url(3),
]);

static RESOURCE: Schema = message(&[attributes(1), dropped_attributes(2)]);

static SCOPE_SPANS: Schema = message(&[
    field(1, "scope", "scope", Kind::Message(&SCOPE)),
    field(2, "spans", "spans", Kind::Repeated(&SPAN)),
    schema_url(3),
]);

static SCOPE: Schema = message(&[
    field(1, "name", "name", Kind::Text),
    field(2, "version", "version", Kind::Text),
    attributes(3),
    dropped_attributes(4),
]);

static SPAN: Schema = message(&[
    field(1, "traceId", "trace_id", Kind::Id),
    field(2, "spanId", "span_id", Kind::Id),
    field(3, "traceState", "trace_state", Kind::Text),
    field(4, "parentSpanId", "parent_span_id", Kind::Id),
    field(5, "name", "name", Kind::Text),
    field(6, "kind", "kind", Kind::Enum(SPAN_KINDS)),
    field(7, "startTimeUnixNano", "start_time_unix_nano", Kind::Fixed64),
    field(8, "endTimeUnixNano", "end_time_unix_nano", Kind::Fixed64),
    attributes(9),
    dropped_attributes(10),
    field(11, "events", "events", Kind::Repeated(&EVENT)),
    field(12, "droppedEventsCount", "dropped_events_count", Kind::Uint32),
    field(13, "links", "links", Kind::Repeated(&LINK)),
    field(14, "droppedLinksCount", "dropped_links_count", Kind::Uint32),
    field(15, "status", "status", Kind::Message(&STATUS)),
    field(16, "flags", "flags", Kind::Fixed32),
]);

const SPAN_KINDS: &[&str] = &[
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];

static EVENT: Schema = message(&[
    field(1, "timeUnixNano", "time_unix_nano", Kind::Fixed64),
    field(2, "name", "name", Kind::Text),
    attributes(3),
    dropped_attributes(4),
]);

static LINK: Schema = message(&[
    field(1, "traceId", "trace_id", Kind::Id),
    field(2, "spanId", "span_id", Kind::Id),
    field(3, "traceState", "trace_state", Kind::Text),
    attributes(4),
    dropped_attributes(5),
    field(6, "flags", "flags", Kind::Fixed32),
]);

static STATUS: Schema = message(&[
    field(2, "message", "message", Kind::Text),
    field(3, "code", "code", Kind::Enum(&["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"])),
]);

static KEY_VALUE: Schema =
    message(&[field(1, "key", "key", Kind::Text), field(2, "value", "value", Kind::Message(&ANY_VALUE))]);

static ANY_VALUE: Schema = Schema {
    oneof: true,
    fields: &[
        field(1, "stringValue", "string_value", Kind::Text),
        field(2, "boolValue", "bool_value", Kind::Bool),
        field(3, "intValue", "int_value", Kind::Int64),
        field(4, "doubleValue", "double_value", Kind::Double),
        field(5, "arrayValue", "array_value", Kind::Message(&ARRAY_VALUE)),
        field(6, "kvlistValue", "kvlist_value", Kind::Message(&KEY_VALUE_LIST)),
        field(7, "bytesValue", "bytes_value", Kind::Bytes),
    ],
};

static ARRAY_VALUE: Schema = message(&[field(1, "values", "values", Kind::Repeated(&ANY_VALUE))]);

static KEY_VALUE_LIST: Schema = message(&[field(1, "values", "values", Kind::Repeated(&KEY_VALUE))]);
