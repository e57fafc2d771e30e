//! Runs a partition over the faulty disk, seed by seed, crash by crash, and compares what is left with what was
//! promised. A seed that once failed joins `SEEDS_THAT_FAILED`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use store_model::{Epoch, Offset, UnixNanos};

use crate::sim::{Faults, Random, SimDisk};
use crate::stage::on_a_sector;
use crate::{Error, PartitionOptions, Reader, Retention, Stage, Sync, Writer, choose};

/// Their numbers mean: (seed, durable commits only).
const SEEDS_THAT_FAILED: [(u64, bool); 10] = [
    (548, true),
    (934, true),
    (1_082, true),
    (1_610, true),
    (1_726, true),
    (2_753, true),
    (3_502, true),
    (4_406, true),
    (4_635, true),
    (12_217, false),
];

fn options() -> PartitionOptions {
    PartitionOptions { directory: "/data/p".into(), segment_bytes_max: 12 << 10, preallocate: true }
}

/// What was promised about a partition, beside the partition.
struct World {
    disk: SimDisk,
    random: Random,
    options: PartitionOptions,
    durable_only: bool,
    /// Acknowledged as durable: must be readable, unchanged.
    promised: BTreeMap<u64, Vec<u8>>,
    /// Written at this offset but not promised: may be readable, then complete.
    possible: BTreeMap<u64, Vec<u8>>,
    start: Offset,
    /// The offset after the last one acknowledged as durable, also where retention has removed that.
    end: Offset,
    epoch: Epoch,
    now: u64,
}

impl World {
    fn new(seed: u64, durable_only: bool) -> Self {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(random.next_u64());
        let options = PartitionOptions { preallocate: !random.once_in(4), ..options() };
        Self {
            disk,
            random,
            options,
            durable_only,
            promised: BTreeMap::new(),
            possible: BTreeMap::new(),
            start: Offset(0),
            end: Offset(0),
            epoch: Epoch(0),
            now: 1_000_000,
        }
    }

    /// Time goes on, mostly.
    fn now(&mut self) -> UnixNanos {
        self.now = (self.now + self.random.below(1_000)).saturating_sub(self.random.below(300));
        UnixNanos(self.now)
    }

    fn payload(&mut self) -> Vec<u8> {
        let bytes = match self.random.below(10) {
            0 => 0,
            1 => self.random.below(9_000),
            2 if self.random.once_in(3) => 16_000 + self.random.below(8_000),
            _ => self.random.below(700),
        };
        // Some payloads hold whole sectors of zeros, as torn commits do.
        let zeros = self.random.once_in(5);
        (0..bytes).map(|_| if zeros { 0 } else { self.random.next_u64().to_le_bytes()[0] }).collect()
    }

    fn open(&mut self) -> Result<Writer<SimDisk>, Error> {
        let now = self.now();
        // Without durable commits only the caller knows which offsets were given out.
        let least = if self.durable_only { Offset(0) } else { self.next_offset() };
        let (writer, recovery) = Writer::open(self.disk.clone(), self.options.clone(), least, now)?;
        assert!(recovery.epoch > self.epoch, "epoch {} after {}", recovery.epoch, self.epoch);
        assert_eq!((writer.epoch(), writer.end_offset()), (recovery.epoch, recovery.end_offset));
        if self.durable_only {
            assert_eq!(recovery.quarantined, [], "nothing was damaged");
            assert!(
                recovery.end_offset >= self.end,
                "offsets from {} are given out twice",
                recovery.end_offset
            );
        }
        self.epoch = recovery.epoch;
        Ok(writer)
    }

    fn next_offset(&self) -> Offset {
        let last = self.promised.keys().chain(self.possible.keys()).max();
        last.map_or(Offset(0), |last| Offset(last + 1))
    }

    /// Works until the machine goes down, or for so many steps.
    fn work(&mut self, writer: &mut Writer<SimDisk>, steps: u64) {
        for _ in 0..steps {
            if self.disk.is_crashed() {
                return;
            }
            if writer.is_poisoned() {
                assert!(matches!(writer.commit(Sync::Durable, UnixNanos(0)), Err(Error::Poisoned)));
                let now = self.now();
                if let Ok(recovery) = writer.reopen(now) {
                    assert!(recovery.epoch > self.epoch);
                    self.epoch = recovery.epoch;
                    self.check(writer, "after reopening");
                } else if self.random.once_in(3) {
                    self.retain(writer);
                }
                continue;
            }
            match self.random.below(24) {
                0 => self.retain(writer),
                _ => self.commit(writer),
            }
        }
    }

    fn commit(&mut self, writer: &mut Writer<SimDisk>) {
        let first = writer.end_offset().0;
        let count = 1 + self.random.below(4);
        let payloads: Vec<Vec<u8>> = (0..count).map(|_| self.payload()).collect();
        let mut stage = Stage::default();
        for payload in &payloads {
            // What is long enough is written from where it lies.
            let (head, body) =
                payload.split_at(payload.len().min(if payload.len() < 9_000 { 7 } else { 512 }));
            stage.push(head, &on_a_sector(body));
        }
        let durable = self.durable_only || self.random.once_in(3);
        let sync = if durable { Sync::Durable } else { Sync::PageCache };
        let now = self.now();
        let result = match writer.begin(&mut stage, now) {
            Ok(flight) => {
                // Retention goes on beside the writer.
                if self.random.once_in(12) {
                    self.retain(writer);
                }
                let written = flight.write(&stage, sync);
                writer.end(flight, written)
            }
            Err(error) => Err(error),
        };
        let records = (first..).zip(payloads);
        match result {
            Ok(committed) => {
                assert_eq!((committed.first, committed.end), (Offset(first), Offset(first + count)));
                self.possible.extend(records);
                if durable {
                    self.end = committed.end;
                    // A sync covers everything before it.
                    self.promised.append(&mut self.possible);
                }
            }
            // What ran out of space is incomplete, so it can never be readable.
            Err(error) if error.is_retryable() => assert!(!writer.is_poisoned()),
            Err(_) => {
                assert!(writer.is_poisoned());
                self.possible.extend(records);
            }
        }
    }

    fn retain(&mut self, writer: &Writer<SimDisk>) {
        let retention = Retention { age_max: Duration::MAX, bytes_max: 40_000 + self.random.below(40_000) };
        let segments = writer.reader().segments();
        let floor = Offset(self.random.below(self.next_offset().0 + 2));
        let chosen = choose(&segments, &retention, floor, UnixNanos(self.now));
        let mut remover = writer.remover();
        remover.step_bytes = 1 + self.random.below(8_000);
        let removed = remover.remove(&chosen, &mut || ());
        if let Some(last) = chosen.last() {
            let kept = segments.iter().find(|segment| segment.base_offset > *last).unwrap().base_offset;
            // A crash may bring removed segments back.
            self.start = if removed.is_ok() { kept } else { self.start };
            self.promised = self.promised.split_off(&kept.0);
            self.possible = self.possible.split_off(&kept.0);
            assert!(kept <= floor.max(kept), "nothing at or above the floor goes");
        }
    }

    /// Compares everything that can be read with what was promised, and takes what is there as promised from here on.
    fn check(&mut self, writer: &Writer<SimDisk>, when: &str) {
        let reader = writer.reader();
        let end = writer.end_offset();
        assert_eq!(reader.end_offset(), end);
        if let Some((&last, _)) = self.promised.last_key_value() {
            assert!(Offset(last) < end, "{when}: promised offset {last} is beyond the end {end}");
        }
        let mut found = BTreeMap::new();
        for offset in reader.start_offset().0..end.0 {
            match reader.read(Offset(offset)) {
                Ok(Some(payload)) => {
                    found.insert(offset, payload.to_vec());
                }
                Ok(None) | Err(Error::Damaged { .. }) if !self.durable_only => {}
                // The machine went down, or a reopened partition met a fault again.
                Err(Error::Io { .. }) if self.disk.is_crashed() => return,
                other => panic!("{when}: offset {offset} of {end}: {other:?}"),
            }
        }
        for (offset, payload) in &found {
            let written = self.promised.get(offset).or_else(|| self.possible.get(offset));
            // Below the first promised offset lie segments that were removed and came back.
            let removed = *offset < self.promised.first_key_value().map_or(end.0, |(first, _)| *first);
            assert!(removed || written == Some(payload), "{when}: offset {offset} is not what was written");
        }
        for (offset, payload) in &self.promised {
            assert_eq!(found.get(offset), Some(payload), "{when}: promised offset {offset} is lost");
        }
        let scanned: BTreeMap<u64, Vec<u8>> = reader
            .scan(Offset(0))
            .filter_map(|record| record.ok().map(|(offset, payload)| (offset.0, payload.to_vec())))
            .collect();
        if !self.disk.is_crashed() {
            assert_eq!(scanned, found, "{when}: a scan and reads disagree");
        }
        let times: Vec<UnixNanos> = reader.segments().iter().map(|segment| segment.newest_at).collect();
        assert!(times.is_sorted(), "{when}: time fell between segments: {times:?}");
        assert!(
            reader
                .segments()
                .iter()
                .filter(|segment| segment.sealed && segment.quarantined.is_none())
                .all(|segment| segment.base_offset < segment.end_offset),
            "{when}: empty segments pile up"
        );
        // It was read from a partition that synced it when it was opened.
        let first = self.promised.first_key_value().map_or(0, |(first, _)| *first);
        self.possible.clear();
        self.promised = found;
        self.promised = self.promised.split_off(&first);
    }

    /// The machine goes down, or the process alone.
    fn stop(&mut self) {
        if self.random.once_in(3) {
            self.disk.kill();
        } else {
            self.disk.crash();
            self.disk.restart();
        }
    }

    /// Power comes back, perhaps several times, until the partition opens.
    fn recover(&mut self) {
        self.disk.set_faults(Faults::default());
        self.stop();
        for _ in 0..self.random.below(3) {
            let count = 1 + self.random.below(12);
            self.disk.crash_after(count);
            drop(self.open());
            self.stop();
        }
        // Tools look without changing anything.
        Reader::open(self.disk.clone(), &self.options.directory).unwrap();
        let writer = self.open().unwrap();
        self.check(&writer, "after a crash");
    }
}

/// One life of a partition: several crashes, faults in between.
fn live(seed: u64, durable_only: bool, crashes: u64) {
    let mut world = World::new(seed, durable_only);
    for _ in 0..crashes {
        let faults = Faults {
            sync_error_once_in: [0, 0, 40][usize::try_from(world.random.below(3)).unwrap()],
            name_error_once_in: [0, 0, 10][usize::try_from(world.random.below(3)).unwrap()],
            write_error_once_in: [0, 0, 40][usize::try_from(world.random.below(3)).unwrap()],
            capacity_bytes: [0, 0, 50_000][usize::try_from(world.random.below(3)).unwrap()],
        };
        world.disk.set_faults(faults);
        let count = 1 + world.random.below(150);
        world.disk.crash_after(count);
        if let Ok(mut writer) = world.open() {
            world.work(&mut writer, 60);
        }
        world.recover();
    }
}

#[test]
fn every_promised_record_survives_a_thousand_crashes_with_faults() {
    for (seed, durable_only) in SEEDS_THAT_FAILED {
        live(seed, durable_only, 5);
    }
    for seed in 0..1_000 {
        live(seed, true, 5);
    }
}

#[test]
fn a_commit_left_to_the_page_cache_is_whole_or_reported_after_a_crash() {
    for seed in 0..600 {
        live(seed, false, 5);
    }
}

#[test]
fn every_operation_is_a_point_to_crash_at() {
    let mut points = 0;
    for seed in 0..8 {
        let run = |crash_at: u64| {
            let mut world = World::new(seed, true);
            world.disk.crash_after(crash_at);
            if let Ok(mut writer) = world.open() {
                world.work(&mut writer, 60);
                // Opening again right after is what a restart does.
                if !world.disk.is_crashed()
                    && let Ok(mut writer) = world.open()
                {
                    world.work(&mut writer, 5);
                }
            }
            let operations = world.disk.operations();
            world.recover();
            operations
        };
        let operations = run(u64::MAX / 2);
        for crash_at in 1..=operations {
            run(crash_at);
            points += 1;
        }
    }
    assert!(points >= 1_000, "only {points} crash points");
}

#[test]
fn a_full_disk_refuses_commits_and_takes_them_once_there_is_space_again() {
    for preallocate in [true, false] {
        let disk = SimDisk::new(1);
        let options = PartitionOptions { preallocate, ..options() };
        let (mut writer, _) = Writer::open(disk.clone(), options.clone(), Offset(7), UnixNanos(0)).unwrap();
        let mut commit = |byte: u8| {
            writer.append([Bytes::from(vec![byte; 3000]), Bytes::new()]);
            writer.commit(Sync::Durable, UnixNanos(0))
        };
        disk.set_faults(Faults { capacity_bytes: 40_000, ..Faults::default() });
        let mut taken = 0;
        let error = loop {
            match commit(taken) {
                Ok(_) => taken += 1,
                Err(error) => break error,
            }
        };
        assert!(error.is_retryable() && taken > 2, "{error} after {taken}");
        assert!(commit(taken).unwrap_err().is_retryable(), "it stays full");
        disk.set_faults(Faults::default());
        let committed = commit(taken).unwrap();
        assert_eq!(committed.first, Offset(7 + u64::from(taken)), "the refused commits took no offset");
        disk.crash();
        disk.restart();
        let (writer, recovery) = Writer::open(disk, options, Offset(0), UnixNanos(0)).unwrap();
        assert_eq!((recovery.end_offset, recovery.quarantined), (committed.end, Vec::new()));
        for byte in 0..=taken {
            let found = writer.reader().read(Offset(7 + u64::from(byte))).unwrap().unwrap();
            assert_eq!(found, vec![byte; 3000]);
        }
    }
}

/// Leaves a segment of two commits, offsets 0 and 1, with those sectors of its seal that `kept` has a bit for.
fn half_sealed(kept: u32) -> (SimDisk, PathBuf) {
    let disk = SimDisk::new(u64::from(kept));
    let (mut writer, _) = Writer::open(disk.clone(), options(), Offset(0), UnixNanos(1)).unwrap();
    for byte in 0..2 {
        writer.append([Bytes::from(vec![byte; 100]), Bytes::new()]);
        writer.commit(Sync::Durable, UnixNanos(2)).unwrap();
    }
    drop(Writer::open(disk.clone(), options(), Offset(0), UnixNanos(3)).unwrap());
    let path = writer.reader().segments()[0].path.clone();
    let content = disk.content(&path).unwrap();
    let file = crate::Disk::open(&disk, &path).unwrap();
    let seal = content.len() - 8 * 512;
    for sector in (0..8).filter(|sector| kept & (1 << sector) == 0) {
        let position = (seal + sector * 512) as u64;
        crate::DiskFile::write_at(&file, &[std::io::IoSlice::new(&[0; 512])], position).unwrap();
    }
    (disk, path)
}

/// What a crash leaves of a segment whose header was not yet written.
fn begin_in_vain(disk: &SimDisk, base: u64) {
    let path = Path::new("/data/p").join(format!("{base:020}.log"));
    crate::Disk::create_new(disk, &path, 12 << 10).unwrap();
}

#[test]
fn whatever_a_crash_leaves_of_a_seal_is_no_damage() {
    let reopen = |disk: &SimDisk, least: u64| {
        let (writer, recovery) = Writer::open(disk.clone(), options(), Offset(least), UnixNanos(4)).unwrap();
        assert_eq!((recovery.quarantined, recovery.end_offset), (vec![], Offset(least)));
        assert!(
            (0..2).all(|byte| writer.reader().read(Offset(byte.into())).unwrap().unwrap() == vec![byte; 100])
        );
    };
    for kept in 0..256 {
        // The next segment never began, though it had its name, and then once more, while this one is sealed anew.
        let (disk, _) = half_sealed(kept);
        begin_in_vain(&disk, 2);
        reopen(&disk, 2);
        begin_in_vain(&disk, 2);
        reopen(&disk, 2);
        // It was to begin behind offsets that only the caller knows of: no name says where this one ends.
        let (disk, _) = half_sealed(kept);
        reopen(&disk, 7);
        begin_in_vain(&disk, 7);
        reopen(&disk, 7);
    }
}

#[test]
fn a_commit_that_became_unreadable_is_reported_though_the_next_segment_never_began() {
    for kept in [0, u32::MAX] {
        let (disk, path) = half_sealed(kept);
        // The header of the last commit.
        disk.flip_bit(&path, (8192 + 20) * 8);
        begin_in_vain(&disk, 2);
        let (writer, _) = Writer::open(disk, options(), Offset(0), UnixNanos(4)).unwrap();
        assert_eq!(writer.reader().read(Offset(0)).unwrap().unwrap(), vec![0; 100]);
        assert!(matches!(writer.reader().read(Offset(1)), Err(Error::Damaged { .. })));
        assert_eq!(writer.end_offset(), Offset(2));
        assert!(writer.reader().segments()[0].quarantined.is_some());
    }
}

#[test]
fn what_a_marker_in_the_cache_says_survives_power_loss_once_a_partition_was_opened() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (mut writer, _) = Writer::open(disk.clone(), options(), Offset(0), UnixNanos(1)).unwrap();
        for byte in 1..3 {
            writer.append([Bytes::from(vec![byte; 100]), Bytes::new()]);
            writer.commit(Sync::Durable, UnixNanos(2)).unwrap();
        }
        let path = writer.reader().segments()[0].path.clone();
        let file = crate::Disk::open(&disk, &path).unwrap();
        // Looks like a commit that was never written completely, to whoever does not know that it was.
        crate::DiskFile::write_at(&file, &[std::io::IoSlice::new(&[0; 512])], 8192 + 512).unwrap();
        crate::DiskFile::sync_data(&file).unwrap();
        assert!(matches!(writer.reader().read(Offset(1)), Err(Error::Damaged { .. })));
        writer.append([Bytes::from_static(b"next"), Bytes::new()]);
        // The segment is cut and synced, the marker created and written; the process dies before it is synced.
        disk.crash_after(5);
        assert!(writer.commit(Sync::Durable, UnixNanos(3)).is_err());
        disk.kill();
        assert_ne!(disk.content(&path.with_extension("quarantined")).unwrap(), []);
        for _ in 0..2 {
            let (writer, recovery) = Writer::open(disk.clone(), options(), Offset(0), UnixNanos(4)).unwrap();
            assert_eq!((recovery.quarantined.len(), recovery.end_offset), (1, Offset(2)));
            assert!(matches!(writer.reader().read(Offset(1)), Err(Error::Damaged { .. })));
            disk.crash();
            disk.restart();
        }
    }
}

/// A partition of a few segments, and what it holds.
fn filled(seed: u64) -> (World, Vec<PathBuf>) {
    let mut world = World::new(seed, true);
    let mut writer = world.open().unwrap();
    for _ in 0..30 {
        world.commit(&mut writer);
    }
    if world.random.once_in(3) {
        // The newest segment is sealed, too.
        drop(world.open().unwrap());
    }
    let paths = writer.reader().segments().into_iter().map(|segment| segment.path).collect();
    (world, paths)
}

/// Reads everything twice; every promised record must be right or reported.
fn account(world: &World, reader: &Reader<SimDisk>) -> u64 {
    let mut lost = 0;
    for (offset, payload) in &world.promised {
        match reader.read(Offset(*offset)) {
            Ok(Some(found)) => assert_eq!(found, payload, "offset {offset} is served wrong"),
            Err(Error::Damaged { first, end, .. }) => {
                assert!((first..end).contains(&Offset(*offset)));
                lost += 1;
            }
            other => panic!("offset {offset} is dropped silently: {other:?}"),
        }
    }
    let mut next = world.start;
    for record in reader.scan(Offset(0)) {
        next = match record {
            Ok((offset, payload)) => {
                assert_eq!(offset, next, "a scan skips records silently");
                assert!(world.promised.get(&offset.0).is_none_or(|promised| *promised == payload));
                offset.plus(1)
            }
            Err(Error::Damaged { first, end, .. }) => {
                assert_eq!(first, next, "a scan skips records silently");
                end
            }
            Err(error) => panic!("{error}"),
        };
    }
    assert!(next >= world.next_offset(), "the scan ended early, at {next}");
    lost
}

#[test]
fn flipped_bits_are_reported_and_never_served_nor_dropped() {
    let mut damaged = 0;
    for seed in 0..800 {
        let (mut world, paths) = filled(seed);
        let mut touched = Vec::new();
        for _ in 0..=world.random.below(2) {
            let path = &paths[usize::try_from(world.random.below(paths.len() as u64)).unwrap()];
            let length = world.disk.content(path).unwrap().iter().rposition(|&byte| byte != 0).unwrap() + 1;
            let bit = world.random.below(length as u64 * 8);
            world.disk.flip_bit(path, bit);
            touched.push((path.clone(), world.disk.content(path).unwrap()));
        }
        // From outside, by a writer, and by the next writer: all must tell the same.
        let outside = account(&world, &Reader::open(world.disk.clone(), Path::new("/data/p")).unwrap());
        let (mut writer, _) = Writer::open(world.disk.clone(), options(), Offset(0), UnixNanos(0)).unwrap();
        assert!(writer.end_offset() >= world.next_offset(), "offsets are given out twice");
        let lost = account(&world, &writer.reader());
        assert_eq!(lost, outside);
        let quarantined = |reader: &Reader<SimDisk>| {
            reader.segments().iter().filter(|segment| segment.quarantined.is_some()).count()
        };
        assert_eq!(quarantined(&writer.reader()) > 0, lost > 0 || quarantined(&writer.reader()) > 0);
        if lost > 0 {
            damaged += 1;
            assert!(quarantined(&writer.reader()) > 0);
            let all = Retention { age_max: Duration::ZERO, bytes_max: 0 };
            let segments = writer.reader().segments();
            let chosen = choose(&segments, &all, Offset(u64::MAX), UnixNanos(u64::MAX));
            assert!(
                segments
                    .iter()
                    .all(|segment| segment.quarantined.is_none() || !chosen.contains(&segment.base_offset))
            );
        }
        writer.append([Bytes::from_static(b"after"), Bytes::new()]);
        let after = writer.commit(Sync::Durable, UnixNanos(0)).unwrap().first;
        let before = quarantined(&writer.reader());
        drop(writer);

        let (writer, recovery) =
            Writer::open(world.disk.clone(), options(), Offset(0), UnixNanos(0)).unwrap();
        assert_eq!(writer.reader().read(after).unwrap().unwrap(), "after");
        assert_eq!(recovery.end_offset, after.plus(1));
        assert_eq!(account_before(&world, &writer.reader()), lost, "damage is forgotten");
        assert_eq!(quarantined(&writer.reader()), before, "quarantine is forgotten");
        assert_eq!(recovery.quarantined.is_empty(), before == 0);
        for segment in writer.reader().segments().iter().filter(|segment| segment.quarantined.is_some()) {
            if let Some((path, content)) = touched.iter().rfind(|(path, _)| *path == segment.path) {
                assert_eq!(world.disk.content(path).as_ref(), Some(content), "a damaged segment was changed");
            }
        }
    }
    assert!(damaged > 200, "only {damaged} flips did damage");
}

/// As [`account`], of point reads only.
fn account_before(world: &World, reader: &Reader<SimDisk>) -> u64 {
    let lost = |(offset, payload): (&u64, &Vec<u8>)| match reader.read(Offset(*offset)) {
        Ok(Some(found)) => {
            assert_eq!(found, payload);
            0
        }
        Err(Error::Damaged { .. }) => 1,
        other => panic!("offset {offset} is dropped silently: {other:?}"),
    };
    world.promised.iter().map(lost).sum()
}

#[test]
fn any_bytes_in_a_segment_are_read_or_reported() {
    for seed in 0..200 {
        let (mut world, paths) = filled(seed);
        let path = &paths[usize::try_from(world.random.below(paths.len() as u64)).unwrap()];
        let length = world.disk.content(path).unwrap().len() as u64;
        for _ in 0..world.random.below(60) {
            let bit = world.random.below(length * 8);
            world.disk.flip_bit(path, bit);
        }
        let file = crate::Disk::open(&world.disk, path).unwrap();
        if world.random.once_in(3) {
            let noise: Vec<u8> = (0..3000).map(|_| world.random.next_u64().to_le_bytes()[0]).collect();
            let position = world.random.below(length);
            crate::DiskFile::write_at(&file, &[std::io::IoSlice::new(&noise)], position).unwrap();
        }
        if world.random.once_in(3) {
            crate::DiskFile::set_len(&file, world.random.below(length)).unwrap();
        }
        let (writer, _) = Writer::open(world.disk.clone(), options(), Offset(0), UnixNanos(0)).unwrap();
        for offset in 0..writer.end_offset().0 {
            if let Ok(Some(found)) = writer.reader().read(Offset(offset)) {
                assert!(world.promised.get(&offset).is_none_or(|payload| *payload == found));
            }
        }
        assert!(writer.reader().scan(Offset(0)).count() <= 1_000);
    }
}
