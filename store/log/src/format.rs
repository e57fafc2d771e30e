//! The bytes of a partition: names, segment header, commits, seal. Encodes and decodes; never touches a disk.
//!
//! ```text
//! a partition is one directory
//!   {base offset, 20 digits}.log           segments
//!   {base offset, 20 digits}.quarantined   "this segment is damaged": first line `end_offset N`, then a line per damage
//!   {epoch, 10 digits}.epoch               empty; the newest epoch, raised by renaming it
//!
//! a segment                      little endian, commits begin on a block of 4,096 bytes
//!   +0      header, a sector of 512 bytes
//!   +512    the same again, so that one bad sector does not take the segment with it
//!   +4096   commits, one behind the other
//!           seal, once the segment is complete; the file ends with it
//!           (before that: preallocated zeros)
//!
//! header                                  commit
//!   0  magic          8  "SLUICLOG"         0  magic          u32  "SLCM"
//!   8  crc            u32  of 12..512       4  crc            u32  of 8..64, seeded with the salt
//!  12  version        u16  3                8  kind           u16  1 records, 2 seal
//!  14  reserved       u16                  10  reserved       u16
//!  16  epoch          u32                  12  epoch          u32
//!  20  reserved       u32                  16  base offset    u64  of its first record
//!  24  base offset    u64                  24  timestamp      u64  never falls within a partition
//!  32  previous end   u64                  32  payload bytes  u64  zeros between payloads included
//!  40  created at     u64                  40  record count   u32
//!  48  zeros                               44  table crc      u32
//!                                          48  zero sectors   u32
//!                                          52  zeros
//!                                          64  table: {length u32, crc u32} for each record
//!                                              zeros up to the next sector
//!                                              payloads, one behind the other; before one of
//!                                              16 KiB or more zeros up to the next sector
//!                                              zeros up to the next block
//! ```
//!
//! - Every checksum is CRC-32C. The **salt** of a segment is its header's crc: a commit of another segment, or one that
//!   a client hid in a body, does not pass for a commit of this one.
//! - **previous end** is where the writer knew the records before this segment to end. From there to the base offset
//!   there never were records. A segment that ends earlier than the next one says has lost its tail.
//! - **zero sectors** counts the sectors of the whole commit that hold nothing but zeros. More of them on disk than that
//!   is the proof that a commit was not written completely.
//! - A **seal** is a commit without offsets of its own whose single record is `{offset u64, position u64}` for about one
//!   commit in 32 KiB, zeros, and at the very end of the file the trailer:
//!
//! ```text
//!   0  magic  8  "SLUICEND"  |   8  seal position  u64  |  16  end offset  u64  |  24  newest timestamp  u64
//!  32  entry count      u32  |  36  crc of 0..36, seeded with the salt     u32
//! ```

use store_model::{Epoch, Offset, UnixNanos};

/// Disks promise to write this much at once or not at all.
pub(crate) const SECTOR_BYTES: usize = 512;
const SEGMENT_MAGIC: [u8; 8] = *b"SLUICLOG";
/// 1 had payloads right behind the table, where no writer could lay them out before it knew how many there are, and commits
/// on sectors. 2 had no zeros between payloads, so that all of them had to be copied for a direct write.
const SEGMENT_VERSION: u16 = 3;
/// Payloads from this length on begin on a sector: those are worth a place of their own in a direct write.
pub(crate) const APART_BYTES: u64 = 16 << 10;
/// What file systems reserve. A direct write of whole blocks has nothing to clear around it, so it need not wait for
/// others, and the kernel does it at once instead of handing it to a thread.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Both copies of the header, and zeros up to the first commit.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = BLOCK_BYTES as u64;
const COMMIT_MAGIC: [u8; 4] = *b"SLCM";
pub(crate) const COMMIT_HEADER_BYTES: usize = 64;
pub(crate) const TABLE_ENTRY_BYTES: usize = 8;
const TRAILER_MAGIC: [u8; 8] = *b"SLUICEND";
pub(crate) const TRAILER_BYTES: usize = 40;
const SEAL_ENTRY_BYTES: usize = 16;

static ZEROS: [u8; SECTOR_BYTES] = [0; SECTOR_BYTES];

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Whether a sector, or a part of one, holds nothing but zeros.
pub(crate) fn is_zero(part: &[u8]) -> bool {
    part.chunks(SECTOR_BYTES).all(|part| part == &ZEROS[..part.len()])
}

/// A file of a partition, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileName {
    Segment(Offset),
    Quarantined(Offset),
    Epoch(Epoch),
}

impl FileName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (number, kind) = name.split_once('.')?;
        let found = match kind {
            "log" => Self::Segment(Offset(number.parse().ok()?)),
            "quarantined" => Self::Quarantined(Offset(number.parse().ok()?)),
            "epoch" => Self::Epoch(Epoch(number.parse().ok()?)),
            _ => return None,
        };
        // `1.log` is not ours: two names for one segment must not be.
        (found.to_string() == name).then_some(found)
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Segment(base) => write!(f, "{:020}.log", base.0),
            Self::Quarantined(base) => write!(f, "{:020}.quarantined", base.0),
            Self::Epoch(epoch) => write!(f, "{:010}.epoch", epoch.0),
        }
    }
}

/// What seeds the checksums of a segment's commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Salt(u32);

/// The first bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) epoch: Epoch,
    pub(crate) base_offset: Offset,
    pub(crate) previous_end: Offset,
    pub(crate) created_at: UnixNanos,
}

/// Why a segment's header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderProblem {
    Damaged,
    UnknownVersion(u16),
}

impl SegmentHeader {
    /// One copy of the header, and the salt of its segment.
    pub(crate) fn encode(&self) -> ([u8; SECTOR_BYTES], Salt) {
        let Self { epoch, base_offset, previous_end, created_at } = self;
        let mut bytes = [0; SECTOR_BYTES];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[12..14].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[16..20].copy_from_slice(&epoch.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&base_offset.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&previous_end.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&created_at.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        (bytes, Salt(crc))
    }

    pub(crate) fn parse(bytes: &[u8; SECTOR_BYTES]) -> Result<(Self, Salt), HeaderProblem> {
        let crc = u32_at(bytes, 8);
        if bytes[..8] != SEGMENT_MAGIC || crc != crc32c::crc32c(&bytes[12..]) {
            return Err(HeaderProblem::Damaged);
        }
        let version = u16::from_le_bytes([bytes[12], bytes[13]]);
        if version != SEGMENT_VERSION {
            return Err(HeaderProblem::UnknownVersion(version));
        }
        let header = Self {
            epoch: Epoch(u32_at(bytes, 16)),
            base_offset: Offset(u64_at(bytes, 24)),
            previous_end: Offset(u64_at(bytes, 32)),
            created_at: UnixNanos(u64_at(bytes, 40)),
        };
        Ok((header, Salt(crc)))
    }
}

/// What a commit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Records,
    Seal,
}

/// The first bytes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitHeader {
    pub(crate) kind: Kind,
    pub(crate) epoch: Epoch,
    pub(crate) base_offset: Offset,
    pub(crate) timestamp: UnixNanos,
    pub(crate) payload_bytes: u64,
    pub(crate) record_count: u32,
    pub(crate) table_crc: u32,
    pub(crate) zero_sectors: u32,
}

impl CommitHeader {
    fn encode(&self, salt: Salt) -> [u8; COMMIT_HEADER_BYTES] {
        let Self {
            kind,
            epoch,
            base_offset,
            timestamp,
            payload_bytes,
            record_count,
            table_crc,
            zero_sectors,
        } = self;
        let kind: u16 = match kind {
            Kind::Records => 1,
            Kind::Seal => 2,
        };
        let mut bytes = [0; COMMIT_HEADER_BYTES];
        bytes[..4].copy_from_slice(&COMMIT_MAGIC);
        bytes[8..10].copy_from_slice(&kind.to_le_bytes());
        bytes[12..16].copy_from_slice(&epoch.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&base_offset.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&timestamp.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&payload_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&record_count.to_le_bytes());
        bytes[44..48].copy_from_slice(&table_crc.to_le_bytes());
        bytes[48..52].copy_from_slice(&zero_sectors.to_le_bytes());
        let crc = crc32c::crc32c_append(salt.0, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that begins these bytes, if one of this segment does.
    pub(crate) fn parse(bytes: &[u8], salt: Salt) -> Option<Self> {
        let bytes: &[u8; COMMIT_HEADER_BYTES] = bytes.first_chunk()?;
        if bytes[..4] != COMMIT_MAGIC || u32_at(bytes, 4) != crc32c::crc32c_append(salt.0, &bytes[8..]) {
            return None;
        }
        let kind = match u16::from_le_bytes([bytes[8], bytes[9]]) {
            1 => Kind::Records,
            2 => Kind::Seal,
            _ => return None,
        };
        Some(Self {
            kind,
            epoch: Epoch(u32_at(bytes, 12)),
            base_offset: Offset(u64_at(bytes, 16)),
            timestamp: UnixNanos(u64_at(bytes, 24)),
            payload_bytes: u64_at(bytes, 32),
            record_count: u32_at(bytes, 40),
            table_crc: u32_at(bytes, 44),
            zero_sectors: u32_at(bytes, 48),
        })
    }

    /// The offset after its last record.
    pub(crate) fn end_offset(&self) -> Offset {
        match self.kind {
            Kind::Records => self.base_offset.plus(u64::from(self.record_count)),
            Kind::Seal => self.base_offset,
        }
    }

    pub(crate) fn table_bytes(&self) -> u64 {
        u64::from(self.record_count) * TABLE_ENTRY_BYTES as u64
    }

    /// Where the payloads begin, counted from the commit's first byte.
    pub(crate) fn payload_start(&self) -> u64 {
        (COMMIT_HEADER_BYTES as u64 + self.table_bytes()).next_multiple_of(SECTOR_BYTES as u64)
    }

    /// Bytes from this commit to the next, capped far beyond any file.
    pub(crate) fn extent(&self) -> u64 {
        let bytes = self.payload_start().saturating_add(self.payload_bytes.min(1 << 60));
        bytes.next_multiple_of(BLOCK_BYTES as u64)
    }
}

/// Where a payload of `length` bytes begins when the one before it ends at `end`, both counted from the first payload.
pub(crate) fn payload_place(end: u64, length: u64) -> u64 {
    if length >= APART_BYTES { end.next_multiple_of(SECTOR_BYTES as u64) } else { end }
}

/// One record in a commit's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableEntry {
    /// Where its payload begins, counted from the first one. Not in the table: it follows from the lengths before.
    pub(crate) start: u64,
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

impl TableEntry {
    pub(crate) fn end(self) -> u64 {
        self.start + u64::from(self.length)
    }

    pub(crate) fn matches(self, payload: &[u8]) -> bool {
        payload.len() as u64 == u64::from(self.length) && crc32c::crc32c(payload) == self.crc
    }
}

/// The table of a commit, if it is the one that its header vouches for.
pub(crate) fn parse_table(bytes: &[u8], header: &CommitHeader) -> Option<Vec<TableEntry>> {
    if crc32c::crc32c(bytes) != header.table_crc {
        return None;
    }
    let (lines, _) = bytes.as_chunks::<TABLE_ENTRY_BYTES>();
    let mut entries = Vec::with_capacity(lines.len());
    let mut end = 0;
    for line in lines {
        let (length, crc) = (u32_at(line, 0), u32_at(line, 4));
        let entry = TableEntry { start: payload_place(end, u64::from(length)), length, crc };
        end = entry.end();
        entries.push(entry);
    }
    (end == header.payload_bytes).then_some(entries)
}

/// What the writer says about a commit beside its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitFacts {
    pub(crate) kind: Kind,
    pub(crate) epoch: Epoch,
    pub(crate) base_offset: Offset,
    pub(crate) timestamp: UnixNanos,
}

/// Bytes of header and table, zeros included.
pub(crate) fn front_bytes(table_bytes: usize) -> usize {
    (COMMIT_HEADER_BYTES + table_bytes).next_multiple_of(SECTOR_BYTES)
}

/// How long a commit with this table and these payloads will be.
pub(crate) fn commit_bytes(table_bytes: usize, payload_bytes: usize) -> u64 {
    (front_bytes(table_bytes) + payload_bytes).next_multiple_of(BLOCK_BYTES) as u64
}

/// Fills `front`, [`front_bytes`] long, with header and table of a commit whose payloads hold `zero_sectors`.
pub(crate) fn encode_front(
    front: &mut [u8],
    facts: CommitFacts,
    salt: Salt,
    table: &[u8],
    payload_bytes: u64,
    zero_sectors: u32,
) {
    let CommitFacts { kind, epoch, base_offset, timestamp } = facts;
    let record_count = table.len() / TABLE_ENTRY_BYTES;
    let (header, rest) = front.split_at_mut(COMMIT_HEADER_BYTES);
    let (place, padding) = rest.split_at_mut(table.len());
    place.copy_from_slice(table);
    padding.fill(0);
    // Stands for the header; only its being anything but zeros matters until it is known.
    header.fill(u8::MAX);
    let zero_sectors = zero_sectors.saturating_add(count_zero_sectors(front));
    let header = CommitHeader {
        kind,
        epoch,
        base_offset,
        timestamp,
        payload_bytes,
        record_count: u32::try_from(record_count).expect("memory holds no four billion records"),
        table_crc: crc32c::crc32c(table),
        zero_sectors,
    };
    front[..COMMIT_HEADER_BYTES].copy_from_slice(&header.encode(salt));
}

/// How many whole sectors hold nothing but zeros.
pub(crate) fn count_zero_sectors(bytes: &[u8]) -> u32 {
    let zeros = bytes.chunks_exact(SECTOR_BYTES).filter(|sector| is_zero(sector)).count();
    u32::try_from(zeros).unwrap_or(u32::MAX)
}

/// Where a commit begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: Offset,
    pub(crate) position: u64,
}

/// The last bytes of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) seal_position: u64,
    pub(crate) end_offset: Offset,
    pub(crate) newest_at: UnixNanos,
    pub(crate) entry_count: u32,
}

impl Trailer {
    fn encode(&self, salt: Salt) -> [u8; TRAILER_BYTES] {
        let Self { seal_position, end_offset, newest_at, entry_count } = self;
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..8].copy_from_slice(&TRAILER_MAGIC);
        bytes[8..16].copy_from_slice(&seal_position.to_le_bytes());
        bytes[16..24].copy_from_slice(&end_offset.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&newest_at.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&entry_count.to_le_bytes());
        let crc = crc32c::crc32c_append(salt.0, &bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; TRAILER_BYTES], salt: Salt) -> Option<Self> {
        if bytes[..8] != TRAILER_MAGIC || u32_at(bytes, 36) != crc32c::crc32c_append(salt.0, &bytes[..36]) {
            return None;
        }
        Some(Self {
            seal_position: u64_at(bytes, 8),
            end_offset: Offset(u64_at(bytes, 16)),
            newest_at: UnixNanos(u64_at(bytes, 24)),
            entry_count: u32_at(bytes, 32),
        })
    }
}

/// The whole seal of a segment whose commits end at `position`.
pub(crate) fn encode_seal(
    position: u64,
    epoch: Epoch,
    salt: Salt,
    end_offset: Offset,
    newest_at: UnixNanos,
    entries: &[Entry],
) -> Vec<u8> {
    let entry_count = u32::try_from(entries.len()).expect("a segment has fewer than four billion commits");
    let trailer = Trailer { seal_position: position, end_offset, newest_at, entry_count };
    // The trailer ends the file, so the zeros stand before it instead of behind the payload.
    let front_bytes = front_bytes(TABLE_ENTRY_BYTES);
    let bytes = front_bytes + entries.len() * SEAL_ENTRY_BYTES + TRAILER_BYTES;
    let payload_bytes = bytes.next_multiple_of(BLOCK_BYTES) - front_bytes;
    let mut payload = Vec::with_capacity(payload_bytes);
    for entry in entries {
        payload.extend(entry.offset.0.to_le_bytes());
        payload.extend(entry.position.to_le_bytes());
    }
    payload.resize(payload_bytes - TRAILER_BYTES, 0);
    payload.extend(trailer.encode(salt));
    let facts = CommitFacts { kind: Kind::Seal, epoch, base_offset: end_offset, timestamp: newest_at };
    let length = u32::try_from(payload_bytes).expect("a seal is shorter than its segment");
    let table = [length.to_le_bytes(), crc32c::crc32c(&payload).to_le_bytes()].concat();
    let mut seal = vec![0; front_bytes];
    encode_front(&mut seal, facts, salt, &table, payload_bytes as u64, count_zero_sectors(&payload));
    seal.extend_from_slice(&payload);
    seal
}

/// The entries of a seal, if these bytes are one.
pub(crate) fn parse_seal(bytes: &[u8], salt: Salt, trailer: &Trailer) -> Option<Vec<Entry>> {
    let header = CommitHeader::parse(bytes, salt)?;
    let (front, payload) = bytes.split_at_checked(front_bytes(TABLE_ENTRY_BYTES))?;
    let table = &front[COMMIT_HEADER_BYTES..COMMIT_HEADER_BYTES + TABLE_ENTRY_BYTES];
    if header.kind != Kind::Seal || header.record_count != 1 {
        return None;
    }
    if !parse_table(table, &header)?.first()?.matches(payload) {
        return None;
    }
    let entries = payload.get(..usize::try_from(trailer.entry_count).ok()?.checked_mul(SEAL_ENTRY_BYTES)?)?;
    let (entries, _) = entries.as_chunks::<SEAL_ENTRY_BYTES>();
    let parse = |entry: &[u8; SEAL_ENTRY_BYTES]| Entry {
        offset: Offset(u64_at(entry, 0)),
        position: u64_at(entry, 8),
    };
    Some(entries.iter().map(parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            epoch: Epoch(3),
            base_offset: Offset(70),
            previous_end: Offset(60),
            created_at: UnixNanos(5),
        }
    }

    fn facts() -> CommitFacts {
        CommitFacts { kind: Kind::Records, epoch: Epoch(3), base_offset: Offset(70), timestamp: UnixNanos(9) }
    }

    #[test]
    fn names_come_back_and_strangers_are_left_alone() {
        for name in [
            FileName::Segment(Offset(7)),
            FileName::Quarantined(Offset(u64::MAX)),
            FileName::Epoch(Epoch(12)),
        ] {
            assert_eq!(FileName::parse(&name.to_string()), Some(name));
        }
        for name in ["7.log", "00000000000000000007.log.bak", "LOCK", "", "+0000000000000000007.log"] {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_segment_header_of_a_later_version_is_named_rather_than_called_damage() {
        let (mut bytes, _) = header().encode();
        bytes[12] = 9;
        assert_eq!(SegmentHeader::parse(&bytes), Err(HeaderProblem::Damaged));
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::parse(&bytes), Err(HeaderProblem::UnknownVersion(9)));
    }

    /// The front of a commit of one empty record.
    fn front(facts: CommitFacts, salt: Salt) -> Vec<u8> {
        let mut front = vec![0; front_bytes(TABLE_ENTRY_BYTES)];
        encode_front(&mut front, facts, salt, &[0; TABLE_ENTRY_BYTES], 0, 0);
        front
    }

    #[test]
    fn a_commit_of_another_segment_is_no_commit_of_this_one() {
        let (_, salt) = header().encode();
        let (_, other) = SegmentHeader { epoch: Epoch(4), ..header() }.encode();
        let front = front(facts(), salt);
        assert!(CommitHeader::parse(&front, salt).is_some());
        assert_eq!(CommitHeader::parse(&front, other), None);
    }

    #[test]
    fn zero_sectors_are_counted() {
        let bytes = [vec![0; 512], vec![1; 512], vec![0; 511], vec![1], vec![0; 1024]].concat();
        assert_eq!(count_zero_sectors(&bytes), 3);
    }

    proptest! {
        #[test]
        fn a_segment_header_comes_back(epoch: u32, base: u64, end: u64, at: u64, flip in 0usize..4096) {
            let header = SegmentHeader {
                epoch: Epoch(epoch), base_offset: Offset(base), previous_end: Offset(end), created_at: UnixNanos(at),
            };
            let (mut bytes, salt) = header.encode();
            prop_assert_eq!(SegmentHeader::parse(&bytes), Ok((header, salt)));
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(SegmentHeader::parse(&bytes), Err(HeaderProblem::Damaged));
        }

        #[test]
        fn any_flipped_bit_of_header_and_table_is_noticed(base: u32, at: u64, flip: prop::sample::Index) {
            let (_, salt) = header().encode();
            let facts = CommitFacts { base_offset: Offset(base.into()), timestamp: UnixNanos(at), ..facts() };
            let mut bytes = front(facts, salt);
            let end = COMMIT_HEADER_BYTES + TABLE_ENTRY_BYTES;
            let table = |bytes: &[u8]| {
                let header = CommitHeader::parse(bytes, salt)?;
                parse_table(&bytes[COMMIT_HEADER_BYTES..end], &header)
            };
            prop_assert_eq!(table(&bytes), Some(vec![TableEntry { start: 0, length: 0, crc: 0 }]));
            let bit = flip.index(end * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(table(&bytes), None);
        }

        #[test]
        fn a_seal_comes_back_and_ends_its_file(count in 0u64..200, position: u32, end: u64, at: u64) {
            let (_, salt) = header().encode();
            let entries: Vec<Entry> =
                (1..=count).map(|n| Entry { offset: Offset(n * 3), position: n * 1024 }).collect();
            let seal = encode_seal(position.into(), Epoch(3), salt, Offset(end), UnixNanos(at), &entries);
            prop_assert!(seal.len().is_multiple_of(BLOCK_BYTES));
            let trailer = Trailer::parse(seal.last_chunk().unwrap(), salt).unwrap();
            prop_assert_eq!(trailer.seal_position, u64::from(position));
            prop_assert_eq!((trailer.end_offset, trailer.newest_at), (Offset(end), UnixNanos(at)));
            prop_assert_eq!(parse_seal(&seal, salt, &trailer).unwrap(), entries);
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (_, salt) = header().encode();
            let _ = CommitHeader::parse(&bytes, salt);
            let trailer =
                Trailer { seal_position: 0, end_offset: Offset(0), newest_at: UnixNanos(0), entry_count: u32::MAX };
            prop_assert_eq!(parse_seal(&bytes, salt, &trailer), None);
        }
    }
}
