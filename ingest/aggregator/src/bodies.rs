//! The bodies that undecided spans lie in, of one partition: a window on the journal's newest records.
//!
//! Each entry knows how many undecided spans of this shard lie in it. At zero its bytes go at once; the front of the
//! window is the watermark below which everything is settled. Beyond the memory budget the oldest bytes go early: the
//! journal still has them.

use std::collections::VecDeque;
use std::sync::Arc;

use ingest_otlp::Body as RequestBody;
use store_model::Offset;

#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) offset: Offset,
    pub(crate) tenant: u32,
    pub(crate) undecided: u32,
    pub(crate) bytes: Option<Arc<RequestBody>>,
}

#[derive(Debug)]
pub(crate) struct Bodies {
    window: VecDeque<Body>,
    /// One past the newest record seen.
    consumed: Offset,
    resident_bytes: usize,
    /// Entries before this index have given their bytes up already.
    evicted: usize,
}

impl Bodies {
    pub(crate) fn new(consumed: Offset) -> Self {
        Self { window: VecDeque::new(), consumed, resident_bytes: 0, evicted: 0 }
    }

    pub(crate) fn consumed(&self) -> Offset {
        self.consumed
    }

    /// Everything below is settled.
    pub(crate) fn watermark(&self) -> Offset {
        self.window.front().map_or(self.consumed, |body| body.offset)
    }

    pub(crate) fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// Takes the next record. Records below [`Self::consumed`] must have been filtered by the caller.
    pub(crate) fn push(&mut self, offset: Offset, tenant: u32, body: Arc<RequestBody>, undecided: u32) {
        self.consumed = offset.plus(1);
        let bytes = (undecided > 0).then_some(body);
        self.resident_bytes += bytes.as_ref().map_or(0, |body| resident(body));
        self.window.push_back(Body { offset, tenant, undecided, bytes });
        self.drop_settled_front();
    }

    /// `count` spans of the newest record did not stay undecided after all, or more did.
    pub(crate) fn settle(&mut self, offset: Offset) {
        let Some(index) = self.index(offset) else { return };
        let body = &mut self.window[index];
        body.undecided = body.undecided.saturating_sub(1);
        if body.undecided == 0 {
            self.resident_bytes -= body.bytes.take().map_or(0, |body| resident(&body));
            self.drop_settled_front();
        }
    }

    pub(crate) fn get(&self, offset: Offset) -> Option<Arc<RequestBody>> {
        self.index(offset).and_then(|index| self.window[index].bytes.clone())
    }

    /// Gives up the oldest bytes until `bytes_max` holds.
    pub(crate) fn evict_to(&mut self, bytes_max: usize) {
        while self.resident_bytes > bytes_max && self.evicted < self.window.len() {
            let bytes = self.window[self.evicted].bytes.take();
            self.resident_bytes -= bytes.map_or(0, |body| resident(&body));
            self.evicted += 1;
        }
    }

    /// Bodies with undecided spans, oldest first.
    pub(crate) fn undecided(&self) -> impl Iterator<Item = &Body> {
        self.window.iter().filter(|body| body.undecided > 0)
    }

    fn drop_settled_front(&mut self) {
        while self.window.front().is_some_and(|body| body.undecided == 0) {
            self.window.pop_front();
            self.evicted = self.evicted.saturating_sub(1);
        }
    }

    /// Offsets are dense but for gaps that damage left, so the guess nearly always hits.
    fn index(&self, offset: Offset) -> Option<usize> {
        let front = self.window.front()?.offset;
        let guess = usize::try_from(offset.0.checked_sub(front.0)?).ok()?;
        if self.window.get(guess).is_some_and(|body| body.offset == offset) {
            return Some(guess);
        }
        self.window.binary_search_by_key(&offset, |body| body.offset).ok()
    }
}

/// What a body holds in memory.
fn resident(body: &RequestBody) -> usize {
    body.bytes.len() + body.containers.heap_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(length: usize) -> Arc<RequestBody> {
        RequestBody::unwalked(vec![1; length].into())
    }

    #[test]
    fn the_watermark_waits_for_the_oldest_undecided_span() {
        let mut bodies = Bodies::new(Offset(5));
        assert_eq!(bodies.watermark(), Offset(5));
        bodies.push(Offset(5), 0, body(10), 2);
        bodies.push(Offset(6), 0, body(10), 1);
        bodies.push(Offset(9), 0, body(10), 1);
        bodies.settle(Offset(6));
        assert_eq!((bodies.watermark(), bodies.resident_bytes()), (Offset(5), 20));
        bodies.settle(Offset(5));
        bodies.settle(Offset(5));
        assert_eq!((bodies.watermark(), bodies.consumed()), (Offset(9), Offset(10)));
        bodies.settle(Offset(9));
        assert_eq!((bodies.watermark(), bodies.resident_bytes()), (Offset(10), 0));
    }

    #[test]
    fn the_budget_takes_the_oldest_bytes_and_leaves_the_entries() {
        let mut bodies = Bodies::new(Offset(0));
        (0..10).for_each(|n| bodies.push(Offset(n), 0, body(100), 1));
        bodies.evict_to(350);
        assert!(bodies.get(Offset(6)).is_none() && bodies.get(Offset(7)).is_some());
        assert_eq!(bodies.watermark(), Offset(0));
        (0..8).for_each(|n| bodies.settle(Offset(n)));
        bodies.push(Offset(10), 0, body(100), 1);
        bodies.evict_to(250);
        assert!(bodies.get(Offset(8)).is_none() && bodies.get(Offset(9)).is_some());
        assert_eq!(bodies.resident_bytes(), 200);
    }
}
