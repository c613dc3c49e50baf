//! Whether a request comes from a program of an operator, or from a web page that a browser on the
//! operator's machine has open.
//!
//! To a browser `127.0.0.1` is a server like any other, so a page from anywhere can make the
//! browser call this port. The fields that a browser adds give such a call away: `Origin` and
//! `Sec-Fetch-Site` of another site. If the page's own name was made to lead here (DNS rebinding),
//! `Host` has that name. Programs send neither `Origin` nor `Sec-Fetch-Site`, and their `Host` is
//! an address or `localhost`.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// Why a request is taken for a web page's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// The page is of another origin.
    Origin,
    /// The browser says that the request leaves the page's site.
    Site,
    /// The request was sent to a name that is not this machine's.
    Host,
}

impl Foreign {
    /// The answer, with what to do about it.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Origin | Self::Site => {
                "not from a web page of another site: use curl, or the `ringway` commands\n"
            }
            Self::Host => {
                "the Host field is neither an address nor localhost: call by address, or add that \
                 name to [admin] hosts\n"
            }
        }
    }
}

/// Why a request is taken for a web page's, if it is. `hosts` are names that lead to this port.
pub(super) fn foreign(uri: &Uri, headers: &HeaderMap, hosts: &[Box<str>]) -> Option<Foreign> {
    let host = match host(uri, headers) {
        // A request without `Host` is not a browser's (HTTP/1.0).
        Host::None => None,
        Host::Is(host) if is_ours(&host, hosts) => Some(host),
        Host::Is(_) | Host::Unreadable => return Some(Foreign::Host),
    };
    let own = |origin: &[u8]| {
        let origin = origin.strip_prefix(b"http://");
        host.as_ref().is_some_and(|host| origin == Some(host.as_str().as_bytes()))
    };
    if headers.get_all(header::ORIGIN).iter().any(|origin| !own(origin.as_bytes())) {
        return Some(Foreign::Origin);
    }
    let within = |site: &[u8]| matches!(site, b"none" | b"same-origin");
    let sites = headers.get_all("sec-fetch-site");
    sites.iter().any(|site| !within(site.as_bytes())).then_some(Foreign::Site)
}

enum Host {
    None,
    Is(Authority),
    /// Several `Host` fields, or one that cannot be read.
    Unreadable,
}

/// Whom the request is for: a target with an authority wins (RFC 9112 section 3.2.2).
fn host(uri: &Uri, headers: &HeaderMap) -> Host {
    if let Some(authority) = uri.authority() {
        return Host::Is(authority.clone());
    }
    let mut fields = headers.get_all(header::HOST).iter();
    match (fields.next(), fields.next()) {
        (None, _) => Host::None,
        (Some(field), None) => {
            Authority::try_from(field.as_bytes()).map_or(Host::Unreadable, Host::Is)
        }
        (Some(_), Some(_)) => Host::Unreadable,
    }
}

/// Whether the host is an address, `localhost`, or a configured name.
fn is_ours(authority: &Authority, hosts: &[Box<str>]) -> bool {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, fields: &[(&'static str, &str)]) -> Option<Foreign> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        foreign(&uri.parse().unwrap(), &headers, &["Gateway.example".into()])
    }

    #[test]
    fn programs_are_told_from_pages_by_whom_they_call() {
        for host in [
            "127.0.0.1:10083",
            "10.1.2.3",
            "[::1]:10083",
            "[fe80::1]",
            "localhost:10083",
            "LOCALHOST",
            "gateway.example:10083",
        ] {
            assert_eq!(of("/drain", &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:10083",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "gateway.example.evil",
            "",
            "a b",
        ] {
            assert_eq!(of("/drain", &[("host", host)]), Some(Foreign::Host), "{host}");
        }
        let two = [("host", "127.0.0.1"), ("host", "127.0.0.1")];
        assert_eq!(of("/drain", &two), Some(Foreign::Host));
        assert_eq!(of("/drain", &[]), None, "HTTP/1.0 has no Host");
        let target = "http://evil.example/drain";
        assert_eq!(of(target, &[("host", "127.0.0.1")]), Some(Foreign::Host));
    }

    #[test]
    fn a_page_of_this_port_may_and_one_of_another_may_not() {
        let host = ("host", "127.0.0.1:10083");
        let own = ("origin", "http://127.0.0.1:10083");
        assert_eq!(of("/drain", &[host, own, ("sec-fetch-site", "same-origin")]), None);
        assert_eq!(of("/drain", &[host, ("sec-fetch-site", "none")]), None);
        for origin in [
            "http://evil.example",
            "http://127.0.0.1:8080",
            "http://127.0.0.1",
            "https://127.0.0.1:10083",
            "http://localhost:10083",
            "null",
            "",
        ] {
            let fields = [host, ("origin", origin)];
            assert_eq!(of("/drain", &fields), Some(Foreign::Origin), "{origin}");
        }
        assert_eq!(of("/drain", &[host, own, ("origin", "null")]), Some(Foreign::Origin));
        assert_eq!(of("/drain", &[own]), Some(Foreign::Origin));
        for site in ["cross-site", "same-site", "", "x"] {
            let fields = [host, ("sec-fetch-site", site)];
            assert_eq!(of("/drain", &fields), Some(Foreign::Site), "{site}");
        }
    }
}
