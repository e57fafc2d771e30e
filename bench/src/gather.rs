//! `gather`: results of several commands put together as one, each under a name. Measures nothing itself.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// Options of `gather`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What was measured
    #[arg(long)]
    pub(crate) name: String,
    /// NAME=FILE, in the order they were measured
    #[arg(long, required = true, value_parser = named)]
    part: Vec<(String, PathBuf)>,
    /// KEY=TEXT to be told beside the parts
    #[arg(long, value_parser = noted)]
    note: Vec<(String, String)>,
}

/// The parts, and what there is to say about them.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    notes: Map<String, Value>,
    parts: Vec<Value>,
}

fn noted(text: &str) -> Result<(String, String), String> {
    let (name, rest) = text.split_once('=').ok_or_else(|| format!("'{text}' has no '='"))?;
    Ok((name.to_owned(), rest.to_owned()))
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    noted(text).map(|(name, path)| (name, path.into()))
}

/// Reads the parts: of each what it measured, its command, its commit and its moment; the machine is the same for all.
///
/// # Errors
/// When a file is no result.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let mut parts = Vec::new();
    for (name, path) in &args.part {
        let text = fs::read(path).map_err(|source| Error::File { path: path.clone(), source })?;
        let found: Value =
            serde_json::from_slice(&text).map_err(|_not_json| Error::Malformed { what: "result" })?;
        if found.get("result").is_none() {
            return Err(Error::Malformed { what: "result" });
        }
        let mut part = json!({ "name": name });
        for key in ["bench", "command", "commit", "dirty", "date", "result"] {
            part[key] = found[key].clone();
        }
        parts.push(part);
    }
    let notes = args.note.iter().map(|(key, text)| (key.clone(), Value::from(text.clone()))).collect();
    Ok(Report { notes, parts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::tests::result;

    #[test]
    fn parts_keep_what_they_measured_and_how() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("closed.json");
        fs::write(&path, result(300.0, 1.0, 0.5).to_string()).unwrap();
        let mut args = Args {
            name: "latency".to_owned(),
            part: vec![named(&format!("closed={}", path.display())).unwrap()],
            note: vec![noted("cell=s-plain-500x8").unwrap()],
        };
        let report = serde_json::to_value(run(&args).unwrap()).unwrap();
        assert_eq!(report["parts"][0]["name"], "closed");
        assert_eq!(report["parts"][0]["result"]["seconds"], 12.0);
        assert_eq!(report["parts"][0]["command"], "sluicebox-bench load");
        assert_eq!(report["notes"]["cell"], "s-plain-500x8");
        fs::write(&path, "{}").unwrap();
        assert!(run(&args).is_err());
        args.part[0].1 = dir.path().join("none");
        assert!(run(&args).is_err());
        assert!(named("closed").is_err());
    }
}
