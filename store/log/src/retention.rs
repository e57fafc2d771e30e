//! Which segments may go. Decides only; [`Writer::remove`](crate::Writer::remove) does it.

use std::time::Duration;

use store_model::{Offset, UnixNanos};

use crate::reader::SegmentInfo;

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
/// Never chosen: a segment with a record at or above `floor`, which somebody still needs; the newest segment, whose
/// end is how the partition remembers its offsets; an open segment; a quarantined one, which a person must look at.
#[must_use]
pub fn choose(segments: &[SegmentInfo], retention: &Retention, floor: Offset, now: UnixNanos) -> Vec<Offset> {
    let Retention { age_max, bytes_max } = *retention;
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut chosen = Vec::new();
    let Some((_newest, older)) = segments.split_last() else { return chosen };
    for segment in older {
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

/// Whether more is kept than [`Retention::bytes_max`] allows: after everything chosen has been removed, the budget can
/// only be met by not taking more in.
#[must_use]
pub fn over_budget(segments: &[SegmentInfo], retention: &Retention) -> bool {
    segments.iter().map(|segment| segment.bytes).sum::<u64>() > retention.bytes_max
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        assert!(over_budget(&segments(5), &retention));
        assert!(!over_budget(&segments(2), &retention));
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
