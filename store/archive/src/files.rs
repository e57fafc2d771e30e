//! Names of files and directories, and the few things done to them by name. Knows nothing of what is inside.
//!
//! ```text
//! <directory>/<shard>/<from:020>-<to:020>.seg       a sealed segment that covers settlement records from..to
//! <directory>/<shard>/<from:020>-<to:020>.<n>.seg   the n-th further one for the same records (a rebuilt one)
//! <directory>/<shard>/*.tmp                         one that was never finished; removed when the archive opens
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use store_model::{Offset, ShardId};

use crate::error::Error;

/// Which settlement records a segment covers: `from` and up, below `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Coverage {
    pub(crate) from: Offset,
    pub(crate) to: Offset,
}

pub(crate) fn shard_directory(directory: &Path, shard: ShardId) -> PathBuf {
    directory.join(shard.to_string())
}

/// A name that no file has yet. Names of damaged segments stay taken.
pub(crate) fn free_path(directory: &Path, coverage: Coverage) -> PathBuf {
    let Coverage { from, to } = coverage;
    let stem = format!("{from:020}-{to:020}");
    let further = (1u32..).map(|n| format!("{stem}.{n}.seg"));
    let mut names = std::iter::once(format!("{stem}.seg")).chain(further).map(|name| directory.join(name));
    names.find(|path| !path.exists()).expect("a directory holds fewer files than there are names")
}

pub(crate) fn temporary(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

/// What a file name says; `None` for a name that is no segment's.
pub(crate) fn parse(path: &Path) -> Option<Coverage> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    let (range, generation) = stem.split_once('.').unwrap_or((stem, "1"));
    let (from, to) = range.split_once('-')?;
    let offset = |digits: &str| (digits.len() == 20).then(|| digits.parse().ok()).flatten().map(Offset);
    generation.parse::<u32>().ok()?;
    Some(Coverage { from: offset(from)?, to: offset(to)? })
}

/// The shards that have a directory.
pub(crate) fn shards(directory: &Path) -> Result<Vec<ShardId>, Error> {
    let names = list(directory)?;
    let number = |path: PathBuf| path.file_name()?.to_str()?.parse().ok().map(ShardId);
    Ok(names.into_iter().filter_map(number).collect())
}

/// Everything in a directory, by name.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(directory).map_err(Error::io("read directory", directory))?;
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(Error::io("read directory", directory))?;
    paths.sort_unstable();
    Ok(paths)
}

/// Makes a directory, durably.
pub(crate) fn create_directory(directory: &Path) -> Result<(), Error> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory).map_err(Error::io("create directory", directory))?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), Error> {
    let sync = || File::open(directory)?.sync_all();
    sync().map_err(Error::io("sync directory", directory))
}

/// Removes a file; that it is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes what a crash left half written.
pub(crate) fn remove_unfinished(directory: &Path) -> Result<(), Error> {
    for path in list(directory)? {
        if path.extension().is_some_and(|extension| extension == "tmp") {
            remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_coverage_and_taken_names_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let coverage = Coverage { from: Offset(7), to: Offset(u64::MAX) };
        let mut seen = Vec::new();
        for _ in 0..3 {
            let path = free_path(directory.path(), coverage);
            assert_eq!(parse(&path), Some(coverage), "{path:?}");
            fs::write(&path, b"").unwrap();
            seen.push(path);
        }
        assert!(seen.is_sorted_by(|a, b| a != b));
        assert_eq!(parse(&temporary(&seen[0])), None);
        for bad in ["x.seg", "1-2.seg", "00000000000000000001-00000000000000000002.x.seg", ""] {
            assert_eq!(parse(Path::new(bad)), None, "{bad}");
        }
    }
}
