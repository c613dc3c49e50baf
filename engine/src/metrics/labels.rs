//! Closed label sets: every label value a metric of ours can have, in the order it is exported.

use ringway_proto::h1::connect::ConnectResult;

/// Defines an enum whose variants are the values of one metric label.
macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every value, in the order of export.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many values there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The value's place in arrays kept per label.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The text in metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

labels! {
    /// Why a worker connection ended (contract OB-2); the first cause wins.
    CloseReason {
        /// The client went away or was sent away.
        ClientClosed => "client_closed",
        /// The worker's side ended it, or it was idle too long (as the reference counts it).
        WorkerClosed => "worker_closed",
        /// This gateway is ending.
        Shutdown => "shutdown",
        /// The tunnel was not used in time.
        TtlExpired => "ttl_expired",
        /// A full table.
        CapacityReached => "capacity_reached",
        /// Somebody asked for it.
        Deleted => "deleted",
        /// None of the above.
        Unknown => "unknown",
    }
}

labels! {
    /// What becomes of the spare tunnels that workers are asked for.
    SpareOutcome {
        /// The worker was asked for one.
        Asked => "asked",
        /// The spare came.
        Came => "came",
        /// The other tunnel was lost, so the spare is kept for a client that comes back.
        Parked => "parked",
        /// The spare has replaced a tunnel that takes no more streams.
        Replaced => "replaced",
        /// The spare was not needed.
        Unused => "unused",
        /// The spare never came, or was lost before it was needed.
        Failed => "failed",
    }
}

labels! {
    /// The parts of a session's start; the claim is part of the dial.
    StartPart {
        /// From the request until its work was queued.
        Queue => "queue",
        /// From then until a worker had it, where that is told.
        Claim => "claim",
        /// From when it was queued until the worker dialled back.
        Dial => "dial",
        /// From then until the first byte of an answer.
        FirstByte => "first_byte",
    }
}

labels! {
    /// What becomes of questions to the control plane. Each that is asked ends in exactly one of
    /// answered, refused, withdrawn and expired.
    AskOutcome {
        /// The question was asked.
        Asked => "asked",
        /// The question was granted.
        Answered => "answered",
        /// The question was denied, or there was no room for it.
        Refused => "refused",
        /// The question's client has gone.
        Withdrawn => "withdrawn",
        /// There was no answer in time.
        Expired => "expired",
        /// An answer that nobody waited for: it came after the end, or again.
        Late => "late",
    }
}

labels! {
    /// What the tunnel's transport said when it ended (contract OB-3).
    CloseCode {
        /// Nothing: we closed it.
        None => "none",
        /// FIN.
        Eof => "eof",
        /// RST or EPIPE.
        Reset => "reset",
        /// The kernel or a deadline gave up.
        Timeout => "timeout",
        /// Used after it was closed.
        ClosedConn => "closed_conn",
        /// Cancelled by its owner.
        ContextCanceled => "context_canceled",
        /// QUIC idle timeout.
        QuicIdleTimeout => "quic_idle_timeout",
        /// QUIC application close.
        QuicApplication => "quic_application",
        /// QUIC transport error.
        QuicTransport => "quic_transport",
        /// QUIC stream reset.
        QuicStreamReset => "quic_stream_reset",
        /// QUIC handshake timeout.
        QuicHandshakeTimeout => "quic_handshake_timeout",
        /// QUIC stateless reset.
        QuicStatelessReset => "quic_stateless_reset",
        /// GOAWAY with an error.
        H2Goaway => "h2_goaway",
        /// A stream error.
        H2Stream => "h2_stream",
        /// A connection error of ours.
        H2Connection => "h2_connection",
        /// None of the above.
        Unknown => "unknown",
    }
}

labels! {
    /// Why payload was copied instead of being sent from where it was received.
    CopyWhy {
        /// Shorter than what pays for a segment of its own.
        SmallFrame => "small_frame",
        /// The receiver took so long that the receive memory was needed.
        SlowPeer => "slow_peer",
        /// The payload waits for credit or for a tunnel.
        Waiting => "waiting",
    }
}

labels! {
    /// How a client that came back got its session's worker again.
    ResumeWay {
        /// The session's tunnel was parked.
        Memory => "memory",
        /// A spare tunnel was there.
        Spare => "spare",
        /// The worker was asked for one more tunnel.
        Reconnect => "reconnect",
        /// The client did not get that far.
        None => "none",
    }
}

labels! {
    /// The result of such a return.
    ResumeOutcome {
        /// The client's first request was sent.
        Ok => "ok",
        /// There is no such session any more (E7).
        NotFound => "not_found",
        /// The session is not this client's (E8 to E10).
        Refused => "refused",
        /// The tunnel closed while it was handed over.
        Lost => "lost",
        /// No worker dialled back.
        NoWorker => "no_worker",
        /// The client did not wait.
        Abandoned => "abandoned",
    }
}

labels! {
    /// Why a connection goes to another gateway.
    RelayCause {
        /// A worker's CONNECT shows that one's token.
        Callback => "callback",
        /// A client's first request names a session of that one.
        Client => "client",
        /// A worker's CONNECT shows a token that no gateway of the cluster has made.
        Fallback => "fallback",
    }
}

labels! {
    /// What came of such a connection.
    RelayOutcome {
        /// The other gateway has taken the connection.
        Relayed => "relayed",
        /// The other gateway is not reached, or was not within the last second.
        Unreachable => "unreachable",
        /// The other gateway did not answer in time.
        Late => "late",
        /// The other gateway refused.
        Refused => "refused",
        /// The other gateway is dead.
        Dead => "dead",
        /// The other gateway is not known.
        Unknown => "unknown",
        /// The connection came over TLS, and relays are plain TCP.
        Tls => "tls",
        /// The limit of relays is reached, here or there.
        Full => "full",
        /// Too many go there, or come from the same client.
        Limited => "limited",
        /// The peer did not wait.
        Gone => "gone",
    }
}

labels! {
    /// What another gateway brings.
    TakenCause {
        /// A worker's connection.
        Callback => "callback",
        /// A client's.
        Client => "client",
        /// The message that it leaves.
        Leave => "leave",
        /// Nothing that could be read.
        None => "none",
    }
}

labels! {
    /// The result of such a connection.
    TakenOutcome {
        /// This gateway has taken the connection.
        Taken => "taken",
        /// No secret of the cluster proves the prelude.
        Forged => "forged",
        /// The prelude's version is not known here.
        Version => "version",
        /// The prelude is cut off, too long, or something else.
        Garbled => "garbled",
        /// Earlier connections of this address had proved nothing, so it was not heard.
        Unheard => "unheard",
        /// The prelude did not come in time.
        Late => "late",
        /// The prelude is for another node, or another run of this one.
        Elsewhere => "elsewhere",
        /// There is no room.
        Full => "full",
    }
}

labels! {
    /// What drives a core.
    Backend {
        /// io_uring.
        Ring => "io_uring",
        /// epoll.
        Epoll => "epoll",
    }
}

labels! {
    /// A named limit; the names are those of the `[limits]` settings where one exists.
    Limit {
        /// Client connections of a core.
        ClientConnections => "client_connections",
        /// Worker connections of a core, polls and tunnels.
        WorkerConnections => "worker_connections",
        /// Concurrent streams of one client connection (L1).
        Streams => "streams",
        /// Decoded header list: bytes (L2).
        HeaderBytes => "header_bytes",
        /// Decoded header list: fields (L2).
        HeaderFields => "header_fields",
        /// One header block on the wire: bytes, CONTINUATIONs, empty fragments (L3).
        HeaderBlock => "header_block",
        /// HPACK table size (L4).
        HpackTable => "hpack_table",
        /// The bucket of suspicious frames (L5).
        Glitches => "glitches",
        /// Answers a peer does not take (L6).
        QueuedAnswers => "queued_answers",
        /// Empty DATA frames in a row (L7).
        EmptyData => "empty_data",
        /// WINDOW_UPDATE frames (L8).
        WindowUpdates => "window_updates",
        /// Receive window of one stream (L9).
        StreamWindow => "stream_window",
        /// Bytes buffered for one connection (L9).
        ConnectionBuffer => "connection_buffer",
        /// Bytes buffered by a core (L9).
        CoreBuffer => "core_buffer",
        /// Bytes that wait for an HTTP/1 connection's other hop.
        Http1Buffer => "http1_buffer",
        /// Body of a request with `Upgrade: h2c`.
        H2cBody => "h2c_body",
        /// Time for a preface or a request head (L10).
        Handshake => "handshake",
        /// Time without window progress (L11).
        StalledStream => "stalled_stream",
        /// Attachments of one client connection (L12).
        Attachments => "attachments",
        /// New dispatches of one client connection (L12).
        Dispatches => "dispatches",
        /// Wrong tries with one worker token (L13).
        TokenTries => "token_tries",
        /// Connections that a core relays to other gateways.
        Relays => "relays",
        /// Sessions of a core that wait for a worker.
        PendingSessions => "pending_sessions",
        /// Sessions of a tenant on a core that wait for a worker.
        PendingPerTenant => "pending_per_tenant",
        /// Questions to the control plane of a core that wait for their answers.
        Asks => "asks",
        /// Such questions of a tenant on a core, where the tenant is known before the answer.
        AsksPerTenant => "asks_per_tenant",
        /// Work queued for one function version.
        WorkQueue => "work_queue",
        /// Worker polls that wait for work.
        Polls => "polls",
        /// Request ids in one poll.
        PollIds => "poll_ids",
        /// Failed CONNECTs of one address.
        FailedConnects => "failed_connects",
        /// Parked tunnels of a core.
        ParkedTunnels => "parked_tunnels",
        /// Parked tunnels of a tenant on a core.
        ParkedPerTenant => "parked_per_tenant",
        /// Records of the timelines.
        TraceRecords => "trace_records",
        /// Messages waiting for another thread.
        Mailbox => "mailbox",
        /// Messages waiting for room in another core's mailbox.
        Outbox => "outbox",
    }
}

impl Limit {
    /// Whether each core has its own: then the cores' values add up, otherwise the largest counts.
    #[must_use]
    pub const fn adds_up(self) -> bool {
        matches!(
            self,
            Self::ClientConnections
                | Self::WorkerConnections
                | Self::CoreBuffer
                | Self::Relays
                | Self::PendingSessions
                | Self::Asks
                | Self::ParkedTunnels
                | Self::Polls
                | Self::TraceRecords
                | Self::Mailbox
                | Self::Outbox
        )
    }
}

/// The `result` label of a worker's CONNECT, in the order of contract 4.2.
pub const CONNECT_RESULTS: [&str; ConnectResult::COUNT] = {
    let mut labels = [""; ConnectResult::COUNT];
    let mut at = 0;
    while at < labels.len() {
        labels[at] = ConnectResult::ALL[at].label();
        at += 1;
    }
    labels
};
