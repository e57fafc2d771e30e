//! RFC 7541, appendix C, and what the examples there leave out.

use proptest::prelude::*;

use super::*;

type Field = (String, String);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Cut> {
    let mut fields = Vec::new();
    decoder.decode(block, |_, name, value| {
        fields
            .push((String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned()));
        Ok(())
    })?;
    Ok(fields)
}

fn check(decoder: &mut Decoder, hex: &str, expected: &[(&str, &str)], table_bytes: usize) {
    let expected: Vec<Field> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(decoded(decoder, &bytes(hex)), Ok(expected));
    assert_eq!(decoder.table.size(), table_bytes);
}

#[test]
fn integers_are_those_of_appendix_c1() {
    for (hex, prefix_bits, expected) in [("0a", 5, 10), ("1f9a0a", 5, 1337), ("2a", 8, 42)] {
        let input = bytes(hex);
        let mut rest = &input[..];
        assert_eq!(integer(&mut rest, prefix_bits), Ok(expected));
        assert!(rest.is_empty());
    }
    for hex in ["", "1f", "1f80", "1fffffffff0f", "1f808080808000"] {
        assert_eq!(integer(&mut &bytes(hex)[..], 5), Err(DecodeError), "{hex}");
    }
}

#[test]
fn literals_and_indices_are_those_of_appendix_c2() {
    let d = Decoder::new(4096);
    let new = || Decoder::new(d.capacity_max);
    check(
        &mut new(),
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        &[("custom-key", "custom-header")],
        55,
    );
    check(&mut new(), "040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], 0);
    check(&mut new(), "1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")], 0);
    check(&mut new(), "82", &[(":method", "GET")], 0);
}

const REQUEST_1: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const REQUEST_2: [(&str, &str); 5] =
    [REQUEST_1[0], REQUEST_1[1], REQUEST_1[2], REQUEST_1[3], ("cache-control", "no-cache")];
const REQUEST_3: [(&str, &str); 5] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];

#[test]
fn requests_are_those_of_appendix_c3() {
    let d = &mut Decoder::new(4096);
    check(d, "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", &REQUEST_1, 57);
    check(d, "8286 84be 5808 6e6f 2d63 6163 6865", &REQUEST_2, 110);
    check(d, "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", &REQUEST_3, 164);
}

#[test]
fn coded_requests_are_those_of_appendix_c4() {
    let d = &mut Decoder::new(4096);
    check(d, "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", &REQUEST_1, 57);
    check(d, "8286 84be 5886 a8eb 1064 9cbf", &REQUEST_2, 110);
    check(d, "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", &REQUEST_3, 164);
}

const DATE: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
const LOCATION: (&str, &str) = ("location", "https://www.example.com");
const RESPONSE_1: [(&str, &str); 4] = [(":status", "302"), ("cache-control", "private"), DATE, LOCATION];
const RESPONSE_2: [(&str, &str); 4] = [(":status", "307"), RESPONSE_1[1], DATE, LOCATION];
const RESPONSE_3: [(&str, &str); 6] = [
    (":status", "200"),
    RESPONSE_1[1],
    ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
    LOCATION,
    ("content-encoding", "gzip"),
    ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
];

#[test]
fn responses_that_evict_are_those_of_appendix_c5() {
    let d = &mut Decoder::new(4096);
    d.table.set_capacity(256);
    check(
        d,
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133
         3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        &RESPONSE_1,
        222,
    );
    check(d, "4803 3330 37c1 c0bf", &RESPONSE_2, 222);
    check(
        d,
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a
         6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d
         6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        &RESPONSE_3,
        215,
    );
}

#[test]
fn coded_responses_that_evict_are_those_of_appendix_c6() {
    let d = &mut Decoder::new(4096);
    d.table.set_capacity(256);
    check(
        d,
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d
         29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        &RESPONSE_1,
        222,
    );
    check(d, "4883 640e ffc1 c0bf", &RESPONSE_2, 222);
    check(
        d,
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d
         d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106
         3d50 07",
        &RESPONSE_3,
        215,
    );
}

#[test]
fn size_updates_stand_first_and_stay_within_what_we_announced() {
    let mut d = Decoder::new(4096);
    check(&mut d, "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", &REQUEST_1, 57);
    check(&mut d, "20 3fe11f 82", &[(":method", "GET")], 0);
    let lost = Err(Cut::Protocol(ErrorCode::CompressionError));
    assert_eq!(decoded(&mut d, &bytes("3fe21f 82")), lost, "4097 bytes");
    assert_eq!(decoded(&mut d, &bytes("82 20")), lost, "behind a field");
    assert_eq!(decoded(&mut Decoder::new(100), &bytes("3f46")), lost, "101 of 100 bytes");
}

#[test]
fn blocks_that_are_not_hpack_are_refused() {
    for hex in
        ["80", "be", "ff 80 01", "00", "00 05 61", "40 01 61", "7f ff ff ff ff 7f 01 61", "0f 81 01 61"]
    {
        let lost = Err(Cut::Protocol(ErrorCode::CompressionError));
        assert_eq!(decoded(&mut Decoder::new(4096), &bytes(hex)), lost, "{hex}");
    }
}

#[test]
fn entry_larger_than_the_table_empties_it() {
    let mut d = Decoder::new(4096);
    check(&mut d, "400161 0162", &[("a", "b")], 34);
    let value = "x".repeat(4096 - 32);
    let mut block = bytes("400161 7fe11e");
    block.extend_from_slice(value.as_bytes());
    assert_eq!(decoded(&mut d, &block), Ok(vec![("a".into(), value)]));
    assert_eq!(d.table.size(), 0);
    assert!(decoded(&mut d, &[0xbe]).is_err());
}

/// An encoder that chooses its forms by `choices`, with a table of its own to know its indices.
fn encode(fields: &[(u8, u8, u8)], table: &mut Vec<Field>) -> (Vec<u8>, Vec<Field>) {
    let (mut block, mut expected) = (Vec::new(), Vec::new());
    for &(name, value, form) in fields {
        let field = (format!("x-name-{}", name % 24), "v".repeat(usize::from(value)));
        if let (0, Some(at)) = (form % 4, table.iter().position(|known| *known == field)) {
            block.push(0x80 | u8::try_from(62 + at).unwrap());
        } else {
            block.push(if form % 4 == 1 { 0x40 } else { 0 });
            for text in [&field.0, &field.1] {
                let mut coded = Vec::new();
                if form > 127 {
                    huffman::encode(text.as_bytes(), &mut coded);
                } else {
                    coded.extend_from_slice(text.as_bytes());
                }
                let flag = if form > 127 { 0x80 } else { 0 };
                match coded.len() {
                    short @ ..127 => block.push(flag | u8::try_from(short).unwrap()),
                    long => {
                        let rest = long - 127;
                        let low = u8::try_from(rest % 128).unwrap();
                        block.extend([flag | 127, 0x80 | low, u8::try_from(rest / 128).unwrap()]);
                    }
                }
                block.extend(coded);
            }
            if form % 4 == 1 {
                table.insert(0, field.clone());
                let size = |table: &[Field]| table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
                while size(table) > CAPACITY_MAX {
                    table.pop();
                }
            }
        }
        expected.push(field);
    }
    (block, expected)
}

proptest! {
    #[test]
    fn what_an_encoder_wrote_comes_back(
        blocks in proptest::collection::vec(
            proptest::collection::vec(any::<(u8, u8, u8)>(), 0..60),
            0..30,
        )
    ) {
        let (mut decoder, mut table) = (Decoder::new(4096), Vec::new());
        for fields in blocks {
            let (block, expected) = encode(&fields, &mut table);
            prop_assert_eq!(decoded(&mut decoder, &block), Ok(expected));
            prop_assert!(decoder.table.memory_bytes() < 32 << 10);
        }
        decoder.trim();
        prop_assert!(decoder.table.memory_bytes() < 8 << 10);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(blocks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..300), 0..10,
    )) {
        let mut decoder = Decoder::new(4096);
        for block in blocks {
            if decoded(&mut decoder, &block).is_err() {
                break;
            }
            prop_assert!(decoder.table.size() <= 4096);
        }
    }
}
