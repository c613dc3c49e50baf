//! What a listener asks of its connections before a core sees their bytes.

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
    /// It did its work.
    Ok,
    /// The peer's or our fault; the log says which.
    Failed,
    /// The peer went away, or was too slow.
    Abandoned,
}

/// What came of a connection that had to begin with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The header was read.
    Ok,
    /// It came from an address that is not trusted, and was closed at once.
    Untrusted,
    /// It began otherwise, or with a wrong header.
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

/// What a client is told before it says anything: our side of HTTP/2's preface, which its own may cross
/// (RFC 9113 §3.4). Clients that wait for it call a time to and fro earlier.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// Its octets.
    pub bytes: Arc<[u8]>,
    /// It is for everybody who has not chosen another protocol by ALPN: nothing else is spoken here.
    pub to_all: bool,
}

/// One listener's demands. Shared by all cores, and never changed.
#[derive(Debug, Default)]
pub struct Entrance {
    /// TLS, with the certificate that the store holds at the time.
    pub tls: Option<Arc<CertStore>>,
    /// A PROXY header first, from these networks; nobody else may connect.
    pub proxy: Option<Vec<IpNet>>,
    /// What clients of HTTP/2 are told first.
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
    /// Of the client listener.
    pub client: Arc<Entrance>,
    /// Of the worker listener.
    pub worker: Arc<Entrance>,
}

impl Entrances {
    /// One core's gate of a listener.
    #[must_use]
    pub fn gate(&self, listener: Listener) -> Gate {
        let entrance = match listener {
            Listener::Client => self.client.clone(),
            Listener::Worker => self.worker.clone(),
            // Gateways know each other by what they say.
            Listener::Cluster => Arc::default(),
        };
        let seen = entrance.tls.as_ref().map(|cert_store| cert_store.current());
        Gate { listener, entrance, seen }
    }
}

/// How a connection may come in.
#[derive(Debug)]
pub enum Admission {
    /// Not at all.
    Refused,
    /// As it is.
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
    /// Whose gate it is.
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

    /// What a connection without TLS is told as soon as it comes.
    #[must_use]
    pub fn greeting(&self) -> Option<Arc<[u8]>> {
        let greeting = self.entrance.greeting.as_ref().filter(|greeting| greeting.to_all);
        greeting.filter(|_| self.entrance.tls.is_none()).map(|greeting| greeting.bytes.clone())
    }
}
