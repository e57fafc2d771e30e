//! Any bytes behind one that chooses the protocol: what is accepted becomes OTLP that prost and the walk read alike.
#![no_main]

use ingest_dialects::Dialect;

#[allow(dead_code, reason = "the judge also knows the dialects of the other targets")]
#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((protocol, body)) = bytes.split_first() else { return };
    let dialect = if protocol % 2 == 0 { Dialect::JaegerThriftBinary } else { Dialect::JaegerThriftCompact };
    drop(oracle::check(dialect, body));
});
