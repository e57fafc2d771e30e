//! Where the bodies of a run come from: templates patched in place, or bodies compressed beforehand.
//!
//! A compressed body cannot be patched, so ids and times are fixed when it is compressed. Three ways, and the result
//! says which was taken: a pool made before the run that the run ends with; the same pool used again and again, with the
//! same trace ids; or compression of every body while sending, at the generator's cost.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use flate2::write::GzEncoder;

use crate::clock;
use crate::error::Error;
use crate::plan::Plan;
use crate::sender::Compression;
use crate::template::{GRPC_PREFIX, write_prefix};

/// A pool beyond this would push out what is measured.
const POOL_BYTES_MAX: u64 = 4 << 30;

/// Bodies compressed before the run.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) groups: Vec<PooledGroup>,
}

/// A group of a pool, and its moment.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PooledGroup {
    pub(crate) base_unix_nanos: u64,
    pub(crate) bodies: Vec<Bytes>,
}

impl Pool {
    /// Compresses groups 0 to `count` on every processor there is.
    ///
    /// # Errors
    /// [`Error::System`] when a body cannot be compressed, [`Error::Options`] when the pool would be too large.
    pub(crate) fn build(
        plan: &Plan,
        count: u64,
        compression: Compression,
        level: u32,
    ) -> Result<Self, Error> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let next = AtomicU64::new(0);
        let bytes = AtomicU64::new(0);
        let work = || -> Result<Vec<(u64, PooledGroup)>, Error> {
            let mut made = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(made);
                }
                let group = compress_group(plan, number, compression, level)?;
                let added: usize = group.bodies.iter().map(Bytes::len).sum();
                if bytes.fetch_add(added as u64, Ordering::Relaxed) > POOL_BYTES_MAX {
                    return Err(Error::Options(
                        "the pool of compressed bodies passes 4 GiB: ask for fewer".to_owned(),
                    ));
                }
                made.push((number, group));
            }
        };
        let parts: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(Err(Error::ThreadLost))).collect()
        });
        let mut groups: Vec<PooledGroup> = Vec::new();
        groups.resize_with(usize::try_from(count).unwrap_or(0), PooledGroup::default);
        for part in parts {
            for (number, group) in part? {
                if let Some(place) = usize::try_from(number).ok().and_then(|index| groups.get_mut(index)) {
                    *place = group;
                }
            }
        }
        Ok(Self { groups })
    }

    fn group(&self, number: u64) -> &PooledGroup {
        &self.groups[usize::try_from(number % self.groups.len() as u64).unwrap_or(0)]
    }

    /// How many groups it holds.
    pub(crate) fn len(&self) -> u64 {
        self.groups.len() as u64
    }
}

fn compress_group(
    plan: &Plan,
    number: u64,
    compression: Compression,
    level: u32,
) -> Result<PooledGroup, Error> {
    let base_unix_nanos = clock::unix_nanos();
    let bodies = (0..plan.bodies_per_group())
        .map(|body| compress(&plan.body(number, body, base_unix_nanos), compression, level))
        .collect::<Result<_, _>>()?;
    Ok(PooledGroup { base_unix_nanos, bodies })
}

/// Compresses what stands behind the gRPC prefix of `body` and puts a prefix before it.
fn compress(body: &[u8], compression: Compression, level: u32) -> Result<Bytes, Error> {
    let message = &body[GRPC_PREFIX..];
    let failed = |source| Error::System { what: "compress a body", source };
    let mut out = vec![0; GRPC_PREFIX];
    match compression {
        Compression::None => out.extend_from_slice(message),
        Compression::Gzip => out = gzip(out, message, level).map_err(failed)?,
        Compression::Zstd => {
            let level = i32::try_from(level).unwrap_or(3);
            out.extend(zstd::bulk::compress(message, level).map_err(failed)?);
        }
    }
    write_prefix(&mut out, compression != Compression::None);
    Ok(out.into())
}

fn gzip(out: Vec<u8>, message: &[u8], level: u32) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(out, flate2::Compression::new(level));
    encoder.write_all(message)?;
    encoder.finish()
}

/// How the threads of one run get their bodies.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Patched in place, plain.
    Patched,
    /// Patched and compressed one by one.
    Compressed {
        /// How.
        compression: Compression,
        /// How hard.
        level: u32,
    },
    /// From a pool.
    Pooled(Arc<Pool>),
}

impl Source {
    /// As results say it.
    pub(crate) fn describe(&self, groups_sent: u64) -> &'static str {
        match self {
            Self::Patched => "patched in place",
            Self::Compressed { .. } => "compressed while sending",
            Self::Pooled(pool) if groups_sent > pool.len() => "pool, used more than once",
            Self::Pooled(_) => "pool, each body once",
        }
    }
}

/// One thread's supply.
pub(crate) struct Supply {
    plan: Arc<Plan>,
    source: Source,
    /// By template, then by body: copies to patch, the one that was used longest ago in front. There come to be as many as
    /// are under way at once, since a body belongs to its request until it is answered.
    slots: Vec<Vec<VecDeque<Bytes>>>,
}

impl Supply {
    /// A supply with its own templates.
    pub(crate) fn new(plan: Arc<Plan>, source: Source) -> Self {
        let slots = if matches!(source, Source::Pooled(_)) { Vec::new() } else { plan.slots() };
        let alone = |body| VecDeque::from([body]);
        let slots = slots.into_iter().map(|bodies| bodies.into_iter().map(alone).collect()).collect();
        Self { plan, source, slots }
    }

    /// The group whose traces number `number` has, and its moment: `now` unless it was fixed beforehand.
    pub(crate) fn moment(&self, number: u64, now_unix_nanos: u64) -> (u64, u64) {
        match &self.source {
            Source::Pooled(pool) => (number % pool.len(), pool.group(number).base_unix_nanos),
            Source::Patched | Source::Compressed { .. } => (number, now_unix_nanos),
        }
    }

    /// Body `body` of group `number` at its moment.
    ///
    /// # Errors
    /// [`Error::System`] when it cannot be compressed.
    pub(crate) fn body(&mut self, number: u64, body: usize, base_unix_nanos: u64) -> Result<Bytes, Error> {
        let patched = |plan: &Plan, slots: &mut Vec<Vec<VecDeque<Bytes>>>| {
            let copies = &mut slots[plan.template_index(number)][body];
            // Refilling one that is still being sent copies it: keep both.
            let busy = copies.front().filter(|copy| !copy.is_unique()).cloned();
            let mut copy = busy.or_else(|| copies.pop_front()).unwrap_or_default();
            let filled = plan.refill(number, body, base_unix_nanos, &mut copy);
            copies.push_back(copy);
            filled
        };
        match &self.source {
            Source::Patched => Ok(patched(&self.plan, &mut self.slots)),
            Source::Compressed { compression, level } => {
                compress(&patched(&self.plan, &mut self.slots), *compression, *level)
            }
            Source::Pooled(pool) => Ok(pool.group(number).bodies[body].clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::options;
    use crate::shape::Shape;
    use std::io::Read;

    fn inflate(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(&body[GRPC_PREFIX..]).read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn pooled_and_fresh_bodies_inflate_to_what_was_planned() {
        let plan = Arc::new(Plan::new(options(Shape::S)).unwrap());
        let pool = Arc::new(Pool::build(&plan, 3, Compression::Gzip, 6).unwrap());
        let mut pooled = Supply::new(Arc::clone(&plan), Source::Pooled(pool));
        let (number, base) = pooled.moment(4, 77);
        assert_eq!(number, 1);
        let body = pooled.body(number, 0, base).unwrap();
        assert_eq!(inflate(&body), plan.body(1, 0, base)[GRPC_PREFIX..]);
        assert_eq!(body[0], 1);
        assert_eq!(u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize, body.len() - 5);

        let fresh = Source::Compressed { compression: Compression::Gzip, level: 1 };
        let mut fresh = Supply::new(Arc::clone(&plan), fresh);
        assert_eq!(fresh.moment(4, 77_000_000_000), (4, 77_000_000_000));
        let body = fresh.body(4, 0, 77_000_000_000).unwrap();
        assert_eq!(inflate(&body), plan.body(4, 0, 77_000_000_000)[GRPC_PREFIX..]);
    }

    #[test]
    fn bodies_are_copied_only_while_all_copies_are_under_way() {
        let plan = Arc::new(Plan::new(options(Shape::S)).unwrap());
        let rounds = plan.groups.len() as u64;
        let mut supply = Supply::new(Arc::clone(&plan), Source::Patched);
        let mut take = |round: u64| {
            let body = supply.body(round * rounds, 0, 77_000_000_000 + round).unwrap();
            assert_eq!(body[..], plan.body(round * rounds, 0, 77_000_000_000 + round)[..]);
            (body, supply.slots[0][0].len())
        };
        let (first, copies) = take(0);
        assert_eq!(copies, 1);
        let (second, copies) = take(1);
        assert_eq!(copies, 2);
        assert_ne!(first, second);
        let places = [first.as_ptr(), second.as_ptr()];
        drop((first, second));
        for round in 2..6 {
            let (body, copies) = take(round);
            assert_eq!(copies, 2);
            assert!(places.contains(&body.as_ptr()));
        }
    }

    #[test]
    fn zstd_bodies_come_back() {
        let body = compress(b"12345hello hello hello", Compression::Zstd, 3).unwrap();
        assert_eq!(zstd::bulk::decompress(&body[GRPC_PREFIX..], 100).unwrap(), b"hello hello hello");
    }
}
