//! A disk in memory that fails the way disks fail, by a seed. For tests only; knows nothing of the log's formats.
//!
//! Every file has the content that programs see and the content that would survive. A sync copies one to the other,
//! sector by sector of 512 bytes. A crash keeps any subset of the sectors and any subset of the names that were not
//! synced. A sync that fails keeps some sectors and, as kernels do, calls the others clean: a later sync does not write
//! them, and reads show them until [`DiskFile::drop_cache`] or a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile};

const SECTOR_BYTES: usize = 512;

/// A small generator of numbers that look random and come back the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; zero when there is none.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit.max(1)
    }

    /// True once in `count` times on average; never for zero.
    pub fn once_in(&mut self, count: u64) -> bool {
        count > 0 && self.below(count) == 0
    }
}

/// How often what fails. Zero means never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// One sync of a file in so many fails.
    pub sync_error_once_in: u64,
    /// One sync of a directory in so many fails; which of its names are durable is then open.
    pub name_error_once_in: u64,
    /// One write in so many stops somewhere and fails.
    pub write_error_once_in: u64,
    /// All files together may be this long; no limit when zero.
    pub capacity_bytes: u64,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// A file of [`SimDisk`]. Fails after a crash, as a file of a process that died.
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    number: usize,
    boot: u64,
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that the next sync writes.
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(PathBuf, usize),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl NameChange {
    fn directory(&self) -> Option<&Path> {
        let (Self::Create(path, _) | Self::Remove(path) | Self::Rename(path, _)) = self;
        path.parent()
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, number) => {
                names.insert(path.clone(), *number);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to) => {
                if let Some(number) = names.remove(from) {
                    names.insert(to.clone(), number);
                }
            }
        }
    }
}

#[derive(Debug)]
struct State {
    random: Random,
    faults: Faults,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    changes: Vec<NameChange>,
    operations: u64,
    crash_at: Option<u64>,
    crashed: bool,
    boot: u64,
}

fn io_error(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

impl SimDisk {
    /// An empty disk that never fails until told to.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            faults: Faults::default(),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            operations: 0,
            crash_at: None,
            crashed: false,
            boot: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// From now on, fail this often.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Crash at the `count`-th operation from here that changes something. It and all later ones fail.
    pub fn crash_after(&self, count: u64) {
        let mut state = self.lock();
        state.crash_at = Some(state.operations + count);
    }

    /// Crash now.
    pub fn crash(&self) {
        self.lock().crashed = true;
    }

    /// Whether it has crashed.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// How many operations have changed something, or tried to.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The process dies and another one starts; the machine stays up, so nothing is lost. Files opened before are dead.
    pub fn kill(&self) {
        let mut state = self.lock();
        state.crashed = false;
        state.crash_at = None;
        state.boot += 1;
    }

    /// Power comes back: what was not synced is lost in part. Files opened before stay dead.
    pub fn restart(&self) {
        let state = &mut *self.lock();
        let State { random, inodes, names, durable_names, changes, .. } = state;
        // All, nothing, or any part of it.
        let luck = random.below(3);
        let survives = |random: &mut Random| match luck {
            0 => true,
            1 => false,
            _ => random.once_in(2),
        };
        for change in changes.drain(..) {
            if survives(random) {
                change.apply(durable_names);
            }
        }
        names.clone_from(durable_names);
        for inode in inodes {
            inode.write_back(|| survives(random));
            inode.seen.clone_from(&inode.durable);
            inode.dirty.clear();
        }
        state.crashed = false;
        state.crash_at = None;
        state.boot += 1;
    }

    /// Flips one bit of a file, for readers and for good.
    pub fn flip_bit(&self, path: &Path, bit: u64) {
        let mut state = self.lock();
        let Some(&number) = state.names.get(path) else { return };
        let inode = &mut state.inodes[number];
        for content in [&mut inode.seen, &mut inode.durable] {
            if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| content.get_mut(at)) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// The whole content of a file as programs see it.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        Some(state.inodes[*state.names.get(path)?].seen.clone())
    }
}

impl Inode {
    /// Copies those dirty sectors for which `survives` says so.
    fn write_back(&mut self, mut survives: impl FnMut() -> bool) {
        let Self { seen, durable, dirty } = self;
        if durable.len() != seen.len() && survives() {
            durable.resize(seen.len(), 0);
        }
        for &sector in dirty.iter() {
            let start = sector * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(seen.len()).min(durable.len());
            if start < end && survives() {
                durable[start..end].copy_from_slice(&seen[start..end]);
            }
        }
    }

    fn mark(&mut self, start: usize, end: usize) {
        self.dirty.extend(start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
    }

    fn resize(&mut self, length: usize) {
        let before = self.seen.len();
        self.seen.resize(length, 0);
        self.mark(before.min(length), before.max(length));
    }
}

impl State {
    fn check(&self, boot: u64) -> io::Result<()> {
        if self.crashed || self.boot != boot { Err(io_error("the machine is down")) } else { Ok(()) }
    }

    /// Counts an operation that changes something. `Ok(true)`: it happens, and the machine goes down during it.
    fn operate(&mut self, boot: u64) -> io::Result<bool> {
        self.check(boot)?;
        self.operations += 1;
        self.crashed = self.crash_at.is_some_and(|at| self.operations >= at);
        Ok(self.crashed)
    }

    fn change_name(&mut self, change: NameChange) -> io::Result<()> {
        let crashing = self.operate(self.boot)?;
        change.apply(&mut self.names);
        self.changes.push(change);
        if crashing { Err(io_error("crash while changing a name")) } else { Ok(()) }
    }

    fn used_bytes(&self) -> usize {
        self.names.values().map(|&number| self.inodes[number].seen.len()).sum()
    }

    /// How many of `bytes` more the disk takes.
    fn room(&self, bytes: usize) -> usize {
        match usize::try_from(self.faults.capacity_bytes) {
            Ok(0) | Err(_) => bytes,
            Ok(capacity) => bytes.min(capacity.saturating_sub(self.used_bytes())),
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.check(state.boot)?;
        let inside = state.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir_all(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create_new(&self, path: &Path, preallocate_bytes: u64) -> io::Result<SimFile> {
        let mut state = self.lock();
        state.check(state.boot)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = state.inodes.len();
        state.inodes.push(Inode::default());
        state.change_name(NameChange::Create(path.to_path_buf(), number))?;
        let bytes = usize::try_from(preallocate_bytes).map_err(io::Error::other)?;
        if state.room(bytes) < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.inodes[number].resize(bytes);
        Ok(SimFile { disk: self.clone(), number, boot: state.boot })
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let state = self.lock();
        state.check(state.boot)?;
        let number = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { disk: self.clone(), number, boot: state.boot })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.check(state.boot)?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_name(NameChange::Remove(path.to_path_buf()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.check(state.boot)?;
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_name(NameChange::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        let state = &mut *self.lock();
        if state.operate(state.boot)? {
            return Err(io_error("crash while syncing a directory"));
        }
        if state.random.once_in(state.faults.name_error_once_in) {
            return Err(io_error("sync of a directory failed"));
        }
        let (synced, left): (Vec<_>, Vec<_>) =
            state.changes.drain(..).partition(|change| change.directory() == Some(directory));
        state.changes = left;
        synced.iter().for_each(|change| change.apply(&mut state.durable_names));
        Ok(())
    }

    fn free_bytes(&self, _directory: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.room(1 << 40) as u64)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        state.check(self.boot)?;
        // Readers must live with short reads.
        let wanted = if state.random.once_in(8) { buffer.len().div_ceil(2) } else { buffer.len() };
        let content = &state.inodes[self.number].seen;
        let start = usize::try_from(position).map_err(io::Error::other)?.min(content.len());
        let found = &content[start..(start + wanted).min(content.len())];
        buffer[..found.len()].copy_from_slice(found);
        Ok(found.len())
    }

    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let state = &mut *self.disk.lock();
        let crashing = state.operate(self.boot)?;
        let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let wanted = bytes.len();
        let start = usize::try_from(position).map_err(io::Error::other)?;
        let failing = state.random.once_in(state.faults.write_error_once_in);
        if failing {
            let mut kept = usize::try_from(state.random.below(wanted as u64)).unwrap_or(0);
            // Inside a file whole sectors change; at its end any length may come out.
            if start + kept < state.inodes[self.number].seen.len() {
                kept -= kept % SECTOR_BYTES;
            }
            bytes.truncate(kept);
        }
        let growth = (start + bytes.len()).saturating_sub(state.inodes[self.number].seen.len());
        let missing = growth - state.room(growth);
        bytes.truncate(bytes.len().saturating_sub(missing));
        let inode = &mut state.inodes[self.number];
        if !bytes.is_empty() {
            let end = start + bytes.len();
            if end > inode.seen.len() {
                inode.resize(end);
            }
            inode.seen[start..end].copy_from_slice(&bytes);
            inode.mark(start, end);
        }
        match () {
            () if crashing => Err(io_error("crash while writing")),
            () if failing => Err(io_error("write failed")),
            () if missing > 0 => Err(io::ErrorKind::StorageFull.into()),
            () => Ok(()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.disk.lock();
        if state.operate(self.boot)? {
            return Err(io_error("crash while syncing"));
        }
        let State { random, inodes, faults, .. } = state;
        let inode = &mut inodes[self.number];
        let failing = random.once_in(faults.sync_error_once_in);
        inode.write_back(|| !failing || random.once_in(2));
        inode.dirty.clear();
        if failing { Err(io_error("sync failed")) } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        state.check(self.boot)?;
        Ok(state.inodes[self.number].seen.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let state = &mut *self.disk.lock();
        let crashing = state.operate(self.boot)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let growth = length.saturating_sub(state.inodes[self.number].seen.len());
        if state.room(growth) < growth {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.inodes[self.number].resize(length);
        if crashing { Err(io_error("crash while setting a length")) } else { Ok(()) }
    }

    fn drop_cache(&self) -> io::Result<()> {
        let state = &mut *self.disk.lock();
        state.check(self.boot)?;
        let Inode { seen, durable, dirty } = &mut state.inodes[self.number];
        for (sector, shown) in seen.chunks_mut(SECTOR_BYTES).enumerate() {
            if !dirty.contains(&sector) {
                let start = (sector * SECTOR_BYTES).min(durable.len());
                let kept = &durable[start..(start + shown.len()).min(durable.len())];
                shown[..kept.len()].copy_from_slice(kept);
                shown[kept.len()..].fill(0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_and_what_was_not_may_be_lost_in_part() {
        let path = Path::new("/d/a");
        let mut outcomes = BTreeSet::new();
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let file = disk.create_new(path, 0).unwrap();
            file.write_at(&[IoSlice::new(&[1; 512])], 0).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.write_at(&[IoSlice::new(&[2; 1024])], 512).unwrap();
            disk.crash();
            assert!(file.len().is_err());
            disk.restart();
            assert!(file.len().is_err(), "a file of the last boot stays dead");
            let content = disk.content(path).unwrap();
            assert_eq!(content[..512], [1; 512]);
            outcomes.insert(content[512..].chunks(512).map(|sector| sector[0]).collect::<Vec<_>>());
        }
        assert!(
            outcomes.contains(&vec![2, 2]) && outcomes.contains(&vec![0, 2]) && outcomes.contains(&vec![])
        );
    }

    #[test]
    fn a_failed_sync_shows_bytes_that_are_not_on_the_disk() {
        let disk = (0..100).map(SimDisk::new).find(|disk| {
            let file = disk.create_new(Path::new("/d/a"), 0).unwrap();
            file.write_at(&[IoSlice::new(&[1; 512])], 0).unwrap();
            disk.set_faults(Faults { sync_error_once_in: 1, ..Faults::default() });
            assert!(file.sync_data().is_err());
            disk.set_faults(Faults::default());
            file.sync_data().unwrap();
            let shown = disk.content(Path::new("/d/a")).unwrap();
            assert_eq!(shown, [1; 512]);
            file.drop_cache().unwrap();
            disk.content(Path::new("/d/a")).unwrap() == [0; 512]
        });
        assert!(disk.is_some());
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let disk = SimDisk::new(1);
        disk.set_faults(Faults { capacity_bytes: 700, ..Faults::default() });
        let file = disk.create_new(Path::new("/d/a"), 0).unwrap();
        let error = file.write_at(&[IoSlice::new(&[1; 1000])], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 700);
        assert!(disk.create_new(Path::new("/d/b"), 1).is_err());
    }
}
