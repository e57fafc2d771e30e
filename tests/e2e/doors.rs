//! The ways in: gRPC and HTTP, compressed and not, protobuf and JSON. All bring the same.

use prost::Message as _;
use serde_json::json;

use crate::appliance::{Home, http};
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, assert_same, request, trace};

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_brings_the_same_spans() {
    let home = Home::new(json!({ "sampling": { "head_probability": 1.0 } }));
    let appliance = home.start().await;
    let mut dice = Dice(3);
    let mut sent = Vec::new();
    for way in ["grpc", "grpc gzip", "http", "http json"] {
        let id = dice.trace_id();
        let request = request(way, trace(id, 10));
        let post = "POST /v1/traces HTTP/1.1\r\ncontent-type: ";
        let (status, answer) = match way {
            "grpc" => (200, format!("{:?}", Sender::connect(appliance.grpc()).await.send(&request).await)),
            "grpc gzip" => {
                let mut sender = Sender::connect(appliance.grpc()).await.with_gzip();
                (200, format!("{:?}", sender.send(&request).await))
            }
            "http" => {
                let head = format!("{post}application/x-protobuf\r\n");
                http(appliance.http(), &head, &request.encode_to_vec())
            }
            _ => {
                let json = ingest_otlp::protobuf_to_json(&request.encode_to_vec()).unwrap();
                let head = format!("{post}application/json\r\n");
                http(appliance.http(), &head, json.to_string().as_bytes())
            }
        };
        assert!(status == 200 && !answer.contains("Err"), "{way}: {status} {answer}");
        sent.push((id, request));
    }
    let mut asker = Asker::connect(appliance.query()).await;
    let counts = asker.at_rest(40).await;
    assert_eq!(counts.kept, 40);
    for (id, sent) in sent {
        let (came, _) = asker.trace(id).await.unwrap();
        assert_same(&[sent], &came, true);
    }
}
