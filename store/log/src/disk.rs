//! The disk behind a small trait, so that a faulty one can be put under the log ([`sim`]).
//! Moves bytes and names; never knows what they mean.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::direct::DirectFile;
use rustix::fs::{Advice, FallocateFlags};

#[cfg(any(test, feature = "sim"))]
pub mod sim;

/// Files and names.
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// The names of the files in a directory, in no order; none when the directory is missing.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and those above it; fine when it is there already.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir_all(&self, directory: &Path) -> io::Result<()>;
    /// Makes a file of `preallocate_bytes` zeros whose blocks are reserved. Fails when the name is taken. After an
    /// error the name may or may not exist.
    ///
    /// # Errors
    /// What the system says.
    fn create_new(&self, path: &Path, preallocate_bytes: u64) -> io::Result<Self::File>;
    /// Opens a file for reading and writing, or for reading only where the system grants no more.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Removes a name; open files live on.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name in one step, replacing what had it.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names of a directory durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;
    /// How much more the file system under a directory takes from us.
    ///
    /// # Errors
    /// What the system says.
    fn free_bytes(&self, directory: &Path) -> io::Result<u64>;
}

/// One open file; every operation names its position.
#[expect(
    clippy::len_without_is_empty,
    reason = "a file's length can fail, and nobody asks whether it is empty"
)]
pub trait DiskFile: std::fmt::Debug + Send + Sync + 'static {
    /// Reads up to `buffer.len()` bytes; fewer at the end of the file and whenever the system likes.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes all slices one after another, or fails with any part of them written.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Makes written bytes and the length durable. After an error nothing is known about bytes not yet durable, and
    /// trying again proves nothing: kernels mark the pages clean.
    ///
    /// # Errors
    /// What the system says.
    fn sync_data(&self) -> io::Result<()>;
    /// The file's length.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file or extends it with zeros.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Forgets cached bytes that need no writing, so that the next read asks the disk itself. A hint.
    ///
    /// # Errors
    /// What the system says.
    fn drop_cache(&self) -> io::Result<()>;
}

/// Fills `buffer` as far as the file goes and says how far that was.
pub(crate) fn read_full(file: &impl DiskFile, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], position + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Removes a name; fine when it is gone already.
pub(crate) fn remove_name<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// A file of [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    file: File,
    /// For writes past the page cache; only files that are made to be filled have it.
    direct: Option<DirectFile>,
}

impl AsFd for RealFile {
    /// What large aligned writes should go through.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.direct.as_ref().map_or_else(|| self.file.as_fd(), DirectFile::as_fd)
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        std::fs::create_dir_all(directory)
    }

    fn create_new(&self, path: &Path, preallocate_bytes: u64) -> io::Result<RealFile> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        if preallocate_bytes > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, preallocate_bytes) {
                Ok(()) => {}
                // A file system that cannot reserve still shows zeros; it may run out of space later instead.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(preallocate_bytes)?,
                Err(error) => return Err(error.into()),
            }
        }
        let direct = if preallocate_bytes > 0 { DirectFile::open(path) } else { None };
        Ok(RealFile { file, direct })
    }

    fn open(&self, path: &Path) -> io::Result<RealFile> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = match opened {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                File::open(path)?
            }
            other => other?,
        };
        Ok(RealFile { file, direct: None })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        let status = rustix::fs::statvfs(directory)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buffer, position)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| DirectFile::takes(slices, position)) {
            match direct.write_at(slices, position) {
                // The disk's sectors are larger than ours: what was written of it is written again, the same.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                other => return other,
            }
        }
        write_all(slices, position, |slices, position| Ok(rustix::io::pwritev(&self.file, slices, position)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }
}

/// Linux takes at most this many slices in one call (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// Calls `write` until every byte is written, however few it takes at a time.
pub(crate) fn write_all(
    slices: &[IoSlice<'_>],
    mut position: u64,
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    for chunk in slices.chunks(SLICES_MAX) {
        let mut copy = chunk.to_vec();
        let mut rest = copy.as_mut_slice();
        // Empty slices would make a complete write look like one of zero bytes.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match write(rest, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    position += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_writes_and_long_lists_of_slices_are_written_whole() {
        let parts: Vec<Vec<u8>> = (0..3_000u32).map(|n| vec![n.to_le_bytes()[0]; (n % 5) as usize]).collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut written = Vec::new();
        let mut calls = 0usize;
        write_all(&slices, 7, |slices, position| {
            assert_eq!(position, 7 + written.len() as u64);
            assert!(slices.len() <= SLICES_MAX);
            calls += 1;
            if calls.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let flat: Vec<u8> =
                slices.iter().flat_map(|slice| slice.to_vec()).take(1 + calls % 700).collect();
            written.extend_from_slice(&flat);
            Ok(flat.len())
        })
        .unwrap();
        assert_eq!(written, parts.concat());
    }

    #[test]
    fn a_write_that_never_advances_is_an_error() {
        let error = write_all(&[IoSlice::new(b"x")], 0, |_, _| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn a_real_file_is_preallocated_with_zeros_and_its_name_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let file = RealDisk.create_new(&path, 8192).unwrap();
        let mut bytes = vec![1; 9000];
        assert_eq!(read_full(&file, &mut bytes, 0).unwrap(), 8192);
        assert!(bytes[..8192].iter().all(|&byte| byte == 0));
        assert!(RealDisk.create_new(&path, 0).is_err());
        assert_eq!(RealDisk.list(&directory.path().join("missing")).unwrap(), Vec::<String>::new());
        assert!(RealDisk.free_bytes(directory.path()).unwrap() > 0);
    }
}
