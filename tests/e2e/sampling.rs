//! What is kept: errors and slow traces all, plain ones as their trace id says; and what can be seen before the decision.

use query_api::proto::{Decision, SearchTracesRequest};
use serde_json::json;
use store_model::Threshold;

use crate::appliance::{Home, eventually};
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, assert_same, failed, lasting, request, span, trace};

/// Slow means longer than a second; a quarter of the plain traces is kept.
fn sampling() -> serde_json::Value {
    json!({ "head_probability": 0.25, "slow": { "floor": "1s", "fallback": "1s" } })
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_slow_traces_are_kept_and_plain_ones_as_their_id_says() {
    let home = Home::new(json!({ "sampling": sampling() }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut dice = Dice(1);
    let head = Threshold::from_probability(0.25);
    let mut expected = Vec::new();
    for number in 0..300 {
        let id = dice.trace_id();
        let mut spans = trace(id, 5);
        let decision = match number % 6 {
            0 => {
                spans[3] = failed(spans[3].clone());
                Some(Decision::KeptError)
            }
            1 => {
                spans[0] = lasting(spans[0].clone(), 3);
                Some(Decision::KeptSlow)
            }
            _ => head.keeps(id.randomness()).then_some(Decision::KeptHead),
        };
        let request = request("shop", spans);
        sender.send(&request).await.unwrap();
        expected.push((id, request, decision));
    }
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(300 * 5).await;
    let kept = expected.iter().filter(|(.., decision)| decision.is_some()).count() as u64;
    assert!((110..200).contains(&kept), "the test wants both kept and dropped traces, kept is {kept}");
    assert_eq!((counts.arrived, counts.kept, counts.sampled_out), (1_500, kept * 5, 1_500 - kept * 5));
    for (id, sent, decision) in expected {
        let came = asker.trace(id).await;
        assert_eq!(came.is_some(), decision.is_some(), "{id} should be {decision:?}");
        if let (Some((came, summary)), Some(decision)) = (came, decision) {
            assert_same(&[sent], &came, true);
            assert_eq!((summary.decision(), summary.complete), (decision, true), "{id}");
            let stands_for = if decision == Decision::KeptHead { 4.0 } else { 1.0 };
            assert!(
                (summary.adjusted_count - stands_for).abs() < 0.001,
                "{decision:?} stands for {}",
                summary.adjusted_count
            );
        }
    }
    let found = asker.search(SearchTracesRequest { limit: 17, ..Default::default() }).await.unwrap();
    assert_eq!(found.len() as u64, kept, "a search finds what is kept, page by page");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_visible_while_it_still_receives_spans() {
    // Nothing is decided before the root has come.
    let home = Home::new(json!({ "sampling": sampling(), "aggregator": { "idle_timeout": "5m" } }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut asker = Asker::connect(appliance.query()).await;
    let id = Dice(2).trace_id();
    let children = request("live", vec![failed(span(id, 1)), span(id, 2)]);
    sender.send(&children).await.unwrap();
    let (came, summary) = eventually("the live trace is visible by id", async || asker.trace(id).await).await;
    assert_same(std::slice::from_ref(&children), &came, false);
    assert_eq!((summary.decision(), summary.complete), (Decision::Pending, false));
    let question = SearchTracesRequest { service: "live".into(), ..Default::default() };
    let found = eventually("the live trace is visible to search", async || {
        asker.search(question.clone()).await.unwrap().pop()
    })
    .await;
    assert_eq!(found.trace_id, id.0);
    assert_eq!((found.decision(), found.span_count), (Decision::Pending, 2));

    let root = request("live", vec![span(id, 0)]);
    sender.send(&root).await.unwrap();
    let (came, _) = eventually("the trace is complete", async || {
        asker.trace(id).await.filter(|(_, summary)| summary.complete)
    })
    .await;
    assert_same(&[children, root], &came, true);
    let found = asker.search(question).await.unwrap();
    assert_eq!(found.len(), 1, "the decided trace is found once");
    assert!(found[0].complete && found[0].decision() == Decision::KeptError);
}
