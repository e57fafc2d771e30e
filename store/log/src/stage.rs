//! The records of one commit, laid out as the disk will have them: copied once, checksummed while they are still in the
//! cache, and written from where they lie. Knows no disk and no segment.

use std::ops::Range;

use crate::format::{self, BLOCK_BYTES, CommitFacts, SECTOR_BYTES, Salt, TABLE_ENTRY_BYTES};

/// Where memory for direct writes begins: a page, which satisfies every device.
const MEMORY_ALIGNMENT: usize = 4096;

/// Room for header and table in front of the payloads, enough for two thousand records; more of them move the payloads.
const FRONT_BYTES: usize = 16 << 10;

/// Payloads that there is room for with the first one.
const PAYLOAD_BYTES_FIRST: usize = 1 << 20;

/// A commit that was larger than this, for want of a disk in time, does not keep its memory for the next one.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Records collected for a commit.
///
/// ```text
/// memory  |  unused  | header, table, zeros |  payloads  | zeros |
///                    ^ on a sector          ^ start, on a page   ^ so that it is whole blocks
/// ```
#[derive(Debug, Default)]
pub struct Stage {
    memory: Vec<u8>,
    /// Where the payloads begin; everything behind it in `memory` is payload.
    start: usize,
    /// As it will stand behind the commit's header.
    table: Vec<u8>,
    /// Up to where the payloads were searched for sectors of zeros, and how many there are.
    searched: usize,
    zero_sectors: u32,
}

/// Memory with room for `front` bytes before a page and `payload` bytes behind it.
fn aligned(front: usize, payload: usize) -> (Vec<u8>, usize) {
    let mut memory: Vec<u8> = Vec::with_capacity(front + MEMORY_ALIGNMENT + payload);
    let offset = memory.as_ptr().wrapping_add(front).align_offset(MEMORY_ALIGNMENT);
    // Alignment cannot be had in a few environments, where nothing is written directly either.
    let start = front + offset.min(MEMORY_ALIGNMENT);
    memory.resize(start, 0);
    (memory, start)
}

impl Stage {
    /// Adds a record, `head` and `body` one behind the other.
    ///
    /// # Panics
    /// When it is 4 GiB or longer: bodies are limited far below that.
    pub fn push(&mut self, head: &[u8], body: &[u8]) {
        let bytes = head.len() + body.len();
        let length = u32::try_from(bytes).expect("a record's length fits 32 bits");
        self.reserve(bytes);
        let from = self.memory.len();
        self.memory.extend_from_slice(head);
        self.memory.extend_from_slice(body);
        let crc = crc32c::crc32c(&self.memory[from..]);
        self.table.extend(length.to_le_bytes());
        self.table.extend(crc.to_le_bytes());
        let whole = (self.memory.len() - self.searched) / SECTOR_BYTES * SECTOR_BYTES;
        self.search(self.searched + whole);
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> u64 {
        (self.table.len() / TABLE_ENTRY_BYTES) as u64
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Bytes of all records.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.memory.len() - self.start
    }

    /// How long their commit will be; zero without a record.
    #[must_use]
    pub fn commit_bytes(&self) -> u64 {
        if self.is_empty() { 0 } else { format::commit_bytes(self.table.len(), self.payload_bytes()) }
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        if self.memory.capacity() > KEPT_BYTES_MAX {
            *self = Self::default();
            return;
        }
        self.memory.truncate(self.start);
        self.table.clear();
        (self.searched, self.zero_sectors) = (self.start, 0);
    }

    /// Gives the memory to whoever writes it; it is to come back with [`Self::take_back`] before anything else happens here.
    #[must_use]
    pub fn lend(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.memory)
    }

    /// The memory of [`Self::lend`], unchanged.
    pub fn take_back(&mut self, memory: Vec<u8>) {
        self.memory = memory;
    }

    /// The bytes that [`Self::close`] named.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.memory[range]
    }

    /// Completes the commit, and says where in memory it lies. Nothing can be added any more.
    pub(crate) fn close(&mut self, facts: CommitFacts, salt: Salt) -> Range<usize> {
        let payload_bytes = self.payload_bytes();
        let front_bytes = format::front_bytes(self.table.len());
        if front_bytes > self.start {
            self.move_payloads(front_bytes, payload_bytes + BLOCK_BYTES);
        }
        let commit_bytes = format::commit_bytes(self.table.len(), payload_bytes);
        let end = self.start - front_bytes + usize::try_from(commit_bytes).unwrap_or(usize::MAX);
        self.memory.resize(end, 0);
        self.search(end);
        let front = &mut self.memory[self.start - front_bytes..self.start];
        format::encode_front(front, facts, salt, &self.table, payload_bytes as u64, self.zero_sectors);
        self.start - front_bytes..self.memory.len()
    }

    fn reserve(&mut self, bytes: usize) {
        // The zeros behind the last payload find room, too.
        let needed = self.memory.len() + bytes + BLOCK_BYTES;
        if needed > self.memory.capacity() {
            let room = (self.memory.capacity() * 2).max(needed) - self.start;
            self.move_payloads(FRONT_BYTES, room.max(PAYLOAD_BYTES_FIRST));
        }
    }

    fn move_payloads(&mut self, front: usize, room: usize) {
        let (mut memory, start) = aligned(front, room);
        memory.extend_from_slice(&self.memory[self.start..]);
        self.searched = self.searched - self.start + start;
        (self.memory, self.start) = (memory, start);
    }

    /// Counts the sectors of zeros up to `end`, while they are in the cache.
    fn search(&mut self, end: usize) {
        let sectors = self.memory[self.searched..end].chunks(SECTOR_BYTES);
        let zeros = sectors.filter(|sector| format::is_zero(sector)).count();
        self.zero_sectors = self.zero_sectors.saturating_add(u32::try_from(zeros).unwrap_or(u32::MAX));
        self.searched = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{COMMIT_HEADER_BYTES, CommitHeader, Kind, SegmentHeader, parse_table};
    use proptest::prelude::*;
    use store_model::{Epoch, Offset, UnixNanos};

    fn salt() -> Salt {
        let (epoch, zero) = (Epoch(3), Offset(0));
        SegmentHeader { epoch, base_offset: zero, previous_end: zero, created_at: UnixNanos(5) }.encode().1
    }

    fn facts() -> CommitFacts {
        CommitFacts { kind: Kind::Records, epoch: Epoch(3), base_offset: Offset(70), timestamp: UnixNanos(9) }
    }

    /// Closes it and takes it apart again as a reader does.
    fn check(stage: &mut Stage, records: &[(Vec<u8>, Vec<u8>)]) {
        let expected_bytes = stage.commit_bytes();
        let range = stage.close(facts(), salt());
        let bytes = stage.bytes(range);
        assert_eq!(bytes.len() as u64, expected_bytes);
        assert!(bytes.as_ptr().addr().is_multiple_of(SECTOR_BYTES));
        let header = CommitHeader::parse(bytes, salt()).unwrap();
        assert_eq!(header.extent(), bytes.len() as u64);
        assert_eq!(header.end_offset(), Offset(70 + records.len() as u64));
        assert_eq!(header.zero_sectors, format::count_zero_sectors(bytes));
        let (front, mut payload) = bytes.split_at(usize::try_from(header.payload_start()).unwrap());
        let table_end = COMMIT_HEADER_BYTES + usize::try_from(header.table_bytes()).unwrap();
        let table = parse_table(&front[COMMIT_HEADER_BYTES..table_end], &header).unwrap();
        assert_eq!(table.len(), records.len());
        for (entry, (head, body)) in table.iter().zip(records) {
            let record = [&head[..], body].concat();
            let found;
            (found, payload) = payload.split_at(record.len());
            assert!(found == record && entry.matches(found));
        }
        assert!(format::is_zero(payload) && payload.len() < BLOCK_BYTES);
    }

    proptest! {
        #[test]
        fn records_come_back_commit_after_commit(
            commits in prop::collection::vec(prop::collection::vec((0usize..40, 0usize..3000, 0u8..3), 1..30), 1..4),
        ) {
            let mut stage = Stage::default();
            for sizes in commits {
                let made = |(head, body, fill): (usize, usize, u8)| (vec![fill; head], vec![fill; body]);
                let records: Vec<_> = sizes.into_iter().map(made).collect();
                records.iter().for_each(|(head, body)| stage.push(head, body));
                check(&mut stage, &records);
                stage.clear();
                assert!(stage.is_empty() && stage.commit_bytes() == 0);
            }
        }
    }

    #[test]
    fn many_records_and_large_ones_find_room() {
        let mut stage = Stage::default();
        let small = vec![(vec![1], vec![2, 3]); 5_000];
        small.iter().for_each(|(head, body)| stage.push(head, body));
        check(&mut stage, &small);
        stage.clear();
        let large = vec![(vec![1; 30], vec![7; KEPT_BYTES_MAX / 2 + 1]); 2];
        large.iter().for_each(|(head, body)| stage.push(head, body));
        check(&mut stage, &large);
        stage.clear();
        assert_eq!(stage.memory.capacity(), 0, "what was large is given back");
    }
}
