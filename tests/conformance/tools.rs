//! The programs that call the appliance: where they lie, and which are missing here. Each that is missing is said once, loudly,
//! and left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::appliance::text;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn cache() -> PathBuf {
    root().join(".cache/conformance")
}

/// Whether a tool is there; the first question installs what can be installed.
pub(crate) fn has(tool: &str) -> bool {
    static MISSING: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        let output = Command::new(root().join("tests/conformance/setup")).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let named = lines.lines().filter_map(|line| line.split_once('\t'));
        named.map(|(tool, why)| (tool.to_owned(), why.to_owned())).collect()
    });
    if let Some(why) = missing.get(tool) {
        eprintln!("SKIPPED: nothing is tried with {tool}: {why}");
    }
    !missing.contains_key(tool)
}

/// The gRPC clients beside tonic.
pub(crate) const CLIENTS: [&str; 4] = ["grpc-go", "grpc-js", "grpc-python", "grpc-java"];

/// Runs a client on the calls in `folder`; what it heard, in their order.
pub(crate) fn call_all(client: &str, endpoint: &str, folder: &Path) -> Vec<Value> {
    let (clients, sdk) = (root().join("tests/conformance"), root().join(".cache"));
    let mut command = match client {
        "grpc-go" => Command::new(cache().join("go/client")),
        "grpc-js" => {
            let mut node = Command::new("node");
            node.arg(clients.join("js/client.mjs")).current_dir(sdk.join("sdk-node"));
            node
        }
        "grpc-python" => {
            let mut python = Command::new(sdk.join("sdk-venv/bin/python"));
            python.arg(clients.join("python/client.py"));
            python
        }
        _ => {
            let classes = cache().join("java");
            let mut java = Command::new("java");
            java.arg("-cp").arg(format!("{0}/classes:{0}/jars/*", classes.display())).arg("Client");
            java
        }
    };
    let output = command.arg(endpoint).arg(folder.join("cases")).output().unwrap();
    assert!(output.status.success(), "{client}: {}", text(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
