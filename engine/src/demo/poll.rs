//! A worker's polls for work: HTTP/1.1 on one kept connection, as `POST /v1/work` wants it.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

/// Longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;
/// Longest body of an answer.
const MAX_BODY: usize = 64 * 1024;

/// What one poll says, apart from the request ids.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) gateway: SocketAddr,
    pub(super) key: String,
    pub(super) function: Uuid,
    pub(super) version: Uuid,
}

/// Work as the gateway describes it. Unknown keys are ignored.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Work {
    pub(super) kind: Kind,
    pub(super) request_id: Uuid,
    pub(super) connections: Vec<Connection>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    New,
    Reconnect,
}

/// One way to dial back. Only `http1` is spoken here.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) http1: Option<Http1>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Http1 {
    pub(super) proxy_uri: String,
    pub(super) proxy_authorization_token: String,
}

/// What a poll was answered.
#[derive(Debug)]
pub(super) enum Answer {
    Nothing,
    Work(Box<Work>),
    /// Any other status, with the text.
    Refused(u16, String),
}

/// A connection for polls. Answers come in the order of the polls.
#[derive(Debug)]
pub(super) struct PollConnection {
    stream: TcpStream,
    read: BytesMut,
}

impl PollConnection {
    pub(super) async fn open(identity: &Identity) -> io::Result<Self> {
        let stream = TcpStream::connect(identity.gateway).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: BytesMut::new() })
    }

    /// Sends a poll; its answer is still to be read.
    pub(super) async fn ask(
        &mut self,
        identity: &Identity,
        slots: usize,
        ids: &[Uuid],
    ) -> io::Result<()> {
        let body = serde_json::json!({
            "functionId": identity.function,
            "functionVersionId": identity.version,
            "slots": slots,
            "requestIds": ids,
        })
        .to_string();
        let request = format!(
            "POST /v1/work HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            identity.gateway,
            identity.key,
            body.len(),
        );
        self.stream.write_all(request.as_bytes()).await
    }

    /// Reads the next answer. Cancelling it loses nothing: what was read stays here.
    pub(super) async fn answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some(answer) = self.take_answer()? {
                return Ok(answer);
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn take_answer(&mut self) -> io::Result<Option<Answer>> {
        let Some(head) = Head::parse(&self.read)? else { return Ok(None) };
        if head.body > MAX_BODY {
            return Err(io::Error::other("the answer's body is too long"));
        }
        if self.read.len() < head.len + head.body {
            return Ok(None);
        }
        self.read.advance(head.len);
        let body = self.read.split_to(head.body);
        Ok(Some(match head.status {
            204 => Answer::Nothing,
            200 => Answer::Work(serde_json::from_slice(&body).map_err(io::Error::other)?),
            status => Answer::Refused(status, String::from_utf8_lossy(&body).trim().into()),
        }))
    }
}

/// The little of an answer's head that matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// Bytes of the head, with its empty line.
    pub(super) len: usize,
    /// Bytes of the body.
    pub(super) body: usize,
}

impl Head {
    /// The head at the start of `bytes`, once it is whole.
    pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            if bytes.len() > MAX_HEAD {
                return Err(io::Error::other("the answer's head is too long"));
            }
            return Ok(None);
        };
        let bad = || io::Error::other("the answer is not HTTP/1.1");
        let text = std::str::from_utf8(&bytes[..end]).map_err(|_| bad())?;
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let version = first.next().unwrap_or_default();
        let status = first.next().and_then(|status| status.parse().ok()).ok_or_else(bad)?;
        if !version.starts_with("HTTP/1.") {
            return Err(bad());
        }
        let mut body = 0;
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(bad)?;
            if name.eq_ignore_ascii_case("content-length") {
                body = value.trim().parse().map_err(|_| bad())?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") && status != 200 {
                return Err(io::Error::other("the answer has no content-length"));
            }
        }
        Ok(Some(Self { status, len: end + 4, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP";
        for end in 0..37 {
            assert_eq!(Head::parse(&text[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(Head::parse(text).unwrap(), Some(Head { status: 200, len: 38, body: 3 }));
        let text = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(Head::parse(text).unwrap(), Some(Head { status: 204, len: 27, body: 0 }));
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for bad in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 x\r\n\r\n",
            b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(Head::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Head::parse(&[b'x'; MAX_HEAD + 1]).is_err());
    }
}
