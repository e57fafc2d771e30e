//! The one writer of a shard: inserts fragments into the open segment and seals it. Reads no clock and decides nothing;
//! when to seal is the caller's choice, with [`ShardWriter::is_full`] as advice.

use std::path::PathBuf;
use std::sync::Arc;

use store_model::{Fragment, Offset, ShardId, Tenant, TraceId, UnixNanos};
use tracing::warn;

use crate::archive::{Archive, Shard};
use crate::error::Error;
use crate::files::Coverage;
use crate::open::Open;
use crate::sealed::Sealed;
use crate::terms::Terms;

/// Adds to one shard. Dropping it leaves the open segment to snapshots and to the next writer.
#[derive(Debug)]
pub struct ShardWriter {
    archive: Archive,
    shard: ShardId,
    covered: Offset,
    /// Segments beyond a hole in coverage. What they hold is gathered again with what the hole held, and must not be
    /// stored twice. Empty but after damage.
    ahead: Vec<Arc<Sealed>>,
    terms: Terms,
}

impl ShardWriter {
    pub(crate) fn new(archive: Archive, id: ShardId) -> Self {
        let shard = archive.shared.shard(id);
        let covered = shard.lock().end();
        let is_ahead = |sealed: &&Arc<Sealed>| sealed.footer.coverage.to > covered;
        let ahead = shard.view().sealed.iter().filter(is_ahead).cloned().collect();
        let terms = Terms::new(shard.view().open.read().pieces.count());
        Self { archive, shard: id, covered, ahead, terms }
    }

    fn shard(&self) -> &Shard {
        self.archive.shared.shard(self.shard)
    }

    /// Settlement records below are in sealed segments. Those from here on are to be gathered again after opening.
    #[must_use]
    pub fn covered(&self) -> Offset {
        self.covered
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

    /// About how much memory the open segment holds, its index included.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.terms.bytes() + self.shard().view().open.read().bytes()
    }

    /// How many fragments the open segment holds.
    #[must_use]
    pub fn open_rows(&self) -> u32 {
        self.shard().view().open.read().count()
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
    /// [`Error::Io`] and the like. The open segment is as it was and can be sealed again later.
    pub fn seal(&mut self, covered_to: Offset, now: UnixNanos) -> Result<Option<PathBuf>, Error> {
        let shard = self.archive.shared.shard(self.shard);
        let mut covered = shard.lock();
        if covered_to < self.covered {
            return Err(Error::CoverageGoesBack { covered: self.covered, covered_to });
        }
        let view = shard.view();
        let rows = view.open.read();
        // A hole is closed even when nothing could be gathered for it, or it would be gathered after every restart.
        let closes_hole = covered.has_hole() && covered_to > self.covered;
        if rows.rows.is_empty() && !closes_hole {
            return Ok(None);
        }
        let coverage = Coverage { from: self.covered, to: covered_to };
        let sealed = shard.write(&rows, coverage, now, &self.archive.shared)?;
        let path = sealed.path().to_owned();
        shard.show(sealed, Arc::new(Open::default()));
        covered.add(coverage);
        self.covered = covered.end();
        drop(covered);
        // The numbers of terms and pieces belong to what was just sealed.
        self.terms = Terms::default();
        Ok(Some(path))
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
