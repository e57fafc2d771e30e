//! Expiry takes whole segments, and takes nothing from those who read.

use std::time::Duration;

use store_archive::Archive;
use store_model::{Offset, ShardId, Tenant, UnixNanos};

use crate::fixture::{all, id, open, segment_paths, small};

const DAY: Duration = Duration::from_secs(86_400);

fn at(day: u32) -> UnixNanos {
    UnixNanos(u64::try_from((DAY * day).as_nanos()).unwrap())
}

/// Shard 0 with segments sealed on days 1, 2 and 3.
fn three_days(archive: &Archive) {
    let mut writer = archive.writer(ShardId(0));
    for day in 1..=3u8 {
        writer.insert(small(day));
        writer.seal(Offset(u64::from(day) * 10), at(u32::from(day))).unwrap().unwrap();
    }
}

#[test]
fn old_segments_go_and_their_readers_keep_reading() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    three_days(&archive);
    let before = archive.snapshot();
    let expired = archive.expire(DAY, u64::MAX, at(3)).unwrap();
    assert_eq!((expired.segments, expired.rows), (1, 1));
    assert_eq!(all(&archive), [small(2), small(3)]);
    assert_eq!(segment_paths(directory.path()).len(), 2);
    assert_eq!(before.find(&Tenant::default(), id(1)).unwrap(), [small(1)]);
}

#[test]
fn the_oldest_go_until_the_budget_holds() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    three_days(&archive);
    let stats = archive.stats();
    assert_eq!((stats.segments, stats.rows), (3, 3));
    let expired = archive.expire(DAY * 100, stats.bytes - 1, at(3)).unwrap();
    assert_eq!(expired.segments, 1);
    assert_eq!(archive.stats().bytes, stats.bytes - expired.bytes);
    assert_eq!(all(&archive), [small(2), small(3)]);
}

#[test]
fn what_has_expired_is_not_gathered_again() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    three_days(&archive);
    for _ in 0..2 {
        archive.expire(DAY, u64::MAX, at(50)).unwrap();
        assert_eq!(all(&archive), []);
        assert_eq!(segment_paths(directory.path()).len(), 1, "one marker per shard");
    }
    drop(archive);
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    assert_eq!(writer.covered(), Offset(30));
    writer.insert(small(4));
    writer.seal(Offset(40), at(51)).unwrap().unwrap();
    archive.expire(DAY, u64::MAX, at(52)).unwrap();
    assert_eq!(segment_paths(directory.path()).len(), 1, "the marker has done its work");
    assert_eq!(all(&archive), [small(4)]);
    drop((writer, archive));
    assert_eq!(open(directory.path()).0.writer(ShardId(0)).covered(), Offset(40));
}
