//! The certificate that new handshakes use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;

/// What handshakes of one listener use now. For each connection a core loads only the version. It
/// takes the lock only if the version has changed.
#[derive(Debug)]
pub struct CertStore {
    version: AtomicU64,
    current: Mutex<Arc<ServerConfig>>,
}

impl CertStore {
    /// A store with a first certificate.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { version: AtomicU64::new(0), current: Mutex::new(config) }
    }

    /// A number that changes with the certificate.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The certificate, and its version.
    #[must_use]
    pub fn current(&self) -> (u64, Arc<ServerConfig>) {
        // Nothing that holds the lock can panic half-way.
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (self.version(), current.clone())
    }

    /// New handshakes use this certificate.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = config;
        self.version.fetch_add(1, Ordering::Release);
    }
}
