//! One running binary: its configuration, its ports, its end. Never speaks OTLP or queries.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_sluicebox");

/// No wait takes longer. Generous: two cores may be shared by several tests and a compiler.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until `probe` finds something.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(found) => found,
        Err(_elapsed) => panic!("waited {PATIENCE:?} in vain until {what}"),
    }
}

/// The receiver's driver for all that is started here and names none. One that cannot be had fails the start.
pub(crate) fn driver() -> String {
    std::env::var("SLUICEBOX_TEST_DRIVER").unwrap_or_else(|_unset| "auto".to_owned())
}

/// Short times and free ports; everything else as in a fresh installation.
fn base_config() -> Value {
    let anywhere = json!({ "endpoint": "127.0.0.1:0" });
    json!({
        "receivers": {
            "cores": 2,
            "otlp": { "protocols": { "grpc": anywhere, "http": anywhere }, "driver": driver() },
            "zipkin": anywhere,
            "jaeger": { "protocols": { "grpc": anywhere, "thrift_http": anywhere } },
        },
        "aggregator": { "quiet_after_root": "300ms", "idle_timeout": "1s" },
        "query": anywhere,
        "admin": anywhere,
        "memory": { "limit": "256MiB" },
    })
}

fn merge(base: &mut Value, change: Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            change.into_iter().for_each(|(key, value)| merge(base.entry(key).or_insert(Value::Null), value));
        }
        (base, change) => *base = change,
    }
}

/// A place for one appliance: data directory, configuration file, log.
pub(crate) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    /// A new one. `change` is laid over the tests' configuration (JSON is YAML, too).
    pub(crate) fn new(change: Value) -> Self {
        let home = Self { directory: tempfile::tempdir().unwrap() };
        home.configure(change);
        home
    }

    /// Another configuration for the next start.
    pub(crate) fn configure(&self, change: Value) {
        let mut config = base_config();
        merge(&mut config, change);
        std::fs::write(self.config(), config.to_string()).unwrap();
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("sluicebox.yaml")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What all processes started here have logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap()
    }

    /// Starts the binary and waits until it is ready.
    pub(crate) async fn start(&self) -> Appliance {
        self.start_with(&[]).await
    }

    /// As [`Self::start`], with something in the environment.
    pub(crate) async fn start_with(&self, environment: &[(&str, &str)]) -> Appliance {
        let appliance = self.start_unasked(environment).await;
        eventually("the appliance is ready", async || (appliance.get("/readyz").0 == 200).then_some(()))
            .await;
        appliance
    }

    /// As [`Self::start_with`], but waits only until it listens: for those whose admin port speaks TLS.
    pub(crate) async fn start_unasked(&self, environment: &[(&str, &str)]) -> Appliance {
        let endpoints = self.data().join("endpoints.json");
        // What an earlier process left there names ports that are closed by now.
        if endpoints.exists() {
            std::fs::remove_file(&endpoints).unwrap();
        }
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let child = Command::new(BINARY)
            .args(["serve", "--config"])
            .arg(self.config())
            .arg("--data-dir")
            .arg(self.data())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut appliance = Appliance { child, log: self.log(), endpoints: Value::Null };
        appliance.endpoints = eventually("endpoints.json is there", async || {
            assert!(appliance.child.try_wait().unwrap().is_none(), "the appliance ended while it started");
            serde_json::from_str(&std::fs::read_to_string(&endpoints).ok()?).ok()
        })
        .await;
        appliance
    }

    /// Runs one of the verbs that look at the data directory.
    pub(crate) fn doctor(&self) -> Output {
        self.doctor_with(&[])
    }

    /// As [`Self::doctor`], with more arguments.
    pub(crate) fn doctor_with(&self, arguments: &[&str]) -> Output {
        let mut doctor = Command::new(BINARY);
        doctor.args(["doctor", "--config"]).arg(self.config()).arg("--data-dir").arg(self.data());
        doctor.args(arguments).output().unwrap()
    }

    /// The files under a part of the data directory that end in `ending`, sorted by path.
    pub(crate) fn files(&self, part: &str, ending: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.data().join(part)];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.to_string_lossy().ends_with(ending) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// The running binary. Killed when it goes out of scope; its log is shown when the test fails.
pub(crate) struct Appliance {
    child: Child,
    log: PathBuf,
    endpoints: Value,
}

impl Appliance {
    fn endpoint(&self, name: &str) -> SocketAddr {
        self.endpoints[name].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn grpc(&self) -> SocketAddr {
        self.endpoint("otlp_grpc")
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.endpoint("otlp_http")
    }

    pub(crate) fn zipkin(&self) -> SocketAddr {
        self.endpoint("zipkin")
    }

    pub(crate) fn jaeger_grpc(&self) -> SocketAddr {
        self.endpoint("jaeger_grpc")
    }

    pub(crate) fn jaeger_thrift_http(&self) -> SocketAddr {
        self.endpoint("jaeger_thrift_http")
    }

    pub(crate) fn query(&self) -> SocketAddr {
        self.endpoint("query")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.endpoint("admin")
    }

    /// Status and body of a page of the admin port; status 0 when there is no answer.
    pub(crate) fn get(&self, page: &str) -> (u16, String) {
        http(self.endpoint("admin"), &format!("GET {page} HTTP/1.1\r\n"), b"")
    }

    /// A number of `/metrics`: the sum of all lines that begin with `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let values = text.lines().filter(|line| line.starts_with(name));
        values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// A line of `/proc/<pid>/status` in KiB, such as `VmRSS`.
    pub(crate) fn memory_kib(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// SIGTERM, and its exit status.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        eventually("the appliance has ended", async || self.child.try_wait().unwrap()).await
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the appliance's log, newest first ---\n{}", tail.join("\n"));
        }
    }
}

/// One HTTP/1.1 exchange on a connection of its own. `head` is the request line and headers, each with its line end.
pub(crate) fn http(to: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "{head}host: e2e\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let Ok(answer) = exchange() else { return (0, String::new()) };
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// Runs a verb of the binary to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

/// Both streams of a finished command.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Changes bytes in the middle of a file.
pub(crate) fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 16].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(path, bytes).unwrap();
}
