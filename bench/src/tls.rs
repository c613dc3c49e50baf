//! TLS around one side of a connection, as bytes in and bytes out like the side itself.
//!
//! The runtime's own TLS crates own the socket and write each record by itself; here all records
//! that a turn made leave in one write, as the plain sides do it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, NamedGroup, RootCertStore,
};
use rustls::{ServerConfig, ServerConnection};

use crate::drive::Machine;
use crate::fault::Fault;

/// The protocol both sides offer (RFC 9113 §3.2).
const H2: &[u8] = b"h2";

fn broken(error: &dyn fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

fn named(path: &Path) -> impl Fn(rustls::pki_types::pem::Error) -> io::Error {
    move |error| io::Error::other(format!("{}: {error}", path.display()))
}

/// Whom a client trusts, and to be whom.
#[derive(Debug, Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    seen: Arc<Handshakes>,
    resumes: bool,
}

/// The handshakes of a client's connections.
#[derive(Debug, Default)]
struct Handshakes {
    all: AtomicU64,
    resumed: AtomicU64,
}

/// Tickets that a client keeps: more than its connections use at once.
const TICKETS: usize = 4096;

/// The tickets of one server, each used once. (The library's own store keeps eight, which is less
/// than connections begin at once here.)
#[derive(Debug, Default)]
struct Tickets {
    kept: Mutex<VecDeque<Tls13ClientSessionValue>>,
}

impl Tickets {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Tls13ClientSessionValue>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.len() >= TICKETS {
            kept.pop_front();
        }
        kept.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().pop_back()
    }
}

impl Trust {
    /// Trusts the certificates of a PEM file for a server called `name` (an address or a name).
    ///
    /// # Errors
    /// The file cannot be read or holds no certificate, or the name is none.
    pub fn read(authorities: &Path, name: &str) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for found in CertificateDer::pem_file_iter(authorities).map_err(named(authorities))? {
            roots.add(found.map_err(named(authorities))?).map_err(|e| broken(&e))?;
        }
        if roots.is_empty() {
            let text = format!("{}: no certificate in it", authorities.display());
            return Err(io::Error::other(text));
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| broken(&e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![H2.to_vec()];
        // Like grpc-go, which keeps no tickets.
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(name.to_owned()).map_err(|e| broken(&e))?;
        Ok(Self { config: Arc::new(config), name, seen: Arc::default(), resumes: false })
    }

    /// The same, which keeps tickets and takes its sessions up again.
    #[must_use]
    pub fn resuming(mut self) -> Self {
        let mut config = (*self.config).clone();
        config.resumption = Resumption::store(Arc::new(Tickets::default()));
        (self.config, self.seen, self.resumes) = (Arc::new(config), Arc::default(), true);
        self
    }

    /// Share of its handshakes that took a session up again, if it wants that.
    pub fn resumed(&self) -> Option<f64> {
        let all = self.seen.all.load(Ordering::Relaxed);
        let resumed = self.seen.resumed.load(Ordering::Relaxed);
        (self.resumes && all > 0).then(|| resumed as f64 / all as f64)
    }

    /// A connection of this client around `machine`.
    ///
    /// # Errors
    /// The TLS side cannot be made.
    pub fn around<M>(&self, machine: Rc<RefCell<M>>) -> Result<Tls<M>, Fault> {
        let session = ClientConnection::new(self.config.clone(), self.name.clone());
        let seen = Some(self.seen.clone());
        session.map(|s| Tls::new(s.into(), machine, seen)).map_err(|e| Fault::Tls(e.to_string()))
    }
}

/// What a server shows.
#[derive(Debug, Clone)]
pub struct Offer {
    config: Arc<ServerConfig>,
}

impl Offer {
    /// A certificate chain and its key, both PEM.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub fn read(chain: &Path, key: &Path) -> io::Result<Self> {
        let found = CertificateDer::pem_file_iter(chain).map_err(named(chain))?;
        let certificates = found.collect::<Result<Vec<_>, _>>().map_err(named(chain))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(named(key))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| broken(&e))?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|e| broken(&e))?;
        config.alpn_protocols = vec![H2.to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    /// A connection of this server around `machine`.
    ///
    /// # Errors
    /// The TLS side cannot be made.
    pub fn around<M>(&self, machine: Rc<RefCell<M>>) -> Result<Tls<M>, Fault> {
        let session = ServerConnection::new(self.config.clone());
        session.map(|s| Tls::new(s.into(), machine, None)).map_err(|e| Fault::Tls(e.to_string()))
    }
}

/// A side with TLS around it.
pub struct Tls<M> {
    session: Connection,
    machine: Rc<RefCell<M>>,
    /// Decrypted bytes that the machine has not taken yet.
    plain: Vec<u8>,
    out: Vec<u8>,
    agreed: bool,
    /// Where a client's handshake is counted.
    seen: Option<Arc<Handshakes>>,
}

impl<M> Tls<M> {
    fn new(
        mut session: Connection,
        machine: Rc<RefCell<M>>,
        seen: Option<Arc<Handshakes>>,
    ) -> Self {
        // The machine has a limit of its own for what waits to be written.
        session.set_buffer_limit(None);
        Self { session, machine, plain: vec![], out: vec![], agreed: false, seen }
    }

    /// Decrypts all of `bytes`.
    fn decrypt(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        let fault = |error: &dyn fmt::Display| Fault::Tls(error.to_string());
        while !bytes.is_empty() {
            self.session.read_tls(&mut bytes).map_err(|e| fault(&e))?;
            let state = self.session.process_new_packets().map_err(|e| fault(&e))?;
            let from = self.plain.len();
            self.plain.resize(from + state.plaintext_bytes_to_read(), 0);
            self.session.reader().read_exact(&mut self.plain[from..]).map_err(|e| fault(&e))?;
        }
        if !self.agreed && !self.session.is_handshaking() {
            if self.session.alpn_protocol() != Some(H2) {
                return Err(Fault::Tls("the peer did not agree on h2".to_owned()));
            }
            self.agreed = true;
            if let Some(seen) = &self.seen {
                let resumed = self.session.handshake_kind() == Some(HandshakeKind::Resumed);
                seen.all.fetch_add(1, Ordering::Relaxed);
                seen.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl<M: Machine> Machine for Tls<M> {
    fn received(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        self.decrypt(bytes)?;
        if !self.plain.is_empty() {
            let used = self.machine.borrow_mut().received(&self.plain)?;
            self.plain.drain(..used);
        }
        Ok(bytes.len())
    }

    fn refill(&mut self) {
        self.machine.borrow_mut().refill();
    }

    fn output(&mut self) -> &mut Vec<u8> {
        if self.agreed {
            let mut machine = self.machine.borrow_mut();
            let plain = machine.output();
            // Memory takes everything: neither write can fail.
            let _ = self.session.writer().write_all(plain);
            plain.clear();
        }
        while self.session.wants_write() {
            let _ = self.session.write_tls(&mut self.out);
        }
        &mut self.out
    }

    fn over(&self) -> bool {
        self.machine.borrow().over()
    }
}
