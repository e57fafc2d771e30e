//! Readers beside the writer: a fragment is seen exactly once from its insertion on, also while it moves into a file.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use store_model::{Offset, ShardId, Tenant, UnixNanos};

use crate::fixture::{TestSpan, all, fragment, id, open, small};
use ingest_otlp::messages::any_value::Value;
use store_archive::Term;

#[test]
fn a_fragment_is_seen_exactly_once_while_segments_are_sealed() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    let (inserted, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let before = inserted.load(Ordering::Acquire);
                    let found = all(&archive);
                    let after = inserted.load(Ordering::Acquire);
                    // One more may have been inserted and not counted yet.
                    assert!((before..=after + 1).contains(&found.len()), "{before} {} {after}", found.len());
                    assert!(found.is_sorted_by(|a, b| a.trace_id < b.trace_id));
                }
            });
        }
        for number in 0..=255u8 {
            writer.insert(small(number));
            inserted.fetch_add(1, Ordering::AcqRel);
            if number % 16 == 7 {
                writer.seal(Offset(u64::from(number)), UnixNanos(1)).unwrap().unwrap();
            }
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(all(&archive).len(), 256);
}

#[test]
fn fragments_are_added_while_another_thread_seals() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    for round in 0..20u8 {
        writer.insert(small(round * 4));
        let to = Offset(u64::from(round) + 1);
        let sealing = writer.begin_seal(to).unwrap().unwrap();
        std::thread::scope(|scope| {
            let sealed = scope.spawn(|| sealing.seal(UnixNanos(1)));
            (1..4).for_each(|number| writer.insert(small(round * 4 + number)));
            assert_eq!(all(&archive).len(), usize::from(round + 1) * 4);
            sealed.join().unwrap().unwrap();
        });
        assert_eq!((writer.covered(), writer.open_rows()), (to, 3));
        assert!(writer.find(&Tenant::default(), id(round * 4)).unwrap().len() == 1);
    }
    drop((writer, archive));
    // What was open is gathered again; everything else is in files.
    assert_eq!(all(&open(directory.path()).0).len(), 1 + 19 * 4);
}

#[test]
fn a_huge_trace_is_indexed_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, _) = open(directory.path());
    let mut writer = archive.writer(ShardId(0));
    let span = |number| TestSpan {
        attributes: vec![("number".to_owned(), Value::IntValue(number))],
        ..TestSpan::default()
    };
    let spans: Vec<TestSpan> = (0..20_000).map(span).collect();
    let huge = fragment(&Tenant::default(), id(1), 1, &spans);
    writer.insert(huge.clone());
    for sealed in [false, true] {
        if sealed {
            writer.seal(Offset(1), UnixNanos(1)).unwrap().unwrap();
        }
        let snapshot = archive.snapshot();
        let segment = &snapshot.segments()[0];
        for number in [0, 9_999, 19_999] {
            let value = number.to_string();
            let term = Term::Attribute { key: b"number", value: value.as_bytes() };
            assert_eq!(segment.rows(&Tenant::default(), &[term]).unwrap(), [0], "{number}");
        }
        assert_eq!(segment.fragment(0).unwrap(), huge);
    }
}
