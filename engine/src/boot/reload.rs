//! What changes while the gateway runs: tenants, keys and functions on SIGHUP, certificates on
//! SIGHUP and whenever their files change (contract CF-1).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::tell::tell;
use super::{BootError, manager, policy_of};
use crate::admin::{Admin, Change, Changes};
use crate::config::{Config, Front, Source};
use crate::control::local::Policy;
use crate::keys::Keys;
use crate::message::ShardMessage;
use crate::net::Listener;
use crate::shard::ShardSettings;
use crate::tls::{CertStore, Files, Pair, PairError};
use crate::transport::{Entrance, Entrances, Greeting};

/// How often the files of certificates are looked at. A change counts when the next look finds no
/// further change, because two files are seldom written in one instant.
const LOOK: Duration = Duration::from_secs(1);

/// The running configuration, and the parts of it that can be replaced.
#[derive(Debug)]
pub(super) struct Reloader {
    source: Option<Source>,
    config: Arc<Config>,
    certificates: Vec<Certificate>,
    changes: Arc<Changes>,
    /// The keys by which the gateways of the cluster know each other.
    keys: Option<watch::Sender<Arc<Keys>>>,
}

/// A listener's certificate.
#[derive(Debug)]
struct Certificate {
    listener: Listener,
    /// The setting that names it.
    key: &'static str,
    files: Files,
    cert_store: Arc<CertStore>,
    pair: Pair,
    /// The files as they were when they were last read, and as they were at the last look.
    read: Stamp,
    seen: Stamp,
}

/// What distinguishes two states of a pair of files.
type Stamp = [Option<[i64; 7]>; 2];

fn stamp(files: &Files) -> Stamp {
    let of = |path: &Path| {
        // Symlinks are followed: the file they lead to counts.
        let data = std::fs::metadata(path).ok()?;
        let times = [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()];
        let [mtime, mtime_nsec, ctime, ctime_nsec] = times;
        let (device, inode, size) = (data.dev() as i64, data.ino() as i64, data.size() as i64);
        Some([device, inode, size, mtime, mtime_nsec, ctime, ctime_nsec])
    };
    [of(&files.cert), of(&files.key)]
}

impl Reloader {
    /// A reloader for a configuration that was read from `source`.
    pub(super) fn new(
        config: &Arc<Config>,
        source: Option<Source>,
        (policy, keys): (Arc<Policy>, Option<watch::Sender<Arc<Keys>>>),
    ) -> Result<Self, BootError> {
        let changes = Arc::new(Changes::new(policy));
        let mut certificates = Vec::new();
        let fronts = &config.fronts;
        for (listener, key, front) in [
            (Listener::Client, "listen.client.tls", &fronts.client),
            (Listener::Worker, "listen.worker.tls", &fronts.worker),
        ] {
            let Some(tls) = &front.tls else { continue };
            let server = tls.pair.server_config(listener).map_err(|error| {
                let fix = "name another certificate and its key";
                BootError::os(format!("{key} cannot be used"), error, fix)
            })?;
            let (files, pair) = (tls.files.clone(), tls.pair.clone());
            changes.certificate(listener, pair.not_after());
            // The files' present state does not count: they may have changed since they were read.
            let (read, seen) = ([None; 2], [None; 2]);
            let cert_store = Arc::new(CertStore::new(server));
            certificates.push(Certificate { listener, key, files, cert_store, pair, read, seen });
        }
        Ok(Self { source, config: config.clone(), certificates, changes, keys })
    }

    /// What the admin port shows of reloads.
    pub(super) fn changes(&self) -> Arc<Changes> {
        self.changes.clone()
    }

    /// What connections have to pass.
    pub(super) fn entrances(&self) -> Entrances {
        let bytes = ShardSettings::greeting(&self.config.limits);
        let entrance = |listener: Listener, front: &Front| {
            let own = self.certificates.iter().find(|own| own.listener == listener);
            let proxy = front.proxy_protocol.then(|| front.trusted.clone());
            let greeting = Greeting { bytes: bytes.clone(), to_all: front.http2 };
            let greeting = Some(greeting).filter(|_| listener == Listener::Client);
            Arc::new(Entrance { tls: own.map(|own| own.cert_store.clone()), proxy, greeting })
        };
        Entrances {
            client: entrance(Listener::Client, &self.config.fronts.client),
            worker: entrance(Listener::Worker, &self.config.fronts.worker),
        }
    }

    /// Reloads for ever whatever has changed.
    pub(super) async fn run(mut self, admin: Arc<Admin>, mut hangup: Signal) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                asked = hangup.recv() => match asked {
                    Some(()) => {
                        manager::reloading();
                        self.asked(&admin).await;
                        manager::reloaded();
                    }
                    None => return,
                },
                _ = look.tick(), if !self.certificates.is_empty() => self.look(),
            }
        }
    }

    /// Reloads after SIGHUP.
    async fn asked(&mut self, admin: &Admin) {
        // The environment does not change, but it may name the file of the cluster's secrets.
        let reads = |source: &Source| source.file().is_some() || self.keys.is_some();
        let Some(source) = self.source.clone().filter(reads) else {
            tracing::info!("SIGHUP: there is no configuration file to read again");
            return;
        };
        match source.load() {
            Ok(mut new) => {
                let (tenants, functions) = (new.tenants.len(), new.functions.len());
                let policy = policy_of(&mut new);
                self.changes.replace_policy(policy.clone());
                if let Some(remote) = &admin.remote {
                    remote.serve_functions(&new.functions);
                }
                tell(admin, || ShardMessage::Policy(policy.clone())).await;
                self.take_secrets(admin, &new).await;
                self.changes.count(Change::Configuration, true);
                tracing::info!(tenants, functions, "the configuration was read again");
                self.tell_fixed(&new);
            }
            Err(problems) => {
                self.changes.count(Change::Configuration, false);
                let problems = problems.to_string();
                tracing::error!(
                    problems = problems.trim_end(),
                    "the configuration has problems: nothing of it was taken"
                );
            }
        }
        for certificate in &mut self.certificates {
            certificate.seen = stamp(&certificate.files);
            certificate.take_up(&self.changes, true);
        }
    }

    /// Takes up the cluster's secrets, if they have changed. A cluster's begin or end needs a new
    /// start.
    async fn take_secrets(&self, admin: &Admin, new: &Config) {
        let (Some(sender), Some(keys)) = (&self.keys, Keys::of(&new.cluster.secrets)) else {
            return;
        };
        let secrets = keys.count();
        sender.send_replace(keys.clone());
        self.changes.replace_keys(keys.clone());
        tell(admin, || ShardMessage::Keys(keys.clone())).await;
        tracing::info!(secrets, "the cluster's secrets were read again");
    }

    /// Names the settings that differ and need a new start.
    fn tell_fixed(&self, new: &Config) {
        let (old, new) = (&self.config.written, &new.written);
        let mut keys: Vec<&str> = old.keys().chain(new.keys()).map(String::as_str).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| old.get(*key) != new.get(*key));
        if !keys.is_empty() {
            let keys = keys.join(", ");
            tracing::warn!(keys, "these settings have changed and need a restart to take effect");
        }
    }

    /// Takes up certificates whose files have changed and are not being written any more.
    fn look(&mut self) {
        for certificate in &mut self.certificates {
            let now = stamp(&certificate.files);
            let rests = now == std::mem::replace(&mut certificate.seen, now);
            if rests && now != certificate.read {
                certificate.take_up(&self.changes, false);
            }
        }
    }
}

impl Certificate {
    /// Reads both files. New handshakes use them if they are valid; otherwise the old ones stay.
    fn take_up(&mut self, changes: &Changes, asked: bool) {
        self.read = self.seen;
        let Self { listener, key, files, .. } = self;
        let loaded = Pair::load(files);
        let new = match loaded {
            Ok(new) if new.is_same(&self.pair) => {
                if asked {
                    tracing::info!(setting = key, "the certificate is the same as before");
                }
                return;
            }
            Ok(new) => new
                .server_config(*listener)
                .map(|server| (new, server))
                .map_err(|error| vec![PairError::Cert(format!("cannot be used: {error}"))]),
            Err(errors) => Err(errors),
        };
        match new {
            Ok((new, server)) => {
                self.cert_store.replace(server);
                changes.certificate(*listener, new.not_after());
                changes.count(Change::Certificate, true);
                let not_after = new.not_after().as_secs();
                tracing::info!(setting = key, not_after, "new handshakes use a new certificate");
                if let Some(warning) = new.warning() {
                    let cert = files.cert.display();
                    tracing::warn!(setting = key, %cert, why = warning, "a certificate ends soon");
                }
                self.pair = new;
            }
            Err(errors) => {
                changes.count(Change::Certificate, false);
                let why = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::error!(
                    setting = key,
                    cert = %files.cert.display(),
                    key = %files.key.display(),
                    why,
                    "the new certificate cannot be used: the old one stays"
                );
            }
        }
    }
}
