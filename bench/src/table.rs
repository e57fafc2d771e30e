//! `table`: a result of `matrix`, `gather` or `flame` as lines for people. Adds nothing that the result does not hold.

use std::fmt::Write as _;
use std::fs;
use std::iter;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::Error;
use crate::matrix::SERVERS;

/// Options of `table`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A result of `matrix`, `gather` or `flame`
    file: PathBuf,
}

/// Lines, each with its end.
///
/// # Errors
/// When the file is none of these.
pub(crate) fn run(args: &Args) -> Result<String, Error> {
    let text = fs::read(&args.file).map_err(|source| Error::File { path: args.file.clone(), source })?;
    let found: Value =
        serde_json::from_slice(&text).map_err(|_not_json| Error::Malformed { what: "result" })?;
    let result = &found["result"];
    let list = |key: &str| result[key].as_array();
    let rows = match (list("cells"), list("parts"), list("groups")) {
        (Some(cells), _, _) => matrix(cells),
        (_, Some(parts), _) => gathered(parts),
        (_, _, Some(groups)) => costs(groups),
        (None, None, None) => return Err(Error::Malformed { what: "result of matrix, gather or flame" }),
    };
    Ok(aligned(&rows))
}

/// A number with so many decimals, or a dash where there is none.
fn number(value: &Value, scale: f64, decimals: usize) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |number| format!("{:.decimals$}", number / scale))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

const MIB: f64 = 1_048_576.0;

fn matrix(cells: &[Value]) -> Vec<Vec<String>> {
    let heads = [
        "cell",
        "server",
        "M spans/s",
        "CPU-ns",
        "user",
        "system",
        "steady",
        "settled",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "RSS MiB",
        "loss %",
        "x sink",
        "x portable",
        "limit",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for cell in cells {
        for server in SERVERS {
            let measured = &cell["servers"][server];
            if measured.is_null() {
                continue;
            }
            rows.push(vec![
                text(&cell["name"]),
                server.to_owned(),
                number(&measured["spans_per_second"], 1e6, 2),
                number(&measured["cpu_ns_per_span"], 1.0, 0),
                number(&measured["cpu_user_ns_per_span"], 1.0, 0),
                number(&measured["cpu_system_ns_per_span"], 1.0, 0),
                number(&measured["steady_cpu_ns_per_span"], 1.0, 0),
                number(&measured["settled_cpu_ns_per_span"], 1.0, 0),
                number(&measured["latency_p50_ms"], 1.0, 1),
                number(&measured["latency_p99_ms"], 1.0, 1),
                number(&measured["latency_p999_ms"], 1.0, 1),
                number(&measured["rss_bytes_max"], MIB, 0),
                number(&measured["loss"], 0.01, 2),
                number(&measured["to_sink"]["steady_cpu"], 1.0, 2),
                number(&measured["to_portable"]["steady_cpu"], 1.0, 2),
                text(&measured["limit"]),
            ]);
        }
    }
    rows
}

fn gathered(parts: &[Value]) -> Vec<Vec<String>> {
    let heads = [
        "part",
        "asked M/s",
        "sent M/s",
        "M spans/s",
        "CPU-ns",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "RSS MiB before",
        "max",
        "after",
        "refused",
        "hints",
        "missing",
        "passed",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for part in parts {
        let (result, server) = (&part["result"], &part["result"]["server"]);
        let sent = result["spans_sent"].as_f64().zip(result["seconds"].as_f64());
        rows.push(vec![
            text(&part["name"]),
            number(&result["rate_asked"], 1e6, 3),
            sent.map_or_else(|| "-".to_owned(), |(sent, seconds)| format!("{:.3}", sent / seconds / 1e6)),
            number(&result["spans_per_second"], 1e6, 3),
            number(&server["cpu_ns_per_span"]["total"], 1.0, 0),
            number(&result["steady_latency"]["p50_ms"], 1.0, 1),
            number(&result["steady_latency"]["p99_ms"], 1.0, 1),
            number(&result["steady_latency"]["p999_ms"], 1.0, 1),
            number(&server["rss_bytes_before"], MIB, 0),
            number(&server["rss_bytes_max"], MIB, 0),
            number(&server["rss_bytes_after"], MIB, 0),
            number(&result["requests_refused"], 1.0, 0),
            number(&result["retry_hints_seen"], 1.0, 0),
            number(&result["traces_missing"], 1.0, 0),
            result["passed"].as_bool().map_or("-", |passed| if passed { "yes" } else { "NO" }).to_owned(),
        ]);
    }
    rows
}

fn costs(groups: &[Value]) -> Vec<Vec<String>> {
    let row = |cost: &Value| vec![number(&cost["share"], 0.01, 1), text(&cost["name"])];
    let heads = ["% of samples", "group"].map(str::to_owned).to_vec();
    iter::once(heads).chain(groups.iter().map(row)).collect()
}

/// Columns as wide as their widest entry; words to the left, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (entry, &width) in row.iter().zip(&widths) {
            let is_number = entry == "-" || entry.parse::<f64>().is_ok();
            // Writing to a string cannot fail.
            let _written =
                if is_number { write!(line, "{entry:>width$}  ") } else { write!(line, "{entry:<width$}  ") };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table(result: &Value) -> Result<String, Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("result.json");
        fs::write(&file, json!({ "result": result }).to_string()).unwrap();
        run(&Args { file })
    }

    #[test]
    fn a_matrix_has_a_line_for_each_server_that_was_measured() {
        let measured = json!({"cpu_ns_per_span": 331.4, "to_sink": {"steady_cpu": 2.5}, "limit": "server"});
        let found = table(&json!({"cells": [
            {"name": "s-plain-500x8", "servers": {"io_uring": measured, "sink": {"cpu_ns_per_span": 140.0}}}
        ]}));
        let found = found.unwrap();
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines.len(), 3);
        for word in ["s-plain-500x8", "io_uring", "331", "2.50", "server"] {
            assert!(lines[1].contains(word), "{word}: {}", lines[1]);
        }
        assert!(lines[2].contains("sink") && lines[2].contains("140"));
    }

    #[test]
    fn parts_are_shown_whatever_they_measured() {
        let load = json!({"spans_sent": 2_000_000, "seconds": 2.0, "requests_refused": 7, "server": {"rss_bytes_max": 2_097_152}});
        let found = table(&json!({"parts": [
            {"name": "overload", "result": load}, {"name": "verify", "result": {"passed": false}}
        ]}));
        let found = found.unwrap();
        assert!(
            found.contains("1.000") && found.contains('7') && found.contains('2') && found.contains("NO"),
            "{found}"
        );
        let costs = table(&json!({"groups": [{"name": "kernel: receive", "share": 0.25}]})).unwrap();
        assert!(costs.contains("25.0") && costs.contains("kernel: receive"), "{costs}");
        assert!(table(&json!({})).is_err());
    }
}
