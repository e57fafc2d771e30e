//! The thread that writes one shard's archive segments, behind everything else of its core: a seal is a fifth of a second of
//! compression that nobody waits for, every few seconds, and requests come in meanwhile.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use store_archive::{Error, Sealing};
use store_model::ShardId;

use crate::clock;
use crate::cpus;

/// What an archiver has of its sealer: one segment at a time goes there.
pub(crate) struct Sealer {
    jobs: Sender<Sealing>,
    results: Receiver<Result<PathBuf, Error>>,
    is_busy: bool,
}

impl Sealer {
    /// With the thread, which ends with this.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(crate) fn start(shard: ShardId) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, segments) = channel::<Sealing>();
        let (sealed, results) = channel();
        let thread = std::thread::Builder::new().name(format!("sealer-{shard}")).spawn(move || {
            cpus::stand_back();
            for segment in segments {
                if sealed.send(segment.seal(clock::unix())).is_err() {
                    break;
                }
            }
        })?;
        Ok((Self { jobs, results, is_busy: false }, thread))
    }

    /// Whether a segment is being sealed.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Begins with a segment; none may be under way.
    pub(crate) fn begin(&mut self, segment: Sealing) {
        self.is_busy = self.jobs.send(segment).is_ok();
    }

    /// What became of the segment, once that is known.
    pub(crate) fn result(&mut self) -> Option<Result<PathBuf, Error>> {
        match self.results.try_recv() {
            Ok(result) => {
                self.is_busy = false;
                Some(result)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// As [`Self::result`], waiting for it. `None` when nothing is under way.
    pub(crate) fn wait(&mut self) -> Option<Result<PathBuf, Error>> {
        let result = if self.is_busy { self.results.recv().ok() } else { None };
        self.is_busy = false;
        result
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use store_archive::{Archive, ArchiveOptions};
    use store_model::{Fragment, Offset, Reason, Tenant, Threshold, TraceId, UnixNanos};

    use super::*;

    fn fragment(number: u8) -> Fragment {
        Fragment {
            tenant: Tenant::default(),
            trace_id: TraceId([number; 16]),
            trace_start: UnixNanos(1),
            end: UnixNanos(2),
            decided_at: UnixNanos(3),
            reason: Reason::Head,
            threshold: Threshold::ALWAYS,
            complete: true,
            span_count: 0,
            otlp: Bytes::new(),
        }
    }

    #[test]
    fn a_segment_that_could_not_be_written_is_sealed_with_the_next_try() {
        let directory = tempfile::tempdir().unwrap();
        let options =
            ArchiveOptions { directory: directory.path().join("traces"), ..ArchiveOptions::default() };
        let (archive, _) = Archive::open(options, 1).unwrap();
        let mut writer = archive.writer(ShardId(0));
        let (mut sealer, thread) = Sealer::start(ShardId(0)).unwrap();
        assert!(sealer.wait().is_none() && sealer.result().is_none(), "nothing is under way");

        writer.insert(fragment(1));
        let shard = directory.path().join("traces/0");
        std::fs::remove_dir(&shard).unwrap();
        sealer.begin(writer.begin_seal(Offset(1)).unwrap().unwrap());
        assert!(sealer.is_busy());
        assert!(sealer.wait().unwrap().is_err());
        std::fs::create_dir(&shard).unwrap();
        sealer.begin(writer.begin_seal(Offset(2)).unwrap().unwrap());
        let path = sealer.wait().unwrap().unwrap();
        assert!(path.exists() && !sealer.is_busy());
        assert_eq!((writer.covered(), writer.open_rows()), (Offset(1), 0));
        drop(sealer);
        thread.join().unwrap();
    }
}
