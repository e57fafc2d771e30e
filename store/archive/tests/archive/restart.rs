//! What a restart finds: coverage, leftovers, segments that are missing, damaged or of another time.

use std::fs;

use store_archive::Archive;
use store_model::{Offset, ShardId, Tenant, UnixNanos};

use crate::fixture::{all, id, open, options, segment_paths, small};

const NOW: UnixNanos = UnixNanos(1);

/// Shard 0 with settlement records 0..10, 10..20 and 20..30, each of one trace.
fn three_segments(directory: &std::path::Path) {
    let (archive, _) = open(directory);
    let mut writer = archive.writer(ShardId(0));
    for number in 1..=3u8 {
        writer.insert(small(number));
        writer.seal(Offset(u64::from(number) * 10), NOW).unwrap().unwrap();
    }
    assert_eq!(writer.covered(), Offset(30));
}

fn flip_last_byte(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_open_is_gathered_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    writer.insert(small(4));
    assert_eq!((writer.open_rows(), all(&archive).len()), (1, 4));
    drop((writer, archive));
    let (archive, report) = open(directory.path());
    assert_eq!((report.segments, all(&archive).len()), (3, 3));
    assert_eq!(archive.writer(ShardId(0)).covered(), Offset(30));
    assert_eq!(archive.writer(ShardId(1)).covered(), Offset(0));
}

#[test]
fn a_missing_newest_segment_lowers_coverage() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    fs::remove_file(&segment_paths(directory.path())[2]).unwrap();
    let (archive, _) = open(directory.path());
    assert_eq!(archive.writer(ShardId(0)).covered(), Offset(20));
}

#[test]
fn a_damaged_newest_segment_is_set_aside_and_rebuilt_under_another_name() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    let damaged = segment_paths(directory.path())[2].clone();
    flip_last_byte(&damaged);
    let (archive, report) = open(directory.path());
    assert_eq!(report.quarantined[0].path, damaged);
    assert!(report.quarantined[0].cause.is_damage());
    assert_eq!(archive.stats().quarantined, 1);
    let mut writer = archive.writer(ShardId(0));
    assert_eq!(writer.covered(), Offset(20));
    writer.insert(small(3));
    let rebuilt = writer.seal(Offset(30), NOW).unwrap().unwrap();
    assert_ne!(rebuilt, damaged);
    drop((writer, archive));
    let (archive, report) = open(directory.path());
    assert_eq!((report.quarantined.len(), archive.writer(ShardId(0)).covered()), (1, Offset(30)));
    assert_eq!(all(&archive), [small(1), small(2), small(3)]);
    assert!(damaged.exists());
}

#[test]
fn a_damaged_middle_segment_is_rebuilt_without_doubling_the_newer_one() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    flip_last_byte(&segment_paths(directory.path())[1]);
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    assert_eq!(writer.covered(), Offset(10));
    // Records 10..30 are gathered again.
    writer.insert(small(2));
    writer.insert(small(3));
    assert_eq!(writer.open_rows(), 1);
    writer.seal(Offset(25), NOW).unwrap().unwrap();
    assert_eq!(writer.covered(), Offset(30));
    assert_eq!(all(&archive), [small(1), small(2), small(3)]);
}

#[test]
fn a_hole_that_nothing_can_be_gathered_for_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    flip_last_byte(&segment_paths(directory.path())[0]);
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    assert_eq!(writer.covered(), Offset(0));
    writer.insert(small(2));
    assert!(writer.seal(Offset(10), NOW).unwrap().is_some());
    assert_eq!(writer.covered(), Offset(30));
    drop((writer, archive));
    let (archive, _) = open(directory.path());
    assert_eq!(archive.writer(ShardId(0)).covered(), Offset(30));
    assert_eq!(all(&archive), [small(2), small(3)]);
}

#[test]
fn leftovers_of_a_crash_are_removed_and_strangers_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    let shard = directory.path().join("traces/0");
    let leftover = shard.join("00000000000000000030-00000000000000000040.seg.tmp");
    fs::write(&leftover, b"half a segment").unwrap();
    fs::write(shard.join("notes.txt"), b"mine").unwrap();
    let (_archive, report) = open(directory.path());
    assert_eq!((report.segments, report.quarantined.len()), (3, 0));
    assert!(!leftover.exists());
    assert!(shard.join("notes.txt").exists());
}

#[test]
fn a_segment_under_a_wrong_name_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    let shard = directory.path().join("traces/0");
    let wrong = shard.join("00000000000000000020-00000000000000000099.seg");
    fs::rename(&segment_paths(directory.path())[2], wrong).unwrap();
    let (archive, report) = open(directory.path());
    assert_eq!(report.quarantined.len(), 1);
    assert_eq!(archive.writer(ShardId(0)).covered(), Offset(20));
}

#[test]
fn a_segment_of_a_newer_version_is_skipped_and_named() {
    let directory = tempfile::tempdir().unwrap();
    three_segments(directory.path());
    let path = segment_paths(directory.path())[2].clone();
    let mut bytes = fs::read(&path).unwrap();
    let trailer = bytes.len() - 32;
    bytes[trailer + 16] = 2;
    let checksum = crc32c::crc32c(&bytes[trailer..trailer + 20]);
    bytes[trailer + 20..trailer + 24].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let (archive, report) = open(directory.path());
    assert_eq!((report.segments, report.quarantined.len()), (2, 0));
    assert_eq!(report.skipped[0].path, path);
    assert_eq!(archive.stats().skipped, 1);
    assert_eq!(archive.writer(ShardId(0)).covered(), Offset(30));
}

#[test]
fn a_failed_seal_leaves_everything_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    writer.insert(small(1));
    let shard = directory.path().join("traces/0");
    fs::remove_dir(&shard).unwrap();
    let error = writer.seal(Offset(5), NOW).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!((writer.covered(), writer.open_rows()), (Offset(0), 1));
    writer.insert(small(2));
    fs::create_dir(&shard).unwrap();
    writer.seal(Offset(6), NOW).unwrap().unwrap();
    assert_eq!((writer.covered(), writer.open_rows()), (Offset(6), 0));
    assert_eq!(all(&archive), [small(1), small(2)]);
    assert!(writer.seal(Offset(5), NOW).is_err());
    assert!(writer.seal(Offset(7), NOW).unwrap().is_none());
}

#[test]
fn segments_of_a_former_shard_stay_readable() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(1));
    writer.insert(small(1));
    writer.seal(Offset(1), NOW).unwrap().unwrap();
    drop((writer, archive));
    let (archive, _) = Archive::open(options(directory.path()), 1).unwrap();
    assert_eq!(archive.writer(ShardId(0)).find(&Tenant::default(), id(1)).unwrap(), [small(1)]);
}

#[test]
fn an_open_segment_says_when_it_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let mut few_terms = options(directory.path());
    few_terms.open_terms_max = 100;
    let (archive, _) = Archive::open(few_terms, 1).unwrap();
    let mut writer = archive.writer(ShardId(0));
    let before = writer.open_bytes();
    (0..=255)
        .take_while(|&number| {
            writer.insert(small(number));
            !writer.is_full()
        })
        .for_each(drop);
    assert!(writer.is_full());
    assert!((80..100).contains(&writer.open_rows()), "{}", writer.open_rows());
    assert!(writer.open_bytes() > before + 100 * 100);
}

#[test]
#[should_panic(expected = "has a writer already")]
fn a_shard_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let _first = archive.writer(ShardId(0));
    let _second = archive.writer(ShardId(0));
}
