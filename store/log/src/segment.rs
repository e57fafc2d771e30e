//! Reads one segment: finds the commit of an offset, checks and returns records, loads and writes the seal.
//! Judges bytes one commit at a time; what a whole segment's damage means is `recovery`'s business.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use store_model::{Epoch, Offset, UnixNanos};

use crate::disk::{DiskFile, read_full};
use crate::error::Error;
use crate::format::{
    self, COMMIT_HEADER_BYTES, CommitHeader, Entry, Kind, SEGMENT_HEADER_BYTES, Salt, TRAILER_BYTES,
    TableEntry, Trailer,
};

/// One commit in so many bytes is remembered; those between are found by walking from header to header.
const INDEX_GRAIN_BYTES: u64 = 32 << 10;

/// A record and its offset, or why it cannot be read.
pub(crate) type ReadRecord = Result<(Offset, Bytes), Error>;

/// Offsets that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) position: u64,
    pub(crate) reason: &'static str,
    pub(crate) first: Offset,
    pub(crate) end: Offset,
}

/// Where the commits of a segment lie, and which offsets are lost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
    pub(crate) damages: Vec<Damage>,
}

impl Map {
    /// Notes a commit if the last noted one is far enough behind it.
    pub(crate) fn note(&mut self, offset: Offset, position: u64) {
        let near = |last: &Entry| position < last.position + INDEX_GRAIN_BYTES;
        if !self.entries.last().is_some_and(near) {
            self.entries.push(Entry { offset, position });
        }
    }

    /// The noted commit at or before an offset.
    pub(crate) fn position(&self, offset: Offset) -> Option<u64> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        Some(self.entries.get(after.checked_sub(1)?)?.position)
    }

    pub(crate) fn damage_at(&self, offset: Offset) -> Option<&Damage> {
        self.damages.iter().find(|damage| damage.first <= offset && offset < damage.end)
    }
}

/// The file of a segment, and what is needed to tell its bytes from others. Cheap to clone.
#[derive(Debug)]
pub(crate) struct SegmentFile<F> {
    pub(crate) file: Arc<F>,
    pub(crate) path: Arc<Path>,
    pub(crate) epoch: Epoch,
    pub(crate) salt: Salt,
}

impl<F> Clone for SegmentFile<F> {
    fn clone(&self) -> Self {
        let Self { file, path, epoch, salt } = self;
        Self { file: Arc::clone(file), path: Arc::clone(path), epoch: *epoch, salt: *salt }
    }
}

/// What stands at a position where a commit is expected.
pub(crate) enum Block {
    /// A commit, every checksum right.
    Intact(CommitHeader),
    /// A commit's header whose table or payloads are not what it vouches for.
    Broken { header: CommitHeader, damages: Vec<Damage>, unwritten: bool },
    /// No header of this segment.
    Unreadable,
}

impl<F: DiskFile> SegmentFile<F> {
    fn failed(&self, source: io::Error) -> Error {
        Error::fatal(&self.path, "read", source)
    }

    fn damaged(&self, position: u64, reason: &str, offset: Offset) -> Error {
        let path = self.path.to_path_buf();
        Error::Damaged { path, position, reason: reason.to_owned(), first: offset, end: offset.plus(1) }
    }

    /// Exactly these bytes; `None` when the file ends before them.
    fn bytes_at(&self, position: u64, length: u64) -> Result<Option<Vec<u8>>, Error> {
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        let mut bytes = vec![0; length];
        let filled = read_full(&*self.file, &mut bytes, position).map_err(|error| self.failed(error))?;
        Ok((filled == length).then_some(bytes))
    }

    fn header_at(&self, position: u64) -> Result<Option<CommitHeader>, Error> {
        let mut bytes = [0; COMMIT_HEADER_BYTES];
        let filled = read_full(&*self.file, &mut bytes, position).map_err(|error| self.failed(error))?;
        Ok(CommitHeader::parse(&bytes[..filled], self.salt))
    }

    /// Reads as much of the file as there is; fewer bytes only at its end.
    pub(crate) fn chunk_at(&self, buffer: &mut [u8], position: u64) -> Result<usize, Error> {
        read_full(&*self.file, buffer, position).map_err(|error| self.failed(error))
    }

    /// The commit that holds an offset, found by walking on from an earlier one.
    pub(crate) fn find(&self, from: u64, offset: Offset) -> Result<(u64, CommitHeader), Error> {
        let mut position = from;
        loop {
            let header = self.header_at(position)?.filter(|header| header.kind == Kind::Records);
            match header {
                Some(header) if header.base_offset <= offset => {
                    if offset < header.end_offset() {
                        return Ok((position, header));
                    }
                    position += header.extent();
                }
                _ => return Err(self.damaged(position, "no commit where one was", offset)),
            }
        }
    }

    fn table(&self, position: u64, header: &CommitHeader, offset: Offset) -> Result<Vec<TableEntry>, Error> {
        let bytes = self.bytes_at(position + COMMIT_HEADER_BYTES as u64, header.table_bytes())?;
        bytes
            .and_then(|bytes| format::parse_table(&bytes, header))
            .ok_or_else(|| self.damaged(position, "the commit's table does not match its checksum", offset))
    }

    /// The payload of one record, read without the rest of its commit.
    pub(crate) fn record(&self, from: u64, offset: Offset) -> Result<Bytes, Error> {
        let (position, header) = self.find(from, offset)?;
        let payloads = position + header.payload_start();
        let mut at = header.base_offset;
        for entry in self.table(position, &header, offset)? {
            if at == offset {
                let start = payloads + entry.start;
                let bytes = self.bytes_at(start, u64::from(entry.length))?;
                return bytes
                    .filter(|bytes| entry.matches(bytes))
                    .map(Bytes::from)
                    .ok_or_else(|| self.damaged(start, "the record does not match its checksum", offset));
            }
            at = at.plus(1);
        }
        // `find` only returns commits whose table has a place for the offset.
        Err(self.damaged(position, "the commit's table is too short", offset))
    }

    /// All payloads of a commit from an offset on, slices of one read.
    pub(crate) fn records(
        &self,
        position: u64,
        header: &CommitHeader,
        from: Offset,
    ) -> Result<Vec<ReadRecord>, Error> {
        let table = self.table(position, header, from)?;
        let payloads = position + header.payload_start();
        let bytes = self.bytes_at(payloads, header.payload_bytes)?;
        let bytes = Bytes::from(
            bytes.ok_or_else(|| self.damaged(position, "the file ends inside the commit", from))?,
        );
        let mut records = Vec::with_capacity(table.len());
        for (number, entry) in (0..).zip(table) {
            let offset = header.base_offset.plus(number);
            if offset < from {
                continue;
            }
            // The table's last payload was found to end where they all do, and no end passes that of the next.
            let payload = bytes.slice(to_usize(entry.start)..to_usize(entry.end()));
            records.push(if entry.matches(&payload) {
                Ok((offset, payload))
            } else {
                let reason = "the record does not match its checksum";
                Err(self.damaged(payloads + entry.start, reason, offset))
            });
        }
        Ok(records)
    }

    /// Checks everything that stands at a position. `expected` is the least offset that makes sense there.
    pub(crate) fn check(&self, position: u64, length: u64, expected: Offset) -> Result<Block, Error> {
        let header = self.header_at(position)?.filter(|header| header.base_offset >= expected);
        let Some(header) = header else { return Ok(Block::Unreadable) };
        let whole = |reason| Damage { position, reason, first: header.base_offset, end: header.end_offset() };
        let extent = header.extent();
        if extent > length.saturating_sub(position) {
            let damages = vec![whole("the file ends inside the commit")];
            return Ok(Block::Broken { header, damages, unwritten: true });
        }
        let Some(bytes) = self.bytes_at(position, extent)? else {
            let damages = vec![whole("the file ends inside the commit")];
            return Ok(Block::Broken { header, damages, unwritten: true });
        };
        // The sum of both is at most the extent, which is the length of `bytes`.
        let (front, rest) = bytes.split_at(usize::try_from(header.payload_start()).unwrap_or(usize::MAX));
        let table_end = COMMIT_HEADER_BYTES + usize::try_from(header.table_bytes()).unwrap_or(usize::MAX);
        let damages = match format::parse_table(&front[COMMIT_HEADER_BYTES..table_end], &header) {
            None => vec![whole("the commit's table does not match its checksum")],
            Some(table) => broken_records(position, &header, &table, rest),
        };
        if damages.is_empty() {
            return Ok(Block::Intact(header));
        }
        let unwritten = format::count_zero_sectors(&bytes) > header.zero_sectors;
        Ok(Block::Broken { header, damages, unwritten })
    }

    /// What the end of a sealed segment says about it.
    pub(crate) fn trailer(&self, length: u64) -> Result<Option<Trailer>, Error> {
        let Some(position) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
        let bytes = self.bytes_at(position, TRAILER_BYTES as u64)?;
        let trailer = bytes.and_then(|bytes| Trailer::parse(bytes.first_chunk()?, self.salt));
        Ok(trailer.filter(|trailer| (SEGMENT_HEADER_BYTES..length).contains(&trailer.seal_position)))
    }

    /// The map that a sealed segment carries; `None` when the seal is not what it was.
    pub(crate) fn load_seal(&self, length: u64) -> Result<Option<Map>, Error> {
        let Some(trailer) = self.trailer(length)? else { return Ok(None) };
        let bytes = self.bytes_at(trailer.seal_position, length - trailer.seal_position)?;
        let entries = bytes.and_then(|bytes| format::parse_seal(&bytes, self.salt, &trailer));
        Ok(entries.map(|entries| Map { entries, damages: Vec::new() }))
    }

    /// Cuts the segment at a position, durably: what stood behind it can mix with nothing that is written there next.
    pub(crate) fn cut(&self, position: u64) -> Result<(), Error> {
        self.file.set_len(position).map_err(|error| Error::fatal(&self.path, "cut", error))?;
        self.sync()
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|error| Error::fatal(&self.path, "sync", error))
    }

    /// Cuts the segment behind its last commit, seals it and makes everything durable before a next segment can begin: where
    /// that one's header is lost in a crash, half a seal here would pass for damage. Returns the file's length.
    /// Without space for the seal the segment stays without: it only saves reading the segment when it is opened.
    pub(crate) fn seal(
        &self,
        used: u64,
        end_offset: Offset,
        newest_at: UnixNanos,
        map: &Map,
    ) -> Result<u64, Error> {
        let fatal = |operation| move |error| Error::fatal(&self.path, operation, error);
        let seal = format::encode_seal(used, self.epoch, self.salt, end_offset, newest_at, &map.entries);
        // First the cut: growing back afterwards is what makes a sync of the data write the new length.
        self.file.set_len(used).map_err(fatal("cut"))?;
        let length = match self.file.write_at(&[IoSlice::new(&seal)], used) {
            Ok(()) => used + seal.len() as u64,
            Err(error) if crate::error::is_no_space(&error) => {
                self.file.set_len(used).map_err(fatal("cut"))?;
                used
            }
            Err(error) => return Err(fatal("seal")(error)),
        };
        self.sync()?;
        Ok(length)
    }
}

/// A place in memory; beyond any where the number is.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The records of a commit that do not match its table.
fn broken_records(position: u64, header: &CommitHeader, table: &[TableEntry], payload: &[u8]) -> Vec<Damage> {
    let mut damages = Vec::new();
    for (number, entry) in (0..).zip(table) {
        let range = to_usize(entry.start)..to_usize(entry.end());
        if !payload.get(range).is_some_and(|bytes| entry.matches(bytes)) {
            let first = header.base_offset.plus(number);
            damages.push(Damage {
                position: position + header.payload_start() + entry.start,
                reason: "the record does not match its checksum",
                first,
                end: first.plus(1),
            });
        }
    }
    damages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_notes_one_commit_per_grain_and_finds_the_one_before() {
        let mut map = Map::default();
        for n in 0..100 {
            map.note(Offset(n * 10), 1024 + n * 4096);
        }
        assert_eq!(map.entries.len(), 13);
        assert_eq!(map.position(Offset(0)), Some(1024));
        assert_eq!(map.position(Offset(79)), Some(1024));
        assert_eq!(map.position(Offset(80)), Some(1024 + 8 * 4096));
        assert_eq!(Map::default().position(Offset(0)), None);
    }
}
