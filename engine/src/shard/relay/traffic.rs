//! Requests and the routes they go by.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::fields::{Fields, Token};
use ringway_proto::h2::{self, ErrorCode};
use ringway_proto::id::Node;
use ringway_proto::route::{self, Routed, RoutingHead};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::super::facts::{Caller, Edge, ForRelay, ForSessions, Refused, Wanted};
use super::super::table::Key;
use super::super::turn::Turn;
use super::exchange::{At, Either, Exchange, OVERLOADED, Served, Way};
use super::flow::LARGE_HEAD;
use super::heads::without_named;
use super::link::Link;
use super::memo::{InHand, KeptCall};
use super::replies::{Asked, Replies};
use super::routes::{Route, Routes};
use super::streams::{Kind, Streams};
use crate::config::{HonourId, Scope};
use crate::metrics::{Limit, Method};
use crate::net::ConnId;
use crate::pool::Segment;
use crate::timeline::Event;

/// Why a request meets no tunnel, where nothing else is known of it.
const GONE: &str = "the session's tunnel had ended when the request came";

/// Octets of a request target that the access log shows.
const LOGGED_PATH: usize = 8 * 1024;

/// Bytes that lie outside the receive memory, and are to be read as if they had just come.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) conn: ConnId,
    pub(super) segments: VecDeque<Segment>,
    /// How far the first of them is read.
    pub(super) pos: usize,
}

/// A head or trailers that cannot be relayed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwanted<'a> {
    pub(super) at: At,
    pub(super) fields: &'a Fields,
    /// The peer sends nothing behind this list.
    pub(super) ended: bool,
}

/// The key of marks: see [`super::lanes`].
struct Marks([u8; 16]);

impl std::fmt::Debug for Marks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Marks")
    }
}

impl Marks {
    /// The mark of a credential, function and version: nobody without the key can make another
    /// client's.
    fn of(&self, turn: &Turn<'_>, parts: [&[u8]; 3]) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        let shared = turn.settings.config.session.scope == Scope::Connection;
        for part in parts.into_iter().skip(usize::from(shared)) {
            hasher.write_u32(part.len() as u32);
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }
}

/// Exchanges, the routes they go by, and our own answers.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) streams: Streams,
    pub(super) routes: Routes,
    pub(super) replies: Replies,
    /// The limits that every HTTP/2 connection is held to.
    pub(super) http2: Arc<h2::Limits>,
    marks: Marks,
    pub(super) tails: Vec<Tail>,
    /// HTTP/1 connections with input that waited and may be read now.
    pub(super) unread: Vec<ConnId>,
    /// Other gateways that have said that they leave, the latest last.
    pub(super) leaving: VecDeque<Node>,
}

impl Traffic {
    pub(super) fn new(generation: u32, http2: Arc<h2::Limits>, marks: [u8; 16]) -> Self {
        Self {
            streams: Streams::new(generation),
            routes: Routes::default(),
            replies: Replies::default(),
            http2,
            marks: Marks(marks),
            tails: Vec::new(),
            unread: Vec::new(),
            leaving: VecDeque::new(),
        }
    }

    // ---- requests ----

    /// A request head: answered by us, or relayed.
    pub(super) fn request(&mut self, turn: &mut Turn<'_>, at: At, fields: &Fields, ended: bool) {
        let asked = asked(turn, at, fields, ended);
        let (replies, streams) = (&mut self.replies, &mut self.streams);
        match route::read(fields) {
            Routed::Preflight(preflight) => replies.preflight(streams, turn, &asked, &preflight),
            Routed::Health => replies.health(streams, turn, &asked, &route::reply_style(fields)),
            Routed::Info { method } => replies.info(streams, turn, &asked, method),
            Routed::Refused(fault) => {
                replies.refuse(streams, turn, &asked, (&route::reply_style(fields), &fault));
            }
            Routed::Invoke(head) if streams.hops.is_full(turn) => {
                turn.limit_hit(Limit::CoreBuffer);
                refused(turn, self.streams.hops.known(at.conn).peer, &head, &Fault::Overloaded);
                let style = (&head.style, &Fault::Overloaded);
                self.replies.refuse(&mut self.streams, turn, &asked, style);
            }
            Routed::Invoke(head) => self.invoke(turn, asked, &head, fields),
        }
    }

    /// A call of a function goes by the route that is known for it, or sessions are asked for a
    /// route.
    fn invoke(
        &mut self,
        turn: &mut Turn<'_>,
        asked: Asked,
        head: &RoutingHead<'_>,
        fields: &Fields,
    ) {
        let at = asked.at;
        let known = self.lane(turn, at.conn, head);
        let served = known.map_or(Served::Unplaced, Served::Route);
        let mut exchange = Exchange::new(at, served, turn.now);
        exchange.style = head.style.keep();
        exchange.method = asked.method;
        exchange.path = asked.path;
        exchange.up.ended = asked.ended;
        let slot = self.add_exchange(turn, exchange);
        // Fields that an HTTP/1 client's `Connection` names end here, but they were read first
        // (contract CL-28).
        let passed = match self.streams.hops.known(at.conn).link {
            Link::H1(_) => without_named(fields),
            Link::H2(_) => None,
        };
        let fields = passed.as_ref().unwrap_or(fields);
        match known {
            Some(key) => self.send_or_wait(turn, slot, key, fields),
            None => {
                if self.head_waits(turn, slot, fields) {
                    self.ask(turn, slot, head);
                }
            }
        }
    }

    /// Asks sessions where an exchange goes whose head waits.
    fn ask(&self, turn: &mut Turn<'_>, slot: u32, head: &RoutingHead<'_>) {
        let exchange = self.streams.key_at(slot);
        let of = self.streams.exchanges.at(slot).map(|exchange| exchange.client.conn);
        if let Some(hop) = of.and_then(|conn| self.streams.hops.hop(conn)) {
            let speaks = hop.link.clients();
            let (peer, opened, brought) = (hop.peer, hop.opened, hop.via.is_some());
            let caller = Caller { conn: hop.conn, peer, opened, speaks, brought };
            let wanted = Box::new(Wanted::of(head));
            turn.sessions(ForSessions::Place { exchange, from: Box::new(caller), wanted });
        }
    }

    /// Enters an exchange into the tables.
    fn add_exchange(&mut self, turn: &mut Turn<'_>, exchange: Exchange) -> u32 {
        let at = exchange.client;
        let key = self.streams.exchanges.insert(exchange);
        if let Some(hop) = self.streams.hops.hop_mut(at.conn) {
            hop.link.set_tag(at.key, key.slot);
            if let (Link::H1(h1), Some(exchange)) = (&hop.link, self.streams.exchanges.get_mut(key))
            {
                (exchange.version, exchange.upgrade) = h1.speaks();
            }
        }
        turn.metrics.active_http_requests += 1;
        key.slot
    }

    /// A request's head goes to the tunnel at once, or waits for it, or for a stream on it.
    fn send_or_wait(&mut self, turn: &mut Turn<'_>, slot: u32, key: Key, fields: &Fields) {
        let route = self.routes.get(key).expect("its lane leads there");
        let tunnel = route.tunnel.filter(|_| route.waiting == 0);
        if tunnel.is_some_and(|tunnel| self.open(turn, slot, key, tunnel)) {
            let id = self.routes.get(key).map_or([0; 36], Route::id);
            return self.streams.request_head(turn, slot, fields, &id);
        }
        if self.head_waits(turn, slot, fields) {
            self.wait(turn, slot, key);
        }
    }

    /// An exchange waits for its route's tunnel, or for a stream on it.
    fn wait(&mut self, turn: &mut Turn<'_>, slot: u32, key: Key) {
        let waiter = self.streams.key_at(slot);
        if let Some(route) = self.routes.get_mut(key) {
            route.wait(waiter);
            if route.tunnel.is_some() && self.unserved(turn, key) {
                self.wake(turn, key);
            }
        }
    }

    /// Keeps a head with its exchange. False if its connection has as many waiting as it may: then
    /// the exchange was refused.
    fn head_waits(&mut self, turn: &mut Turn<'_>, slot: u32, fields: &Fields) -> bool {
        let exchange = self.streams.exchanges.at_mut(slot).expect("the caller has just made it");
        exchange.head = Some(Box::new(fields.clone()));
        // Until the exchange is in a route's list, its end takes nothing out of that list.
        let served = std::mem::replace(&mut exchange.served, Served::Unplaced);
        let fits = self.streams.list_waits(turn, slot, Way::Up, fields.size());
        if fits {
            let exchange =
                self.streams.exchanges.at_mut(slot).expect("the caller has just made it");
            exchange.served = served;
        } else {
            self.list_refused(turn, slot, Way::Up, fields);
        }
        fits
    }

    /// Opens an exchange's stream on its route's tunnel, if the worker allows one more.
    fn open(&mut self, turn: &mut Turn<'_>, slot: u32, key: Key, tunnel: ConnId) -> bool {
        let opened = self.streams.open_stream(turn, slot, tunnel);
        if let Some((first, route)) = opened.zip(self.routes.get_mut(key)) {
            route.streams += 1;
            if first {
                let session = route.session;
                turn.edge(Edge::Note { session, at: None, event: Event::RequestSent });
            }
        }
        opened.is_some()
    }

    /// Relays a request head that repeats, if nothing has changed. None if the head has to take the
    /// long way.
    #[inline(always)]
    pub(super) fn repeat_call(
        &mut self,
        turn: &mut Turn<'_>,
        of: InHand,
        ended: bool,
    ) -> Option<()> {
        let call = self.streams.hops.hop(of.at.conn)?.call(of.list)?;
        let tunnel = self.repeats_on(turn, call)?;
        let route = call.route;
        let mut exchange = Exchange::new(of.at, Served::Route(route), turn.now);
        exchange.style = call.style.clone();
        exchange.method = call.method;
        exchange.up.ended = ended;
        let slot = self.add_exchange(turn, exchange);
        let opened = self.open(turn, slot, route, tunnel);
        debug_assert!(opened, "it could be opened a moment ago");
        self.streams.replay_call(turn, slot, of, ended);
        Some(())
    }

    /// The tunnel on which a call can be said again as it was.
    fn repeats_on(&self, turn: &Turn<'_>, call: &KeptCall) -> Option<ConnId> {
        let route = self.routes.get(call.route)?;
        let conn = route.tunnel.filter(|_| route.waiting == 0)?;
        let hop = self.streams.hops.hop(conn)?;
        let going = hop.tunnel().is_none_or(|tunnel| tunnel.going);
        let same = hop.link.encoder_generation() == call.block.generation;
        if going || !same || !hop.link.can_open() {
            return None;
        }
        Some(conn).filter(|_| !self.streams.hops.is_full(turn))
    }

    /// A response head to the client.
    pub(super) fn response(&mut self, turn: &mut Turn<'_>, at: At, fields: &Fields, kind: Kind) {
        let (slot, _) = self.streams.slot_of(at);
        let route = self.streams.exchanges.at(slot).and_then(Exchange::route);
        if let Some(route) = route.and_then(|key| self.routes.get(key)) {
            let (session, id) = (route.session, route.id());
            if self.streams.response_head(turn, (at, slot), fields, kind, &id) {
                turn.edge(Edge::Note { session, at: None, event: Event::AnswerBegun });
            }
        }
    }

    /// Trailers of either side.
    pub(super) fn trailers(&mut self, turn: &mut Turn<'_>, at: At, fields: &Fields) {
        if !self.streams.trailers(turn, at, fields) {
            let (slot, way) = self.streams.slot_of(at);
            self.list_refused(turn, slot, way, fields);
        }
    }

    // ---- what was learned ----

    /// The route by which such requests of a connection go, if it is known.
    fn lane(&self, turn: &Turn<'_>, conn: ConnId, head: &RoutingHead<'_>) -> Option<Key> {
        let client = self.streams.hops.hop(conn)?.client()?;
        if client.lanes.knows_nothing() {
            return None;
        }
        let mark = self.marks.of(turn, [head.credential, head.function, head.version]);
        let mut lanes = client.lanes.of(mark);
        let honoured = turn.settings.config.session.honour_id == HonourId::Always;
        let lane = match head.request_id {
            Some(id) if honoured || !lanes.clone().any(|lane| lane.unnamed) => lanes
                .find(|lane| self.routes.get(lane.route).is_some_and(|route| route.session == id)),
            _ => lanes.find(|lane| lane.unnamed),
        };
        lane.map(|lane| lane.route)
    }

    fn learn(
        &mut self,
        turn: &Turn<'_>,
        conn: ConnId,
        key: Key,
        (wanted, unnamed): (&Wanted, bool),
    ) {
        let call = &wanted.call;
        let mark = self.marks.of(turn, [call.credential(), call.function(), call.version()]);
        let hop = self.streams.hops.hop_mut(conn);
        if let Some(client) = hop.and_then(|hop| hop.client_mut()) {
            client.lanes.learn(mark, key, unnamed);
        }
    }

    /// Requests go by this route no more unless they are placed there anew.
    pub(super) fn unlearn(&mut self, key: Key) {
        let client = self.routes.get(key).and_then(|route| route.client);
        let hop = client.and_then(|client| self.streams.hops.hop_mut(client));
        if let Some(client) = hop.and_then(|hop| hop.client_mut()) {
            client.lanes.unlearn(key);
        }
    }

    // ---- what sessions say of exchanges ----

    /// An exchange goes by this route.
    pub(super) fn serve(
        &mut self,
        turn: &mut Turn<'_>,
        exchange: Key,
        key: Key,
        (wanted, unnamed): (&Wanted, bool),
    ) {
        let Some(of) = self.streams.exchanges.get_mut(exchange) else {
            // The exchange was given up meanwhile. If the route that was made for it serves nobody
            // else, its attachment ends.
            if self.routes.get(key).is_some_and(|r| r.waiting == 0 && r.tunnel.is_none()) {
                turn.sessions(ForSessions::Abandoned { key });
            }
            return;
        };
        let client = of.client.conn;
        let Some(route) = self.routes.get_mut(key) else {
            return self.refuse(turn, exchange, &Fault::TunnelLost(GONE));
        };
        of.served = Served::Route(key);
        route.wait(exchange);
        self.learn(turn, client, key, (wanted, unnamed));
        self.wake(turn, key);
    }

    /// An exchange that is not answered yet gets this answer.
    pub(super) fn refuse(&mut self, turn: &mut Turn<'_>, exchange: Key, fault: &Fault) {
        if let Some(of) = self.streams.remove(turn, exchange) {
            self.leave_route(turn, &of);
            self.replies.refuse_exchange(&mut self.streams, turn, of, fault);
        }
    }

    /// Ends an exchange for a reason of our own. If the client has no response head yet, it gets
    /// this fault as its answer. The streams are cancelled.
    pub(super) fn cancel(&mut self, turn: &mut Turn<'_>, exchange: Key, fault: &Fault) {
        let of = self.streams.exchanges.get(exchange).expect("the caller has just found it");
        let (status, worker) = (of.status, of.worker);
        let code = ErrorCode::Cancel;
        if status != 0 {
            // A response that has begun is given up with another code, because some clients take
            // CANCEL for its end.
            let client = Some(ErrorCode::InternalError);
            return self.streams.drop_exchange(turn, exchange.slot, client, Some(code));
        }
        if let Some(at) = worker {
            self.streams.reset(turn, at, code);
        }
        self.refuse(turn, exchange, fault);
    }

    /// Refuses everybody who waits for a route; the route stays.
    pub(super) fn refuse_waiters(&mut self, turn: &mut Turn<'_>, key: Key, fault: &Fault) {
        let route = self.routes.get_mut(key);
        for waiter in route.map(|route| std::mem::take(&mut route.waiters)).unwrap_or_default() {
            self.refuse(turn, waiter, fault);
        }
    }

    /// Requests that were not sent yet are placed as if they came now.
    pub(super) fn place_anew(&mut self, turn: &mut Turn<'_>, key: Key) {
        self.unlearn(key);
        let waiters = self.routes.get_mut(key).map(|route| {
            route.waiting = 0;
            std::mem::take(&mut route.waiters)
        });
        for waiter in waiters.unwrap_or_default() {
            let Some(exchange) = self.streams.exchanges.get_mut(waiter) else { continue };
            exchange.served = Served::Unplaced;
            let head = exchange.head.take();
            match head.as_ref().map(|head| route::read(head)) {
                Some(Routed::Invoke(head)) => self.ask(turn, waiter.slot, &head),
                // The head was a call when it came, so that it is read as one again; if not, it is
                // answered as lost.
                _ => turn.relay(ForRelay::Refuse {
                    exchange: waiter,
                    fault: Box::new(Fault::TunnelLost(GONE)),
                }),
            }
            if let Some(exchange) = self.streams.exchanges.get_mut(waiter) {
                exchange.head = head;
            }
        }
    }

    /// Requests that wait for one route wait for another one.
    pub(super) fn merge(&mut self, turn: &mut Turn<'_>, from: Key, to: Key) {
        let waiters = self.routes.get_mut(from).map(|route| {
            route.waiting = 0;
            std::mem::take(&mut route.waiters)
        });
        for waiter in waiters.unwrap_or_default() {
            let route = self.routes.get_mut(to);
            if let Some((exchange, route)) = self.streams.exchanges.get_mut(waiter).zip(route) {
                exchange.served = Served::Route(to);
                route.wait(waiter);
            }
        }
        self.wake(turn, to);
    }

    /// Sends the heads that wait, as many as the worker has streams for.
    pub(super) fn wake(&mut self, turn: &mut Turn<'_>, key: Key) {
        while let Some((id, tunnel, waiter)) = self.next_waiter(key) {
            let waits = self.streams.exchanges.get(waiter).is_some();
            if waits && !self.open(turn, waiter.slot, key, tunnel) {
                if self.unserved(turn, key) {
                    continue;
                }
                return;
            }
            if let Some(route) = self.routes.get_mut(key) {
                route.next(waits);
            }
            let of = self.streams.exchanges.get_mut(waiter);
            if let Some(head) = of.and_then(|exchange| exchange.head.take()) {
                self.streams.list_went(waiter.slot, Way::Up, head.size());
                self.streams.request_head(turn, waiter.slot, &head, &id);
            }
        }
    }

    /// The exchange that has waited longest for a route that has its tunnel. None if the client is
    /// gone: nothing is sent for it any more.
    fn next_waiter(&self, key: Key) -> Option<([u8; 36], ConnId, Key)> {
        let route = self.routes.get(key).filter(|route| route.client.is_some())?;
        let waiter = *route.waiters.first()?;
        Some((route.id(), route.tunnel?, waiter))
    }

    /// Requests wait although the route has its tunnel. Nothing may have been said on the tunnel
    /// yet, or it may take no more streams. True if a stream may be opened on it now.
    fn unserved(&mut self, turn: &mut Turn<'_>, key: Key) -> bool {
        let route = self.routes.get(key).filter(|route| route.client.is_some());
        let tunnel = route.and_then(|route| Some((route.tunnel?, route.replaced)));
        let Some((tunnel, replaced)) = tunnel else { return false };
        let hop = self.streams.hops.known(tunnel);
        if hop.link.is_unspoken() {
            self.speak(turn, key, tunnel);
            return true;
        }
        let spent = hop.link.is_spent() && !replaced;
        if let Some(tunnel) = hop.tunnel_mut().filter(|_| spent) {
            tunnel.going = true;
            turn.sessions(ForSessions::Spent { key, goaway: false });
        }
        false
    }

    // ---- heads that cannot be relayed ----

    /// Whether the connection may have this list wait, and the core has memory for it. If not, the
    /// exchange is refused here.
    #[inline]
    pub(super) fn admit_head(
        &mut self,
        turn: &mut Turn<'_>,
        at: At,
        fields: &Fields,
        ended: bool,
    ) -> bool {
        if fields.size() <= LARGE_HEAD {
            return true;
        }
        let over = self.streams.hops.large_head_over(turn, at.conn, fields.size());
        if let Some(limit) = over {
            turn.limit_hit(limit);
            let unwanted = Unwanted { at, fields, ended };
            self.turn_down(turn, unwanted, OVERLOADED);
        }
        over.is_none()
    }

    /// A head or trailers over limit L2 or L3.
    pub(super) fn head_too_large(&mut self, turn: &mut Turn<'_>, unwanted: Unwanted<'_>) {
        let most = turn.settings.config.limits.header_fields;
        let full = unwanted.fields.len() >= most;
        turn.limit_hit(if full { Limit::HeaderFields } else { Limit::HeaderBytes });
        let faults = Either { of_client: &Fault::HeadTooLarge, of_worker: &Fault::AnswerTooLarge };
        self.turn_down(turn, unwanted, faults);
    }

    /// Ends the exchange that a head or trailers belong to, by the first fault if they are the
    /// client's, by the second if they are the worker's. Nothing else on either hop is touched.
    fn turn_down(
        &mut self,
        turn: &mut Turn<'_>,
        unwanted: Unwanted<'_>,
        Either { of_client, of_worker }: Either<'_>,
    ) {
        let Unwanted { at, fields, ended } = unwanted;
        let (slot, way) = self.streams.slot_of(at);
        let key = self.streams.exchanges.key_at(slot);
        match self.streams.exchanges.at_mut(slot).zip(key) {
            None if way == Way::Up => {
                let style = route::reply_style(fields);
                let asked = asked(turn, at, fields, ended);
                self.replies.refuse(&mut self.streams, turn, &asked, (&style, of_client));
            }
            // A request's trailers, or its head.
            Some((exchange, key)) if way == Way::Up => {
                exchange.up.ended |= ended;
                if exchange.served != Served::Ourselves {
                    self.cancel(turn, key, of_client);
                } else if ended {
                    self.streams.direction_done(turn, slot, Way::Up);
                }
            }
            // Nothing of the answer has gone out, so the client can get this fault as its answer.
            Some((exchange, key)) if exchange.status == 0 => self.cancel(turn, key, of_worker),
            _ => {
                let code = Some(ErrorCode::InternalError);
                self.streams.drop_exchange(turn, slot, code, code);
            }
        }
    }

    /// A list that has just begun to wait is more than its connection may have wait: its own
    /// exchange ends.
    #[cold]
    fn list_refused(&mut self, turn: &mut Turn<'_>, slot: u32, way: Way, fields: &Fields) {
        turn.limit_hit(Limit::ConnectionBuffer);
        let exchange = self.streams.exchanges.at(slot);
        if let Some((at, ended)) = exchange.and_then(|of| Some((of.from(way)?, of.ended(way)))) {
            let unwanted = Unwanted { at, fields, ended };
            self.turn_down(turn, unwanted, OVERLOADED);
        }
    }
}

pub(super) fn asked(turn: &Turn<'_>, at: At, fields: &Fields, ended: bool) -> Asked {
    let method = Method::of(fields.first(Token::Method).unwrap_or_default());
    let logged = turn.settings.config.log.access;
    let path = fields.first(Token::Path).filter(|_| logged);
    let path = path.map(|path| Box::from(&path[..path.len().min(LOGGED_PATH)]));
    Asked { at, method, path, ended, began: turn.now }
}

/// A request that gets no session.
fn refused(turn: &mut Turn<'_>, client: SocketAddr, head: &RoutingHead<'_>, fault: &Fault) {
    turn.edge(Edge::Refused(Box::new(Refused {
        fault: fault.clone(),
        client,
        function: head.function.into(),
        version: head.version.into(),
        tenant: "".into(),
    })));
}
