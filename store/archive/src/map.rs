//! A segment file in memory. Maps only; what the bytes mean is `sealed`'s business.
#![expect(unsafe_code, reason = "memory maps are unsafe: the file must not change under them")]

use std::fs::File;
use std::io;
use std::ops::Deref;

/// Bytes of a sealed segment.
///
/// Invariant: the file behind the map is never written and never truncated while the map lives. Segments are written
/// under another name, renamed once complete, and from then on only unlinked, which leaves maps as they are. The data
/// directory belongs to one process (its lock is the appliance's), so nobody else changes them either.
#[derive(Debug)]
pub(crate) struct Map(memmap2::Mmap);

impl Map {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: by the invariant on `Map` nobody changes the file's bytes or its length from here on.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Self(map))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
