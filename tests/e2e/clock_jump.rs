//! A wall clock that is set back while the appliance runs.

use std::path::Path;

use serde_json::json;

use crate::appliance::{Home, eventually};
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, assert_same, failed, request, trace};

/// A library that gives a process a wall clock of its own (Debian package `faketime`).
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_back_stops_neither_ingest_nor_decisions() {
    if !Path::new(LIBRARY).exists() {
        eprintln!("SKIP: {LIBRARY} is not installed, the jumping clock is not tested");
        return;
    }
    let home = Home::new(json!({ "archive": { "open_age": "300ms" } }));
    let clock = tempfile::NamedTempFile::new().unwrap();
    let set = |offset: &str| std::fs::write(clock.path(), offset).unwrap();
    set("+0");
    let environment = [
        ("LD_PRELOAD", LIBRARY),
        ("FAKETIME_TIMESTAMP_FILE", clock.path().to_str().unwrap()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    let mut appliance = home.start_with(&environment).await;
    let mut dice = Dice(19);
    let mut sent = Vec::new();
    for (round, offset) in ["+0", "-2d", "+1d", "-30d", "-30d"].into_iter().enumerate() {
        set(offset);
        // The last round begins with a restart in the past.
        if round == 4 {
            assert_eq!(appliance.terminate().await.code(), Some(0));
            appliance = home.start_with(&environment).await;
        }
        let mut sender = Sender::connect(appliance.grpc()).await;
        for _ in 0..20 {
            let id = dice.trace_id();
            let mut spans = trace(id, 3);
            spans[1] = failed(spans[1].clone());
            let request = request("jumping", spans);
            sender.send(&request).await.unwrap();
            sent.push((id, request));
        }
        let mut asker = Asker::connect(appliance.query()).await;
        let counts = asker.at_rest(sent.len() as u64 * 3).await;
        assert_eq!(counts.kept, sent.len() as u64 * 3, "after {offset}: {counts:?}");
        eventually("the traces are sealed", async || {
            (appliance.metric("sluicebox_archive_open_bytes") == 0.0).then_some(())
        })
        .await;
    }
    let mut asker = Asker::connect(appliance.query()).await;
    for (id, sent) in sent {
        let (came, _) = asker.trace(id).await.unwrap_or_else(|| panic!("{id} is missing"));
        assert_same(&[sent], &came, true);
    }
}
