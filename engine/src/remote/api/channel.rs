//! A connection to a gRPC server, as the reference's is (contract CP-5).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use ringway_stdio::Trouble;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Dial};

use crate::config::Endpoint;

/// A connection that is not established within this time, TLS included, is given up.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A PING is sent so often, also when nothing is called, and answered within so long (CP-5).
const PING_EVERY: Duration = Duration::from_secs(300);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// Longest text of a server that a log line has, in characters.
const MOST_WORDS: usize = 256;

/// A server's error text for a call, for the log.
pub(super) fn words(status: &Status) -> String {
    let words: String = status.message().chars().take(MOST_WORDS).collect();
    format!("{:?}: {}", status.code(), words.escape_debug())
}

/// What to do where the system's certificates cannot be read.
pub(super) const NO_ROOTS: &str =
    "install the system's CA certificates, or name a file of them in SSL_CERT_FILE";

/// What to do about an address that is none.
const NAME_ONE: &str = "write http://HOST:PORT or https://HOST:PORT";

/// The certificates that servers are checked against.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roots(Option<Arc<[u8]>>);

impl Roots {
    /// The authorities in a PEM file; without a file those of the system.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, Trouble> {
        let pem = path.map(std::fs::read).transpose().map_err(|error| {
            let name = path.unwrap_or(Path::new("")).display();
            let what = format!("nvcf.ca_file \"{name}\" cannot be read");
            Trouble::new(what, error, "name a file that the gateway can read")
        })?;
        Ok(Self(pem.map(Arc::from)))
    }

    /// The authorities as PEM, if they are not the system's.
    pub(super) fn pem(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }
}

/// A connection that is opened when it is first needed, and again after it was lost.
///
/// # Errors
/// The URL is none, or `https` is wanted without any certificate to check servers against.
pub(super) fn open(to: &Endpoint, roots: &Roots) -> Result<Channel, Trouble> {
    let dial = Dial::from_shared(to.to_string()).map_err(|error| {
        Trouble::new(format!("{to} is no URL of a gRPC server"), error, NAME_ONE)
    })?;
    let mut dial = dial
        .user_agent(concat!("ringway/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Trouble::new(format!("{to} cannot be called"), error, NAME_ONE))?
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true);
    if to.tls {
        // Rustls speaks nothing older than TLS 1.2.
        let tls = match roots.pem() {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let tls = tls.domain_name(&to.host);
        dial = dial.tls_config(tls).map_err(|error| {
            let why = std::error::Error::source(&error).map(ToString::to_string);
            let why = why.unwrap_or_else(|| error.to_string());
            Trouble::new(format!("{to} cannot be called over TLS"), why, NO_ROOTS)
        })?;
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_LIMIT));
    // As grpc-go sets it. A server that has vanished acknowledges nothing. The timeout notices
    // that, so calls need not wait for the next PING.
    connector.set_tcp_user_timeout(Some(PING_LIMIT));
    Ok(dial.connect_with_connector_lazy(connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_brackets_is_a_url_and_no_host_is_none() {
        let endpoint = |host: &str| Endpoint { tls: false, host: host.into(), port: 1 };
        assert!(open(&endpoint("2001:db8::1"), &Roots::default()).is_ok());
        let error = open(&endpoint("a b"), &Roots::default()).unwrap_err().to_string();
        assert!(error.contains("http://a b:1 is no URL"), "{error}");
    }
}
