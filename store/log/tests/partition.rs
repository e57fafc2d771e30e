//! A partition on the real disk, through the public interface alone.
#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use store_log::{
    Error, PartitionOptions, Reader, RealDisk, Recovery, Retention, Sync, Writer, choose, over_budget,
};
use store_model::{Epoch, Offset, UnixNanos};
use tempfile::TempDir;

fn options(directory: &Path) -> PartitionOptions {
    PartitionOptions { directory: directory.to_path_buf(), segment_bytes_max: 64 << 10, preallocate: true }
}

fn open(directory: &Path) -> (Writer<RealDisk>, Recovery) {
    Writer::open(RealDisk, options(directory), Offset(0), UnixNanos(1)).unwrap()
}

/// The payload of an offset: its number, then bytes that depend on it, of a length that does, too.
fn payload(offset: u64) -> Vec<u8> {
    let length = usize::try_from(offset * 131 % 1500).unwrap();
    let filler = (0..length as u64).map(|at| (offset.wrapping_mul(31) + at * 7).to_le_bytes()[0]);
    offset.to_le_bytes().into_iter().chain(filler).collect()
}

fn append(writer: &mut Writer<RealDisk>, count: u64) {
    let first = writer.end_offset().0 + writer.pending_records();
    for offset in first..first + count {
        let payload = Bytes::from(payload(offset));
        writer.append([payload.slice(..5), payload.slice(5..)]);
    }
}

/// `commits` commits of three records each.
fn fill(writer: &mut Writer<RealDisk>, commits: u64) {
    for n in 0..commits {
        append(writer, 3);
        writer.commit(Sync::Durable, UnixNanos(1_000 + n)).unwrap();
    }
}

fn scanned(reader: &Reader<RealDisk>, from: u64) -> Vec<u64> {
    let check = |record: Result<(Offset, Bytes), Error>| {
        let (offset, bytes) = record.unwrap();
        assert_eq!(bytes, payload(offset.0));
        offset.0
    };
    reader.scan(Offset(from)).map(check).collect()
}

fn flip(path: &Path, position: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], position).unwrap();
}

#[test]
fn records_come_back_at_their_offsets_across_segments_and_restarts() {
    let directory = TempDir::new().unwrap();
    let (mut writer, recovery) = open(directory.path());
    assert_eq!((recovery.end_offset, recovery.epoch), (Offset(0), Epoch(1)));
    append(&mut writer, 2);
    assert!(writer.pending_records() == 2 && writer.pending_bytes().is_multiple_of(4096));
    let pending = writer.pending_bytes();
    let committed = writer.commit(Sync::Durable, UnixNanos(5)).unwrap();
    assert_eq!((committed.first, committed.end, committed.bytes), (Offset(0), Offset(2), pending));
    assert!(committed.rolled && writer.pending_records() == 0);
    assert!(!writer.commit(Sync::Durable, UnixNanos(5)).unwrap().rolled, "an empty commit does nothing");
    fill(&mut writer, 100);
    let reader = writer.reader();
    assert!(reader.segments().len() > 3, "small segments roll");
    assert!(reader.segments().is_sorted_by(|one, next| one.end_offset == next.base_offset && one.sealed));
    assert_eq!(scanned(&reader, 0), (0..302).collect::<Vec<_>>());
    drop(writer);

    let (mut writer, recovery) = open(directory.path());
    assert_eq!((recovery.end_offset, recovery.epoch), (Offset(302), Epoch(2)));
    assert_eq!((recovery.truncated, recovery.quarantined), (None, Vec::new()));
    fill(&mut writer, 1);
    assert_eq!(scanned(&writer.reader(), 150), (150..305).collect::<Vec<_>>());
    assert_eq!(writer.reader().read(Offset(17)).unwrap().unwrap(), payload(17));
    assert_eq!(writer.reader().read(Offset(305)).unwrap(), None);
    let on_disk: u64 = writer.reader().segments().iter().map(|it| it.path.metadata().unwrap().len()).sum();
    assert_eq!(writer.reader().bytes_used(), on_disk);
}

#[test]
fn a_record_longer_than_a_segment_gets_one_of_its_own() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    fill(&mut writer, 1);
    let large = Bytes::from(vec![7; 300 << 10]);
    writer.append([Bytes::new(), large.clone()]);
    assert!(writer.commit(Sync::PageCache, UnixNanos(2)).unwrap().rolled);
    fill(&mut writer, 1);
    drop(writer);
    let (writer, _) = open(directory.path());
    assert_eq!(writer.reader().read(Offset(3)).unwrap().unwrap(), large);
    assert_eq!(writer.reader().segments().len(), 3);
}

#[test]
fn offsets_begin_no_lower_than_asked_and_the_gap_holds_no_records() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    fill(&mut writer, 1);
    drop(writer);
    let (mut writer, recovery) =
        Writer::open(RealDisk, options(directory.path()), Offset(50), UnixNanos(2)).unwrap();
    assert_eq!(recovery.end_offset, Offset(50));
    fill(&mut writer, 1);
    drop(writer);
    let (writer, recovery) = open(directory.path());
    assert_eq!((recovery.end_offset, recovery.quarantined), (Offset(53), Vec::new()));
    assert_eq!(scanned(&writer.reader(), 0), [0, 1, 2, 50, 51, 52]);
    assert_eq!(writer.reader().read(Offset(3)).unwrap(), None);
}

#[test]
fn readers_on_other_threads_see_whole_commits_in_order_while_the_writer_goes_on() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = writer.reader();
            let done = &done;
            scope.spawn(move || {
                let mut scan = reader.scan(Offset(0));
                let mut next = 0;
                loop {
                    let was_done = done.load(Ordering::Acquire);
                    for record in scan.by_ref() {
                        let (offset, bytes) = record.unwrap();
                        assert_eq!((offset.0, &bytes[..]), (next, &payload(next)[..]));
                        next += 1;
                    }
                    assert!(next.is_multiple_of(3), "half a commit was seen");
                    assert_eq!(scan.position(), Offset(next));
                    if next > 0 {
                        let some = next * 2 / 3;
                        assert_eq!(reader.read(Offset(some)).unwrap().unwrap(), payload(some));
                    }
                    if was_done {
                        assert_eq!(next, 1200);
                        return;
                    }
                }
            });
        }
        for n in 0..400 {
            append(&mut writer, 3);
            let sync = if n % 8 == 0 { Sync::Durable } else { Sync::PageCache };
            writer.commit(sync, UnixNanos(n)).unwrap();
        }
        // Pairs with the readers' acquire: whoever sees this sees every commit.
        done.store(true, Ordering::Release);
    });
}

#[test]
fn a_tool_looks_beside_a_running_writer_and_changes_nothing() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    fill(&mut writer, 60);
    let listing = || {
        let mut entries: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap()))
            .collect();
        entries.sort();
        entries
    };
    let before = listing();
    let outside = Reader::open(RealDisk, directory.path()).unwrap();
    assert_eq!(scanned(&outside, 0), (0..180).collect::<Vec<_>>());
    assert!(before == listing());
    fill(&mut writer, 40);
    assert_eq!(outside.end_offset(), Offset(180), "it sees the partition as it was");
    assert_eq!(scanned(&Reader::open(RealDisk, directory.path()).unwrap(), 0).len(), 300);
    let missing = Reader::open(RealDisk, &directory.path().join("missing")).unwrap();
    assert_eq!((missing.start_offset(), missing.end_offset()), (Offset(0), Offset(0)));
}

#[test]
fn retention_removes_the_oldest_below_the_floor_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    fill(&mut writer, 200);
    let reader = writer.reader();
    let segments = reader.segments();
    let floor = segments[4].base_offset.plus(1);
    let retention = Retention { age_max: Duration::MAX, bytes_max: 0 };
    let chosen = choose(&segments, &retention, floor, UnixNanos(0));
    assert_eq!(chosen, segments[..4].iter().map(|it| it.base_offset).collect::<Vec<_>>());
    let bytes: u64 = segments[..4].iter().map(|it| it.bytes).sum();
    let before = reader.bytes_used();
    assert_eq!(writer.remover().remove(&chosen, &mut || ()).unwrap(), bytes);
    assert_eq!(reader.bytes_used(), before - bytes);
    assert!(over_budget(&reader.segments(), &[], &retention));
    assert_eq!(reader.start_offset(), segments[4].base_offset);
    assert_eq!(reader.read(Offset(0)).unwrap(), None);
    assert_eq!(scanned(&reader, 0), (segments[4].base_offset.0..600).collect::<Vec<_>>());
    drop(writer);

    let (writer, recovery) = open(directory.path());
    assert_eq!((recovery.end_offset, recovery.quarantined), (Offset(600), Vec::new()));
    let all: Vec<Offset> = writer.reader().segments().iter().map(|it| it.base_offset).collect();
    writer.remover().remove(&all, &mut || ()).unwrap();
    drop(writer);
    assert_eq!(open(directory.path()).1.end_offset, Offset(600), "offsets are never given out twice");
}

#[test]
fn the_oldest_go_while_commits_go_on() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    let (remover, reader) = (writer.remover(), writer.reader());
    let is_done = AtomicBool::new(false);
    let retention = Retention { age_max: Duration::MAX, bytes_max: 128 << 10 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let segments = remover.reader().segments();
                let chosen = choose(&segments, &retention, Offset(u64::MAX), UnixNanos(0));
                remover.remove(&chosen, &mut || ()).unwrap();
            }
        });
        fill(&mut writer, 400);
        is_done.store(true, Ordering::Relaxed);
    });
    let start = reader.start_offset().0;
    assert!(start > 0, "something was removed");
    assert_eq!(scanned(&reader, 0), (start..1_200).collect::<Vec<_>>());
    drop(writer);
    let (writer, recovery) = open(directory.path());
    assert_eq!((recovery.end_offset, recovery.quarantined), (Offset(1_200), Vec::new()));
    assert_eq!(scanned(&writer.reader(), 0), (start..1_200).collect::<Vec<_>>());
}

#[test]
fn damage_in_a_sealed_segment_is_said_once_marked_and_kept() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    fill(&mut writer, 100);
    let segment = writer.reader().segments()[1].clone();
    drop(writer);
    // Behind the header, the commit's header, its table of three and the first record's first bytes.
    flip(&segment.path, 4096 + 512 + 3);
    let damaged = std::fs::read(&segment.path).unwrap();

    let (mut writer, recovery) = open(directory.path());
    assert_eq!(recovery.quarantined, [], "sealed segments are not read when a partition is opened");
    let lost = segment.base_offset;
    let error = writer.reader().read(lost).unwrap_err();
    assert!(matches!(&error, Error::Damaged { first, end, .. } if (*first, *end) == (lost, lost.plus(1))));
    let marker = segment.path.with_extension("quarantined");
    let text = std::fs::read_to_string(&marker).unwrap();
    assert!(text.starts_with(&format!("end_offset {}\n", segment.end_offset)), "{text}");
    assert!(writer.reader().segments()[1].quarantined.is_some());
    let (errors, good): (Vec<_>, Vec<_>) = writer.reader().scan(Offset(0)).partition(Result::is_err);
    assert_eq!((errors.len(), good.len()), (1, 299));
    fill(&mut writer, 1);
    drop(writer);

    let (writer, recovery) = open(directory.path());
    assert_eq!(recovery.quarantined.len(), 1);
    assert_eq!((recovery.quarantined[0].first, recovery.end_offset), (lost, Offset(303)));
    let retention = Retention { age_max: Duration::ZERO, bytes_max: 0 };
    let segments = writer.reader().segments();
    let chosen = choose(&segments, &retention, Offset(u64::MAX), UnixNanos(u64::MAX));
    assert!(!chosen.contains(&segment.base_offset) && chosen.len() == segments.len() - 2);
    assert!(std::fs::read(&segment.path).unwrap() == damaged, "a damaged segment is kept as it is");
    writer.remover().remove(&[segment.base_offset], &mut || ()).unwrap();
    assert!(!segment.path.exists() && !marker.exists());
}

#[test]
fn damage_found_in_the_open_segment_ends_it_and_nothing_behind_is_lost() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    fill(&mut writer, 3);
    let segment = writer.reader().segments()[0].clone();
    flip(&segment.path, 4096 + 512 + 3);
    append(&mut writer, 3);
    assert!(matches!(writer.reader().read(Offset(0)), Err(Error::Damaged { .. })));
    assert!(writer.commit(Sync::Durable, UnixNanos(9)).unwrap().rolled);
    fill(&mut writer, 1);
    for _ in 0..2 {
        drop(writer);
        let recovery;
        (writer, recovery) = open(directory.path());
        assert_eq!((recovery.end_offset, recovery.quarantined.len()), (Offset(15), 1));
        assert_eq!(scanned(&writer.reader(), 1), (1..15).collect::<Vec<_>>());
    }
}

#[test]
fn a_tail_that_was_never_written_whole_is_cut_off() {
    let directory = TempDir::new().unwrap();
    let (mut writer, _) = open(directory.path());
    fill(&mut writer, 2);
    let path = writer.reader().segments()[0].path.clone();
    writer.append([Bytes::from(vec![9; 4000]), Bytes::new()]);
    let committed = writer.commit(Sync::Durable, UnixNanos(9)).unwrap();
    drop(writer);
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() / 512 * 512;
    File::options().write(true).open(&path).unwrap().write_all_at(&[0; 512], end as u64).unwrap();

    let (mut writer, recovery) = open(directory.path());
    let truncated = recovery.truncated.unwrap();
    assert_eq!((truncated.path, recovery.end_offset), (path, committed.first));
    assert_eq!(recovery.quarantined, []);
    fill(&mut writer, 1);
    assert_eq!(scanned(&writer.reader(), 0), (0..9).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn changed_or_shortened_segments_never_panic_and_never_give_a_wrong_payload(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1usize..600), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        which in any::<prop::sample::Index>(),
    ) {
        let directory = TempDir::new().unwrap();
        let (mut writer, _) = open(directory.path());
        for n in 0..40 {
            append(&mut writer, 3);
            writer.commit(Sync::PageCache, UnixNanos(n)).unwrap();
        }
        let path = which.get(&writer.reader().segments()).path.clone();
        drop(writer);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte, length) in changes {
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            bytes[at..end].fill(byte);
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        std::fs::write(&path, &bytes).unwrap();

        let outside = Reader::open(RealDisk, directory.path()).unwrap();
        let (mut writer, _) = open(directory.path());
        for reader in [outside, writer.reader()] {
            for offset in 0..120 {
                if let Ok(Some(found)) = reader.read(Offset(offset)) {
                    prop_assert_eq!(found, payload(offset));
                }
            }
            let mut last = None;
            for (offset, found) in reader.scan(Offset(0)).filter_map(Result::ok) {
                prop_assert!(Some(offset) > last, "offsets rise");
                prop_assert_eq!(found, payload(offset.0));
                last = Some(offset);
            }
        }
        fill(&mut writer, 1);
        let after = writer.end_offset();
        drop(writer);
        let (writer, recovery) = open(directory.path());
        prop_assert_eq!(recovery.end_offset, after);
        prop_assert_eq!(scanned(&writer.reader(), after.0 - 3).len(), 3);
    }
}
