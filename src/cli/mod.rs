//! The command line. Questions go to a running appliance over its query port; a table for people, `--json` for programs.
//!
//! Exit codes: 0 done, 1 not found or not possible, 2 wrong use or wrong configuration.

mod client;
mod doctor;
mod table;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

pub(crate) use client::{decision_word, status_text};
pub(crate) use table::bytes as human_bytes;

use crate::config::Config;
use crate::identities::Identities;

/// Takes in every span of a fleet, keeps the traces worth keeping, answers questions about them.
#[derive(Debug, Parser)]
#[command(name = "sluicebox", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the appliance in the foreground
    Serve(ServeArgs),
    /// Show one trace as a tree with durations; exit code 1 when there is none
    Trace(TraceArgs),
    /// Find traces, newest first
    Search(SearchArgs),
    /// What arrived, what was kept and why, and how the appliance is
    Status(ClientArgs),
    /// Check a configuration file without starting anything
    CheckConfig {
        /// The file
        config: PathBuf,
    },
    /// Say what this host offers and what the data directory holds
    Doctor(DoctorArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// YAML file; without it everything has its default
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Where data lies; default: data_dir of the file, else ./sluicebox-data
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Log as JSON, one object a line
    #[arg(long)]
    pub(crate) log_json: bool,
    /// Also feed it a simulated shop and say what became of it
    #[arg(long)]
    pub(crate) demo: bool,
    /// How long the simulated shop runs
    #[arg(long, default_value_t = 60)]
    pub(crate) demo_seconds: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// The appliance's query address; https://host:port with TLS
    #[arg(long, default_value = "127.0.0.1:4320", env = "SLUICEBOX_ENDPOINT")]
    endpoint: String,
    /// Who must have signed the appliance's certificate (PEM); default: whom this host trusts
    #[arg(long, value_name = "FILE", env = "SLUICEBOX_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Our own certificate (PEM), where the appliance asks for one
    #[arg(long, value_name = "FILE", env = "SLUICEBOX_CERT_FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The key of our own certificate (PEM)
    #[arg(long, value_name = "FILE", env = "SLUICEBOX_KEY_FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Whose traces
    #[arg(long, default_value = "default")]
    tenant: String,
    /// JSON for programs in place of text for people
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TraceArgs {
    /// 32 hexadecimal digits
    id: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct SearchArgs {
    /// Service name of the span
    #[arg(long)]
    service: Option<String>,
    /// Name of the span
    #[arg(long)]
    operation: Option<String>,
    /// Attribute of the span or its resource; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<String>,
    /// Status of the span
    #[arg(long)]
    status: Option<StatusArg>,
    /// Kind of the span
    #[arg(long)]
    kind: Option<KindArg>,
    /// The span took at least this long, for example 200ms
    #[arg(long, value_name = "DURATION")]
    min_duration: Option<String>,
    /// The span took at most this long
    #[arg(long, value_name = "DURATION")]
    max_duration: Option<String>,
    /// Traces that began within this long, for example 15m
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// How many traces
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// Go on behind an earlier page: the cursor it printed
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StatusArg {
    Unset,
    Ok,
    Error,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    Unspecified,
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// YAML file, as for serve
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Data directory, as for serve
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// What ends a verb early, as an exit code and a sentence.
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn not_possible(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    fn wrong_use(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let result = match cli.verb {
        Verb::Serve(args) => return crate::serve::run(&args),
        Verb::Trace(args) => client::trace(&args),
        Verb::Search(args) => client::search(&args),
        Verb::Status(args) => client::status(&args),
        Verb::CheckConfig { config } => check_config(&config),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sluicebox", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            eprintln!("sluicebox: {message}");
            ExitCode::from(code)
        }
    }
}

fn check_config(path: &std::path::Path) -> Result<(), Failure> {
    let config = Config::load(Some(path)).map_err(|error| Failure::wrong_use(error.to_string()))?;
    Identities::load(&config).map_err(Failure::wrong_use)?;
    println!("{} is right", path.display());
    Ok(())
}
