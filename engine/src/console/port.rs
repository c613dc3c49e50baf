//! Requests to a gateway's admin port, each on a connection of its own.

use std::net::Ipv6Addr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;
use crate::question::ask;

/// Where the admin port is by default.
const DEFAULT_PORT: u16 = 10_083;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer.
const MOST: usize = 256 << 20;
/// What a gateway says of a session that it does not know.
const NO_SESSION: &str = "no such session";

/// Where an admin port should be.
#[derive(Debug)]
pub(super) struct Port {
    address: String,
}

impl Port {
    /// The port is 10083 where the address names none.
    pub(super) fn new(address: &str) -> Self {
        let address = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let tail = address.rsplit_once(']').map_or(address, |(_, tail)| tail);
        let bare = address.parse::<Ipv6Addr>().is_ok();
        let address = match tail.contains(':') {
            _ if bare => format!("[{address}]:{DEFAULT_PORT}"),
            true => address.to_owned(),
            false => format!("{address}:{DEFAULT_PORT}"),
        };
        Self { address }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What a path shows, as JSON.
    pub(super) async fn json(&self, path: &str) -> Result<Value, Failure> {
        let (status, body) = self.send(Method::GET, path).await?;
        if status != StatusCode::OK {
            return Err(self.is_none(&format!("GET {path} is answered with {status}")));
        }
        serde_json::from_slice(&body)
            .map_err(|error| self.is_none(&format!("GET {path} is no JSON: {error}")))
    }

    /// What a path shows, as text.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        let (status, body) = self.send(Method::GET, path).await?;
        if status != StatusCode::OK {
            return Err(self.is_none(&format!("GET {path} is answered with {status}")));
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Whether anybody listens there.
    pub(super) async fn is_open(&self) -> bool {
        let connects = TcpStream::connect(&self.address);
        // Whoever is too busy to answer is there.
        !matches!(timeout(PATIENCE, connects).await, Ok(Err(_)))
    }

    /// JSON in its shape.
    pub(super) fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, Failure> {
        serde_json::from_value(value).map_err(|error| self.is_none(&error.to_string()))
    }

    /// Any call, with what was answered as text.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, String), Failure> {
        let (status, body) = self.send(method, path).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// One session with its events.
    pub(super) async fn session(&self, id: &str) -> Result<Value, Failure> {
        // It tells a gateway that does not know the session from something else that knows nothing.
        self.json("/info").await?;
        let path = format!("/sessions/{id}");
        let (status, body) = self.send(Method::GET, &path).await?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map_err(|error| self.is_none(&format!("GET {path} is no JSON: {error}"))),
            StatusCode::NOT_FOUND => {
                let said = String::from_utf8_lossy(&body);
                // It says more where it knows whose the session is.
                let more = said.trim_end().strip_prefix(NO_SESSION).filter(|more| !more.is_empty());
                Err(more.map_or_else(
                    || self.unknown(id),
                    |more| Failure(format!("{}: {NO_SESSION}{more}", self.address)),
                ))
            }
            _ => Err(self.is_none(&format!("GET {path} is answered with {status}"))),
        }
    }

    /// Ends a session; the line to print.
    pub(super) async fn end(&self, id: &str) -> Result<String, Failure> {
        let own = self.json("/info").await?;
        let session = self.session(id).await?;
        if session["node"] != own["node"] {
            return Err(Failure(format!(
                "session {id} is gateway {}'s: end it there",
                session["node"].as_str().unwrap_or_default()
            )));
        }
        // A gateway elsewhere shows the begin of the id only.
        let shown = session["requestId"].as_str().unwrap_or_default();
        let whole = if shown.len() > id.len() { shown } else { id };
        // By what was given: if several begin so, the gateway ends none.
        let (status, body) = self.send(Method::DELETE, &format!("/sessions/{id}")).await?;
        match status {
            status if status.is_success() => Ok(format!("session {whole} has been ended\n")),
            StatusCode::NOT_FOUND => Err(Failure(format!("session {whole} has ended already"))),
            StatusCode::CONFLICT => Err(Failure(format!(
                "several sessions begin with {id}, and none was ended: write more of the id"
            ))),
            StatusCode::FORBIDDEN => Err(Failure(format!(
                "{} ends sessions for its own machine only: run this there, or set [admin] \
                 allow_remote = true",
                self.address
            ))),
            status => {
                let said = String::from_utf8_lossy(&body);
                Err(Failure(format!("it was not ended: {status}: {}", said.trim())))
            }
        }
    }

    fn unknown(&self, id: &str) -> Failure {
        Failure(format!(
            "{} knows no session {id}: it ended too long ago, or it is another gateway's, which is \
             asked if the whole id is given (`ringway sessions` lists those that are known)",
            self.address
        ))
    }

    fn is_none(&self, why: &str) -> Failure {
        Failure(format!(
            "what answers at {} is not the admin port of a ringway ({why}): give its address with \
             --admin; the gateway's ready line names it",
            self.address
        ))
    }

    async fn send(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        match timeout(PATIENCE, self.exchange(method, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure(format!(
                "{} does not answer within {} s: is this the gateway's admin port (--admin)?",
                self.address,
                PATIENCE.as_secs()
            ))),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| {
            Failure(format!(
                "no admin port at {}: {error}. Is the gateway running? --admin names the address, \
                 which its ready line shows (admin=...)",
                self.address
            ))
        })?;
        // A name that leads to it may not be one of its own (`admin.hosts`).
        let host = stream.peer_addr()?.to_string();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .body(Body::empty())
            .map_err(|error| Failure(format!("{}: {error}", self.address)))?;
        ask(stream, request, MOST).await.map_err(|why| self.is_none(&why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_means_the_default_one() {
        for (given, meant) in [
            ("localhost", "localhost:10083"),
            ("127.0.0.1", "127.0.0.1:10083"),
            ("::1", "[::1]:10083"),
            ("[::1]", "[::1]:10083"),
            ("[::1]:5", "[::1]:5"),
            ("http://gateway:1/", "gateway:1"),
            ("http://gateway/", "gateway:10083"),
        ] {
            assert_eq!(Port::new(given).address(), meant, "{given}");
        }
    }
}
