//! Asks for work: HTTP/1.1 on one kept connection, as `POST /v1/work` wants it.

use std::io;

use ringway_work::{Endpoint, Poll, PollResponse, Secret, Sender, Work, readable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

/// The name in the `User-Agent` of its requests.
pub(super) const SENDER: Sender = Sender(concat!("ringway-dev/", env!("CARGO_PKG_VERSION")));

/// What one poll says, apart from the request ids.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) gateway: Endpoint,
    pub(super) key: Secret,
    pub(super) function: Uuid,
    pub(super) version: Uuid,
}

/// What a poll was answered.
#[derive(Debug)]
pub(super) enum Answered {
    Nothing,
    Work(Box<Work>),
    /// Any other status, with the text.
    Refused(u16, String),
}

/// A connection for polls. Answers come in the order of the polls.
#[derive(Debug)]
pub(super) struct PollConnection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl PollConnection {
    pub(super) async fn open(identity: &Identity) -> io::Result<Self> {
        let stream = connect(&identity.gateway).await?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Sends a poll; its answer is still to be read.
    pub(super) async fn ask(
        &mut self,
        identity: &Identity,
        slots: usize,
        ids: &[Uuid],
    ) -> io::Result<()> {
        let poll = Poll {
            function_id: identity.function,
            function_version_id: identity.version,
            slots,
            request_ids: ids,
        };
        let request = SENDER.poll(&identity.gateway, &identity.key, &poll);
        self.stream.write_all(request.as_bytes()).await
    }

    /// Reads the next answer. Cancelling it loses nothing: what was read stays here.
    pub(super) async fn answer(&mut self) -> io::Result<Answered> {
        loop {
            if let Some(answer) = PollResponse::take(&mut self.read).map_err(io::Error::other)? {
                return Ok(match answer.status {
                    204 => Answered::Nothing,
                    200 => Answered::Work(
                        serde_json::from_slice(&answer.body).map_err(io::Error::other)?,
                    ),
                    status => Answered::Refused(status, readable(&answer.body)),
                });
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Connects to a gateway.
pub(super) async fn connect(to: &Endpoint) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
