//! What one core owns: its connections, sessions, attachments and exchanges. Pure: bytes and
//! facts come in through [`Core`], segments and rare wishes go out through the [`Border`].
//!
//! A request's way: [`client`] reads its head, [`attach`] finds or makes the session's attachment,
//! [`worker`] lets the worker's CONNECT in, [`relay`] moves frames between the two hops, [`close`]
//! ends whatever ends, [`reply`] speaks where the worker cannot.

mod admit;
mod attach;
mod bucket;
mod client;
mod close;
mod conn;
mod dial;
mod dispatch;
mod drain;
mod exchange;
mod give_way;
mod h2c;
mod home;
mod http1;
mod http1_end;
mod http1_link;
mod large;
mod link;
mod mail;
mod memo;
mod moving;
mod park;
mod pending;
mod pings;
mod relay;
mod reply;
mod restart;
mod resume;
mod run;
mod session;
mod settings;
mod snapshot;
mod spare;
mod table;
mod timer;
mod trail;
mod watch;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::fields::Fields;
use ringway_proto::h2::{self, ConnFault, Event, HeadKind, LimitId};
use ringway_proto::id::{RequestIds, TokenMint};
use ringway_proto::time::Time;

use self::attach::Attachment;
use self::close::Cause;
use self::conn::{Conn, Conns, Fresh, Hop, Leaving, Plain};
use self::dial::Dials;
use self::drain::Draining;
use self::exchange::{At, Exchange};
use self::give_way::Yard;
use self::large::Unwanted;
use self::link::Link;
use self::mail::Outbox;
use self::memo::InHand;
use self::park::{Gone, Lot};
use self::pending::Pending;
use self::relay::{OUTPUT_FULL, Piece};
use self::reply::Reply;
use self::session::Sessions;
pub use self::settings::ShardSettings;
use self::table::{Key, Table};
use self::timer::{Due, Timers};
use self::trail::Trails;
use crate::border::{Border, Close, ConnId, Core, End, Listener, Parcel};
use crate::control::local::{Dispatch, DispatchLimits, Policy, PollAnswer, PollId};
use crate::metrics::{Limit, ShardMetrics};
use crate::pool::Segment;
use crate::post::{ControlPost, CorePost, ShardPost, Snapshot};

/// Output below which a hop that was full lets its sources read again.
const OUTPUT_LOW: usize = OUTPUT_FULL / 2;

/// One core's state.
#[derive(Debug)]
pub struct Shard {
    settings: ShardSettings,
    policy: Arc<Policy>,
    /// What every HTTP/2 connection is held to.
    http2: Arc<h2::Limits>,
    /// How often the policy was replaced.
    rules: u32,
    now: Time,
    conns: Conns,
    sessions: Sessions,
    attachments: Table<Attachment>,
    /// Those whose client is gone.
    lot: Lot,
    /// Those of all cores that are in the way of this core's queues.
    yard: Yard,
    /// Connections to functions' servers that are not there yet.
    dials: Dials,
    exchanges: Table<Exchange>,
    timers: Timers,
    trails: Trails,
    metrics: ShardMetrics,
    local: Dispatch,
    request_ids: RequestIds,
    tokens: TokenMint,
    rng: ChaCha12Rng,
    hasher: foldhash::fast::RandomState,
    /// DATA bytes that wait in pipes.
    held: usize,
    /// Bytes of large heads that are not whole yet: of clients, and of tunnels.
    parts: [usize; 2],
    /// Attachments that wait for their worker.
    pending: Pending,
    /// Streams without progress are being looked for.
    sweeping: bool,
    /// Attachments made in this turn, and spares.
    fresh: Vec<Key>,
    fresh_spares: Vec<Key>,
    draining: Option<Draining>,
    /// A drain is not over while this is set, but for its limit.
    stays: bool,
    /// `/health` says so already.
    unready: bool,
    finished: bool,
    /// HTTP/1 connections with input that waited and may be read now.
    unread: Vec<ConnId>,
    /// Streams of bytes whose clients ended them in this turn.
    parting: Vec<Key>,
    /// The list being relayed, if its connection keeps it.
    in_hand: Option<InHand>,
    /// Memory used again and again: the list heads are decoded into, the answer being made, what
    /// a connection has to say for itself while it reads, the dispatch's answers.
    fields: Fields,
    reply: Reply,
    answers: Vec<u8>,
    block: Vec<u8>,
    poll_answers: Vec<(PollId, PollAnswer)>,
    /// Messages for the control thread.
    posts: Vec<ControlPost>,
    /// Messages for other cores, and those that found no room.
    core_posts: Vec<(u16, CorePost)>,
    outbox: Outbox,
    /// Attachments that wait for another core's answer.
    asking: usize,
    /// Rounds of polls so far (see [`PollId`]).
    rounds: u64,
    /// Other cores that drain and have no client left, and whether they were told so of this one.
    idle: Vec<u16>,
    told_idle: bool,
}

impl Shard {
    /// A core's state with no connection.
    #[must_use]
    pub fn new(settings: ShardSettings, policy: Arc<Policy>) -> Self {
        let limits = &settings.config.limits;
        let local = Dispatch::new(DispatchLimits { queue: limits.work_queue, polls: limits.polls });
        let trails = Trails::new(limits.trace_records);
        let generation = settings.generation;
        Self {
            request_ids: RequestIds::new(settings.node, settings.incarnation, settings.core),
            tokens: TokenMint::new(settings.secret, settings.node, settings.incarnation),
            rng: ChaCha12Rng::from_seed(settings.seed),
            http2: Arc::new(settings.http2()),
            settings,
            policy,
            rules: 0,
            now: Time::ZERO,
            conns: Conns::default(),
            sessions: Sessions::default(),
            attachments: Table::new(generation),
            lot: Lot::default(),
            yard: Yard::default(),
            dials: Dials::new(),
            exchanges: Table::new(generation),
            timers: Timers::default(),
            trails,
            metrics: ShardMetrics::default(),
            local,
            hasher: foldhash::fast::RandomState::default(),
            held: 0,
            parts: [0; 2],
            pending: Pending::default(),
            sweeping: false,
            fresh: Vec::new(),
            fresh_spares: Vec::new(),
            draining: None,
            stays: false,
            unready: false,
            finished: false,
            unread: Vec::new(),
            parting: Vec::new(),
            in_hand: None,
            fields: Fields::new(),
            reply: Reply::default(),
            answers: Vec::new(),
            block: Vec::new(),
            poll_answers: Vec::new(),
            posts: Vec::new(),
            core_posts: Vec::new(),
            outbox: Outbox::default(),
            asking: 0,
            // Those of a dead shard in whose place this one is are never met again.
            rounds: u64::from(generation) << 32,
            idle: Vec::new(),
            told_idle: false,
        }
    }

    /// The messages for the control thread since the last call.
    pub fn take_posts(&mut self, into: &mut Vec<ControlPost>) {
        into.append(&mut self.posts);
    }

    /// Whether a drain goes on although this core has no client any more: others may need it.
    pub fn stay(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// Lets the stream ids of new tunnels run out early, for tests.
    pub fn end_stream_ids_at(&mut self, last: u32) {
        Arc::make_mut(&mut self.http2).last_own_id = last;
    }

    /// The core's counters, for tests and the simulated world.
    #[must_use]
    pub fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    /// Whether no connection, session, exchange or queued work is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conns.len() == 0
            && self.sessions.len() == 0
            && self.attachments.len() == 0
            && self.dials.is_empty()
            && self.exchanges.len() == 0
            && self.lot.len() == 0
            && self.yard.is_empty()
            && self.local.is_empty()
            && self.held == 0
            && self.parts == [0; 2]
            && self.pending.is_empty()
            && self.asking == 0
            && self.core_posts.is_empty()
            && self.outbox.is_empty()
    }

    fn random_bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn random_u64(&mut self) -> u64 {
        self.rng.next_u64()
    }

    fn received_on_hop(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        match self.conns.hop(conn).map(|hop| &hop.link) {
            Some(Link::H2(_)) => self.hop_received(border, conn, segment),
            Some(Link::H1(_)) => self.http1_received(border, conn, segment),
            None => {}
        }
    }

    /// Bytes of an HTTP/2 connection, where they were received.
    fn hop_received(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        let mut pos = 0;
        loop {
            self.run(border, conn, segment, &mut pos);
            let Some(hop) = self.conns.hop_mut(conn) else { return };
            let input = border.pool.bytes(segment);
            let Link::H2(h2) = &mut hop.link else { return };
            let event = h2.next(input, &mut pos, &mut self.fields, &mut self.answers, border.now);
            if !self.answers.is_empty() {
                border.put(conn, &self.answers);
                self.answers.clear();
            }
            match event {
                Ok(Event::More) => break,
                Ok(event) => self.event(border, conn, Some(segment), event),
                Err(fault) => return self.fail(border, conn, fault),
            }
        }
        self.after_input(border, conn);
    }

    /// Bytes that are known without having been received again: the begin of the HTTP/2 magic.
    fn feed_bytes(&mut self, border: &mut Border, conn: ConnId, bytes: &[u8]) {
        let mut pos = 0;
        match self.conns.hop_mut(conn).map(|hop| &mut hop.link) {
            Some(Link::H2(h2)) => {
                let (fields, answers) = (&mut self.fields, &mut self.answers);
                if let Err(fault) = h2.next(bytes, &mut pos, fields, answers, border.now) {
                    self.fail(border, conn, fault);
                }
            }
            Some(Link::H1(h1)) => {
                // Part of a request line at most.
                if let Err(fault) = h1.codec.next(bytes, &mut pos, &mut self.fields) {
                    self.http1_fault(border, conn, fault);
                }
            }
            None => {}
        }
    }

    fn event(&mut self, border: &mut Border, conn: ConnId, input: Option<Segment>, event: Event) {
        match event {
            Event::More => {}
            Event::Head { key, kind, end_stream, list, repeated } => {
                let at = At { conn, key };
                let in_hand = list.map(|list| InHand { at, kind, list });
                if repeated && in_hand.is_some_and(|of| self.repeat(border, of, end_stream)) {
                    return;
                }
                if let (true, Some(list), Some(hop)) = (repeated, list, self.conns.hop(conn)) {
                    hop.link.recall(list, &mut self.fields);
                }
                if !repeated && !self.admit_head(border, at, end_stream) {
                    return;
                }
                self.in_hand = in_hand;
                let fields = std::mem::take(&mut self.fields);
                match kind {
                    HeadKind::Request => self.request(border, at, &fields, end_stream),
                    HeadKind::Informational => {
                        self.response_head(border, at, &fields, (true, false));
                    }
                    HeadKind::Response => {
                        self.response_head(border, at, &fields, (false, end_stream));
                    }
                    HeadKind::Trailers => self.trailers(border, at, &fields),
                }
                self.fields = fields;
                self.in_hand = None;
            }
            Event::HeadTooLarge { key, end_stream } => {
                let fields = std::mem::take(&mut self.fields);
                let at = At { conn, key };
                let unwanted = Unwanted { at, fields: &fields, ended: end_stream };
                self.head_too_large(border, unwanted);
                self.fields = fields;
            }
            Event::Data { key, start, len, head_in_place, end_stream } => {
                let input = input.expect("DATA comes out of received bytes");
                let payload = input.part(start, len);
                let at = At { conn, key };
                self.data(border, Piece { at, payload, head_in_place, end: end_stream });
            }
            Event::Reset { tag, code, .. } => self.stream_reset(border, conn, tag, code),
            Event::Window(None) => self.pump(border, conn),
            Event::Window(Some(key)) => {
                if let Some(hop) = self.conns.hop(conn) {
                    let (slot, way) = (hop.link.tag(key), hop.way_out());
                    self.schedule(border, slot, way);
                }
            }
            Event::Settings => self.peer_settings(border, conn),
            Event::Goaway { last, code } => {
                self.client_goaway(conn, code);
                self.worker_goaway(border, conn, last);
            }
            Event::Pong(payload) => {
                if payload == watch::DRAIN_PING {
                    self.last_goaway_if_warned(border, conn);
                } else if payload == watch::ALIVE_PING {
                    self.note_ping(conn);
                }
            }
        }
    }

    fn last_goaway_if_warned(&mut self, border: &mut Border, conn: ConnId) {
        let client = self.conns.hop(conn).and_then(Hop::client);
        if client.is_some_and(|client| matches!(client.leaving, Leaving::Warned { .. })) {
            self.last_goaway(border, conn);
        }
    }

    /// New windows or a new stream limit: everything that waits for this hop may go on.
    fn peer_settings(&mut self, border: &mut Border, conn: ConnId) {
        let Some(hop) = self.conns.hop(conn) else { return };
        let way = hop.way_out();
        let attachment = hop.tunnel().map(|tunnel| tunnel.attachment);
        let slots = hop.link.tags();
        for slot in slots {
            self.schedule(border, slot, way);
        }
        self.pump(border, conn);
        if let Some(key) = attachment {
            self.serve_waiters(border, key);
        }
    }

    /// After one receive: liveness, limits that stop reading, timers.
    fn after_input(&mut self, border: &mut Border, conn: ConnId) {
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        hop.received_at = border.now;
        hop.answered();
        let unread = hop.link.wants_pause();
        let weary = hop.link.glitches_high();
        let partial = hop.partial as usize != hop.link.partial();
        if unread || border.queued(conn) > OUTPUT_FULL {
            self.stop_reading(border, conn, conn);
        }
        if weary {
            self.warn(border, conn);
        }
        if partial {
            self.count_partial(border, conn);
        }
        self.watch(conn);
    }

    /// Stops reading from `source` until the output of `full` has drained.
    fn stop_reading(&mut self, border: &mut Border, source: ConnId, full: ConnId) {
        let Some(hop) = self.conns.hop_mut(full) else { return };
        if hop.stopped.contains(&source) {
            return;
        }
        hop.stopped.push(source);
        if let Some(hop) = self.conns.hop_mut(source) {
            hop.waits += 1;
            border.pause(source, true);
        }
    }

    /// Lets hops read again that waited for another one's output.
    fn resume(&mut self, border: &mut Border, stopped: Vec<ConnId>) {
        for source in stopped {
            if let Some(hop) = self.conns.hop_mut(source) {
                hop.waits -= 1;
                border.pause(source, hop.waits > 0);
                if hop.waits == 0 {
                    // What it said meanwhile is read now: only from here on is it silent.
                    hop.read_again(border.now);
                    self.watch(source);
                }
            }
        }
    }

    /// The peer broke a rule that ends the connection: GOAWAY, then the end.
    fn fail(&mut self, border: &mut Border, conn: ConnId, fault: ConnFault) {
        if let Some(limit) = fault.limit {
            self.metrics.limit_hit(limit_of(limit));
        }
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let last = hop.link.highest_peer_stream();
        let reason = fault.reason.as_bytes();
        hop.link.goaway(last, fault.code, reason, &mut border.sink(conn));
        let tunnel = hop.tunnel().is_some();
        crate::log::connection_failed(hop.peer, tunnel, &fault, self.settings.core);
        border.close(conn, Close::Flush);
        if tunnel {
            let http1 = fault == ConnFault::SPEAKS_HTTP1;
            let cause = if http1 { Cause::SPEAKS_HTTP1 } else { Cause::BROKEN };
            self.tunnel_gone(border, conn, cause);
        } else {
            // Who broke the protocol has no use for its sessions; who was too busy may.
            let how = match fault.code {
                h2::ErrorCode::EnhanceYourCalm => Gone::ToldOff,
                _ => Gone::ByUs(Cause::CLIENT_GONE),
            };
            self.client_gone(border, conn, how);
        }
    }

    fn fire(&mut self, border: &mut Border, due: Due) {
        match due {
            Due::Conn { slot, generation } => self.look_at(border, ConnId { slot, generation }),
            Due::Wait(key) => self.waited(border, key),
            Due::Replace(key) => self.replace_overdue(border, key),
            Due::Finish(key) => self.finish_raw(border, key),
            Due::Recall(key) => self.recall(border, key),
            Due::Crumb(key) => self.allow_crumbs(border, key),
            Due::Sweep => self.sweep(border),
            Due::Answered(key) => self.answered_too_long(border, key),
            Due::Yield => self.look_at_queues(border),
            Due::Drain => self.end_all(border, Close::Flush),
        }
    }
}

impl Core for Shard {
    type Post = ShardPost;

    fn accepted(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        listener: Listener,
        peer: SocketAddr,
    ) {
        self.now = border.now;
        let limits = &self.settings.config.limits;
        let clients = self.metrics.active_connections as usize;
        let others = self.conns.len().saturating_sub(clients);
        let (limit, full) = match listener {
            Listener::Client => (Limit::ClientConnections, clients >= limits.client_connections),
            Listener::Worker => (Limit::WorkerConnections, others >= limits.worker_connections),
        };
        if full {
            self.metrics.limit_hit(limit);
            border.close(conn, Close::Now);
            return;
        }
        let entry = match listener {
            Listener::Client => {
                self.metrics.active_connections += 1;
                self.metrics.client_connections_opened += 1;
                Conn::Fresh(Box::new(Fresh { peer, opened: border.now, magic: 0 }))
            }
            Listener::Worker => Conn::Door(Box::new(Plain::new(peer, border.now))),
        };
        self.conns.insert(conn, entry);
        self.watch(conn);
    }

    fn dialled(&mut self, border: &mut Border, conn: ConnId, result: Result<(), i32>) {
        self.now = border.now;
        self.dial_ended(border, conn, result);
    }

    fn received(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        self.now = border.now;
        match self.conns.get(conn) {
            Some(Conn::Hop(_)) => self.received_on_hop(border, conn, segment),
            Some(Conn::Fresh(_)) => self.detect_client(border, conn, segment),
            Some(Conn::Door(_)) => self.door_received(border, conn, segment),
            None => {}
        }
    }

    fn addressed(&mut self, _border: &mut Border, conn: ConnId, peer: SocketAddr) {
        match self.conns.get_mut(conn) {
            Some(Conn::Hop(hop)) => hop.peer = peer,
            Some(Conn::Fresh(fresh)) => fresh.peer = peer,
            Some(Conn::Door(plain)) => plain.peer = peer,
            None => {}
        }
    }

    fn ended(&mut self, border: &mut Border, conn: ConnId, end: End) {
        self.now = border.now;
        match self.conns.get(conn) {
            Some(Conn::Hop(hop)) if matches!(hop.link, Link::H1(_)) => {
                self.http1_ended(border, conn, end);
            }
            Some(Conn::Hop(hop)) if hop.tunnel().is_some() => {
                self.tunnel_gone(border, conn, Cause::ended(end));
            }
            Some(Conn::Hop(_)) => {
                self.client_gone(border, conn, Gone::Ended(end));
                border.close(conn, Close::Flush);
            }
            Some(Conn::Fresh(_)) => {
                self.plain_gone(border, conn);
                border.close(conn, Close::Flush);
            }
            Some(Conn::Door(_)) => {
                self.door_gone(border, conn, end);
                border.close(conn, Close::Flush);
            }
            None => {}
        }
    }

    fn written(&mut self, border: &mut Border, conn: ConnId, _bytes: usize) {
        self.now = border.now;
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let left = border.queued(conn);
        if left == 0 {
            hop.link.set_answers_backlog(0);
        }
        if left < OUTPUT_LOW && !hop.stopped.is_empty() {
            hop.link.set_answers_backlog(0);
            let stopped = std::mem::take(&mut hop.stopped);
            self.resume(border, stopped);
        }
        if self.conns.hop(conn).is_some_and(|hop| !hop.ready.is_empty()) {
            self.pump(border, conn);
        }
    }

    fn awaits(&self, conn: ConnId) -> bool {
        self.conns.hop(conn).is_some_and(|hop| !hop.stopped.is_empty() || !hop.ready.is_empty())
    }

    fn posted(&mut self, border: &mut Border, post: ShardPost) {
        self.now = border.now;
        match post {
            ShardPost::Snapshot { ticket } => {
                let snapshot: Box<Snapshot> = Box::new(self.snapshot(border));
                let core = self.settings.core;
                self.posts.push(ControlPost::Snapshot { ticket, core, snapshot });
            }
            ShardPost::Trail { ticket, wanted } => {
                let parts = self.trail(wanted);
                self.posts.push(ControlPost::Trail { ticket, parts });
            }
            ShardPost::Policy(policy) => self.replace_policy(policy),
            ShardPost::Unready => self.unready = true,
            ShardPost::Drain { max } => self.drain(border, max),
            ShardPost::End { id } => self.end_session(border, id),
            ShardPost::Stop => self.end_all(border, Close::Now),
            ShardPost::Core(post) => self.core_posted(border, post),
            ShardPost::Restarted { core } => self.restarted(border, core),
            ShardPost::Client { parcel, peer } => {
                let conn = border.admit(parcel, Listener::Client);
                self.accepted(border, conn, Listener::Client, peer);
            }
        }
    }

    fn detached(&mut self, border: &mut Border, conn: ConnId, parcel: Parcel) {
        self.now = border.now;
        self.let_go_of(border, conn, parcel);
    }

    fn turn(&mut self, border: &mut Border) {
        self.now = border.now;
        if !self.outbox.is_empty() {
            self.retry_mail(border);
        }
        while let Some(due) = self.timers.pop(border.now) {
            self.fire(border, due);
        }
        while let Some(conn) = self.unread.pop() {
            self.http1_unread(border, conn);
        }
        if !self.parting.is_empty() {
            self.part_clients(border);
        }
        if self.local.deadline().is_some_and(|at| at <= border.now) {
            self.local.turn(border.now);
            self.answer_polls(border);
        }
        if !self.fresh.is_empty() || !self.fresh_spares.is_empty() {
            self.launch(border);
        }
        if self.held == 0 {
            border.end_stash();
        }
        if self.draining.is_some() {
            self.drain_turn(border);
        }
    }

    fn relieve(&mut self, border: &mut Border) {
        for exchange in self.exchanges.values_mut() {
            border.copy_out_of(&mut exchange.up.queue);
            border.copy_out_of(&mut exchange.down.queue);
        }
    }

    fn deadline(&self) -> Option<Time> {
        if !self.unread.is_empty() || !self.parting.is_empty() {
            return Some(self.now);
        }
        let due = [self.timers.next(), self.local.deadline(), self.outbox.deadline()];
        let over = self.draining == Some(Draining::Open) && self.all_are_idle();
        due.into_iter().flatten().chain(over.then_some(self.now)).min()
    }

    fn finished(&self) -> bool {
        self.finished
    }
}

/// Which metric a connection's limit is.
fn limit_of(limit: LimitId) -> Limit {
    match limit {
        LimitId::L1 => Limit::Streams,
        LimitId::L2 => Limit::HeaderBytes,
        LimitId::L3 => Limit::HeaderBlock,
        LimitId::L4 => Limit::HpackTable,
        LimitId::L5 => Limit::Glitches,
        LimitId::L6 => Limit::QueuedAnswers,
        LimitId::L7 => Limit::EmptyData,
        LimitId::L8 => Limit::WindowUpdates,
        LimitId::L9 => Limit::StreamWindow,
        LimitId::L10 => Limit::Handshake,
    }
}
