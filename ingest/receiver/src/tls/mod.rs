//! A listener's TLS identity: read from PEM files, checked, and read again while connections stay open. It owns the files'
//! contents and the rules of what is accepted; it listens nowhere, keeps no timer and logs nothing.
//!
//! Read in this order: this file, [`expiry`] (how long a certificate is good for), [`secured`] (the layer between a
//! socket's bytes and a session's), [`stream`] (the same for listeners on tokio).

pub(crate) mod expiry;
pub(crate) mod secured;
pub mod stream;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::error::Error;

/// What is offered to clients that ask, best first (RFC 7301). What is spoken is seen by its first bytes.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What every TLS record that begins a connection begins with: the content type of a handshake (RFC 8446, section 5.1).
pub(crate) const HANDSHAKE: u8 = 22;

/// The settings of one listener, checked for form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate and what leads from it to a root, in PEM, the listener's own first.
    pub certificate_file: PathBuf,
    /// The certificate's private key, in PEM: PKCS#8, PKCS#1 or SEC1.
    pub key_file: PathBuf,
    /// Who may connect: clients must show a certificate that one of these has signed. `None` lets everyone in.
    pub client_ca_file: Option<PathBuf>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// How often the files are looked at for new contents; zero for only when told to.
    pub reload_interval: Duration,
}

/// The versions that are spoken at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246, with forward-secret AEAD suites alone.
    #[default]
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// The text names no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the TLS version must be \"1.2\" or \"1.3\": older ones are broken and not offered")]
pub struct UnknownVersion;

impl FromStr for TlsVersion {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        match text {
            "1.2" => Ok(Self::V1_2),
            "1.3" => Ok(Self::V1_3),
            _ => Err(UnknownVersion),
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        })
    }
}

impl TlsVersion {
    fn and_newer(self) -> &'static [&'static SupportedProtocolVersion] {
        static NEWEST_FIRST: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::V1_2 => &NEWEST_FIRST,
            Self::V1_3 => &NEWEST_FIRST[..1],
        }
    }
}

/// One listener's identity. New connections get what was loaded last; open ones keep what they began with.
pub struct Tls {
    config: TlsConfig,
    current: ArcSwap<Loaded>,
    /// What was found when the files were looked at last, good or bad: only a change is news.
    seen: Mutex<Seen>,
    reloads: AtomicU64,
    failures: AtomicU64,
}

struct Loaded {
    server: Arc<ServerConfig>,
    expires_at_seconds: u64,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Files(Files),
    /// Not all of them could be read.
    Nothing(String),
}

/// The contents of the files.
#[derive(PartialEq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What looking at the files again came to.
#[derive(Debug)]
pub enum Reload {
    /// They are what they were, good or bad.
    Unchanged,
    /// New connections get what they hold now.
    Renewed,
    /// They cannot be used: everything stays as it was. Said once for each change of the files.
    Kept(Error),
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// When a file cannot be read, holds something else, or the key is not the certificate's.
    pub fn load(config: &TlsConfig) -> Result<Arc<Self>, Error> {
        let files = Files::read(config)?;
        let loaded = Loaded::new(config, &files)?;
        Ok(Arc::new(Self {
            config: config.clone(),
            current: ArcSwap::from_pointee(loaded),
            seen: Mutex::new(Seen::Files(files)),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// Looks at the files, and takes what they hold if that is new and good.
    pub fn reload(&self) -> Reload {
        // Held while the files are read: of two reloads the later one is to win.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, loaded) = match Files::read(&self.config) {
            Ok(files) if matches!(&*seen, Seen::Files(known) if *known == files) => return Reload::Unchanged,
            Ok(files) => {
                let loaded = Loaded::new(&self.config, &files);
                (Seen::Files(files), loaded)
            }
            Err(error) => (Seen::Nothing(error.to_string()), Err(error)),
        };
        let is_news = *seen != found;
        *seen = found;
        match loaded {
            // Relaxed here and below: the numbers guard no other memory.
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                self.reloads.fetch_add(1, Ordering::Relaxed);
                Reload::Renewed
            }
            Err(_said) if !is_news => Reload::Unchanged,
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                Reload::Kept(error)
            }
        }
    }

    /// What a new connection is to be served with.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &TlsConfig {
        &self.config
    }

    /// When the certificate that new connections see ends, in seconds since 1970.
    #[must_use]
    pub fn expires_at_seconds(&self) -> u64 {
        self.current.load().expires_at_seconds
    }

    /// How often new files were taken.
    #[must_use]
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Relaxed)
    }

    /// How often new files could not be used.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Files {
    /// A key is nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

impl Files {
    fn read(config: &TlsConfig) -> Result<Self, Error> {
        let read =
            |path: &Path| fs::read(path).map_err(|source| Error::TlsFile { path: path.to_owned(), source });
        Ok(Self {
            certificate: read(&config.certificate_file)?,
            key: read(&config.key_file)?,
            client_ca: config.client_ca_file.as_deref().map(read).transpose()?,
        })
    }
}

impl Loaded {
    fn new(config: &TlsConfig, files: &Files) -> Result<Self, Error> {
        let TlsConfig { certificate_file, key_file, client_ca_file, min_version, reload_interval: _ } =
            config;
        let Files { certificate, key, client_ca } = files;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(certificate_file, certificate)?;
        let expires_at_seconds = expiry::not_after(&chain[0])
            .ok_or_else(|| wrong(certificate_file, "the certificate does not say when it ends"))?;
        let key = private_key(key_file, key)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(min_version.and_newer())
            .map_err(|error| wrong(certificate_file, error))?;
        let builder = match (client_ca_file, client_ca) {
            (Some(path), Some(pem)) => builder.with_client_cert_verifier(verifier(path, pem, provider)?),
            _ => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let certificate = certificate_file.display();
                wrong(
                    key_file,
                    format!("the private key does not belong to the certificate in {certificate}"),
                )
            }
            rustls::Error::InvalidCertificate(_) => wrong(certificate_file, error),
            _ => wrong(key_file, format!("the private key cannot be used: {error}")),
        })?;
        server.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        Ok(Self { server: Arc::new(server), expires_at_seconds })
    }
}

fn wrong(path: &Path, problem: impl fmt::Display) -> Error {
    Error::TlsContent { path: path.to_owned(), problem: problem.to_string() }
}

/// All certificates of a file; at least one.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| wrong(path, format!("it is no valid PEM: {error}")))?;
    if all.is_empty() {
        return Err(wrong(path, "it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(all)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if pem.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED) => wrong(
            path,
            "the private key is encrypted; decrypt it with `openssl pkey -in <file> -out <new file>`",
        ),
        pem::Error::NoItemsFound => {
            wrong(path, "it holds no private key in PEM (-----BEGIN PRIVATE KEY-----)")
        }
        error => wrong(path, format!("it is no valid PEM: {error}")),
    })
}

/// Lets in who shows a certificate that one of `pem` has signed.
fn verifier(
    path: &Path,
    pem: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    verifier.build().map_err(|error| wrong(path, error))
}

#[cfg(test)]
mod tests;
