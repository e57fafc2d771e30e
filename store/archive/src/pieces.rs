//! The pieces of a segment: what packed rows refer to by number. In memory as they were added; in a file those that pay for
//! themselves, most used first.
//!
//! ```text
//! pieces  per piece the position of its end u32 LE; the pieces, end to end; how many there are u32 LE
//! ```
//! A piece that is used once or twice stands in the page instead, where it is compressed. This part is not: a trace needs
//! a few of its pieces at any place.

use store_index::Error as FormatError;

use crate::open::Rows;

/// Used so often, a piece is taken out of the pages.
const USES_MIN: u32 = 4;

/// The pieces of the open segment.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Pieces {
    /// Adds the piece with the next number.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        self.ends.push(self.bytes.len());
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.ends.len()).expect("a segment is sealed before it has 2^32 pieces")
    }

    /// The piece with this number.
    pub(crate) fn get(&self, number: u32) -> &[u8] {
        let at = number as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[at]]
    }

    /// About how much memory this holds.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>()
    }
}

/// What pieces are called in a file.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// By number in memory: one more than the number in the file, 0 for a piece that stands in the pages.
    names: Vec<u32>,
}

impl Names {
    /// Chooses which pieces to take out, and appends them to `out`.
    pub(crate) fn choose(rows: &Rows, out: &mut Vec<u8>) -> Self {
        let mut uses = vec![0u32; rows.pieces.count() as usize];
        for row in &rows.rows {
            row.packed.pieces.iter().for_each(|&piece| uses[piece as usize] += 1);
        }
        // Most used first: their names are short. Roughly is enough, since names grow with every seventh bit.
        let mut by_uses = [const { Vec::new() }; 33];
        for (piece, &uses) in (0u32..).zip(&uses) {
            if uses >= USES_MIN {
                by_uses[uses.leading_zeros() as usize].push(piece);
            }
        }
        let mut names = vec![0; uses.len()];
        let chosen: Vec<u32> = by_uses.into_iter().flatten().collect();
        let mut end = 0u32;
        let fits = |&piece: &u32| u32::try_from(rows.pieces.get(piece).len()).ok();
        let mut taken = Vec::with_capacity(chosen.len());
        for (piece, length) in chosen.iter().filter_map(|piece| fits(piece).map(|length| (*piece, length))) {
            // What does not fit 4 GiB stays in the pages.
            let Some(next) = end.checked_add(length) else { break };
            end = next;
            out.extend(end.to_le_bytes());
            taken.push(piece);
            names[piece as usize] = u32::try_from(taken.len()).expect("pieces are numbered with 32 bits");
        }
        taken.iter().for_each(|&piece| out.extend_from_slice(rows.pieces.get(piece)));
        out.extend(u32::try_from(taken.len()).expect("pieces are numbered with 32 bits").to_le_bytes());
        Self { names }
    }

    /// What a piece is called; 0 when it stands in the page.
    pub(crate) fn name(&self, piece: u32) -> u32 {
        self.names[piece as usize]
    }
}

/// The pieces of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PiecesView<'a> {
    ends: &'a [[u8; 4]],
    bytes: &'a [u8],
}

impl<'a> PiecesView<'a> {
    /// Reads what [`Names::choose`] appended. Looks at no piece.
    pub(crate) fn open(part: &'a [u8]) -> Result<Self, FormatError> {
        let corrupt = FormatError::Corrupt { what: "the pieces" };
        let Some((rest, &count)) = part.split_last_chunk::<4>() else { return Err(corrupt) };
        let count = u32::from_le_bytes(count) as usize;
        let (ends, _) = rest.as_chunks::<4>();
        if count > ends.len() {
            return Err(corrupt);
        }
        Ok(Self { ends: &ends[..count], bytes: &rest[count * 4..] })
    }

    /// The piece of this name, which is not 0.
    pub(crate) fn get(&self, name: usize) -> Result<&'a [u8], FormatError> {
        let end_of = |name: usize| match name.checked_sub(1) {
            None => Some(0),
            Some(at) => self.ends.get(at).map(|&end| u32::from_le_bytes(end) as usize),
        };
        let piece = name.checked_sub(1).and_then(|before| self.bytes.get(end_of(before)?..end_of(name)?));
        piece.ok_or(FormatError::Corrupt { what: "a piece" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_pieces_are_refused() {
        assert!(PiecesView::open(&[]).is_err());
        assert!(PiecesView::open(&[1, 0, 0, 0]).is_err());
        let part = [2, 0, 0, 0, 1, 0, 0, 0, b'a', b'b', 2, 0, 0, 0];
        let pieces = PiecesView::open(&part).unwrap();
        assert_eq!(pieces.get(1).unwrap(), b"ab");
        // It ends before it begins; it is none; it is beyond the last.
        assert!([2, 0, 3].iter().all(|&name| pieces.get(name).is_err()));
    }
}
