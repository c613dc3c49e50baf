//! What a worker writes, and how patient it is with what it dials.

use std::time::Duration;

use uuid::Uuid;

use crate::endpoint::Endpoint;
use crate::work::{Http1, Poll, Secret};

/// How long a TCP connection may take, with finding its address (contract 4.6).
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the gateway may take to answer a CONNECT. NVIDIA's worker waits for ever, and so loses a
/// slot to a gateway that accepts and stays silent (contract 4.6).
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the whole round of addresses is tried again, and the pauses before that: 132 ms in
/// all, as NVIDIA's.
const RETRIES: usize = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The pauses between the rounds, each half as long again as the one before.
pub fn pauses() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_PAUSE), |pause| Some(*pause * 3 / 2)).take(RETRIES)
}

/// A program as its requests name it: `NAME/VERSION`.
#[derive(Clone, Copy, Debug)]
pub struct Sender(pub &'static str);

impl Sender {
    /// A poll, whole. Its target is the gateway's path and `/v1/work`.
    ///
    /// # Panics
    /// Never: ids and numbers are JSON.
    #[must_use]
    pub fn poll(self, gateway: &Endpoint, key: &Secret, poll: &Poll<'_>) -> String {
        let body = serde_json::to_string(poll).expect("ids and numbers are JSON");
        format!(
            "POST {}/v1/work HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\n\
             Authorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             \r\n{body}",
            gateway.path.trim_end_matches('/'),
            gateway.authority,
            self.0,
            key.reveal().unwrap_or_default(),
            body.len(),
        )
    }

    /// The head of a CONNECT. Its target is in origin-form although the method is CONNECT (WK-1).
    /// `None` if the token cannot stand in a field.
    #[must_use]
    pub fn connect(self, endpoint: &Endpoint, to: &Http1, id: Uuid) -> Option<String> {
        let token = to.proxy_authorization_token.reveal()?;
        Some(format!(
            "CONNECT {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\n\
             Authorization: Bearer {token}\r\nX-Request-Id: {id}\r\n\r\n",
            endpoint.path, endpoint.authority, self.0,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: Sender = Sender("a-worker/1");

    #[test]
    fn five_pauses_grow_by_half() {
        let pauses: Vec<u128> = pauses().map(|pause| pause.as_micros()).collect();
        assert_eq!(pauses, [10_000, 15_000, 22_500, 33_750, 50_625]);
    }

    #[test]
    fn the_connect_is_that_of_nvidias_worker() {
        let id = Uuid::from_u128(7);
        let to: Http1 = serde_json::from_str(
            r#"{"proxyUri":"http://gw:10086/v1/proxy","proxyAuthorizationToken":"tok"}"#,
        )
        .unwrap();
        let endpoint = Endpoint::parse(&to.proxy_uri).unwrap();
        assert_eq!(
            SENDER.connect(&endpoint, &to, id).unwrap(),
            "CONNECT /v1/proxy HTTP/1.1\r\nHost: gw:10086\r\nUser-Agent: a-worker/1\r\n\
             Authorization: Bearer tok\r\nX-Request-Id: 00000000-0000-0000-0000-000000000007\r\n\r\n"
        );
        let forged =
            Http1 { proxy_authorization_token: Secret::received("a\r\nb: c".into()), ..to };
        assert_eq!(SENDER.connect(&endpoint, &forged, id), None);
    }

    #[test]
    fn a_poll_goes_to_the_gateways_path() {
        let id = Uuid::from_u128(1);
        let poll = Poll { function_id: id, function_version_id: id, slots: 3, request_ids: &[id] };
        let endpoint = Endpoint::parse("http://[::1]:7/behind/").unwrap();
        let text = SENDER.poll(&endpoint, &Secret::new("k").unwrap(), &poll);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let lines: Vec<&str> = head.split("\r\n").collect();
        let length = format!("Content-Length: {}", body.len());
        assert_eq!(lines[0], "POST /behind/v1/work HTTP/1.1");
        for line in ["Host: [::1]:7", "Authorization: Bearer k", &length] {
            assert!(lines.contains(&line), "{line}: {head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["slots"], &body["requestIds"][0]), (&3.into(), &id.to_string().into()));
    }
}
