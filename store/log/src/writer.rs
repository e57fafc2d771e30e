//! The one writer of a partition: collects records, commits them in one write and one sync, rolls segments, and acts on
//! what recovery found. Decides nothing about damage; [`crate::recovery`] does.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use store_model::{Epoch, Offset, UnixNanos};

use crate::disk::{Disk, DiskFile, remove_name};
use crate::error::{self, Error};
use crate::format::{CommitFacts, FileName, Kind, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::reader::Reader;
use crate::recovery::{self, Expect, Found, Names, Quarantined, State};
use crate::retention::Remover;
use crate::segment::{Map, SegmentFile};
use crate::stage::Stage;
use crate::view::{Loaded, Segment, Shared, View};

/// Where a partition lies and how its segments are cut.
#[derive(Clone, Debug)]
pub struct PartitionOptions {
    /// The directory of this partition alone.
    pub directory: PathBuf,
    /// A segment is complete when the next commit would make it longer than this.
    pub segment_bytes_max: u64,
    /// Reserve the whole segment when it is made, so that a full disk shows before records are written.
    pub preallocate: bool,
}

impl Default for PartitionOptions {
    fn default() -> Self {
        Self { directory: PathBuf::new(), segment_bytes_max: 256 << 20, preallocate: true }
    }
}

/// How durable a commit has to be when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// On the disk: survives power loss.
    Durable,
    /// In the page cache: survives the process.
    PageCache,
}

/// A commit that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The offset of its first record.
    pub first: Offset,
    /// The offset after its last record.
    pub end: Offset,
    /// How many bytes it took.
    pub bytes: u64,
    /// Whether it began a new segment.
    pub rolled: bool,
}

/// A commit that was never written completely, so never acknowledged, and was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// The segment.
    pub path: PathBuf,
    /// Where it was cut.
    pub position: u64,
}

/// What opening a partition found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The offset that the next record gets.
    pub end_offset: Offset,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// What was cut off.
    pub truncated: Option<Truncated>,
    /// What is damaged.
    pub quarantined: Vec<Quarantined>,
}

/// The writer. There must be no other of the same directory; the caller sees to that with a lock.
#[derive(Debug)]
pub struct Writer<D: Disk> {
    options: PartitionOptions,
    shared: Arc<Shared<D>>,
    epoch: Epoch,
    /// The segment that is appended to.
    open: Option<Offset>,
    pending: Stage,
    newest_at: UnixNanos,
    is_poisoned: bool,
}

/// A commit on its way to the disk: between [`Writer::begin`] and [`Writer::end`].
#[derive(Debug)]
pub struct Flight<F> {
    file: SegmentFile<F>,
    segment: Offset,
    first: Offset,
    records: u64,
    rolled: bool,
    bytes: u64,
    /// Where they go in the file.
    pub position: u64,
}

impl<F: DiskFile> Flight<F> {
    /// The file that the bytes go to.
    #[must_use]
    pub fn file(&self) -> &Arc<F> {
        &self.file.file
    }

    /// Writes the bytes here and now.
    ///
    /// # Errors
    /// What the disk says; it is for [`Writer::end`] to judge.
    pub fn write(&self, stage: &Stage, sync: Sync) -> io::Result<()> {
        self.file.file.write_at(&stage.io_slices(), self.position)?;
        match sync {
            // Whatever it says: a sync that failed is never a mere lack of space, after which one may go on.
            Sync::Durable => self.file.file.sync_data().map_err(io::Error::other),
            Sync::PageCache => Ok(()),
        }
    }
}

impl<D: Disk> Writer<D> {
    /// Opens a partition, or makes it: judges what is there, cuts off what was never written completely, seals the newest
    /// segment and raises the epoch. New records get offsets from `end_offset_min` on at the least.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::NoSpace`]. Damage is no error: it is in [`Recovery::quarantined`].
    pub fn open(
        disk: D,
        options: PartitionOptions,
        end_offset_min: Offset,
        now: UnixNanos,
    ) -> Result<(Self, Recovery), Error> {
        let directory = options.directory.clone();
        disk.create_dir_all(&directory).map_err(|error| Error::io(&directory, "create", error))?;
        let names = Names::list(&disk, &directory)?;
        settle_cache(&disk, &directory, &names)?;
        let mut settled = Settled::default();
        for found in recovery::inspect(&disk, &directory, &names, now)? {
            settled.settle(&disk, &directory, found)?;
        }
        let Settled { segments, truncated, quarantined } = settled;
        let in_segments = segments.iter().filter_map(|segment| Some(segment.identity?.0));
        let newest = names.epochs.iter().copied().chain(in_segments).max().unwrap_or_default();
        let epoch = raise_epoch(&disk, &directory, &names.epochs, newest)?;
        let end = segments.last().map_or(Offset(0), |segment| segment.end).max(end_offset_min);
        let newest_at = segments.iter().map(|segment| segment.newest_at).max().unwrap_or_default();
        let mut view = View { segments, end, recent: Default::default() };
        let loaded: Vec<Offset> = view
            .segments
            .iter()
            .filter(|segment| segment.loaded.is_some())
            .map(|segment| segment.base)
            .collect();
        loaded.into_iter().for_each(|base| view.note_recent(base));
        let writer = Self {
            options,
            shared: Arc::new(Shared::new(disk, directory, view, true)),
            epoch,
            open: None,
            pending: Stage::default(),
            newest_at,
            is_poisoned: false,
        };
        Ok((writer, Recovery { end_offset: end, epoch, truncated, quarantined }))
    }

    /// Adds a record, `head` and `body` one behind the other, to the next commit.
    ///
    /// # Panics
    /// When a record is 4 GiB or longer: bodies are limited far below that.
    pub fn append(&mut self, [head, body]: [Bytes; 2]) {
        self.pending.push(&head, &body);
    }

    /// How many bytes the next commit will write.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending.commit_bytes()
    }

    /// How many records the next commit will hold.
    #[must_use]
    pub fn pending_records(&self) -> u64 {
        self.pending.records()
    }

    /// Writes what was appended, in one write and one sync, and shows it to readers. After an error nothing of it stays
    /// and nothing is pending any more: whoever wants it written appends it again.
    ///
    /// # Errors
    /// [`Error::NoSpace`] may be tried again; after any other the partition is poisoned until [`Self::reopen`].
    pub fn commit(&mut self, sync: Sync, now: UnixNanos) -> Result<Committed, Error> {
        let mut stage = std::mem::take(&mut self.pending);
        let result = self.commit_stage(&mut stage, sync, now);
        self.pending = stage;
        result
    }

    /// As [`Self::commit`], for records collected elsewhere. The stage is empty afterwards, whatever happened.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_stage(
        &mut self,
        stage: &mut Stage,
        sync: Sync,
        now: UnixNanos,
    ) -> Result<Committed, Error> {
        let first = self.end_offset();
        let result = if stage.is_empty() && !self.is_poisoned {
            Ok(Committed { first, end: first, bytes: 0, rolled: false })
        } else {
            self.begin(stage, now).and_then(|flight| {
                let written = flight.write(stage, sync);
                self.end(flight, written)
            })
        };
        stage.clear();
        result
    }

    /// Whether the commit of these records needs one write and nothing else: no new segment, no repair.
    #[must_use]
    pub fn takes(&self, stage: &Stage) -> bool {
        let Some(base) = self.open.filter(|_| !self.is_poisoned) else { return false };
        let (is_full, is_damaged) = self.state_of_open(base, stage.commit_bytes());
        !is_full && !is_damaged
    }

    /// Begins the commit of these records, which somebody else writes, durably: the bytes that [`Stage::lend`]
    /// gives. [`Self::end`] has to follow before the next one begins. Makes a new segment where that is due.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn begin(&mut self, stage: &mut Stage, now: UnixNanos) -> Result<Flight<D::File>, Error> {
        if self.is_poisoned {
            return Err(Error::Poisoned);
        }
        self.newest_at = self.newest_at.max(now);
        let result = self.try_begin(stage);
        self.note_failure(&result);
        result
    }

    /// Ends a commit: shows it to readers, or sees to it that nothing of it stays.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn end(&mut self, flight: Flight<D::File>, written: io::Result<()>) -> Result<Committed, Error> {
        let result = self.try_end(flight, written);
        self.note_failure(&result);
        result
    }

    fn note_failure<T>(&mut self, result: &Result<T, Error>) {
        self.is_poisoned = result.as_ref().is_err_and(|error| !error.is_retryable());
    }

    /// Whether commits are refused because one failed.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }

    /// Makes a poisoned partition usable again: cuts off the commit that failed, verifies everything before it as the disk
    /// has it, seals the segment and raises the epoch. The failed commit was never acknowledged, so its senders
    /// send it again; were it kept, it would come twice, and were it kept in part, it could pass for damage.
    ///
    /// # Errors
    /// As [`Self::open`]. The partition stays poisoned.
    pub fn reopen(&mut self, now: UnixNanos) -> Result<Recovery, Error> {
        self.is_poisoned = true;
        self.pending.clear();
        self.newest_at = self.newest_at.max(now);
        let mut truncated = None;
        let mut quarantined = Vec::new();
        if let Some(base) = self.open {
            let (file, used, end) = self.open_file(base);
            file.cut(used)?;
            file.file.drop_cache().map_err(|error| Error::fatal(&file.path, "verify", error))?;
            let walk = recovery::walk(&file, base, used, Expect::Until(end))?;
            truncated = Some(Truncated { path: file.path.to_path_buf(), position: used });
            quarantined = walk.map.damages.iter().map(|damage| damage.quarantined(&file.path)).collect();
            if quarantined.is_empty() {
                self.seal_open()?;
            } else {
                self.quarantine_open(base, end, walk.map, &quarantined)?;
            }
        }
        let Shared { disk, directory, .. } = &*self.shared;
        let names = Names::list(disk, directory)?;
        self.remove_empty_leftover(&names)?;
        let newest = names.epochs.iter().copied().max().unwrap_or_default().max(self.epoch);
        self.epoch = raise_epoch(disk, directory, &names.epochs, newest)?;
        self.is_poisoned = false;
        Ok(Recovery { end_offset: self.end_offset(), epoch: self.epoch, truncated, quarantined })
    }

    /// The offset that the next record gets.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.shared.look().end
    }

    /// The writer's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A handle for reading.
    #[must_use]
    pub fn reader(&self) -> Reader<D> {
        Reader { shared: Arc::clone(&self.shared) }
    }

    /// A hand that removes segments, also while this writer is at work elsewhere.
    #[must_use]
    pub fn remover(&self) -> Remover<D> {
        Remover::new(self.reader())
    }

    fn try_begin(&mut self, stage: &mut Stage) -> Result<Flight<D::File>, Error> {
        let first = self.end_offset();
        let bytes = stage.commit_bytes();
        self.roll_if_needed(bytes)?;
        let rolled = self.open.is_none();
        let segment = match self.open {
            Some(base) => base,
            None => self.begin_segment(first, bytes)?,
        };
        let (file, position, _) = self.open_file(segment);
        let facts = CommitFacts {
            kind: Kind::Records,
            epoch: self.epoch,
            base_offset: first,
            timestamp: self.newest_at,
        };
        stage.close(facts, file.salt);
        Ok(Flight { file, segment, first, records: stage.records(), rolled, bytes, position })
    }

    fn try_end(&mut self, flight: Flight<D::File>, written: io::Result<()>) -> Result<Committed, Error> {
        let Flight { file, segment, first, records, rolled, bytes, position } = flight;
        if let Err(source) = written {
            let operation = "write to";
            if !error::is_no_space(&source) {
                return Err(Error::fatal(&file.path, operation, source));
            }
            // What was written of it must not stand where the next commit is expected.
            file.cut(position)?;
            return Err(Error::io(&file.path, operation, source));
        }
        let end = first.plus(records);
        let newest_at = self.newest_at;
        let mut view = self.shared.change();
        if let Some(segment) = view.segment_mut(segment) {
            if let Some(Loaded { map, .. }) = &mut segment.loaded {
                map.note(first, segment.used);
            }
            segment.used += bytes;
            segment.bytes = segment.bytes.max(segment.used);
            segment.end = end;
            segment.newest_at = newest_at;
        }
        view.end = end;
        Ok(Committed { first, end, bytes, rolled })
    }

    /// The open segment's file, where its commits end, and its end offset.
    fn open_file(&self, base: Offset) -> (SegmentFile<D::File>, u64, Offset) {
        let view = self.shared.look();
        let segment = view.segment(base).expect("the open segment is in the view until it is sealed");
        let loaded = segment.loaded.as_ref().expect("the open segment is never unloaded");
        (loaded.file.clone(), segment.used, segment.end)
    }

    /// Makes a segment whose header is durable before any commit follows.
    fn begin_segment(&mut self, base: Offset, commit_bytes: u64) -> Result<Offset, Error> {
        let Shared { disk, directory, .. } = &*self.shared;
        let path: Arc<Path> = directory.join(FileName::Segment(base).to_string()).into();
        let wanted = self.options.segment_bytes_max.max(SEGMENT_HEADER_BYTES + commit_bytes);
        let length = if self.options.preallocate { wanted } else { 0 };
        let previous_end = self.shared.look().segments.last().map_or(Offset(0), |segment| segment.end);
        let header =
            SegmentHeader { epoch: self.epoch, base_offset: base, previous_end, created_at: self.newest_at };
        let (sector, salt) = header.encode();
        let made = (|| {
            let file = disk.create_new(&path, length)?;
            file.write_at(&[IoSlice::new(&sector), IoSlice::new(&sector)], 0)?;
            file.sync_data()?;
            disk.sync_dir(directory)?;
            Ok(file)
        })();
        let file = match made {
            Ok(file) => file,
            Err(source) => {
                let error = Error::io(&path, "create", source);
                // It holds no record. If it cannot be removed either, opening the partition again will.
                let removed = disk.remove(&path).is_ok() && disk.sync_dir(directory).is_ok();
                return Err(match error {
                    Error::NoSpace { path, operation, source } if !removed => {
                        Error::Io { path, operation, source }
                    }
                    error => error,
                });
            }
        };
        let file = SegmentFile { file: Arc::new(file), path: Arc::clone(&path), epoch: self.epoch, salt };
        let segment = Segment {
            base,
            end: base,
            newest_at: self.newest_at,
            bytes: length.max(SEGMENT_HEADER_BYTES),
            used: SEGMENT_HEADER_BYTES,
            sealed: false,
            quarantined: None,
            path,
            identity: Some((self.epoch, salt)),
            loaded: Some(Loaded { file, map: Map::default() }),
        };
        self.shared.change().segments.push(segment);
        self.open = Some(base);
        Ok(base)
    }

    /// Ends the open segment when the next commit would make it too long, or when a reader found damage in it.
    fn roll_if_needed(&mut self, commit_bytes: u64) -> Result<(), Error> {
        let Some(base) = self.open else { return Ok(()) };
        let (is_full, is_damaged) = self.state_of_open(base, commit_bytes);
        if is_damaged {
            return self.retire_open(base);
        }
        if is_full { self.seal_open() } else { Ok(()) }
    }

    /// Whether so many bytes more make the open segment too long, and whether a reader found damage in it.
    fn state_of_open(&self, base: Offset, commit_bytes: u64) -> (bool, bool) {
        let view = self.shared.look();
        let segment = view.segment(base).expect("the open segment is in the view until it is sealed");
        (segment.used + commit_bytes > self.options.segment_bytes_max, segment.quarantined.is_some())
    }

    /// Ends the open segment, in which a reader found damage.
    fn retire_open(&mut self, base: Offset) -> Result<(), Error> {
        let (file, used, end) = self.open_file(base);
        file.cut(used)?;
        let map = recovery::walk(&file, base, used, Expect::Until(end))?.map;
        let damages: Vec<Quarantined> =
            map.damages.iter().map(|damage| damage.quarantined(&file.path)).collect();
        self.quarantine_open(base, end, map, &damages)
    }

    /// Seals the open segment; one without a record goes instead.
    fn seal_open(&mut self) -> Result<(), Error> {
        let Some(base) = self.open else { return Ok(()) };
        let (file, used, end) = self.open_file(base);
        let Shared { disk, directory, .. } = &*self.shared;
        if end == base {
            remove_name(disk, &file.path).map_err(|error| Error::fatal(&file.path, "remove", error))?;
            disk.sync_dir(directory).map_err(|error| Error::fatal(directory, "sync", error))?;
            self.shared.change().segments.retain(|segment| segment.base != base);
            self.open = None;
            return Ok(());
        }
        let (map, newest_at) = {
            let view = self.shared.look();
            let segment = view.segment(base).expect("the open segment is in the view until it is sealed");
            let map = segment.loaded.as_ref().map(|loaded| loaded.map.clone()).unwrap_or_default();
            (map, segment.newest_at)
        };
        let length = file.seal(used, end, newest_at, &map)?;
        let mut view = self.shared.change();
        if let Some(segment) = view.segment_mut(base) {
            segment.sealed = true;
            segment.bytes = length;
        }
        view.note_recent(base);
        self.open = None;
        Ok(())
    }

    fn quarantine_open(
        &mut self,
        base: Offset,
        end: Offset,
        map: Map,
        damages: &[Quarantined],
    ) -> Result<(), Error> {
        let Shared { disk, directory, .. } = &*self.shared;
        recovery::write_marker(disk, directory, base, end, damages)
            .map_err(|error| Error::io(directory, "mark a segment in", error))?;
        let mut view = self.shared.change();
        if let Some(segment) = view.segment_mut(base) {
            segment.sealed = true;
            segment.bytes = segment.used;
            if let Some(damage) = damages.first() {
                segment.quarantined = Some(damage.reason.clone());
            }
            if let Some(loaded) = &mut segment.loaded {
                loaded.map = map;
            }
        }
        self.open = None;
        Ok(())
    }

    /// A segment whose making failed may have left its name, where the next one has to go.
    fn remove_empty_leftover(&self, names: &Names) -> Result<(), Error> {
        let Shared { disk, directory, .. } = &*self.shared;
        let base = self.end_offset();
        if names.segments.contains(&base) {
            let path = directory.join(FileName::Segment(base).to_string());
            remove_name(disk, &path).map_err(|error| Error::io(&path, "remove", error))?;
        }
        Ok(())
    }
}

/// What is left of a directory once every segment has got what it needs.
struct Settled<F> {
    segments: Vec<Segment<F>>,
    truncated: Option<Truncated>,
    quarantined: Vec<Quarantined>,
}

impl<F> Default for Settled<F> {
    fn default() -> Self {
        Self { segments: Vec::new(), truncated: None, quarantined: Vec::new() }
    }
}

impl<F: DiskFile> Settled<F> {
    fn settle<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        directory: &Path,
        found: Found<F>,
    ) -> Result<(), Error> {
        let Found { mut segment, state, damages } = found;
        self.quarantined.extend(damages.iter().cloned());
        if state == State::Torn {
            self.truncated = Some(Truncated { path: segment.path.to_path_buf(), position: segment.used });
        }
        match state {
            State::Sealed => {}
            State::Damaged { remember } => {
                if remember {
                    recovery::write_marker(disk, directory, segment.base, segment.end, &damages)
                        .map_err(|error| Error::io(directory, "mark a segment in", error))?;
                }
            }
            State::Incomplete | State::Unsealed | State::Torn if segment.end == segment.base => {
                remove_name(disk, &segment.path)
                    .map_err(|error| Error::io(&segment.path, "remove", error))?;
                disk.sync_dir(directory).map_err(|error| Error::io(directory, "sync", error))?;
                return Ok(());
            }
            State::Incomplete | State::Unsealed | State::Torn => {
                if let Some(Loaded { file, map }) = &segment.loaded {
                    if state == State::Torn {
                        file.cut(segment.used)?;
                    }
                    segment.bytes = file.seal(segment.used, segment.end, segment.newest_at, map)?;
                }
            }
        }
        self.segments.push(segment);
        Ok(())
    }
}

/// Makes the cache and the disk agree about the newest segment and the markers. What a killed process wrote last may be in
/// the cache alone, and a sync that failed in it leaves there what the disk never took: neither is to be judged, or built on.
fn settle_cache<D: Disk>(disk: &D, directory: &Path, names: &Names) -> Result<(), Error> {
    let newest = names.segments.last().map(|base| FileName::Segment(*base));
    let markers = names.quarantined.iter().map(|base| FileName::Quarantined(*base));
    for name in newest.into_iter().chain(markers) {
        let path = directory.join(name.to_string());
        let file = disk.open(&path).map_err(|error| Error::io(&path, "open", error))?;
        file.sync_data().map_err(|error| Error::fatal(&path, "sync", error))?;
        file.drop_cache().map_err(|error| Error::fatal(&path, "verify", error))?;
    }
    Ok(())
}

/// Makes the next epoch durable before anything is written under it.
fn raise_epoch<D: Disk>(disk: &D, directory: &Path, known: &[Epoch], newest: Epoch) -> Result<Epoch, Error> {
    let epoch = Epoch(newest.0.saturating_add(1));
    let path = |epoch: Epoch| directory.join(FileName::Epoch(epoch).to_string());
    let target = path(epoch);
    let failed = |error| Error::io(&target, "raise the epoch to", error);
    match known.split_last() {
        Some((last, older)) => {
            disk.rename(&path(*last), &target).map_err(failed)?;
            for old in older {
                disk.remove(&path(*old)).map_err(failed)?;
            }
        }
        None => {
            disk.create_new(&target, 0).map_err(failed)?;
        }
    }
    disk.sync_dir(directory).map_err(failed)?;
    Ok(epoch)
}
