//! Spans that come out of order, late, twice, or without a root.

use query_api::proto::Decision;
use serde_json::json;

use crate::appliance::{Home, eventually};
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, assert_same, failed, request, span, trace};

#[tokio::test(flavor = "multi_thread")]
async fn children_before_their_root_come_back_with_it() {
    let home = Home::new(json!({ "sampling": { "head_probability": 1.0 } }));
    let appliance = home.start().await;
    let (mut here, mut there) =
        (Sender::connect(appliance.grpc()).await, Sender::connect(appliance.grpc()).await);
    let id = Dice(6).trace_id();
    let sent = [
        request("back", vec![span(id, 3), span(id, 2)]),
        request("middle", vec![span(id, 1)]),
        request("front", vec![span(id, 0)]),
    ];
    here.send(&sent[0]).await.unwrap();
    there.send(&sent[1]).await.unwrap();
    here.send(&sent[2]).await.unwrap();
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(4).await;
    assert_eq!(counts.kept, 4);
    let (came, summary) = asker.trace(id).await.unwrap();
    assert_same(&sent, &came, true);
    assert_eq!((summary.root_service.as_str(), summary.complete), ("front", true));
    assert_eq!(summary.services, ["back", "front", "middle"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_spans_follow_the_decision_and_a_late_error_reverses_it() {
    let home = Home::new(json!({ "sampling": { "head_probability": 0.0 } }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut asker = Asker::connect(appliance.query()).await;
    let mut dice = Dice(7);
    let (kept, dropped) = (dice.trace_id(), dice.trace_id());
    let early = request("early", vec![span(kept, 0), failed(span(kept, 1))]);
    sender.send(&early).await.unwrap();
    sender.send(&request("early", trace(dropped, 3))).await.unwrap();
    let counts = asker.at_rest(5).await;
    assert_eq!((counts.kept, counts.sampled_out), (2, 3));

    let late = request("late", vec![span(kept, 2)]);
    sender.send(&late).await.unwrap();
    sender.send(&request("late", vec![span(dropped, 3)])).await.unwrap();
    let counts = asker.at_rest(7).await;
    assert_eq!((counts.kept, counts.sampled_out), (3, 4));
    let (came, _) = asker.trace(kept).await.unwrap();
    assert_same(&[early, late], &came, true);
    assert!(asker.trace(dropped).await.is_none());

    let error = request("late", vec![failed(span(dropped, 4))]);
    sender.send(&error).await.unwrap();
    let counts = asker.at_rest(8).await;
    assert_eq!((counts.kept, counts.sampled_out), (4, 4));
    let (came, summary) = asker.trace(dropped).await.unwrap();
    assert_same(&[error], &came, true);
    assert_eq!(summary.decision(), Decision::KeptError);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_refused_before_and_after_the_decision_and_after_a_restart() {
    let home = Home::new(json!({ "sampling": { "head_probability": 1.0 } }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let id = Dice(8).trace_id();
    let sent = request("twice", trace(id, 6));
    sender.send(&sent).await.unwrap();
    sender.send(&sent).await.unwrap();
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(12).await;
    assert_eq!((counts.arrived, counts.kept, counts.refused), (12, 6, 6));
    sender.send(&sent).await.unwrap();
    let counts = asker.at_rest(18).await;
    assert_eq!((counts.arrived, counts.kept, counts.refused), (18, 6, 12));
    assert_same(std::slice::from_ref(&sent), &asker.trace(id).await.unwrap().0, true);
    appliance.kill();

    let appliance = home.start().await;
    Sender::connect(appliance.grpc()).await.send(&sent).await.unwrap();
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(24).await;
    assert_eq!((counts.arrived, counts.kept, counts.refused), (24, 6, 18));
    assert_same(&[sent], &asker.trace(id).await.unwrap().0, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_without_a_root_are_decided_when_they_fall_silent() {
    let home = Home::new(json!({ "sampling": { "head_probability": 0.0 } }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut dice = Dice(9);
    let (error, plain) = (dice.trace_id(), dice.trace_id());
    let sent = request("rootless", vec![failed(span(error, 1)), span(error, 2)]);
    sender.send(&sent).await.unwrap();
    sender.send(&request("rootless", vec![span(plain, 1)])).await.unwrap();
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(3).await;
    assert_eq!((counts.kept, counts.sampled_out), (2, 1));
    let (came, summary) = eventually("it is kept", async || asker.trace(error).await).await;
    assert_same(&[sent], &came, true);
    assert_eq!((summary.decision(), summary.complete), (Decision::KeptError, false));
    assert!(asker.trace(plain).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_of_a_hundred_thousand_spans_comes_back_whole() {
    let home = Home::new(json!({
        "sampling": { "head_probability": 1.0 },
        "aggregator": { "quiet_after_root": "2s", "idle_timeout": "20s", "max_spans_per_trace": 1_000_000 },
    }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let id = Dice(10).trace_id();
    let mut sent = Vec::new();
    for part in (0..100).rev() {
        let spans = (part * 1_000..(part + 1) * 1_000).map(|index| span(id, index)).collect();
        let request = request("large", spans);
        sender.send_until_taken(&request).await;
        sent.push(request);
    }
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(100_000).await;
    assert_eq!(counts.kept, 100_000, "{counts:?}");
    let (came, summary) = asker.trace(id).await.unwrap();
    assert_eq!((summary.span_count, summary.complete), (100_000, true));
    assert_same(&sent, &came, true);
}
