//! A disk that fills up, and is given room again; and a journal that is not to take more of it.

use std::path::Path;
use std::process::Command;

use ingest_otlp::messages::ExportTraceServiceRequest;
use serde_json::json;
use store_model::TraceId;
use tonic::Status;

use crate::appliance::{Appliance, Home, eventually};
use crate::asker::Asker;
use crate::sender::{Sender, assert_invites_retry};
use crate::spans::{Dice, assert_same, attribute, failed, request, trace};

/// A small file system of its own, gone when it goes out of scope. The decisions of two shards reserve 64 MiB of it.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=192m", "tmpfs"]).arg(at).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// A trace, and the request that carried it.
type Sent = (TraceId, ExportTraceServiceRequest);

/// A trace of twenty spans that is kept, in 70 KiB that no compression makes much smaller.
fn noisy(dice: &mut Dice) -> Sent {
    let id = dice.trace_id();
    let mut spans = trace(id, 20);
    for span in &mut spans {
        let noise: String = (0..200).map(|_| format!("{:016x}", dice.next())).collect();
        span.attributes.push(attribute("noise", &noise));
    }
    spans[7] = failed(spans[7].clone());
    (id, request("full", spans))
}

/// Traces that were taken, and why the next one was not. There is `room` for fewer than 120 MB.
async fn send_until_refused(sender: &mut Sender, dice: &mut Dice, room: &str) -> (Vec<Sent>, Status) {
    let mut sent = Vec::new();
    loop {
        let (id, request) = noisy(dice);
        match sender.send(&request).await {
            Ok(()) => sent.push((id, request)),
            Err(refusal) => return (sent, refusal),
        }
        assert!(sent.len() < 2_000, "120 MB were taken, and there is room for {room}");
    }
}

/// Every trace of [`noisy`] that was taken is there as it was sent, also after a `kill -9`.
async fn assert_all_kept(home: &Home, mut appliance: Appliance, sent: &[Sent]) {
    for restarted in [false, true] {
        if restarted {
            appliance.kill();
            appliance = home.start().await;
        }
        let mut asker = Asker::connect(appliance.query()).await;
        let counts = asker.at_rest(sent.len() as u64 * 20).await;
        assert_eq!((counts.kept, counts.expired), (sent.len() as u64 * 20, 0), "{counts:?}");
        for (id, sent) in sent {
            let (came, _) = asker.trace(*id).await.unwrap_or_else(|| panic!("{id} is missing"));
            assert_same(std::slice::from_ref(sent), &came, true);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_with_a_retry_and_loses_nothing() {
    let home = Home::new(json!({ "journal": { "segment_bytes": "1MiB" } }));
    let data = home.data();
    let Some(_disk) = SmallDisk::mount(&data) else {
        eprintln!("SKIP: a file system of its own cannot be mounted here, the full disk is not tested");
        return;
    };
    let filler = data.join("filler");
    std::fs::write(&filler, vec![0; 96 << 20]).unwrap();
    let mut appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut dice = Dice(18);
    let (mut sent, refusal) = send_until_refused(&mut sender, &mut dice, "96 MiB").await;
    assert_invites_retry(&refusal);
    assert!(sent.len() > 10, "only {} requests fitted", sent.len());
    eventually("the appliance says that it is not ready", async || {
        (appliance.get("/readyz").0 == 503).then_some(())
    })
    .await;
    for _ in 0..20 {
        let (id, request) = noisy(&mut dice);
        match sender.send(&request).await {
            // A little room may be left for a moment.
            Ok(()) => sent.push((id, request)),
            Err(refusal) => assert_invites_retry(&refusal),
        }
    }
    assert!(appliance.is_running());
    assert_eq!(appliance.get("/healthz").0, 200);

    std::fs::remove_file(&filler).unwrap();
    let (id, request) = noisy(&mut dice);
    sender.send_until_taken(&request).await;
    sent.push((id, request));
    assert_all_kept(&home, appliance, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_at_its_budget_takes_requests_again_once_the_archive_has_what_it_held() {
    // The open archive segments need all of the journal until their age has them sealed.
    let home = Home::new(json!({
        "journal": { "segment_bytes": "1MiB", "retention": { "max_bytes": "6MiB" } },
        "archive": { "open_age": "2s" },
    }));
    let appliance = home.start().await;
    let mut sender = Sender::connect(appliance.grpc()).await;
    let mut dice = Dice(19);
    let (mut sent, refusal) = send_until_refused(&mut sender, &mut dice, "6 MiB").await;
    assert_invites_retry(&refusal);
    assert!(refusal.message().contains("journal.retention.max_bytes"), "{refusal:?}");
    // Nothing is sent any more: no shard has anything to settle with which it could say what it needs.
    eventually("the appliance is ready again", async || (appliance.get("/readyz").0 == 200).then_some(()))
        .await;
    let (id, request) = noisy(&mut dice);
    sender.send_until_taken(&request).await;
    sent.push((id, request));
    assert_all_kept(&home, appliance, &sent).await;
}
