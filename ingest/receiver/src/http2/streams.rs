//! The streams of a connection: the open ones in the order of their ids, and for a while how the last ones ended,
//! since what a late frame means depends on that (RFC 9113, section 5.1).

/// How many ended streams are remembered. Frames for older ones are dropped without a word.
const ENDED_KEPT: usize = 256;

/// A stream that is not over.
#[derive(Debug)]
pub struct Stream {
    pub id: u32,
    /// What the peer may still send.
    pub room: u32,
    /// What was consumed and the peer has not been told yet.
    pub owed: u32,
    /// What we may send; below zero after the peer shrank its window.
    pub send_window: i64,
    /// What of the promised `content-length` has not come yet.
    pub body_left: Option<u64>,
    /// The peer has said END_STREAM.
    pub request_ended: bool,
    /// The answer has been handed over, though it may wait here.
    pub waiting: Option<Box<Waiting>>,
}

/// The part of an answer that the peer's windows do not allow yet.
#[derive(Debug)]
pub struct Waiting {
    pub body: Vec<u8>,
    pub sent: usize,
    /// A header block.
    pub trailers: Option<Vec<u8>>,
}

impl Waiting {
    /// What it counts for against `out_bytes_max`.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.trailers.as_ref().map_or(0, Vec::len) + size_of::<Self>()
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides said END_STREAM.
    Complete,
    /// We reset it: what is still under way to us is no fault.
    ByUs,
    /// The peer reset it: nothing may follow.
    ByPeer,
}

/// All streams of a connection.
#[derive(Debug, Default)]
pub struct Streams {
    /// Ascending by id, which is the order peers open them in.
    open: Vec<Stream>,
    /// A ring.
    ended: Vec<(u32, End)>,
    ended_next: usize,
    /// The highest id the peer has used.
    pub last: u32,
}

impl Streams {
    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.iter_mut()
    }

    /// The id of the first open stream behind `id`.
    pub fn next_after(&self, id: u32) -> Option<u32> {
        let at = self.open.partition_point(|stream| stream.id <= id);
        self.open.get(at).map(|stream| stream.id)
    }

    /// The open stream of that id.
    pub fn get(&mut self, id: u32) -> Option<&mut Stream> {
        let at = self.position(id)?;
        self.open.get_mut(at)
    }

    fn position(&self, id: u32) -> Option<usize> {
        // Mostly it is the newest or the only one.
        match self.open.last() {
            Some(newest) if newest.id == id => Some(self.open.len() - 1),
            _ => self.open.binary_search_by_key(&id, |stream| stream.id).ok(),
        }
    }

    /// Adds a stream, whose id is above all others.
    pub fn push(&mut self, stream: Stream) {
        self.open.push(stream);
    }

    /// Takes a stream out and remembers how it ended.
    pub fn remove(&mut self, id: u32, end: End) -> Option<Stream> {
        let at = self.position(id)?;
        self.remember(id, end);
        Some(self.open.remove(at))
    }

    /// Remembers the end of a stream that was never open.
    pub fn remember(&mut self, id: u32, end: End) {
        if self.ended.len() < ENDED_KEPT {
            self.ended.push((id, end));
        } else {
            self.ended[self.ended_next] = (id, end);
            self.ended_next = (self.ended_next + 1) % ENDED_KEPT;
        }
    }

    /// How a stream ended, if that is still known.
    pub fn end(&self, id: u32) -> Option<End> {
        self.ended.iter().rev().find(|(ended, _)| *ended == id).map(|(_, end)| *end)
    }

    /// Gives memory back that only a busy connection needs.
    pub fn trim(&mut self) {
        self.open.shrink_to_fit();
        if self.open.is_empty() {
            self.ended = Vec::new();
            self.ended_next = 0;
        }
    }

    /// What it holds, for tests that bound it.
    #[cfg(any(test, feature = "internals"))]
    pub fn memory_bytes(&self) -> usize {
        self.open.capacity() * size_of::<Stream>() + self.ended.capacity() * size_of::<(u32, End)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(id: u32) -> Stream {
        Stream { id, room: 0, owed: 0, send_window: 0, body_left: None, request_ended: false, waiting: None }
    }

    #[test]
    fn streams_are_found_until_they_end_and_remembered_for_a_while() {
        let mut streams = Streams::default();
        for id in [1, 3, 7] {
            streams.push(stream(id));
        }
        assert_eq!([1, 3, 5, 7].map(|id| streams.get(id).is_some()), [true, true, false, true]);
        assert_eq!([0, 1, 3, 7].map(|id| streams.next_after(id)), [Some(1), Some(3), Some(7), None]);
        assert!(streams.remove(3, End::ByPeer).is_some());
        assert!(streams.remove(3, End::ByUs).is_none());
        assert_eq!((streams.len(), streams.end(3), streams.end(1)), (2, Some(End::ByPeer), None));
        for id in 0..u32::try_from(ENDED_KEPT).unwrap() {
            streams.remember(1_001 + 2 * id, End::Complete);
        }
        assert_eq!(streams.end(3), None);
        assert_eq!(streams.end(1_001), Some(End::Complete));
    }
}
