//! What polls and their answers say (the gateway's local dispatch, docs/operating.md).

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A poll's body.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Poll<'a> {
    /// What it serves.
    pub function_id: Uuid,
    /// Which version of it.
    pub function_version_id: Uuid,
    /// How many new sessions this worker can take.
    pub slots: usize,
    /// Sessions it holds.
    pub request_ids: &'a [Uuid],
}

/// One work item. Unknown keys are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Work {
    /// What is asked for.
    pub kind: Kind,
    /// The session.
    pub request_id: Uuid,
    /// Ways to dial back.
    pub connections: Vec<Connection>,
}

/// What a work item asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A session, with its first tunnel.
    New,
    /// One more tunnel of a session.
    Reconnect,
}

/// One way to dial back. Only `http1` is spoken here; any other is passed over.
#[derive(Clone, Debug, Deserialize)]
pub struct Connection {
    /// By HTTP/1.1.
    pub http1: Option<Http1>,
}

/// Dialling back by CONNECT.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http1 {
    /// Where the CONNECT goes.
    pub proxy_uri: String,
    /// What lets it in, once.
    pub proxy_authorization_token: Secret,
}

/// A key or a token: it is sent to the gateway and shown nowhere.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a key.
    ///
    /// # Errors
    /// What cannot stand in a header field, or nothing at all.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("it has characters that no header field can carry");
        }
        Ok(Self(text.to_owned()))
    }

    /// What came as part of a work item; looked at when it is sent.
    #[must_use]
    pub fn received(text: String) -> Self {
        Self(text)
    }

    /// The text, to be sent; `None` if it would end the field it stands in.
    #[must_use]
    pub fn reveal(&self) -> Option<&str> {
        Self::new(&self.0).is_ok().then_some(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Enough of a session's id to find it in a log; the whole of it would let its reader come back.
#[must_use]
pub fn short(id: Uuid) -> String {
    let mut text = id.to_string();
    text.truncate(8);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: &str = r#"{"kind":"new","requestId":"d3f7f247-e42f-8000-8001-c0009dcbb288",
        "ncaId":"n","more":[1],"connections":[{"http3":{"proxyUri":"x"}},{"http1":{"proxyUri":
        "http://h:1/v1/proxy","proxyAuthorizationToken":"to-ken"}}]}"#;

    #[test]
    fn work_is_read_as_the_gateway_writes_it() {
        let work: Work = serde_json::from_str(WORK).unwrap();
        assert_eq!(work.kind, Kind::New);
        assert_eq!(short(work.request_id), "d3f7f247");
        assert!(work.connections[0].http1.is_none());
        let http1 = work.connections[1].http1.as_ref().unwrap();
        assert_eq!(http1.proxy_uri, "http://h:1/v1/proxy");
        assert_eq!(http1.proxy_authorization_token.reveal(), Some("to-ken"));
    }

    #[test]
    fn work_that_lacks_something_is_refused() {
        for (from, to) in [("new", "old"), ("requestId", "id"), ("d3f7", "zzzz"), ("proxyUri", "u")]
        {
            assert!(serde_json::from_str::<Work>(&WORK.replacen(from, to, 2)).is_err(), "{from}");
        }
    }

    #[test]
    fn a_secret_is_never_shown_and_never_ends_its_field() {
        let work: Work = serde_json::from_str(WORK).unwrap();
        assert!(!format!("{work:?}").contains("to-ken"));
        for bad in ["", "a b", "a\r\nb: c", "ä"] {
            assert!(Secret::new(bad).is_err(), "{bad:?}");
        }
        let forged: Secret = serde_json::from_str(r#""a\r\nHost: b""#).unwrap();
        assert_eq!(forged.reveal(), None);
    }

    #[test]
    fn a_poll_is_written_as_the_gateway_reads_it() {
        let id = Uuid::from_u128(1);
        let poll =
            Poll { function_id: id, function_version_id: id, slots: 3, request_ids: &[id, id] };
        let json: serde_json::Value = serde_json::to_value(&poll).unwrap();
        let text = "00000000-0000-0000-0000-000000000001";
        assert_eq!(
            json,
            serde_json::json!({"functionId": text, "functionVersionId": text, "slots": 3,
                               "requestIds": [text, text]})
        );
    }
}
