//! TLS as clients meet it: who is let in, what is spoken, and what happens when certificates change under way.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Version};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingest_receiver::{CutReason, ReceiverConfig, Reload, Tls, TlsConfig, TlsVersion};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::support::*;

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Somebody who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
struct Papers {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn papers(&self, year: i32) -> Papers {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Papers { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A receiver behind TLS, the files it reads, and who signed them.
struct Place {
    authority: Authority,
    directory: TempDir,
    tls: Arc<Tls>,
    server: Server,
}

impl Place {
    fn new() -> Self {
        Self::with(|_, _| {})
    }

    fn with(change: impl FnOnce(&mut TlsConfig, &mut ReceiverConfig)) -> Self {
        let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
        let at = |name: &str| directory.path().join(name);
        let mut config = config();
        let mut tls = TlsConfig {
            certificate_file: at("certificate.pem"),
            key_file: at("key.pem"),
            client_ca_file: None,
            min_version: TlsVersion::default(),
            reload_interval: Duration::ZERO,
        };
        change(&mut tls, &mut config);
        write(&directory, &authority.papers(2_050));
        fs::write(at("clients.pem"), authority.pem()).unwrap();
        tls.client_ca_file = tls.client_ca_file.map(|file| directory.path().join(file));
        let tls = Tls::load(&tls).unwrap();
        config.grpc_tls = Some(Arc::clone(&tls));
        config.http_tls = Some(Arc::clone(&tls));
        let server = serve_with(&config);
        Self { authority, directory, tls, server }
    }

    fn client(&self) -> Client {
        Client { trusted: self.authority.pem(), papers: None, versions: BOTH, alpn: &["h2", "http/1.1"] }
    }

    fn cuts(&self, reason: CutReason) -> u64 {
        let snapshot = self.server.snapshot();
        snapshot.grpc.cut(reason) + snapshot.http.cut(reason)
    }

    async fn cuts_one(&self, reason: CutReason) {
        until(|| self.cuts(reason) == 1).await;
        let all = CutReason::ALL.into_iter().map(|reason| self.cuts(reason)).sum::<u64>();
        assert_eq!(all, 1, "{:?}", self.server.snapshot());
        until(|| self.server.snapshot().grpc.connections_open == 0).await;
    }
}

fn write(directory: &TempDir, papers: &Papers) {
    fs::write(directory.path().join("certificate.pem"), &papers.certificate).unwrap();
    fs::write(directory.path().join("key.pem"), &papers.key).unwrap();
}

/// A client with its own mind.
struct Client {
    trusted: String,
    papers: Option<Papers>,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: &'static [&'static str],
}

impl Client {
    async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.trusted.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.papers {
            None => builder.with_no_client_auth(),
            Some(Papers { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
    }

    async fn grpc(&self, place: &Place) -> Result<Heard, Box<dyn std::error::Error>> {
        let stream = self.connect(place.server.grpc_address()).await?;
        ask(stream, Version::HTTP_2, grpc_request(&[("te", "trailers")], Pieces::whole(framed(0, &spans(2)))))
            .await
    }

    async fn http(
        &self,
        place: &Place,
        version: Version,
        body: Vec<u8>,
    ) -> Result<Heard, Box<dyn std::error::Error>> {
        let stream = self.connect(place.server.http_address()).await?;
        ask(stream, version, http_request(&[], Pieces::whole(body))).await
    }
}

async fn ask(
    stream: TlsStream<TcpStream>,
    version: Version,
    request: Request<Pieces>,
) -> Result<Heard, Box<dyn std::error::Error>> {
    let response = if version == Version::HTTP_2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    Ok(hear(response).await)
}

#[tokio::test]
async fn both_ports_serve_over_tls() {
    let place = Place::new();
    place.client().grpc(&place).await.unwrap().grpc_message();
    for version in [Version::HTTP_2, Version::HTTP_11] {
        let heard = place.client().http(&place, version, spans(3)).await.unwrap();
        assert_eq!((heard.status.as_u16(), heard.body.len()), (200, 0), "{version:?}");
    }
    assert_eq!(place.server.intake.received().len(), 3);
    assert_eq!(CutReason::ALL.map(|reason| place.cuts(reason)).iter().sum::<u64>(), 0);
}

#[tokio::test]
async fn a_body_of_many_records_arrives_unchanged() {
    let place = Place::new();
    let body = spans(20_000);
    for (version, versions) in [
        (Version::HTTP_2, &BOTH[..1]),
        (Version::HTTP_2, &BOTH[1..]),
        (Version::HTTP_11, &BOTH[..1]),
        (Version::HTTP_11, &BOTH[1..]),
    ] {
        let client = Client { versions, ..place.client() };
        assert_eq!(client.http(&place, version, body.clone()).await.unwrap().status, 200);
    }
    for (_, received) in place.server.intake.received() {
        assert!(received.body[..] == body[..]);
    }
}

#[tokio::test]
async fn both_versions_are_spoken_unless_the_older_is_ruled_out() {
    let place = Place::new();
    for (versions, expected) in
        [(&BOTH[1..], ProtocolVersion::TLSv1_2), (&BOTH[..1], ProtocolVersion::TLSv1_3)]
    {
        let client = Client { versions, ..place.client() };
        let stream = client.connect(place.server.grpc_address()).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
        client.grpc(&place).await.unwrap().grpc_message();
    }
    let place = Place::with(|tls, _| tls.min_version = TlsVersion::V1_3);
    place.client().grpc(&place).await.unwrap().grpc_message();
    assert!(Client { versions: &BOTH[1..], ..place.client() }.grpc(&place).await.is_err());
    place.cuts_one(CutReason::TlsFailed).await;
}

#[tokio::test]
async fn the_protocol_is_agreed_upon() {
    let place = Place::new();
    let address = place.server.http_address();
    for (alpn, expected) in [
        (&["http/1.1", "h2"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["spdy/3", "http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let client = Client { alpn, ..place.client() };
        let stream = client.connect(address).await.unwrap();
        let agreed = stream.get_ref().1.alpn_protocol().map(|name| str::from_utf8(name).unwrap().to_owned());
        assert_eq!(agreed.as_deref(), expected, "{alpn:?}");
        let version = if expected == Some("http/1.1") { Version::HTTP_11 } else { Version::HTTP_2 };
        let heard = ask(stream, version, http_request(&[], Pieces::whole(spans(1)))).await.unwrap();
        assert_eq!(heard.status, 200, "{alpn:?}");
    }
    let stranger = Client { alpn: &["spdy/3"], ..place.client() };
    let refusal = stranger.connect(address).await.unwrap_err();
    assert!(refusal.to_string().contains("NoApplicationProtocol"), "{refusal}");
    place.cuts_one(CutReason::TlsFailed).await;
}

#[tokio::test]
async fn only_clients_of_the_given_authority_are_let_in() {
    for versions in [&BOTH[..1], &BOTH[1..]] {
        let place = Place::with(|tls, _| tls.client_ca_file = Some(PathBuf::from("clients.pem")));
        let known = Client { papers: Some(place.authority.papers(2_050)), versions, ..place.client() };
        known.grpc(&place).await.unwrap().grpc_message();
        let unnamed = Client { versions, ..place.client() };
        assert!(unnamed.grpc(&place).await.is_err());
        until(|| place.cuts(CutReason::TlsFailed) == 1).await;
        let foreign = Client { papers: Some(Authority::new().papers(2_050)), versions, ..place.client() };
        assert!(foreign.grpc(&place).await.is_err());
        until(|| place.cuts(CutReason::TlsFailed) == 2).await;
        let expired = Client { papers: Some(place.authority.papers(2_001)), versions, ..place.client() };
        assert!(expired.grpc(&place).await.is_err());
        until(|| place.cuts(CutReason::TlsFailed) == 3).await;
        assert_eq!(place.server.intake.received().len(), 1);
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_us_is_counted() {
    let place = Place::new();
    let client = Client { trusted: Authority::new().pem(), ..place.client() };
    let refusal = client.connect(place.server.grpc_address()).await.unwrap_err();
    assert!(refusal.to_string().contains("invalid peer certificate"), "{refusal}");
    place.cuts_one(CutReason::TlsFailed).await;
}

#[tokio::test]
async fn what_is_no_tls_is_cut_and_counted() {
    let place = Place::new();
    for (count, first) in [(1, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (2, "GET / HTTP/1.1\r\n\r\n")] {
        let mut stream = TcpStream::connect(place.server.grpc_address()).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // Reset, since what it said was not read, or ended: not answered in either case.
        let _ended_or_reset = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        until(|| place.cuts(CutReason::NotTls) == count).await;
    }
}

#[tokio::test]
async fn nonsense_in_place_of_a_handshake_is_cut() {
    let place = Place::new();
    let mut stream = TcpStream::connect(place.server.grpc_address()).await.unwrap();
    stream.write_all(&[22, 3, 1, 0, 8, 1, 0, 0, 4, 9, 9, 9, 9]).await.unwrap();
    let mut alert = Vec::new();
    stream.read_to_end(&mut alert).await.unwrap();
    assert_eq!(alert.first(), Some(&21), "an alert says why");
    drop(stream);
    place.cuts_one(CutReason::TlsFailed).await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_cut() {
    let place = Place::with(|_, config| config.header_timeout = Duration::from_millis(100));
    let mut stream = TcpStream::connect(place.server.grpc_address()).await.unwrap();
    stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    drop(stream);
    place.cuts_one(CutReason::TlsTimeout).await;
}

#[tokio::test]
async fn a_connection_ends_with_a_goodbye_when_the_receiver_stops() {
    let mut place = Place::new();
    let client = Client { alpn: &["http/1.1"], ..place.client() };
    let mut stream = client.connect(place.server.http_address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(stream.read(&mut [0; 1_024]).await.unwrap() > 0);
    let stopping = place.server.stop(Duration::from_secs(10));
    // Without one this is an error: somebody may have cut the connection short.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    drop(stream);
    stopping.join().unwrap();
}

/// When the certificate that a new client sees ends.
async fn seen(place: &Place) -> Vec<u8> {
    let stream = place.client().connect(place.server.grpc_address()).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn new_connections_see_a_new_certificate_while_old_ones_go_on() {
    let place = Place::new();
    let stream = place.client().connect(place.server.grpc_address()).await.unwrap();
    let (mut old, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut say = async || {
        let body = Pieces::whole(framed(0, &spans(1)));
        let request = grpc_request(&[("te", "trailers")], body);
        hear(old.send_request(request).await.unwrap()).await.grpc_message();
    };
    say().await;
    let before = seen(&place).await;
    assert!(matches!(place.tls.reload(), Reload::Unchanged));

    let until_2050 = place.tls.expires_at_seconds();
    write(&place.directory, &place.authority.papers(2_051));
    assert!(matches!(place.tls.reload(), Reload::Renewed));
    assert_eq!(place.tls.expires_at_seconds() - until_2050, 365 * 86_400);
    let renewed = seen(&place).await;
    assert_ne!(renewed, before);
    say().await;

    fs::write(place.directory.path().join("key.pem"), place.authority.papers(2_052).key).unwrap();
    let Reload::Kept(problem) = place.tls.reload() else { panic!("the key is not the certificate's") };
    assert!(problem.to_string().contains("does not belong to the certificate"), "{problem}");
    assert!(matches!(place.tls.reload(), Reload::Unchanged), "it is said once");
    fs::remove_file(place.directory.path().join("key.pem")).unwrap();
    assert!(matches!(place.tls.reload(), Reload::Kept(_)), "it is wrong in another way");
    assert!(matches!(place.tls.reload(), Reload::Unchanged));
    assert_eq!(seen(&place).await, renewed);
    assert_eq!((place.tls.reloads(), place.tls.failures()), (1, 2));
    say().await;

    write(&place.directory, &place.authority.papers(2_053));
    assert!(matches!(place.tls.reload(), Reload::Renewed));
    assert_ne!(seen(&place).await, renewed);
    say().await;
    assert_eq!(place.server.intake.received().len(), 4);
}
