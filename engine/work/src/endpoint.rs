//! Where a URI leads.

use std::fmt;
use std::net::SocketAddr;

/// Port of a URI that names none, whatever its scheme (contract WK-3).
const DEFAULT_PORT: u16 = 80;

/// Host, port and path of a URI. The connection is plain TCP even if the URI says `https`, as
/// NVIDIA's workers have it (contract WK-3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    /// 80 if the URI names none.
    pub port: u16,
    /// As the URI has it, brackets and all: the `Host` field.
    pub authority: String,
    /// With its query; at least `/`.
    pub path: String,
}

/// Why a URI is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointFault {
    /// Not `http://HOST[:PORT][/PATH]`, nor the same with `https`.
    Uri,
    /// User and password in the URI: they would end up in logs.
    User,
}

impl fmt::Display for EndpointFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uri => "not a URL: write it as http://HOST:PORT",
            Self::User => {
                "a URL with a user name is not taken, for it would end up in logs: leave it out"
            }
        })
    }
}

impl std::error::Error for EndpointFault {}

impl Endpoint {
    /// Reads a URI.
    ///
    /// # Errors
    /// What is no absolute `http` or `https` URI.
    pub fn parse(uri: &str) -> Result<Self, EndpointFault> {
        let uri: http::Uri = uri.parse().map_err(|_| EndpointFault::Uri)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(EndpointFault::Uri);
        }
        let authority = uri.authority().ok_or(EndpointFault::Uri)?;
        if authority.as_str().contains('@') {
            return Err(EndpointFault::User);
        }
        let host = authority.host().trim_matches(['[', ']']);
        // `http` leaves out a port that is no number; a typing error must not lead to port 80.
        let port = match (authority.port_u16(), authority.as_str().ends_with(authority.host())) {
            (Some(port), _) if port > 0 => port,
            (None, true) => DEFAULT_PORT,
            _ => return Err(EndpointFault::Uri),
        };
        if host.is_empty() {
            return Err(EndpointFault::Uri);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        })
    }

    /// Reads `HOST:PORT`.
    ///
    /// # Errors
    /// Anything else.
    pub fn host_and_port(text: &str) -> Result<Self, EndpointFault> {
        let endpoint = Self::parse(&format!("http://{text}"))?;
        let named =
            text.rsplit_once(':').is_some_and(|(_, port)| port.parse() == Ok(endpoint.port));
        if named && endpoint.authority == text { Ok(endpoint) } else { Err(EndpointFault::Uri) }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            authority: address.to_string(),
            path: "/".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_has_a_host_a_port_and_a_path() {
        for (uri, host, port, path) in [
            ("http://10.0.0.1:10086/custom/v1/proxy", "10.0.0.1", 10086, "/custom/v1/proxy"),
            ("http://gw/v1/proxy", "gw", 80, "/v1/proxy"),
            ("https://gw/v1/proxy?a=b", "gw", 80, "/v1/proxy?a=b"),
            ("https://gw:443/v1/proxy", "gw", 443, "/v1/proxy"),
            ("http://[::1]:7/x", "::1", 7, "/x"),
            ("http://[::1]", "::1", 80, "/"),
            ("http://gw?x", "gw", 80, "/?x"),
        ] {
            let endpoint = Endpoint::parse(uri).unwrap();
            assert_eq!(
                (&*endpoint.host, endpoint.port, &*endpoint.path),
                (host, port, path),
                "{uri}"
            );
        }
        let address: SocketAddr = "[::1]:7".parse().unwrap();
        assert_eq!(Endpoint::parse("http://[::1]:7").unwrap(), Endpoint::from(address));
    }

    #[test]
    fn what_is_no_uri_is_refused() {
        for bad in [
            "",
            "gw:1",
            "/v1/proxy",
            "ftp://gw",
            "http://",
            "http://:1/x",
            "http://gw:0/x",
            "http://gw:x/",
            "http://gw:99999/",
            "http://gw:/",
            "http://g w/",
            "http://gw/\r\nx",
        ] {
            assert_eq!(Endpoint::parse(bad), Err(EndpointFault::Uri), "{bad:?}");
        }
        assert_eq!(Endpoint::parse("http://me:secret@gw/"), Err(EndpointFault::User));
    }

    #[test]
    fn a_target_names_its_port() {
        let endpoint = Endpoint::host_and_port("localhost:50051").unwrap();
        assert_eq!((&*endpoint.host, endpoint.port), ("localhost", 50051));
        assert_eq!(Endpoint::host_and_port("[::1]:5").unwrap().host, "::1");
        for bad in ["localhost", "localhost:", ":5", "http://h:5", "h:5/x", "h:0", "a@h:5", "::1:5"]
        {
            assert!(Endpoint::host_and_port(bad).is_err(), "{bad:?}");
        }
    }
}
