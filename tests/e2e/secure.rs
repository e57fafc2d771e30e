//! TLS on every port of the real binary, as senders and people meet it, and certificates that change while it runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use crate::appliance::{BINARY, Home, eventually, run, text};
use crate::sender::Sender;
use crate::spans::{Dice, failed, request, trace};

/// Somebody who signs certificates, and where the files are.
struct Office {
    authority: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Office {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let office = Self { authority, directory: tempfile::tempdir().unwrap() };
        std::fs::write(office.path("ca.pem"), office.authority.pem()).unwrap();
        office.issue(2_050);
        office
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A new certificate over the old one, good until the first day of `year`.
    fn issue(&self, year: i32) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
    }

    fn home(&self) -> Home {
        let open = json!({ "cert_file": self.path("cert.pem"), "key_file": self.path("key.pem") });
        let mut closed = open.clone();
        closed["client_ca_file"] = json!(self.path("ca.pem"));
        let tls = |section: &serde_json::Value| json!({ "endpoint": "127.0.0.1:0", "tls": section });
        Home::new(json!({
            "receivers": { "otlp": { "protocols": { "grpc": tls(&open), "http": tls(&open) } } },
            "query": tls(&closed),
            "admin": tls(&open),
        }))
    }

    async fn sender(&self, to: SocketAddr) -> Sender {
        let trusted = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.authority.pem()));
        let endpoint = Channel::from_shared(format!("https://{to}")).unwrap();
        Sender::over(endpoint.tls_config(trusted).unwrap()).await
    }

    /// One HTTP/1.1 exchange.
    async fn say(&self, to: SocketAddr, request: &[u8]) -> String {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.authority.der().to_vec())).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(to.ip().to_string()).unwrap();
        let stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn metrics(&self, admin: SocketAddr) -> String {
        self.say(admin, b"GET /metrics HTTP/1.1\r\nhost: e2e\r\nconnection: close\r\n\r\n").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_speaks_tls() {
    let office = Office::new();
    let home = office.home();
    let appliance = home.start_unasked(&[]).await;
    let id = Dice(17).trace_id();
    let spans = trace(id, 3).into_iter().map(failed).collect();
    office.sender(appliance.grpc()).await.send(&request("shop", spans)).await.unwrap();
    let head =
        "POST /v1/traces HTTP/1.1\r\nhost: e2e\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let body = r#"{"resourceSpans":[]}"#;
    let post = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let answer = office.say(appliance.http(), post.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");

    let (to, id) = (appliance.query().to_string(), id.to_string());
    let [ca, certificate, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| office.file(name));
    let known = ["--endpoint", &to, "--ca-file", &ca, "--cert-file", &certificate, "--key-file", &key];
    eventually("the trace is there", async || {
        run(&[&["trace", &id][..], &known].concat()).status.success().then_some(())
    })
    .await;
    let environment = [("ENDPOINT", format!("https://{to}")), ("CA_FILE", ca.clone())];
    let own = [("CERT_FILE", certificate.clone()), ("KEY_FILE", key.clone())];
    let variables = environment.iter().chain(&own).map(|(name, value)| (format!("SLUICEBOX_{name}"), value));
    let status = Command::new(BINARY).arg("status").envs(variables).output().unwrap();
    assert!(text(&status).contains("taking requests"), "{}", text(&status));

    let secure = format!("https://{to}");
    let stranger = Office::new();
    for (arguments, code, expected) in [
        (&["--endpoint", &secure, "--ca-file", &ca][..], 1, "--cert-file"),
        (&["--endpoint", &secure, "--ca-file", &stranger.file("ca.pem")], 1, "invalid peer certificate"),
        (&["--endpoint", &secure], 1, "invalid peer certificate"),
        (&["--endpoint", &to], 1, "https://"),
        (&["--endpoint", &format!("http://{to}"), "--ca-file", &ca], 2, "https://"),
        (&["--endpoint", &secure, "--ca-file", "/nowhere.pem"], 2, "/nowhere.pem"),
    ] {
        let output = run(&[&["status"][..], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(expected), "{arguments:?}: {}", text(&output));
    }
    assert!(appliance.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_on_sighup_and_a_broken_one_is_not() {
    let office = Office::new();
    let home = office.home();
    let appliance = home.start_unasked(&[]).await;
    let mut sender = office.sender(appliance.grpc()).await;
    let send = async |sender: &mut Sender| {
        let spans = trace(Dice(19).trace_id(), 1);
        sender.send(&request("shop", spans)).await.unwrap();
    };
    send(&mut sender).await;
    let says = async |line: &str| {
        let told = async || office.metrics(appliance.admin()).await.contains(line).then_some(());
        eventually(line, told).await;
    };
    says("sluicebox_tls_certificate_not_after_seconds{listener=\"otlp_grpc\"} 2524608000").await;
    office.issue(2_051);
    appliance.hang_up();
    for listener in ["otlp_grpc", "otlp_http", "query", "admin"] {
        says(&format!("sluicebox_tls_certificate_not_after_seconds{{listener=\"{listener}\"}} 2556144000"))
            .await;
    }
    send(&mut sender).await;
    std::fs::write(office.path("key.pem"), "nonsense").unwrap();
    appliance.hang_up();
    says("sluicebox_tls_reload_failures_total{listener=\"query\"} 1").await;
    send(&mut sender).await;
    send(&mut office.sender(appliance.grpc()).await).await;
}

#[test]
fn files_are_checked_before_anything_starts() {
    let office = Office::new();
    let home = office.home();
    let config = home.config();
    let ask = |verb: &[&str]| run(&[verb, &[config.to_str().unwrap()]].concat());
    assert_eq!(ask(&["check-config"]).status.code(), Some(0));
    let doctor = ask(&["doctor", "--config"]);
    let said = text(&doctor);
    assert!(said.contains("admin: on, certificate good until 2050-01-01"), "{said}");
    assert!(
        said.contains("query: on, certificate good until 2050-01-01 00:00:00.000 UTC, clients must"),
        "{said}"
    );

    office.issue(2_001);
    let said = text(&ask(&["doctor", "--config"]));
    assert!(said.contains("query: on, but its certificate ended 2001-01-01"), "{said}");
    std::fs::write(office.path("cert.pem"), "nonsense").unwrap();
    for (verb, code) in
        [(&["check-config"][..], 2), (&["serve", "--config"], 2), (&["doctor", "--config"], 1)]
    {
        let output = ask(verb);
        assert_eq!(output.status.code(), Some(code), "{verb:?}: {}", text(&output));
        assert!(text(&output).contains("cert.pem cannot be used for TLS"), "{verb:?}: {}", text(&output));
    }
}
