//! Reads records while the writer appends. Never changes a segment; what it finds damaged it reports, and marks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use store_model::{Offset, UnixNanos};
use tracing::warn;

use crate::disk::Disk;
use crate::error::Error;
use crate::recovery::{self, Expect, Names, Quarantined, State};
use crate::segment::{ReadRecord, SegmentFile};
use crate::view::{Loaded, Place, Shared, View};

/// What is known about one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// How much of the disk it takes.
    pub bytes: u64,
    /// When its last commit was made.
    pub newest_at: UnixNanos,
    /// Whether it is complete.
    pub sealed: bool,
    /// Why it is quarantined, if it is.
    pub quarantined: Option<String>,
    /// Its file.
    pub path: PathBuf,
}

/// A segment's file and its length.
type OpenSegment<D> = (SegmentFile<<D as Disk>::File>, u64);

/// A handle on a partition for reading. Clones see the same partition; every thread may have one.
#[derive(Debug)]
pub struct Reader<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for Reader<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<D: Disk> Reader<D> {
    /// Looks at a partition from outside, as it is now, and changes nothing: for tools, also beside a running writer.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory or a segment cannot be read.
    pub fn open(disk: D, directory: &Path) -> Result<Self, Error> {
        let names = Names::list(&disk, directory)?;
        let found = recovery::inspect(&disk, directory, &names, UnixNanos::default())?;
        let segments: Vec<_> = found
            .into_iter()
            .filter(|found| found.state != State::Incomplete)
            .map(|found| found.segment)
            .collect();
        let end = segments.last().map_or(Offset(0), |segment| segment.end);
        let view = View { segments, end, recent: Default::default() };
        Ok(Self { shared: Arc::new(Shared::new(disk, directory.to_path_buf(), view, false)) })
    }

    /// The payload of a record, its checksum verified; `None` where there is no record: before the start, from the
    /// end on, and at offsets that were never given out.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the record is lost, [`Error::Io`] when the disk fails.
    pub fn read(&self, offset: Offset) -> Result<Option<Bytes>, Error> {
        let mut examined = false;
        loop {
            let (base, file, position) = match self.place(offset)? {
                Place::At { base, file, position } => (base, file, position),
                Place::Lost(error) => return Err(error),
                Place::Nothing { .. } | Place::Unloaded { .. } => return Ok(None),
            };
            match file.record(position, offset) {
                Ok(payload) => return Ok(Some(payload)),
                Err(error @ Error::Damaged { .. }) if !examined => {
                    examined = true;
                    if !self.examine(base)? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// All records from an offset on, a commit at a time. Where records are lost it says so once, as
    /// [`Error::Damaged`], and goes on behind them. At the end it returns `None`, and goes on when there is more.
    #[must_use]
    pub fn scan(&self, from: Offset) -> Scan<D> {
        Scan { reader: self.clone(), next: from, hint: None, ready: Vec::new().into_iter() }
    }

    /// The offset of the oldest record.
    #[must_use]
    pub fn start_offset(&self) -> Offset {
        self.shared.look().start()
    }

    /// The offset that the next record gets.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.shared.look().end
    }

    /// All segments, oldest first.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let view = self.shared.look();
        let info = |segment: &crate::view::Segment<D::File>| SegmentInfo {
            base_offset: segment.base,
            end_offset: segment.end,
            bytes: segment.bytes,
            newest_at: segment.newest_at,
            sealed: segment.sealed,
            quarantined: segment.quarantined.clone(),
            path: segment.path.to_path_buf(),
        };
        view.segments.iter().map(info).collect()
    }

    /// How much of the disk the partition takes.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.shared.look().segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Where an offset is, its segment loaded.
    fn place(&self, offset: Offset) -> Result<Place<D::File>, Error> {
        loop {
            let place = self.shared.look().place(offset);
            let Place::Unloaded { base } = place else { return Ok(place) };
            match self.load(base) {
                Ok(()) => {}
                // Retention took it away in between.
                Err(error) if error.is_not_found() && self.shared.look().segment(base).is_none() => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn load(&self, base: Offset) -> Result<(), Error> {
        let Some((file, bytes)) = self.open_segment(base)? else { return Ok(()) };
        match file.load_seal(bytes)? {
            Some(map) => self.shared.change().keep_loaded(base, Loaded { file, map }),
            // The seal only repeats what the commits say.
            None => {
                self.examine(base)?;
            }
        }
        Ok(())
    }

    /// The file of a segment and its length, opened now unless it is open.
    fn open_segment(&self, base: Offset) -> Result<Option<OpenSegment<D>>, Error> {
        let (path, identity, bytes) = {
            let view = self.shared.look();
            let Some(segment) = view.segment(base) else { return Ok(None) };
            if let Some(Loaded { file, .. }) = &segment.loaded {
                return Ok(Some((file.clone(), segment.bytes)));
            }
            (Arc::clone(&segment.path), segment.identity, segment.bytes)
        };
        let Some((epoch, salt)) = identity else { return Ok(None) };
        let file = self.shared.disk.open(&path).map_err(|error| Error::io(&path, "open", error))?;
        Ok(Some((SegmentFile { file: Arc::new(file), path, epoch, salt }, bytes)))
    }

    /// Passes over a whole segment whose bytes are in doubt. What is lost is remembered, in memory and beside the
    /// segment, and the segment quarantined. Says whether anything is.
    fn examine(&self, base: Offset) -> Result<bool, Error> {
        let Some((file, _)) = self.open_segment(base)? else { return Ok(false) };
        let (used, end) = match self.shared.look().segment(base) {
            Some(segment) => (segment.used, segment.end),
            None => return Ok(false),
        };
        let mut map = recovery::walk(&file, base, used, Expect::Until(end))?.map;
        let damages: Vec<Quarantined> =
            map.damages.iter().map(|damage| damage.quarantined(&file.path)).collect();
        let mut view = self.shared.change();
        let Some(segment) = view.segment_mut(base) else { return Ok(false) };
        if let Some(Loaded { map: old, .. }) = &segment.loaded {
            // The writer may have appended meanwhile.
            map.entries.extend(old.entries.iter().filter(|entry| entry.position >= used));
        }
        segment.loaded = Some(Loaded { file, map });
        let Some(first) = damages.first() else { return Ok(false) };
        // The marker says where the segment's records end, so the open one is marked by the writer when it ends it.
        let newly = segment.quarantined.is_none() && segment.sealed;
        let end = segment.end;
        segment.quarantined.get_or_insert_with(|| first.reason.clone());
        drop(view);
        if newly && self.shared.remembers {
            let Shared { disk, directory, .. } = &*self.shared;
            if let Err(error) = recovery::write_marker(disk, directory, base, end, &damages) {
                warn!(segment = %base, %error, "quarantine not written down");
            }
        }
        Ok(true)
    }
}

/// The records of a partition in order. See [`Reader::scan`].
#[derive(Debug)]
pub struct Scan<D: Disk> {
    reader: Reader<D>,
    next: Offset,
    /// In which segment, and where, the commit of `next` begins, if the one before it was just read.
    hint: Option<(Offset, u64)>,
    ready: vec::IntoIter<ReadRecord>,
}

impl<D: Disk> Scan<D> {
    /// The offset that comes next.
    #[must_use]
    pub fn position(&self) -> Offset {
        let waiting = self.ready.as_slice().first();
        match waiting {
            Some(Ok((offset, _))) => *offset,
            Some(Err(Error::Damaged { first, .. })) => *first,
            _ => self.next,
        }
    }

    /// Reads the next commit, or passes over what is lost. `None` at the end.
    fn fill(&mut self) -> Option<Result<(), Error>> {
        let mut examined = None;
        loop {
            let (base, file, position) = match self.reader.place(self.next) {
                Ok(Place::At { base, file, position }) => (base, file, position),
                Ok(Place::Nothing { next }) if next > self.next => {
                    self.next = next;
                    continue;
                }
                Ok(Place::Nothing { .. } | Place::Unloaded { .. }) => return None,
                Ok(Place::Lost(error)) => return Some(Err(self.step_over(error))),
                Err(error) => return Some(Err(error)),
            };
            let position = match self.hint {
                Some((of, hint)) if of == base => hint,
                _ => position,
            };
            let error = match self.read_commit(base, &file, position) {
                Ok(()) => return Some(Ok(())),
                Err(error) => error,
            };
            self.hint = None;
            if !matches!(error, Error::Damaged { .. }) {
                return Some(Err(error));
            }
            if examined == Some(base) {
                return Some(Err(self.step_over(error)));
            }
            examined = Some(base);
            if let Err(error) = self.reader.examine(base) {
                return Some(Err(error));
            }
        }
    }

    fn read_commit(&mut self, base: Offset, file: &SegmentFile<D::File>, position: u64) -> Result<(), Error> {
        let (position, header) = file.find(position, self.next)?;
        let records = file.records(position, &header, self.next)?;
        if records.iter().any(Result::is_err) {
            let is_known = self.reader.shared.look().segment(base).map(|it| it.quarantined.is_some());
            match is_known {
                Some(true) => {}
                Some(false) => drop(self.reader.examine(base)?),
                // Retention took it away; the next look finds what is kept.
                None => {
                    self.hint = None;
                    return Ok(());
                }
            }
        }
        self.ready = records.into_iter();
        self.next = header.end_offset();
        self.hint = Some((base, position + header.extent()));
        Ok(())
    }

    fn step_over(&mut self, error: Error) -> Error {
        self.hint = None;
        let end = if let Error::Damaged { end, .. } = &error { *end } else { self.next };
        self.next = end.max(self.next.plus(1));
        error
    }
}

impl<D: Disk> Iterator for Scan<D> {
    type Item = Result<(Offset, Bytes), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.next() {
                return Some(record);
            }
            match self.fill()? {
                Ok(()) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
