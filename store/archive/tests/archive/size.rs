//! Bytes a span on disk, index included, of traffic like that of Jaeger's generator. `SPANS=100000` makes it large; run it
//! with `--nocapture` to see the numbers.

use ingest_otlp::messages::any_value::Value;
use store_archive::{Archive, ArchiveOptions, SegmentView, Term, TermKind};
use store_model::{Offset, ShardId, Tenant, TraceId, UnixNanos};

use crate::fixture::{TestSpan, fragment};

const SPANS_PER_TRACE: u64 = 10;

/// A generator of numbers that look random and are the same in every run.
struct Mixer(u64);

impl Mixer {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB)
    }
}

/// Eleven attributes whose keys and values count up modulo 97 and 1,000.
fn spans(first: u64) -> Vec<TestSpan> {
    let attributes =
        |span: u64| (span * 11..span * 11 + 11).map(|n| (format!("key_{}", n % 97), value(n % 1_000)));
    let one = |span| TestSpan {
        service: format!("service-{}", span % 10),
        operation: format!("operation-{}", span % 50),
        kind: 2,
        status: i32::from(span % 50 == 0) * 2,
        attributes: attributes(span).collect(),
    };
    (first..first + SPANS_PER_TRACE).map(one).collect()
}

fn value(number: u64) -> Value {
    Value::StringValue(format!("value_{number}"))
}

fn report(segment: &SegmentView, spans: u64, raw: u64, file: u64) -> String {
    let mut keys = 0;
    let mut count = |_: &[u8]| {
        keys += 1;
        true
    };
    segment.terms(&Tenant::default(), TermKind::Keys, &mut count).unwrap();
    format!("{spans} spans, {} raw bytes a span, {} on disk, {keys} keys", raw / spans, file / spans)
}

#[test]
fn a_span_takes_few_bytes_on_disk() {
    let wanted: u64 = std::env::var("SPANS").ok().and_then(|spans| spans.parse().ok()).unwrap_or(10_000);
    let directory = tempfile::tempdir().unwrap();
    let options = ArchiveOptions { directory: directory.path().join("traces"), ..ArchiveOptions::default() };
    let (archive, _) = Archive::open(options, 1).unwrap();
    let mut writer = archive.writer(ShardId(0));
    let mut random = Mixer(1);
    let mut raw = 0;
    for trace in 0..wanted / SPANS_PER_TRACE {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random.next().to_be_bytes());
        id[8..].copy_from_slice(&random.next().to_be_bytes());
        let start = 1_800_000_000_000_000_000 + trace * 1_000_000 + random.next() % 1_000_000;
        let fragment = fragment(&Tenant::default(), TraceId(id), start, &spans(trace * SPANS_PER_TRACE));
        raw += fragment.otlp.len() as u64;
        writer.insert(fragment);
    }
    let memory = writer.open_bytes();
    let path = writer.seal(Offset(1), UnixNanos(1)).unwrap().unwrap();
    let file = std::fs::metadata(path).unwrap().len();
    let snapshot = archive.snapshot();
    let segment = &snapshot.segments()[0];
    println!("{}, {memory} bytes open", report(segment, wanted, raw, file));
    assert!(file < raw / 3, "{file} bytes for {raw}");
    let terms = [Term::Service(b"service-3"), Term::Attribute { key: b"key_5", value: b"value_5" }];
    assert!(!segment.rows(&Tenant::default(), &terms).unwrap().is_empty());
}
