//! The certificate that new handshakes use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;

/// What handshakes of one listener use now. Cores look at the version only, one load a connection;
/// the lock is taken when that has changed.
#[derive(Debug)]
pub struct CertStore {
    version: AtomicU64,
    current: Mutex<Arc<ServerConfig>>,
}

impl CertStore {
    /// With a first one.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { version: AtomicU64::new(0), current: Mutex::new(config) }
    }

    /// Changes with what is held.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What is held, and its version.
    #[must_use]
    pub fn current(&self) -> (u64, Arc<ServerConfig>) {
        // Nothing that holds the lock can panic half-way.
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (self.version(), current.clone())
    }

    /// New handshakes use this one.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = config;
        self.version.fetch_add(1, Ordering::Release);
    }
}
