//! An index's bytes, as [`crate::reader`] reads them. Never reads them itself.
//!
//! ```text
//! postings     lists and bitmaps of terms, end to end in the order of the dictionary
//! dictionary   blocks of up to 32 terms in byte order, end to end
//! block table  per block: where it begins in the dictionary u32 LE, where its postings begin u32 LE
//! tail         postings length u64 LE, dictionary length u64 LE, block count u32 LE, term count u32 LE
//!
//! term         bytes shared with the term before (0 for a block's first) varint, length of the rest varint, the rest,
//!              form varint: 1, 2, 3  so many rows follow, as a list
//!                           0        a roaring bitmap in its portable serialisation; its length in postings, varint
//!                           4        a list; its length in postings, varint
//! list         varints: the first row, then distances from the row before
//! ```
//! Few rows stand in the dictionary; of the other two forms a term takes the shorter one: below about one row in eight
//! that is the list. The reader finds the tail at the end of the bytes it is given.

use roaring::RoaringBitmap;

use crate::builder::{INLINE_ROWS_MAX, IndexBuilder};
use crate::codec::{count, put_varint};
use crate::error::Error;

/// Larger blocks share more and are slower to search: a lookup walks half a block on average.
pub(crate) const BLOCK_TERMS: usize = 32;

/// Bytes of the tail.
pub(crate) const TAIL_BYTES: usize = 24;

/// The forms of postings outside the dictionary.
pub(crate) const FORM_BITMAP: usize = 0;
pub(crate) const FORM_LIST: usize = INLINE_ROWS_MAX + 1;

/// Appends the bytes of the index, row `r` becoming `renumbered[r]`.
///
/// # Errors
/// [`Error::TooLarge`].
///
/// # Panics
/// When `renumbered` is shorter than the rows that were added.
pub fn write(builder: &IndexBuilder, renumbered: &[u32], out: &mut Vec<u8>) -> Result<(), Error> {
    let postings_start = out.len();
    let mut dictionary = Vec::new();
    let mut blocks: Vec<u32> = Vec::new();
    let mut previous: &[u8] = &[];
    let mut term_count = 0u32;
    let all_postings = builder.postings(renumbered);
    for (index, (term, rows)) in all_postings.sorted().enumerate() {
        if index % BLOCK_TERMS == 0 {
            for position in [dictionary.len(), out.len() - postings_start] {
                blocks.push(u32::try_from(position).ok().ok_or(Error::TooLarge { bytes: position })?);
            }
            previous = &[];
        }
        let shared = term.iter().zip(previous).take_while(|(a, b)| a == b).count();
        put_varint(&mut dictionary, count(shared));
        put_varint(&mut dictionary, count(term.len() - shared));
        dictionary.extend_from_slice(&term[shared..]);
        put_rows(rows, &mut dictionary, out);
        previous = term;
        term_count += 1;
    }
    let postings_bytes = count(out.len() - postings_start);
    let block_count = u32::try_from(blocks.len() / 2).expect("there are fewer blocks than terms");
    out.extend_from_slice(&dictionary);
    out.extend(blocks.iter().flat_map(|position| position.to_le_bytes()));
    out.extend(postings_bytes.to_le_bytes());
    out.extend(count(dictionary.len()).to_le_bytes());
    out.extend(block_count.to_le_bytes());
    out.extend(term_count.to_le_bytes());
    Ok(())
}

fn put_rows(rows: &[u32], dictionary: &mut Vec<u8>, postings: &mut Vec<u8>) {
    if rows.len() <= INLINE_ROWS_MAX {
        put_varint(dictionary, count(rows.len()));
        put_list(rows, dictionary);
        return;
    }
    let start = postings.len();
    if rows.len() > bitmap_bytes_max(rows) {
        dense_bitmap(rows).serialize_into(&mut *postings).expect("writing to memory does not fail");
        put_varint(dictionary, count(FORM_BITMAP));
        put_varint(dictionary, count(postings.len() - start));
        return;
    }
    put_list(rows, postings);
    let mut form = FORM_LIST;
    if postings.len() - start > bitmap_bytes_min(rows) {
        let mut bitmap =
            RoaringBitmap::from_sorted_iter(rows.iter().copied()).expect("rows are sorted and distinct");
        bitmap.optimize();
        if bitmap.serialized_size() < postings.len() - start {
            form = FORM_BITMAP;
            postings.truncate(start);
            bitmap.serialize_into(&mut *postings).expect("writing to memory does not fail");
        }
    }
    put_varint(dictionary, count(form));
    put_varint(dictionary, count(postings.len() - start));
}

/// A bitmap of these rows has more bytes than this, so that most need not be made to see that the list is shorter.
fn bitmap_bytes_min(rows: &[u32]) -> usize {
    // Containers are chosen for 65,536 rows each; one of them takes two bytes a row, four a run, or 8 KiB.
    const ROWS_OF_CONTAINER: u32 = 1 << 16;
    if rows.last().is_none_or(|&last| last >= ROWS_OF_CONTAINER) {
        return 0;
    }
    let runs = 1 + rows.array_windows().filter(|[before, row]| *row != before + 1).count();
    (2 * rows.len()).min(4 * runs).min(8192)
}

/// No bitmap of these rows has more bytes, and a list has one a row at least, so that some lists need not be made.
fn bitmap_bytes_max(rows: &[u32]) -> usize {
    let containers = rows.last().map_or(0, |&last| (last >> 16) as usize + 1);
    8 + containers * (8192 + 16)
}

/// Quicker than row by row when there are many.
fn dense_bitmap(rows: &[u32]) -> RoaringBitmap {
    let mut bits = vec![0u8; rows.last().map_or(0, |&last| (last / 8) as usize + 1)];
    rows.iter().for_each(|&row| bits[(row / 8) as usize] |= 1 << (row % 8));
    let mut bitmap = RoaringBitmap::from_lsb0_bytes(0, &bits);
    bitmap.optimize();
    bitmap
}

fn put_list(rows: &[u32], out: &mut Vec<u8>) {
    let mut previous = 0;
    for &row in rows {
        put_varint(out, u64::from(row - previous));
        previous = row;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dense_bitmaps_have_the_same_bytes(share in 2..200u32, start in 0..140_000u32, length in 1..90_000u32) {
            let is_in = |row: &u32| row.wrapping_mul(0x9E37_79B9) % 200 < share;
            let rows: Vec<u32> = (start..start + length).filter(is_in).collect();
            prop_assume!(!rows.is_empty());
            let mut bitmap = RoaringBitmap::from_sorted_iter(rows.iter().copied()).unwrap();
            bitmap.optimize();
            let (mut expected, mut found) = (Vec::new(), Vec::new());
            bitmap.serialize_into(&mut expected).unwrap();
            dense_bitmap(&rows).serialize_into(&mut found).unwrap();
            prop_assert!(found == expected);
            prop_assert!(found.len() <= bitmap_bytes_max(&rows));
        }
    }
}
