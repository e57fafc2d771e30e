//! Reads the bytes that [`crate::write()`] wrote, in place. Never trusts them: damage is an error, or at worst a row that
//! does not exist, which the segment checks. Allocates one term and one bitmap at a time.

use roaring::RoaringBitmap;

use crate::builder::INLINE_ROWS_MAX;
use crate::codec::Cursor;
use crate::error::Error;
use crate::write::{BLOCK_TERMS, FORM_BITMAP, FORM_LIST, TAIL_BYTES};

/// Where a block begins in the dictionary, and where its postings begin.
const BLOCK_ENTRY_BYTES: usize = 8;

/// A view of an index's bytes. Cheap to make: opening reads the tail only.
#[derive(Clone, Copy, Debug)]
pub struct IndexReader<'a> {
    postings: &'a [u8],
    dictionary: &'a [u8],
    blocks: &'a [[u8; BLOCK_ENTRY_BYTES]],
    term_count: u32,
}

/// Walks the dictionary. Stands on a term while `postings` is some, else behind the last.
struct Terms<'a> {
    dictionary: Cursor<'a>,
    postings: Cursor<'a>,
    term: Vec<u8>,
    rows: Option<Rows<'a>>,
}

/// Where a term's rows are.
#[derive(Clone, Copy)]
enum Rows<'a> {
    List(&'a [u8]),
    Bitmap(&'a [u8]),
}

impl<'a> IndexReader<'a> {
    /// Finds the parts of an index that fills `bytes`.
    ///
    /// # Errors
    /// [`Error`] when the parts do not fill `bytes` exactly.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Error> {
        let corrupt = Error::Corrupt { what: "the index" };
        let (parts, tail) = bytes.split_last_chunk::<TAIL_BYTES>().ok_or(Error::Truncated { position: 0 })?;
        let mut tail = Cursor::new(tail);
        let (postings_bytes, dictionary_bytes) = (tail.u64_le()?, tail.u64_le()?);
        let (block_count, term_count) = (tail.u32_le()?, tail.u32_le()?);
        let mut cursor = Cursor::new(parts);
        let mut part = |length: u64| usize::try_from(length).ok().and_then(|length| cursor.take(length).ok());
        let (Some(postings), Some(dictionary), Some(table)) =
            (part(postings_bytes), part(dictionary_bytes), part(u64::from(block_count) * 8))
        else {
            return Err(corrupt);
        };
        let (blocks, _) = table.as_chunks();
        let blocks_expected = (term_count as usize).div_ceil(BLOCK_TERMS);
        if !cursor.is_empty() || blocks.len() != blocks_expected {
            return Err(corrupt);
        }
        Ok(Self { postings, dictionary, blocks, term_count })
    }

    /// How many terms there are.
    #[must_use]
    pub fn term_count(&self) -> u32 {
        self.term_count
    }

    /// The rows that `term` is true of.
    ///
    /// # Errors
    /// [`Error`] when what lies on the way is damaged.
    pub fn rows(&self, term: &[u8]) -> Result<RoaringBitmap, Error> {
        let terms = self.terms_from(term)?;
        match terms.rows {
            Some(rows) if terms.term == term => rows.read(),
            _ => Ok(RoaringBitmap::new()),
        }
    }

    /// Visits what follows `prefix` in every term that begins with it, in byte order, until `visit` says false.
    ///
    /// # Errors
    /// [`Error`] when what lies on the way is damaged.
    pub fn terms_with_prefix(
        &self,
        prefix: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut terms = self.terms_from(prefix)?;
        while terms.rows.is_some() {
            match terms.term.strip_prefix(prefix) {
                Some(suffix) if visit(suffix) => terms.advance()?,
                _ => break,
            }
        }
        Ok(())
    }

    /// The first term at or after `from`: with it a caller skips what it need not see, such as the values of a key.
    ///
    /// # Errors
    /// [`Error`] when what lies on the way is damaged.
    pub fn term_at_or_after(&self, from: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let terms = self.terms_from(from)?;
        Ok(terms.rows.map(|_| terms.term))
    }

    /// Stands on the first term that is not below `from`.
    fn terms_from(&self, from: &[u8]) -> Result<Terms<'a>, Error> {
        // The last block whose first term is not above `from` is where `from` lies if it exists.
        let (mut low, mut high) = (0, self.blocks.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.first_term(middle)? <= from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (dictionary, postings) = self.block(low.saturating_sub(1))?;
        let mut terms = Terms { dictionary, postings, term: Vec::new(), rows: None };
        terms.advance()?;
        while terms.rows.is_some() && &*terms.term < from {
            terms.advance()?;
        }
        Ok(terms)
    }

    /// What lies from the beginning of a block on: terms, and their postings.
    fn block(&self, block: usize) -> Result<(Cursor<'a>, Cursor<'a>), Error> {
        let Some(entry) = self.blocks.get(block) else {
            return Ok((Cursor::new(&[]), Cursor::new(&[])));
        };
        let mut entry = Cursor::new(entry);
        let corrupt = Error::Corrupt { what: "the block table" };
        let dictionary = self.dictionary.get(entry.u32_le()? as usize..);
        let postings = self.postings.get(entry.u32_le()? as usize..);
        let (dictionary, postings) = dictionary.zip(postings).ok_or(corrupt)?;
        Ok((Cursor::new(dictionary), Cursor::new(postings)))
    }

    fn first_term(&self, block: usize) -> Result<&'a [u8], Error> {
        let (mut cursor, _) = self.block(block)?;
        let _shared = cursor.varint()?;
        cursor.bytes()
    }
}

impl Terms<'_> {
    fn advance(&mut self) -> Result<(), Error> {
        self.rows = None;
        if self.dictionary.is_empty() {
            return Ok(());
        }
        let shared = self.dictionary.varint_usize()?;
        if shared > self.term.len() {
            return Err(Error::Corrupt { what: "the dictionary" });
        }
        self.term.truncate(shared);
        self.term.extend_from_slice(self.dictionary.bytes()?);
        self.rows = Some(match self.dictionary.varint_usize()? {
            FORM_BITMAP => Rows::Bitmap(self.postings.take(self.dictionary.varint_usize()?)?),
            FORM_LIST => Rows::List(self.postings.take(self.dictionary.varint_usize()?)?),
            count @ 1..=INLINE_ROWS_MAX => Rows::List(self.dictionary.varints(count)?),
            _ => return Err(Error::Corrupt { what: "the dictionary" }),
        });
        Ok(())
    }
}

impl Rows<'_> {
    fn read(self) -> Result<RoaringBitmap, Error> {
        let list = match self {
            Self::Bitmap(bytes) => return RoaringBitmap::deserialize_from(bytes).map_err(Error::Postings),
            Self::List(list) => list,
        };
        let mut rows = RoaringBitmap::new();
        let mut cursor = Cursor::new(list);
        let mut row = 0u32;
        while !cursor.is_empty() {
            let distance = cursor.varint_u32()?;
            row = row.checked_add(distance).ok_or(Error::Corrupt { what: "a list of rows" })?;
            // A list ascends; one that does not was never written, and is no more wrong as a set.
            rows.insert(row);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::IndexBuilder;
    use crate::write::write;
    use proptest::prelude::*;

    /// Terms that share prefixes, in numbers that make several blocks and postings of every kind.
    fn sample() -> (IndexBuilder, Vec<u32>) {
        let mut builder = IndexBuilder::new();
        for row in 0..500u32 {
            builder.add(b"all", row);
            builder.add(format!("by7/{}", row % 7).as_bytes(), row);
            builder.add(format!("unique/{row:04}").as_bytes(), row);
            if row % 200 == 0 {
                builder.add(b"inline", row);
            }
        }
        let renumbered = (0..500).rev().collect();
        (builder, renumbered)
    }

    fn bytes_of(builder: &IndexBuilder, renumbered: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        write(builder, renumbered, &mut out).unwrap();
        out
    }

    fn suffixes(reader: IndexReader<'_>, prefix: &[u8]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut visit = |suffix: &[u8]| {
            seen.push(String::from_utf8(suffix.to_vec()).unwrap());
            true
        };
        reader.terms_with_prefix(prefix, &mut visit).unwrap();
        seen
    }

    #[test]
    fn rows_are_renumbered_and_found_in_every_form() {
        let (builder, renumbered) = sample();
        let bytes = bytes_of(&builder, &renumbered);
        let reader = IndexReader::open(&bytes).unwrap();
        assert_eq!(reader.term_count() as usize, builder.term_count());
        assert_eq!(reader.rows(b"all").unwrap().len(), 500);
        assert_eq!(reader.rows(b"inline").unwrap().into_iter().collect::<Vec<_>>(), [99, 299, 499]);
        assert_eq!(reader.rows(b"unique/0123").unwrap().into_iter().collect::<Vec<_>>(), [376]);
        let by7: Vec<u32> = (0..500).filter(|row| (499 - row) % 7 == 3).collect();
        assert_eq!(reader.rows(b"by7/3").unwrap().into_iter().collect::<Vec<_>>(), by7);
        for absent in ["", "a", "alm", "unique/", "unique/0123x", "zzz"] {
            assert!(reader.rows(absent.as_bytes()).unwrap().is_empty(), "{absent}");
        }
    }

    #[test]
    fn prefixes_are_ranges_and_can_be_skipped_over() {
        let (builder, renumbered) = sample();
        let bytes = bytes_of(&builder, &renumbered);
        let reader = IndexReader::open(&bytes).unwrap();
        assert_eq!(suffixes(reader, b"by7/"), ["0", "1", "2", "3", "4", "5", "6"]);
        assert_eq!(suffixes(reader, b"unique/").len(), 500);
        assert_eq!(suffixes(reader, b"nothing"), [""; 0]);
        assert_eq!(suffixes(reader, b"").len(), builder.term_count());
        assert_eq!(reader.term_at_or_after(b"by7/9").unwrap().as_deref(), Some(&b"inline"[..]));
        assert_eq!(reader.term_at_or_after(b"all").unwrap().as_deref(), Some(&b"all"[..]));
        assert_eq!(reader.term_at_or_after(b"unique0").unwrap(), None);
    }

    #[test]
    fn an_index_of_nothing_answers_with_nothing() {
        let bytes = bytes_of(&IndexBuilder::new(), &[]);
        let reader = IndexReader::open(&bytes).unwrap();
        assert!(reader.rows(b"a").unwrap().is_empty());
        assert_eq!(suffixes(reader, b""), [""; 0]);
        assert!(IndexReader::open(&[]).is_err());
    }

    proptest! {
        #[test]
        fn written_and_open_indexes_agree(
            rows in proptest::collection::vec(proptest::collection::vec("[ab]{0,8}", 0..12), 0..80)
        ) {
            let mut builder = IndexBuilder::new();
            for (row, terms) in (0u32..).zip(&rows) {
                for term in terms {
                    builder.add(term.as_bytes(), row);
                }
            }
            let identity: Vec<u32> = (0u32..).take(rows.len()).collect();
            let bytes = bytes_of(&builder, &identity);
            let reader = IndexReader::open(&bytes).unwrap();
            for term in rows.iter().flatten() {
                let found: Vec<u32> = reader.rows(term.as_bytes()).unwrap().into_iter().collect();
                let number = builder.number(term.as_bytes()).unwrap();
                prop_assert_eq!(found, builder.rows(&[number], u32::MAX));
                let prefix = &term.as_bytes()[..term.len() / 2];
                let mut open = Vec::new();
                builder.terms_with_prefix(prefix, &mut |suffix| {
                    open.push(String::from_utf8(suffix.to_vec()).unwrap());
                    true
                });
                prop_assert_eq!(suffixes(reader, prefix), open);
            }
        }

        #[test]
        fn damaged_bytes_never_panic(flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
            let (builder, renumbered) = sample();
            let mut bytes = bytes_of(&builder, &renumbered);
            for (at, byte) in flips {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            if let Ok(reader) = IndexReader::open(&bytes) {
                for term in ["all", "by7/3", "unique/0499", "inline", "zzz"] {
                    let _rows = reader.rows(term.as_bytes());
                }
                let _visited = reader.terms_with_prefix(b"", &mut |_| true);
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(reader) = IndexReader::open(&bytes) {
                let _rows = reader.rows(b"all");
                let _visited = reader.terms_with_prefix(b"", &mut |_| true);
            }
        }
    }
}
