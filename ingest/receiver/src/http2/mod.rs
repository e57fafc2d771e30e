//! The server side of HTTP/2 (RFC 9113) and of HPACK (RFC 7541): bytes in, bytes and calls to a [`Sink`] out. It owns
//! framing, flow control, header decoding and every bound a peer could lean on. It never reads a clock, never touches
//! a socket and knows nothing of OTLP.
//!
//! Read in this order: [`limits`] (every bound with its reason), `frame`, `streams`, `connection` (the state machine),
//! `requests` with `hpack` and `head`, `bodies`, `control`, `answer`.
#![allow(unreachable_pub, reason = "feature `internals` opens the module to the fuzz targets and the bench")]

mod answer;
mod bodies;
mod connection;
mod control;
pub mod frame;
mod head;
pub mod hpack;
mod limits;
mod meter;
mod requests;
mod streams;
#[cfg(test)]
mod tests;

pub use connection::Http2;
pub use limits::Limits;

/// Names and values of header fields; names in lower case, values free of CR, LF and NUL.
pub type Fields<'a> = &'a [(&'a str, &'a [u8])];

/// Which stream of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// What the core calls while it reads. Everything is borrowed from the bytes received or from the HPACK table.
pub trait Sink {
    /// One field of the request head being decoded, pseudo fields included, in the order they came. The name is valid
    /// and in lower case; the value has no CR, LF or NUL and no white space around it. If no [`Sink::head`] follows,
    /// [`Sink::reset`] does.
    fn field(&mut self, stream: StreamId, name: &[u8], value: &[u8]);

    /// The head is complete and well-formed; with `ends` no body follows.
    fn head(&mut self, stream: StreamId, ends: bool);

    /// Part of a body, without padding. A large frame comes in pieces as it arrives; trailers end the body with an
    /// empty piece. A body that contradicts its `content-length` never gets as far as `ends`.
    fn data(&mut self, stream: StreamId, bytes: &[u8], ends: bool);

    /// The stream is gone before it was answered: the peer reset it, or broke a rule.
    fn reset(&mut self, stream: StreamId);
}

/// Why a stream or a connection ends: RFC 9113, section 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "RFC 9113's own words")]
pub enum ErrorCode {
    NoError = 0,
    ProtocolError = 1,
    InternalError = 2,
    FlowControlError = 3,
    SettingsTimeout = 4,
    StreamClosed = 5,
    FrameSizeError = 6,
    RefusedStream = 7,
    Cancel = 8,
    CompressionError = 9,
    ConnectError = 10,
    EnhanceYourCalm = 11,
    InadequateSecurity = 12,
    Http11Required = 13,
}

impl ErrorCode {
    /// On the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// Why a peer is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// It broke the protocol.
    Protocol(ErrorCode),
    /// It opens streams only to reset them, or makes us reset them.
    ResetFlood,
    /// PING after PING without requests.
    PingFlood,
    /// SETTINGS after SETTINGS.
    SettingsFlood,
    /// Frames that carry nothing.
    EmptyFrameFlood,
    /// A header block in too many frames.
    ContinuationFlood,
    /// A header block far beyond the list we announced.
    HeaderListTooLarge,
    /// A small header block that unfolds into a huge list.
    HpackBomb,
    /// It makes us answer and does not read the answers.
    OutputNotRead,
}

impl Cut {
    /// What the peer is told.
    #[must_use]
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Protocol(code) => code,
            _ => ErrorCode::EnhanceYourCalm,
        }
    }

    /// The word it is counted under.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Protocol(_) => "protocol",
            Self::ResetFlood => "reset_flood",
            Self::PingFlood => "ping_flood",
            Self::SettingsFlood => "settings_flood",
            Self::EmptyFrameFlood => "empty_frame_flood",
            Self::ContinuationFlood => "continuation_flood",
            Self::HeaderListTooLarge => "header_list_too_large",
            Self::HpackBomb => "hpack_bomb",
            Self::OutputNotRead => "output_not_read",
        }
    }
}
