//! The records that undecided spans lie in, of one partition: a window on the journal's newest records.
//!
//! Each entry knows where the undecided spans of this shard lie in its body. When none is left the entry goes at once; the
//! front of the window is the watermark below which everything is settled. Beyond the memory budget the oldest bodies go
//! early: the journal still has them.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use ingest_otlp::Body as RequestBody;
use store_model::{BodyRange, Offset, PartitionId};

use crate::ranges::Ranges;
use crate::slab::Slab;

/// Instead of a number of an entry: everything of this record is settled.
const SETTLED: u32 = u32::MAX;

/// Spans of one trace that come in a row in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Counted by [`Bodies`] from the first record it took, all around 32 bits: no window holds as many.
    pub(crate) record: u32,
    /// The number of its first span among those of this record that were undecided when it was taken.
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) partition: PartitionId,
}

#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) offset: Offset,
    pub(crate) tenant: u32,
    pub(crate) bytes: Option<Arc<RequestBody>>,
    /// What this shard answers for of the memory of `bytes`.
    charge: usize,
    /// A trace that was kept has spans here, and holds the body until they are in the archive.
    is_kept: bool,
    ranges: Ranges,
}

impl Body {
    pub(crate) fn ranges(&self, run: Run) -> &[BodyRange] {
        self.ranges.of(run.first, run.count)
    }
}

#[derive(Debug)]
pub(crate) struct Bodies {
    /// Per record the number of its entry. A trace that lives on for minutes holds the front back, and what is settled behind
    /// it should weigh little.
    window: VecDeque<u32>,
    entries: Slab<Body>,
    /// The number of the record at the front.
    front: u32,
    /// One past the newest record seen.
    consumed: Offset,
    /// Charges of the bodies that are held.
    resident_bytes: usize,
    /// Charges of bodies that were let go of here while kept traces hold them.
    handed_on_bytes: usize,
    range_bytes: usize,
    /// Records before this index have given their bodies up already.
    evicted: usize,
}

impl Bodies {
    pub(crate) fn new(consumed: Offset) -> Self {
        Self {
            window: VecDeque::new(),
            entries: Slab::new(),
            front: 0,
            consumed,
            resident_bytes: 0,
            handed_on_bytes: 0,
            range_bytes: 0,
            evicted: 0,
        }
    }

    pub(crate) fn consumed(&self) -> Offset {
        self.consumed
    }

    /// Everything below is settled.
    pub(crate) fn watermark(&self) -> Offset {
        self.window.front().map_or(self.consumed, |&entry| self.entries[entry].offset)
    }

    /// This shard's part of the bytes of the bodies.
    pub(crate) fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// Bytes of what is known about the records, bodies apart.
    pub(crate) fn live_bytes(&self) -> usize {
        self.range_bytes + self.entries.len() * size_of::<Body>() + self.window.len() * size_of::<u32>()
    }

    /// The number of the record that is pushed next.
    pub(crate) fn next_record(&self) -> u32 {
        self.front.wrapping_add(u32::try_from(self.window.len()).unwrap_or(u32::MAX))
    }

    /// Takes the next record, with the ranges of its undecided spans. `holders` shards have some. Records below
    /// [`Self::consumed`] must have been filtered by the caller.
    pub(crate) fn push(
        &mut self,
        offset: Offset,
        tenant: u32,
        (body, holders): (Arc<RequestBody>, u16),
        undecided: Vec<BodyRange>,
    ) {
        self.consumed = offset.plus(1);
        if undecided.is_empty() {
            self.window.push_back(SETTLED);
            self.drop_settled_front();
            return;
        }
        let ranges = Ranges::new(undecided);
        self.range_bytes += ranges.heap_bytes();
        let charge = (body.bytes.len() + body.containers.heap_bytes()) / usize::from(holders.max(1));
        self.resident_bytes += charge;
        let entry =
            self.entries.insert(Body { offset, tenant, bytes: Some(body), charge, is_kept: false, ranges });
        self.window.push_back(entry);
    }

    /// The undecided spans of `run` are kept: they go on to the archive, with the body they lie in.
    pub(crate) fn keep(&mut self, run: Run) {
        let index = self.index(run);
        if let Some(&entry) = self.window.get(index).filter(|&&entry| entry != SETTLED) {
            self.entries[entry].is_kept = true;
        }
    }

    /// This shard's part of the bytes of bodies that were let go of since this was last asked, and that kept traces hold.
    pub(crate) fn take_handed_on_bytes(&mut self) -> usize {
        mem::take(&mut self.handed_on_bytes)
    }

    /// The spans of `run` are settled.
    pub(crate) fn settle(&mut self, run: Run) {
        let index = self.index(run);
        let Some(&entry) = self.window.get(index).filter(|&&entry| entry != SETTLED) else { return };
        let body = &mut self.entries[entry];
        self.range_bytes -= body.ranges.heap_bytes();
        body.ranges.settle(run.first, run.count);
        if body.ranges.undecided() > 0 {
            self.range_bytes += body.ranges.heap_bytes();
            return;
        }
        body.ranges = Ranges::default();
        self.let_go(entry);
        self.entries.remove(entry);
        self.window[index] = SETTLED;
        self.drop_settled_front();
    }

    /// The record that the undecided spans of `run` lie in.
    pub(crate) fn get(&self, run: Run) -> Option<&Body> {
        self.window.get(self.index(run)).filter(|&&entry| entry != SETTLED).map(|&entry| &self.entries[entry])
    }

    /// Gives up the oldest bodies until `bytes_max` holds.
    pub(crate) fn evict_to(&mut self, bytes_max: usize) {
        while self.resident_bytes > bytes_max && self.evicted < self.window.len() {
            let entry = self.window[self.evicted];
            if entry != SETTLED {
                self.let_go(entry);
            }
            self.evicted += 1;
        }
    }

    /// Records with undecided spans, oldest first.
    pub(crate) fn undecided(&self) -> impl Iterator<Item = &Body> {
        self.window.iter().filter(|&&entry| entry != SETTLED).map(|&entry| &self.entries[entry])
    }

    fn let_go(&mut self, entry: u32) {
        let Body { bytes, charge, is_kept, .. } = &mut self.entries[entry];
        if bytes.take().is_none() {
            return;
        }
        self.resident_bytes -= *charge;
        if *is_kept {
            self.handed_on_bytes += *charge;
        }
    }

    fn drop_settled_front(&mut self) {
        while self.window.front() == Some(&SETTLED) {
            self.window.pop_front();
            self.front = self.front.wrapping_add(1);
            self.evicted = self.evicted.saturating_sub(1);
        }
    }

    fn index(&self, run: Run) -> usize {
        run.record.wrapping_sub(self.front) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(bodies: &mut Bodies, offset: u64, length: usize, spans: u32) -> Run {
        let record = bodies.next_record();
        let range = |number| BodyRange { position: number, length: 1 };
        let body = RequestBody::unwalked(vec![1; length].into());
        bodies.push(Offset(offset), 0, (body, 1), (0..spans).map(range).collect());
        Run { record, first: 0, count: spans, partition: PartitionId(0) }
    }

    #[test]
    fn the_watermark_waits_for_the_oldest_undecided_span() {
        let mut bodies = Bodies::new(Offset(5));
        assert_eq!(bodies.watermark(), Offset(5));
        let five = push(&mut bodies, 5, 10, 2);
        let six = push(&mut bodies, 6, 10, 1);
        let nine = push(&mut bodies, 9, 10, 1);
        bodies.settle(six);
        assert_eq!((bodies.watermark(), bodies.resident_bytes()), (Offset(5), 20));
        bodies.settle(Run { first: 1, count: 1, ..five });
        assert_eq!(bodies.watermark(), Offset(5));
        bodies.settle(Run { first: 0, count: 1, ..five });
        assert_eq!((bodies.watermark(), bodies.consumed()), (Offset(9), Offset(10)));
        bodies.settle(nine);
        assert_eq!((bodies.watermark(), bodies.resident_bytes(), bodies.live_bytes()), (Offset(10), 0, 0));
        push(&mut bodies, 10, 10, 0);
        assert_eq!(bodies.watermark(), Offset(11));
    }

    #[test]
    fn the_budget_takes_the_oldest_bodies_and_leaves_the_entries() {
        let mut bodies = Bodies::new(Offset(0));
        let mut runs: Vec<Run> = (0..10).map(|n| push(&mut bodies, n, 100, 1)).collect();
        let has_bytes = |bodies: &Bodies, run: Run| bodies.get(run).unwrap().bytes.is_some();
        bodies.evict_to(350);
        assert!(!has_bytes(&bodies, runs[6]) && has_bytes(&bodies, runs[7]));
        assert_eq!(bodies.watermark(), Offset(0));
        assert_eq!(bodies.get(runs[0]).unwrap().ranges(runs[0]), [BodyRange { position: 0, length: 1 }]);
        runs[..8].iter().for_each(|&run| bodies.settle(run));
        runs.push(push(&mut bodies, 10, 100, 1));
        bodies.evict_to(250);
        assert!(!has_bytes(&bodies, runs[8]) && has_bytes(&bodies, runs[9]));
        assert_eq!(bodies.resident_bytes(), 200);
    }

    #[test]
    fn shards_share_what_a_body_costs() {
        let mut bodies = Bodies::new(Offset(0));
        let run = Run { record: bodies.next_record(), first: 0, count: 1, partition: PartitionId(0) };
        let body = RequestBody::unwalked(vec![1; 100].into());
        bodies.push(Offset(0), 0, (body, 4), vec![BodyRange { position: 0, length: 1 }]);
        assert_eq!(bodies.resident_bytes(), 25);
        bodies.keep(run);
        bodies.settle(run);
        assert_eq!((bodies.resident_bytes(), bodies.take_handed_on_bytes()), (0, 25));
    }

    #[test]
    fn records_settled_behind_an_old_one_weigh_four_bytes() {
        let mut bodies = Bodies::new(Offset(0));
        push(&mut bodies, 0, 100, 1);
        let one = bodies.live_bytes();
        for offset in 1..1_000 {
            let run = push(&mut bodies, offset, 100, 500);
            bodies.settle(Run { count: 300, ..run });
            bodies.settle(Run { first: 300, count: 200, ..run });
        }
        assert_eq!((bodies.live_bytes(), bodies.watermark()), (one + 999 * 4, Offset(0)));
    }
}
