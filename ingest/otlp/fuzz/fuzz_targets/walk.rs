//! Any bytes: everything the crate reads in them must be what prost reads in them.
#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    oracle::check(body);
});
