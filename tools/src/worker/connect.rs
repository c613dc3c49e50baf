//! Dialling back: the CONNECT of contract 4.1, and how often it is tried (contract 4.6).

use std::fmt;
use std::io;

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use monoio::time::{sleep, timeout};
use ringway_work::{ANSWER_TIMEOUT, Connection, Endpoint, Head, Http1, pauses, readable};
use uuid::Uuid;

use super::{SENDER, net};

/// Read at once while the answer is awaited.
const READ: usize = 2 * 1024;

/// The stream behind a CONNECT that was let in.
pub(super) struct Tunnel {
    pub(super) stream: TcpStream,
    /// What came right behind the answer.
    pub(super) early: Vec<u8>,
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Every address said 401 or 403: trying again is of no use (contract WK-5).
    ForGood(String),
    /// The last thing that went wrong, after all rounds.
    Failed(Fault),
}

/// What went wrong with one CONNECT.
#[derive(Debug)]
pub(super) enum Fault {
    /// A status other than 200, and the text.
    Status(u16, String),
    Io(io::Error),
    /// The work item cannot be followed.
    Work(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status, text) => write!(f, "CONNECT was answered {status} {text}"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Work(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Opens a tunnel: each address in turn, then all of them again after a pause. An address that
/// has said 401 or 403 is left out of the rounds that follow.
pub(super) async fn open(connections: &[Connection], id: Uuid) -> Result<Tunnel, Refusal> {
    let mut left: Vec<&Http1> = connections.iter().filter_map(|c| c.http1.as_ref()).collect();
    if left.is_empty() {
        return Err(Refusal::Failed(Fault::Work("no address that this worker can dial".into())));
    }
    let mut pauses = pauses();
    loop {
        let mut last = None;
        let mut at = 0;
        while let Some(to) = left.get(at) {
            match connect(to, id).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(fault @ Fault::Status(401 | 403, _)) => {
                    left.remove(at);
                    last = last.or(Some(fault));
                }
                Err(fault) => {
                    last = Some(fault);
                    at += 1;
                }
            }
        }
        match (last, pauses.next()) {
            (Some(fault), _) if left.is_empty() => return Err(Refusal::ForGood(fault.to_string())),
            (_, Some(pause)) => sleep(pause).await,
            (Some(fault), None) => return Err(Refusal::Failed(fault)),
            (None, None) => unreachable!("a round without an address, or without an outcome"),
        }
    }
}

/// One CONNECT.
async fn connect(to: &Http1, id: Uuid) -> Result<Tunnel, Fault> {
    let endpoint = Endpoint::parse(&to.proxy_uri)
        .map_err(|fault| Fault::Work(format!("proxyUri: {fault}")))?;
    let head = SENDER.connect(&endpoint, to, id);
    let head = head.ok_or_else(|| Fault::Work("the token is no token".into()))?;
    let mut stream = net::dial(&endpoint).await?;
    let answered = timeout(ANSWER_TIMEOUT, async {
        stream.write_all(head.into_bytes()).await.0?;
        answer(stream).await
    });
    answered.await.map_err(|_| Fault::Io(io::ErrorKind::TimedOut.into()))?
}

/// Waits for the answer.
async fn answer(mut stream: TcpStream) -> Result<Tunnel, Fault> {
    let mut bytes = Vec::with_capacity(READ);
    loop {
        if let Some(head) =
            Head::parse(&bytes).map_err(|e| Fault::Io(io::Error::other(e.to_string())))?
        {
            let early = bytes.split_off(head.len);
            match head.status {
                // Only 200 is success, whatever framing the head announces (WK-5, WK-11).
                200 => return Ok(Tunnel { stream, early }),
                100..200 => bytes = early,
                // The text is for the log; as much of it as has come will do.
                status => return Err(Fault::Status(status, readable(&early))),
            }
        } else {
            bytes.reserve(READ);
            let (from, to) = (bytes.len(), bytes.capacity());
            let (read, slice) = stream.read(bytes.slice_mut(from..to)).await;
            bytes = slice.into_inner();
            if read? == 0 {
                return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
