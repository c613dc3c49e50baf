//! Lines as values: what is to be said, and none of the words. A core makes them, moves and clones
//! what it has anyway, and formats nothing; the log's own thread makes text of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::h2::ConnFault;
use ringway_proto::id::Node;
use uuid::Uuid;

use super::meter::Kind;
use crate::metrics::{CloseCode, CloseReason, RelayCause, RelayOutcome, TakenOutcome};

/// Lines that may wait for the end of a core's turn: as many as the log's queue has room for.
pub(super) const MOST: usize = 16 * 1024;

/// Lines for which memory is kept from turn to turn.
const KEPT: usize = 256;

/// Lines of a session's end at most.
const CLOSED_LINES: u64 = 3;

/// Octets of an id of a client's that are logged: a UUID has 36.
const ID_SHOWN: usize = 64;

/// One record of the log. Each is one line, except the end of a session.
#[derive(Debug)]
pub enum Line {
    /// A worker's CONNECT was let in, or a function's server was dialled.
    Registered(Named),
    /// An attachment has ended.
    Closed(Closed),
    /// A request got no session.
    OpenFailed(Box<Refused>),
    /// A worker's CONNECT was refused.
    Rejected {
        /// The metric's label.
        result: &'static str,
        /// How old its token was, if that is known.
        age: Option<Duration>,
        /// The peer's address.
        worker: SocketAddr,
    },
    /// A connection ended because its peer broke the protocol.
    ConnectionFailed {
        /// The peer.
        peer: SocketAddr,
        /// Whether the peer was a function's side.
        tunnel: bool,
        /// What the peer did.
        fault: ConnFault,
    },
    /// A connection that belongs to another gateway does not go there.
    Unrelayed {
        /// The gateway that it belongs to; none: the old proxy.
        node: Option<Node>,
        /// Why it belongs there.
        cause: RelayCause,
        /// Why it does not go there.
        outcome: RelayOutcome,
        /// Such lines that were left out since the last one.
        left_out: u64,
    },
    /// A peer that claims to be another gateway could not prove it, or is not understood.
    PreludeRefused {
        /// The peer's address.
        peer: SocketAddr,
        /// What is wrong.
        outcome: TakenOutcome,
        /// Such lines that were left out since the last one.
        left_out: u64,
    },
    /// A request was answered. Whoever makes it looks at `log.access` first.
    Access(Box<AccessLine>),
}

/// What every line about an attachment says.
#[derive(Clone, Debug)]
pub struct Named {
    /// The session's id.
    pub session: Uuid,
    /// The session's function.
    pub function: Arc<str>,
    /// The version of the function.
    pub version: Arc<str>,
    /// The session's lines are counted as this address's, and left out if there are too many. This
    /// is set if the session got no worker, or if its client makes more sessions than admission
    /// would allow.
    pub counted_for: Option<IpAddr>,
}

/// An attachment's end.
#[derive(Debug)]
pub struct Closed {
    /// The attachment.
    pub named: Named,
    /// Why it ended.
    pub reason: CloseReason,
    /// What the transport said.
    pub code: CloseCode,
    /// More of that, for people.
    pub detail: &'static str,
    /// The timer of ours that ended it, empty if none did.
    pub timer: &'static str,
    /// How long it lasted.
    pub held_for: Duration,
}

/// A request that got no session.
#[derive(Debug)]
pub struct Refused {
    /// What the client is told.
    pub fault: Fault,
    /// The client.
    pub client: SocketAddr,
    /// The function as the client named it.
    pub function: Box<[u8]>,
    /// The version likewise; empty if it named none.
    pub version: Box<[u8]>,
    /// The credential's tenant; empty if there is none.
    pub tenant: Arc<str>,
}

/// One request.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is what its name says of the request")]
pub struct AccessLine {
    pub method: &'static str,
    /// A query is not shown: it may carry anything.
    pub path: Box<[u8]>,
    pub status: u16,
    pub latency: Duration,
    pub client: SocketAddr,
    /// Body bytes of the response.
    pub size: u64,
}

impl Line {
    /// Whether it is of a kind that fills most of a log. Where nobody reads the log, these lines are
    /// not made.
    pub(super) fn is_of_session(&self) -> bool {
        matches!(self, Self::Registered(_) | Self::Closed(_))
    }

    /// If a peer can cause this line without end: its address, and the kind and number of lines.
    pub(super) fn counted(&self) -> Option<(IpAddr, Kind, u64)> {
        let session = |named: &Named, lines| Some((named.counted_for?, Kind::Session, lines));
        match self {
            Self::Registered(named) => session(named, 1),
            Self::Closed(closed) => session(&closed.named, CLOSED_LINES),
            Self::OpenFailed(refused) => Some((refused.client.ip(), Kind::OpenFailed, 1)),
            Self::Rejected { worker, .. } => Some((worker.ip(), Kind::Rejected, 1)),
            Self::ConnectionFailed { peer, .. } => Some((peer.ip(), Kind::ConnectionFailed, 1)),
            // A peer cannot cause many of these lines.
            Self::Unrelayed { .. } | Self::PreludeRefused { .. } => None,
            Self::Access(_) => None,
        }
    }

    /// Cuts what a client has made longer than is shown, so that it takes no room while it waits.
    pub(super) fn shorten(&mut self) {
        if let Self::OpenFailed(refused) = self {
            for id in [&mut refused.function, &mut refused.version] {
                if id.len() > ID_SHOWN {
                    *id = id[..ID_SHOWN].into();
                }
            }
        }
    }
}

impl Closed {
    /// Whether the worker ended the session.
    pub(super) fn by_peer(&self) -> bool {
        self.code != CloseCode::None && self.reason == CloseReason::WorkerClosed
    }
}

impl AccessLine {
    /// The path as it is shown.
    pub(super) fn shown(&self) -> &[u8] {
        self.path.split(|octet| *octet == b'?').next().unwrap_or_default()
    }
}

/// The lines of one core that wait for the end of its turn, in order.
#[derive(Debug, Default)]
pub struct Lines {
    waiting: Vec<Line>,
    /// How many lines found no room.
    lost: u64,
}

impl Lines {
    /// Adds a line. If there is no room it is counted, and the log says how many were lost.
    pub fn push(&mut self, line: Line) {
        if self.waiting.len() < MOST {
            self.waiting.push(line);
        } else {
            self.lost += 1;
        }
    }

    /// Takes the other's, which come behind its own.
    pub fn append(&mut self, other: &mut Self) {
        if self.waiting.is_empty() {
            std::mem::swap(&mut self.waiting, &mut other.waiting);
        } else {
            other.waiting.drain(..).for_each(|line| self.push(line));
        }
        self.lost += std::mem::take(&mut other.lost);
    }

    /// Nothing was said, and nothing was lost.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.lost == 0
    }

    /// Takes all lines that wait.
    pub fn drain(&mut self) -> impl Iterator<Item = Line> {
        self.waiting.drain(..)
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        // A burst's memory is not kept.
        self.waiting.shrink_to(KEPT);
    }

    /// How many found no room since it was asked last.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SocketAddr =
        SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 443);

    fn named(counted_for: Option<IpAddr>) -> Named {
        Named { session: Uuid::nil(), function: "f".into(), version: "v".into(), counted_for }
    }

    fn closed(reason: CloseReason, code: CloseCode, counted_for: Option<IpAddr>) -> Closed {
        let named = named(counted_for);
        Closed { named, reason, code, detail: "", timer: "", held_for: Duration::ZERO }
    }

    fn rejected(age: u64) -> Line {
        let age = Some(Duration::from_secs(age));
        Line::Rejected { result: "rejected_token_unknown", age, worker: HERE }
    }

    fn ages(lines: &mut Lines) -> Vec<u64> {
        let age = |line| match line {
            Line::Rejected { age, .. } => age.map_or(0, |age| age.as_secs()),
            other => panic!("{other:?}"),
        };
        lines.drain().map(age).collect()
    }

    #[test]
    fn an_address_answers_for_what_it_can_cause_without_end() {
        let by = Some(HERE.ip());
        let end = |by| closed(CloseReason::ClientClosed, CloseCode::None, by);
        assert_eq!(Line::Registered(named(None)).counted(), None);
        assert_eq!(Line::Closed(end(None)).counted(), None);
        assert_eq!(Line::Registered(named(by)).counted(), Some((HERE.ip(), Kind::Session, 1)));
        assert_eq!(Line::Closed(end(by)).counted(), Some((HERE.ip(), Kind::Session, 3)));
        assert_eq!(rejected(1).counted(), Some((HERE.ip(), Kind::Rejected, 1)));
        let fault = ConnFault::SPEAKS_HTTP1;
        let failed = Line::ConnectionFailed { peer: HERE, tunnel: true, fault };
        assert_eq!(failed.counted(), Some((HERE.ip(), Kind::ConnectionFailed, 1)));
    }

    #[test]
    fn an_id_without_end_is_cut_off_before_it_waits() {
        let mut line = Line::OpenFailed(Box::new(Refused {
            fault: Fault::NoWorker,
            client: HERE,
            function: vec![b'x'; 16 * 1024].into(),
            version: b"v".as_slice().into(),
            tenant: "".into(),
        }));
        assert_eq!(line.counted(), Some((HERE.ip(), Kind::OpenFailed, 1)));
        line.shorten();
        let Line::OpenFailed(refused) = line else { panic!("it stays what it is") };
        assert_eq!((refused.function.len(), &*refused.version), (ID_SHOWN, &b"v"[..]));
    }

    #[test]
    fn a_query_is_not_shown() {
        for (path, shown) in [("/a?key=secret", "/a"), ("/a", "/a"), ("?", ""), ("/a?b?c", "/a")] {
            let line = AccessLine {
                method: "GET",
                path: path.as_bytes().into(),
                status: 200,
                latency: Duration::ZERO,
                client: HERE,
                size: 0,
            };
            assert_eq!(line.shown(), shown.as_bytes(), "{path}");
        }
    }

    #[test]
    fn only_a_worker_whose_transport_says_something_closes() {
        use CloseReason::{ClientClosed, WorkerClosed};
        let by_peer = |reason, code| closed(reason, code, None).by_peer();
        assert!(by_peer(WorkerClosed, CloseCode::Eof));
        assert!(!by_peer(WorkerClosed, CloseCode::None), "our timer did");
        assert!(!by_peer(ClientClosed, CloseCode::Timeout));
    }

    #[test]
    fn lines_keep_their_order_and_their_limit() {
        let (mut core, mut shard) = (Lines::default(), Lines::default());
        [1, 2].into_iter().for_each(|age| shard.push(rejected(age)));
        core.append(&mut shard);
        assert!(shard.is_empty() && !core.is_empty());
        [3, 4].into_iter().for_each(|age| shard.push(rejected(age)));
        core.append(&mut shard);
        assert_eq!(ages(&mut core), [1, 2, 3, 4]);
        assert!(core.is_empty());
        for age in 0..MOST as u64 + 5 {
            shard.push(rejected(age));
        }
        core.push(rejected(9));
        core.append(&mut shard);
        assert_eq!(ages(&mut core).len(), MOST);
        assert!(!core.is_empty(), "some were lost");
        assert_eq!((core.take_lost(), core.is_empty()), (6, true));
    }
}
