//! The gRPC calls that are made with every client, and what each must hear. Starts no appliance.

use std::fs;
use std::path::Path;

use ingest_otlp::messages::ExportTraceServiceResponse;
use prost::Message as _;
use serde_json::{Value, json};

use crate::spans::{Dice, attribute, request, trace};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";

/// The largest request of the appliance that is called: small, so that too much is sent quickly.
pub(crate) const REQUEST_BYTES_MAX: usize = 1 << 20;

/// One call and its answer.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) gzip: bool,
    pub(crate) tenant: &'static str,
    code: i64,
    /// What is among the details, and nothing else is.
    details: &'static [&'static str],
    /// Spans refused of a request that is taken.
    rejected: i64,
}

impl Case {
    fn new(name: &'static str, body: Vec<u8>) -> Self {
        Self { name, path: EXPORT, body, gzip: false, tenant: "", code: 0, details: &[], rejected: 0 }
    }

    fn refused(self, code: i64, details: &'static [&'static str]) -> Self {
        Self { code, details, ..self }
    }
}

/// Every row of the answer table but rate limits, which nothing in this version sets. The appliance shall know one tenant
/// at most, so that the second is asked to come back.
pub(crate) fn cases() -> Vec<Case> {
    let mut dice = Dice(4_317);
    let whole = |dice: &mut Dice| request("conformance", trace(dice.trace_id(), 20));
    let good = whole(&mut dice).encode_to_vec();
    let mut one_bad = whole(&mut dice);
    one_bad.resource_spans[0].scope_spans[0].spans[3].trace_id.truncate(5);
    let mut large = whole(&mut dice);
    let padding = "x".repeat(REQUEST_BYTES_MAX + REQUEST_BYTES_MAX / 2);
    large.resource_spans[0].scope_spans[0].spans[0].attributes.push(attribute("padding", &padding));
    let large = large.encode_to_vec();
    vec![
        Case::new("taken", good.clone()),
        Case { gzip: true, ..Case::new("taken with gzip", good.clone()) },
        Case::new("nothing in it", Vec::new()),
        Case { rejected: 1, ..Case::new("one span without an id", one_bad.encode_to_vec()) },
        Case { gzip: true, rejected: 1, ..Case::new("the same with gzip", one_bad.encode_to_vec()) },
        Case::new("no protobuf", good[..good.len() - 1].to_vec()).refused(3, &[BAD_REQUEST]),
        Case { tenant: "no such/name", ..Case::new("a tenant's name against the rule", good.clone()) }
            .refused(3, &[BAD_REQUEST]),
        Case { tenant: "second", ..Case::new("one tenant too many", good.clone()) }
            .refused(14, &[RETRY_INFO]),
        Case::new("too large", large.clone()).refused(8, &[]),
        Case { gzip: true, ..Case::new("too large once unpacked", large) }.refused(8, &[]),
        Case {
            path: "/opentelemetry.proto.collector.trace.v1.TraceService/Import",
            ..Case::new("a method nobody has", good.clone())
        }
        .refused(12, &[]),
        Case { path: "/no.such.Service/Export", ..Case::new("a service nobody has", good.clone()) }
            .refused(12, &[]),
        Case::new("taken after all that", good),
    ]
}

/// For an appliance whose journal has no room.
pub(crate) fn overload() -> Vec<Case> {
    let mut dice = Dice(4_318);
    let body = request("conformance", trace(dice.trace_id(), 20)).encode_to_vec();
    ["overload", "overload again"].map(|name| Case::new(name, body.clone()).refused(14, &[RETRY_INFO])).into()
}

/// The calls as the clients read them, bodies beside.
pub(crate) fn write(cases: &[Case], folder: &Path) {
    let mut lines = String::new();
    for (number, Case { name, path, body, gzip, tenant, .. }) in cases.iter().enumerate() {
        let file = folder.join(number.to_string());
        fs::write(&file, body).unwrap();
        let line = json!({ "name": name, "path": path, "body": file, "gzip": gzip, "tenant": tenant });
        lines.push_str(&format!("{line}\n"));
    }
    fs::write(folder.join("cases"), lines).unwrap();
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a client heard to each of `cases` is what it should.
pub(crate) fn check(who: &str, cases: &[Case], heard: &[Value]) {
    assert_eq!(heard.len(), cases.len(), "{who} heard {heard:?}");
    for (case, heard) in cases.iter().zip(heard) {
        let Case { name, code, details, rejected, .. } = case;
        let what = format!("{who}: {name}: {heard}");
        let text = |key: &str| heard[key].as_str().unwrap_or_default();
        assert_eq!((heard["name"].as_str(), heard["code"].as_i64()), (Some(*name), Some(*code)), "{what}");
        if *code == 0 {
            let answer = ExportTraceServiceResponse::decode(&*from_hex(text("answer"))).unwrap();
            let partial = answer.partial_success;
            assert_eq!(partial.as_ref().map_or(0, |partial| partial.rejected_spans), *rejected, "{what}");
            assert_eq!(
                partial.is_some_and(|partial| !partial.error_message.is_empty()),
                *rejected > 0,
                "{what}"
            );
            continue;
        }
        assert!(!text("message").is_empty(), "{what}");
        let status = Status::decode(&*from_hex(text("details"))).unwrap();
        let types: Vec<&str> = status.details.iter().map(|any| &*any.type_url).collect();
        assert_eq!(types, *details, "{what}");
        if status != Status::default() {
            assert_eq!((i64::from(status.code), &*status.message), (*code, text("message")), "{what}");
        }
    }
}
