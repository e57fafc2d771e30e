//! Ends of the process, wanted and unwanted, and what the next one finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use query_api::proto::Decision;
use serde_json::json;
use store_model::TraceId;

use crate::appliance::{Home, eventually, run, text};
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, assert_same, failed, flatten, request, span, trace};

/// How often the process is killed.
const ROUNDS: u64 = 50;

/// Senders at once.
const SENDERS: u64 = 4;

/// What was sent of a trace, and what of it was acknowledged.
#[derive(Default)]
struct Sent {
    has_error: bool,
    sent: BTreeSet<Vec<u8>>,
    acknowledged: BTreeSet<Vec<u8>>,
}

type Ledger = Arc<Mutex<BTreeMap<TraceId, Sent>>>;

/// Sends until the appliance is gone: three traces at a time, in two requests, so that traces are open at every moment.
async fn load(mut sender: Sender, seed: u64, ledger: Ledger, is_over: Arc<AtomicBool>) {
    let mut dice = Dice(seed);
    while !is_over.load(Ordering::Relaxed) {
        let ids: Vec<TraceId> = (0..3).map(|_| dice.trace_id()).collect();
        let mut first = Vec::new();
        let mut second = Vec::new();
        for &id in &ids {
            let has_error = dice.below(4) == 0;
            first.push(if has_error { failed(span(id, 1)) } else { span(id, 1) });
            first.push(span(id, 2));
            second.extend([span(id, 3), span(id, 0)]);
            ledger.lock().unwrap().entry(id).or_default().has_error = has_error;
        }
        for spans in [first, second] {
            for span in &spans {
                let id = TraceId(span.trace_id.as_slice().try_into().unwrap());
                ledger.lock().unwrap().get_mut(&id).unwrap().sent.insert(span.span_id.clone());
            }
            let request = request("crash", spans);
            if sender.send(&request).await.is_err() {
                return;
            }
            for span in &request.resource_spans[0].scope_spans[0].spans {
                let id = TraceId(span.trace_id.as_slice().try_into().unwrap());
                ledger.lock().unwrap().get_mut(&id).unwrap().acknowledged.insert(span.span_id.clone());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_under_load_lose_and_double_nothing() {
    // Small segments, so that kills also fall between sealing one and opening the next.
    let home = Home::new(json!({
        "sampling": { "head_probability": 0.1, "slow": { "enabled": false } },
        "journal": { "segment_bytes": "1MiB" },
        "archive": { "open_bytes": "256KiB", "open_age": "100ms" },
        // A life is short: decisions must fall in it, or no kill would ever meet a settled span.
        "aggregator": { "quiet_after_root": "20ms" },
    }));
    let ledger = Ledger::default();
    let mut dice = Dice(4);
    for round in 0..ROUNDS {
        let appliance = home.start().await;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut senders = Vec::new();
        for number in 0..SENDERS {
            let sender = Sender::connect(appliance.grpc()).await;
            let seed = 1_000 + round * SENDERS + number;
            senders.push(tokio::spawn(load(sender, seed, Arc::clone(&ledger), Arc::clone(&is_over))));
        }
        tokio::time::sleep(Duration::from_millis(100 + dice.below(300))).await;
        appliance.kill();
        is_over.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.await.unwrap();
        }
    }
    let appliance = home.start().await;
    let mut asker = Asker::connect(appliance.query()).await;
    let ledger = std::mem::take(&mut *ledger.lock().unwrap());
    let acknowledged: u64 = ledger.values().map(|trace| trace.acknowledged.len() as u64).sum();
    let sent: u64 = ledger.values().map(|trace| trace.sent.len() as u64).sum();
    assert!(acknowledged > 1_000, "only {acknowledged} spans were acknowledged, that is no load");
    let counts = asker.at_rest(acknowledged).await;
    assert!(counts.arrived <= sent, "{} arrived, {sent} sent", counts.arrived);
    assert_eq!((counts.expired, counts.shed), (0, 0), "{counts:?}");
    let mut kept = 0;
    for (id, trace) in &ledger {
        let came = asker.trace(*id).await.map(|(came, _)| flatten(&came.resource_spans)).unwrap_or_default();
        kept += came.len() as u64;
        assert!(came.keys().all(|span| trace.sent.contains(span)), "{id} has a span that nobody sent");
        if trace.has_error {
            let missing: Vec<_> =
                trace.acknowledged.iter().filter(|&span| !came.contains_key(span)).collect();
            assert!(missing.is_empty(), "error trace {id} lost acknowledged spans {missing:?}");
        }
    }
    // An answer shows a copy only once; the count would show it.
    assert_eq!(counts.kept, kept, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_the_next_start_has_everything() {
    let home = Home::new(json!({
        "sampling": { "head_probability": 1.0 },
        "aggregator": { "idle_timeout": "5m" },
    }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut dice = Dice(5);
    let mut sent = Vec::new();
    for _ in 0..50 {
        let id = dice.trace_id();
        let request = request("drain", trace(id, 4));
        sender.send(&request).await.unwrap();
        sent.push((id, request));
    }
    // Without a root it stays undecided.
    let open = dice.trace_id();
    let first = request("drain", vec![span(open, 1), span(open, 2)]);
    sender.send(&first).await.unwrap();
    let status = appliance.terminate().await;
    assert_eq!(status.code(), Some(0), "{status}");

    let appliance = home.start().await;
    let mut asker = Asker::connect(appliance.query()).await;
    let (came, summary) = eventually("the undecided trace is back", async || asker.trace(open).await).await;
    assert_same(std::slice::from_ref(&first), &came, false);
    assert_eq!((summary.decision(), summary.complete), (Decision::Pending, false));
    let root = request("drain", vec![span(open, 0)]);
    Sender::connect(appliance.grpc()).await.send(&root).await.unwrap();
    let counts = asker.at_rest(203).await;
    assert_eq!((counts.arrived, counts.kept), (203, 203));
    let (came, summary) = asker.trace(open).await.unwrap();
    assert!(summary.complete);
    assert_same(&[first, root], &came, true);
    for (id, sent) in sent {
        let (came, _) = asker.trace(id).await.unwrap();
        assert_same(&[sent], &came, true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_comes_back_under_a_smaller_limit_of_requests() {
    let sampling = json!({ "head_probability": 1.0 });
    let home = Home::new(json!({ "sampling": sampling, "aggregator": { "idle_timeout": "5m" } }));
    let appliance = home.start().await;
    let id = Dice(6).trace_id();
    // Without its root, so that it is undecided when the process dies.
    let large = request("large", (1..20_000).map(|number| span(id, number)).collect());
    assert!(prost::Message::encoded_len(&large) > 1 << 20);
    Sender::connect(appliance.grpc()).await.send(&large).await.unwrap();
    appliance.kill();

    let otlp = json!({ "protocols": { "grpc": { "max_recv_msg_size": "1MiB" } } });
    home.configure(json!({ "sampling": sampling, "receivers": { "otlp": otlp } }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    assert!(sender.send(&large).await.is_err(), "the limit is in force");
    sender.send(&request("large", vec![span(id, 0)])).await.unwrap();
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(20_000).await;
    assert_eq!((counts.arrived, counts.kept, counts.expired), (20_000, 20_000, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_directory_refuses() {
    let home = Home::new(json!({}));
    let mut appliance = home.start().await;
    let (config, data) = (home.config(), home.data());
    let second = run(&["serve", "--config", config.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    assert!(text(&second).contains(data.to_str().unwrap()), "{}", text(&second));
    assert!(appliance.is_running() && appliance.get("/readyz").0 == 200);
}
