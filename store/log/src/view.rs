//! What the writer and its readers both see of a partition: its segments and where its records end.
//! Holds locks only to look and to swap, never across a read or a write of the disk.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use store_model::{Epoch, Offset, UnixNanos};

use crate::disk::Disk;
use crate::error::Error;
use crate::format::Salt;
use crate::segment::{Map, SegmentFile};

/// How many sealed segments stay open with their maps in memory: at the default size some 130 KiB each.
const RECENT_MAX: usize = 32;

/// A segment as it is known in memory.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) base: Offset,
    pub(crate) end: Offset,
    pub(crate) newest_at: UnixNanos,
    /// The file's length.
    pub(crate) bytes: u64,
    /// Where its commits end.
    pub(crate) used: u64,
    /// Nothing is appended to it any more.
    pub(crate) sealed: bool,
    pub(crate) quarantined: Option<String>,
    pub(crate) path: Arc<Path>,
    /// Epoch and salt; `None` when the header cannot be read, and so nothing behind it.
    pub(crate) identity: Option<(Epoch, Salt)>,
    /// `None` for a sealed segment that nobody has read lately.
    pub(crate) loaded: Option<Loaded<F>>,
}

/// The open file of a segment and where its commits lie.
#[derive(Debug)]
pub(crate) struct Loaded<F> {
    pub(crate) file: SegmentFile<F>,
    pub(crate) map: Map,
}

/// All segments of a partition, oldest first.
#[derive(Debug)]
pub(crate) struct View<F> {
    pub(crate) segments: Vec<Segment<F>>,
    /// The offset that the next record gets.
    pub(crate) end: Offset,
    /// Sealed segments that were loaded on demand, in that order.
    pub(crate) recent: VecDeque<Offset>,
}

/// Where to look for an offset.
pub(crate) enum Place<F> {
    /// In this segment, at this commit or a later one.
    At { base: Offset, file: SegmentFile<F>, position: u64 },
    /// In this segment, which has to be loaded first.
    Unloaded { base: Offset },
    /// It is lost.
    Lost(Error),
    /// No record has it. The next one that may exist is `next`; the same offset at the end of the partition.
    Nothing { next: Offset },
}

impl<F> View<F> {
    pub(crate) fn segment(&self, base: Offset) -> Option<&Segment<F>> {
        let at = self.segments.binary_search_by_key(&base, |segment| segment.base).ok()?;
        self.segments.get(at)
    }

    pub(crate) fn segment_mut(&mut self, base: Offset) -> Option<&mut Segment<F>> {
        let at = self.segments.binary_search_by_key(&base, |segment| segment.base).ok()?;
        self.segments.get_mut(at)
    }

    pub(crate) fn start(&self) -> Offset {
        self.segments.first().map_or(self.end, |segment| segment.base)
    }

    pub(crate) fn place(&self, offset: Offset) -> Place<F> {
        if offset >= self.end {
            return Place::Nothing { next: offset };
        }
        let after = self.segments.partition_point(|segment| segment.base <= offset);
        let next = self.segments.get(after).map_or(self.end, |segment| segment.base);
        let Some(segment) = after.checked_sub(1).and_then(|at| self.segments.get(at)) else {
            return Place::Nothing { next };
        };
        if offset >= segment.end {
            return Place::Nothing { next };
        }
        if segment.identity.is_none() {
            return Place::Lost(segment.lost(0, segment.base, segment.end));
        }
        let Some(Loaded { file, map }) = &segment.loaded else {
            return Place::Unloaded { base: segment.base };
        };
        if let Some(damage) = map.damage_at(offset) {
            let damage = damage.quarantined(&segment.path);
            return Place::Lost(Error::Damaged {
                path: damage.path,
                position: damage.position,
                reason: damage.reason,
                first: damage.first,
                end: damage.end,
            });
        }
        match map.position(offset) {
            Some(position) => Place::At { base: segment.base, file: file.clone(), position },
            None => Place::Lost(segment.lost(segment.used, offset, segment.end)),
        }
    }

    /// Takes in what was loaded, and lets go of what was loaded longest ago.
    pub(crate) fn keep_loaded(&mut self, base: Offset, loaded: Loaded<F>) {
        if let Some(segment) = self.segment_mut(base) {
            segment.loaded = Some(loaded);
        }
        self.note_recent(base);
    }

    /// The segment's map may be dropped later: its seal has it too.
    pub(crate) fn note_recent(&mut self, base: Offset) {
        self.recent.push_back(base);
        if self.recent.len() <= RECENT_MAX {
            return;
        }
        let oldest = self.recent.pop_front();
        // What a pass over a damaged segment found stands in no seal.
        let oldest = oldest.and_then(|base| self.segment_mut(base)).filter(|old| old.quarantined.is_none());
        if let Some(oldest) = oldest {
            oldest.loaded = None;
        }
    }
}

impl<F> Segment<F> {
    fn lost(&self, position: u64, first: Offset, end: Offset) -> Error {
        let reason = self.quarantined.clone().unwrap_or_else(|| "no commit is known here".to_owned());
        Error::Damaged { path: self.path.to_path_buf(), position, reason, first, end }
    }
}

/// The view of a partition, and where it lies.
#[derive(Debug)]
pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: D,
    pub(crate) directory: PathBuf,
    view: RwLock<View<D::File>>,
    /// Whether damage found while reading is written down: not by tools that only look.
    pub(crate) remembers: bool,
}

impl<D: Disk> Shared<D> {
    pub(crate) fn new(disk: D, directory: PathBuf, view: View<D::File>, remembers: bool) -> Self {
        Self { disk, directory, view: RwLock::new(view), remembers }
    }

    pub(crate) fn look(&self) -> RwLockReadGuard<'_, View<D::File>> {
        // Changes under the lock are single assignments, so a panic elsewhere leaves nothing half done.
        self.view.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn change(&self) -> RwLockWriteGuard<'_, View<D::File>> {
        self.view.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
