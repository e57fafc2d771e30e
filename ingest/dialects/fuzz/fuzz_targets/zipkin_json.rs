//! Any text: what is accepted becomes OTLP that prost and the walk read alike, and within its limit.
#![no_main]

use ingest_dialects::Dialect;

#[allow(dead_code, reason = "the judge also knows the dialects of the other targets")]
#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|body: &[u8]| drop(oracle::check(Dialect::ZipkinJson, body)));
