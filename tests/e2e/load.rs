//! More than fits: senders that push harder than the journal writes, and more live traces than the memory budget holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ingest_otlp::messages::Span;
use serde_json::json;
use store_model::TraceId;

use crate::appliance::{Appliance, Home, eventually};
use crate::asker::Asker;
use crate::sender::{Sender, assert_invites_retry};
use crate::spans::{Dice, attribute, failed, request, span};

/// Holds a million live traces, their bodies and everything else.
const LARGE_BUDGET_KIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_refused_with_a_retry_and_memory_stays_flat() {
    // The journal writes twice a second and lets 256 KiB wait: far less than the senders have.
    let home = Home::new(json!({
        "journal": { "queue_bytes": "256KiB", "group_interval": "500ms", "group_bytes": "64MiB" },
    }));
    let appliance = home.start().await;
    let (taken, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut senders = Vec::new();
    for number in 0..32 {
        let (taken, refused) = (Arc::clone(&taken), Arc::clone(&refused));
        let mut sender = Sender::connect(appliance.grpc()).await;
        senders.push(tokio::spawn(async move {
            let mut dice = Dice(20_000 + number);
            let mut errors = Vec::new();
            for _ in 0..20 {
                let id = dice.trace_id();
                let mut spans: Vec<Span> = (0..50).map(|index| span(id, index)).collect();
                spans[0].attributes.push(attribute("padding", &"x".repeat(50_000)));
                spans[9] = failed(spans[9].clone());
                match sender.send(&request("pushy", spans)).await {
                    Ok(()) => {
                        taken.fetch_add(50, Ordering::Relaxed);
                        errors.push(id);
                    }
                    Err(refusal) => {
                        assert_invites_retry(&refusal);
                        refused.fetch_add(50, Ordering::Relaxed);
                    }
                }
            }
            errors
        }));
    }
    let mut errors = Vec::new();
    for sender in senders {
        errors.extend(sender.await.unwrap());
    }
    let (taken, refused) = (taken.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(taken > 0 && refused > taken, "{taken} taken, {refused} refused: that is no overload");
    let peak = appliance.memory_kib("VmHWM");
    assert!(peak < 256 << 10, "{peak} KiB at the most, the budget is 256 MiB");
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(taken + refused).await;
    assert_eq!((counts.arrived, counts.kept, counts.refused), (taken + refused, taken, refused));
    for id in errors {
        let (_, summary) = asker.trace(id).await.unwrap_or_else(|| panic!("{id} is missing"));
        assert_eq!(summary.span_count, 50);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_live_traces_stay_within_the_memory_budget() {
    // None of them ends by itself before all are there.
    let home = Home::new(json!({
        "aggregator": { "idle_timeout": "15s" },
        "sampling": { "head_probability": 0.001 },
        "memory": { "limit": "128MiB" },
    }));
    let appliance = home.start().await;
    let (_, most_live) = send_a_million(&appliance).await;
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(1_000_000).await;
    assert!(counts.arrived - counts.refused == 1_000_000, "{counts:?}");
    assert!(counts.shed > 0 && most_live > 50_000.0, "{most_live} live at the most, {counts:?}");
    let peak = appliance.memory_kib("VmHWM");
    assert!(peak < 256 << 10, "{peak} KiB at the most, the budget is 128 MiB");
    let status = asker.status().await;
    assert!(status.accepting, "{:?}", status.notices);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_traces_live_at_once_in_a_budget_made_for_them() {
    let home = Home::new(json!({
        "aggregator": { "idle_timeout": "10m" },
        "memory": { "limit": format!("{LARGE_BUDGET_KIB}KiB") },
    }));
    let appliance = home.start().await;
    let (some_id, _) = send_a_million(&appliance).await;
    let mut asker = Asker::connect(appliance.query()).await;
    // Acknowledged spans are on their way to the shard for a moment.
    let status = eventually("a million traces have arrived", async || {
        let status = asker.status().await;
        let counts = status.counts.unwrap();
        (counts.arrived - counts.refused >= 1_000_000).then_some(status)
    })
    .await;
    let counts = status.counts.unwrap();
    assert_eq!((counts.shed, counts.undecided, status.live_traces), (0, 1_000_000, 1_000_000), "{counts:?}");
    assert!(status.memory_used_bytes < status.memory_limit_bytes, "{status:?}");
    let (_, summary) = asker.trace(some_id).await.expect("a live trace is found by its id");
    assert_eq!(summary.span_count, 1);
    let peak = appliance.memory_kib("VmHWM");
    assert!(peak < LARGE_BUDGET_KIB, "{peak} KiB at the most, the budget is {LARGE_BUDGET_KIB} KiB");
}

/// Sends a million traces of one span each. Returns one of their ids, and how many were seen to live at once.
async fn send_a_million(appliance: &Appliance) -> (TraceId, f64) {
    let mut senders = Vec::new();
    for number in 0..2 {
        let mut sender = Sender::connect(appliance.grpc()).await;
        senders.push(tokio::spawn(async move {
            let mut dice = Dice(30_000 + number);
            let mut last = Vec::new();
            for _ in 0..500 {
                let spans: Vec<Span> = (0..1_000).map(|_| lean(&mut dice)).collect();
                last.clone_from(&spans[0].trace_id);
                sender.send_until_taken(&request("many", spans)).await;
            }
            TraceId(last.try_into().unwrap())
        }));
    }
    let mut most_live: f64 = 0.0;
    while senders.iter().any(|sender| !sender.is_finished()) {
        most_live = most_live.max(appliance.metric("sluicebox_live_traces"));
        tokio::task::yield_now().await;
    }
    let mut some_id = None;
    for sender in senders {
        some_id = Some(sender.await.unwrap());
    }
    (some_id.unwrap(), most_live)
}

/// A trace of one small span whose root never comes.
fn lean(dice: &mut Dice) -> Span {
    let id = dice.trace_id();
    let span = span(id, 1);
    Span { attributes: Vec::new(), events: Vec::new(), links: Vec::new(), ..span }
}
