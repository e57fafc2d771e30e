//! The verbs as people and programs use them: what they print and how they exit.

use serde_json::{Value, json};

use crate::appliance::{Home, run, text};
use crate::asker::Asker;
use crate::sender::Sender;
use crate::spans::{Dice, failed, request, trace};

#[tokio::test(flavor = "multi_thread")]
async fn the_verbs_answer_people_and_programs() {
    let home = Home::new(json!({}));
    let appliance = home.start().await;
    let id = Dice(13).trace_id();
    let mut spans = trace(id, 3);
    spans[1] = failed(spans[1].clone());
    Sender::connect(appliance.grpc()).await.send(&request("shop", spans)).await.unwrap();
    Asker::connect(appliance.query()).await.at_rest(3).await;
    let (id, endpoint) = (id.to_string(), appliance.query().to_string());
    let ask = |arguments: &[&str]| run(&[arguments, &["--endpoint", &endpoint]].concat());
    let parsed = |arguments: &[&str]| -> Value {
        let output = ask(arguments);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };

    let tree = ask(&["trace", &id]);
    assert_eq!(tree.status.code(), Some(0), "{}", text(&tree));
    assert!(text(&tree).contains("operation 0") && text(&tree).contains("shop"), "{}", text(&tree));
    assert_eq!(parsed(&["trace", &id, "--json"])["summary"]["decision"], "error");
    let unknown = ask(&["trace", &"ab".repeat(16)]);
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown));
    assert_eq!(ask(&["trace", "xyz"]).status.code(), Some(2));

    let found = parsed(&["search", "--json", "--service", "shop", "--status", "error", "--tag", "number=1"]);
    assert_eq!(found["traces"][0]["trace_id"], id.as_str());
    assert!(text(&ask(&["search"])).contains(&id));
    assert!(text(&ask(&["search", "--service", "nobody"])).contains("no trace matches"));
    assert_eq!(ask(&["search", "--min-duration", "long"]).status.code(), Some(2));

    let status = parsed(&["status", "--json"]);
    assert_eq!((&status["accepting"], &status["spans"]["kept"]), (&json!(true), &json!(3)));
    assert!(text(&ask(&["status"])).contains("taking requests"));
}

#[test]
fn a_typo_in_the_configuration_is_refused_with_its_place_and_the_right_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("typo.yaml");
    std::fs::write(&path, "sampling:\n  head_probabilty: 0.1\n").unwrap();
    for arguments in [&["check-config"][..], &["serve", "--config"][..]] {
        let output = run(&[arguments, &[path.to_str().unwrap()]].concat());
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("line 2 column 3") && said.contains("did you mean `head_probability`?"),
            "{said}"
        );
    }
    std::fs::write(&path, "sampling:\n  head_probability: 0.1\n").unwrap();
    assert_eq!(run(&["check-config", path.to_str().unwrap()]).status.code(), Some(0));
}

#[test]
fn verbs_without_an_appliance_say_so() {
    let output = run(&["status", "--endpoint", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("127.0.0.1:1"), "{}", text(&output));
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && text(&output).contains("check-config"), "{shell}");
    }
}
