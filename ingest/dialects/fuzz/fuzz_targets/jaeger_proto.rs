//! Any bytes: accepted exactly where prost accepts them, with the same ids, names and times.
#![no_main]

#[allow(dead_code, reason = "the judge also knows the dialects of the other targets")]
#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    oracle::check_jaeger(body);
});
