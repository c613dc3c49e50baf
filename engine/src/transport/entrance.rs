//! What a listener demands of its connections before a core sees their bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustls::ServerConfig;

use super::Transport;
use crate::conn::Listener;
use crate::tls::CertStore;

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handshake succeeded.
    Ok,
    /// The handshake failed, by the peer's fault or ours; the log says which.
    Failed,
    /// The peer went away, or was too slow.
    Abandoned,
}

/// The result of a connection that had to begin with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The header was read.
    Ok,
    /// The connection came from an address that is not trusted, and was closed at once.
    Untrusted,
    /// The connection began with something else, or with a wrong header.
    Malformed,
}

/// What listeners counted; the index of the listener is its number in [`Listener`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// TLS handshakes by listener and [`Outcome`].
    pub handshakes: [[u64; 3]; 2],
    /// PROXY headers by listener and [`Proxied`].
    pub proxied: [[u64; 3]; 2],
}

impl Tally {
    /// One more handshake that ended so.
    pub fn count(&mut self, listener: Listener, outcome: Outcome) {
        self.handshakes[listener as usize][outcome as usize] += 1;
    }

    /// One more connection with a PROXY header, or without the one it should have.
    pub fn count_proxied(&mut self, listener: Listener, proxied: Proxied) {
        self.proxied[listener as usize][proxied as usize] += 1;
    }
}

/// What a client is sent before it says anything: our side of HTTP/2's preface, which may cross its
/// own (RFC 9113 §3.4). Clients that wait for our preface call one round trip earlier.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// The octets of the greeting.
    pub bytes: Arc<[u8]>,
    /// Whether every connection gets it, unless another protocol was chosen by ALPN: nothing but
    /// HTTP/2 is spoken here.
    pub to_all: bool,
}

/// One listener's demands. Shared by all cores, and never changed.
#[derive(Debug, Default)]
pub struct Entrance {
    /// TLS, with the certificate that the store holds at the time.
    pub tls: Option<Arc<CertStore>>,
    /// A PROXY header comes first, from these networks. Nobody else may connect.
    pub proxy: Option<Vec<IpNet>>,
    /// The greeting for clients of HTTP/2.
    pub greeting: Option<Greeting>,
}

impl Entrance {
    fn trusts(&self, peer: SocketAddr) -> bool {
        // A listener of both families sees IPv4 addresses in IPv6 form.
        let peer = peer.ip().to_canonical();
        self.proxy.as_ref().is_none_or(|trusted| trusted.iter().any(|net| net.contains(&peer)))
    }
}

/// The demands of both listeners.
#[derive(Clone, Debug, Default)]
pub struct Entrances {
    /// The demands of the client listener.
    pub client: Arc<Entrance>,
    /// The demands of the worker listener.
    pub worker: Arc<Entrance>,
}

impl Entrances {
    /// One core's gate of a listener.
    #[must_use]
    pub fn gate(&self, listener: Listener) -> Gate {
        let entrance = match listener {
            Listener::Client => self.client.clone(),
            Listener::Worker => self.worker.clone(),
            // The cluster port has no demands: gateways prove themselves by their prelude.
            Listener::Cluster => Arc::default(),
        };
        let seen = entrance.tls.as_ref().map(|cert_store| cert_store.current());
        Gate { listener, entrance, seen }
    }
}

/// How a connection is let in.
#[derive(Debug)]
pub enum Admission {
    /// The connection is closed.
    Refused,
    /// The connection has no transport.
    Plain,
    /// Through a transport.
    Through(Box<Transport>),
}

/// A core's own view of a listener's demands: nothing is shared with other cores while the
/// certificate stays the same.
#[derive(Debug)]
pub struct Gate {
    listener: Listener,
    entrance: Arc<Entrance>,
    seen: Option<(u64, Arc<ServerConfig>)>,
}

impl Gate {
    /// The listener of this gate.
    #[must_use]
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// What a connection from this address has to pass.
    pub fn admit(&mut self, peer: SocketAddr) -> Admission {
        if !self.entrance.trusts(peer) {
            return Admission::Refused;
        }
        if let (Some(cert_store), Some(seen)) = (&self.entrance.tls, &mut self.seen)
            && cert_store.version() != seen.0
        {
            *seen = cert_store.current();
        }
        let tls = self.seen.as_ref().map(|(_, config)| config.clone());
        let greeting = self.entrance.greeting.as_ref().filter(|_| tls.is_some()).cloned();
        match Transport::new(self.listener, self.entrance.proxy.is_some(), tls) {
            Some(transport) => Admission::Through(Box::new(transport.greeting(greeting))),
            None => Admission::Plain,
        }
    }

    /// The greeting for a connection without TLS as soon as it comes.
    #[must_use]
    pub fn greeting(&self) -> Option<Arc<[u8]>> {
        let greeting = self.entrance.greeting.as_ref().filter(|greeting| greeting.to_all);
        greeting.filter(|_| self.entrance.tls.is_none()).map(|greeting| greeting.bytes.clone())
    }
}
