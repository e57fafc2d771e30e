//! The Huffman code of RFC 7541, appendix B. The code is canonical (codes of one length are consecutive numbers in
//! the order of their symbols), so its lengths are all that has to be written down; the tables are worked out while
//! compiling.

use super::DecodeError;

/// Symbols 0 to 255 are bytes.
const END_OF_STRING: u16 = 256;
const SYMBOLS: usize = 257;
const LENGTH_MAX: usize = 30;

/// Length in bits of each symbol's code.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

/// The symbols in the order of their codes, and for each length where its codes begin and end.
struct Codes {
    symbols: [u16; SYMBOLS],
    /// The first code of each length.
    first: [u32; LENGTH_MAX + 1],
    /// How many codes are that long.
    count: [u32; LENGTH_MAX + 1],
    /// Where in `symbols` they begin.
    offset: [usize; LENGTH_MAX + 1],
}

static CODES: Codes = codes();

/// By the next eight bits: the symbol and its length, or length 0 for a code longer than eight bits. Letters, digits
/// and most punctuation are here.
static SHORT: [(u8, u8); 256] = short();

const fn codes() -> Codes {
    let mut codes = Codes {
        symbols: [0; SYMBOLS],
        first: [0; LENGTH_MAX + 1],
        count: [0; LENGTH_MAX + 1],
        offset: [0; LENGTH_MAX + 1],
    };
    let (mut length, mut code, mut placed) = (1, 0, 0);
    while length <= LENGTH_MAX {
        code <<= 1;
        codes.first[length] = code;
        codes.offset[length] = placed;
        let mut symbol = 0u16;
        while symbol <= END_OF_STRING {
            if LENGTHS[symbol as usize] as usize == length {
                codes.symbols[placed] = symbol;
                codes.count[length] += 1;
                placed += 1;
                code += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    codes
}

#[expect(clippy::cast_possible_truncation, reason = "symbols of at most eight bits are bytes")]
const fn short() -> [(u8, u8); 256] {
    let codes = codes();
    let mut table = [(0, 0); 256];
    let mut length = 1;
    while length <= 8 {
        let mut nth = 0;
        while nth < codes.count[length] {
            let symbol = codes.symbols[codes.offset[length] + nth as usize] as u8;
            let from = (codes.first[length] + nth) << (8 - length);
            let mut tail = 0;
            while tail < 1 << (8 - length) {
                table[(from + tail) as usize] = (symbol, length as u8);
                tail += 1;
            }
            nth += 1;
        }
        length += 1;
    }
    table
}

/// Appends what `coded` stands for.
pub fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    // The next bits, from the top; `held` of them are real and the rest are zero.
    let (mut bits, mut held) = (0u64, 0u32);
    let mut rest = coded;
    // No code is shorter than five bits.
    out.reserve(coded.len() * 8 / 5);
    loop {
        if held < 32
            && let Some((four, tail)) = rest.split_first_chunk::<4>()
        {
            bits |= u64::from(u32::from_be_bytes(*four)) << (32 - held);
            held += 32;
            rest = tail;
        }
        while held < 32 {
            let Some((&byte, tail)) = rest.split_first() else { break };
            bits |= u64::from(byte) << (56 - held);
            held += 8;
            rest = tail;
        }
        // Letters and digits, without a look at the end.
        while held >= 8 {
            let (symbol, length) = SHORT[usize::from(bits.to_be_bytes()[0])];
            if length == 0 {
                break;
            }
            out.push(symbol);
            bits <<= length;
            held -= u32::from(length);
        }
        // What follows takes too few bits for the end.
        if held < 30 && !rest.is_empty() {
            continue;
        }
        if held == 0 {
            return Ok(());
        }
        // Padding is the beginning of the end-of-string code, all ones; with ones behind it, it never looks like a
        // symbol.
        let window = bits | u64::MAX.checked_shr(held).unwrap_or(0);
        let (symbol, length) = symbol(window).ok_or(DecodeError)?;
        if length > held {
            // Only the end of the input leaves fewer bits than the longest code has.
            return if held < 8 && window == u64::MAX { Ok(()) } else { Err(DecodeError) };
        }
        let Ok(byte) = u8::try_from(symbol) else { return Err(DecodeError) };
        out.push(byte);
        bits <<= length;
        held -= length;
    }
}

/// The symbol at the top of `window` and its length. The code is complete, so there always is one.
fn symbol(window: u64) -> Option<(u16, u32)> {
    let (symbol, length) = SHORT[usize::from(window.to_be_bytes()[0])];
    if length != 0 {
        return Some((u16::from(symbol), u32::from(length)));
    }
    for length in 9..=LENGTH_MAX {
        let code = u32::try_from(window >> (64 - length)).ok()?;
        let nth = code.wrapping_sub(CODES.first[length]);
        if nth < CODES.count[length] {
            let at = CODES.offset[length] + usize::try_from(nth).ok()?;
            return Some((CODES.symbols[at], u32::try_from(length).ok()?));
        }
    }
    None
}

/// Appends `plain` in code, for the tests.
#[cfg(test)]
pub fn encode(plain: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut held) = (0u64, 0);
    for &byte in plain {
        let length = usize::from(LENGTHS[usize::from(byte)]);
        let at = CODES.symbols.iter().position(|&symbol| symbol == u16::from(byte)).unwrap();
        let code = CODES.first[length] + u32::try_from(at - CODES.offset[length]).unwrap();
        bits = bits << length | u64::from(code);
        held += length;
        while held >= 8 {
            held -= 8;
            out.push((bits >> held).to_be_bytes()[7]);
        }
    }
    if held > 0 {
        out.push((bits << (8 - held) | 0xFF >> held).to_be_bytes()[7]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_are_those_of_the_appendix() {
        let code = |symbol: u16| {
            let length = usize::from(LENGTHS[usize::from(symbol)]);
            let at = CODES.symbols.iter().position(|&s| s == symbol).unwrap();
            CODES.first[length] + u32::try_from(at - CODES.offset[length]).unwrap()
        };
        for (symbol, expected) in [(u16::from(b'0'), 0), (u16::from(b'a'), 3), (u16::from(b'~'), 0x1ffd)] {
            assert_eq!(code(symbol), expected, "{symbol}");
        }
        assert_eq!((code(0), code(22), code(255)), (0x1ff8, 0x3fff_fffe, 0x3ff_ffee));
        assert_eq!(code(END_OF_STRING), 0x3fff_ffff, "the last code of all, so the code is complete");
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones() {
        let text = |coded: &[u8]| {
            let mut out = Vec::new();
            decode(coded, &mut out).map(|()| out)
        };
        assert_eq!(text(&[]), Ok(vec![]));
        assert_eq!(text(&[0b0001_1111]), Ok(b"a".to_vec()));
        assert_eq!(text(&[0b0001_1110]), Err(DecodeError), "padding with a zero");
        assert_eq!(text(&[0b0001_1111, 0xFF]), Err(DecodeError), "a whole byte of padding");
        assert_eq!(text(&[0xFF]), Err(DecodeError));
        assert_eq!(text(&[0xFF; 4]), Err(DecodeError), "end of string spelled out");
        assert_eq!(text(&[0xFF, 0xFF, 0xFF, 0xFE, 0x1F]), Err(DecodeError));
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(plain in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut coded, mut out) = (Vec::new(), Vec::new());
            encode(&plain, &mut coded);
            prop_assert_eq!(decode(&coded, &mut out), Ok(()));
            prop_assert_eq!(out, plain);
        }
    }
}
