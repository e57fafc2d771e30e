//! What queries read: every segment there was at one moment. Reads only; merges nothing.

use std::cmp::Reverse;
use std::sync::Arc;

use store_index::Term;
use store_index::term::{
    attributes_prefix, escaped_part, operations_prefix, services_prefix, unescape, values_prefix,
};
use store_model::{Fragment, Tenant, TraceId, UnixNanos};

use crate::archive::View;
use crate::error::Error;
use crate::open::Open;
use crate::sealed::Sealed;

/// The archive at one moment. Cheap to take, and stays as it is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    segments: Vec<SegmentView>,
}

/// One segment of a snapshot, open or sealed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SegmentView {
    time_range: (UnixNanos, UnixNanos),
    row_count: u32,
    segment: Segment,
}

#[derive(Clone, Debug)]
enum Segment {
    Open(Arc<Open>),
    Sealed(Arc<Sealed>),
}

/// Which names to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermKind<'a> {
    /// Services.
    Services,
    /// Names of spans.
    Operations {
        /// Only those of this service.
        service: Option<&'a [u8]>,
    },
    /// Keys of attributes.
    Keys,
    /// Values of an attribute.
    Values {
        /// Its key.
        key: &'a [u8],
    },
}

impl TermKind<'_> {
    fn prefix(self, tenant_number: u32) -> Vec<u8> {
        match self {
            Self::Services => services_prefix(tenant_number),
            Self::Operations { service } => operations_prefix(tenant_number, service),
            Self::Keys => attributes_prefix(tenant_number),
            Self::Values { key } => values_prefix(tenant_number, key),
        }
    }
}

impl Snapshot {
    pub(crate) fn new(views: impl Iterator<Item = Arc<View>>) -> Self {
        let mut segments = Vec::new();
        for view in views {
            segments.extend(view.sealed.iter().map(SegmentView::sealed));
            segments.extend(view.in_memory().map(SegmentView::open));
        }
        segments.retain(|segment| segment.row_count > 0);
        segments.sort_by_key(|segment| {
            let (earliest, latest) = segment.time_range;
            Reverse((latest, earliest))
        });
        Self { segments }
    }

    /// The segments that have rows, newest time range first.
    #[must_use]
    pub fn segments(&self) -> &[SegmentView] {
        &self.segments
    }

    /// The fragments of a trace.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::DamagedPage`] when one of them cannot be read; whoever wants the others asks segment
    /// by segment.
    pub fn find(&self, tenant: &Tenant, id: TraceId) -> Result<Vec<Fragment>, Error> {
        let mut fragments = Vec::new();
        for segment in &self.segments {
            for row in segment.find(tenant, id)? {
                fragments.push(segment.fragment(row)?);
            }
        }
        Ok(fragments)
    }
}

impl SegmentView {
    fn sealed(sealed: &Arc<Sealed>) -> Self {
        Self {
            time_range: sealed.time_range(),
            row_count: sealed.footer.row_count,
            segment: Segment::Sealed(Arc::clone(sealed)),
        }
    }

    fn open(open: &Arc<Open>) -> Self {
        let rows = open.read();
        Self {
            time_range: (rows.earliest, rows.latest),
            row_count: rows.count(),
            segment: Segment::Open(Arc::clone(open)),
        }
    }

    /// Start of the earliest and of the latest trace, both included.
    #[must_use]
    pub fn time_range(&self) -> (UnixNanos, UnixNanos) {
        self.time_range
    }

    /// How many fragments this segment holds. They are numbered from 0.
    #[must_use]
    pub fn row_count(&self) -> u32 {
        self.row_count
    }

    /// Whether the segment is a file, not memory.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        matches!(self.segment, Segment::Sealed(_))
    }

    /// The rows of a tenant that every term is true of, newest first: by trace start, then by trace id, descending. A
    /// term with a text beyond [`store_index::term::PART_BYTES_MAX`] is true of all texts that begin alike, and a term
    /// is true of a trace when it is of one of its spans: what must hold of one span has to be verified on the spans.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn rows(&self, tenant: &Tenant, terms: &[Term<'_>]) -> Result<Vec<u32>, Error> {
        match &self.segment {
            Segment::Open(open) => Ok(open.rows(self.row_count, tenant, terms)),
            Segment::Sealed(sealed) => sealed.rows(tenant, terms),
        }
    }

    /// What a row is sorted by.
    ///
    /// # Panics
    /// When `row` is not a row of this segment.
    #[must_use]
    pub fn row_key(&self, row: u32) -> (UnixNanos, TraceId) {
        match &self.segment {
            Segment::Open(open) => {
                let rows = open.read();
                let fragment = &rows.rows[row as usize].fragment;
                (fragment.trace_start, fragment.trace_id)
            }
            Segment::Sealed(sealed) => {
                let entry = sealed.entry(row).expect("a row number comes from the segment it is used with");
                (entry.trace_start, entry.trace_id)
            }
        }
    }

    /// The rows of a trace, in the order its fragments were added.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn find(&self, tenant: &Tenant, id: TraceId) -> Result<Vec<u32>, Error> {
        match &self.segment {
            Segment::Open(open) => Ok(open.find(self.row_count, tenant, id)),
            Segment::Sealed(sealed) => sealed.find(tenant, id),
        }
    }

    /// The fragment in a row.
    ///
    /// # Errors
    /// [`Error::DamagedPage`] or [`Error::Damaged`].
    ///
    /// # Panics
    /// When the segment is open and `row` is not a row of it.
    pub fn fragment(&self, row: u32) -> Result<Fragment, Error> {
        match &self.segment {
            Segment::Open(open) => Ok(open.read().fragment(row)),
            Segment::Sealed(sealed) => sealed.fragment(row),
        }
    }

    /// Visits names of a tenant, each once and in byte order, until `visit` says false. Long ones are cut to
    /// [`store_index::term::PART_BYTES_MAX`].
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn terms(
        &self,
        tenant: &Tenant,
        kind: TermKind<'_>,
        visit: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), Error> {
        match &self.segment {
            Segment::Open(open) => self.open_terms(open, tenant, kind, visit),
            Segment::Sealed(sealed) => sealed_terms(sealed, tenant, kind, visit)?,
        }
        Ok(())
    }

    fn open_terms(
        &self,
        open: &Open,
        tenant: &Tenant,
        kind: TermKind<'_>,
        visit: &mut dyn FnMut(&[u8]) -> bool,
    ) {
        let is_keys = kind == TermKind::Keys;
        // What the open index holds was encoded by this process, so every key has its end.
        let part =
            |suffix: &[u8]| if is_keys { escaped_part(suffix).map_or(0, <[u8]>::len) } else { suffix.len() };
        for name in open.suffixes(self.row_count, tenant, |number| kind.prefix(number), part) {
            let more = if is_keys { visit(&unescape(&name)) } else { visit(&name) };
            if !more {
                break;
            }
        }
    }
}

fn sealed_terms(
    sealed: &Sealed,
    tenant: &Tenant,
    kind: TermKind<'_>,
    visit: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<(), Error> {
    let Some(number) = sealed.tenant_number(tenant) else {
        return Ok(());
    };
    let index = sealed.index()?;
    let prefix = kind.prefix(number);
    if kind != TermKind::Keys {
        return index.terms_with_prefix(&prefix, visit).map_err(sealed.index_damaged());
    }
    let mut from = prefix.clone();
    while let Some(term) = index.term_at_or_after(&from).map_err(sealed.index_damaged())? {
        let Some(suffix) = term.strip_prefix(&*prefix) else { break };
        let key = escaped_part(suffix).map_err(sealed.index_damaged())?;
        if !visit(&unescape(key)) {
            break;
        }
        // The end mark is 00 00; with 00 01 in its place this sorts behind all values of the key and before the next.
        from.truncate(prefix.len());
        from.extend_from_slice(key);
        if let Some(last) = from.last_mut() {
            *last = 1;
        }
    }
    Ok(())
}
