//! The verbs as people and programs use them: what they print and how they exit.

use serde_json::{Value, json};

use crate::appliance::{Home, driver, run, text};
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
        assert_eq!(
            (said.matches("typo.yaml").count(), said.matches("unknown field").count()),
            (1, 1),
            "{said}"
        );
    }
    std::fs::write(&path, "sampling:\n  head_probability: 1.5\n").unwrap();
    let said = text(&run(&["check-config", path.to_str().unwrap()]));
    assert!(said.contains("typo.yaml: sampling.head_probability: must lie between 0 and 1"), "{said}");
    std::fs::write(&path, "sampling:\n  head_probability: 0.1\n").unwrap();
    assert_eq!(run(&["check-config", path.to_str().unwrap()]).status.code(), Some(0));
}

/// What doctor found under a name, as programs read it.
fn found(home: &Home, check: &str) -> Value {
    let output = home.doctor_with(&["--json"]);
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = findings.as_array().unwrap().iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("nothing about {check} in {findings}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_gives_the_driver_its_reason_and_the_memory_that_the_log_has_at_start() {
    let home = Home::new(json!({}));
    let before = ["driver", "memory per core"].map(|check| found(&home, check));
    let appliance = home.start().await;
    let log = home.logged();
    let receiving = log.lines().find(|line| line.contains("receiving")).unwrap();
    let [driver_found, memory] = ["driver", "memory per core"].map(|check| found(&home, check));
    assert_eq!(before, [driver_found.clone(), memory.clone()], "a data directory changes nothing of it");
    let (name, because) = (&driver_found["values"]["driver"], &driver_found["values"]["because"]);
    let (name, because) = (name.as_str().unwrap(), because.as_str().unwrap());
    assert_eq!(driver_found["values"]["wanted"], driver());
    assert_eq!(driver_found["detail"], format!("{name}: {because}"));
    assert!(receiving.contains(name) && receiving.contains(because), "{receiving}");
    let (sizes, _) = memory["detail"].as_str().unwrap().split_once("; ").unwrap();
    assert!(sizes.contains("receive buffers ") && receiving.contains(sizes), "{receiving}\n{memory}");
    let parts = memory["values"].as_object().unwrap();
    let sum: u64 = parts.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(appliance.metric("sluicebox_core_memory_bytes{"), sum as f64);
    let buffers = appliance.metric("sluicebox_core_memory_bytes{part=\"receive buffers\"}");
    if name == "io_uring" {
        assert_eq!(appliance.metric("sluicebox_receiver_receive_buffers_bytes"), 2.0 * buffers);
    }
    for line in ["io_uring", "zero-copy", "memory per core"] {
        assert!(text(&home.doctor()).contains(line), "{}", text(&home.doctor()));
    }
}

#[test]
fn doctor_says_why_a_feature_is_off_and_what_is_asked_for() {
    let home = Home::new(json!({ "receivers": { "otlp": { "driver": "epoll", "zero_copy": "auto" } } }));
    assert_eq!(found(&home, "driver")["detail"], "epoll: the configuration asks for it");
    let zero_copy = found(&home, "zero-copy");
    assert_eq!((&zero_copy["values"]["on"], &zero_copy["state"]), (&json!(false), &json!("note")));
    assert!(zero_copy["detail"].as_str().unwrap().contains("only the io_uring driver"), "{zero_copy}");
    home.configure(json!({ "receivers": { "otlp": { "driver": "auto" } } }));
    let (chosen, io_uring) = (found(&home, "driver"), found(&home, "io_uring"));
    let has_ring = io_uring["values"]["usable"].as_bool().unwrap();
    assert_eq!(chosen["values"]["driver"], if has_ring { "io_uring" } else { "epoll" });
    let said = io_uring["detail"].as_str().unwrap();
    assert!(said.contains("kernel.io_uring_disabled") && said.contains("ulimit -l"), "{said}");
    let off = found(&home, "zero-copy");
    assert!(off["detail"].as_str().unwrap().contains("the configuration does not ask for it"), "{off}");
}

#[test]
fn verbs_without_an_appliance_say_so() {
    let output = run(&["status", "--endpoint", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("127.0.0.1:1"), "{}", text(&output));
}

#[test]
fn the_listing_of_the_readme_is_a_right_configuration() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let listing = readme.split_once("```yaml\n").and_then(|(_, rest)| rest.split_once("\n```")).unwrap().0;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("readme.yaml");
    std::fs::write(&path, listing).unwrap();
    let output = run(&["check-config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && text(&output).contains("check-config"), "{shell}");
    }
}
