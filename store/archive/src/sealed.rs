//! A sealed segment: a mapped file, verified when opened, except for its pages, which are verified when read. Never
//! writes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use roaring::RoaringBitmap;
use store_index::codec::{Cursor, count};
use store_index::{Error as FormatError, IndexReader, Term};
use store_model::{Fragment, Tenant, TraceId, UnixNanos};

use crate::error::Error;
use crate::files;
use crate::format::{
    FOOTER_BYTES, Footer, PAGE_ENTRY_BYTES, PARTS, PageEntry, ROW_ENTRY_BYTES, RowEntry, SEGMENT_VERSION,
    TRACE_ENTRY_BYTES, TRAILER_BYTES, Trailer, read_row,
};
use crate::map::Map;
use crate::pages::{PageKey, Pages};
use crate::pieces::PiecesView;
use crate::settlement::read_tenant;

/// A page's raw length is believed up to here; a longer one is decompressed as it comes.
const PAGE_RESERVE_MAX: u64 = 16 << 20;

/// One file of the archive.
#[derive(Debug)]
pub(crate) struct Sealed {
    path: PathBuf,
    pub(crate) footer: Footer,
    map: Map,
    directory: Vec<PageEntry>,
    tenant_numbers: HashMap<Tenant, u32>,
    row_table: Range<usize>,
    trace_table: Range<usize>,
    pieces: Range<usize>,
    index: Range<usize>,
    number: u64,
    cache: Arc<Pages>,
}

impl Sealed {
    /// Opens and verifies.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::UnknownVersion`], or [`Error::Io`].
    pub(crate) fn open(path: &Path, cache: &Arc<Pages>) -> Result<Self, Error> {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("open", path))?.len();
        if length < count(TRAILER_BYTES + FOOTER_BYTES) {
            return Err(Error::damaged(path, "the length"));
        }
        let map = Map::new(&file).map_err(Error::io("map", path))?;
        let (footer, parts) = verify(path, &map)?;
        let [directory, row_table, trace_table, tenants, pieces, index] = parts;
        let directory = read_directory(&map[directory], &footer)
            .map_err(Error::undecodable(path, "the page directory"))?;
        let names = read_tenants(&map[tenants]).map_err(Error::undecodable(path, "the tenant table"))?;
        PiecesView::open(&map[pieces.clone()]).map_err(Error::undecodable(path, "the pieces"))?;
        IndexReader::open(&map[index.clone()]).map_err(Error::undecodable(path, "the index"))?;
        let rows = footer.row_count as usize;
        let sizes = (row_table.len(), trace_table.len());
        if sizes != (rows * ROW_ENTRY_BYTES, rows * TRACE_ENTRY_BYTES) {
            return Err(Error::damaged(path, "the row table"));
        }
        Ok(Self {
            path: path.to_owned(),
            footer,
            map,
            directory,
            tenant_numbers: names.into_iter().zip(0u32..).collect(),
            row_table,
            trace_table,
            pieces,
            index,
            // Relaxed: only distinctness matters.
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            cache: Arc::clone(cache),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        count(self.map.len())
    }

    /// Earliest and latest trace start; meaningless without rows.
    pub(crate) fn time_range(&self) -> (UnixNanos, UnixNanos) {
        (self.footer.earliest, self.footer.latest)
    }

    pub(crate) fn tenant_number(&self, tenant: &Tenant) -> Option<u32> {
        self.tenant_numbers.get(tenant).copied()
    }

    pub(crate) fn index(&self) -> Result<IndexReader<'_>, Error> {
        IndexReader::open(&self.map[self.index.clone()]).map_err(self.index_damaged())
    }

    pub(crate) fn index_damaged(&self) -> impl Fn(FormatError) -> Error {
        Error::undecodable(&self.path, "the index")
    }

    /// The rows that all terms are true of, newest first.
    pub(crate) fn rows(&self, tenant: &Tenant, terms: &[Term<'_>]) -> Result<Vec<u32>, Error> {
        let Some(tenant_number) = self.tenant_number(tenant) else {
            return Ok(Vec::new());
        };
        let index = self.index()?;
        let mut encoded = Vec::new();
        let mut bitmaps = Vec::with_capacity(terms.len());
        for term in terms.iter().chain(terms.is_empty().then_some(&Term::Tenant)) {
            encoded.clear();
            term.encode(tenant_number, &mut encoded);
            let bitmap = index.rows(&encoded).map_err(self.index_damaged())?;
            if bitmap.is_empty() {
                return Ok(Vec::new());
            }
            bitmaps.push(bitmap);
        }
        bitmaps.sort_unstable_by_key(RoaringBitmap::len);
        let all = bitmaps.into_iter().reduce(|mut all, next| {
            all &= next;
            all
        });
        let all = all.unwrap_or_default();
        if all.max().is_some_and(|row| row >= self.footer.row_count) {
            return Err(Error::damaged(&self.path, "the index"));
        }
        Ok(all.into_iter().rev().collect())
    }

    /// What the row table says of a row that exists.
    pub(crate) fn entry(&self, row: u32) -> Option<RowEntry> {
        let (entries, _) = self.map[self.row_table.clone()].as_chunks::<ROW_ENTRY_BYTES>();
        entries.get(row as usize).map(RowEntry::read)
    }

    /// The rows of a trace, ascending.
    pub(crate) fn find(&self, tenant: &Tenant, id: TraceId) -> Result<Vec<u32>, Error> {
        let Some(number) = self.tenant_number(tenant) else {
            return Ok(Vec::new());
        };
        let (traces, _) = self.map[self.trace_table.clone()].as_chunks::<TRACE_ENTRY_BYTES>();
        let trace_of = |row: &[u8; TRACE_ENTRY_BYTES]| {
            self.entry(u32::from_le_bytes(*row)).map(|entry| (entry.tenant_number, entry.trace_id))
        };
        let first = traces.partition_point(|row| trace_of(row) < Some((number, id)));
        let rows = traces[first..].iter().take_while(|row| trace_of(row) == Some((number, id)));
        Ok(rows.map(|row| u32::from_le_bytes(*row)).collect())
    }

    /// The fragment of a row.
    pub(crate) fn fragment(&self, row: u32) -> Result<Fragment, Error> {
        let missing = || Error::damaged(&self.path, "a row number");
        let entry = self.entry(row).ok_or_else(missing)?;
        let tenant = self.tenant_numbers.iter().find(|(_, number)| **number == entry.tenant_number);
        let (tenant, _) = tenant.ok_or_else(|| Error::damaged(&self.path, "the tenant table"))?;
        let page = self
            .directory
            .partition_point(|page| page.first_row <= row)
            .checked_sub(1)
            .ok_or_else(missing)?;
        let raw = self.page(page)?;
        let index = row - self.directory[page].first_row;
        let pieces = PiecesView::open(&self.map[self.pieces.clone()])
            .map_err(Error::undecodable(&self.path, "the pieces"))?;
        read_row(&raw, index, entry, tenant.clone(), pieces).map_err(Error::undecodable(&self.path, "a row"))
    }

    fn page(&self, page: usize) -> Result<Bytes, Error> {
        let key = PageKey { segment: self.number, page };
        if let Some(raw) = self.cache.get(key) {
            return Ok(raw);
        }
        let entry = &self.directory[page];
        let Some(raw) = self.decompress(entry) else {
            self.cache.count_damage();
            let &PageEntry { first_row, row_count, .. } = entry;
            return Err(Error::DamagedPage { path: self.path.clone(), page, first_row, row_count });
        };
        let raw = Bytes::from(raw);
        self.cache.put(key, raw.clone());
        Ok(raw)
    }

    fn decompress(&self, entry: &PageEntry) -> Option<Vec<u8>> {
        let compressed = self.map.get(range(entry.position, entry.length)?)?;
        if crc32c::crc32c(compressed) != entry.checksum {
            return None;
        }
        let mut raw = Vec::with_capacity(usize::try_from(entry.raw_length.min(PAGE_RESERVE_MAX)).ok()?);
        let decoder = zstd::stream::read::Decoder::with_buffer(compressed).ok()?;
        decoder.take(entry.raw_length.saturating_add(1)).read_to_end(&mut raw).ok()?;
        (count(raw.len()) == entry.raw_length).then_some(raw)
    }
}

/// Checks everything but the pages, and finds the parts.
fn verify(path: &Path, file: &[u8]) -> Result<(Footer, [Range<usize>; PARTS]), Error> {
    let trailer = Trailer::read(file).ok_or_else(|| Error::damaged(path, "the trailer"))?;
    let Trailer { footer_position, footer_length, footer_checksum, version } = trailer;
    if version != SEGMENT_VERSION {
        return Err(Error::UnknownVersion { path: path.to_owned(), version });
    }
    let footer_damaged = || Error::damaged(path, "the footer");
    let footer_range = range(footer_position, u64::from(footer_length)).ok_or_else(footer_damaged)?;
    let footer_bytes = file.get(footer_range.clone()).ok_or_else(footer_damaged)?;
    let adjoins = footer_range.end + TRAILER_BYTES == file.len();
    if !adjoins || crc32c::crc32c(footer_bytes) != footer_checksum {
        return Err(footer_damaged());
    }
    let footer = Footer::read(footer_bytes).map_err(Error::undecodable(path, "the footer"))?;
    if files::parse(path) != Some(footer.coverage) {
        return Err(Error::damaged(path, "the name"));
    }
    let names = [
        "the page directory",
        "the row table",
        "the trace table",
        "the tenant table",
        "the pieces",
        "the index",
    ];
    let mut ranges = [const { 0..0 }; PARTS];
    let mut position = footer.pages_length;
    for ((found, part), what) in ranges.iter_mut().zip(footer.parts).zip(names) {
        let damaged = || Error::damaged(path, what);
        *found = range(position, part.length).ok_or_else(damaged)?;
        let bytes = file.get(found.clone()).ok_or_else(damaged)?;
        if crc32c::crc32c(bytes) != part.checksum {
            return Err(damaged());
        }
        position += part.length;
    }
    if position == footer_position { Ok((footer, ranges)) } else { Err(footer_damaged()) }
}

fn range(position: u64, length: u64) -> Option<Range<usize>> {
    let end = position.checked_add(length)?;
    Some(usize::try_from(position).ok()?..usize::try_from(end).ok()?)
}

fn read_directory(bytes: &[u8], footer: &Footer) -> Result<Vec<PageEntry>, FormatError> {
    let corrupt = FormatError::Corrupt { what: "the page directory" };
    let mut cursor = Cursor::new(bytes);
    let mut pages = Vec::with_capacity(bytes.len() / PAGE_ENTRY_BYTES);
    let (mut position, mut row) = (0, 0);
    while !cursor.is_empty() {
        let page = PageEntry::read(&mut cursor)?;
        let adjoins = page.position == position && page.first_row == row && page.row_count > 0;
        let ends = (position.checked_add(page.length), row.checked_add(page.row_count));
        let ((Some(position_end), Some(row_end)), true) = (ends, adjoins) else {
            return Err(corrupt);
        };
        (position, row) = (position_end, row_end);
        pages.push(page);
    }
    if (position, row) == (footer.pages_length, footer.row_count) { Ok(pages) } else { Err(corrupt) }
}

fn read_tenants(bytes: &[u8]) -> Result<Vec<Tenant>, FormatError> {
    let mut cursor = Cursor::new(bytes);
    let count = cursor.count_of(2)?;
    (0..count).map(|_| read_tenant(&mut cursor)).collect()
}
