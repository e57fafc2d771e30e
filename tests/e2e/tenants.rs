//! Tenants: one trace id, two owners.

use query_api::proto::SearchTracesRequest;
use serde_json::json;
use tonic::Code;

use crate::appliance::Home;
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, assert_same, request, trace};

#[tokio::test(flavor = "multi_thread")]
async fn tenants_with_the_same_trace_id_never_see_each_other() {
    let home = Home::new(json!({ "sampling": { "head_probability": 1.0 } }));
    let mut appliance = home.start().await;
    let id = Dice(11).trace_id();
    let sent = ["red", "blue"].map(|tenant| (tenant, request(tenant, trace(id, 3))));
    for (tenant, request) in &sent {
        let mut sender = Sender::connect(appliance.grpc()).await.with_tenant(tenant);
        sender.send(request).await.unwrap();
    }
    for restarted in [false, true] {
        if restarted {
            appliance.kill();
            appliance = home.start().await;
        }
        for (tenant, request) in &sent {
            let mut asker = Asker::connect(appliance.query()).await.with_tenant(tenant);
            let counts = asker.at_rest(3).await;
            assert_eq!((counts.arrived, counts.kept), (3, 3), "{tenant}");
            assert_same(std::slice::from_ref(request), &asker.trace(id).await.unwrap().0, true);
            let found = asker.search(SearchTracesRequest::default()).await.unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].services, [*tenant]);
        }
        let mut nobody = Asker::connect(appliance.query()).await;
        assert!(nobody.trace(id).await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_name_that_could_walk_a_path_is_refused() {
    let home = Home::new(json!({}));
    let appliance = home.start().await;
    let id = Dice(12).trace_id();
    for name in ["../x", "..", "a b"] {
        let mut sender = Sender::connect(appliance.grpc()).await.with_tenant(name);
        let refusal = sender.send(&request("shop", trace(id, 1))).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{name}: {refusal:?}");
    }
}
