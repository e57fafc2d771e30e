//! The archive of a node: its shards, what their segments cover, opening, statistics, expiry. Adds no rows;
//! [`crate::writer`] does.
//!
//! A segment covers a range of its shard's settlement records. What the segments of a shard cover from the lowest range
//! on without a hole is settled for good; everything beyond is gathered again after a restart. A newest segment that is
//! missing or damaged therefore only lowers that mark.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use store_model::{Offset, ShardId, UnixNanos};

use crate::error::Error;
use crate::files::{self, Coverage};
use crate::open::{Open, Rows};
use crate::pages::Pages;
use crate::retention::{Candidate, Expired, choose};
use crate::sealed::Sealed;
use crate::snapshot::Snapshot;
use crate::write::{self, Seal};
use crate::writer::ShardWriter;

/// How the archive is laid out. Changing any of it affects new segments only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveOptions {
    /// Where the segments of topic `traces` lie, a directory a shard.
    pub directory: PathBuf,
    /// A page is closed once it holds this many raw bytes. Larger ones compress better and are slower to read one
    /// trace from.
    pub page_bytes: usize,
    /// Higher is smaller and slower to write.
    pub zstd_level: i32,
    /// An open segment of this size, its index included, asks to be sealed.
    pub open_bytes_max: usize,
    /// An open segment with so many distinct terms asks to be sealed, so that a sender that invents values cannot make
    /// indexes without end.
    pub open_terms_max: usize,
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("traces"),
            page_bytes: 128 << 10,
            zstd_level: 1,
            open_bytes_max: 64 << 20,
            open_terms_max: 1_000_000,
        }
    }
}

/// What opening found.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// How many segments can be read.
    pub segments: usize,
    /// Damaged segments: left where they are, excluded from answers, no longer covering anything.
    pub quarantined: Vec<SetAside>,
    /// Segments of a newer version: left where they are, excluded from answers; what they cover stays covered.
    pub skipped: Vec<SetAside>,
}

/// A file that is there and not read.
#[derive(Debug)]
pub struct SetAside {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub cause: Error,
}

/// The archive in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ArchiveStats {
    /// Sealed segments.
    pub segments: u64,
    /// Their size on disk.
    pub bytes: u64,
    /// Memory of open segments, indexes included.
    pub open_bytes: u64,
    /// Fragments, in open and sealed segments.
    pub rows: u64,
    /// Damaged segments found when opening.
    pub quarantined: u64,
    /// Segments of an unknown version found when opening.
    pub skipped: u64,
    /// Reads since opening that found a damaged page.
    pub damaged_page_reads: u64,
}

/// A handle to the archive; clones are the same archive.
#[derive(Clone, Debug)]
pub struct Archive {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: ArchiveOptions,
    /// Those in use, and those that an earlier run with more shards left behind.
    shards: BTreeMap<ShardId, Shard>,
    shards_in_use: u16,
    pub(crate) pages: Arc<Pages>,
    quarantined: u64,
    skipped: u64,
}

/// One shard's segments.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    directory: PathBuf,
    /// Held while the view changes or files are removed.
    files: Mutex<Covered>,
    /// [`Covered::end`], for those who need not wait.
    covered: AtomicU64,
    /// Replaced as a whole, so that a snapshot sees a row that moves from open to sealed exactly once.
    view: ArcSwap<View>,
    has_writer: AtomicBool,
}

/// What snapshots see of a shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) sealed: Vec<Arc<Sealed>>,
    /// What is being sealed.
    pub(crate) ended: Option<Arc<Ended>>,
    pub(crate) open: Arc<Open>,
}

impl View {
    /// Segments in memory, oldest first.
    pub(crate) fn in_memory(&self) -> impl Iterator<Item = &Arc<Open>> {
        self.ended.iter().map(|ended| &ended.open).chain([&self.open])
    }
}

/// A segment that takes no more rows and is in no file yet.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) open: Arc<Open>,
    pub(crate) coverage: Coverage,
}

/// What a shard's segments cover, expired ones included.
#[derive(Clone, Debug, Default)]
pub(crate) struct Covered {
    ranges: Vec<Coverage>,
    lowest: Offset,
}

impl Covered {
    /// `ranges` are those of segments that hold, `lost` those of damaged ones.
    fn new(ranges: Vec<Coverage>, lost: &[Coverage]) -> Self {
        let lowest = ranges.iter().chain(lost).map(|range| range.from).min().unwrap_or_default();
        Self { ranges, lowest }
    }

    /// Everything below is covered.
    pub(crate) fn end(&self) -> Offset {
        let mut ranges = self.ranges.clone();
        ranges.sort_unstable();
        let adjoin = |end: Offset, range: Coverage| if range.from <= end { end.max(range.to) } else { end };
        ranges.into_iter().fold(self.lowest, adjoin)
    }

    /// Whether something beyond [`Self::end`] is covered too.
    pub(crate) fn has_hole(&self) -> bool {
        let end = self.end();
        self.ranges.iter().any(|range| range.from > end)
    }

    pub(crate) fn add(&mut self, range: Coverage) {
        self.ranges.push(range);
    }
}

impl Archive {
    /// Opens what lies in the directory for `shards` shards, and removes what was never finished.
    ///
    /// # Errors
    /// [`Error::Io`]. Damage is no error: it is in the report.
    pub fn open(options: ArchiveOptions, shards: u16) -> Result<(Self, OpenReport), Error> {
        files::create_directory(&options.directory)?;
        for shard in 0..shards {
            files::create_directory(&files::shard_directory(&options.directory, ShardId(shard)))?;
        }
        let pages = Arc::new(Pages::default());
        let mut report = OpenReport::default();
        let mut opened = BTreeMap::new();
        for id in files::shards(&options.directory)? {
            files::remove_unfinished(&files::shard_directory(&options.directory, id))?;
            opened.insert(id, Shard::open(&options.directory, id, &pages, &mut report)?);
        }
        let shared = Shared {
            options,
            shards: opened,
            shards_in_use: shards,
            pages,
            quarantined: store_index::codec::count(report.quarantined.len()),
            skipped: store_index::codec::count(report.skipped.len()),
        };
        Ok((Self { shared: Arc::new(shared) }, report))
    }

    /// Judges what lies in the directory and changes nothing: for tools, also beside a running appliance.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn inspect(directory: &Path) -> Result<OpenReport, Error> {
        let mut report = OpenReport::default();
        for id in files::shards(directory)? {
            Shard::open(directory, id, &Arc::default(), &mut report)?;
        }
        Ok(report)
    }

    /// The one writer of a shard.
    ///
    /// # Panics
    /// When there is no such shard, or its writer is in use.
    #[must_use]
    pub fn writer(&self, shard: ShardId) -> ShardWriter {
        assert!(shard.0 < self.shared.shards_in_use, "shard {shard} was not asked for when opening");
        let taken = self.shared.shard(shard).has_writer.swap(true, Ordering::AcqRel);
        assert!(!taken, "shard {shard} has a writer already");
        ShardWriter::new(self.clone(), shard)
    }

    /// What there is now. Rows added later are not in it; segments removed later are.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.shared.shards.values().map(Shard::view))
    }

    /// The archive in numbers.
    #[must_use]
    pub fn stats(&self) -> ArchiveStats {
        let Shared { quarantined, skipped, pages, .. } = &*self.shared;
        let mut stats = ArchiveStats {
            quarantined: *quarantined,
            skipped: *skipped,
            damaged_page_reads: pages.damaged_reads.load(Ordering::Relaxed),
            ..ArchiveStats::default()
        };
        for shard in self.shared.shards.values() {
            let view = shard.view();
            for sealed in &view.sealed {
                stats.segments += 1;
                stats.bytes += sealed.file_bytes();
                stats.rows += u64::from(sealed.footer.row_count);
            }
            for open in view.in_memory() {
                let open = open.read();
                stats.open_bytes += store_index::codec::count(open.bytes());
                stats.rows += u64::from(open.count());
            }
        }
        stats
    }

    /// Removes sealed segments that were sealed longer than `age_max` ago, and the oldest beyond `bytes_max` in all.
    /// Whoever reads one of them keeps reading it.
    ///
    /// # Errors
    /// [`Error::Io`]; what was removed until then stays removed.
    pub fn expire(&self, age_max: Duration, bytes_max: u64, now: UnixNanos) -> Result<Expired, Error> {
        let mut segments = Vec::new();
        for shard in self.shared.shards.values() {
            let view = shard.view();
            segments.extend(view.sealed.iter().map(|sealed| (shard, Arc::clone(sealed))));
        }
        let candidates: Vec<Candidate> = segments
            .iter()
            .map(|(shard, sealed)| Candidate {
                sealed_at: sealed.footer.sealed_at,
                bytes: sealed.file_bytes(),
                marker_in_use: sealed.footer.row_count == 0 && shard.is_last(sealed),
            })
            .collect();
        let mut expired = Expired::default();
        for at in choose(&candidates, age_max, bytes_max, now) {
            let (shard, sealed) = &segments[at];
            shard.remove(sealed, now, &self.shared)?;
            expired.segments += 1;
            expired.bytes += sealed.file_bytes();
            expired.rows += u64::from(sealed.footer.row_count);
        }
        Ok(expired)
    }
}

impl Shared {
    pub(crate) fn shard(&self, shard: ShardId) -> &Shard {
        self.shards.get(&shard).expect("opening makes every shard in use")
    }
}

impl Shard {
    fn open(
        directory: &Path,
        id: ShardId,
        pages: &Arc<Pages>,
        report: &mut OpenReport,
    ) -> Result<Self, Error> {
        let directory = files::shard_directory(directory, id);
        let (mut sealed, mut ranges, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for path in files::list(&directory)? {
            let Some(coverage) = files::parse(&path) else { continue };
            match Sealed::open(&path, pages) {
                Ok(segment) => {
                    sealed.push(Arc::new(segment));
                    ranges.push(coverage);
                }
                Err(cause @ Error::Io { .. }) => return Err(cause),
                Err(cause @ Error::UnknownVersion { .. }) => {
                    ranges.push(coverage);
                    report.skipped.push(SetAside { path, cause });
                }
                Err(cause) => {
                    lost.push(coverage);
                    report.quarantined.push(SetAside { path, cause });
                }
            }
        }
        report.segments += sealed.len();
        let covered = Covered::new(ranges, &lost);
        Ok(Self {
            id,
            directory,
            covered: AtomicU64::new(covered.end().0),
            files: Mutex::new(covered),
            view: ArcSwap::from_pointee(View { sealed, ended: None, open: Arc::default() }),
            has_writer: AtomicBool::new(false),
        })
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Covered> {
        // A panic between writing a file and noting it leaves coverage too low, which is safe.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn release_writer(&self) {
        // Pairs with the swap in `Archive::writer`.
        self.has_writer.store(false, Ordering::Release);
    }

    /// Writes `rows` as a segment, without showing it to anyone.
    pub(crate) fn write(
        &self,
        rows: &Rows,
        coverage: Coverage,
        at: UnixNanos,
        shared: &Shared,
    ) -> Result<Sealed, Error> {
        let path = files::free_path(&self.directory, coverage);
        write::segment(&path, rows, Seal { shard: self.id, coverage, at }, &shared.options)?;
        Sealed::open(&path, &shared.pages).inspect_err(|_| {
            // The error is the one to report. The rows stay in memory and are sealed again under another name.
            let _leftover = files::remove(&path);
        })
    }

    /// Settlement records below are in sealed segments.
    pub(crate) fn covered(&self) -> Offset {
        // Pairs with the store in `show_ended`: what is covered is in the view.
        Offset(self.covered.load(Ordering::Acquire))
    }

    /// Ends the open segment and begins another. One that is ended already must have been sealed.
    pub(crate) fn end_open(&self, coverage: Coverage) -> Arc<Ended> {
        let _covered = self.lock();
        let ended = Arc::new(Ended { open: Arc::clone(&self.view().open), coverage });
        self.change(|view| {
            view.ended = Some(Arc::clone(&ended));
            view.open = Arc::default();
        });
        ended
    }

    /// Shows the ended segment as the file it is now: its rows move at one moment.
    pub(crate) fn show_ended(&self, segment: Sealed, coverage: Coverage) {
        let mut covered = self.lock();
        self.change(|view| {
            view.sealed.push(Arc::new(segment));
            view.ended = None;
        });
        covered.add(coverage);
        self.covered.store(covered.end().0, Ordering::Release);
    }

    /// Replaces the view. The lock is held.
    fn change(&self, change: impl FnOnce(&mut View)) {
        let mut view = View::clone(&self.view());
        change(&mut view);
        self.view.store(Arc::new(view));
    }

    /// Whether no other segment covers records as late as this one does.
    fn is_last(&self, segment: &Arc<Sealed>) -> bool {
        let to = segment.footer.coverage.to;
        self.view().sealed.iter().all(|other| Arc::ptr_eq(other, segment) || other.footer.coverage.to < to)
    }

    fn remove(&self, segment: &Arc<Sealed>, now: UnixNanos, shared: &Shared) -> Result<(), Error> {
        let _covered = self.lock();
        if self.is_last(segment) {
            // Coverage must outlive the rows, or they would be gathered again after a restart.
            let marker = self.write(&Rows::default(), segment.footer.coverage, now, shared)?;
            self.change(|view| view.sealed.push(Arc::new(marker)));
        }
        files::remove(segment.path())?;
        self.change(|view| view.sealed.retain(|other| !Arc::ptr_eq(other, segment)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u64, u64)]) -> Vec<Coverage> {
        pairs.iter().map(|&(from, to)| Coverage { from: Offset(from), to: Offset(to) }).collect()
    }

    #[test]
    fn coverage_ends_at_the_first_hole() {
        let check = |held: &[(u64, u64)], lost: &[(u64, u64)], end: u64, hole: bool| {
            let covered = Covered::new(ranges(held), &ranges(lost));
            assert_eq!((covered.end(), covered.has_hole()), (Offset(end), hole), "{held:?} {lost:?}");
        };
        check(&[], &[], 0, false);
        check(&[(0, 5), (5, 9)], &[], 9, false);
        check(&[(5, 9), (0, 5), (9, 9)], &[], 9, false);
        // The oldest have expired.
        check(&[(5, 9)], &[], 9, false);
        check(&[(0, 5)], &[(5, 9)], 5, false);
        check(&[(0, 5), (9, 12)], &[(5, 9)], 5, true);
        check(&[(5, 9)], &[(0, 5)], 0, true);
        // Rebuilt for more records than were lost.
        check(&[(0, 5), (9, 12), (5, 10)], &[(5, 9)], 12, false);
    }
}
