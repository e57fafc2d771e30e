//! Writes past the page cache. A journal is written once and seldom read again: going through the cache would copy every
//! byte into pages that then only push others out, which measured as half of the appliance's processor time. Falls back to
//! the cache wherever the file system or an alignment does not allow it; reads always go through the cache.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;

use crate::disk;

/// Positions, lengths and addresses that nearly every disk accepts; commits are padded to it and lie so in memory.
const ALIGNMENT: usize = 512;

/// Where memory for direct writes begins: a page, which satisfies every device.
const MEMORY_ALIGNMENT: usize = 4096;

/// Written at a time: large enough for the disk's full rate, small enough to stay in the processor's cache while copied.
const CHUNK_BYTES: usize = 1 << 20;

/// A second handle on a file, for direct writes.
#[derive(Debug)]
pub(crate) struct DirectFile {
    file: File,
    /// Room for one chunk from an aligned place on; made when it is first needed.
    staging: Mutex<Vec<u8>>,
}

impl AsFd for DirectFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl DirectFile {
    /// `None` where the file system has no direct writes, as `tmpfs` of older kernels.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
        Some(Self { file, staging: Mutex::default() })
    }

    /// Whether all of it can be written directly.
    pub(crate) fn takes(slices: &[IoSlice<'_>], position: u64) -> bool {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        length.is_multiple_of(ALIGNMENT) && position.is_multiple_of(ALIGNMENT as u64)
    }

    /// Writes all slices one behind the other.
    pub(crate) fn write_at(&self, slices: &[IoSlice<'_>], mut position: u64) -> io::Result<()> {
        let lies_right = |slice: &IoSlice<'_>| {
            slice.as_ptr().addr().is_multiple_of(ALIGNMENT) && slice.len().is_multiple_of(ALIGNMENT)
        };
        if slices.iter().all(lies_right) {
            return disk::write_all(slices, position, |slices, position| {
                Ok(rustix::io::pwritev(&self.file, slices, position)?)
            });
        }
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.resize(CHUNK_BYTES + MEMORY_ALIGNMENT, 0);
        let start = staging.as_ptr().align_offset(MEMORY_ALIGNMENT).min(MEMORY_ALIGNMENT);
        let chunk = &mut staging[start..start + CHUNK_BYTES];
        let mut filled = 0;
        for slice in slices {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                let count = rest.len().min(CHUNK_BYTES - filled);
                chunk[filled..filled + count].copy_from_slice(&rest[..count]);
                (filled, rest) = (filled + count, &rest[count..]);
                if filled == CHUNK_BYTES {
                    self.file.write_all_at(chunk, position)?;
                    (position, filled) = (position + CHUNK_BYTES as u64, 0);
                }
            }
        }
        self.file.write_all_at(&chunk[..filled], position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_directly_is_read_through_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let reader = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let Some(direct) = DirectFile::open(&path) else {
            eprintln!("SKIP: the file system under {} has no direct writes", directory.path().display());
            return;
        };
        let parts: Vec<Vec<u8>> =
            [700, 3 << 20, 324, 1 << 20].iter().zip(1..).map(|(&length, n)| vec![n; length]).collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        assert!(DirectFile::takes(&slices, 1024) && !DirectFile::takes(&slices, 100));
        direct.write_at(&slices, 1024).unwrap();
        let mut read = vec![0; parts.concat().len()];
        reader.read_exact_at(&mut read, 1024).unwrap();
        assert!(read == parts.concat());
    }
}
