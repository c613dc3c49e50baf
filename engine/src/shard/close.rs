//! Every end: of an exchange, an attachment, a connection. The first cause wins and is counted
//! once; nothing else closes.

use ringway_proto::fault::Fault;
use ringway_proto::fields::Fields;
use ringway_proto::h2::ErrorCode;
use ringway_proto::route::{self, Routed};

use super::Shard;
use super::attach::{Attachment, State};
use super::conn::{Conn, Hop, Leaving, Side};
use super::exchange::{Exchange, Way};
use super::park::Gone;
use super::table::Key;
use crate::border::{Border, Close, ConnId, End};
use crate::control::local::WorkKind;
use crate::log::{Access, SessionEdge};
use crate::metrics::{CloseCode, CloseReason, HttpKey, HttpSample, Version};
use crate::post::CorePost;
use crate::trail::Event;

/// Why an attachment ends, in the contract's words (OB-2, OB-3).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause {
    pub(crate) reason: CloseReason,
    pub(crate) code: CloseCode,
    /// Which of our timers it was, if one.
    pub(crate) local_timeout: &'static str,
    /// What happened, for people.
    pub(crate) detail: &'static str,
}

impl Cause {
    const fn new(reason: CloseReason, code: CloseCode, detail: &'static str) -> Self {
        Self { reason, code, local_timeout: "", detail }
    }

    const fn timer(reason: CloseReason, timer: &'static str, detail: &'static str) -> Self {
        Self { reason, code: CloseCode::None, local_timeout: timer, detail }
    }

    pub(crate) const CLIENT_GONE: Self =
        Self::new(CloseReason::ClientClosed, CloseCode::None, "the client connection ended");
    pub(crate) const WASTEFUL: Self = Self::new(
        CloseReason::ClientClosed,
        CloseCode::None,
        "the client was told off: it sent too much that carries nothing",
    );
    pub(crate) const ABANDONED: Self =
        Self::new(CloseReason::ClientClosed, CloseCode::ContextCanceled, "nobody waits any more");
    pub(crate) const NO_WORKER: Self = Self::timer(
        CloseReason::TtlExpired,
        "worker_cache_ttl",
        "no worker came within the wait limit",
    );
    pub(crate) const UNTAKEN: Self = Self::new(
        CloseReason::WorkerClosed,
        CloseCode::None,
        "the worker ended the session before it took the spare up",
    );
    pub(crate) const UNUSED: Self =
        Self::timer(CloseReason::TtlExpired, "worker_cache_ttl", "the tunnel was never used");
    // Contract OB-2: the reference reports its own idle close as the worker's.
    pub(crate) const IDLE: Self =
        Self::timer(CloseReason::WorkerClosed, "transport_idle", "the tunnel was idle");
    pub(crate) const SILENT: Self =
        Self::new(CloseReason::WorkerClosed, CloseCode::Timeout, "the worker answered no PING");
    pub(crate) const MUTE: Self = Self::new(
        CloseReason::WorkerClosed,
        CloseCode::Timeout,
        "the worker did not begin to speak",
    );
    pub(crate) const STALLED: Self =
        Self::new(CloseReason::WorkerClosed, CloseCode::Timeout, "the worker took no bytes");
    pub(crate) const GOAWAY: Self =
        Self::new(CloseReason::WorkerClosed, CloseCode::H2Goaway, "the worker sent GOAWAY");
    pub(crate) const EXHAUSTED: Self =
        Self::new(CloseReason::WorkerClosed, CloseCode::None, "the tunnel's stream ids ran out");
    pub(crate) const UNASKED: Self = Self::new(
        CloseReason::WorkerClosed,
        CloseCode::Unknown,
        "the worker said too much before it was asked",
    );
    pub(crate) const BROKEN: Self =
        Self::new(CloseReason::WorkerClosed, CloseCode::H2Connection, "the worker broke HTTP/2");
    pub(crate) const SPEAKS_HTTP1: Self = Self::new(
        CloseReason::WorkerClosed,
        CloseCode::H2Connection,
        "its server speaks HTTP/1 only, and the client HTTP/2",
    );
    pub(crate) const MALFORMED: Self =
        Self::new(CloseReason::WorkerClosed, CloseCode::Unknown, "the worker broke HTTP/1");
    pub(crate) const USED_UP: Self = Self::new(
        CloseReason::WorkerClosed,
        CloseCode::Eof,
        "the tunnel could carry no request after its last one",
    );
    pub(crate) const WINDOW: Self =
        Self::timer(CloseReason::ClientClosed, "park_window", "the client did not come back");
    pub(crate) const CROWDED: Self = Self::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "as many tunnels were parked as may be, and this was the oldest",
    );
    pub(crate) const YIELDED: Self = Self::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "a new session needed the worker of a parked one",
    );
    pub(crate) const DELETED: Self =
        Self::new(CloseReason::Deleted, CloseCode::None, "an operator ended the session");
    pub(crate) const SURPLUS: Self = Self::new(
        CloseReason::ClientClosed,
        CloseCode::None,
        "the client is gone and the session has another tunnel",
    );
    pub(crate) const SHUTDOWN: Self =
        Self::new(CloseReason::Shutdown, CloseCode::None, "the gateway is ending");
    pub(crate) const REVOKED: Self =
        Self::new(CloseReason::Deleted, CloseCode::None, "wrong ids were tried with its token");
    pub(crate) const QUEUE_FULL: Self =
        Self::new(CloseReason::CapacityReached, CloseCode::None, "the work queue is full");

    pub(crate) const NO_ROOM: Self = Self::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "another core had no room for its work",
    );

    pub(crate) const NO_ADDRESS: Self = Self::new(
        CloseReason::WorkerClosed,
        CloseCode::Unknown,
        "the server's name has no address",
    );
    pub(crate) const NO_CONNECTION: Self = Self::new(
        CloseReason::CapacityReached,
        CloseCode::None,
        "no more worker connections are allowed",
    );

    /// Why a function's server could not be dialled, by the `errno`.
    pub(crate) fn undialled(errno: i32) -> Self {
        let kind = std::io::Error::from_raw_os_error(errno).kind();
        let (code, detail) = match kind {
            std::io::ErrorKind::ConnectionRefused => {
                (CloseCode::Reset, "the server refused the connection")
            }
            std::io::ErrorKind::TimedOut => {
                (CloseCode::Timeout, "the server did not answer the dial")
            }
            _ => (CloseCode::Unknown, "the server could not be dialled"),
        };
        Self::new(CloseReason::WorkerClosed, code, detail)
    }

    /// What those are told whose tunnel is lost before its answer.
    fn loss(self) -> &'static Fault {
        match self.detail {
            detail if detail == Self::SPEAKS_HTTP1.detail => &Fault::ServerSpeaksHttp1,
            _ => &Fault::TunnelLost,
        }
    }

    /// What those are told who still wait for a worker.
    fn fault(self) -> &'static Fault {
        match self.reason {
            CloseReason::CapacityReached => &Fault::WorkQueueFull,
            _ => &Fault::NoWorker,
        }
    }

    /// The cause for a client's attachments when its connection ends.
    pub(crate) fn client_ended(end: End) -> Self {
        match end {
            End::Timeout => Self::new(
                CloseReason::ClientClosed,
                CloseCode::Timeout,
                "the client's connection timed out",
            ),
            End::Fin | End::Truncated | End::Reset | End::Failed => Self::CLIENT_GONE,
        }
    }

    pub(crate) fn ended(end: End) -> Self {
        let (code, detail) = match end {
            End::Fin => (CloseCode::Eof, "the worker closed the tunnel"),
            End::Truncated => {
                (CloseCode::Eof, "the worker closed the tunnel without TLS close_notify")
            }
            End::Reset => (CloseCode::Reset, "the worker reset the tunnel"),
            End::Timeout => (CloseCode::Timeout, "the tunnel's TCP connection timed out"),
            End::Failed => (CloseCode::Unknown, "the tunnel's socket failed"),
        };
        Self::new(CloseReason::WorkerClosed, code, detail)
    }
}

/// Design 3.11: which code a hop's reset becomes on the other hop. A message that was cut must not
/// look whole there, so that `NO_ERROR` is none of them (contract CL-42, RFC 9113 §8.1).
pub(crate) fn relayed_code(code: ErrorCode) -> ErrorCode {
    match code {
        ErrorCode::Cancel | ErrorCode::RefusedStream | ErrorCode::EnhanceYourCalm => code,
        _ => ErrorCode::InternalError,
    }
}

impl Shard {
    /// One direction has passed its END_STREAM on.
    pub(super) fn direction_done(&mut self, border: &mut Border, slot: u32, way: Way) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        exchange.pipe(way).done = true;
        let own = exchange.attachment.is_none();
        if exchange.up.done && exchange.down.done {
            self.forget_exchange(border, slot);
        } else if exchange.down.done {
            // RFC 9113 §8.1: a complete response ends the exchange; the rest of the request is
            // not wanted any more. Behind an answer of ours it is read for a while, unless the
            // connection ends anyway.
            let client = exchange.client.conn;
            let ends = |hop: &Hop| hop.link.ends_with_exchange();
            if !own || self.conns.hop(client).is_some_and(ends) {
                let code = Some(ErrorCode::NoError);
                self.drop_exchange(border, slot, code, code);
            }
        }
    }

    /// A stream was reset on one hop: the other one follows.
    pub(super) fn stream_reset(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        slot: u32,
        code: ErrorCode,
    ) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        if exchange.client.conn == conn {
            self.drop_exchange(border, slot, None, Some(relayed_code(code)));
        } else if exchange.down.ended && code == ErrorCode::NoError {
            // The worker has answered in full and wants no more of the request; what waits of
            // the answer is still delivered.
            exchange.up.ended = true;
            let waiting = exchange.up.clear(&mut border.pool);
            let client = exchange.client.conn;
            self.let_go(border, Some(client), waiting);
        } else {
            self.drop_exchange(border, slot, Some(relayed_code(code)), None);
        }
    }

    /// Ends an exchange before its time, with a reset on the hops that are given a code.
    pub(super) fn drop_exchange(
        &mut self,
        border: &mut Border,
        slot: u32,
        client: Option<ErrorCode>,
        worker: Option<ErrorCode>,
    ) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let (at, tunnel) = (exchange.client, exchange.worker);
        if let Some(code) = client
            && let Some(hop) = self.conns.hop_mut(at.conn)
        {
            hop.link.reset(at.key, code, &mut border.sink(at.conn));
        }
        if let (Some(code), Some(to)) = (worker, tunnel)
            && let Some(hop) = self.conns.hop_mut(to.conn)
        {
            hop.link.reset(to.key, code, &mut border.sink(to.conn));
        }
        self.forget_exchange(border, slot);
    }

    /// Ends an exchange for a reason of our own: the client is told it, if it has no response head
    /// yet, and the streams are cancelled.
    pub(super) fn cancel_exchange(&mut self, border: &mut Border, slot: u32, fault: &Fault) {
        let Some(exchange) = self.exchanges.at(slot) else { return };
        let (status, worker) = (exchange.status, exchange.worker);
        let code = ErrorCode::Cancel;
        if status != 0 {
            // A response that was begun and is given up: some clients take CANCEL for its end.
            let client = Some(ErrorCode::InternalError);
            return self.drop_exchange(border, slot, client, Some(code));
        }
        if let Some(at) = worker
            && let Some(hop) = self.conns.hop_mut(at.conn)
        {
            hop.link.reset(at.key, code, &mut border.sink(at.conn));
        }
        self.refuse_exchange(border, slot, fault);
    }

    /// Takes an exchange out of every table and counts it. Its streams are ended already.
    pub(super) fn forget_exchange(&mut self, border: &mut Border, slot: u32) {
        let Some(exchange) = self.remove_exchange(border, slot) else { return };
        let sample = HttpSample {
            seconds: self.now.since(exchange.began).as_secs_f64(),
            request_bytes: exchange.up.bytes + exchange.discarded as u64,
            response_bytes: exchange.down.bytes,
        };
        let (method, status, version) = (exchange.method, exchange.status, exchange.version);
        self.metrics.http_server.observe(HttpKey { method, status, version }, sample);
        if exchange.worker.is_some() {
            // A tunnel never speaks HTTP/1.0.
            let version = if version == Version::H10 { Version::H11 } else { version };
            self.metrics.http_client.observe(HttpKey { method, status, version }, sample);
        }
        if let Some(path) = &exchange.path {
            self.log_access(&exchange, path);
        }
        self.client_stream_ended(border, exchange.client.conn);
    }

    fn log_access(&self, exchange: &Exchange, path: &[u8]) {
        let Some(hop) = self.conns.hop(exchange.client.conn) else { return };
        crate::log::access(&Access {
            method: exchange.method.label(),
            path: &String::from_utf8_lossy(path),
            status: exchange.status,
            latency: self.now.since(exchange.began),
            client: hop.peer,
            size: exchange.down.bytes,
            shard: self.settings.core,
        });
    }

    /// Takes an exchange out of every table.
    pub(super) fn remove_exchange(&mut self, border: &mut Border, slot: u32) -> Option<Exchange> {
        let mut exchange = self.exchanges.remove(self.exchanges.key_at(slot)?)?;
        let client = exchange.client.conn;
        let up = exchange.up.clear(&mut border.pool);
        self.let_go(border, (exchange.attachment.is_some()).then_some(client), up);
        let down = exchange.down.clear(&mut border.pool);
        self.let_go(border, exchange.worker.map(|at| at.conn), down);
        self.lists_went(&exchange);
        if let Some(key) = exchange.attachment {
            self.metrics.active_http_requests -= 1;
            self.leave_attachment(border, key, &exchange);
        }
        Some(exchange)
    }

    /// An exchange no longer needs its attachment: a stream for the next one, or nobody waits.
    fn leave_attachment(&mut self, border: &mut Border, key: Key, exchange: &Exchange) {
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        attachment.bytes_up += exchange.up.bytes;
        attachment.bytes_down += exchange.down.bytes;
        if exchange.worker.is_none() {
            attachment.waiting -= 1;
            if attachment.waiters.len() > 64 + 2 * attachment.waiting as usize {
                attachment.waiters.retain(|waiter| self.exchanges.get(*waiter).is_some());
            }
            // A question's answer may be a tunnel: it is waited for.
            let asks = matches!(attachment.state, State::Asking { .. });
            if attachment.waiting == 0 && attachment.tunnel().is_none() && !asks {
                self.charge_abandoned(key);
                self.give_up(border, key, Cause::ABANDONED);
            }
            return;
        }
        attachment.streams -= 1;
        if let Some(tunnel) = attachment.tunnel() {
            self.tunnel_stream_ended(border, tunnel, key);
        }
    }

    fn tunnel_stream_ended(&mut self, border: &mut Border, tunnel: ConnId, key: Key) {
        if self.http1_tunnel_over(border, tunnel) {
            return;
        }
        self.serve_waiters(border, key);
        let Some(hop) = self.conns.hop_mut(tunnel) else { return };
        if hop.link.streams() > 0 {
            return;
        }
        let now = self.now;
        let Some(owner) = hop.tunnel_mut() else { return };
        owner.idle_since = Some(now);
        if owner.going && owner.held.is_none() && !self.is_replaced(key) {
            self.tunnel_done(border, tunnel);
        } else {
            self.watch(tunnel);
        }
    }

    fn client_stream_ended(&mut self, border: &mut Border, client: ConnId) {
        if self.http1_client_over(border, client) {
            return;
        }
        let Some(hop) = self.conns.hop(client) else { return };
        let leaving = hop.client().map(|client| client.leaving);
        if leaving == Some(Leaving::Final) && hop.link.streams() == 0 {
            border.close(client, Close::Flush);
            let how = self.sent_away();
            self.client_gone(border, client, how);
        }
    }

    /// A client connection has ended: its tunnels close at once (contract CL-23), or are kept for
    /// a client that comes back.
    pub(super) fn client_gone(&mut self, border: &mut Border, conn: ConnId, how: Gone) {
        let Some(Conn::Hop(mut hop)) = self.conns.remove(conn) else { return };
        self.forget_partial(&mut hop);
        let manner = how.manner(&hop);
        self.resume(border, std::mem::take(&mut hop.stopped));
        self.http1_forget(border, &mut hop);
        let Side::Client(client) = &mut hop.side else { return };
        let attachments = std::mem::take(&mut client.attachments);
        self.note_client_end(&attachments, how);
        let kept = self.choose_parked(&attachments, manner);
        self.keep_used(&kept, manner);
        for slot in hop.link.tags() {
            let of = self.exchanges.at(slot).and_then(|exchange| exchange.attachment);
            // A tunnel that was replaced has streams of this client without being one of its own.
            let replaced = |key| self.attachments.get(key).is_some_and(|a| a.client != Some(conn));
            if of.is_some_and(|key| kept.binary_search(&key).is_ok() || replaced(key)) {
                self.drop_exchange(border, slot, None, Some(ErrorCode::Cancel));
            } else {
                // The tunnel goes as a whole: its streams need no reset each.
                self.forget_exchange(border, slot);
            }
        }
        for key in attachments {
            if kept.binary_search(&key).is_ok() {
                self.park(border, key);
            } else if !self.still_asks(key) {
                self.give_up(border, key, how.cause());
            }
        }
        let Side::Client(client) = &hop.side else { return };
        self.metrics.active_connections -= 1;
        let seconds = self.now.since(hop.opened).as_secs_f64();
        self.metrics.client_connection_seconds.observe(seconds);
        self.metrics.client_connection_tunnels.observe(f64::from(client.tunnels_seen));
    }

    /// A tunnel has ended, or is ended by us: its streams are answered or reset.
    pub(super) fn tunnel_gone(&mut self, border: &mut Border, conn: ConnId, cause: Cause) {
        self.lost_before_replaced(border, conn);
        let Some(Conn::Hop(mut hop)) = self.conns.remove(conn) else { return };
        self.forget_partial(&mut hop);
        border.close(conn, Close::Now);
        self.resume(border, std::mem::take(&mut hop.stopped));
        let Side::Tunnel(tunnel) = &hop.side else { return };
        let key = tunnel.attachment;
        let answered = tunnel.cookie_sent;
        let Some(mut attachment) = self.attachments.remove(key) else { return };
        let slots = hop.link.tags();
        // What waits of the last answer is still delivered.
        let over = |slot: &u32| self.exchanges.at(*slot).is_some_and(|e| e.down.ended);
        if answered && slots.iter().all(over) {
            self.give_back_dispatch(&attachment, cause);
        }
        for slot in slots {
            self.stream_lost(border, slot, cause);
        }
        for waiter in std::mem::take(&mut attachment.waiters) {
            if self.exchanges.get(waiter).is_some() {
                self.refuse_exchange(border, waiter.slot, cause.loss());
            }
        }
        self.close_attachment(key, &attachment, cause);
        self.kin_ended(border, &attachment, cause);
    }

    /// The tunnel of a running exchange is lost (contract CL-41, CL-42, design 3.11).
    fn stream_lost(&mut self, border: &mut Border, slot: u32, cause: Cause) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        if exchange.down.ended {
            return;
        }
        if exchange.status == 0 {
            self.refuse_exchange(border, slot, cause.loss());
        } else {
            self.drop_exchange(border, slot, Some(ErrorCode::InternalError), None);
        }
    }

    /// Ends an attachment whose exchanges are gone or still wait for it.
    pub(super) fn give_up(&mut self, border: &mut Border, key: Key, cause: Cause) {
        self.give_up_with(border, key, cause, cause.fault());
    }

    /// As [`Self::give_up`], with another word for those who wait.
    pub(super) fn give_up_with(
        &mut self,
        border: &mut Border,
        key: Key,
        cause: Cause,
        fault: &Fault,
    ) {
        self.stop_dialling(border, key);
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        if let Some(tunnel) = attachment.tunnel() {
            return self.tunnel_gone(border, tunnel, cause);
        }
        let waiters = std::mem::take(&mut attachment.waiters);
        let ended = self.attachments.remove(key);
        if let Some(attachment) = &ended {
            self.close_attachment(key, attachment, cause);
        }
        for waiter in waiters {
            if self.exchanges.get(waiter).is_some() {
                self.refuse_exchange(border, waiter.slot, fault);
            }
        }
        if let Some(attachment) = &ended {
            self.kin_ended(border, attachment, cause);
        }
    }

    /// The one place where an attachment's end is written down.
    fn close_attachment(&mut self, key: Key, attachment: &Attachment, cause: Cause) {
        let client = attachment.client.and_then(|client| self.conns.hop_mut(client)?.client_mut());
        if let Some(client) = client {
            client.attachments.retain(|other| *other != key);
            client.unpin(key);
        }
        if attachment.client.is_some() && attachment.kind() == Some(WorkKind::Reconnect) {
            self.count_reconnect_lost(cause);
        }
        if let Some(kind) =
            attachment.kind().filter(|_| !matches!(attachment.state, State::Fresh { .. }))
        {
            self.pending.leave(&attachment.owner.tenant, kind);
        }
        match attachment.state {
            // Nobody was asked for it: there is nothing to count and nothing to remember.
            State::Asking { .. } => {
                self.asking -= 1;
                return self.session_forgotten(attachment.session, key);
            }
            State::Fresh { .. } => return self.session_forgotten(attachment.session, key),
            State::Waiting { .. } => {
                self.withdraw(key, &attachment.owner.function, &attachment.owner.version);
            }
            State::Parked { place, .. } => self.leave_lot(key, attachment, place),
            State::Dialling(_) | State::Attached { .. } | State::Moving { .. } => {}
        }
        self.metrics.worker_connections_closed[cause.reason.index()] += 1;
        self.metrics.close_codes[cause.code.index()] += 1;
        let held = self.now.since(attachment.opened);
        self.metrics.worker_connection_seconds.observe(held.as_secs_f64());
        self.note_close(attachment, cause);
        let row = self.closed_row(attachment, cause.reason.label());
        match attachment.state {
            // The session has another in its place already, which waits for the tunnel.
            State::Moving { to, .. } => self.tell(to.core, CorePost::not_resumed(to)),
            // What became of the session was known before.
            State::Waiting { kind: WorkKind::Spare, .. } => {
                self.session_forgotten(attachment.session, key);
            }
            _ => self.session_left(key, attachment, row),
        }
        // Whoever can ask can end what nobody served.
        let served = matches!(
            attachment.state,
            State::Attached { .. } | State::Parked { .. } | State::Moving { .. }
        );
        let counted = !served || attachment.counted;
        let edge = SessionEdge {
            counted_for: counted.then(|| attachment.client_address.ip()),
            eviction_reason: cause.reason.label(),
            close_code: cause.code.label(),
            close_detail: cause.detail,
            closed_by_peer: cause.code != CloseCode::None
                && cause.reason == CloseReason::WorkerClosed,
            local_timeout: cause.local_timeout,
            held_for: held,
            ..attachment.edge(self.settings.core)
        };
        crate::log::attachment_closed(&edge);
    }

    /// A connection that was no hop yet has ended.
    pub(super) fn plain_gone(&mut self, border: &mut Border, conn: ConnId) {
        match self.conns.remove(conn) {
            Some(Conn::Fresh(fresh)) => self.count_client_end(fresh.opened),
            Some(door @ Conn::Door(_)) => {
                self.conns.insert(conn, door);
                self.door_gone(border, conn, End::Fin);
            }
            Some(Conn::Hop(_)) | None => {}
        }
    }

    fn count_client_end(&mut self, opened: ringway_proto::time::Time) {
        self.metrics.active_connections -= 1;
        let seconds = self.now.since(opened).as_secs_f64();
        self.metrics.client_connection_seconds.observe(seconds);
        self.metrics.client_connection_tunnels.observe(0.0);
    }

    /// The worker said GOAWAY (design 3.11): running streams below its last id finish, those
    /// above are refused, and requests from now on go to a tunnel that takes this one's place.
    pub(super) fn worker_goaway(&mut self, border: &mut Border, conn: ConnId, last: u32) {
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let refused = hop.link.keys_above(last);
        let idle = hop.link.streams() == refused.len();
        let Some(tunnel) = hop.tunnel_mut() else { return };
        let first = !std::mem::replace(&mut tunnel.going, true);
        let key = tunnel.attachment;
        if first {
            self.note_of(key, Event::Goaway);
            self.ask_replacement(border, key);
        }
        for stream in refused {
            let Some(hop) = self.conns.hop_mut(conn) else { return };
            let slot = hop.link.tag(stream);
            hop.link.reset(stream, ErrorCode::Cancel, &mut border.sink(conn));
            self.drop_exchange(border, slot, Some(ErrorCode::RefusedStream), None);
        }
        if idle && self.conns.hop(conn).is_some() && !self.is_replaced(key) {
            self.tunnel_done(border, conn);
        }
    }

    /// Requests that were not sent yet are placed as if they came now: in a fresh session, or, if
    /// they name one, at another tunnel of it.
    pub(super) fn move_waiters(&mut self, border: &mut Border, key: Key) {
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        let Some(client) = attachment.client else { return };
        let waiters = std::mem::take(&mut attachment.waiters);
        let Some(owner) = self.conns.hop_mut(client).and_then(Hop::client_mut) else { return };
        owner.unpin(key);
        for waiter in waiters {
            let head = self.exchanges.get_mut(waiter).and_then(|exchange| exchange.head.take());
            let Some(head) = head else { continue };
            match self.placed_anew(client, &head) {
                Ok(fresh) => {
                    if let Some(exchange) = self.exchanges.get_mut(waiter) {
                        exchange.head = Some(head);
                        exchange.attachment = Some(fresh);
                    }
                    if let Some(attachment) = self.attachments.get_mut(key) {
                        attachment.waiting -= 1;
                    }
                    if let Some(attachment) = self.attachments.get_mut(fresh) {
                        attachment.waiters.push_back(waiter);
                        attachment.waiting += 1;
                    }
                    // It may have its tunnel already.
                    self.serve_waiters(border, fresh);
                }
                // It leaves the old attachment by itself.
                Err(fault) => self.refuse_exchange(border, waiter.slot, &fault),
            }
        }
        self.answer_polls(border);
    }

    fn placed_anew(&mut self, client: ConnId, head: &Fields) -> Result<Key, Box<Fault>> {
        match route::read(head) {
            Routed::Invoke(head) => self
                .pin(client, &head)
                .and_then(|pin| self.attachment_for(client, pin, head.request_id, self.now)),
            // It was one when it came.
            _ => Err(Box::new(Fault::TunnelLost)),
        }
    }
}

impl super::conn::Client {
    /// Requests without an id no longer use this attachment.
    fn unpin(&mut self, key: Key) {
        for pin in &mut self.pins {
            if pin.attachment == Some(key) {
                pin.attachment = None;
            }
        }
    }
}
