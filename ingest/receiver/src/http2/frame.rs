//! Frames on the wire: RFC 9113, sections 4 and 6. It reads frame headers and writes the frames a server sends; which
//! frame is allowed when is the connection's matter.
//!
//! ```text
//! | length 24 | type 8 | flags 8 | 0 | stream 31 | payload of `length` bytes |     all big-endian
//! ```

use super::{Cut, ErrorCode, Limits};

/// The client's first bytes: section 3.4.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame header.
pub const HEADER_BYTES: usize = 9;

/// Every window before settings change it: section 6.9.2.
pub const WINDOW_DEFAULT: u32 = 65_535;

/// No window may grow beyond this.
pub const WINDOW_MAX: u32 = (1 << 31) - 1;

/// What either side may send before settings change it, and the least that settings may say.
pub const FRAME_BYTES_DEFAULT: u32 = 16_384;

/// The most that settings may say.
pub const FRAME_BYTES_MAX: u32 = (1 << 24) - 1;

/// The types, by number.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// The flags; `ACK` of SETTINGS and PING has the bit that `END_STREAM` has elsewhere.
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// The settings, by number.
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// A frame's first nine bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub length: u32,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl FrameHeader {
    /// Reads them; the reserved bit is ignored.
    pub fn read(bytes: [u8; HEADER_BYTES]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        Self { length, kind, flags, stream: u32::from_be_bytes([s0 & 0x7F, s1, s2, s3]) }
    }

    /// As they are written.
    pub fn bytes(self) -> [u8; HEADER_BYTES] {
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// Writes them.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes());
    }

    /// Writes them over those at `position`, once the payload behind them is known.
    pub fn overwrite(self, out: &mut [u8], position: usize) {
        if let Some(place) = out.get_mut(position..position + HEADER_BYTES) {
            place.copy_from_slice(&self.bytes());
        }
    }

    /// Whether `flag` is set.
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Takes the padding off a HEADERS payload: section 6.2.
pub fn unpadded(header: FrameHeader, payload: &[u8]) -> Result<&[u8], Cut> {
    if !header.has(flag::PADDED) {
        return Ok(payload);
    }
    let (&padding, rest) = payload.split_first().ok_or(Cut::Protocol(ErrorCode::FrameSizeError))?;
    let kept = rest.len().checked_sub(usize::from(padding)).ok_or(Cut::Protocol(ErrorCode::ProtocolError))?;
    Ok(&rest[..kept])
}

/// What a server says first: section 6.5.
pub fn write_settings(limits: &Limits, out: &mut Vec<u8>) {
    let list_bytes = u32::try_from(limits.header_list_bytes_max).unwrap_or(u32::MAX);
    let table_bytes = u32::try_from(limits.dynamic_table_bytes).unwrap_or(u32::MAX);
    let settings = [
        (setting::HEADER_TABLE_SIZE, table_bytes.min(4096)),
        (setting::MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams),
        (setting::INITIAL_WINDOW_SIZE, limits.stream_window),
        (setting::MAX_FRAME_SIZE, limits.max_frame_bytes),
        (setting::MAX_HEADER_LIST_SIZE, list_bytes),
    ];
    FrameHeader { length: 6 * 5, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(out);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Acknowledges the peer's settings.
pub fn write_settings_ack(out: &mut Vec<u8>) {
    FrameHeader { length: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(out);
}

/// A PING of ours, or the answer to one.
pub fn write_ping(payload: [u8; 8], flags: u8, out: &mut Vec<u8>) {
    FrameHeader { length: 8, kind: kind::PING, flags, stream: 0 }.write(out);
    out.extend_from_slice(&payload);
}

/// Gives `increment` more bytes to a stream, or with stream 0 to the connection.
pub fn write_window_update(stream: u32, increment: u32, out: &mut Vec<u8>) {
    FrameHeader { length: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream }.write(out);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// Ends a stream.
pub fn write_reset(stream: u32, code: ErrorCode, out: &mut Vec<u8>) {
    FrameHeader { length: 4, kind: kind::RST_STREAM, flags: 0, stream }.write(out);
    out.extend_from_slice(&code.number().to_be_bytes());
}

/// Ends the connection after stream `last`, with a word for whoever reads the client's log.
pub fn write_go_away(last: u32, code: ErrorCode, word: &str, out: &mut Vec<u8>) {
    let length = 8 + u32::try_from(word.len()).unwrap_or(0);
    FrameHeader { length, kind: kind::GOAWAY, flags: 0, stream: 0 }.write(out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.number().to_be_bytes());
    out.extend_from_slice(word.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_header_comes_back_from_its_bytes() {
        let header = FrameHeader { length: 0x12_3456, kind: 9, flags: 0x2d, stream: WINDOW_MAX };
        let mut out = Vec::new();
        header.write(&mut out);
        let mut bytes: [u8; HEADER_BYTES] = out.try_into().unwrap();
        assert_eq!(FrameHeader::read(bytes), header);
        bytes[5] |= 0x80;
        assert_eq!(FrameHeader::read(bytes), header, "the reserved bit");
    }

    #[test]
    fn padding_longer_than_the_payload_is_refused() {
        let header = FrameHeader { length: 0, kind: kind::HEADERS, flags: flag::PADDED, stream: 1 };
        assert_eq!(unpadded(header, &[2, b'a', 0, 0]), Ok(&b"a"[..]));
        assert_eq!(unpadded(header, &[2, 0, 0]), Ok(&b""[..]));
        assert_eq!(unpadded(header, &[3, 0, 0]), Err(Cut::Protocol(ErrorCode::ProtocolError)));
        assert_eq!(unpadded(header, &[]), Err(Cut::Protocol(ErrorCode::FrameSizeError)));
    }
}
