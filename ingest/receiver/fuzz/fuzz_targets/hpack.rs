//! Any header blocks of one connection: what we accept, another decoder accepts and reads the same in it; what we read
//! comes back from being written again; memory stays within bounds.
//!
//! Each block is led by its length in one byte.
#![no_main]

use ingest_receiver::http2::hpack::Decoder;

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut fields = Vec::new();
    let result = decoder.decode(block, |_, name, value| {
        fields.push((name.to_vec(), value.to_vec()));
        Ok(())
    });
    assert!(decoder.memory_bytes() < 32 << 10);
    result.ok().map(|()| fields)
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (mut ours, mut theirs) = (Decoder::new(4096), loona_hpack::Decoder::new());
    let mut rest = input;
    while let Some((&length, tail)) = rest.split_first() {
        let (block, tail) = tail.split_at(usize::from(length).min(tail.len()));
        rest = tail;
        let Some(fields) = decoded(&mut ours, block) else { return };
        if fields.is_empty() {
            // A block may be nothing but a size update; the other decoder disagrees and its table goes its own way.
            return;
        }
        let other = theirs.decode(block).expect("what we accept is HPACK");
        assert_eq!(fields, other);

        let mut again = Vec::new();
        for (name, value) in &fields {
            again.push(0x10);
            for text in [name, value] {
                // In two bytes and more, whatever the length.
                again.push(127);
                match text.len().checked_sub(127) {
                    Some(beyond) => {
                        let low = u8::try_from(beyond % 128).expect("below 128") | 128;
                        let middle = u8::try_from(beyond / 128 % 128).expect("below 128") | 128;
                        again.extend([low, middle, u8::try_from(beyond >> 14).expect("short")]);
                    }
                    None => {
                        again.pop();
                        again.push(u8::try_from(text.len()).expect("short"));
                    }
                }
                again.extend_from_slice(text);
            }
        }
        assert_eq!(decoded(&mut Decoder::new(4096), &again), Some(fields));
    }
});
