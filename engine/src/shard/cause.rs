//! Why things end: an attachment's cause, and how a client's connection came to its end.

use ringway_proto::fault::Fault;

use crate::config::Park;
use crate::conn::End;
use crate::metrics::{CloseCode, CloseReason};

/// Why an attachment ends: one of the constants below. Facts carry a cause, so it is only a
/// reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause(&'static Known);

/// What is known of a cause, in the contract's words (OB-2, OB-3).
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) reason: CloseReason,
    pub(crate) code: CloseCode,
    /// The timer of ours that ended it; empty if none did.
    pub(crate) local_timeout: &'static str,
    /// What happened, in words for people.
    pub(crate) detail: &'static str,
}

impl Known {
    const fn new(reason: CloseReason, code: CloseCode, detail: &'static str) -> Self {
        Self { reason, code, local_timeout: "", detail }
    }

    const fn timer(reason: CloseReason, timer: &'static str, detail: &'static str) -> Self {
        Self { reason, code: CloseCode::None, local_timeout: timer, detail }
    }
}

impl std::ops::Deref for Cause {
    type Target = Known;

    fn deref(&self) -> &Known {
        self.0
    }
}

impl Cause {
    pub(crate) const CLIENT_GONE: Self = Self(&Known::new(
        CloseReason::ClientClosed,
        CloseCode::None,
        "the client connection ended",
    ));
    pub(crate) const MOVED: Self = Self(&Known::new(
        CloseReason::ClientClosed,
        CloseCode::ContextCanceled,
        "the client's connection was handed over, and its request is asked for anew there",
    ));
    pub(crate) const WASTEFUL: Self = Self(&Known::new(
        CloseReason::ClientClosed,
        CloseCode::None,
        "the client sent too many frames that carry nothing",
    ));
    pub(crate) const ABANDONED: Self = Self(&Known::new(
        CloseReason::ClientClosed,
        CloseCode::ContextCanceled,
        "nobody waits any more",
    ));
    pub(crate) const NO_WORKER: Self = Self(&Known::timer(
        CloseReason::TtlExpired,
        "worker_cache_ttl",
        "no worker came within the wait limit",
    ));
    pub(crate) const NO_TAKER: Self = Self(&Known::timer(
        CloseReason::TtlExpired,
        "worker_cache_ttl",
        "no worker took the work within the wait limit",
    ));
    pub(crate) const NO_CALLBACK: Self = Self(&Known::timer(
        CloseReason::TtlExpired,
        "worker_cache_ttl",
        "a worker took the work, and no callback came within the wait limit",
    ));
    pub(crate) const UNTAKEN: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::None,
        "the worker ended the session before it took the spare up",
    ));
    pub(crate) const UNUSED: Self = Self(&Known::timer(
        CloseReason::TtlExpired,
        "worker_cache_ttl",
        "the tunnel was never used",
    ));
    // Contract OB-2: the reference reports its own idle close as the worker's.
    pub(crate) const IDLE: Self =
        Self(&Known::timer(CloseReason::WorkerClosed, "transport_idle", "the tunnel was idle"));
    pub(crate) const SILENT: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Timeout,
        "the worker answered no PING",
    ));
    pub(crate) const MUTE: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Timeout,
        "the worker did not begin to speak",
    ));
    pub(crate) const STALLED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Timeout,
        "the worker took no bytes",
    ));
    pub(crate) const GOAWAY: Self =
        Self(&Known::new(CloseReason::WorkerClosed, CloseCode::H2Goaway, "the worker sent GOAWAY"));
    pub(crate) const EXHAUSTED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::None,
        "the tunnel's stream ids ran out",
    ));
    pub(crate) const UNASKED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Unknown,
        "the worker said too much before it was asked",
    ));
    pub(crate) const BROKEN: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::H2Connection,
        "the worker broke HTTP/2",
    ));
    pub(crate) const SPEAKS_HTTP1: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::H2Connection,
        "its server speaks HTTP/1 only, and the client HTTP/2",
    ));
    pub(crate) const MALFORMED: Self =
        Self(&Known::new(CloseReason::WorkerClosed, CloseCode::Unknown, "the worker broke HTTP/1"));
    pub(crate) const USED_UP: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Eof,
        "the tunnel could carry no request after its last one",
    ));
    pub(crate) const WINDOW: Self = Self(&Known::timer(
        CloseReason::ClientClosed,
        "park_window",
        "the client did not come back",
    ));
    pub(crate) const CROWDED: Self = Self(&Known::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "as many tunnels were parked as may be, and this was the oldest",
    ));
    pub(crate) const YIELDED: Self = Self(&Known::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "a new session needed the worker of a parked one",
    ));
    pub(crate) const DELETED: Self =
        Self(&Known::new(CloseReason::Deleted, CloseCode::None, "an operator ended the session"));
    pub(crate) const SURPLUS: Self = Self(&Known::new(
        CloseReason::ClientClosed,
        CloseCode::None,
        "the client is gone and the session has another tunnel",
    ));
    pub(crate) const SHUTDOWN: Self =
        Self(&Known::new(CloseReason::Shutdown, CloseCode::None, "the gateway is ending"));
    pub(crate) const REVOKED: Self = Self(&Known::new(
        CloseReason::Deleted,
        CloseCode::None,
        "wrong ids were tried with its token",
    ));
    pub(crate) const QUEUE_FULL: Self =
        Self(&Known::new(CloseReason::CapacityReached, CloseCode::None, "the work queue is full"));

    pub(crate) const UNQUEUED: Self =
        Self(&Known::new(CloseReason::Deleted, CloseCode::None, "its work could not be queued"));
    pub(crate) const LIMITED: Self = Self(&Known::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "its tenant has begun too many sessions",
    ));

    pub(crate) const NO_ROOM: Self = Self(&Known::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "another core had no room for its work",
    ));

    pub(crate) const NO_ADDRESS: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Unknown,
        "the server's name has no address",
    ));
    pub(crate) const NO_CONNECTION: Self = Self(&Known::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "no more worker connections are allowed",
    ));

    const CLIENT_LOST: Self = Self(&Known::new(
        CloseReason::ClientClosed,
        CloseCode::Timeout,
        "the client's connection timed out",
    ));
    const REFUSED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Reset,
        "the server refused the connection",
    ));
    const UNANSWERED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Timeout,
        "the server did not answer the dial",
    ));
    const UNDIALLED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Unknown,
        "the server could not be dialled",
    ));
    const FIN: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Eof,
        "the worker closed the tunnel",
    ));
    const TRUNCATED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Eof,
        "the worker closed the tunnel without TLS close_notify",
    ));
    const FIN_UNANSWERED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Eof,
        "the worker closed the tunnel before its server said anything: does that server run?",
    ));
    const RESET_UNANSWERED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Reset,
        "the worker reset the tunnel before its server said anything: does that server run?",
    ));
    const RESET: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Reset,
        "the worker reset the tunnel",
    ));
    const LOST: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Timeout,
        "the tunnel's TCP connection timed out",
    ));
    const FAILED: Self = Self(&Known::new(
        CloseReason::WorkerClosed,
        CloseCode::Unknown,
        "the tunnel's socket failed",
    ));

    /// Why a function's server could not be dialled, by the `errno`.
    pub(crate) fn undialled(errno: i32) -> Self {
        let kind = std::io::Error::from_raw_os_error(errno).kind();
        match kind {
            std::io::ErrorKind::ConnectionRefused => Self::REFUSED,
            std::io::ErrorKind::TimedOut => Self::UNANSWERED,
            _ => Self::UNDIALLED,
        }
    }

    /// What a client is told if its tunnel is lost before the answer.
    pub(crate) fn loss(self) -> Fault {
        match self.detail {
            detail if detail == Self::SPEAKS_HTTP1.detail => Fault::ServerSpeaksHttp1,
            detail => Fault::TunnelLost(detail),
        }
    }

    /// The same cause for a tunnel that had a request and sent no byte of an answer. As a rule not
    /// the worker ended, but the server behind it.
    pub(crate) fn unanswered(self) -> Self {
        match self.detail {
            detail if detail == Self::FIN.detail => Self::FIN_UNANSWERED,
            detail if detail == Self::RESET.detail => Self::RESET_UNANSWERED,
            _ => self,
        }
    }

    /// The answer to requests that still wait for a worker.
    pub(crate) fn fault(self) -> &'static Fault {
        match self.reason {
            CloseReason::CapacityReached => &Fault::WorkQueueFull,
            _ => &Fault::NoWorker,
        }
    }

    /// The cause for a client's attachments when its connection ends.
    pub(crate) fn client_ended(end: End) -> Self {
        match end {
            End::Timeout => Self::CLIENT_LOST,
            End::Fin | End::Truncated | End::Reset | End::Failed => Self::CLIENT_GONE,
        }
    }

    pub(crate) fn ended(end: End) -> Self {
        match end {
            End::Fin => Self::FIN,
            End::Truncated => Self::TRUNCATED,
            End::Reset => Self::RESET,
            End::Timeout => Self::LOST,
            End::Failed => Self::FAILED,
        }
    }
}

/// How a client connection came to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gone {
    /// The client's bytes ended.
    Ended(End),
    /// The client had said that its last request was the last (HTTP/1).
    Done,
    /// We ended it.
    ByUs(Cause),
    /// We ended it because its client wasted our resources (ENHANCE_YOUR_CALM, or the GOAWAY before
    /// it). Whether the client still wants its sessions is not known. They are kept as if the
    /// connection had been lost.
    ToldOff,
    /// The function's side ended the stream of bytes that the connection had become.
    Function(End),
}

/// How a client's connection ended, as the rules for parking see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The connection was lost: RST, a timeout, or FIN with streams open. Or we ended it as
    /// [`Gone::ToldOff`].
    Unclean,
    /// FIN without any word before it. The client may have meant it, or it is lost: balancers turn
    /// a lost client into a FIN.
    Silent,
    /// The client said that it leaves.
    Clean,
    /// We sent the client away.
    Ours,
    /// The function's side finished what it had with the client. A WebSocket's Close handshake
    /// looks so too: the server is the first to close (RFC 6455, section 7.1.1).
    Finished,
}

impl Gone {
    pub(crate) fn cause(self) -> Cause {
        match self {
            Self::Ended(end) => Cause::client_ended(end),
            Self::Done | Self::Function(_) => Cause::CLIENT_GONE,
            Self::ByUs(cause) => cause,
            Self::ToldOff => Cause::WASTEFUL,
        }
    }
}

/// A set of manners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manners(u8);

impl Manners {
    /// After which ends of its client a tunnel is kept.
    pub(crate) fn kept(park: Park, streaming: bool) -> Self {
        let kept = Manner::ALL.into_iter().filter(|manner| keeps(park, *manner, streaming));
        Self(kept.fold(0, |set, manner| set | 1 << manner as u8))
    }

    pub(crate) fn contains(self, manner: Manner) -> bool {
        self.0 & 1 << manner as u8 != 0
    }
}

impl Manner {
    const ALL: [Self; 5] = [Self::Unclean, Self::Silent, Self::Clean, Self::Ours, Self::Finished];
}

fn keeps(park: Park, manner: Manner, streaming: bool) -> bool {
    match (park, manner) {
        (_, Manner::Ours) | (Park::Never, _) => false,
        (Park::Always, _) => true,
        (_, Manner::Clean) => false,
        (Park::Auto | Park::Unclean, Manner::Finished) => streaming,
        (Park::Auto, Manner::Silent) => streaming,
        (Park::Auto | Park::Unclean, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_after_which_end() {
        use Manner::{Clean, Finished, Ours, Silent, Unclean};
        // Default and streaming functions.
        let cases: [(Park, Manner, (bool, bool)); 20] = [
            (Park::Never, Unclean, (false, false)),
            (Park::Never, Silent, (false, false)),
            (Park::Never, Clean, (false, false)),
            (Park::Never, Ours, (false, false)),
            (Park::Never, Finished, (false, false)),
            (Park::Auto, Unclean, (true, true)),
            (Park::Auto, Silent, (false, true)),
            (Park::Auto, Clean, (false, false)),
            (Park::Auto, Ours, (false, false)),
            (Park::Auto, Finished, (false, true)),
            (Park::Unclean, Unclean, (true, true)),
            (Park::Unclean, Silent, (true, true)),
            (Park::Unclean, Clean, (false, false)),
            (Park::Unclean, Ours, (false, false)),
            (Park::Unclean, Finished, (false, true)),
            (Park::Always, Unclean, (true, true)),
            (Park::Always, Silent, (true, true)),
            (Park::Always, Clean, (true, true)),
            (Park::Always, Ours, (false, false)),
            (Park::Always, Finished, (true, true)),
        ];
        for (park, manner, kept) in cases {
            let told = (
                Manners::kept(park, false).contains(manner),
                Manners::kept(park, true).contains(manner),
            );
            assert_eq!(told, kept, "{park:?} {manner:?}");
        }
    }
}
