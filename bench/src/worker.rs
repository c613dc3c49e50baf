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
use serde::{Deserialize, Serialize};

use crate::backend::serve;
use crate::drive::timed_runtime;
use crate::http1;

/// Port of a URI without one, as the real worker has it.
const DEFAULT_PORT: u16 = 80;
/// Sessions named in a poll: enough for a run, and a body far below any server's limit.
const NAMED_SESSIONS: usize = 512;
/// Attempts at a `CONNECT` whose answer may change (anything but 200, 401, 403).
const CONNECT_ATTEMPTS: u32 = 5;
/// Pause after the first of them; each further one is half as long again.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Polls in a row that may fail before the worker gives up, and the pause between them.
const POLL_ATTEMPTS: u32 = 100;
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// Where a worker looks for work, and as whom.
#[derive(Debug, Clone)]
pub struct Employer {
    /// `http://HOST:PORT` of the gateway's worker listener.
    pub gateway: String,
    /// Worker key.
    pub key: String,
    /// Function served.
    pub function: String,
    /// Its version.
    pub version: String,
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
            Self::Uri(uri) => write!(f, "not an http URI: {uri}"),
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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Poll<'a> {
    function_id: &'a str,
    function_version_id: &'a str,
    slots: usize,
    request_ids: &'a [String],
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Work {
    request_id: String,
    connections: Vec<Connection>,
}

#[derive(Debug, Deserialize)]
struct Connection {
    http1: Option<Dial>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dial {
    proxy_uri: String,
    proxy_authorization_token: String,
}

/// Works until the gateway is gone or refuses; `ready` is called at the first poll.
pub fn run(employer: Employer, ready: impl FnOnce()) -> Result<(), WorkerFault> {
    let place = Place::parse(&employer.gateway)?;
    timed_runtime()?.block_on(async move {
        let held = Rc::new(RefCell::new(Vec::new()));
        let (mut line, mut failed, mut ready) = (None, 0, Some(ready));
        loop {
            let outcome = poll(&mut line, &place, &employer, &held, &mut ready).await;
            match outcome {
                Ok(None) => failed = 0,
                Ok(Some(work)) => {
                    failed = 0;
                    // The session counts from the work on, so that it is named in the next poll.
                    held.borrow_mut().push(work.request_id.clone());
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
    place: &Place,
    employer: &Employer,
    held: &RefCell<Vec<String>>,
    ready: &mut Option<impl FnOnce()>,
) -> Result<Option<Work>, WorkerFault> {
    let mut stream = match line.take() {
        Some(stream) => stream,
        None => TcpStream::connect((place.host.as_str(), place.port)).await?,
    };
    if let Some(ready) = ready.take() {
        ready();
    }
    let request = poll_request(place, employer, &held.borrow());
    stream.write_all(request).await.0?;
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

fn poll_request(place: &Place, employer: &Employer, held: &[String]) -> Vec<u8> {
    let newest = &held[held.len().saturating_sub(NAMED_SESSIONS)..];
    let poll = Poll {
        function_id: &employer.function,
        function_version_id: &employer.version,
        slots: employer.slots.saturating_sub(held.len()),
        request_ids: newest,
    };
    // Cannot fail: strings and a number.
    let body = serde_json::to_string(&poll).unwrap_or_default();
    format!(
        "POST /v1/work HTTP/1.1\r\nHost: {}:{}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        place.host,
        place.port,
        employer.key,
        body.len()
    )
    .into_bytes()
}

/// Serves one session to its end.
async fn session(work: Work, held: Rc<RefCell<Vec<String>>>) {
    if let Err(fault) = tunnel(&work).await {
        ringway_stdio::complain!("worker: session {}: {fault}", work.request_id);
    }
    held.borrow_mut().retain(|id| *id != work.request_id);
}

/// Tries to open the tunnel, more than once unless the gateway said that this is final.
async fn tunnel(work: &Work) -> Result<(), WorkerFault> {
    let dial = work.connections.iter().find_map(|c| c.http1.as_ref());
    let dial = dial.ok_or_else(|| WorkerFault::Answer("work without http1".to_owned()))?;
    let place = Place::parse(&dial.proxy_uri)?;
    let mut pause = CONNECT_PAUSE;
    for attempt in 1.. {
        match connect(&place, dial, &work.request_id).await {
            Ok((stream, early)) => {
                serve(stream, early).await;
                return Ok(());
            }
            Err(fault) if fault.may_heal() && attempt < CONNECT_ATTEMPTS => {
                monoio::time::sleep(pause).await;
                pause = pause * 3 / 2;
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

/// The worker's CONNECT, origin-form (WK-1); returns what came behind the answer's head.
async fn connect(
    place: &Place,
    dial: &Dial,
    request_id: &str,
) -> Result<(TcpStream, Vec<u8>), WorkerFault> {
    let mut stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "CONNECT {} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: Go-http-client/1.1\r\n\
         Authorization: Bearer {}\r\nX-Request-Id: {request_id}\r\n\r\n",
        place.path, place.host, place.port, dial.proxy_authorization_token
    );
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

/// Host, port and path of an http URI; like the real worker, plain TCP whatever the scheme says.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    host: String,
    port: u16,
    path: String,
}

impl Place {
    fn parse(uri: &str) -> Result<Self, WorkerFault> {
        let bad = || WorkerFault::Uri(uri.to_owned());
        let rest =
            uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://")).ok_or_else(bad)?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
            None => (authority, DEFAULT_PORT),
        };
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_have_a_port_and_a_path() {
        let p = Place::parse("http://10.0.0.1:10086/custom/v1/proxy").unwrap();
        assert_eq!(
            (p.host.as_str(), p.port, p.path.as_str()),
            ("10.0.0.1", 10086, "/custom/v1/proxy")
        );
        assert_eq!(Place::parse("https://h/v1/proxy").unwrap().port, 80);
        assert!(Place::parse("ftp://h").is_err() && Place::parse("http://:1/x").is_err());
    }

    #[test]
    fn a_poll_names_the_newest_sessions_and_the_free_slots() {
        let employer = Employer {
            gateway: String::new(),
            key: "k".to_owned(),
            function: "f".to_owned(),
            version: "v".to_owned(),
            slots: 1000,
        };
        let held: Vec<String> = (0..600).map(|n| n.to_string()).collect();
        let place = Place::parse("http://h:1").unwrap();
        let request = String::from_utf8(poll_request(&place, &employer, &held)).unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/work HTTP/1.1\r\nHost: h:1\r\nAuthorization: Bearer k"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["functionId"], "f");
        assert_eq!(body["functionVersionId"], "v");
        assert_eq!(body["slots"], 400);
        assert_eq!(body["requestIds"].as_array().unwrap().len(), 512);
        assert_eq!(body["requestIds"][0], "88");
    }

    #[test]
    fn work_is_read_as_the_interface_writes_it() {
        let work: Work = serde_json::from_str(
            r#"{"kind":"new","requestId":"r","ncaId":"n","functionId":"f","functionVersionId":"v",
            "connections":[{"http3":{}},{"http1":{"proxyUri":"http://h:1/v1/proxy",
            "proxyAuthorizationToken":"t"}}]}"#,
        )
        .unwrap();
        let dial = work.connections[1].http1.as_ref().unwrap();
        assert_eq!((work.request_id.as_str(), dial.proxy_authorization_token.as_str()), ("r", "t"));
        assert!(work.connections[0].http1.is_none());
    }
}
