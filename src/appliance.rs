//! The only place where rooms meet: opens them in data-flow order and stops them in reverse.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ingest_aggregator::{Batch, Shard};
use ingest_receiver::{Driver, Endpoints, Protocol, ReceiverConfig, ReceiverMetrics, Started};
use query_engine::Engine;
use rtrb::{Consumer, Producer, RingBuffer};
use store_archive::{Archive, ArchiveOptions, ShardWriter};
use store_log::{PartitionOptions, Reader, RealDisk, Retention, Writer};
use store_model::{Offset, PartitionId, ShardId, Symbols};

use crate::allocator;
use crate::archiver::{ArchiverOptions, ArchiverThread};
use crate::bodies::JournalBodies;
use crate::clock;
use crate::config::{Ack, Config, Size};
use crate::cpus::Cpus;
use crate::gate::Gate;
use crate::identities::Identities;
use crate::intake::{Entrance, RefusedLedger};
use crate::journal::{Feeder, JournalOptions, JournalParts, Outlet};
use crate::keeper::Keeper;
use crate::live::{LiveTraces, ShardLine};
use crate::memory::CoreMemory;
use crate::recover::{self, Recovered};
use crate::retention::{Floors, RetentionThread};
use crate::sealer::Sealer;
use crate::shards::{Ask, Published, ShardThread};
use crate::status::StatusBoard;
use crate::totals::Totals;

/// Batches waiting for a shard, of all partitions together: 40 ms of requests of ten spans, which come 100,000 a second. Their
/// bytes have a limit of their own. A place takes 100 bytes.
const RING_BATCHES: usize = 4_096;

/// Batches waiting for a shard, per partition, however many there are.
const RING_BATCHES_MIN: usize = 256;

/// Questions waiting for a shard.
const ASKS_MAX: usize = 256;

/// Turns waiting for an archiver.
const TURNS_MAX: usize = 64;

/// A decision log's segment. Small, so that old decisions can be let go in small steps.
const DECISION_SEGMENT_BYTES: u64 = 32 << 20;

/// Decisions are kept this long beyond what the archive covers, for late spans after a restart.
const DECISIONS_AGE_MAX: Duration = Duration::from_hours(1);

/// How long requests in flight may take when the appliance stops.
const DRAIN: Duration = Duration::from_secs(10);

/// What keeps the appliance from starting.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{path}: {problem}")]
    DataDir { path: PathBuf, problem: String },
    #[error(
        "data directory {path} is in use by another sluicebox (process {holder}); stop it or choose another --data-dir"
    )]
    InUse { path: PathBuf, holder: String },
    #[error("journal: {0}")]
    Log(#[from] store_log::Error),
    #[error("archive: {0}")]
    Archive(#[from] store_archive::Error),
    #[error("{}", receiver_problem(.0))]
    Receiver(#[from] ingest_receiver::Error),
    #[error("cannot start thread {name}: {source}")]
    Thread { name: String, source: std::io::Error },
}

/// What somebody has to change in the configuration, where that helps.
fn receiver_problem(error: &ingest_receiver::Error) -> String {
    let ingest_receiver::Error::Listen { protocol, address, source } = error else {
        return format!("receiver: {error}");
    };
    let key = match protocol {
        Protocol::Grpc => "receivers.otlp.protocols.grpc",
        Protocol::Http => "receivers.otlp.protocols.http",
        Protocol::Zipkin => "receivers.zipkin",
        Protocol::JaegerGrpc => "receivers.jaeger.protocols.grpc",
        Protocol::JaegerHttp => "receivers.jaeger.protocols.thrift_http",
    };
    format!(
        "cannot listen on {address} ({source}); set {key}.endpoint to a free address, or {key}.enabled to false"
    )
}

/// A running appliance.
pub(crate) struct Appliance {
    pub(crate) engine: Arc<Engine>,
    pub(crate) board: Arc<StatusBoard>,
    endpoints: Endpoints,
    receiver: Box<dyn Driver>,
    keepers: Vec<JoinHandle<()>>,
    retention: Vec<JoinHandle<()>>,
    retention_stop: Arc<AtomicBool>,
    published: Vec<Arc<Published>>,
    shards: Vec<JoinHandle<()>>,
    archivers: Vec<JoinHandle<()>>,
    sealers: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
    _lock: std::fs::File,
}

/// How many CPUs the affinity mask of this process allows.
pub(crate) fn cores_allowed() -> u16 {
    let mask = rustix::thread::sched_getaffinity(None).map(|mask| mask.count()).unwrap_or(1);
    u16::try_from(mask).unwrap_or(u16::MAX).max(1)
}

/// How many ingest cores a new data directory is made for.
pub(crate) fn cores_wanted(config: &Config) -> u16 {
    match (config.receivers.cores, config.receivers.cpus.len()) {
        (0, 0) => cores_allowed(),
        (0, listed) => u16::try_from(listed).unwrap_or(u16::MAX),
        (cores, _) => cores,
    }
}

/// The memory budget: what the file says, else a quarter of the machine's memory.
pub(crate) fn memory_limit(config: &Config) -> u64 {
    config.memory.limit.map_or_else(|| rustix::system::sysinfo().totalram / 4, |limit| limit.0)
}

/// One journal partition while the appliance is being opened.
struct OpenPartition {
    id: PartitionId,
    writer: Writer<RealDisk>,
    feeder: Vec<Producer<Batch>>,
}

/// One shard while the appliance is being opened.
struct OpenShard {
    id: ShardId,
    archive: ShardWriter,
    decisions: Writer<RealDisk>,
    recovered: Recovered,
    rings: Vec<Consumer<Batch>>,
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let thread = std::thread::Builder::new().name(name.clone());
    thread.spawn(body).map_err(|source| Error::Thread { name, source })
}

/// Takes the data directory for this process alone.
fn lock(data_dir: &Path) -> Result<std::fs::File, Error> {
    use std::io::{Read as _, Write as _};
    let path = data_dir.join("LOCK");
    let wrong =
        |error: std::io::Error| Error::DataDir { path: data_dir.to_owned(), problem: error.to_string() };
    std::fs::create_dir_all(data_dir).map_err(wrong)?;
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(wrong)?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        file.read_to_string(&mut holder).map_err(wrong)?;
        return Err(Error::InUse { path: data_dir.to_owned(), holder: holder.trim().to_owned() });
    }
    file.set_len(0).map_err(wrong)?;
    writeln!(file, "{}", std::process::id()).map_err(wrong)?;
    Ok(file)
}

impl Appliance {
    /// Opens everything, recovers what a crash left, and begins to listen.
    pub(crate) fn start(config: &Config, identities: &Identities, data_dir: &Path) -> Result<Self, Error> {
        let lock = lock(data_dir)?;
        let wanted = cores_wanted(config);
        let count = recover::shards_of(data_dir, wanted)?;
        if count != wanted {
            tracing::warn!(
                shards = count,
                cores = wanted,
                "the data directory was made for another number of cores, which stays"
            );
        }
        let memory_bytes = memory_limit(config);
        allocator::suit(memory_bytes);
        let cpus = Cpus::choose(&config.receivers.cpus, count);
        let receiver_config = ReceiverConfig {
            grpc_tls: identities.grpc.clone(),
            http_tls: identities.http.clone(),
            zipkin_tls: identities.zipkin.clone(),
            jaeger_grpc_tls: identities.jaeger_grpc.clone(),
            jaeger_http_tls: identities.jaeger_http.clone(),
            ..config.receiver(count, &cpus, memory_bytes)
        };
        let (archive, shards, partitions) = open_stores(config, data_dir, count, memory_bytes)?;
        let bodies =
            JournalBodies { readers: partitions.iter().map(|partition| partition.writer.reader()).collect() };
        let context = Context {
            config,
            count,
            memory_bytes,
            cpus,
            archive: archive.clone(),
            bodies: bodies.clone(),
            gate: Arc::new(Gate::default()),
            floors: Arc::new(Floors::new(count)),
            totals: Arc::new(Totals::new(count)),
            refused: Arc::new(RefusedLedger::default()),
            symbols: Symbols::new(config.receivers.max_names),
            retention_stop: Arc::default(),
        };
        context.gate.close("start", "the appliance is starting");
        let decision_readers = shards.iter().map(|shard| shard.decisions.reader()).collect();
        let started = context.start_shards(shards)?;
        let Journals { parts, keepers, retention } = context.make_journals(partitions, &started)?;
        context.gate.open("start");

        let metrics = Arc::new(ReceiverMetrics::default());
        let entrance = Arc::new(Entrance {
            journals: Mutex::new(parts),
            gate: Arc::clone(&context.gate),
            refused: Arc::clone(&context.refused),
            symbols: context.symbols.clone(),
            tenants: Mutex::default(),
            tenants_max: config.receivers.max_tenants,
        });
        let Started { driver: receiver, chosen, because } =
            ingest_receiver::start(&receiver_config, entrance, Arc::clone(&metrics))?;
        let core_memory = CoreMemory::of(config, &receiver_config, chosen, count, memory_bytes);
        tracing::info!(
            driver = receiver.name(),
            because,
            cpus = ?context.cpus.list(),
            memory_per_core = %core_memory,
            "receiving"
        );
        let live = Arc::new(LiveTraces { shards: started.lines, bodies: bodies.clone() });
        let board = Arc::new(StatusBoard {
            started_at: clock::monotonic(),
            gate: Arc::clone(&context.gate),
            totals: Arc::clone(&context.totals),
            published: started.published.clone(),
            archive: archive.clone(),
            journal: bodies.readers,
            decisions: decision_readers,
            receiver: metrics,
            identities: identities.clone(),
            memory_limit: memory_bytes,
            core_memory,
        });
        Ok(Self {
            engine: Arc::new(Engine::new(archive, live, query_engine::Limits::default())),
            board,
            endpoints: receiver.endpoints(),
            receiver,
            keepers,
            retention,
            retention_stop: context.retention_stop,
            published: started.published,
            shards: started.shards,
            archivers: started.archivers,
            sealers: started.sealers,
            gate: context.gate,
            _lock: lock,
        })
    }

    /// Where requests are taken, port 0 resolved.
    pub(crate) fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    /// The room whose thread has ended although nobody asked it to: it panicked, and nobody does its work.
    pub(crate) fn lost_thread(&self) -> Option<&'static str> {
        let ended = |threads: &[JoinHandle<()>]| threads.iter().any(JoinHandle::is_finished);
        let rooms = [
            ("receiver", !self.receiver.is_whole()),
            ("keeper", ended(&self.keepers)),
            ("retention", ended(&self.retention)),
            ("shard", ended(&self.shards)),
            ("archiver", ended(&self.archivers)),
            ("sealer", ended(&self.sealers)),
        ];
        rooms.into_iter().find(|(_, is_lost)| *is_lost).map(|(room, _)| room)
    }

    /// Stops taking requests, answers those in flight, and leaves everything durable: what is undecided is in the journal.
    pub(crate) fn stop(self) {
        self.gate.close("stop", "the appliance is stopping");
        self.receiver.stop(DRAIN);
        join("keeper", self.keepers);
        self.retention_stop.store(true, Ordering::Release);
        self.retention.iter().for_each(|thread| thread.thread().unpark());
        join("retention", self.retention);
        for published in &self.published {
            published.stop.store(true, Ordering::Release);
        }
        join("shard", self.shards);
        join("archiver", self.archivers);
        join("sealer", self.sealers);
    }
}

fn join(room: &str, threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!(
                room,
                "thread had panicked; what it held is rebuilt from the journal at the next start"
            );
        }
    }
}

fn open_stores(
    config: &Config,
    data_dir: &Path,
    count: u16,
    memory_bytes: u64,
) -> Result<(Archive, Vec<OpenShard>, Vec<OpenPartition>), Error> {
    let options = ArchiveOptions {
        directory: data_dir.join("traces"),
        zstd_level: config.archive.zstd_level,
        open_bytes_max: config.open_segment_bytes(count, memory_bytes),
        ..ArchiveOptions::default()
    };
    let (archive, report) = Archive::open(options, count)?;
    for quarantined in &report.quarantined {
        tracing::error!(?quarantined, "archive segment is damaged and set aside");
    }
    let (mut producers, mut consumers) = rings(count);
    let mut shards = Vec::new();
    for id in (0..count).map(ShardId) {
        let writer = archive.writer(id);
        let options = PartitionOptions {
            directory: data_dir.join("decisions").join(id.to_string()),
            segment_bytes_max: DECISION_SEGMENT_BYTES,
            ..PartitionOptions::default()
        };
        // Sealed archive segments name settlement records: new ones must not reuse their offsets.
        let (decisions, recovery) = Writer::open(RealDisk, options, writer.covered(), clock::unix())?;
        report_recovery("decisions", id.0, &recovery);
        let recovered = recover::read_decisions(&decisions.reader(), writer.covered());
        shards.push(OpenShard { id, archive: writer, decisions, recovered, rings: consumers.remove(0) });
    }
    let mut partitions = Vec::new();
    for id in (0..count).map(PartitionId) {
        // Offsets that a settlement record knows must not be given out again, even if the journal lost its end.
        let known = shards.iter().map(|shard| shard.recovered.resume.frontier(id)).max().unwrap_or_default();
        let options = PartitionOptions {
            directory: data_dir.join("spans").join(id.to_string()),
            segment_bytes_max: config.journal_segment_bytes(count),
            ..PartitionOptions::default()
        };
        let (writer, recovery) = Writer::open(RealDisk, options, known, clock::unix())?;
        report_recovery("spans", id.0, &recovery);
        partitions.push(OpenPartition { id, writer, feeder: producers.remove(0) });
    }
    // A power loss must not take a new directory with everything that was made durable inside it.
    for directory in [data_dir.to_owned(), data_dir.join("spans"), data_dir.join("decisions")] {
        std::fs::File::open(&directory)
            .and_then(|opened| opened.sync_all())
            .map_err(|error| Error::DataDir { path: directory, problem: error.to_string() })?;
    }
    Ok((archive, shards, partitions))
}

fn report_recovery(topic: &str, partition: u16, recovery: &store_log::Recovery) {
    for quarantined in &recovery.quarantined {
        tracing::error!(topic, partition, ?quarantined, "log segment is damaged and set aside");
    }
    if let Some(truncated) = &recovery.truncated {
        tracing::warn!(topic, partition, ?truncated, "a write that the last crash cut short was cut off");
    }
}

/// Rows of ends of rings.
type Grid<T> = Vec<Vec<T>>;

/// A ring from every partition to every shard: producers by partition, consumers by shard.
fn rings(count: u16) -> (Grid<Producer<Batch>>, Grid<Consumer<Batch>>) {
    let count = usize::from(count);
    let batches = (RING_BATCHES / count).max(RING_BATCHES_MIN);
    let mut producers: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    let mut consumers: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    for row in &mut producers {
        for column in &mut consumers {
            let (producer, consumer) = RingBuffer::new(batches);
            row.push(producer);
            column.push(consumer);
        }
    }
    (producers, consumers)
}

/// The journals of all cores.
#[derive(Default)]
struct Journals {
    /// What each receiving thread will come for.
    parts: Vec<Option<JournalParts>>,
    /// The threads beside them.
    keepers: Vec<JoinHandle<()>>,
    retention: Vec<JoinHandle<()>>,
}

/// What the threads share while they are started.
struct Context<'a> {
    config: &'a Config,
    count: u16,
    memory_bytes: u64,
    cpus: Cpus,
    archive: Archive,
    bodies: JournalBodies,
    gate: Arc<Gate>,
    floors: Arc<Floors>,
    totals: Arc<Totals>,
    refused: Arc<RefusedLedger>,
    symbols: Symbols,
    retention_stop: Arc<AtomicBool>,
}

/// The shards, running.
struct StartedShards {
    lines: Vec<ShardLine>,
    published: Vec<Arc<Published>>,
    shards: Vec<JoinHandle<()>>,
    archivers: Vec<JoinHandle<()>>,
    sealers: Vec<JoinHandle<()>>,
    /// Per shard and partition: where the journal is to be read again from.
    watermarks: Vec<Vec<Offset>>,
}

impl Context<'_> {
    fn start_shards(&self, shards: Vec<OpenShard>) -> Result<StartedShards, Error> {
        let mut started = StartedShards {
            lines: Vec::new(),
            published: Vec::new(),
            shards: Vec::new(),
            archivers: Vec::new(),
            sealers: Vec::new(),
            watermarks: Vec::new(),
        };
        for open in shards {
            self.start_shard(open, &mut started)?;
        }
        Ok(started)
    }

    fn start_shard(&self, open: OpenShard, started: &mut StartedShards) -> Result<(), Error> {
        let OpenShard { id, mut archive, decisions, recovered, rings } = open;
        let Recovered { resume, totals, open } = recovered;
        let mut bodies = self.bodies.clone();
        let open_floor = recover::rebuild_open_segment(&open, &mut archive, &mut bodies);
        self.totals.shard(id).extend(totals);
        let partitions = || (0..self.count).map(PartitionId);
        started.watermarks.push(partitions().map(|partition| resume.watermark(partition)).collect());
        let published = Arc::new(Published::default());
        let (ask, asks) = mpsc::sync_channel::<Ask>(ASKS_MAX);
        let (turns, turns_out) = mpsc::sync_channel(TURNS_MAX);
        let no_thread = |source| Error::Thread { name: format!("sealer-{id}"), source };
        let (sealer, thread) = Sealer::start(id).map_err(no_thread)?;
        started.sealers.push(thread);
        let archiver = ArchiverThread {
            options: ArchiverOptions {
                shard: id,
                shards: self.count,
                open_bytes: self.config.open_segment_bytes(self.count, self.memory_bytes),
                open_age: self.config.archive.open_age.0,
                decisions: Retention { age_max: DECISIONS_AGE_MAX, bytes_max: u64::MAX },
                archive_retention: Retention {
                    age_max: self.config.archive.retention.max_age.0,
                    bytes_max: self.config.archive.retention.max_bytes.0,
                },
            },
            turns: turns_out,
            archive,
            archive_handle: self.archive.clone(),
            decisions,
            bodies,
            totals: Arc::clone(&self.totals),
            floors: Arc::clone(&self.floors),
            published: Arc::clone(&published),
            gate: Arc::clone(&self.gate),
            refused: Arc::clone(&self.refused),
            sealer,
            open_floor,
            ended_floor: None,
            frontier: partitions().map(|partition| resume.frontier(partition)).collect(),
            watermark: partitions().map(|partition| resume.watermark(partition)).collect(),
        };
        let shard = ShardThread {
            id,
            shard: Shard::resume(self.config.shard(self.count, self.memory_bytes), &resume),
            rings,
            asks,
            turns,
            published: Arc::clone(&published),
            gate: Arc::clone(&self.gate),
        };
        started.archivers.push(spawn(format!("archiver-{id}"), move || archiver.run())?);
        let cpus = self.cpus.clone();
        let thread = spawn(format!("shard-{id}"), move || {
            cpus.pin(id.0);
            shard.run();
        })?;
        started.lines.push(ShardLine { asks: ask, thread: thread.thread().clone() });
        started.published.push(published);
        started.shards.push(thread);
        Ok(())
    }

    /// Replays what was undecided, and makes of each partition what its receiving thread will come for.
    fn make_journals(
        &self,
        partitions: Vec<OpenPartition>,
        started: &StartedShards,
    ) -> Result<Journals, Error> {
        let mut journals = Journals::default();
        for OpenPartition { id, writer, feeder } in partitions {
            let threads_of_shards = started.lines.iter().map(|line| line.thread.clone());
            let shards = threads_of_shards.zip(started.published.iter().cloned());
            let ring_bytes_max = Config::ring_bytes_max(self.count, self.memory_bytes);
            let outlets = feeder.into_iter().zip(shards).map(|(ring, (thread, published))| Outlet {
                ring,
                thread,
                published,
                ring_bytes_max,
                waiting: VecDeque::new(),
            });
            let mut feeder = Feeder { outlets: outlets.collect() };
            self.replay(id, &writer.reader(), started, &mut feeder);
            let (to_keeper, jobs) = mpsc::channel();
            let (to_journal, news) = mpsc::channel();
            let stopping = Arc::new(AtomicBool::new(false));
            let keeper = Keeper {
                partition: id,
                jobs,
                news: to_journal,
                stopping: Arc::clone(&stopping),
                gate: Arc::clone(&self.gate),
            };
            journals.keepers.push(self.spawn_on(id, "keeper", move || keeper.run())?);
            let retention = RetentionThread {
                partition: id,
                retention: Retention {
                    age_max: self.config.journal.retention.max_age.0,
                    bytes_max: self.config.journal.retention.max_bytes.0 / u64::from(self.count),
                },
                remover: writer.remover(),
                floors: Arc::clone(&self.floors),
                gate: Arc::clone(&self.gate),
                stop: Arc::clone(&self.retention_stop),
            };
            journals.retention.push(self.spawn_on(id, "retention", move || retention.run())?);
            let options = self.journal_options(id);
            let keeper = to_keeper;
            journals.parts.push(Some(JournalParts { options, writer, feeder, keeper, news, stopping }));
        }
        Ok(journals)
    }

    /// A thread of a partition, on the partition's core.
    fn spawn_on(
        &self,
        partition: PartitionId,
        room: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, Error> {
        let cpus = self.cpus.clone();
        spawn(format!("{room}-{partition}"), move || {
            cpus.pin(partition.0);
            body();
        })
    }

    fn journal_options(&self, partition: PartitionId) -> JournalOptions {
        let config = &self.config.journal;
        let bytes = |size: Size| usize::try_from(size.0).unwrap_or(usize::MAX);
        JournalOptions {
            partition,
            group_interval: config.group_interval.0,
            group_bytes: bytes(config.group_bytes),
            queue_bytes: bytes(config.queue_bytes),
            answer_at_once: config.ack == Ack::Memory,
        }
    }

    fn replay(
        &self,
        id: PartitionId,
        reader: &Reader<RealDisk>,
        started: &StartedShards,
        feeder: &mut Feeder,
    ) {
        let marks = started.watermarks.iter().map(|marks| marks[usize::from(id.0)]);
        let from = marks.min().unwrap_or_default();
        let (records, spans) = recover::replay(id, reader, from, &self.symbols, feeder);
        if records > 0 {
            tracing::info!(partition = %id, from = %from, records, spans, "journal replayed");
        }
    }
}
