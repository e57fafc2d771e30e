//! The `chunked` coding (RFC 9112, section 7.1): sizes, extensions and trailers are read strictly and dropped.

use super::{Cut, Taken};

/// A size with its extensions, and all trailers together.
const LINE_BYTES_MAX: usize = 256;
const TRAILER_BYTES_MAX: usize = 4 << 10;

/// Where in the coding we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    Size,
    Data {
        left: u64,
    },
    /// Between a chunk and the next size.
    DataEnd,
    Trailers {
        seen: usize,
    },
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self::Size
    }

    /// Hands on the data in `bytes`. Half a line is left unused.
    pub(super) fn take(&mut self, bytes: &[u8], give: &mut impl FnMut(&[u8], bool)) -> Result<Taken, Cut> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            match self {
                Self::Size => {
                    let Some(line) = line(rest, LINE_BYTES_MAX)? else {
                        return Ok(Taken { used, ends: false });
                    };
                    used += line.len() + 2;
                    let left = size(line)?;
                    *self = if left == 0 { Self::Trailers { seen: 0 } } else { Self::Data { left } };
                }
                Self::Data { left } => {
                    let length = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    if length == 0 {
                        return Ok(Taken { used, ends: false });
                    }
                    give(&rest[..length], false);
                    used += length;
                    *left -= length as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                }
                Self::DataEnd => {
                    let Some(end) = rest.first_chunk() else { return Ok(Taken { used, ends: false }) };
                    if end != b"\r\n" {
                        return Err(Cut::Malformed);
                    }
                    used += end.len();
                    *self = Self::Size;
                }
                Self::Trailers { seen } => {
                    let room = TRAILER_BYTES_MAX - *seen;
                    let Some(line) = line(rest, room)? else { return Ok(Taken { used, ends: false }) };
                    used += line.len() + 2;
                    if line.is_empty() {
                        give(&[], true);
                        return Ok(Taken { used, ends: true });
                    }
                    // A name, and nothing that a reader of lines could take for a chunk.
                    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
                    let is_field = name.len() < line.len() && name.iter().all(u8::is_ascii_graphic);
                    if !is_field || name.is_empty() {
                        return Err(Cut::Malformed);
                    }
                    *seen = (*seen + line.len() + 2).min(TRAILER_BYTES_MAX);
                }
            }
        }
    }
}

/// The line at the start of `bytes`, without its CR LF; `None` while it is not complete. A CR or LF anywhere else is
/// refused: lenient readers end a line there.
fn line(bytes: &[u8], bytes_max: usize) -> Result<Option<&[u8]>, Cut> {
    let seen = &bytes[..bytes.len().min(bytes_max)];
    match seen.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        None if seen.len() == bytes_max => Err(Cut::HeadTooLarge),
        None => Ok(None),
        Some(end) => match seen[end..] {
            [b'\r', b'\n', ..] => Ok(Some(&seen[..end])),
            [b'\r'] if seen.len() < bytes_max => Ok(None),
            _ => Err(Cut::Malformed),
        },
    }
}

/// The size that a chunk's first line begins with.
fn size(line: &[u8]) -> Result<u64, Cut> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    // Fifteen digits cannot overflow, and no body is that large.
    if digits.is_empty() || digits.len() > 15 || !(rest.is_empty() || rest[0] == b';') {
        return Err(Cut::Malformed);
    }
    let text = str::from_utf8(digits).map_err(|_not_ascii| Cut::Malformed)?;
    u64::from_str_radix(text, 16).map_err(|_not_hex| Cut::Malformed)
}
