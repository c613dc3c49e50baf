//! What was replaced while the gateway ran.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::control::local::Policy;
use crate::keys::Keys;
use crate::metrics::family;
use crate::net::Listener;

/// What can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Tenants, keys and functions.
    Configuration,
    /// A listener's certificate.
    Certificate,
}

const LISTENERS: [(Listener, &str); 2] =
    [(Listener::Client, "client"), (Listener::Worker, "worker")];

/// The counts of changes, and what is in use now.
#[derive(Debug)]
pub struct Changes {
    /// By [`Change`]: taken, refused.
    counts: [[AtomicU64; 2]; 2],
    /// Unix time at which each listener's certificate expires; 0: it has none.
    not_after: [AtomicU64; 2],
    policy: Mutex<Arc<Policy>>,
    /// The keys in use; none: those that the process began with.
    keys: Mutex<Option<Arc<Keys>>>,
}

impl Changes {
    /// Nothing was replaced yet: cores use this policy.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            counts: Default::default(),
            not_after: Default::default(),
            policy: Mutex::new(policy),
            keys: Mutex::default(),
        }
    }

    /// Counts a replacement. `taken` is false if the old one stayed because the new one has faults.
    pub fn count(&self, change: Change, taken: bool) {
        self.counts[change as usize][usize::from(!taken)].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a listener's certificate expires at this Unix time.
    pub fn certificate(&self, listener: Listener, not_after: Duration) {
        self.not_after[listener as usize].store(not_after.as_secs(), Ordering::Relaxed);
    }

    /// Cores use this policy from now on.
    pub fn replace_policy(&self, policy: Arc<Policy>) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// The policy that cores use now. A core that begins anew after a panic asks for it, so that a
    /// revoked key is not good there for even a moment.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The gateways of the cluster know each other by these from now on.
    pub fn replace_keys(&self, keys: Arc<Keys>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys);
    }

    /// The keys that have taken the place of those that the process began with.
    #[must_use]
    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the metrics in the Prometheus text format.
    pub fn render(&self, out: &mut String) {
        let name = "ringway_reloads_total";
        family(out, name, "counter", "Reloads of the configuration and of certificates.");
        for (what, counts) in ["configuration", "certificate"].iter().zip(&self.counts) {
            for (outcome, count) in ["ok", "refused"].iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{name}{{what=\"{what}\",outcome=\"{outcome}\"}} {count}");
            }
        }
        let name = "ringway_tls_certificate_not_after_seconds";
        family(out, name, "gauge", "Unix time at which a listener's certificate expires.");
        for (listener, label) in LISTENERS {
            let at = self.not_after[listener as usize].load(Ordering::Relaxed);
            if at > 0 {
                let _ = writeln!(out, "{name}{{listener=\"{label}\"}} {at}");
            }
        }
    }
}
