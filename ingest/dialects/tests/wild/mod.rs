//! Batches as nobody would write them by hand, drawn from a seed, each in every wire form of its protocol.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::oracle::{jaeger, zipkin};
use prost::Message;
use serde_json::json;

/// A stream of numbers that is the same for the same seed.
pub(crate) struct Wild(u64);

impl Wild {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of splitmix64.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    pub(crate) fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap()
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn pick(&mut self, from: &[&str]) -> Vec<u8> {
        from[self.index(from.len())].as_bytes().to_vec()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.number().to_le_bytes()[0]).collect()
    }

    fn many<T>(&mut self, most: u64, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

const KEYS: [&str; 19] = [
    "http.method",
    "error",
    "otel.status_code",
    "otel.status_description",
    "otel.library.name",
    "otel.scope.name",
    "otel.scope.version",
    "w3c.tracestate",
    "span.kind",
    "http.status_code",
    "service.name",
    "service.version",
    "host.name",
    "hostname",
    "peer.service",
    "network.peer.address",
    "event",
    "message",
    "",
];
const TEXTS: [&str; 12] = [
    "",
    "true",
    "false",
    "ERROR",
    "STATUS_CODE_OK",
    "UNSET",
    "server",
    "internal",
    "500",
    "Grüße 🌍",
    "a\"b\\\n",
    "ot=th:8",
];
const SERVICES: [&str; 4] = ["shop", "payment", "", "Käse"];
const ANNOTATIONS: [&str; 5] =
    ["ws", "", r#"{"ev": {"n": 2, "f": 0.5}}"#, r#""ev": {"k": "v"}"#, "{\"broken\": "];

fn zipkin_id(wild: &mut Wild, lengths: &[usize]) -> Vec<u8> {
    if wild.one_in(30) {
        return wild.bytes(3);
    }
    let length = lengths[wild.index(lengths.len())];
    if wild.one_in(30) { vec![0; length] } else { wild.bytes(length) }
}

fn zipkin_endpoint(wild: &mut Wild) -> zipkin::Endpoint {
    zipkin::Endpoint {
        service_name: wild.pick(&SERVICES),
        ipv4: if wild.one_in(2) { wild.bytes(4) } else { Vec::new() },
        ipv6: if wild.one_in(3) { wild.bytes(16) } else { Vec::new() },
        port: i32::try_from(wild.below(3) * 1_000).unwrap(),
    }
}

/// A list of Zipkin spans.
pub(crate) fn zipkin_list(seed: u64) -> zipkin::ListOfSpans {
    let mut wild = Wild::new(seed);
    let spans = wild.many(6, |wild| zipkin::Span {
        trace_id: zipkin_id(wild, &[8, 16, 16]),
        parent_id: zipkin_id(wild, &[0, 8, 8]),
        id: zipkin_id(wild, &[8]),
        kind: i32::try_from(wild.below(5)).unwrap(),
        name: wild.pick(&TEXTS),
        timestamp: if wild.one_in(5) { 0 } else { wild.below(1 << 51) },
        duration: if wild.one_in(20) { u64::MAX } else { wild.below(100_000) },
        local_endpoint: wild.one_in(2).then(|| zipkin_endpoint(wild)),
        remote_endpoint: wild.one_in(2).then(|| zipkin_endpoint(wild)),
        annotations: wild.many(3, |wild| zipkin::Annotation {
            timestamp: wild.below(1 << 51),
            value: wild.pick(&ANNOTATIONS),
        }),
        tags: wild.many(8, |wild| zipkin::Tag { key: wild.pick(&KEYS), value: wild.pick(&TEXTS) }),
        debug: wild.one_in(2),
        shared: wild.one_in(5),
    });
    zipkin::ListOfSpans { spans }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The same list as JSON, written by hand because tags keep their order and their repetitions.
pub(crate) fn zipkin_json(list: &zipkin::ListOfSpans) -> String {
    let spans: Vec<String> = list.spans.iter().map(zipkin_json_span).collect();
    format!("[{}]", spans.join(","))
}

fn zipkin_json_span(span: &zipkin::Span) -> String {
    let id = |bytes: &[u8]| {
        let usable = matches!(bytes.len(), 0 | 8 | 16);
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        json!(if usable { digits } else { "no id".to_owned() })
    };
    let kind = ["", "CLIENT", "SERVER", "PRODUCER", "CONSUMER"][usize::try_from(span.kind).unwrap()];
    let endpoint = |endpoint: &Option<zipkin::Endpoint>| match endpoint {
        None => json!(null),
        Some(endpoint) => json!({
            "serviceName": text(&endpoint.service_name),
            "ipv4": <[u8; 4]>::try_from(&endpoint.ipv4[..]).ok().map(|address| Ipv4Addr::from(address).to_string()),
            "ipv6": <[u8; 16]>::try_from(&endpoint.ipv6[..]).ok().map(|address| Ipv6Addr::from(address).to_string()),
            "port": endpoint.port,
            "unknown": [{}],
        }),
    };
    let annotations = span.annotations.iter().map(|annotation| {
        json!({ "timestamp": annotation.timestamp, "value": text(&annotation.value) }).to_string()
    });
    let tags = span.tags.iter().map(|tag| format!("{}:{}", json!(text(&tag.key)), json!(text(&tag.value))));
    let fields = [
        ("tags", format!("{{{}}}", tags.collect::<Vec<_>>().join(","))),
        ("annotations", format!("[{}]", annotations.collect::<Vec<_>>().join(","))),
        ("debug", json!(span.debug).to_string()),
        ("shared", json!(span.shared).to_string()),
        ("remoteEndpoint", endpoint(&span.remote_endpoint).to_string()),
        ("localEndpoint", endpoint(&span.local_endpoint).to_string()),
        ("duration", json!(span.duration).to_string()),
        ("timestamp", json!(span.timestamp).to_string()),
        ("unknown", "{\"deep\":[[[1]]]}".to_owned()),
        ("name", json!(text(&span.name)).to_string()),
        ("kind", json!(kind).to_string()),
        ("id", id(&span.id).to_string()),
        ("parentId", id(&span.parent_id).to_string()),
        ("traceId", id(&span.trace_id).to_string()),
    ];
    let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn jaeger_tag(wild: &mut Wild) -> jaeger::KeyValue {
    let mut tag = jaeger::KeyValue { key: wild.pick(&KEYS), ..jaeger::KeyValue::default() };
    tag.v_type = i32::try_from(wild.below(5)).unwrap();
    match tag.v_type {
        0 => tag.v_str = wild.pick(&TEXTS),
        1 => tag.v_bool = wild.one_in(2),
        2 => tag.v_int64 = wild.number().cast_signed() >> wild.below(64),
        3 => tag.v_float64 = f64::from_bits(wild.number()),
        _ => tag.v_binary = wild.bytes(5),
    }
    tag
}

fn micros(wild: &mut Wild) -> Option<jaeger::Time> {
    let nanos = i32::try_from(wild.below(1_000_000) * 1_000).unwrap();
    Some(jaeger::Time { seconds: wild.below(2_000_000_000).cast_signed(), nanos })
}

/// A Jaeger batch with nothing in it that Thrift cannot say.
pub(crate) fn jaeger_batch(seed: u64) -> jaeger::Batch {
    let mut wild = Wild::new(seed);
    let traces = [wild.bytes(16), [vec![0; 8], wild.bytes(8)].concat(), vec![0; 16]];
    let ids = [wild.bytes(8), wild.bytes(8), vec![0; 8]];
    let spans = wild.many(6, |wild| jaeger::Span {
        trace_id: traces[wild.index(3)].clone(),
        span_id: ids[wild.index(3)].clone(),
        operation_name: wild.pick(&TEXTS),
        references: wild.many(3, |wild| jaeger::SpanRef {
            trace_id: traces[wild.index(3)].clone(),
            span_id: ids[wild.index(3)].clone(),
            ref_type: i32::try_from(wild.below(2)).unwrap(),
        }),
        flags: u32::try_from(wild.below(4)).unwrap(),
        start_time: micros(wild),
        duration: micros(wild),
        tags: wild.many(8, jaeger_tag),
        logs: wild.many(3, |wild| jaeger::Log { timestamp: micros(wild), fields: wild.many(4, jaeger_tag) }),
        ..jaeger::Span::default()
    });
    let process = jaeger::Process { service_name: wild.pick(&SERVICES), tags: wild.many(4, jaeger_tag) };
    jaeger::Batch { spans, process: Some(process) }
}

/// The batch as a request of the gRPC service.
pub(crate) fn jaeger_proto(batch: &jaeger::Batch) -> Vec<u8> {
    jaeger::PostSpansRequest { batch: Some(batch.clone()) }.encode_to_vec()
}

/// The two protocols of Thrift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Binary,
    Compact,
}

/// Writes Thrift as generated code does.
struct Thrift {
    protocol: Protocol,
    out: Vec<u8>,
    last_id: u8,
}

/// Types, in the numbers of the binary and of the compact protocol.
const DOUBLE: (u8, u8) = (4, 7);
const I32: (u8, u8) = (8, 5);
const I64: (u8, u8) = (10, 6);
const BYTES: (u8, u8) = (11, 8);
const STRUCT: (u8, u8) = (12, 12);
const LIST: (u8, u8) = (15, 9);

impl Thrift {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.out.push(value.to_le_bytes()[0]);
    }

    fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    fn header(&mut self, id: u8, (binary, compact): (u8, u8)) {
        match self.protocol {
            Protocol::Binary => self.out.extend([binary, 0, id]),
            Protocol::Compact => self.out.push((id - self.last_id) << 4 | compact),
        }
        self.last_id = id;
    }

    fn i32(&mut self, id: u8, value: i32) {
        self.header(id, I32);
        match self.protocol {
            Protocol::Binary => self.out.extend(value.to_be_bytes()),
            Protocol::Compact => self.zigzag(i64::from(value)),
        }
    }

    fn i64(&mut self, id: u8, value: i64) {
        self.header(id, I64);
        match self.protocol {
            Protocol::Binary => self.out.extend(value.to_be_bytes()),
            Protocol::Compact => self.zigzag(value),
        }
    }

    fn double(&mut self, id: u8, value: f64) {
        self.header(id, DOUBLE);
        match self.protocol {
            Protocol::Binary => self.out.extend(value.to_be_bytes()),
            Protocol::Compact => self.out.extend(value.to_le_bytes()),
        }
    }

    fn bool(&mut self, id: u8, value: bool) {
        self.header(id, (2, if value { 1 } else { 2 }));
        if self.protocol == Protocol::Binary {
            self.out.push(u8::from(value));
        }
    }

    fn raw_bytes(&mut self, value: &[u8]) {
        match self.protocol {
            Protocol::Binary => self.out.extend(u32::try_from(value.len()).unwrap().to_be_bytes()),
            Protocol::Compact => self.varint(value.len() as u64),
        }
        self.out.extend_from_slice(value);
    }

    fn bytes(&mut self, id: u8, value: &[u8]) {
        self.header(id, BYTES);
        self.raw_bytes(value);
    }

    fn fields(&mut self, write: impl FnOnce(&mut Self)) {
        let outer = std::mem::take(&mut self.last_id);
        write(self);
        self.out.push(0);
        self.last_id = outer;
    }

    fn structs<T>(&mut self, id: u8, members: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.header(id, LIST);
        let count = u8::try_from(members.len()).unwrap();
        match self.protocol {
            Protocol::Binary => self.out.extend([STRUCT.0, 0, 0, 0, count]),
            Protocol::Compact if count < 15 => self.out.push(count << 4 | STRUCT.1),
            Protocol::Compact => {
                self.out.push(0xF0 | STRUCT.1);
                self.varint(u64::from(count));
            }
        }
        for member in members {
            self.fields(|thrift| write(thrift, member));
        }
    }

    fn tag(&mut self, tag: &jaeger::KeyValue) {
        self.bytes(1, &tag.key);
        self.i32(2, [0, 2, 3, 1, 4][usize::try_from(tag.v_type).unwrap()]);
        match tag.v_type {
            0 => self.bytes(3, &tag.v_str),
            1 => self.bool(5, tag.v_bool),
            2 => self.i64(6, tag.v_int64),
            3 => self.double(4, tag.v_float64),
            _ => self.bytes(7, &tag.v_binary),
        }
    }

    fn span(&mut self, span: &jaeger::Span) {
        let half = |bytes: &[u8], at: usize| i64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let micros = |time: &Option<jaeger::Time>| {
            let time = time.clone().unwrap_or_default();
            time.seconds * 1_000_000 + i64::from(time.nanos / 1_000)
        };
        self.i64(1, half(&span.trace_id, 8));
        self.i64(2, half(&span.trace_id, 0));
        self.i64(3, half(&span.span_id, 0));
        self.i64(4, 0);
        self.bytes(5, &span.operation_name);
        self.structs(6, &span.references, |thrift, reference| {
            thrift.i32(1, reference.ref_type);
            thrift.i64(2, half(&reference.trace_id, 8));
            thrift.i64(3, half(&reference.trace_id, 0));
            thrift.i64(4, half(&reference.span_id, 0));
        });
        self.i32(7, span.flags.cast_signed());
        self.i64(8, micros(&span.start_time));
        self.i64(9, micros(&span.duration));
        self.structs(10, &span.tags, Self::tag);
        self.structs(11, &span.logs, |thrift, log| {
            thrift.i64(1, micros(&log.timestamp));
            thrift.structs(2, &log.fields, Self::tag);
        });
        self.bool(12, true);
    }

    fn batch(&mut self, batch: &jaeger::Batch, process_first: bool) {
        let process = batch.process.clone().unwrap_or_default();
        let write_process = |thrift: &mut Self| {
            thrift.header(1, STRUCT);
            thrift.fields(|thrift| {
                thrift.bytes(1, &process.service_name);
                thrift.structs(2, &process.tags, Self::tag);
            });
        };
        if process_first {
            write_process(self);
        }
        self.structs(2, &batch.spans, Self::span);
        if !process_first {
            // The id goes down, which takes the long form of a header.
            if self.protocol == Protocol::Compact {
                self.out.extend([STRUCT.1, 2]);
                self.fields(|thrift| {
                    thrift.bytes(1, &process.service_name);
                    thrift.structs(2, &process.tags, Self::tag);
                });
            } else {
                write_process(self);
            }
        }
    }
}

/// What stands around a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Nothing: the body of an HTTP request.
    None,
    /// `emitBatch(1: Batch)`, a message with its version in front, or in the compact protocol.
    EmitBatch,
    /// The same in the older form of the binary protocol.
    OldEmitBatch,
    /// `submitBatches(1: list<Batch>)`.
    SubmitBatches,
    /// Nothing, and the process behind the spans.
    ProcessLast,
}

/// The batch in Thrift.
pub(crate) fn jaeger_thrift(batch: &jaeger::Batch, protocol: Protocol, call: Call) -> Vec<u8> {
    let mut thrift = Thrift { protocol, out: Vec::new(), last_id: 0 };
    let name: &[u8] = if call == Call::SubmitBatches { b"submitBatches" } else { b"emitBatch" };
    if matches!(call, Call::None | Call::ProcessLast) {
        thrift.fields(|thrift| thrift.batch(batch, call == Call::None));
        return thrift.out;
    }
    match (protocol, call) {
        (Protocol::Binary, Call::OldEmitBatch) => {
            thrift.raw_bytes(name);
            thrift.out.extend([1, 0, 0, 0, 7]);
        }
        (Protocol::Binary, _) => {
            thrift.out.extend([0x80, 0x01, 0x00, 0x04]);
            thrift.raw_bytes(name);
            thrift.out.extend([0, 0, 0, 7]);
        }
        (Protocol::Compact, _) => {
            thrift.out.extend([0x82, 0x81, 7]);
            thrift.raw_bytes(name);
        }
    }
    thrift.fields(|thrift| {
        if call == Call::SubmitBatches {
            thrift.structs(1, std::slice::from_ref(batch), |thrift, batch| thrift.batch(batch, true));
        } else {
            thrift.header(1, STRUCT);
            thrift.fields(|thrift| thrift.batch(batch, true));
        }
    });
    thrift.out
}
