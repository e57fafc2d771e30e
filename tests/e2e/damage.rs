//! Files that rot or vanish while the appliance is down.

use ingest_otlp::messages::ExportTraceServiceRequest;
use serde_json::{Value, json};
use store_model::TraceId;

use crate::appliance::{Home, damage, eventually, text};
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, assert_same, attribute, request, trace};

/// Sends so many kept traces of about 20 KB each, in a request each.
async fn fill(home: &Home, traces: u64, seed: u64) -> Vec<(TraceId, ExportTraceServiceRequest)> {
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut dice = Dice(seed);
    let mut sent = Vec::new();
    for _ in 0..traces {
        let id = dice.trace_id();
        let mut spans = trace(id, 10);
        for span in &mut spans {
            let noise: String = (0..100).map(|_| format!("{:016x}", dice.next())).collect();
            span.attributes.push(attribute("noise", &noise));
        }
        let request = request("damaged", spans);
        sender.send_until_taken(&request).await;
        sent.push((id, request));
    }
    Asker::connect(appliance.query()).await.at_rest(traces * 10).await;
    assert_eq!(appliance.terminate().await.code(), Some(0));
    sent
}

/// Everything is kept; journal segments are as small as they can be, and the archive seals when `archive` says, not because
/// memory is short.
fn keeping_all(archive: Value) -> Value {
    json!({
        "sampling": { "head_probability": 1.0 },
        "journal": { "segment_bytes": "1MiB" },
        "archive": archive,
        "memory": { "limit": "1GiB" },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_segment_is_named_and_costs_only_what_was_in_it() {
    // The archive seals nothing by itself, so that after a restart every trace has to come from the journal.
    let home = Home::new(keeping_all(json!({})));
    let sent = fill(&home, 300, 14).await;
    let segments = home.files("spans", ".log");
    assert!(segments.len() >= 3, "{segments:?}");
    assert!(home.doctor().status.success(), "{}", text(&home.doctor()));
    damage(&segments[0]);
    let name = segments[0].to_str().unwrap();
    let appliance = home.start().await;
    assert!(appliance.metric("sluicebox_quarantined_segments") >= 1.0);
    let doctor = home.doctor();
    assert_eq!(doctor.status.code(), Some(1), "{}", text(&doctor));
    assert!(text(&doctor).contains(name), "{}", text(&doctor));

    let mut asker = Asker::connect(appliance.query()).await;
    let status = asker.status().await;
    assert!(status.notices.iter().any(|notice| notice.contains(name)), "{:?}", status.notices);
    let mut missing = 0;
    for (id, sent) in sent {
        match asker.trace(id).await {
            Some((came, _)) => assert_same(&[sent], &came, true),
            None => missing += 1,
        }
    }
    assert!((1..60).contains(&missing), "{missing} of 300 traces are missing, a segment holds about 50");
    // It takes in more, and the damage stays where it was.
    let id = Dice(15).trace_id();
    let more = request("later", trace(id, 2));
    Sender::connect(appliance.grpc()).await.send(&more).await.unwrap();
    asker.at_rest(3_002).await;
    assert_same(&[more], &asker.trace(id).await.unwrap().0, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_traces_do_not_need_the_journal_any_more() {
    let home = Home::new(keeping_all(json!({ "open_bytes": "64KiB", "open_age": "100ms" })));
    let sent = fill(&home, 100, 16).await;
    // What the stop left in the open segment is gathered from the journal once more, and sealed.
    let appliance = home.start().await;
    eventually("everything is sealed", async || {
        (appliance.metric("sluicebox_archive_open_bytes") == 0.0).then_some(())
    })
    .await;
    appliance.kill();
    for segment in home.files("spans", ".log") {
        std::fs::remove_file(segment).unwrap();
    }
    let appliance = home.start().await;
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.status().await.counts.unwrap();
    assert_eq!((counts.arrived, counts.kept), (1_000, 1_000));
    for (id, sent) in sent {
        let (came, _) = asker.trace(id).await.unwrap_or_else(|| panic!("{id} is missing"));
        assert_same(&[sent], &came, true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_archive_segments_are_rebuilt_from_the_journal() {
    let home = Home::new(keeping_all(json!({ "open_bytes": "512KiB", "open_age": "300ms" })));
    let sent = fill(&home, 200, 17).await;
    for (shard, damages) in [("0", false), ("1", true)] {
        let segments = home.files(&format!("traces/{shard}"), ".seg");
        let newest = segments.last().unwrap();
        if damages { damage(newest) } else { std::fs::remove_file(newest).unwrap() }
    }
    for _ in 0..2 {
        let appliance = home.start().await;
        let mut asker = Asker::connect(appliance.query()).await;
        let counts = asker.at_rest(2_000).await;
        assert_eq!((counts.arrived, counts.kept), (2_000, 2_000));
        for (id, sent) in &sent {
            let (came, _) = asker.trace(*id).await.unwrap_or_else(|| panic!("{id} is missing"));
            assert_same(std::slice::from_ref(sent), &came, true);
        }
        appliance.kill();
    }
}
