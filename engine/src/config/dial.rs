//! The server of a function that needs no worker.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;

/// A server that the gateway dials itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// `HOST:PORT`, as the configuration has it.
    pub server: String,
    /// The server's addresses. Empty for a name until [`Dial::resolve`] has found some.
    pub addresses: Vec<SocketAddr>,
}

impl Dial {
    /// Reads `HOST:PORT`; `None` for anything else. No name is looked up.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let server = text.to_owned();
        if let Ok(address) = text.parse::<SocketAddr>() {
            return (address.port() > 0).then(|| Self { server, addresses: vec![address] });
        }
        let (host, port) = text.rsplit_once(':')?;
        let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let good = !host.is_empty() && host.bytes().all(of_a_name);
        // All digits and dots is an address with a typing error, not a name.
        let name = host.bytes().any(|byte| byte.is_ascii_alphabetic());
        let port = port.parse::<u16>().is_ok_and(|port| port > 0);
        (good && name && port).then(|| Self { server, addresses: Vec::new() })
    }

    /// Looks the name up; this blocks. If nothing is found, the earlier addresses stay.
    ///
    /// # Errors
    /// The resolver's.
    pub fn resolve(&mut self) -> io::Result<()> {
        if self.server.parse::<SocketAddr>().is_ok() {
            return Ok(());
        }
        let mut found: Vec<SocketAddr> = Vec::new();
        for address in self.server.to_socket_addrs()?.take(MAX_ADDRESSES) {
            if !found.contains(&address) {
                found.push(address);
            }
        }
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        self.addresses = found;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_and_a_name_is_looked_up_later() {
        let known = Dial::parse("127.0.0.1:50051").unwrap();
        assert_eq!(known.addresses, ["127.0.0.1:50051".parse().unwrap()]);
        assert_eq!(Dial::parse("[::1]:5").unwrap().addresses, ["[::1]:5".parse().unwrap()]);
        let mut named = Dial::parse("localhost:50051").unwrap();
        assert!(named.addresses.is_empty());
        named.resolve().unwrap();
        assert!(named.addresses.iter().all(|a| a.ip().is_loopback() && a.port() == 50051));
        assert!(!named.addresses.is_empty());
        assert!(Dial::parse("my-server_1.default.svc:1").is_some());
    }

    #[test]
    fn what_is_no_host_and_port_is_refused() {
        for bad in [
            "",
            "host",
            "host:",
            ":5",
            "host:0",
            "127.0.0.1:0",
            "host:65536",
            "300.0.0.1:5",
            "http://h:5",
            "h:5/x",
            "h h:5",
            "::1:5",
        ] {
            assert_eq!(Dial::parse(bad), None, "{bad:?}");
        }
    }
}
