//! The receiver's drivers, each to be shown the same. One that this host or this build does not offer is left out, loudly.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::appliance::{BINARY, Home};

/// Drivers on the house's own protocol core.
pub(crate) const OWN: [&str; 2] = ["io_uring", "epoll"];

/// Every driver.
pub(crate) const ALL: [&str; 3] = ["io_uring", "epoll", "portable"];

/// `change` and the driver.
pub(crate) fn home(driver: &str, mut change: Value) -> Home {
    change["receivers"]["otlp"]["driver"] = json!(driver);
    Home::new(change)
}

/// Whether a driver can be had; only `io_uring` may be missing.
pub(crate) fn has(driver: &str) -> bool {
    static URING: OnceLock<Option<String>> = OnceLock::new();
    if driver != "io_uring" {
        return true;
    }
    let problem = URING.get_or_init(|| problem_with(driver));
    if let Some(problem) = problem {
        eprintln!("SKIPPED: nothing is tried with driver {driver}: {problem}");
    }
    problem.is_none()
}

/// What the binary says when it is asked to start with this driver and does not.
#[expect(clippy::disallowed_methods, reason = "it looks again until the process has started or ended")]
fn problem_with(driver: &str) -> Option<String> {
    let home = home(driver, json!({}));
    let mut child = Command::new(BINARY)
        .args(["serve", "--config"])
        .arg(home.config())
        .arg("--data-dir")
        .arg(home.data())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !home.data().join("endpoints.json").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let runs = child.try_wait().unwrap().is_none();
    // It may have ended in between; what it said tells.
    drop(child.kill());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if runs {
        return None;
    }
    assert!(said.contains("io_uring"), "it ended for another reason: {said}");
    Some(said.lines().last().unwrap_or_default().to_owned())
}
