//! Undoing what senders compressed, within a limit that holds while it happens. Never trusts a declared size, but for one
//! that is beyond the limit: then nothing is undone at all.
//!
//! Each thread keeps one decompressor of each kind: about 12 KiB for gzip and, once a sender has used windows of that
//! size, up to 8 MiB for zstd.

use std::cell::RefCell;

use bytes::Bytes;
use store_model::Encoding;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::error::Error;
use crate::gunzip::{self, Failure};

/// The window every zstd decoder must support, and all that ours does: 8 MiB (RFC 8878, section 3.1.1.1.2).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Deflate cannot do better than this. zstd can, by a factor of thirty, but not with spans: each has an id that nothing
/// foretells.
const RATIO_MAX: usize = 1032;

/// Below this a body may unfold as it likes: little can be all padding, and of several gzip members only the last declares
/// its size where it is seen in time.
const UNFOLDED_BYTES_FREE: usize = 4 << 20;

/// Room that lets a decompressor see the end of its stream without being asked twice.
const SLACK_BYTES: usize = 64;

/// The bytes of `body`, decompressed.
///
/// gzip may have several members, zstd several frames; a body without any is malformed.
///
/// # Errors
/// [`Error::TooLarge`] as soon as there are more than `limit_bytes`, [`Error::BadCompression`] for anything that is
/// not one complete stream.
pub fn decompress(encoding: Encoding, body: &Bytes, limit_bytes: usize) -> Result<Bytes, Error> {
    if encoding == Encoding::Identity && body.len() <= limit_bytes {
        return Ok(body.clone());
    }
    decompress_into(encoding, body, limit_bytes, Vec::with_capacity).map(Bytes::from)
}

/// As [`decompress`], into memory that `memory` has for so many bytes; where those do not suffice, the allocator has more.
///
/// # Errors
/// As [`decompress`].
pub fn decompress_into(
    encoding: Encoding,
    body: &[u8],
    limit_bytes: usize,
    memory: impl FnOnce(usize) -> Vec<u8>,
) -> Result<Vec<u8>, Error> {
    match encoding {
        Encoding::Identity if body.len() > limit_bytes => Err(Error::TooLarge { limit_bytes }),
        Encoding::Identity => Ok(body.to_vec()),
        Encoding::Gzip => gunzip(body, limit_bytes, memory),
        Encoding::Zstd => unzstd(body, limit_bytes, memory),
    }
}

/// Bytes that may grow to a limit.
struct Output {
    bytes: Vec<u8>,
    limit_bytes: usize,
}

impl Output {
    /// Refuses what declares more than the limit, if that is possible at all: a bomb costs no more than its bytes then.
    fn new(
        declared_bytes: usize,
        input_bytes: usize,
        limit_bytes: usize,
        memory: impl FnOnce(usize) -> Vec<u8>,
    ) -> Result<Self, Error> {
        let possible = input_bytes.saturating_mul(RATIO_MAX);
        if declared_bytes > limit_bytes && declared_bytes <= possible {
            return Err(Error::TooLarge { limit_bytes });
        }
        let likely = declared_bytes.min(limit_bytes).min(possible);
        Ok(Self { bytes: memory(likely.saturating_add(SLACK_BYTES)), limit_bytes })
    }

    fn check(&self) -> Result<(), Error> {
        let Self { ref bytes, limit_bytes } = *self;
        if bytes.len() > limit_bytes { Err(Error::TooLarge { limit_bytes }) } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.bytes.len() == self.bytes.capacity()
    }

    fn spare(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// Makes room, at least for the one byte that breaks the limit.
    fn grow(&mut self) {
        let doubled = self.bytes.capacity().max(1024);
        let room = self.limit_bytes.saturating_sub(self.bytes.len());
        self.bytes.reserve_exact((self.spare() + doubled).min(room).saturating_add(SLACK_BYTES));
    }
}

fn bad_gzip(what: &str) -> Error {
    Error::BadCompression { encoding: "gzip", what: what.to_owned() }
}

/// All members of `body` (RFC 1952). A member is decompressed in one go, so room that does not suffice costs that work
/// again; since room at least doubles, it costs it once more at the most.
fn gunzip(body: &[u8], limit_bytes: usize, memory: impl FnOnce(usize) -> Vec<u8>) -> Result<Vec<u8>, Error> {
    // The last member ends with its size, modulo 2^32.
    let declared = body.last_chunk().map_or(0, |&size| u32::from_le_bytes(size)) as usize;
    let possible = declared.saturating_add(UNFOLDED_BYTES_FREE);
    let mut output = Output::new(declared, body.len(), limit_bytes, memory)?;
    output.limit_bytes = limit_bytes.min(possible);
    match gunzip_members(body, &mut output) {
        Ok(()) => Ok(output.bytes),
        Err(error) if error.is_too_large() && possible < limit_bytes => {
            Err(bad_gzip("it unfolds to more than its end declares"))
        }
        Err(error) => Err(error),
    }
}

fn gunzip_members(body: &[u8], output: &mut Output) -> Result<(), Error> {
    let limit_bytes = output.limit_bytes;
    let mut rest = body;
    loop {
        // One byte more than allowed tells that there is too much.
        let room = limit_bytes.saturating_sub(output.bytes.len()).saturating_add(1);
        match gunzip::member(rest, &mut output.bytes, room) {
            Ok(taken) => {
                output.check()?;
                rest = &rest[taken..];
                if rest.is_empty() {
                    return Ok(());
                }
            }
            Err(Failure::NoRoom) if output.spare() >= room => return Err(Error::TooLarge { limit_bytes }),
            Err(Failure::NoRoom) => output.grow(),
            Err(Failure::Bad) => return Err(bad_gzip("not a complete gzip member, or a damaged one")),
        }
    }
}

fn bad_zstd(cause: impl ToString) -> Error {
    Error::BadCompression { encoding: "zstd", what: cause.to_string() }
}

fn unzstd(body: &[u8], limit_bytes: usize, memory: impl FnOnce(usize) -> Vec<u8>) -> Result<Vec<u8>, Error> {
    thread_local! {
        static DECODER: RefCell<Option<Decoder<'static>>> = const { RefCell::new(None) };
    }
    DECODER.with_borrow_mut(|slot| {
        let decoder = match slot {
            Some(decoder) => {
                decoder.reinit().map_err(bad_zstd)?;
                decoder
            }
            None => {
                let mut decoder = Decoder::new().map_err(bad_zstd)?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(bad_zstd)?;
                slot.insert(decoder)
            }
        };
        unzstd_with(decoder, body, limit_bytes, memory)
    })
}

fn unzstd_with(
    decoder: &mut Decoder<'_>,
    body: &[u8],
    limit_bytes: usize,
    memory: impl FnOnce(usize) -> Vec<u8>,
) -> Result<Vec<u8>, Error> {
    let declared = zstd::zstd_safe::get_frame_content_size(body).ok().flatten();
    let declared = declared.map_or(0, |size| usize::try_from(size).unwrap_or(usize::MAX));
    let possible = body.len().saturating_mul(RATIO_MAX).max(UNFOLDED_BYTES_FREE);
    let mut output = Output::new(declared, body.len(), limit_bytes.min(possible), memory)?;
    let mut input = InBuffer::around(body);
    loop {
        let written = output.bytes.len();
        let mut room = OutBuffer::around_pos(&mut output.bytes, written);
        // What the library says of a damaged body depends on how much memory its decoder has from before.
        let missing = decoder.run(&mut input, &mut room).map_err(|_damaged| {
            bad_zstd(format_args!(
                "a frame is damaged, or its window is larger than {} MiB",
                1 << (ZSTD_WINDOW_LOG_MAX - 20)
            ))
        })?;
        if possible < limit_bytes && output.check().is_err() {
            return Err(bad_zstd(format_args!("it unfolds to more than {RATIO_MAX} times its size")));
        }
        output.check()?;
        if input.pos() == body.len() && missing == 0 && !body.is_empty() {
            return Ok(output.bytes);
        }
        if output.is_full() {
            output.grow();
        } else if input.pos() == body.len() {
            return Err(bad_zstd("the stream is cut short"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let builder = GzBuilder::new().filename("name").comment("comment").extra(vec![1, 2, 3]);
        let mut encoder = builder.write(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd_with_window(bytes: &[u8], window_log: u32, declare_size: bool) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.include_contentsize(declare_size).unwrap();
        if declare_size {
            encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
        }
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd_with_window(bytes, 20, bytes.len().is_multiple_of(2))
    }

    fn open(encoding: Encoding, body: &[u8], limit_bytes: usize) -> Result<Bytes, Error> {
        decompress(encoding, &Bytes::copy_from_slice(body), limit_bytes)
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|n| b"abcdefgh"[(n * n / 7) % 8]).collect()
    }

    #[test]
    fn several_members_or_frames_are_one_body() {
        let (a, b) = (text(100_001), text(10));
        let both = [&a[..], &b, b""].concat();
        for (encoding, pieces) in [
            (Encoding::Gzip, [gzip(&a), gzip(&b), gzip(b"")]),
            (Encoding::Zstd, [zstd(&a), zstd(&b), zstd(b"")]),
        ] {
            assert_eq!(open(encoding, &pieces.concat(), both.len()).unwrap(), both, "{encoding:?}");
        }
    }

    #[test]
    fn the_limit_is_exact_and_holds_against_bombs() {
        let bytes = text(50_000);
        let bomb = vec![0; 64 << 20];
        for (encoding, small, big) in [
            (Encoding::Identity, bytes.clone(), bomb.clone()),
            (Encoding::Gzip, gzip(&bytes), gzip(&bomb)),
            (Encoding::Zstd, zstd(&bytes), zstd(&bomb)),
            (Encoding::Zstd, zstd_with_window(&bytes, 20, false), zstd_with_window(&bomb, 20, false)),
        ] {
            assert_eq!(open(encoding, &small, bytes.len()).unwrap(), bytes, "{encoding:?}");
            assert!(open(encoding, &small, bytes.len() - 1).unwrap_err().is_too_large(), "{encoding:?}");
            assert!(open(encoding, &big, 1 << 20).unwrap_err().is_too_large(), "{encoding:?}");
        }
    }

    #[test]
    fn a_declared_size_is_only_a_hint() {
        let mut lying = gzip(b"hello");
        let end = lying.len();
        lying[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(open(Encoding::Gzip, &lying, 1 << 20), Err(Error::BadCompression { .. })));
        let output = Output::new(usize::MAX, lying.len(), 1 << 30, Vec::with_capacity).unwrap();
        assert!(output.bytes.capacity() <= lying.len() * RATIO_MAX + SLACK_BYTES);
        let output = Output::new(1 << 20, usize::MAX, 1 << 20, Vec::with_capacity).unwrap();
        assert!(output.bytes.capacity() <= (1 << 20) + SLACK_BYTES);
        assert!(
            Output::new((1 << 20) + 1, 1 << 20, 1 << 20, Vec::with_capacity).is_err(),
            "nothing is undone for that"
        );
    }

    #[test]
    fn gzip_may_not_unfold_far_beyond_its_word() {
        let mut lying = gzip(&vec![0; UNFOLDED_BYTES_FREE + 1_000]);
        let end = lying.len();
        lying[end - 4..].copy_from_slice(&1_u32.to_le_bytes());
        let error = open(Encoding::Gzip, &lying, 64 << 20).unwrap_err();
        assert!(error.to_string().contains("more than its end declares"), "{error}");
        let several = [gzip(&vec![0; UNFOLDED_BYTES_FREE]), gzip(b"x")].concat();
        assert_eq!(open(Encoding::Gzip, &several, 64 << 20).unwrap().len(), UNFOLDED_BYTES_FREE + 1);
    }

    #[test]
    fn a_damaged_body_is_refused_in_the_same_words_whatever_came_before() {
        // Found by the fuzz target; its first byte chooses the encoding.
        let (_, damaged) =
            include_bytes!("../fuzz/seeds/decompress/zstd-damaged-in-two-ways").split_first().unwrap();
        let damaged = Bytes::from_static(damaged);
        let refusals =
            [(); 2].map(|()| decompress(Encoding::Zstd, &damaged, 1 << 20).unwrap_err().to_string());
        assert_eq!(refusals[0], refusals[1]);
    }

    #[test]
    fn zstd_may_not_unfold_without_measure() {
        let bomb = zstd_with_window(&vec![0; 64 << 20], 20, false);
        assert!(bomb.len() * RATIO_MAX < 32 << 20, "{}", bomb.len());
        assert!(matches!(open(Encoding::Zstd, &bomb, 256 << 20), Err(Error::BadCompression { .. })));
        let little = vec![0; UNFOLDED_BYTES_FREE];
        assert_eq!(open(Encoding::Zstd, &zstd_with_window(&little, 20, false), 256 << 20).unwrap(), little);
    }

    #[test]
    fn windows_beyond_eight_mebibytes_are_refused() {
        let mut bytes = text(20 << 20);
        // What is all repetition is refused for that.
        let mut noise = 1_u32;
        for byte in bytes.iter_mut().step_by(100) {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = noise.to_be_bytes()[0];
        }
        assert!(open(Encoding::Zstd, &zstd_with_window(&bytes, 23, false), 32 << 20).is_ok());
        let refused = open(Encoding::Zstd, &zstd_with_window(&bytes, 24, false), 32 << 20);
        assert!(matches!(refused, Err(Error::BadCompression { .. })));
    }

    #[test]
    fn a_damaged_body_leaves_the_next_one_alone() {
        let bytes = text(100_000);
        for (encoding, whole) in [(Encoding::Gzip, gzip(&bytes)), (Encoding::Zstd, zstd(&bytes))] {
            for cut in (0..whole.len()).step_by(whole.len() / 97 + 1) {
                let error = open(encoding, &whole[..cut], 1 << 20).unwrap_err();
                assert!(matches!(error, Error::BadCompression { .. }), "{encoding:?} {cut}: {error}");
            }
            let mut followed = whole.clone();
            followed.push(0);
            assert!(open(encoding, &followed, 1 << 20).is_err());
            assert_eq!(open(encoding, &whole, 1 << 20).unwrap(), bytes);
        }
        let mut flipped = gzip(&bytes);
        let end = flipped.len();
        flipped[end - 8] ^= 1;
        assert!(open(Encoding::Gzip, &flipped, 1 << 20).is_err());
    }

    proptest! {
        #[test]
        fn bodies_come_back(bytes: Vec<u8>, repeats in 0usize..50) {
            let bytes = bytes.repeat(repeats);
            prop_assert_eq!(open(Encoding::Gzip, &gzip(&bytes), bytes.len()).unwrap(), &bytes);
            prop_assert_eq!(open(Encoding::Zstd, &zstd(&bytes), bytes.len()).unwrap(), &bytes);
        }

        #[test]
        fn any_bytes_are_refused_or_bounded(bytes: Vec<u8>, limit in 0usize..5_000) {
            for (encoding, magic) in
                [(Encoding::Gzip, &[0x1F, 0x8B, 8, 0][..]), (Encoding::Zstd, &[0x28, 0xB5, 0x2F, 0xFD])]
            {
                for body in [bytes.clone(), [magic, &bytes].concat()] {
                    if let Ok(out) = open(encoding, &body, limit) {
                        prop_assert!(out.len() <= limit);
                    }
                }
            }
        }
    }
}
