//! `sluicebox serve`: the appliance in the foreground until it is told to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ingest_receiver::Endpoints;
use query_api::{Service, StatusSource};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::appliance::Appliance;
use crate::cli::ServeArgs;
use crate::config::Config;
use crate::doors::Door;
use crate::identities::{Identities, keep_fresh};
use crate::recover::write_durably;
use crate::{demo, telemetry};

/// Threads for questions and the admin port. Ingest has its own and is never stalled by these.
const QUERY_THREADS: usize = 2;

/// How often it is seen to that all threads are there.
const THREAD_LOOK: Duration = Duration::from_millis(250);

/// Where data lies when nobody says.
const DATA_DIR: &str = "sluicebox-data";

/// Where everything listens, port 0 resolved; also written to `<data-dir>/endpoints.json`.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Listening {
    pub(crate) otlp_grpc: Option<SocketAddr>,
    pub(crate) otlp_http: Option<SocketAddr>,
    pub(crate) zipkin: Option<SocketAddr>,
    pub(crate) jaeger_grpc: Option<SocketAddr>,
    pub(crate) jaeger_thrift_http: Option<SocketAddr>,
    pub(crate) admin: SocketAddr,
    pub(crate) query: SocketAddr,
}

/// Runs the appliance. Exit code 2 for a wrong configuration, 1 for anything else that keeps it from running.
pub(crate) fn run(args: &ServeArgs) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("sluicebox: {error}");
            return ExitCode::from(2);
        }
    };
    let identities = match Identities::load(&config).and_then(|identities| demo_can_speak(args, identities)) {
        Ok(identities) => identities,
        Err(problem) => {
            eprintln!("sluicebox: {problem}");
            return ExitCode::from(2);
        }
    };
    telemetry::init_logging(args.log_json);
    match serve(args, &config, &identities) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluicebox: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The data directory: the command line, else the file, else the default.
pub(crate) fn data_dir(argument: Option<&Path>, config: &Config) -> PathBuf {
    argument.map(Path::to_owned).or_else(|| config.data_dir.clone()).unwrap_or_else(|| DATA_DIR.into())
}

/// The simulated shop is no client that would have to trust somebody.
fn demo_can_speak(args: &ServeArgs, identities: Identities) -> Result<Identities, String> {
    let is_plain = identities.grpc.is_none() && identities.query.is_none();
    let problem =
        || "--demo needs plain connections: leave tls out of its grpc and query sections".to_owned();
    if args.demo && !is_plain { Err(problem()) } else { Ok(identities) }
}

fn serve(
    args: &ServeArgs,
    config: &Config,
    identities: &Identities,
) -> Result<(), Box<dyn std::error::Error>> {
    let data_dir = data_dir(args.data_dir.as_deref(), config);
    let appliance = Appliance::start(config, identities, &data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(QUERY_THREADS)
        .thread_name("query")
        .enable_all()
        .build()?;
    let result = runtime.block_on(listen(args, config, identities, &data_dir, &appliance));
    tracing::info!("stopping: no new requests, those in flight are finished");
    appliance.stop();
    tracing::info!("stopped, everything is durable");
    result
}

async fn listen(
    args: &ServeArgs,
    config: &Config,
    identities: &Identities,
    data_dir: &Path,
    appliance: &Appliance,
) -> Result<(), Box<dyn std::error::Error>> {
    let query = bind("query.endpoint", config.query.endpoint).await?;
    let admin = bind("admin.endpoint", config.admin.endpoint).await?;
    let Endpoints { grpc, http, zipkin, jaeger_grpc, jaeger_http } = appliance.endpoints();
    let listening = Listening {
        otlp_grpc: grpc,
        otlp_http: http,
        zipkin,
        jaeger_grpc,
        jaeger_thrift_http: jaeger_http,
        admin: admin.local_addr()?,
        query: query.local_addr()?,
    };
    let _kept_fresh = keep_fresh(identities)?;
    let (stop, stopped) = watch::channel(false);
    let wait = |mut stopped: watch::Receiver<bool>| async move {
        // The sender only goes away when everything ends, which is a stop as well.
        let _gone = stopped.wait_for(|&stop| stop).await;
    };
    let board: Arc<dyn StatusSource> = Arc::clone(&appliance.board) as _;
    let service = Service::new(Arc::clone(&appliance.engine), board);
    let queries = {
        let door = Door::open(query, identities.query.clone())?;
        tokio::spawn(query_api::serve_on(door, service, wait(stopped.clone())))
    };
    let router = telemetry::router(Arc::clone(&appliance.board));
    let admin = Door::open(admin, identities.admin.clone())?;
    let admins =
        tokio::spawn(async move { axum::serve(admin, router).with_graceful_shutdown(wait(stopped)).await });
    write_durably(&data_dir.join("endpoints.json"), serde_json::to_string_pretty(&listening)?.as_bytes())?;
    greet(&listening, identities, data_dir);
    let demo = args.demo.then(|| tokio::spawn(demo::run(listening.clone(), args.demo_seconds)));
    let lost = tokio::select! {
        signal = wait_for_signal() => signal.map(|()| None)?,
        room = thread_loss(appliance) => Some(room),
    };
    if let Some(demo) = demo {
        demo.abort();
    }
    stop.send(true)?;
    queries.await??;
    admins.await??;
    match lost {
        None => Ok(()),
        Some(room) => Err(format!(
            "a {room} thread has panicked (the log says where); what was acknowledged is in the journal and is read again \
             at the next start"
        )
        .into()),
    }
}

/// Waits until a thread of the appliance is gone, and says which room it was of. A process that goes on without it would
/// look alive to whoever could start it again.
async fn thread_loss(appliance: &Appliance) -> &'static str {
    loop {
        if let Some(room) = appliance.lost_thread() {
            return room;
        }
        tokio::time::sleep(THREAD_LOOK).await;
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, String> {
    let problem = |error| format!("cannot listen on {address} ({error}); set {key} to a free address");
    TcpListener::bind(address).await.map_err(problem)
}

async fn wait_for_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn greet(listening: &Listening, identities: &Identities, data_dir: &Path) {
    let Listening { otlp_grpc, otlp_http, zipkin, jaeger_grpc, jaeger_thrift_http, admin, query } = listening;
    let address =
        |address: &Option<SocketAddr>| address.map_or("off".to_owned(), |address| address.to_string());
    let (grpc, http) = (address(otlp_grpc), address(otlp_http));
    let scheme = |tls: &Option<_>| if tls.is_some() { "https" } else { "http" };
    let (grpc_scheme, admin_scheme) = (scheme(&identities.grpc), scheme(&identities.admin));
    println!(
        "sluicebox {} is running, data in {}\n\
         \n  \
           OTLP/gRPC  {grpc}\n  \
           OTLP/HTTP  {http}   (POST /v1/traces)\n  \
           Zipkin     {}   (POST /api/v2/spans)\n  \
           Jaeger     {} (gRPC), {} (POST /api/traces)\n  \
           queries    {query}   (gRPC, reflection on)\n  \
           admin      {admin_scheme}://{admin}/metrics  /healthz  /readyz\n\
         \n\
         Try next:\n  \
           OTEL_EXPORTER_OTLP_ENDPOINT={grpc_scheme}://{grpc} <your instrumented program>\n  \
           sluicebox status\n  \
           sluicebox search --status error\n  \
           sluicebox trace <id>",
        env!("CARGO_PKG_VERSION"),
        data_dir.display(),
        address(zipkin),
        address(jaeger_grpc),
        address(jaeger_thrift_http),
    );
}
