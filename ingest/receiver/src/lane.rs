//! One core's way into the intake: it lives on the receiving thread and does its work between two waits of that thread, so
//! that a request crosses no lock on its way to the journal. Owns no behaviour but the simplest lane.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store_model::Monotonic;

use crate::intake::{Done, Outcome, Received};

/// One core's part of the intake. Made on the receiving thread and never leaving it; nothing in it may block.
pub trait Lane {
    /// Takes `request` and answers through `done` once it is safe, at once or with a later [`Self::turn`]. Answers
    /// [`Outcome::Overloaded`] itself when it has no room. Dropping `done` counts as [`Outcome::Unavailable`].
    fn submit(&mut self, request: Received, done: Done);

    /// Called once in every turn of the thread, after what happened in it. Answers what is answered by now, and may
    /// return something for the driver to write, if it was made for a driver that does.
    fn turn(&mut self, _now: Monotonic, _answers: &mut Answers) -> Option<Write> {
        None
    }

    /// What became of the write that [`Self::turn`] returned; it was dropped. No other is under way.
    fn written(&mut self, _result: io::Result<()>, _now: Monotonic, _answers: &mut Answers) {}

    /// How long nothing is due; `None` for as long as nothing is submitted and nobody wakes the thread.
    fn rest(&self, _now: Monotonic) -> Option<Duration> {
        None
    }

    /// The thread ends: what was taken is brought to where it is safe. May block.
    fn finish(self: Box<Self>) {}
}

/// Wakes a receiving thread, so that its lane gets a turn.
pub trait Wake: Send + Sync {
    /// From any thread, at any time.
    fn wake(&self);
}

/// Who asks for a lane.
#[derive(Clone)]
pub struct Berth {
    /// The number of the receiving thread.
    pub core: usize,
    /// Its thread.
    pub wake: Arc<dyn Wake>,
    /// Whether the driver does the writes that a lane returns.
    pub writes: bool,
}

impl fmt::Debug for Berth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { core, wake: _, writes } = self;
        f.debug_struct("Berth").field("core", core).field("writes", writes).finish_non_exhaustive()
    }
}

/// Bytes to be made durable: written to the disk itself before the write counts as done.
pub struct Write {
    /// Where they go.
    pub file: Arc<dyn AsFd + Send + Sync>,
    /// At which byte of it.
    pub position: u64,
    /// The bytes, one piece behind the other; no more of them than Linux takes in one call (1,024).
    pub pieces: Vec<Bytes>,
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file: _, position, pieces } = self;
        let count = pieces.len();
        f.debug_struct("Write").field("position", position).field("pieces", &count).finish_non_exhaustive()
    }
}

/// Answers found out on the thread that gives them.
#[derive(Debug, Default)]
pub struct Answers(Vec<(Done, Outcome)>);

impl Answers {
    /// The answer to one request.
    pub fn give(&mut self, done: Done, outcome: Outcome) {
        self.0.push((done, outcome));
    }

    /// Sends each answer the way its sender waits for it.
    pub fn deliver(&mut self) {
        self.0.drain(..).for_each(|(done, outcome)| done.send(outcome));
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Done, Outcome)> {
        self.0.drain(..)
    }
}

/// A lane that hands every request to a function, which sees to the answer.
pub struct HandOver<F>(pub F);

impl<F: FnMut(Received, Done)> Lane for HandOver<F> {
    fn submit(&mut self, request: Received, done: Done) {
        (self.0)(request, done);
    }
}

impl<F> fmt::Debug for HandOver<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandOver")
    }
}
