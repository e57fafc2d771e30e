//! The layer between a socket's bytes and a session's: records in, plain bytes out, and back. Every driver that brings its
//! own sockets uses it through [`crate::connection`]. No socket, no clock, and no memory beyond one record while nothing
//! happens.

use std::mem;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};

use super::HANDSHAKE;
use crate::metrics::CutReason;

/// What stands before every record: its type, a version, and its length.
const RECORD_HEADER_BYTES: usize = 5;

/// A handshake message may come in many records, and no message of a sane client is larger than this with all of them.
const HELD_BYTES_MAX: usize = 96 << 10;

/// What a sealed record has beside its text, generously, and how much text fits one.
const SEAL_BYTES: usize = 64;
const TEXT_BYTES_MAX: usize = 16 << 10;

/// What has come of the peer's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// More may follow.
    Open,
    /// The peer has said that nothing follows.
    Ended,
}

/// TLS of one connection.
pub(crate) struct Secured {
    state: State,
    /// Received and not yet opened: the beginning of a record, or of a handshake message in several.
    held: Vec<u8>,
    is_closed: bool,
}

enum State {
    /// Nothing has come. Peers that only connect cost no more than this.
    Fresh(Arc<ServerConfig>),
    Begun(Box<UnbufferedServerConnection>),
    Failed,
}

impl Secured {
    pub(crate) fn new(config: Arc<ServerConfig>) -> Self {
        Self { state: State::Fresh(config), held: Vec::new(), is_closed: false }
    }

    /// Whether nothing but the handshake has happened yet.
    pub(crate) fn is_handshaking(&self) -> bool {
        match &self.state {
            State::Fresh(_) => true,
            State::Begun(tls) => tls.is_handshaking(),
            State::Failed => false,
        }
    }

    /// Takes all of `bytes`, cut anywhere, and gives what they hold to `text`, piece by piece. `bytes` are scratch space
    /// afterwards: records are opened where they lie.
    ///
    /// # Errors
    /// The connection is over: flush `out`, which says so, and close.
    pub(crate) fn open(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        text: &mut impl FnMut(&[u8]),
    ) -> Result<Side, CutReason> {
        self.begin(bytes.first().copied())?;
        let State::Begun(tls) = &mut self.state else { return Ok(Side::Open) };
        let opened = take(tls, &mut self.held, bytes, out, text);
        if opened.is_err() {
            self.state = State::Failed;
            self.held = Vec::new();
        }
        opened
    }

    fn begin(&mut self, first: Option<u8>) -> Result<(), CutReason> {
        let (State::Fresh(config), Some(first)) = (&self.state, first) else { return Ok(()) };
        let tls = UnbufferedServerConnection::new(Arc::clone(config));
        match tls {
            Ok(tls) if first == HANDSHAKE => {
                self.state = State::Begun(Box::new(tls));
                Ok(())
            }
            tls => {
                self.state = State::Failed;
                Err(if tls.is_ok() { CutReason::NotTls } else { CutReason::TlsFailed })
            }
        }
    }

    /// Seals `text` behind `out`.
    ///
    /// # Errors
    /// When it cannot be: nobody may speak before the handshake is done.
    pub(crate) fn seal(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), CutReason> {
        if text.is_empty() {
            return Ok(());
        }
        let guess = text.len() + (text.len() / TEXT_BYTES_MAX + 1) * SEAL_BYTES;
        let sealed = self.write(out, |traffic, out| {
            append(out, guess, |space| match traffic.encrypt(text, space) {
                Err(EncryptError::InsufficientSize(least)) => Err(Some(least)),
                written => written.map_err(|_exhausted| None),
            })
        });
        sealed.ok_or(CutReason::TlsFailed)
    }

    /// Says, once, that nothing follows: without it a peer cannot tell our end from somebody else's cut.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        if mem::replace(&mut self.is_closed, true) {
            return;
        }
        // One that never got so far hears it from the socket.
        let _said = self.write(out, |traffic, out| {
            append(out, SEAL_BYTES, |space| match traffic.queue_close_notify(space) {
                Err(EncryptError::InsufficientSize(least)) => Err(Some(least)),
                written => written.map_err(|_exhausted| None),
            })
        });
    }

    /// Lets `write` write, if the connection has come so far.
    fn write(
        &mut self,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>, &mut Vec<u8>) -> Option<()>,
    ) -> Option<()> {
        let State::Begun(tls) = &mut self.state else { return None };
        // What is held begins no complete record, or it would have been opened: this only asks for the state.
        match tls.process_tls_records(&mut self.held).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => write(&mut traffic, out),
            _ => None,
        }
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.capacity()
    }
}

/// As [`Secured::open`], of a connection that has begun.
fn take(
    tls: &mut UnbufferedServerConnection,
    held: &mut Vec<u8>,
    mut bytes: &mut [u8],
    out: &mut Vec<u8>,
    text: &mut impl FnMut(&[u8]),
) -> Result<Side, CutReason> {
    let mut side = Side::Open;
    while !held.is_empty() && !bytes.is_empty() {
        // Only what completes the record is copied to its beginning. The library has seen that beginning, so it must
        // see it again, in front of the rest.
        let missing = match missing(held) {
            0 => bytes.len(),
            missing => missing.min(bytes.len()),
        };
        let (first, rest) = bytes.split_at_mut(missing);
        held.extend_from_slice(first);
        bytes = rest;
        let (used, seen) = process(tls, held, out, text)?;
        held.drain(..used);
        side = side.or(seen);
        if held.len() > HELD_BYTES_MAX {
            return Err(CutReason::TlsFailed);
        }
    }
    if held.is_empty() {
        let (used, seen) = process(tls, bytes, out, text)?;
        side = side.or(seen);
        // Connections are many and records large: what one needed is not kept.
        *held = bytes[used..].to_vec();
    }
    Ok(side)
}

impl Side {
    fn or(self, later: Self) -> Self {
        if later == Self::Ended { later } else { self }
    }
}

/// How many bytes the record that begins `held` is short of, as far as that is known.
fn missing(held: &[u8]) -> usize {
    match held {
        [_, _, _, high, low, ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            (RECORD_HEADER_BYTES + length).saturating_sub(held.len())
        }
        _ => RECORD_HEADER_BYTES - held.len(),
    }
}

/// Opens the records that are complete; how many bytes are done with.
fn process(
    tls: &mut UnbufferedServerConnection,
    incoming: &mut [u8],
    out: &mut Vec<u8>,
    text: &mut impl FnMut(&[u8]),
) -> Result<(usize, Side), CutReason> {
    let (mut used, mut side) = (0, Side::Open);
    loop {
        let UnbufferedStatus { mut discard, state } = tls.process_tls_records(&mut incoming[used..]);
        let mut is_done = false;
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(|_broken| CutReason::TlsFailed)?;
                    discard += record.discard;
                    text(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out)?,
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => side = Side::Ended,
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => is_done = true,
            // Nothing follows; what came behind the end is nobody's.
            Ok(ConnectionState::Closed) => return Ok((incoming.len(), Side::Ended)),
            // Nobody allows data before the handshake, so that nothing can be replayed.
            Ok(_early) => return Err(CutReason::TlsFailed),
            Err(_broken) => {
                used += discard;
                last_words(tls, &mut incoming[used..], out);
                return Err(CutReason::TlsFailed);
            }
        }
        used += discard;
        if is_done {
            return Ok((used, side));
        }
    }
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> Result<(), CutReason> {
    let encoded = append(out, TEXT_BYTES_MAX, |space| match data.encode(space) {
        Err(EncodeError::InsufficientSize(least)) => Err(Some(least)),
        written => written.map_err(|_twice| None),
    });
    encoded.ok_or(CutReason::TlsFailed)
}

/// Why it failed, for the peer: an alert, behind what was to be said before it. Nothing is read on for it.
fn last_words(tls: &mut UnbufferedServerConnection, incoming: &mut [u8], out: &mut Vec<u8>) {
    while tls.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = tls.process_tls_records(incoming).state else {
            return;
        };
        if encode(&mut data, out).is_err() {
            return;
        }
    }
}

/// Has `write` write behind `out`, into as much space as it needs; `guess` spares asking.
fn append(
    out: &mut Vec<u8>,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) -> Option<()> {
    let start = out.len();
    let mut space = guess;
    loop {
        out.resize(start + space, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Some(());
            }
            Err(Some(InsufficientSizeError { required_size })) if required_size > space => {
                space = required_size
            }
            Err(_) => {
                out.truncate(start);
                return None;
            }
        }
    }
}
