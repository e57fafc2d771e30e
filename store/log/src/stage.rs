//! The records of one commit, laid out as the disk will have them: checksummed while they are still in the cache, and written
//! from where they lie. Large bodies stay where they are, small ones are copied behind each other. Knows no disk and no
//! segment.

use std::io::IoSlice;
use std::iter;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::format::{self, BLOCK_BYTES, CommitFacts, SECTOR_BYTES, Salt, TABLE_ENTRY_BYTES};

/// Where memory for direct writes begins: a page, which satisfies every device.
const MEMORY_ALIGNMENT: usize = 4096;

/// Room for header and table in front of the payloads, enough for two thousand records; more of them move the payloads.
const FRONT_BYTES: usize = 16 << 10;

/// Payloads that there is room for with the first one.
const PAYLOAD_BYTES_FIRST: usize = 1 << 20;

/// A commit that was larger than this, for want of a disk in time, does not keep its memory for the next one.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Bodies that one commit takes from elsewhere: with the pieces between them no more than Linux takes in one write
/// (`UIO_MAXIOV`).
const LENT_MAX: usize = 500;

/// Whole sectors of a body, where it lies.
#[derive(Clone, Debug)]
struct Lent {
    /// Up to where the stage's own memory is written before them.
    behind: usize,
    sectors: Bytes,
}

/// A piece of a commit: of the stage's memory, or lent.
enum Piece<'a> {
    Own(Range<usize>),
    Lent(&'a Bytes),
}

/// Memory of a stage, as long as others read it.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Records collected for a commit.
///
/// ```text
/// memory  |  unused  | header, table, zeros |  payloads  | zeros |
///                    ^ on a sector          ^ start, on a page   ^ so that it is whole blocks
/// ```
///
/// Where a body is lent, `payloads` goes on with what is behind its whole sectors: on the disk they come in between.
#[derive(Debug, Default)]
pub struct Stage {
    memory: Vec<u8>,
    /// Where the commit begins in memory, once it is closed, and its payloads.
    front: usize,
    start: usize,
    lent: Vec<Lent>,
    lent_bytes: usize,
    /// As it will stand behind the commit's header.
    table: Vec<u8>,
    /// Up to where the payloads were searched for sectors of zeros, and how many there are.
    searched: usize,
    zero_sectors: u32,
    /// What `memory` was, while it is given away.
    away: Option<Arc<Vec<u8>>>,
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
    /// Adds a record, `head` and `body` one behind the other. A body that lies on a sector, behind a head of whole sectors, is
    /// shared and not copied.
    ///
    /// # Panics
    /// When it is 4 GiB or longer: bodies are limited far below that.
    pub fn push(&mut self, head: &[u8], body: &Bytes) {
        let bytes = head.len() + body.len();
        let length = u32::try_from(bytes).expect("a record's length fits 32 bits");
        let end = self.payload_bytes() as u64;
        // The difference is less than a sector.
        let gap = usize::try_from(format::payload_place(end, u64::from(length)) - end).unwrap_or(0);
        let whole = if self.can_lend(head, body) { body.len() / SECTOR_BYTES * SECTOR_BYTES } else { 0 };
        let (lent, copied) = body.split_at(whole);
        self.reserve(gap + bytes - whole);
        let memory = &mut self.memory;
        memory.resize(memory.len() + gap, 0);
        memory.extend_from_slice(head);
        if !lent.is_empty() {
            self.lent.push(Lent { behind: memory.len(), sectors: body.slice(..whole) });
            self.lent_bytes += whole;
            self.zero_sectors = self.zero_sectors.saturating_add(format::count_zero_sectors(lent));
        }
        memory.extend_from_slice(copied);
        let crc = crc32c::crc32c_append(crc32c::crc32c(head), body);
        self.table.extend(length.to_le_bytes());
        self.table.extend(crc.to_le_bytes());
        let unsearched = (self.memory.len() - self.searched) / SECTOR_BYTES * SECTOR_BYTES;
        self.search(self.searched + unsearched);
    }

    /// Whether a direct write can take the body from where it lies: memory and disk agree about its sectors.
    fn can_lend(&self, head: &[u8], body: &Bytes) -> bool {
        (head.len() + body.len()) as u64 >= format::APART_BYTES
            && head.len().is_multiple_of(SECTOR_BYTES)
            && body.as_ptr().addr().is_multiple_of(SECTOR_BYTES)
            && self.lent.len() < LENT_MAX
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

    /// Bytes of all records, and of the zeros between them.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.memory.len() - self.start + self.lent_bytes
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
        self.lent.clear();
        self.table.clear();
        (self.lent_bytes, self.searched, self.zero_sectors) = (0, self.start, 0);
    }

    /// The pieces of a commit that was begun, each whole sectors long, for whoever writes them one behind the other. When that
    /// is done and they are dropped, [`Self::take_back`] has to follow before anything else happens here.
    #[must_use]
    pub fn lend(&mut self) -> Vec<Bytes> {
        let memory = Arc::new(mem::take(&mut self.memory));
        let own = Bytes::from_owner(Shared(Arc::clone(&memory)));
        let length = memory.len();
        self.away = Some(memory);
        let pieces = self.pieces(length).map(|piece| match piece {
            Piece::Own(range) => own.slice(range),
            Piece::Lent(sectors) => sectors.clone(),
        });
        pieces.collect()
    }

    /// Ends [`Self::lend`].
    pub fn take_back(&mut self) {
        // Had somebody kept a piece, what is written would still be right, but the memory would have to stay theirs.
        let memory =
            self.away.take().map(|memory| Arc::try_unwrap(memory).unwrap_or_else(|kept| (*kept).clone()));
        self.memory = memory.unwrap_or_default();
    }

    /// What [`Self::lend`] gives, to be read here.
    pub(crate) fn io_slices(&self) -> Vec<IoSlice<'_>> {
        let pieces = self.pieces(self.memory.len()).map(|piece| match piece {
            Piece::Own(range) => &self.memory[range],
            Piece::Lent(sectors) => sectors,
        });
        pieces.map(IoSlice::new).collect()
    }

    /// The commit from its first byte on, with `length` bytes of memory.
    fn pieces(&self, length: usize) -> impl Iterator<Item = Piece<'_>> {
        let starts = iter::once(self.front).chain(self.lent.iter().map(|lent| lent.behind));
        let ends = self.lent.iter().map(|lent| lent.behind).chain(iter::once(length));
        let between = starts.zip(ends).map(|(start, end)| Piece::Own(start..end));
        let bodies = self.lent.iter().map(|lent| Some(Piece::Lent(&lent.sectors))).chain(iter::once(None));
        between.zip(bodies).flat_map(|(own, lent)| [Some(own), lent]).flatten()
    }

    /// Completes the commit. Nothing can be added any more.
    pub(crate) fn close(&mut self, facts: CommitFacts, salt: Salt) {
        let payload_bytes = self.payload_bytes();
        let front_bytes = format::front_bytes(self.table.len());
        if front_bytes > self.start {
            self.move_payloads(front_bytes, self.memory.len() - self.start + BLOCK_BYTES);
        }
        let commit_bytes = format::commit_bytes(self.table.len(), payload_bytes);
        let zeros = usize::try_from(commit_bytes).unwrap_or(usize::MAX) - front_bytes - payload_bytes;
        let end = self.memory.len() + zeros;
        self.memory.resize(end, 0);
        self.search(end);
        self.front = self.start - front_bytes;
        let front = &mut self.memory[self.start - front_bytes..self.start];
        format::encode_front(front, facts, salt, &self.table, payload_bytes as u64, self.zero_sectors);
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
        for lent in &mut self.lent {
            lent.behind = lent.behind - self.start + start;
        }
        (self.memory, self.start) = (memory, start);
    }

    /// Counts the sectors of zeros up to `end`, while they are in the cache. Lent are whole sectors only, so a sector of
    /// memory is one of the disk.
    fn search(&mut self, end: usize) {
        let sectors = self.memory[self.searched..end].chunks(SECTOR_BYTES);
        let zeros = sectors.filter(|sector| format::is_zero(sector)).count();
        self.zero_sectors = self.zero_sectors.saturating_add(u32::try_from(zeros).unwrap_or(u32::MAX));
        self.searched = end;
    }
}

/// A body that begins on a sector, as those of the receiver's pool do.
#[cfg(test)]
pub(crate) fn on_a_sector(bytes: &[u8]) -> Bytes {
    let mut memory: Vec<u8> = Vec::with_capacity(bytes.len() + SECTOR_BYTES);
    let start = memory.as_ptr().align_offset(SECTOR_BYTES);
    memory.resize(start, 0);
    memory.extend_from_slice(bytes);
    Bytes::from(memory).slice(start..)
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
    fn check(stage: &mut Stage, records: &[(Vec<u8>, Bytes)]) {
        let expected_bytes = stage.commit_bytes();
        stage.close(facts(), salt());
        let pieces = stage.lend();
        for piece in &pieces {
            assert!(piece.as_ptr().addr().is_multiple_of(SECTOR_BYTES));
            assert!(!piece.is_empty() && piece.len().is_multiple_of(SECTOR_BYTES));
        }
        let bytes = pieces.concat();
        drop(pieces);
        stage.take_back();
        assert_eq!(bytes, stage.io_slices().iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>());
        assert_eq!(bytes.len() as u64, expected_bytes);
        let bytes = &bytes[..];
        let header = CommitHeader::parse(bytes, salt()).unwrap();
        assert_eq!(header.extent(), bytes.len() as u64);
        assert_eq!(header.end_offset(), Offset(70 + records.len() as u64));
        assert_eq!(header.zero_sectors, format::count_zero_sectors(bytes));
        let (front, payload) = bytes.split_at(usize::try_from(header.payload_start()).unwrap());
        let table_end = COMMIT_HEADER_BYTES + usize::try_from(header.table_bytes()).unwrap();
        let table = parse_table(&front[COMMIT_HEADER_BYTES..table_end], &header).unwrap();
        assert_eq!(table.len(), records.len());
        let place = |number: u64| usize::try_from(number).unwrap();
        let mut end = 0;
        for (entry, (head, body)) in table.iter().zip(records) {
            let record = [&head[..], body].concat();
            assert!(format::is_zero(&payload[end..place(entry.start)]));
            end = place(entry.end());
            let found = &payload[place(entry.start)..end];
            assert!(found == record && entry.matches(found));
        }
        assert!(format::is_zero(&payload[end..]) && payload.len() - end < BLOCK_BYTES);
    }

    proptest! {
        #[test]
        fn records_come_back_commit_after_commit(
            commits in prop::collection::vec(prop::collection::vec(record(), 1..30), 1..4),
        ) {
            let mut stage = Stage::default();
            for records in commits {
                records.iter().for_each(|(head, body)| stage.push(head, body));
                check(&mut stage, &records);
                stage.clear();
                assert!(stage.is_empty() && stage.commit_bytes() == 0);
            }
        }
    }

    /// Small ones; large ones that can be lent; large ones whose head or body does not lie right for that.
    fn record() -> impl Strategy<Value = (Vec<u8>, Bytes)> {
        let small = (0usize..40, 0usize..3000, 0u8..3)
            .prop_map(|(head, body, fill)| (vec![fill; head], Bytes::from(vec![fill; body])));
        let large = (prop_oneof![Just(512usize), 500usize..600], 16_000usize..40_000, 0u8..3, 0usize..2)
            .prop_map(|(head, body, fill, skipped)| {
                (vec![fill; head], on_a_sector(&vec![fill; body]).slice(skipped..))
            });
        prop_oneof![3 => small, 1 => large]
    }

    #[test]
    fn a_large_body_on_a_sector_is_not_copied() {
        let mut stage = Stage::default();
        let body = on_a_sector(&[7; 20_000]);
        stage.push(&[1; 30], &Bytes::from_static(b"small"));
        stage.push(&[1; SECTOR_BYTES], &body);
        check(
            &mut stage,
            &[(vec![1; 30], Bytes::from_static(b"small")), (vec![1; SECTOR_BYTES], body.clone())],
        );
        assert!(stage.io_slices().iter().any(|piece| piece.as_ptr() == body.as_ptr()));
    }

    #[test]
    fn more_bodies_than_one_write_takes_pieces_are_copied() {
        let mut stage = Stage::default();
        let records = vec![(vec![1; SECTOR_BYTES], on_a_sector(&[7; 16 << 10])); LENT_MAX + 10];
        records.iter().for_each(|(head, body)| stage.push(head, body));
        check(&mut stage, &records);
        assert!(stage.io_slices().len() <= 1024);
    }

    #[test]
    fn many_records_and_large_ones_find_room() {
        let mut stage = Stage::default();
        let small = vec![(vec![1], Bytes::from_static(&[2, 3])); 5_000];
        small.iter().for_each(|(head, body)| stage.push(head, body));
        check(&mut stage, &small);
        stage.clear();
        let large = vec![(vec![1; 30], Bytes::from(vec![7; KEPT_BYTES_MAX / 2 + 1])); 2];
        large.iter().for_each(|(head, body)| stage.push(head, body));
        check(&mut stage, &large);
        stage.clear();
        assert_eq!(stage.memory.capacity(), 0, "what was large is given back");
    }
}
