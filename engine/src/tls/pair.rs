//! A certificate with its key, as two PEM files: read and checked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::conn::Listener;
use crate::tls::RECORD_BYTES;

/// A certificate with less time left causes a warning.
pub const EXPIRES_SOON: Duration = Duration::from_secs(7 * 86_400);

/// Most bytes read of a file.
const MAX_FILE: u64 = 1 << 20;

/// Bytes of a record's head, which rustls counts into its longest record.
const RECORD_HEAD: usize = 5;

/// The paths of the pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate and those between it and its root, in this order.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// What is wrong with a pair, and the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PairError {
    /// Something is wrong with the certificate's file.
    Cert(String),
    /// Something is wrong with the key's file.
    Key(String),
}

impl fmt::Display for PairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cert(text) => write!(f, "certificate {text}"),
            Self::Key(text) => write!(f, "key {text}"),
        }
    }
}

/// A certificate and the key that belongs to it.
#[derive(Clone, Debug)]
pub struct Pair {
    certified: Arc<CertifiedKey>,
    not_after: Duration,
}

impl Pair {
    /// Reads and checks both files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(files: &Files) -> Result<Self, Vec<PairError>> {
        let cert = read(&files.cert).and_then(|pem| chain(&pem));
        let key = read(&files.key).and_then(|pem| private_key(&pem));
        match (cert, key) {
            (Ok((chain, not_after)), Ok(key)) => {
                Self::join(chain, key, not_after).map_err(|error| vec![error])
            }
            (cert, key) => Err([cert.err().map(PairError::Cert), key.err().map(PairError::Key)]
                .into_iter()
                .flatten()
                .collect()),
        }
    }

    fn join(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        not_after: Duration,
    ) -> Result<Self, PairError> {
        let key = provider::sign::any_supported_type(&key).map_err(|_| {
            PairError::Key(
                "is of no kind that TLS servers use: make an RSA (2048 bits or more), ECDSA \
                 (P-256, P-384) or Ed25519 key"
                    .into(),
            )
        })?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let text = "does not belong to the certificate: name the key it was made for";
                return Err(PairError::Key(text.into()));
            }
            Err(error) => {
                return Err(PairError::Cert(format!(
                    "cannot be used by TLS: {error}; make another"
                )));
            }
        }
        Ok(Self { certified: Arc::new(certified), not_after })
    }

    /// Whether it is the same certificate, chain and all.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        // A chain's first key is its certificate's, so the keys are the same too.
        self.certified.cert == other.certified.cert
    }

    /// When the certificate expires, in Unix time.
    #[must_use]
    pub fn not_after(&self) -> Duration {
        self.not_after
    }

    /// A warning for the operator if the certificate has expired or soon will.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match self.not_after.checked_sub(now) {
            None => Some("has expired: renew it".into()),
            Some(left) if left < EXPIRES_SOON => {
                let hours = left.as_secs() / 3600;
                Some(format!("expires in {} days and {} hours: renew it", hours / 24, hours % 24))
            }
            Some(_) => None,
        }
    }

    /// What a listener's handshakes use: TLS 1.2 and 1.3, and tickets instead of a table of
    /// sessions that cores would share. Each call makes a new key for tickets, so sessions of a
    /// replaced certificate cannot be resumed.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn server_config(&self, listener: Listener) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider: Arc<CryptoProvider> = Arc::new(provider::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = match listener {
            Listener::Client => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Listener::Worker | Listener::Cluster => vec![b"http/1.1".to_vec()],
        };
        // HTTP/2 begins with the handshake's first flight. That is safe because no client proves
        // its identity by a certificate.
        config.send_half_rtt_data = listener == Listener::Client;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = provider::Ticketer::new()?;
        config.max_fragment_size = Some(RECORD_BYTES + RECORD_HEAD);
        Ok(Arc::new(config))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let fail =
        |why: String| format!("cannot be read: {why}; name a file that the gateway can read");
    let size = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if size > MAX_FILE {
        return Err(fail(format!("it has {size} bytes: no such file is that long")));
    }
    std::fs::read(path).map_err(|error| fail(error.to_string()))
}

/// The certificates of a file, and when the first expires.
fn chain(pem: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Duration), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| format!("is not PEM: {error}; write it as PEM"))?;
    let Some(first) = chain.first() else {
        return Err("has no block \"BEGIN CERTIFICATE\": write it as PEM".into());
    };
    let parsed = Certificate::from_der(first).map_err(|error| {
        format!("has a first block that is no X.509 certificate: {error}; write another")
    })?;
    Ok((chain, parsed.tbs_certificate.validity.not_after.to_unix_duration()))
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => {
            "has no block \"BEGIN PRIVATE KEY\": write it as PEM, without a password".into()
        }
        error => format!("is not PEM: {error}; write it as PEM"),
    })
}
