//! Bodies as they arrive, piece by piece, into one contiguous buffer: the only copy the receiver makes. Owns growth,
//! the size limit and gRPC's length prefix; knows no socket and no clock.

use std::mem;
use std::rc::Rc;

use bytes::Bytes;

use crate::answer::{Reason, Refusal};
use crate::budget::Permit;
use crate::pool::{self, Pool};

/// One compressed flag and a big-endian length of four bytes stand before every gRPC message.
pub(crate) const GRPC_PREFIX_BYTES: usize = 5;

/// What is reserved on the word of a sender; beyond that the buffer grows with what has really come, so a declared
/// length alone takes no memory from others. Just what a size of the pool has.
const FIRST_RESERVE_BYTES_MAX: usize = (256 << 10) - pool::ALIGNMENT;

/// Received bytes are copied in pieces of this size. For longer ones the C library takes a string instruction, which was
/// measured at half as much again (EPYC, glibc 2.36) where source and destination are not aligned alike, and with nine bytes
/// of frame header between pieces they never are.
const COPY_BYTES: usize = 512;

/// A body being received.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// Where in `bytes` the body begins.
    start: usize,
    declared: Option<usize>,
    bytes_max: usize,
    permit: Permit,
    pool: Rc<Pool>,
}

impl Buffer {
    /// A buffer for a body of `declared` bytes, if its sender said so, and of `bytes_max` at most.
    pub(crate) fn new(
        declared: Option<usize>,
        bytes_max: usize,
        permit: Permit,
        pool: Rc<Pool>,
    ) -> Result<Self, Refusal> {
        if declared.is_some_and(|declared| declared > bytes_max) {
            return Err(Refusal::too_large(bytes_max));
        }
        Ok(Self { bytes: Vec::new(), start: 0, declared, bytes_max, permit, pool })
    }

    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        let needed = self.len() + piece.len();
        if needed > self.bytes_max {
            return Err(Refusal::too_large(self.bytes_max));
        }
        if needed > self.bytes.capacity() - self.start {
            self.grow(needed)?;
        }
        piece.chunks(COPY_BYTES).for_each(|few| self.bytes.extend_from_slice(few));
        Ok(())
    }

    /// Room for `needed` bytes: the declared length where it is modest, else twice what there was.
    fn grow(&mut self, needed: usize) -> Result<(), Refusal> {
        let end = self.declared.unwrap_or(self.bytes_max);
        let wanted = match self.bytes.capacity() {
            0 => self.declared.unwrap_or(0).min(FIRST_RESERVE_BYTES_MAX),
            capacity => (capacity * 2).min(end),
        };
        let bytes = wanted.max(needed);
        self.permit.grow(Pool::bytes_for(bytes) - self.bytes.capacity())?;
        self.move_to(bytes);
        Ok(())
    }

    fn move_to(&mut self, bytes: usize) {
        let mut memory = self.pool.take(bytes);
        let start = pool::body_start(&memory);
        memory.resize(start, 0);
        memory.extend_from_slice(&self.bytes[self.start..]);
        self.start = start;
        self.pool.give(mem::replace(&mut self.bytes, memory));
    }

    /// The body, with the permit for its memory.
    pub(crate) fn finish(mut self) -> (Bytes, Permit) {
        // The aggregator may keep the body for long: it shall hold no more than it must.
        let (held, needed) = (self.bytes.capacity(), Pool::bytes_for(self.len()));
        if held > needed {
            self.move_to(self.len());
            self.permit.shrink(held - needed);
        }
        let Self { bytes, start, declared: _, bytes_max: _, permit, pool } = self;
        (pool.share(bytes, start), permit)
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }
}

/// The one message of a unary gRPC call.
#[derive(Debug)]
pub(crate) enum GrpcMessage {
    /// Reading the prefix.
    Prefix { got: [u8; GRPC_PREFIX_BYTES], filled: usize, bytes_max: usize, permit: Permit, pool: Rc<Pool> },
    /// Reading the message itself.
    Message { compressed: bool, declared: usize, buffer: Buffer },
    /// Only for the moment in between, and after a refusal.
    Failed,
}

impl GrpcMessage {
    pub(crate) fn new(bytes_max: usize, permit: Permit, pool: Rc<Pool>) -> Self {
        Self::Prefix { got: [0; GRPC_PREFIX_BYTES], filled: 0, bytes_max, permit, pool }
    }

    /// Takes the next bytes of the stream, cut anywhere.
    pub(crate) fn push(&mut self, mut piece: &[u8]) -> Result<(), Refusal> {
        if let Self::Prefix { got, filled, .. } = self {
            let (_, missing) = got.split_at_mut(*filled);
            let (head, rest) = piece.split_at(missing.len().min(piece.len()));
            missing[..head.len()].copy_from_slice(head);
            *filled += head.len();
            if *filled < GRPC_PREFIX_BYTES {
                return Ok(());
            }
            self.begin()?;
            piece = rest;
        }
        let Self::Message { declared, buffer, .. } = self else {
            return Err(framing("no message is expected after a failed one"));
        };
        if buffer.len() + piece.len() > *declared {
            return Err(framing("more than one message in a unary call"));
        }
        buffer.push(piece)
    }

    /// From a complete prefix to its message.
    fn begin(&mut self) -> Result<(), Refusal> {
        let Self::Prefix { got, bytes_max, permit, pool, .. } = mem::replace(self, Self::Failed) else {
            return Err(framing("message begun twice"));
        };
        let [flag, length @ ..] = got;
        let compressed = match flag {
            0 => false,
            1 => true,
            _ => return Err(framing("compressed flag is neither 0 nor 1")),
        };
        let declared = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let buffer = Buffer::new(Some(declared), bytes_max, permit, pool)?;
        *self = Self::Message { compressed, declared, buffer };
        Ok(())
    }

    /// The stream has ended: whether the message is compressed, the message, and the permit for its memory.
    pub(crate) fn finish(self) -> Result<(bool, Bytes, Permit), Refusal> {
        match self {
            Self::Message { compressed, declared, buffer } if buffer.len() == declared => {
                let (bytes, permit) = buffer.finish();
                Ok((compressed, bytes, permit))
            }
            Self::Prefix { filled: 0, .. } => Err(framing("the call has no message")),
            _ => Err(framing("the message ends before its declared length")),
        }
    }
}

fn framing(message: &'static str) -> Refusal {
    Refusal::new(Reason::Framing, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::metrics::ReceiverMetrics;
    use std::sync::Arc;

    const LIMIT: usize = 1 << 20;

    fn budget(bytes_max: usize) -> (Arc<Budget>, Arc<ReceiverMetrics>) {
        let metrics = Arc::new(ReceiverMetrics::default());
        (Budget::new(bytes_max, Arc::clone(&metrics)), metrics)
    }

    fn pool() -> Rc<Pool> {
        Pool::new(LIMIT)
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&[flag], length.to_be_bytes().as_slice(), message].concat()
    }

    fn read(pieces: &[&[u8]]) -> Result<(bool, Bytes), Reason> {
        let (budget, _) = budget(4 * LIMIT);
        let mut message = GrpcMessage::new(LIMIT, budget.permit(), pool());
        for piece in pieces {
            message.push(piece).map_err(|refusal| refusal.reason)?;
        }
        let (compressed, bytes, _) = message.finish().map_err(|refusal| refusal.reason)?;
        Ok((compressed, bytes))
    }

    #[test]
    fn a_message_is_the_same_wherever_its_bytes_are_cut() {
        let stream = framed(1, b"eleven byte");
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(read(&pieces), Ok((true, Bytes::from_static(b"eleven byte"))), "{first} {second}");
            }
        }
    }

    #[test]
    fn anything_but_one_whole_message_is_a_framing_error() {
        let one = framed(0, b"abc");
        let two = [one.clone(), one.clone()].concat();
        for stream in [&two[..], &two[..9], &one[..7], &one[..3], &[], &framed(2, b"abc")] {
            assert_eq!(read(&[stream]), Err(Reason::Framing), "{stream:?}");
        }
        assert_eq!(read(&[&one, &one]), Err(Reason::Framing));
        assert_eq!(read(&[&framed(0, b"")]), Ok((false, Bytes::new())));
    }

    #[test]
    fn a_declared_length_beyond_the_limit_is_refused_before_its_bytes_come() {
        let prefix = [0, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(read(&[&prefix]), Err(Reason::TooLarge));
        let (budget, _) = budget(4 * LIMIT);
        let refused = Buffer::new(Some(LIMIT + 1), LIMIT, budget.permit(), pool()).unwrap_err();
        assert_eq!(refused.reason, Reason::TooLarge);
    }

    #[test]
    fn an_undeclared_body_is_cut_off_at_the_limit() {
        let (budget, _) = budget(4 * LIMIT);
        let mut buffer = Buffer::new(None, LIMIT, budget.permit(), pool()).unwrap();
        for _ in 0..16 {
            buffer.push(&[0; LIMIT / 16]).unwrap();
        }
        assert_eq!(buffer.push(&[0]).unwrap_err().reason, Reason::TooLarge);
    }

    #[test]
    fn memory_follows_what_has_come_and_not_what_was_declared() {
        let (budget, metrics) = budget(4 * LIMIT);
        let mut buffer = Buffer::new(Some(LIMIT), LIMIT, budget.permit(), pool()).unwrap();
        assert_eq!(metrics.snapshot().inflight_bytes, 0);
        buffer.push(b"x").unwrap();
        let first = Pool::bytes_for(FIRST_RESERVE_BYTES_MAX);
        assert_eq!(metrics.snapshot().inflight_bytes, first as u64);
        buffer.push(&vec![0; first]).unwrap();
        assert_eq!(metrics.snapshot().inflight_bytes, Pool::bytes_for(2 * first) as u64);
        let (bytes, permit) = buffer.finish();
        assert_eq!(metrics.snapshot().inflight_bytes, Pool::bytes_for(bytes.len()) as u64);
        drop(permit);
        assert_eq!(metrics.snapshot().inflight_bytes, 0);
    }
}
