//! The settings of a remote control plane: NVIDIA's API and NATS (contract 5, 6 and 9).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;

/// The mode: who says who may call, and how work travels (design 3.20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// This file says who may call, and workers poll this gateway.
    #[default]
    Local,
    /// This file says who may call, and work travels over NATS.
    Nats,
    /// NVIDIA's API says who may call, and work travels over NATS.
    Nvcf,
}

impl Mode {
    /// The mode's name in `control.mode`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Nats => "nats",
            Self::Nvcf => "nvcf",
        }
    }
}

/// The control plane of the modes `nats` and `nvcf`.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The API that says who may call. None in `nats` mode: the configuration says it.
    pub authority: Option<Api>,
    /// How work, registrations and reconnects travel.
    pub nats: Nats,
    /// The region in the names of subjects and streams (contract 6.1): letters, digits, `_`, `-`.
    pub region: String,
    /// The URL that workers are told to dial back to, its path included (contract NT-5).
    pub proxy_uri: String,
    /// The URL that workers try first: this very process.
    pub direct_uri: Option<String>,
    /// The secrets file (contract 5.2), which changes at run time and need not be there yet.
    pub secrets: Option<PathBuf>,
    /// Readiness turns red after this time without NATS or API (design 3.27).
    pub red_after: Duration,
}

/// NVIDIA's API and the services beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Where `AuthStatefulWork` and the health check are called (contract 5.1, 8.4).
    pub url: Endpoint,
    /// Base URL of the OAuth2 issuer, without a slash at its end: its token endpoint is `/token`
    /// below it (contract CP-7). None: no credential of OAuth2 is attached.
    pub oauth: Option<String>,
    /// The rate limiter, if it is to be asked (contract 5.3).
    pub limiter: Option<Endpoint>,
    /// Certificates of the authorities that all three are checked against, as PEM. None: the
    /// system's.
    pub ca: Option<PathBuf>,
}

/// A gRPC server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether the server speaks TLS (`https`).
    pub tls: bool,
    /// The server's name or address. An IPv6 address is without brackets.
    pub host: String,
    /// The server's port: 443 for `https` and 80 for `http` if none is written (contract CP-5).
    pub port: u16,
}

impl fmt::Display for Endpoint {
    /// The server as a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let (host, port) = (&self.host, self.port);
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

/// The NATS servers, and this gateway's login (contract 6.6).
#[derive(Clone)]
pub struct Nats {
    /// The servers' URLs, at least one. They may hold a password.
    pub urls: Vec<String>,
    /// The NKey's seed. None: the secrets file may still have one under `natsPrivateNKey`.
    pub nkey: Option<NkeySource>,
    /// A credentials file: a JWT and its seed.
    pub credentials: Option<PathBuf>,
    /// A user's name and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// The file with a token.
    pub token: Option<PathBuf>,
    /// Certificates of the authorities that servers are checked against, as PEM. None: the
    /// system's.
    pub ca: Option<PathBuf>,
    /// This client's certificate and key, as PEM.
    pub client_pair: Option<(PathBuf, PathBuf)>,
    /// The placement tag of streams that are made here (contract NT-3). Empty: none.
    pub placement: String,
    /// Whether the gateway logs in with an OAuth2 token (contract NT-8), unless the secrets file
    /// has an NKey.
    pub callout: bool,
}

impl fmt::Debug for Nats {
    /// Leaves the URLs out, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { urls, nkey, credentials, user, token, ca, client_pair, placement, callout } =
            self;
        f.debug_struct("Nats")
            .field("urls", &urls.len())
            .field("nkey", nkey)
            .field("credentials", credentials)
            .field("user", user)
            .field("token", token)
            .field("ca", ca)
            .field("client_pair", client_pair)
            .field("placement", placement)
            .field("callout", callout)
            .finish()
    }
}

/// Where an NKey's seed is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NkeySource {
    /// The seed itself was given (`NATS_PRIVATE_NKEY`).
    Seed(Secret),
    /// The seed is in this file.
    File(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_shown_as_a_url() {
        let endpoint = |tls, host: &str, port| Endpoint { tls, host: host.into(), port };
        assert_eq!(endpoint(true, "api.test", 443).to_string(), "https://api.test:443");
        assert_eq!(endpoint(false, "2001:db8::1", 80).to_string(), "http://[2001:db8::1]:80");
    }

    #[test]
    fn no_password_is_shown() {
        let nats = Nats {
            urls: vec!["nats://me:hidden@n.test".into()],
            nkey: Some(NkeySource::Seed("SUHIDDEN".into())),
            credentials: None,
            user: Some(("me".into(), "password.txt".into())),
            token: None,
            ca: None,
            client_pair: None,
            placement: "dc:ncp".into(),
            callout: false,
        };
        let shown = format!("{nats:?}");
        assert!(shown.contains("dc:ncp") && !shown.to_lowercase().contains("hidden"), "{shown}");
    }
}
