//! TLS: the certificate that is served, and its exchange.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

/// Why a certificate cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The two files do not go together, or hold what rustls does not take.
    #[error("certificate {} and key {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The file with the certificate and those that vouch for it.
        certificate: PathBuf,
        /// The file with its key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// No version of TLS is left, which is a fault of ours.
    #[error("TLS cannot be configured: {0}")]
    Configuration(rustls::Error),
}

/// What is known of a file without reading it.
type Stamp = Option<(SystemTime, u64)>;

/// A certificate and its key in two files, which may be exchanged while the server runs.
#[derive(Debug)]
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    served: RwLock<Arc<CertifiedKey>>,
    stamps: RwLock<[Stamp; 2]>,
}

impl Certificate {
    /// Reads PEM files: the server's certificate first, then those that vouch for it; and its key.
    ///
    /// # Errors
    /// Files that cannot be read, hold something else, or do not go together.
    pub fn open(certificate: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let stamps = [stamp(certificate), stamp(key)];
        let served = load(certificate, key)?;
        Ok(Arc::new(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            served: RwLock::new(Arc::new(served)),
            stamps: RwLock::new(stamps),
        }))
    }

    /// Reads the files again. Connections that are open keep what they have.
    ///
    /// # Errors
    /// As for [`Certificate::open`]; what was served stays then.
    pub fn reload(&self) -> Result<(), TlsError> {
        let stamps = [stamp(&self.certificate), stamp(&self.key)];
        // Remembered also where it fails: the same files fail again, and one warning is enough.
        *self.stamps.write().unwrap_or_else(PoisonError::into_inner) = stamps;
        let served = load(&self.certificate, &self.key)?;
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(served);
        Ok(())
    }

    /// The same, if one of the files is another than the one that was read.
    ///
    /// # Errors
    /// As for [`Certificate::reload`].
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let stamps = [stamp(&self.certificate), stamp(&self.key)];
        if *self.stamps.read().unwrap_or_else(PoisonError::into_inner) == stamps {
            return Ok(false);
        }
        self.reload().map(|()| true)
    }

    /// What shakes hands with it.
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        // TLS 1.2 and 1.3, which is all that rustls speaks.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Configuration)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The certificates in a PEM file, the server's own first.
///
/// # Errors
/// A file that cannot be read or holds none.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unreadable("there is no certificate in it (PEM: -----BEGIN CERTIFICATE-----)".to_owned()));
    }
    Ok(certificates)
}

fn load(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let certificates = read_certificates(certificate)?;
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
        path: key.to_owned(),
        reason: format!("there is no key in it (PEM: -----BEGIN PRIVATE KEY-----): {error}"),
    })?;
    CertifiedKey::from_der(certificates, private_key, &ring::default_provider()).map_err(|source| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })
}
