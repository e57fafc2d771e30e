//! Any bytes under any encoding: never more than the limit, never a panic, and the same bytes twice, whatever state the
//! bytes before left behind. What is wrong with damaged ones may be said differently: zstd's decoder keeps its memory, and
//! how much there is of it decides what it stumbles over first.
#![no_main]

use bytes::Bytes;
use ingest_otlp::decompress;
use store_model::Encoding;

const LIMIT_BYTES: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let encoding = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd][usize::from(choice % 3)];
    let body = Bytes::copy_from_slice(body);
    let first = decompress(encoding, &body, LIMIT_BYTES);
    if let Ok(bytes) = &first {
        assert!(bytes.len() <= LIMIT_BYTES);
    }
    let second = decompress(encoding, &body, LIMIT_BYTES);
    assert_eq!(first.ok(), second.ok());
});
