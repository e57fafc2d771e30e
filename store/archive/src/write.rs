//! Writes the open segment to a file, as `format` draws it. Reads nothing back and removes what it could not finish.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use store_index::codec::count;
use store_model::{ShardId, UnixNanos};

use crate::archive::ArchiveOptions;
use crate::error::Error;
use crate::files::{self, Coverage};
use crate::format::{
    Footer, PARTS, PageEntry, Part, RowEntry, SEGMENT_VERSION, Trailer, put_row, put_tenants,
};
use crate::open::Rows;
use crate::pieces::Names;

/// What a segment's footer says besides what its rows say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    pub(crate) shard: ShardId,
    pub(crate) coverage: Coverage,
    pub(crate) at: UnixNanos,
}

/// Writes `rows` under another name, syncs, renames to `path`, syncs the directory.
///
/// # Errors
/// When a step fails; no file called `path` is left then, as far as the system lets us.
pub(crate) fn segment(path: &Path, rows: &Rows, seal: Seal, options: &ArchiveOptions) -> Result<(), Error> {
    let temporary = files::temporary(path);
    let written = write_file(&temporary, rows, seal, options)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io("rename", &temporary)))
        .and_then(|()| path.parent().map_or(Ok(()), files::sync_directory));
    if written.is_err() {
        // The error above is the one to report. What cannot be removed is removed when the archive opens.
        let _leftover = files::remove(&temporary);
        let _leftover = files::remove(path);
    }
    written
}

fn write_file(path: &Path, rows: &Rows, seal: Seal, options: &ArchiveOptions) -> Result<(), Error> {
    let (order, renumbered) = by_time(rows);
    let mut index = Vec::new();
    store_index::write(&rows.index, &renumbered, &mut index)
        .map_err(|source| Error::Index { path: path.to_owned(), source })?;
    let write = || -> io::Result<()> {
        let file = File::create(path)?;
        let mut out = Output { file: BufWriter::with_capacity(1 << 20, file), position: 0 };
        let mut pieces = Vec::new();
        let names = Names::choose(rows, &mut pieces);
        let directory = write_pages(&mut out, rows, &names, &order, options)?;
        let pages_length = out.position;
        let mut tenants = Vec::new();
        put_tenants(&mut tenants, &rows.tenants);
        let parts = [directory, row_table(rows, &order), trace_table(rows, &order), tenants, pieces, index];
        let mut described = [Part::default(); PARTS];
        for (part, bytes) in described.iter_mut().zip(&parts) {
            *part = Part { length: count(bytes.len()), checksum: crc32c::crc32c(bytes) };
            out.write(bytes)?;
        }
        let mut footer = Vec::new();
        Footer {
            shard: seal.shard,
            row_count: rows.count(),
            coverage: seal.coverage,
            sealed_at: seal.at,
            span_count: rows.rows.iter().map(|row| u64::from(row.fragment.span_count)).sum(),
            earliest: rows.earliest,
            latest: rows.latest,
            pages_length,
            parts: described,
        }
        .put(&mut footer);
        let mut end = footer.clone();
        Trailer {
            footer_position: out.position,
            footer_length: u32::try_from(footer.len()).expect("a footer has a fixed size"),
            footer_checksum: crc32c::crc32c(&footer),
            version: SEGMENT_VERSION,
        }
        .put(&mut end);
        out.write(&end)?;
        let file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

/// Row numbers of the open segment in the order of the sealed one, and the new number of each.
fn by_time(rows: &Rows) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..rows.count()).collect();
    order.sort_unstable_by_key(|&row| {
        let fragment = &rows.rows[row as usize].fragment;
        (fragment.trace_start, fragment.trace_id, row)
    });
    let mut renumbered = vec![0; order.len()];
    for (new, &old) in (0u32..).zip(&order) {
        renumbered[old as usize] = new;
    }
    (order, renumbered)
}

/// Writes the pages and returns their directory.
fn write_pages(
    out: &mut Output,
    rows: &Rows,
    names: &Names,
    order: &[u32],
    options: &ArchiveOptions,
) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(options.zstd_level)?;
    let mut directory = Vec::new();
    let mut raw = Vec::with_capacity(options.page_bytes.saturating_mul(2));
    let mut compressed = Vec::with_capacity(zstd::zstd_safe::compress_bound(raw.capacity()));
    let mut first = 0;
    for (index, &row) in order.iter().enumerate() {
        put_row(&mut raw, &rows.rows[row as usize], names, &rows.pieces);
        if raw.len() < options.page_bytes && index + 1 < order.len() {
            continue;
        }
        compressed.clear();
        // A page of one huge trace is longer than the others.
        compressed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        compressor.compress_to_buffer(&raw, &mut compressed)?;
        let start_of = |at: usize| rows.rows[order[at] as usize].fragment.trace_start;
        let number = |at: usize| u32::try_from(at).expect("rows are numbered with 32 bits");
        PageEntry {
            position: out.position,
            length: count(compressed.len()),
            raw_length: count(raw.len()),
            first_row: number(first),
            row_count: number(index + 1 - first),
            checksum: crc32c::crc32c(&compressed),
            earliest: start_of(first),
            latest: start_of(index),
        }
        .put(&mut directory);
        out.write(&compressed)?;
        raw.clear();
        first = index + 1;
    }
    Ok(directory)
}

fn row_table(rows: &Rows, order: &[u32]) -> Vec<u8> {
    let mut table = Vec::new();
    for &row in order {
        let row = &rows.rows[row as usize];
        let (trace_start, trace_id) = (row.fragment.trace_start, row.fragment.trace_id);
        RowEntry { trace_start, tenant_number: row.tenant_number, trace_id }.put(&mut table);
    }
    table
}

fn trace_table(rows: &Rows, order: &[u32]) -> Vec<u8> {
    let mut traces: Vec<_> = (0u32..)
        .zip(order)
        .map(|(new, &old)| {
            let row = &rows.rows[old as usize];
            (row.tenant_number, row.fragment.trace_id, new)
        })
        .collect();
    traces.sort_unstable();
    traces.into_iter().flat_map(|(_, _, row)| row.to_le_bytes()).collect()
}

/// A file and how much has been written to it.
struct Output {
    file: BufWriter<File>,
    position: u64,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.position += count(bytes.len());
        Ok(())
    }
}
