//! The one writer of a shard: inserts fragments into the open segment and seals it, itself or by another thread's hands. Reads
//! no clock and decides nothing; when to seal is the caller's choice, with [`ShardWriter::is_full`] as advice.

use std::path::PathBuf;
use std::sync::Arc;

use store_model::{Fragment, Offset, ShardId, Tenant, TraceId, UnixNanos};
use tracing::warn;

use crate::archive::{Archive, Ended, Shard};
use crate::error::Error;
use crate::files::Coverage;
use crate::sealed::Sealed;
use crate::terms::Terms;

/// Adds to one shard. Dropping it leaves the open segment to snapshots and to the next writer.
#[derive(Debug)]
pub struct ShardWriter {
    archive: Archive,
    shard: ShardId,
    /// Segments beyond a hole in coverage. What they hold is gathered again with what the hole held, and must not be
    /// stored twice. Empty but after damage.
    ahead: Vec<Arc<Sealed>>,
    terms: Terms,
}

impl ShardWriter {
    pub(crate) fn new(archive: Archive, id: ShardId) -> Self {
        let shard = archive.shared.shard(id);
        let covered = shard.covered();
        let is_ahead = |sealed: &&Arc<Sealed>| sealed.footer.coverage.to > covered;
        let ahead = shard.view().sealed.iter().filter(is_ahead).cloned().collect();
        let terms = Terms::new(shard.view().open.read().pieces.count());
        Self { archive, shard: id, ahead, terms }
    }

    fn shard(&self) -> &Shard {
        self.archive.shared.shard(self.shard)
    }

    /// Settlement records below are in sealed segments. Those from here on are to be gathered again after opening.
    #[must_use]
    pub fn covered(&self) -> Offset {
        self.shard().covered()
    }

    /// Adds a fragment: snapshots taken from now on see it.
    ///
    /// A fragment that is gathered again although a segment beyond a hole in coverage has it is not added again.
    pub fn insert(&mut self, fragment: Fragment) {
        if self.ahead.iter().any(|sealed| holds(sealed, &fragment)) {
            return;
        }
        let open = Arc::clone(&self.shard().view().open);
        let (tenant, trace_id) = (fragment.tenant.clone(), fragment.trace_id);
        if let Err(error) = open.insert(fragment, &mut self.terms) {
            warn!(%tenant, %trace_id, %error, "fragment is stored, and searchable only in part");
        }
    }

    /// The fragments of a trace, of every shard, open segments included.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::DamagedPage`].
    pub fn find(&self, tenant: &Tenant, trace_id: TraceId) -> Result<Vec<Fragment>, Error> {
        self.archive.snapshot().find(tenant, trace_id)
    }

    /// About how much memory the fragments take that are in no file yet, their index included.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.terms.bytes() + self.shard().view().in_memory().map(|open| open.read().bytes()).sum::<usize>()
    }

    /// How many fragments are in no file yet.
    #[must_use]
    pub fn open_rows(&self) -> u32 {
        self.shard().view().in_memory().map(|open| open.read().count()).sum()
    }

    /// Whether the open segment has reached what the options allow and should be sealed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let options = &self.archive.shared.options;
        let view = self.shard().view();
        let rows = view.open.read();
        self.terms.bytes() + rows.bytes() >= options.open_bytes_max
            || rows.index.term_count() >= options.open_terms_max
    }

    /// Writes the open segment to a file, durably, and begins a new one. It then covers the settlement records from
    /// [`Self::covered`] up to and without `covered_to`. `None` when there is nothing to write.
    ///
    /// # Errors
    /// [`Error::Io`] and the like. What could not be written stays in memory and can be sealed again later.
    pub fn seal(&mut self, covered_to: Offset, now: UnixNanos) -> Result<Option<PathBuf>, Error> {
        if self.shard().view().ended.is_some()
            && let Some(left_over) = self.begin_seal(covered_to)?
        {
            left_over.seal(now)?;
        }
        self.begin_seal(covered_to)?.map(|sealing| sealing.seal(now)).transpose()
    }

    /// As [`Self::seal`], but leaves the writing to [`Sealing::seal`], beside which fragments can be added. One that failed
    /// there is given again. There must be only one at a time.
    ///
    /// # Errors
    /// [`Error::CoverageGoesBack`].
    pub fn begin_seal(&mut self, covered_to: Offset) -> Result<Option<Sealing>, Error> {
        let (archive, shard) = (self.archive.clone(), self.shard());
        if let Some(ended) = &shard.view().ended {
            return Ok(Some(Sealing { archive, shard: self.shard, ended: Arc::clone(ended) }));
        }
        let from = shard.covered();
        if covered_to < from {
            return Err(Error::CoverageGoesBack { covered: from, covered_to });
        }
        // A hole is closed even when nothing could be gathered for it, or it would be gathered after every restart.
        let closes_hole = covered_to > from && shard.lock().has_hole();
        if shard.view().open.read().rows.is_empty() && !closes_hole {
            return Ok(None);
        }
        let ended = shard.end_open(Coverage { from, to: covered_to });
        // The numbers of terms and pieces belong to what was just ended.
        self.terms = Terms::default();
        Ok(Some(Sealing { archive, shard: self.shard, ended }))
    }
}

/// A segment on its way into a file. Its fragments can be read meanwhile.
#[derive(Debug)]
pub struct Sealing {
    archive: Archive,
    shard: ShardId,
    ended: Arc<Ended>,
}

impl Sealing {
    /// Writes the segment to a file, durably, and lets go of it in memory.
    ///
    /// # Errors
    /// [`Error::Io`] and the like. The segment stays in memory; [`ShardWriter::begin_seal`] gives it again.
    pub fn seal(self, now: UnixNanos) -> Result<PathBuf, Error> {
        let shared = &self.archive.shared;
        let shard = shared.shard(self.shard);
        let Ended { open, coverage } = &*self.ended;
        let sealed = shard.write(&open.read(), *coverage, now, shared)?;
        let path = sealed.path().to_owned();
        shard.show_ended(sealed, *coverage);
        Ok(path)
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.shard().release_writer();
    }
}

/// Whether a segment has the same spans of the same decision. One that cannot be read holds nothing: better twice than
/// not at all.
fn holds(sealed: &Sealed, fragment: &Fragment) -> bool {
    let rows = sealed.find(&fragment.tenant, fragment.trace_id).unwrap_or_default();
    let is_same = |held: Fragment| held.decided_at == fragment.decided_at && held.otlp == fragment.otlp;
    rows.into_iter().any(|row| sealed.fragment(row).is_ok_and(is_same))
}
