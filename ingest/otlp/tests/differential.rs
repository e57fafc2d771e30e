//! Everything this crate reads, against prost on the same bytes.

#[expect(clippy::unwrap_used, reason = "the judge panics at the first difference")]
mod oracle;
#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
mod wild;

use ingest_otlp::messages::TracesData;
use ingest_otlp::{json_to_protobuf, protobuf_to_json};
use proptest::prelude::*;
use prost::Message;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn wild_bodies_are_read_as_prost_reads_them(seed: u64) {
        oracle::check(&wild::body(seed));
    }

    #[test]
    fn random_bytes_are_read_as_prost_reads_them(bytes: Vec<u8>) {
        oracle::check(&bytes);
    }
}

#[test]
fn most_wild_bodies_are_acceptable() {
    let accepted = (0..1_000).filter(|&seed| oracle::check(&wild::body(seed))).count();
    let full = (0..1_000).filter(|&seed| TracesData::decode(&wild::body(seed)[..]).is_ok()).count();
    assert!((600..950).contains(&accepted), "{accepted}");
    assert!((250..900).contains(&full), "{full}");
}

#[test]
fn every_cut_and_every_flipped_bit_is_judged_alike() {
    let body = (1..).map(wild::body).find(|body| body.len() > 400 && oracle::check(body)).unwrap();
    for cut in 0..body.len() {
        oracle::check(&body[..cut]);
    }
    for bit in 0..body.len().min(700) * 8 {
        let mut flipped = body.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        oracle::check(&flipped);
    }
}

#[test]
fn depth_is_counted_as_prost_counts_it() {
    for levels in 90..105 {
        let groups =
            [vec![0x9B; levels], vec![0x9C; levels]].map(|keys| keys.into_iter().flat_map(|key| [key, 0x06]));
        let mut body: Vec<u8> = groups.into_iter().flatten().collect();
        // Around an unknown group: the body, a ResourceSpans, a Resource or ScopeSpans, an attribute or a span.
        for keys in [&[0x0A, 0x0A, 0x0A][..], &[0x12, 0x12, 0x0A], &[0x7A, 0x12, 0x12, 0x0A]] {
            let mut nested = body.clone();
            for &key in keys {
                oracle::check(&nested);
                let mut outer = vec![key];
                prost::encode_length_delimiter(nested.len(), &mut outer).unwrap();
                nested = [outer, nested].concat();
            }
            oracle::check(&nested);
        }
        body.push(0);
        oracle::check(&body);
    }
}

proptest! {
    #[test]
    fn json_in_any_shape_is_read_or_refused(seed: u64) {
        let dice = &mut wild::Dice::new(seed);
        let Ok(json) = protobuf_to_json(&wild::body(seed)) else { return Ok(()) };
        let mut text = json.to_string().into_bytes();
        wild::damage(&mut text, dice);
        if let Ok(protobuf) = json_to_protobuf(&text) {
            prop_assert!(TracesData::decode(&protobuf[..]).is_ok());
        }
    }
}
