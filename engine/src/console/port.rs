//! Requests to a gateway's admin port, each on a connection of its own.

use std::net::Ipv6Addr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use ringway_stdio::Trouble;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

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
    pub(super) async fn json(&self, path: &str) -> Result<Value, Trouble> {
        let (status, body) = self.send(Method::GET, path).await?;
        if status != StatusCode::OK {
            return Err(self.is_none(&format!("GET {path} is answered with {status}")));
        }
        serde_json::from_slice(&body)
            .map_err(|error| self.is_none(&format!("GET {path} is no JSON: {error}")))
    }

    /// What a path shows, as text.
    pub(super) async fn text(&self, path: &str) -> Result<String, Trouble> {
        let (status, body) = self.send(Method::GET, path).await?;
        if status != StatusCode::OK {
            return Err(self.is_none(&format!("GET {path} is answered with {status}")));
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Whether anybody listens there.
    pub(super) async fn is_open(&self) -> bool {
        let connects = TcpStream::connect(&self.address);
        // A gateway that is too busy to answer is there.
        !matches!(timeout(PATIENCE, connects).await, Ok(Err(_)))
    }

    /// JSON in its shape.
    pub(super) fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, Trouble> {
        serde_json::from_value(value).map_err(|error| self.is_none(&error.to_string()))
    }

    /// Any call, with what was answered as text.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, String), Trouble> {
        let (status, body) = self.send(method, path).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// One session with its events.
    pub(super) async fn session(&self, id: &str) -> Result<Value, Trouble> {
        // This tells apart a gateway that does not know the session and another server.
        self.json("/info").await?;
        let path = format!("/sessions/{id}");
        let (status, body) = self.send(Method::GET, &path).await?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map_err(|error| self.is_none(&format!("GET {path} is no JSON: {error}"))),
            StatusCode::NOT_FOUND => {
                let said = String::from_utf8_lossy(&body);
                // The gateway says more if it knows who owns the session.
                let more = said.trim_end().strip_prefix(NO_SESSION).filter(|more| !more.is_empty());
                Err(more.map_or_else(
                    || self.unknown(id),
                    |more| {
                        Trouble::new(
                            format!("{} knows no session {id}", self.address),
                            format!("{NO_SESSION}{more}"),
                            "ask the gateway whose it is",
                        )
                    },
                ))
            }
            _ => Err(self.is_none(&format!("GET {path} is answered with {status}"))),
        }
    }

    /// Ends a session; the line to print.
    pub(super) async fn end(&self, id: &str) -> Result<String, Trouble> {
        let own = self.json("/info").await?;
        let session = self.session(id).await?;
        if session["node"] != own["node"] {
            return Err(Trouble::new(
                format!("session {id} was not ended"),
                format!("it is gateway {}'s", session["node"].as_str().unwrap_or_default()),
                "end it there",
            ));
        }
        // A gateway elsewhere shows the begin of the id only.
        let shown = session["requestId"].as_str().unwrap_or_default();
        let whole = if shown.len() > id.len() { shown } else { id };
        // The id goes as it was given: if several sessions begin so, the gateway ends none.
        let (status, body) = self.send(Method::DELETE, &format!("/sessions/{id}")).await?;
        match status {
            status if status.is_success() => Ok(format!("session {whole} has been ended\n")),
            status => Err(self.not_ended((id, whole), status, &body)),
        }
    }

    /// Why a session was not ended.
    fn not_ended(&self, (id, whole): (&str, &str), status: StatusCode, body: &[u8]) -> Trouble {
        let what = format!("session {whole} was not ended");
        match status {
            StatusCode::NOT_FOUND => Trouble::new(
                what,
                "it has ended already",
                format!("`ringway sessions timeline {id}` tells how"),
            ),
            StatusCode::CONFLICT => Trouble::new(
                what,
                format!("several sessions begin with {id}"),
                "write more of the id",
            ),
            StatusCode::FORBIDDEN => Trouble::new(
                what,
                format!("{} ends sessions for its own machine only", self.address),
                "run this there, or set [admin] allow_remote = true",
            ),
            status => {
                let said = String::from_utf8_lossy(body);
                Trouble::new(
                    what,
                    format!("it is answered with {status}: {}", said.trim()),
                    "see the gateway's log",
                )
            }
        }
    }

    fn unknown(&self, id: &str) -> Trouble {
        Trouble::new(
            format!("{} knows no session {id}", self.address),
            "it ended too long ago, or it is another gateway's",
            "`ringway sessions` lists those that are known; another gateway is asked if the whole id \
             is given",
        )
    }

    /// Something else answers there.
    pub(super) fn is_none(&self, why: &str) -> Trouble {
        Trouble::new(
            format!("what answers at {} is not the admin port of a ringway", self.address),
            why,
            "give its address with --admin; the gateway's ready line names it",
        )
    }

    async fn send(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Trouble> {
        match timeout(PATIENCE, self.exchange(method, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(Trouble::new(
                format!("{} gives no answer", self.address),
                format!("it does not answer within {} s", PATIENCE.as_secs()),
                "give the address of the gateway's admin port with --admin; if this is it, see what \
                 its control thread does (`top -H`)",
            )),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Trouble> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| {
            Trouble::new(
                format!("no admin port at {}", self.address),
                error,
                "is the gateway running? --admin names the address, which its ready line shows \
                 (admin=...)",
            )
        })?;
        // A name that leads to it may not be one of its own (`admin.hosts`).
        let broken = |error: &dyn std::fmt::Display| self.is_none(&error.to_string());
        let host = stream.peer_addr().map_err(|error| broken(&error))?.to_string();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .body(Body::empty())
            .map_err(|error| broken(&error))?;
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
