//! Any text: what is accepted becomes protobuf that prost accepts too, and comes back the same through JSON again.
#![no_main]

use ingest_otlp::messages::TracesData;
use ingest_otlp::{json_to_protobuf, protobuf_to_json};
use prost::Message;

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    let Ok(protobuf) = json_to_protobuf(json) else { return };
    let decoded = TracesData::decode(&protobuf[..]).expect("what comes from JSON is valid");
    let text = protobuf_to_json(&protobuf).expect("and readable here").to_string();
    let again = json_to_protobuf(text.as_bytes()).expect("and JSON again");
    let again = TracesData::decode(&again[..]).expect("and valid again");
    // Compared as text, in which all NaNs are equal.
    assert_eq!(format!("{decoded:?}"), format!("{again:?}"));
});
