//! Which segments may go, and the hand that removes them. Looks at no clock, and never at what a segment holds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use store_model::{Offset, UnixNanos};
use tracing::warn;

use crate::disk::{Disk, DiskFile, remove_name};
use crate::error::Error;
use crate::format::FileName;
use crate::reader::{Reader, SegmentInfo};
use crate::view::Shared;

/// 2 to 3 ms of a disk that is told of what is free.
const STEP_BYTES: u64 = 16 << 20;

/// How long and how much a partition keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// A segment whose newest commit is older than this goes.
    pub age_max: Duration,
    /// Beyond this many bytes the oldest segments go.
    pub bytes_max: u64,
}

/// The base offsets of the segments that go, oldest first.
///
/// Never chosen: a segment with a record at or above `floor`, which somebody still needs; the newest segment with a record,
/// whose end is how the partition remembers its offsets; an open segment; a quarantined one, which a person must look at.
#[must_use]
pub fn choose(segments: &[SegmentInfo], retention: &Retention, floor: Offset, now: UnixNanos) -> Vec<Offset> {
    let Retention { age_max, bytes_max } = *retention;
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut chosen = Vec::new();
    // One without a record remembers nothing: it goes when the partition is opened.
    let holds_records = |segment: &SegmentInfo| segment.base_offset < segment.end_offset;
    let Some(newest) = segments.iter().rposition(holds_records) else { return chosen };
    for segment in &segments[..newest] {
        let over = now.since(segment.newest_at) > age_max || bytes > bytes_max;
        // Those behind it are younger, and hold higher offsets.
        if !over || segment.end_offset > floor || !segment.sealed {
            break;
        }
        if segment.quarantined.is_none() {
            bytes -= segment.bytes;
            chosen.push(segment.base_offset);
        }
    }
    chosen
}

/// Whether more than [`Retention::bytes_max`] is left of these segments once the `chosen` ones are gone: the budget can
/// then only be met by not taking more in.
#[must_use]
pub fn over_budget(segments: &[SegmentInfo], chosen: &[Offset], retention: &Retention) -> bool {
    let stays = |segment: &&SegmentInfo| !chosen.contains(&segment.base_offset);
    segments.iter().filter(stays).map(|segment| segment.bytes).sum::<u64>() > retention.bytes_max
}

/// Removes segments of a partition beside its writer, which need not wait for that. There must be no other of the same
/// partition; the caller sees to that.
#[derive(Debug)]
pub struct Remover<D: Disk> {
    reader: Reader<D>,
    /// How much of a removed segment goes back at a time.
    pub(crate) step_bytes: u64,
}

impl<D: Disk> Remover<D> {
    pub(crate) fn new(reader: Reader<D>) -> Self {
        Self { reader, step_bytes: STEP_BYTES }
    }

    /// What there is to remove.
    #[must_use]
    pub fn reader(&self) -> &Reader<D> {
        &self.reader
    }

    /// Removes segments by their base offsets; the newest with a record, whose end is how the partition remembers its
    /// offsets, and what the writer began behind it are passed over. Returns the bytes set free.
    ///
    /// Their space goes back in steps, with a `pause` after each: a file system that discards what it frees
    /// (`mount -o discard`) has the disk busy meanwhile, 40 ms for a whole segment, and commits wait for it. Who scans a
    /// segment that goes away finds itself at the first that is kept.
    ///
    /// # Errors
    /// [`Error::Io`]; what was removed before stays removed.
    pub fn remove(&self, chosen: &[Offset], pause: &mut dyn FnMut()) -> Result<u64, Error> {
        let Shared { disk, .. } = &*self.reader.shared;
        let mut freed = 0;
        for &base in chosen {
            let found = {
                let view = self.reader.shared.look();
                let newest = view.segments.iter().rfind(|segment| segment.base < segment.end);
                let segment = view.segment(base).filter(|_| newest.is_some_and(|newest| base < newest.base));
                segment.map(|it| (Arc::clone(&it.path), it.bytes, it.quarantined.is_some()))
            };
            let Some((path, bytes, is_marked)) = found else { continue };
            // Only for its space: without it everything is given back at once.
            let file = disk.open(&path).ok();
            self.remove_one(base, &path, is_marked)?;
            freed += bytes;
            file.into_iter().for_each(|file| self.give_back(&file, pause));
        }
        Ok(freed)
    }

    fn remove_one(&self, base: Offset, path: &Path, is_marked: bool) -> Result<(), Error> {
        let Shared { disk, directory, .. } = &*self.reader.shared;
        // The name goes first: were the view first, a failure would leave a segment that nobody knows.
        remove_name(disk, path).map_err(|error| Error::io(path, "remove", error))?;
        if is_marked {
            let marker = directory.join(FileName::Quarantined(base).to_string());
            if let Err(error) = remove_name(disk, &marker) {
                warn!(path = %marker.display(), %error, "marker of a removed segment stays");
            }
        }
        self.reader.shared.change().segments.retain(|segment| segment.base != base);
        // One by one: came an older segment back after a crash and a younger not, records would seem lost.
        disk.sync_dir(directory).map_err(|error| Error::io(directory, "sync", error))
    }

    /// Gives back the space of a file without a name, from its end on. A courtesy: what fails here is done when the file is
    /// closed.
    fn give_back(&self, file: &D::File, pause: &mut dyn FnMut()) {
        let mut length = file.len().unwrap_or(0);
        while length > self.step_bytes {
            length -= self.step_bytes;
            if file.set_len(length).is_err() {
                return;
            }
            pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::sim::SimDisk;
    use crate::{PartitionOptions, Stage, Sync, Writer};

    fn segments(count: u64) -> Vec<SegmentInfo> {
        let segment = |n: u64| SegmentInfo {
            base_offset: Offset(n * 10),
            end_offset: Offset(n * 10 + 10),
            bytes: 100,
            newest_at: UnixNanos(n * 1000),
            sealed: n + 1 < count,
            quarantined: None,
            path: n.to_string().into(),
        };
        (0..count).map(segment).collect()
    }

    const ALL: Offset = Offset(u64::MAX);
    const NONE: Retention = Retention { age_max: Duration::MAX, bytes_max: u64::MAX };

    #[test]
    fn the_oldest_go_until_the_budget_is_met() {
        let retention = Retention { bytes_max: 250, ..NONE };
        assert_eq!(choose(&segments(5), &retention, ALL, UnixNanos(0)), [Offset(0), Offset(10), Offset(20)]);
        assert!(over_budget(&segments(5), &[Offset(0), Offset(10)], &retention));
        assert!(!over_budget(&segments(5), &[Offset(0), Offset(10), Offset(20)], &retention));
    }

    #[test]
    fn the_old_go_and_the_newest_stays_however_old() {
        let retention = Retention { age_max: Duration::from_nanos(1500), ..NONE };
        assert_eq!(choose(&segments(4), &retention, ALL, UnixNanos(3000)), [Offset(0), Offset(10)]);
        assert_eq!(choose(&segments(4), &retention, ALL, UnixNanos(u64::MAX)).len(), 3);
        assert_eq!(choose(&segments(1), &retention, ALL, UnixNanos(u64::MAX)), []);
        assert_eq!(choose(&[], &retention, ALL, UnixNanos(u64::MAX)), []);
    }

    #[test]
    fn a_quarantined_segment_is_passed_over() {
        let retention = Retention { bytes_max: 250, ..NONE };
        let mut segments = segments(5);
        segments[1].quarantined = Some("damaged".to_owned());
        assert_eq!(choose(&segments, &retention, ALL, UnixNanos(0)), [Offset(0), Offset(20), Offset(30)]);
    }

    #[test]
    fn who_scans_a_segment_that_goes_away_goes_on_with_what_is_kept() {
        let disk = SimDisk::new(1);
        let options = PartitionOptions {
            directory: "/data/p".into(),
            segment_bytes_max: 64 << 10,
            ..PartitionOptions::default()
        };
        let (mut writer, _) = Writer::open(disk, options, Offset(0), UnixNanos(1)).unwrap();
        for _ in 0..30 {
            writer.append([Bytes::from(vec![7; 9_000]), Bytes::new()]);
            writer.commit(Sync::Durable, UnixNanos(2)).unwrap();
        }
        let segments = writer.reader().segments();
        let mut remover = writer.remover();
        remover.step_bytes = 4 << 10;
        let mut scan = writer.reader().scan(Offset(0));
        assert_eq!(scan.next().unwrap().unwrap().0, Offset(0));
        let mut steps = 0;
        let mut next = None;
        let freed = remover.remove(&[Offset(0)], &mut || {
            steps += 1;
            // At half of it the next commits of the scan are gone.
            if steps == 14 {
                next = scan.next();
            }
        });
        assert_eq!((freed.unwrap(), steps), (segments[0].bytes, segments[0].bytes.div_ceil(4 << 10) - 1));
        assert_eq!(next.unwrap().unwrap().0, segments[1].base_offset);
        assert!(writer.reader().segments().iter().all(|segment| segment.quarantined.is_none()));
    }

    #[test]
    fn offsets_are_remembered_while_the_next_segment_holds_no_record() {
        let disk = SimDisk::new(1);
        let options = PartitionOptions { directory: "/data/p".into(), ..PartitionOptions::default() };
        let options = PartitionOptions { segment_bytes_max: 8 << 10, ..options };
        let (mut writer, _) = Writer::open(disk.clone(), options.clone(), Offset(0), UnixNanos(1)).unwrap();
        let mut stage = Stage::default();
        for _ in 0..3 {
            stage.push(b"record", &Bytes::new());
            writer.commit_stage(&mut stage, Sync::Durable, UnixNanos(2)).unwrap();
        }
        stage.push(b"record", &Bytes::new());
        // Makes the next segment, which holds nothing yet when retention comes, and the machine goes down.
        let _flight = writer.begin(&mut stage, UnixNanos(3)).unwrap();
        let reader = writer.reader();
        let all = Retention { age_max: Duration::ZERO, bytes_max: 0 };
        let chosen = choose(&reader.segments(), &all, ALL, UnixNanos(u64::MAX));
        assert_eq!(chosen, [Offset(0), Offset(1)]);
        writer.remover().remove(&[Offset(0), Offset(1), Offset(2), Offset(3)], &mut || ()).unwrap();
        assert_eq!(reader.segments().len(), 2);
        disk.crash();
        disk.restart();
        let (_, recovery) = Writer::open(disk, options, Offset(0), UnixNanos(4)).unwrap();
        assert_eq!((recovery.end_offset, recovery.quarantined), (Offset(3), Vec::new()));
    }

    proptest! {
        #[test]
        fn nothing_at_or_above_the_floor_is_chosen(
            count in 0u64..20, floor in 0u64..250, age in 0u64..20_000, bytes_max in 0u64..2500, now in 0u64..40_000,
        ) {
            let segments = segments(count);
            let retention = Retention { age_max: Duration::from_nanos(age), bytes_max };
            for base in choose(&segments, &retention, Offset(floor), UnixNanos(now)) {
                let segment = segments.iter().find(|segment| segment.base_offset == base).unwrap();
                prop_assert!(segment.end_offset <= Offset(floor) && segment.sealed);
            }
        }
    }
}
