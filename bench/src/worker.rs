//! The same endpoint, reached by dialling back: polls for work, sends `CONNECT`, serves the tunnel.
//!
//! A session ends with its tunnel. Neighbours: [`crate::http1`] for the two answers it reads,
//! [`crate::backend`] for what happens in the tunnel.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use ringway_work::{Endpoint, Http1, Poll, Secret, Sender, Work, pauses};
use uuid::Uuid;

use crate::backend::serve;
use crate::drive::timed_runtime;
use crate::http1;

/// What its requests are called by: NVIDIA's workers are written in Go.
const SENDER: Sender = Sender("Go-http-client/1.1");
/// Sessions named in a poll: enough for a run, and a body far below any server's limit.
const NAMED_SESSIONS: usize = 512;
/// Polls in a row that may fail before the worker gives up, and the pause between them.
const POLL_ATTEMPTS: u32 = 100;
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// Where a worker looks for work, and as whom.
#[derive(Debug, Clone)]
pub struct Employer {
    /// `http://HOST:PORT` of the gateway's worker listener.
    pub gateway: String,
    /// Worker key.
    pub key: Secret,
    /// Function served.
    pub function: Uuid,
    /// Its version.
    pub version: Uuid,
    /// Sessions served at once.
    pub slots: usize,
}

/// Why a worker ended.
#[derive(Debug)]
pub enum WorkerFault {
    /// A URI that is not `http://HOST[:PORT][/PATH]`.
    Uri(String),
    /// The socket failed, [`POLL_ATTEMPTS`] times in a row for polls.
    Io(io::Error),
    /// The answer was not HTTP or not what the interface says.
    Answer(String),
    /// The gateway refused the poll or the tunnel with this status.
    Refused(u16, String),
}

impl WorkerFault {
    /// Whether a `CONNECT` is worth another try (WK-5: 401 and 403 are final).
    fn may_heal(&self) -> bool {
        match self {
            Self::Io(_) => true,
            Self::Refused(status, _) => !matches!(status, 401 | 403),
            Self::Uri(_) | Self::Answer(_) => false,
        }
    }
}

impl fmt::Display for WorkerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(why) => f.write_str(why),
            Self::Io(error) => write!(f, "{error}"),
            Self::Answer(what) => write!(f, "unexpected answer: {what}"),
            Self::Refused(status, body) => write!(f, "refused with {status}: {}", body.trim()),
        }
    }
}

impl std::error::Error for WorkerFault {}

impl From<io::Error> for WorkerFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Works until the gateway is gone or refuses; `ready` is called at the first poll.
pub fn run(employer: Employer, ready: impl FnOnce()) -> Result<(), WorkerFault> {
    let endpoint = endpoint(&employer.gateway)?;
    timed_runtime()?.block_on(async move {
        let held = Rc::new(RefCell::new(Vec::new()));
        let (mut line, mut failed, mut ready) = (None, 0, Some(ready));
        loop {
            let outcome = poll(&mut line, &endpoint, &employer, &held, &mut ready).await;
            match outcome {
                Ok(None) => failed = 0,
                Ok(Some(work)) => {
                    failed = 0;
                    // The session counts from the work on, so that it is named in the next poll.
                    held.borrow_mut().push(work.request_id);
                    monoio::spawn(session(work, held.clone()));
                }
                Err(WorkerFault::Io(_)) if failed < POLL_ATTEMPTS => {
                    line = None;
                    failed += 1;
                    monoio::time::sleep(POLL_PAUSE).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    })
}

/// One poll on the kept connection.
async fn poll(
    line: &mut Option<TcpStream>,
    endpoint: &Endpoint,
    employer: &Employer,
    held: &RefCell<Vec<Uuid>>,
    ready: &mut Option<impl FnOnce()>,
) -> Result<Option<Work>, WorkerFault> {
    let mut stream = match line.take() {
        Some(stream) => stream,
        None => TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?,
    };
    if let Some(ready) = ready.take() {
        ready();
    }
    let request = poll_request(endpoint, employer, &held.borrow());
    stream.write_all(request.into_bytes()).await.0?;
    let mut bytes = Vec::with_capacity(4096);
    let answer = loop {
        bytes = read_more(&mut stream, bytes).await?;
        let parsed = http1::response(&bytes).map_err(|e| WorkerFault::Answer(e.to_owned()))?;
        if let Some(answer) = parsed {
            break answer;
        }
    };
    if !answer.close {
        *line = Some(stream);
    }
    match answer.status {
        200 => serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(|e| WorkerFault::Answer(e.to_string())),
        204 => Ok(None),
        status => {
            Err(WorkerFault::Refused(status, String::from_utf8_lossy(&answer.body).into_owned()))
        }
    }
}

fn poll_request(endpoint: &Endpoint, employer: &Employer, held: &[Uuid]) -> String {
    let newest = &held[held.len().saturating_sub(NAMED_SESSIONS)..];
    let poll = Poll {
        function_id: employer.function,
        function_version_id: employer.version,
        slots: employer.slots.saturating_sub(held.len()),
        request_ids: newest,
    };
    SENDER.poll(endpoint, &employer.key, &poll)
}

/// Serves one session to its end.
async fn session(work: Work, held: Rc<RefCell<Vec<Uuid>>>) {
    if let Err(fault) = tunnel(&work).await {
        ringway_stdio::complain!("worker: session {}: {fault}", work.request_id);
    }
    held.borrow_mut().retain(|id| *id != work.request_id);
}

/// Tries to open the tunnel, more than once unless the gateway said that this is final.
async fn tunnel(work: &Work) -> Result<(), WorkerFault> {
    let dial = work.connections.iter().find_map(|c| c.http1.as_ref());
    let dial = dial.ok_or_else(|| WorkerFault::Answer("work without http1".to_owned()))?;
    let endpoint = endpoint(&dial.proxy_uri)?;
    let mut pauses = pauses();
    loop {
        match connect(&endpoint, dial, work.request_id).await {
            Ok((stream, early)) => {
                serve(stream, early).await;
                return Ok(());
            }
            Err(fault) if fault.may_heal() => match pauses.next() {
                Some(pause) => monoio::time::sleep(pause).await,
                None => return Err(fault),
            },
            Err(fault) => return Err(fault),
        }
    }
}

/// Where a URI leads.
fn endpoint(uri: &str) -> Result<Endpoint, WorkerFault> {
    Endpoint::parse(uri).map_err(|fault| WorkerFault::Uri(format!("{uri}: {fault}")))
}

/// The worker's CONNECT, origin-form (WK-1); returns what came behind the answer's head.
async fn connect(
    endpoint: &Endpoint,
    dial: &Http1,
    request_id: Uuid,
) -> Result<(TcpStream, Vec<u8>), WorkerFault> {
    let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    stream.set_nodelay(true)?;
    let request = SENDER.connect(endpoint, dial, request_id);
    let request = request.ok_or_else(|| WorkerFault::Answer("a token that is none".to_owned()))?;
    stream.write_all(request.into_bytes()).await.0?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        bytes = read_more(&mut stream, bytes).await?;
        let parsed = http1::connected(&bytes).map_err(|e| WorkerFault::Answer(e.to_owned()))?;
        match parsed {
            Some((200, start)) => return Ok((stream, bytes.split_off(start))),
            Some((status, start)) => {
                let body = String::from_utf8_lossy(&bytes[start..]).into_owned();
                return Err(WorkerFault::Refused(status, body));
            }
            None => {}
        }
    }
}

/// Reads behind what `bytes` holds; the end of the stream is an error here.
async fn read_more(stream: &mut TcpStream, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    use monoio::buf::IoBufMut;
    bytes.reserve(4096);
    let (from, to) = (bytes.len(), bytes.capacity());
    let (result, slice) = stream.read(bytes.slice_mut(from..to)).await;
    if result? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(slice.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_names_the_newest_sessions_and_the_free_slots() {
        let employer = Employer {
            gateway: String::new(),
            key: Secret::new("k").unwrap(),
            function: Uuid::from_u128(1),
            version: Uuid::from_u128(2),
            slots: 1000,
        };
        let held: Vec<Uuid> = (0..600).map(Uuid::from_u128).collect();
        let endpoint = endpoint("http://h:1").unwrap();
        let request = poll_request(&endpoint, &employer, &held);
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["functionId"], Uuid::from_u128(1).to_string());
        assert_eq!(body["functionVersionId"], Uuid::from_u128(2).to_string());
        assert_eq!(body["slots"], 400);
        assert_eq!(body["requestIds"].as_array().unwrap().len(), 512);
        assert_eq!(body["requestIds"][0], Uuid::from_u128(88).to_string());
    }
}
