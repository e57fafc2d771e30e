//! The thread beside one core's journal, for what may take long: commits that need a new segment, or that the driver
//! cannot write; opening a failed partition again. It has the writer while it works, and gives it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use ingest_receiver::Wake;
use store_log::{Committed, Error, Flight, RealDisk, RealFile, Stage, Sync, Writer};
use store_model::PartitionId;

use crate::clock;
use crate::gate::Gate;

/// How long a failed partition waits before it is opened and verified again.
pub(crate) const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// What a journal asks for. Each ends with [`News::Back`].
pub(crate) enum Job {
    /// Commit these records.
    Commit(Writer<RealDisk>, Stage),
    /// Write a commit that was begun.
    Write(Writer<RealDisk>, Flight<RealFile>, Stage),
    /// A commit failed for this reason: see to it that the next one can succeed.
    Mend(Writer<RealDisk>, String),
}

/// What a journal hears.
pub(crate) enum News {
    /// What became of a commit.
    Committed(Result<Committed, Error>, Stage),
    /// The writer, able to work.
    Back(Writer<RealDisk>),
}

/// The thread's state.
pub(crate) struct Keeper {
    pub(crate) partition: PartitionId,
    /// With whom to wake when it is done.
    pub(crate) jobs: Receiver<(Job, Arc<dyn Wake>)>,
    pub(crate) news: Sender<News>,
    /// Its journal stops, so a disk that fails is not waited for.
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) gate: Arc<Gate>,
}

impl Keeper {
    /// Runs until its journal is gone.
    pub(crate) fn run(self) {
        while let Ok((job, wake)) = self.jobs.recv() {
            let writer = match job {
                Job::Commit(mut writer, mut stage) => {
                    let result = writer.commit_stage(&mut stage, Sync::Durable, clock::unix());
                    self.committed(writer, result, stage, &*wake)
                }
                Job::Write(mut writer, flight, stage) => {
                    let written = flight.write(&stage, Sync::Durable);
                    let result = writer.end(flight, written);
                    self.committed(writer, result, stage, &*wake)
                }
                Job::Mend(writer, problem) => self.mend(writer, &problem),
            };
            self.tell(News::Back(writer), &*wake);
        }
    }

    fn tell(&self, news: News, wake: &dyn Wake) {
        // Fails when the journal is gone, and nobody needs the news.
        drop(self.news.send(news));
        wake.wake();
    }

    /// Tells what became of a commit before anything else: senders wait for it.
    fn committed(
        &self,
        writer: Writer<RealDisk>,
        result: Result<Committed, Error>,
        stage: Stage,
        wake: &dyn Wake,
    ) -> Writer<RealDisk> {
        let problem = result.as_ref().err().map(ToString::to_string);
        self.tell(News::Committed(result, stage), wake);
        match problem {
            Some(problem) => self.mend(writer, &problem),
            None => writer,
        }
    }

    /// Waits for the disk, and opens the partition again until it verifies. Requests are refused meanwhile.
    fn mend(&self, mut writer: Writer<RealDisk>, problem: &str) -> Writer<RealDisk> {
        let partition = self.partition;
        let name = format!("journal {partition}");
        self.gate.close(&name, format!("the journal cannot be written: {problem}"));
        let is_stopping = || self.stopping.load(Ordering::Relaxed);
        if !writer.is_poisoned() && !is_stopping() {
            clock::sleep(REOPEN_AFTER);
        }
        while writer.is_poisoned() && !is_stopping() {
            match writer.reopen(clock::unix()) {
                Ok(recovery) => tracing::info!(%partition, ?recovery, "journal reopened and verified"),
                Err(error) => {
                    tracing::error!(%partition, %error, "journal cannot be reopened yet");
                    clock::sleep(REOPEN_AFTER);
                }
            }
        }
        self.gate.open(&name);
        writer
    }
}
