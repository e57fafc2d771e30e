//! The bytes of a segment file's fixed parts. Encodes and decodes; opens no file.
//!
//! ```text
//! pages           compressed runs of rows, end to end
//! page directory  an entry of 52 bytes a page
//! row table       an entry of 28 bytes a row: trace start u64, tenant number u32, trace id 16 bytes
//! trace table     a row number u32 a row, sorted by (tenant number, trace id, row)
//! tenant table    count varint, then names (length varint, bytes); a tenant's number is its place
//! pieces          as `pieces` draws them
//! index           as `store-index` writes it
//! footer          136 bytes
//! trailer         32 bytes, at the end of the file
//!
//! page entry  position u64, length u64, raw length u64, first row u32, row count u32, checksum of the compressed bytes
//!             u32, earliest and latest trace start u64
//! footer      shard u16, version of rows u16 = 2, row count u32, covers settlement records from u64 and below u64,
//!             sealed at u64, span count u64, earliest and latest trace start u64, length of pages u64, then length u64
//!             and checksum u32 of page directory, row table, trace table, tenant table, pieces and index
//! trailer     footer position u64, footer length u32, footer checksum u32, version u32 = 1, checksum of these 20 bytes
//!             u32, magic "SLUXTRAC"
//! row         reason code + 128 if complete u8, threshold (57 bits reversed) varint, end and decision time (signed
//!             distance from trace start) zigzag varint, span count varint, length of what follows u64; length of the
//!             OTLP `TracesData` varint, length of the stream varint, stream as `pack` draws it, then the pieces it takes:
//!             name in `pieces` varint, or 0 and length varint and bytes
//! ```
//! Fixed integers are little endian, checksums CRC-32C. Parts lie end to end from byte 0, so every byte of the file is
//! under exactly one checksum. Rows are sorted by (trace start, trace id), so row order is time order. A later version
//! keeps the trailer.

use store_index::Error as FormatError;
use store_index::codec::{Cursor, count, put_bytes, put_delta, put_varint};
use store_model::{Fragment, Offset, Reason, ShardId, Tenant, Threshold, TraceId, UnixNanos};

use crate::files::Coverage;
use crate::open::Row;
use crate::pack::{Packed, unpack};
use crate::pieces::{Names, Pieces, PiecesView};

/// The last bytes of every segment.
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"SLUXTRAC";
/// The version this program writes.
pub(crate) const SEGMENT_VERSION: u32 = 1;
/// How rows are laid out in pages. In form 1 their OTLP stood there as it is.
const ROW_FORM: u16 = 2;

pub(crate) const TRAILER_BYTES: usize = 32;
pub(crate) const FOOTER_BYTES: usize = 136;
pub(crate) const PAGE_ENTRY_BYTES: usize = 52;
pub(crate) const ROW_ENTRY_BYTES: usize = 28;
pub(crate) const TRACE_ENTRY_BYTES: usize = 4;

/// Set beside the reason's code when the trace is complete.
const COMPLETE: u8 = 0x80;

/// How many parts have their checksum in the footer.
pub(crate) const PARTS: usize = 6;

/// Where a file's footer is, and what version it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) footer_position: u64,
    pub(crate) footer_length: u32,
    pub(crate) footer_checksum: u32,
    pub(crate) version: u32,
}

/// A part's length and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Part {
    pub(crate) length: u64,
    pub(crate) checksum: u32,
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) shard: ShardId,
    pub(crate) row_count: u32,
    pub(crate) coverage: Coverage,
    pub(crate) sealed_at: UnixNanos,
    pub(crate) span_count: u64,
    pub(crate) earliest: UnixNanos,
    pub(crate) latest: UnixNanos,
    pub(crate) pages_length: u64,
    /// Page directory, row table, trace table, tenant table, pieces, index.
    pub(crate) parts: [Part; PARTS],
}

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageEntry {
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) raw_length: u64,
    pub(crate) first_row: u32,
    pub(crate) row_count: u32,
    pub(crate) checksum: u32,
    pub(crate) earliest: UnixNanos,
    pub(crate) latest: UnixNanos,
}

/// What can be told of a row without its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct RowEntry {
    pub(crate) trace_start: UnixNanos,
    pub(crate) tenant_number: u32,
    pub(crate) trace_id: TraceId,
}

impl Trailer {
    pub(crate) fn put(self, out: &mut Vec<u8>) {
        let Self { footer_position, footer_length, footer_checksum, version } = self;
        let start = out.len();
        out.extend(footer_position.to_le_bytes());
        out.extend(footer_length.to_le_bytes());
        out.extend(footer_checksum.to_le_bytes());
        out.extend(version.to_le_bytes());
        let checksum = crc32c::crc32c(&out[start..]);
        out.extend(checksum.to_le_bytes());
        out.extend(SEGMENT_MAGIC);
    }

    pub(crate) fn read(file: &[u8]) -> Option<Self> {
        let trailer = file.last_chunk::<TRAILER_BYTES>()?;
        let mut cursor = Cursor::new(trailer);
        let read = Self {
            footer_position: cursor.u64_le().ok()?,
            footer_length: cursor.u32_le().ok()?,
            footer_checksum: cursor.u32_le().ok()?,
            version: cursor.u32_le().ok()?,
        };
        let checksum = crc32c::crc32c(&trailer[..cursor.position()]);
        let right = cursor.u32_le().ok()? == checksum && cursor.array().ok()? == SEGMENT_MAGIC;
        right.then_some(read)
    }
}

impl Footer {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let Self { shard, row_count, coverage, sealed_at, span_count, earliest, latest, pages_length, parts } =
            self;
        out.extend(shard.0.to_le_bytes());
        out.extend(ROW_FORM.to_le_bytes());
        out.extend(row_count.to_le_bytes());
        let Coverage { from, to } = coverage;
        for number in [from.0, to.0, sealed_at.0, *span_count, earliest.0, latest.0, *pages_length] {
            out.extend(number.to_le_bytes());
        }
        for Part { length, checksum } in parts {
            out.extend(length.to_le_bytes());
            out.extend(checksum.to_le_bytes());
        }
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut cursor = Cursor::new(bytes);
        let shard = ShardId(u16::from_le_bytes(cursor.array()?));
        if u16::from_le_bytes(cursor.array()?) != ROW_FORM {
            return Err(FormatError::Corrupt { what: "the version of rows" });
        }
        let footer = Self {
            shard,
            row_count: cursor.u32_le()?,
            coverage: Coverage { from: Offset(cursor.u64_le()?), to: Offset(cursor.u64_le()?) },
            sealed_at: UnixNanos(cursor.u64_le()?),
            span_count: cursor.u64_le()?,
            earliest: UnixNanos(cursor.u64_le()?),
            latest: UnixNanos(cursor.u64_le()?),
            pages_length: cursor.u64_le()?,
            parts: {
                let mut parts = [Part::default(); PARTS];
                for part in &mut parts {
                    *part = Part { length: cursor.u64_le()?, checksum: cursor.u32_le()? };
                }
                parts
            },
        };
        if cursor.is_empty() { Ok(footer) } else { Err(FormatError::Corrupt { what: "the footer" }) }
    }
}

impl PageEntry {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let Self { position, length, raw_length, first_row, row_count, checksum, earliest, latest } = self;
        for number in [position, length, raw_length] {
            out.extend(number.to_le_bytes());
        }
        for number in [first_row, row_count, checksum] {
            out.extend(number.to_le_bytes());
        }
        out.extend(earliest.0.to_le_bytes());
        out.extend(latest.0.to_le_bytes());
    }

    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            position: cursor.u64_le()?,
            length: cursor.u64_le()?,
            raw_length: cursor.u64_le()?,
            first_row: cursor.u32_le()?,
            row_count: cursor.u32_le()?,
            checksum: cursor.u32_le()?,
            earliest: UnixNanos(cursor.u64_le()?),
            latest: UnixNanos(cursor.u64_le()?),
        })
    }
}

impl RowEntry {
    pub(crate) fn put(self, out: &mut Vec<u8>) {
        let Self { trace_start, tenant_number, trace_id } = self;
        out.extend(trace_start.0.to_le_bytes());
        out.extend(tenant_number.to_le_bytes());
        out.extend(trace_id.0);
    }

    pub(crate) fn read(entry: &[u8; ROW_ENTRY_BYTES]) -> Self {
        let mut cursor = Cursor::new(entry);
        let mut read = || -> Result<Self, FormatError> {
            Ok(Self {
                trace_start: UnixNanos(cursor.u64_le()?),
                tenant_number: cursor.u32_le()?,
                trace_id: TraceId(cursor.array()?),
            })
        };
        read().expect("an entry has as many bytes as are read of it")
    }
}

/// Appends a row. What the row table says of it is not repeated.
pub(crate) fn put_row(out: &mut Vec<u8>, row: &Row, names: &Names, pieces: &Pieces) {
    let Row { fragment, packed, tenant_number: _, .. } = row;
    let Fragment {
        tenant: _,
        trace_id: _,
        trace_start,
        end,
        decided_at,
        reason,
        threshold,
        complete,
        span_count,
        otlp: _,
    } = fragment;
    put_verdict(out, *reason, *complete);
    put_threshold(out, *threshold);
    put_delta(out, trace_start.0, end.0);
    put_delta(out, trace_start.0, decided_at.0);
    put_varint(out, u64::from(*span_count));
    let Packed { stream, pieces: taken, otlp_bytes } = packed;
    let length_at = out.len();
    out.extend([0; 8]);
    put_varint(out, count(*otlp_bytes));
    put_bytes(out, stream);
    for &piece in taken {
        match names.name(piece) {
            0 => {
                out.push(0);
                put_bytes(out, pieces.get(piece));
            }
            // Most names are that short.
            name @ ..0x80 => out.push(name.to_le_bytes()[0]),
            name @ ..0x4000 => out.extend([name.to_le_bytes()[0] | 0x80, (name >> 7).to_le_bytes()[0]]),
            name => put_varint(out, u64::from(name)),
        }
    }
    // 64 bits: senders decide how long a trace becomes.
    let length = count(out.len() - length_at - 8);
    out[length_at..length_at + 8].copy_from_slice(&length.to_le_bytes());
}

/// The row at `index` of a raw page.
pub(crate) fn read_row(
    page: &[u8],
    index: u32,
    entry: RowEntry,
    tenant: Tenant,
    pieces: PiecesView<'_>,
) -> Result<Fragment, FormatError> {
    let RowEntry { trace_start, tenant_number: _, trace_id } = entry;
    let mut cursor = Cursor::new(page);
    let mut skipped = 0;
    loop {
        let (reason, complete) = verdict(&mut cursor)?;
        let threshold = threshold(&mut cursor)?;
        let end = UnixNanos(cursor.delta(trace_start.0)?);
        let decided_at = UnixNanos(cursor.delta(trace_start.0)?);
        let span_count = cursor.varint_u32()?;
        let length = usize::try_from(cursor.u64_le()?).unwrap_or(usize::MAX);
        let packed = cursor.take(length)?;
        if skipped == index {
            let otlp = read_packed(packed, (trace_id, trace_start), pieces)?.into();
            let fragment = Fragment {
                tenant,
                trace_id,
                trace_start,
                end,
                decided_at,
                reason,
                threshold,
                complete,
                span_count,
                otlp,
            };
            return Ok(fragment);
        }
        skipped += 1;
    }
}

fn read_packed(
    packed: &[u8],
    keys: (TraceId, UnixNanos),
    pieces: PiecesView<'_>,
) -> Result<Vec<u8>, FormatError> {
    let mut names = Cursor::new(packed);
    let otlp_bytes = names.varint_usize()?;
    let stream = names.bytes()?;
    let mut next = || match names.varint_usize()? {
        0 => names.bytes(),
        name => pieces.get(name),
    };
    unpack(stream, &mut next, keys, otlp_bytes)
}

pub(crate) fn put_tenants(out: &mut Vec<u8>, tenants: &[Tenant]) {
    put_varint(out, count(tenants.len()));
    tenants.iter().for_each(|tenant| put_bytes(out, tenant.as_str().as_bytes()));
}

/// Why a trace is kept and whether it is complete, in one byte.
pub(crate) fn put_verdict(out: &mut Vec<u8>, reason: Reason, complete: bool) {
    out.push(reason.code() | if complete { COMPLETE } else { 0 });
}

pub(crate) fn verdict(cursor: &mut Cursor<'_>) -> Result<(Reason, bool), FormatError> {
    let byte = cursor.byte()?;
    let reason = Reason::from_code(byte & !COMPLETE).ok_or(FormatError::Corrupt { what: "a reason" })?;
    Ok((reason, byte & COMPLETE != 0))
}

/// A threshold has at most 57 bits, of which the low ones are mostly zero.
pub(crate) fn put_threshold(out: &mut Vec<u8>, threshold: Threshold) {
    put_varint(out, threshold.bits().reverse_bits() >> 7);
}

pub(crate) fn threshold(cursor: &mut Cursor<'_>) -> Result<Threshold, FormatError> {
    let reversed = cursor.varint()?;
    let bits = (reversed << 7).reverse_bits();
    let threshold = Threshold::from_bits(bits);
    let whole = reversed >> 57 == 0 && threshold.bits() == bits;
    if whole { Ok(threshold) } else { Err(FormatError::Corrupt { what: "a threshold" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_parts_have_the_sizes_that_are_drawn_and_come_back() {
        let trailer =
            Trailer { footer_position: 1, footer_length: 2, footer_checksum: 3, version: SEGMENT_VERSION };
        let mut out = vec![0; 5];
        trailer.put(&mut out);
        assert_eq!((Trailer::read(&out), out.len()), (Some(trailer), 5 + TRAILER_BYTES));

        let footer = Footer {
            shard: ShardId(3),
            row_count: 4,
            coverage: Coverage { from: Offset(5), to: Offset(6) },
            sealed_at: UnixNanos(7),
            span_count: 8,
            earliest: UnixNanos(9),
            latest: UnixNanos(10),
            pages_length: 11,
            parts: [12, 13, 14, 15, 16, 17].map(|length| Part { length, checksum: 17 }),
        };
        let mut out = Vec::new();
        footer.put(&mut out);
        assert_eq!((Footer::read(&out).unwrap(), out.len()), (footer, FOOTER_BYTES));

        let page = PageEntry {
            position: 1,
            length: 2,
            raw_length: 3,
            first_row: 4,
            row_count: 5,
            checksum: 6,
            earliest: UnixNanos(7),
            latest: UnixNanos(8),
        };
        let mut out = Vec::new();
        page.put(&mut out);
        assert_eq!((PageEntry::read(&mut Cursor::new(&out)).unwrap(), out.len()), (page, PAGE_ENTRY_BYTES));

        let row = RowEntry { trace_start: UnixNanos(1), tenant_number: 2, trace_id: TraceId([3; 16]) };
        let mut out = Vec::new();
        row.put(&mut out);
        assert_eq!(RowEntry::read(out.as_slice().try_into().unwrap()), row);
    }

    #[test]
    fn thresholds_are_short_and_exact() {
        for (bits, bytes) in [(0, 1), (1 << 56, 1), (1, 9), (0x00fd_70a0_0000_0000, 3)] {
            let mut out = Vec::new();
            put_threshold(&mut out, Threshold::from_bits(bits));
            assert_eq!(out.len(), bytes, "{bits:x}");
            assert_eq!(threshold(&mut Cursor::new(&out)).unwrap().bits(), bits);
        }
        let mut beyond = Vec::new();
        put_varint(&mut beyond, u64::MAX);
        assert!(threshold(&mut Cursor::new(&beyond)).is_err());
    }
}
