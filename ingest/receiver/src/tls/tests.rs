//! What files are taken for an identity, and that a conversation over TLS is the same wherever its bytes are cut.

use std::fs;

use rcgen::{CertifiedKey, KeyPair};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tempfile::TempDir;

use super::secured::{Secured, Side};
use super::*;
use crate::metrics::CutReason;

/// A directory with a certificate of its own.
struct Files {
    directory: TempDir,
    certificate: rcgen::Certificate,
}

impl Files {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(directory.path().join("certificate.pem"), cert.pem()).unwrap();
        fs::write(directory.path().join("key.pem"), signing_key.serialize_pem()).unwrap();
        Self { directory, certificate: cert }
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            certificate_file: self.directory.path().join("certificate.pem"),
            key_file: self.directory.path().join("key.pem"),
            client_ca_file: None,
            min_version: TlsVersion::default(),
            reload_interval: Duration::ZERO,
        }
    }

    fn put(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> UnbufferedClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        UnbufferedClientConnection::new(Arc::new(config), name).unwrap()
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_with_what_is_wrong() {
    let files = Files::new();
    let good = files.config();
    assert!(Tls::load(&good).is_ok());
    let check = |config: TlsConfig, expected: &str| {
        let message = Tls::load(&config).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    let nowhere = files.directory.path().join("nowhere.pem");
    let (empty, noise) =
        (files.put("empty.pem", ""), files.put("noise.pem", "-----BEGIN CERTIFICATE-----\n***\n"));
    let other = files.put("other.pem", &KeyPair::generate().unwrap().serialize_pem());
    let pem = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted = files.put("encrypted.pem", pem);
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let hollow = files.put("hollow.pem", pem);

    let with = |file: &PathBuf| TlsConfig { certificate_file: file.clone(), ..good.clone() };
    check(with(&nowhere), "nowhere.pem for TLS: No such file");
    check(with(&empty), "empty.pem cannot be used for TLS: it holds no certificate");
    check(with(&noise), "noise.pem cannot be used for TLS: it is no valid PEM");
    check(with(&hollow), "hollow.pem cannot be used for TLS");
    check(with(&good.key_file), "key.pem cannot be used for TLS: it holds no certificate");
    let with = |file: &PathBuf| TlsConfig { key_file: file.clone(), ..good.clone() };
    check(with(&nowhere), "nowhere.pem for TLS: No such file");
    check(with(&good.certificate_file), "certificate.pem cannot be used for TLS: it holds no private key");
    check(with(&encrypted), "openssl pkey");
    check(with(&other), "the private key does not belong to the certificate in");
    let with = |file: &PathBuf| TlsConfig { client_ca_file: Some(file.clone()), ..good.clone() };
    check(with(&nowhere), "nowhere.pem for TLS: No such file");
    check(with(&empty), "empty.pem cannot be used for TLS: it holds no certificate");
    check(with(&hollow), "hollow.pem cannot be used for TLS");
}

#[test]
fn a_version_is_named_by_its_number() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        assert_eq!(version.to_string().parse(), Ok(version));
    }
    assert_eq!("1.1".parse::<TlsVersion>(), Err(UnknownVersion));
}

/// What the other end said and heard in one conversation.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    by_server: Vec<u8>,
    by_client: Vec<u8>,
    is_ended: bool,
}

/// A client that says `question`, and goodbye after as many bytes as `answer` has.
struct Talk {
    client: UnbufferedClientConnection,
    server: Secured,
    incoming: Vec<u8>,
    /// Whether it changes its keys first, and asks for the same.
    renews_keys: bool,
    question: Vec<u8>,
    answer: Vec<u8>,
    heard: Heard,
}

impl Talk {
    fn new(files: &Files, server: &Tls, version: &'static SupportedProtocolVersion, bytes: usize) -> Self {
        let text =
            |seed: usize| (0..bytes).map(|index| u8::try_from((index * seed) % 251).unwrap()).collect();
        let server = Secured::new(server.server());
        let (question, answer) = (text(7), text(11));
        let (client, heard) = (files.client(version), Heard::default());
        let (incoming, renews_keys) = (Vec::new(), version == &TLS13);
        Self { client, server, incoming, renews_keys, question, answer, heard }
    }

    /// What the client sends once it has read what is there.
    fn client(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        let mut space = vec![0; 64 << 10];
        loop {
            let UnbufferedStatus { discard, state } = self.client.process_tls_records(&mut self.incoming);
            let mut is_done = false;
            match state.unwrap() {
                ConnectionState::EncodeTlsData(mut data) => {
                    let written = data.encode(&mut space).unwrap();
                    sent.extend_from_slice(&space[..written]);
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        self.heard.by_client.extend_from_slice(record.unwrap().payload);
                    }
                }
                ConnectionState::WriteTraffic(traffic) if std::mem::take(&mut self.renews_keys) => {
                    traffic.refresh_traffic_keys().unwrap();
                }
                ConnectionState::WriteTraffic(mut traffic) => {
                    is_done = true;
                    let question = std::mem::take(&mut self.question);
                    if !question.is_empty() {
                        let written = traffic.encrypt(&question, &mut space).unwrap();
                        sent.extend_from_slice(&space[..written]);
                    } else if self.heard.by_client.len() == self.answer.len() {
                        let written = traffic.queue_close_notify(&mut space).unwrap();
                        sent.extend_from_slice(&space[..written]);
                    }
                }
                _ => is_done = true,
            }
            self.incoming.drain(..discard);
            if is_done {
                return sent;
            }
        }
    }

    /// To its end, with what the client sends cut as `cut` says: lengths of pieces, by the position of the first byte.
    fn run(mut self, mut cut: impl FnMut(usize) -> usize) -> Heard {
        let mut position = 0;
        let mut sent = self.client();
        while !sent.is_empty() {
            let mut out = Vec::new();
            while !sent.is_empty() {
                let length = cut(position).clamp(1, sent.len());
                let mut piece: Vec<u8> = sent.drain(..length).collect();
                position += length;
                let mut text = |bytes: &[u8]| self.heard.by_server.extend_from_slice(bytes);
                let side = self.server.open(&mut piece, &mut out, &mut text).unwrap();
                self.heard.is_ended |= side == Side::Ended;
            }
            if self.heard.by_server.len() == self.answer.len() && self.heard.by_client.is_empty() {
                self.server.seal(&self.answer, &mut out).unwrap();
            }
            self.incoming.extend_from_slice(&out);
            sent = self.client();
        }
        assert_eq!(self.server.held_bytes(), 0, "a quiet connection holds nothing");
        self.heard
    }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

#[test]
fn a_conversation_is_the_same_wherever_its_bytes_are_cut() {
    let files = Files::new();
    let server = Tls::load(&files.config()).unwrap();
    for version in VERSIONS {
        let whole = Talk::new(&files, &server, version, 100).run(|_| usize::MAX);
        assert_eq!((whole.by_server.len(), whole.by_client.len(), whole.is_ended), (100, 100, true));
        // Long enough for both hellos, keys, the exchange and the goodbye; positions behind the end cut nothing.
        for place in 1..2_400 {
            let cut = |position| if position < place { place - position } else { usize::MAX };
            assert_eq!(
                Talk::new(&files, &server, version, 100).run(cut),
                whole,
                "{version:?} cut at {place}"
            );
        }
    }
}

#[test]
fn a_long_conversation_is_the_same_in_pieces_of_any_size() {
    let files = Files::new();
    let server = Tls::load(&files.config()).unwrap();
    for version in VERSIONS {
        let whole = Talk::new(&files, &server, version, 50_000).run(|_| usize::MAX);
        assert_eq!((whole.by_server.len(), whole.by_client.len(), whole.is_ended), (50_000, 50_000, true));
        for size in [1, 2, 3, 5, 7, 100, 1_000, 16_384, 16_405, 16_406, 20_000] {
            let heard = Talk::new(&files, &server, version, 50_000).run(|_| size);
            assert!(heard == whole, "{version:?} in pieces of {size}");
        }
    }
}

#[test]
fn a_changed_bit_ends_the_connection() {
    let files = Files::new();
    let server = Tls::load(&files.config()).unwrap();
    for version in VERSIONS {
        let mut talk = Talk::new(&files, &server, version, 100);
        let question = std::mem::take(&mut talk.question);
        let mut sent = talk.client();
        while talk.server.is_handshaking() {
            let mut out = Vec::new();
            talk.server.open(&mut sent, &mut out, &mut |_| {}).unwrap();
            talk.incoming.extend_from_slice(&out);
            talk.question = if talk.server.is_handshaking() { Vec::new() } else { question.clone() };
            sent = talk.client();
        }
        let last = sent.len() - 1;
        sent[last] ^= 1;
        let mut out = Vec::new();
        let opened = talk.server.open(&mut sent, &mut out, &mut |_| panic!("nothing of it is believed"));
        assert_eq!(opened, Err(CutReason::TlsFailed));
        assert!(!out.is_empty(), "an alert says why");
    }
}

#[test]
fn a_handshake_message_without_end_is_not_gathered() {
    let files = Files::new();
    let server = Tls::load(&files.config()).unwrap();
    let mut secured = Secured::new(server.server());
    let record = [&[22, 3, 1, 0x40, 0][..], &[1, 0, 0xff, 0xff], &[0; 0x4000 - 4]].concat();
    let mut given = 0;
    loop {
        if let Err(reason) = secured.open(&mut record.clone(), &mut Vec::new(), &mut |_| {}) {
            assert_eq!(reason, CutReason::TlsFailed);
            break;
        }
        given += record.len();
        assert!(given < 200 << 10);
    }
    assert_eq!(secured.held_bytes(), 0);
}
