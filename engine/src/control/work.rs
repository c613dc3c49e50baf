//! A request for a tunnel, which reaches a worker by a poll or through a remote plane.

use std::fmt;
use std::sync::Arc;

use ringway_proto::id::Node;
use uuid::Uuid;

use super::owner::Owner;
use crate::json::Object;

/// A function and its version.
pub type FunctionVersion = (Arc<str>, Arc<str>);

/// An attachment's name towards other cores, and that of the work done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// Node of the attachment.
    pub node: Node,
    /// Core of the attachment.
    pub core: u16,
    /// Unique on that core.
    pub number: u64,
}

/// What a worker is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Begin a session.
    New,
    /// Open one more tunnel for a session it holds.
    Reconnect,
    /// Open one more tunnel for a session it holds. No client waits for it: the tunnel will replace
    /// another one.
    Spare,
}

/// One request for a tunnel.
#[derive(Clone, PartialEq, Eq)]
pub struct Work {
    /// Names the work in its queue; unique among work that was not delivered yet.
    pub ticket: Ticket,
    /// New session or one more tunnel.
    pub kind: WorkKind,
    /// The session.
    pub request_id: Uuid,
    /// Owner of the session.
    pub owner: Arc<Owner>,
    /// What the worker has to show when it dials back.
    pub token: [u8; 64],
}

impl Work {
    /// The function version in whose queue the work waits.
    #[must_use]
    pub fn key(&self) -> FunctionVersion {
        (self.owner.function.clone(), self.owner.version.clone())
    }

    /// The body of the answer to a poll. Workers dial the URLs of `advertised` (without the path)
    /// in their order.
    #[must_use]
    pub fn to_json<'a>(&self, advertised: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
        let kind = match self.kind {
            WorkKind::New => "new",
            WorkKind::Reconnect | WorkKind::Spare => "reconnect",
        };
        let token = String::from_utf8_lossy(&self.token);
        let mut json = Vec::with_capacity(JSON_BYTES);
        let mut body = Object::begin(&mut json);
        body.text("kind", kind)
            .text(
                "requestId",
                self.request_id.hyphenated().encode_lower(&mut Uuid::encode_buffer()),
            )
            .text("ncaId", &self.owner.tenant)
            .text("functionId", &self.owner.function)
            .text("functionVersionId", &self.owner.version);
        let connections = body.key("connections");
        let mut before: &[u8] = b"[";
        for url in advertised {
            let proxy_uri = [url.trim_end_matches('/'), "/v1/proxy"].concat();
            connections.extend_from_slice(before);
            connections.extend_from_slice(b"{\"http1\":");
            let mut http1 = Object::begin(connections);
            http1.text("proxyUri", &proxy_uri).text("proxyAuthorizationToken", &token);
            http1.end();
            connections.extend_from_slice(b"}");
            before = b",";
        }
        connections.extend_from_slice(b"]");
        body.end();
        json
    }
}

/// Room for the usual answer.
const JSON_BYTES: usize = 512;

impl fmt::Debug for Work {
    /// Leaves the token out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("ticket", &self.ticket)
            .field("kind", &self.kind)
            .field("request_id", &self.request_id)
            .field("version", &self.key())
            .finish_non_exhaustive()
    }
}
