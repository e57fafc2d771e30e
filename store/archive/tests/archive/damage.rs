//! Damage is found, named and kept away from answers. It never panics and never answers wrongly.

use std::fs;

use proptest::prelude::*;
use store_archive::{Error, Term, TermKind};
use store_model::{Fragment, Offset, ShardId, Tenant, UnixNanos};

use crate::fixture::{all, id, open, segment_paths, small};

const TRACES: u8 = 40;

/// A sealed segment of several pages, as bytes.
fn sealed(directory: &std::path::Path) -> Vec<u8> {
    let (archive, _) = open(directory);
    let mut writer = archive.writer(ShardId(0));
    (0..TRACES).for_each(|number| writer.insert(small(number)));
    let path = writer.seal(Offset(1), UnixNanos(1)).unwrap().unwrap();
    fs::read(path).unwrap()
}

/// Asks everything there is to ask. What is answered must be right.
fn ask_everything(directory: &std::path::Path) -> usize {
    let (archive, report) = open(directory);
    let snapshot = archive.snapshot();
    if report.segments == 0 {
        assert_eq!((report.quarantined.len() + report.skipped.len(), snapshot.segments().len()), (1, 0));
        return 0;
    }
    let segment = &snapshot.segments()[0];
    let mut right = 0;
    for number in 0..TRACES {
        let rows = segment.find(&Tenant::default(), id(number)).unwrap();
        assert_eq!(rows.len(), 1);
        match segment.fragment(rows[0]) {
            Ok(fragment) => {
                assert_eq!(fragment, small(number));
                right += 1;
            }
            Err(error) => assert!(matches!(error, Error::DamagedPage { .. }), "{error}"),
        }
    }
    let operations = Term::Operation(b"GET /1");
    assert_eq!(segment.rows(&Tenant::default(), &[operations]).unwrap().len(), usize::from(TRACES) / 4);
    let mut count = 0;
    let mut visit = |_: &[u8]| {
        count += 1;
        true
    };
    segment.terms(&Tenant::default(), TermKind::Values { key: b"number" }, &mut visit).unwrap();
    assert_eq!(count, TRACES);
    right
}

#[test]
fn a_damaged_page_costs_its_own_rows_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = sealed(directory.path());
    bytes[3] ^= 0x10;
    fs::write(&segment_paths(directory.path())[0], bytes).unwrap();
    let right = ask_everything(directory.path());
    assert!(right > 0 && right < usize::from(TRACES), "{right} rows were read");
    let (archive, _) = open(directory.path());
    assert!(matches!(
        archive.snapshot().find(&Tenant::default(), id(0)),
        Err(Error::DamagedPage { page: 0, .. })
    ));
    assert_eq!(archive.stats().damaged_page_reads, 1);
}

#[test]
fn a_truncated_segment_is_set_aside_wherever_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = sealed(directory.path());
    let path = &segment_paths(directory.path())[0];
    for length in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        fs::write(path, &bytes[..length]).unwrap();
        assert_eq!(ask_everything(directory.path()), 0, "cut to {length} bytes");
    }
}

#[test]
fn undamaged_segments_answer_in_full() {
    let directory = tempfile::tempdir().unwrap();
    sealed(directory.path());
    assert_eq!(ask_everything(directory.path()), usize::from(TRACES));
    let expected: Vec<Fragment> = (0..TRACES).map(small).collect();
    assert_eq!(all(&open(directory.path()).0), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn altered_bytes_never_panic_and_never_answer_wrongly(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = sealed(directory.path());
        for (at, change) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= change;
        }
        fs::write(&segment_paths(directory.path())[0], bytes).unwrap();
        ask_everything(directory.path());
    }
}
