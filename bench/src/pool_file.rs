//! Pools of compressed bodies in files, so that every server of a comparison gets the same ones and the compressing is
//! paid once. A file that was made with other options is made again.
//!
//! ```text
//! magic "SLBXPOOL"        8 bytes
//! length of the header    u32, little endian like everything below
//! header                  JSON: plan options, compression, level, count of groups
//! groups                  each: base u64, bodies u32, for each body: length u32, bytes
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use bytes::{Buf, Bytes};
use serde::Serialize;

use crate::error::Error;
use crate::plan::{Plan, PlanOptions};
use crate::sender::Compression;
use crate::supply::{Pool, PooledGroup};

const MAGIC: &[u8; 8] = b"SLBXPOOL";

/// What a pool follows from, but for the moments of its groups.
#[derive(Debug, Serialize)]
pub(crate) struct Contents<'a> {
    plan: &'a PlanOptions,
    compression: Compression,
    level: u32,
    groups: u64,
}

impl<'a> Contents<'a> {
    /// `groups` of `plan`, compressed so.
    pub(crate) fn new(plan: &'a Plan, groups: u64, compression: Compression, level: u32) -> Self {
        Self { plan: &plan.options, compression, level, groups }
    }
}

/// The pool in the file; if it is none of these contents, `made` and written there.
///
/// # Errors
/// [`Error::File`] when the file cannot be read or written; those of `made`.
pub(crate) fn read_or_make(
    path: &Path,
    contents: &Contents<'_>,
    made: impl FnOnce() -> Result<Pool, Error>,
) -> Result<Pool, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let header = serde_json::to_vec(contents).map_err(|cause| failed(cause.into()))?;
    match fs::read(path) {
        Ok(bytes) => {
            if let Some(groups) = decode(bytes.into(), &header) {
                return Ok(Pool { groups });
            }
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        Err(cause) => return Err(failed(cause)),
    }
    let pool = made()?;
    let file = fs::File::create(path).map_err(failed)?;
    let mut out = io::BufWriter::new(file);
    encode(&header, &pool.groups, &mut out).and_then(|()| out.flush()).map_err(failed)?;
    Ok(pool)
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn encode(header: &[u8], groups: &[PooledGroup], out: &mut impl Write) -> io::Result<()> {
    out.write_all(MAGIC)?;
    out.write_all(&length(header))?;
    out.write_all(header)?;
    for group in groups {
        out.write_all(&group.base_unix_nanos.to_le_bytes())?;
        out.write_all(&u32::try_from(group.bodies.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        for body in &group.bodies {
            out.write_all(&length(body))?;
            out.write_all(body)?;
        }
    }
    Ok(())
}

/// `None` when it has another header, or ends early.
fn decode(mut bytes: Bytes, header: &[u8]) -> Option<Vec<PooledGroup>> {
    let mut take = |length: usize| (bytes.len() >= length).then(|| bytes.split_to(length));
    let found = take(MAGIC.len())? == MAGIC[..];
    let found_header = take(4)?.get_u32_le();
    if !found || take(found_header as usize)? != header {
        return None;
    }
    let mut groups = Vec::new();
    while let Some(mut base) = take(8) {
        let mut group = PooledGroup { base_unix_nanos: base.get_u64_le(), bodies: Vec::new() };
        for _ in 0..take(4)?.get_u32_le() {
            let body = take(4)?.get_u32_le();
            group.bodies.push(take(body as usize)?);
        }
        groups.push(group);
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::options;
    use crate::shape::Shape;

    #[test]
    fn a_pool_is_made_once_and_again_for_other_options() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        let plan = Plan::new(options(Shape::S)).unwrap();
        let make = |level| Pool::build(&plan, 3, Compression::Gzip, level);
        let nothing = || Err(Error::ThreadLost);
        let contents = |level| Contents::new(&plan, 3, Compression::Gzip, level);
        let first = read_or_make(&path, &contents(1), || make(1)).unwrap();
        let again = read_or_make(&path, &contents(1), nothing).unwrap();
        assert_eq!(first.groups, again.groups);
        assert!(read_or_make(&path, &contents(2), nothing).is_err());
        read_or_make(&path, &contents(2), || make(2)).unwrap();
        assert!(read_or_make(&path, &contents(1), nothing).is_err());
        // A file cut short is no pool.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(read_or_make(&path, &contents(2), nothing).is_err());
    }
}
