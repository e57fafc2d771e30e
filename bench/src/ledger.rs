//! What was sent and what was acknowledged, compactly enough for any run: bodies follow from the plan's options and a
//! group's moment, so a ledger holds those and two bits a request, and no span.
//!
//! ```text
//! magic "SLBXLEDG"        8 bytes
//! version                 u32, little endian like everything below
//! length of the header    u32
//! header                  JSON: plan options, tenant
//! records                 each: group u64, base u64, sent bits u64 x n, acknowledged bits u64 x n
//!                         n = bodies of a group / 64, rounded up; bit b stands for body b
//! ```
//! A record cut short at the end is left out: the run that wrote it was stopped there.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::plan::{Plan, PlanOptions};

const MAGIC: &[u8; 8] = b"SLBXLEDG";

/// Raised whenever the same options would give other bytes: an older ledger then tells of spans that this version
/// cannot make again.
const VERSION: u32 = 1;

/// Why a file is not taken for a ledger.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// Other bytes.
    #[error("it is not a ledger")]
    NotALedger,
    /// Another version of the generator.
    #[error("its version is {found}, this program makes the spans of version {VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// The header is damaged.
    #[error("its header is damaged")]
    Header(#[from] serde_json::Error),
}

/// What holds for the whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// What every body follows from.
    pub(crate) plan: PlanOptions,
    /// Whose spans.
    pub(crate) tenant: String,
}

/// What became of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Its number.
    pub(crate) group: u64,
    /// Its moment.
    pub(crate) base_unix_nanos: u64,
    /// By body: it left this program, whole or in part.
    pub(crate) sent: Vec<bool>,
    /// By body: the appliance took it over.
    pub(crate) acknowledged: Vec<bool>,
}

/// The deliveries of one run.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// What holds for all.
    pub(crate) header: Header,
    /// In no order.
    pub(crate) deliveries: Vec<Delivery>,
}

/// Deliveries in the form of the file, as the generator collects them.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    words: Vec<u64>,
}

impl Notes {
    /// Adds one group.
    pub(crate) fn push(&mut self, delivery: &Delivery) {
        self.words.extend([delivery.group, delivery.base_unix_nanos]);
        self.words.extend(pack(&delivery.sent));
        self.words.extend(pack(&delivery.acknowledged));
    }

    /// Adds what another thread noted.
    pub(crate) fn append(&mut self, other: Self) {
        self.words.extend(other.words);
    }

    /// Writes the ledger.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be written.
    pub(crate) fn write(&self, header: &Header, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let file = fs::File::create(path).map_err(failed)?;
        let mut out = io::BufWriter::new(file);
        self.encode(header, &mut out).and_then(|()| out.flush()).map_err(failed)
    }

    fn encode(&self, header: &Header, out: &mut impl Write) -> io::Result<()> {
        let header = serde_json::to_vec(header)?;
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        out.write_all(&header)?;
        self.words.iter().try_for_each(|word| out.write_all(&word.to_le_bytes()))
    }
}

impl Ledger {
    /// Reads a ledger and builds its plan.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, [`Error::Ledger`] when it is none of this version.
    pub(crate) fn read(path: &Path) -> Result<(Self, Plan), Error> {
        let bytes = fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let damaged = |source| Error::Ledger { path: path.to_owned(), source };
        let (header, records) = split(&bytes).map_err(damaged)?;
        let header: Header = serde_json::from_slice(header).map_err(|e| damaged(e.into()))?;
        let plan = Plan::new(header.plan.clone())?;
        let deliveries = deliveries(records, plan.bodies_per_group());
        Ok((Self { header, deliveries }, plan))
    }
}

fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(Unreadable::NotALedger)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or(Unreadable::NotALedger)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(Unreadable::NotALedger)?;
    if magic != MAGIC {
        return Err(Unreadable::NotALedger);
    }
    let found = u32::from_le_bytes(*version);
    if found != VERSION {
        return Err(Unreadable::Version { found });
    }
    rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(Unreadable::NotALedger)
}

fn deliveries(records: &[u8], bodies: usize) -> Vec<Delivery> {
    let mask = bodies.div_ceil(64);
    let words: Vec<u64> =
        records.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect();
    let record = |words: &[u64]| Delivery {
        group: words[0],
        base_unix_nanos: words[1],
        sent: unpack(&words[2..2 + mask], bodies),
        acknowledged: unpack(&words[2 + mask..], bodies),
    };
    words.chunks_exact(2 + 2 * mask).map(record).collect()
}

fn pack(bits: &[bool]) -> impl Iterator<Item = u64> {
    bits.chunks(64).map(|bits| bits.iter().rev().fold(0, |word, &bit| word << 1 | u64::from(bit)))
}

fn unpack(words: &[u64], count: usize) -> Vec<bool> {
    (0..count).map(|bit| words[bit / 64] >> (bit % 64) & 1 == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::options;
    use crate::shape::Shape;

    fn delivery(group: u64, bodies: usize) -> Delivery {
        let bit = |body: usize, step: usize| body.is_multiple_of(step);
        Delivery {
            group,
            base_unix_nanos: group * 1_000,
            sent: (0..bodies).map(|body| bit(body, 2)).collect(),
            acknowledged: (0..bodies).map(|body| bit(body, 4)).collect(),
        }
    }

    #[test]
    fn a_ledger_comes_back_as_it_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        for spans_per_trace in [8, 50_000] {
            let path = dir.path().join(format!("{spans_per_trace}.ledger"));
            let plan = PlanOptions { spans_per_trace, ..options(Shape::S) };
            let header = Header { plan: plan.clone(), tenant: "default".to_owned() };
            let bodies = Plan::new(plan).unwrap().bodies_per_group();
            let expected: Vec<Delivery> = (0..10).map(|group| delivery(group, bodies)).collect();
            let mut notes = Notes::default();
            expected.iter().for_each(|delivery| notes.push(delivery));
            notes.write(&header, &path).unwrap();
            // A stopped run leaves a record cut short.
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(&[1, 2, 3]).unwrap();
            let (ledger, _plan) = Ledger::read(&path).unwrap();
            assert_eq!((ledger.header, ledger.deliveries), (header, expected));
        }
    }

    #[test]
    fn other_files_and_other_versions_are_refused() {
        let header = b"SLBXLEDG\x02\0\0\0\0\0\0\0";
        assert!(matches!(split(header), Err(Unreadable::Version { found: 2 })));
        assert!(matches!(split(b"PK"), Err(Unreadable::NotALedger)));
        assert!(matches!(split(b"SLBXLEDG\x01\0\0\0\xff\0\0\0{}"), Err(Unreadable::NotALedger)));
    }
}
