//! TLS of the generator, and certificates for a run. Trusts one authority and no other; checks names as clients do.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Error;
use crate::sender::Protocol;

/// Whom the generator believes, and what it speaks with them.
#[derive(Clone)]
pub(crate) struct Trust {
    connector: TlsConnector,
    name: ServerName<'static>,
    /// Version and cipher suite of the first connection.
    spoken: Arc<OnceLock<String>>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Trust {
    /// Trusts the authorities in `authority_file` to speak for the host of `endpoint`.
    ///
    /// # Errors
    /// [`Error::Options`] when the file holds no certificate or the endpoint no host.
    pub(crate) fn read(authority_file: &Path, endpoint: &str, protocol: Protocol) -> Result<Self, Error> {
        let refuse = |what: String| Error::Options(what);
        let unreadable = |cause: &dyn std::fmt::Display| {
            refuse(format!("{} holds no certificate to trust: {cause}", authority_file.display()))
        };
        let mut roots = RootCertStore::empty();
        for certificate in
            CertificateDer::pem_file_iter(authority_file).map_err(|cause| unreadable(&cause))?
        {
            let certificate = certificate.map_err(|cause| unreadable(&cause))?;
            roots.add(certificate).map_err(|cause| unreadable(&cause))?;
        }
        let mut provider = aws_lc_rs::default_provider();
        // As gRPC's most common client (Go) on machines with AES instructions: 128 bits first. The server takes the first.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let config =
            ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
        let config = config.map_err(|cause| refuse(cause.to_string()))?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        let spoken: &[u8] = match protocol {
            Protocol::Grpc => b"h2",
            Protocol::Http => b"http/1.1",
        };
        config.alpn_protocols = vec![spoken.to_vec()];
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_invalid| refuse(format!("'{endpoint}' names no host")))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, spoken: Arc::default() })
    }

    /// Shakes hands over `stream`.
    ///
    /// # Errors
    /// Why there is no trust, in words.
    pub(crate) async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let stream =
            self.connector.connect(self.name.clone(), stream).await.map_err(|cause| cause.to_string())?;
        let (_, session) = stream.get_ref();
        if let (Some(version), Some(suite)) = (session.protocol_version(), session.negotiated_cipher_suite())
        {
            self.spoken.get_or_init(|| format!("{version:?} {:?}", suite.suite()));
        }
        Ok(stream)
    }

    /// What was spoken, once something was.
    pub(crate) fn spoken(&self) -> Option<String> {
        self.spoken.get().cloned()
    }
}

/// Options of `certificate`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where to put ca.pem, cert.pem and key.pem; made if it is not there
    #[arg(long)]
    dir: PathBuf,
    /// Whom the certificate is for
    #[arg(long, value_delimiter = ',', default_value = "localhost,127.0.0.1")]
    names: Vec<String>,
}

/// The files that were made.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) authority_file: PathBuf,
    pub(crate) certificate_file: PathBuf,
    pub(crate) key_file: PathBuf,
}

/// Makes an authority and one certificate of it; the authority's key is forgotten.
///
/// # Errors
/// [`Error::File`] when a file cannot be written, [`Error::Stage`] when a name is none.
pub(crate) fn issue(args: &Args) -> Result<Report, Error> {
    let failed =
        |cause: rcgen::Error| Error::Stage { stage: "making a certificate", cause: cause.to_string() };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority =
        CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(failed)?).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let params = CertificateParams::new(args.names.clone()).map_err(failed)?;
    let certificate = params.signed_by(&key, &authority).map_err(failed)?;
    fs::create_dir_all(&args.dir).map_err(|source| Error::File { path: args.dir.clone(), source })?;
    let write = |name: &str, text: String| {
        let path = args.dir.join(name);
        fs::write(&path, text).map_err(|source| Error::File { path: path.clone(), source })?;
        Ok(path)
    };
    Ok(Report {
        authority_file: write("ca.pem", authority.pem())?,
        certificate_file: write("cert.pem", certificate.pem())?,
        key_file: write("key.pem", key.serialize_pem())?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Files for `localhost` and 127.0.0.1 in `dir`.
    pub(crate) fn files(dir: &Path) -> Report {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        issue(&Args { dir: dir.to_owned(), names }).unwrap()
    }

    #[test]
    fn what_is_no_certificate_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let made = files(dir.path());
        assert!(Trust::read(&made.authority_file, "127.0.0.1:4317", Protocol::Grpc).is_ok());
        assert!(Trust::read(&made.authority_file, "[::1]:4317", Protocol::Http).is_ok());
        assert!(Trust::read(&dir.path().join("none"), "localhost:1", Protocol::Grpc).is_err());
    }
}
