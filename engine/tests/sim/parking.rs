//! Judges what becomes of sessions whose clients are lost, from what the far ends and the sockets
//! show. May the gateway close a session's last tunnel? May it answer that a session is not there?
//! Which request must be served by a tunnel that waits for it?

use std::collections::BTreeMap;
use std::time::Duration;

use ringway::config::{Park, SessionSettings};
use ringway_proto::time::Time;

use super::journal::note;
use super::ledger::{Exchange, Named, Work};
use super::plan::{Plan, Returns, streams};

/// The longest time until all cores know of an event.
const HEARSAY: Duration = Duration::from_millis(50);
/// The same where cores pause.
const SLOW_HEARSAY: Duration = Duration::from_secs(2);

/// A tunnel may be closed for being silent this long.
const SILENCE: Duration = Duration::from_secs(10);

/// The most clients that come back in one run.
const RETURNS: usize = 16;

/// Whether the gateway must keep a tunnel whose client is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Kept,
    Closed,
    /// The gateway may do either: it is not known here what it had seen by then.
    Unknown,
}

/// How a client ended its connection, as the client knows it.
#[derive(Clone, Debug)]
pub(crate) struct Farewell {
    /// The client ended by FIN, not by RST or a timeout.
    pub(crate) fin: bool,
    /// The client had said that no more requests come.
    pub(crate) said: bool,
    /// The gateway had said that it takes no more requests.
    pub(crate) told: bool,
    pub(crate) http1: bool,
    /// Exchanges of which the client had not seen the end.
    pub(crate) open: Vec<usize>,
}

#[derive(Debug, Default)]
struct Client {
    farewell: Option<Farewell>,
    /// When the gateway was first seen without a connection to the client.
    lost: Option<Time>,
    /// The gateway may have ended the connection itself: no core was told of an end.
    by_gateway: bool,
}

#[derive(Debug)]
struct Tunnel {
    session: String,
    version: String,
    /// The work was a reconnect: the session had a tunnel before.
    again: bool,
    /// When the worker read that its CONNECT was accepted.
    since: Option<Time>,
    /// The client whose request came last.
    client: Option<usize>,
    http1: bool,
    /// When the worker last sent something for a request.
    active: Time,
    /// The gateway is not to blame if the tunnel ends: its worker has ended it or announced that,
    /// its stream ids may be used up, or a gateway failed.
    left: bool,
    /// The tunnel can carry no other client's requests.
    used_up: bool,
    /// How many requests the tunnel has served.
    served: u32,
    /// When the client was lost, if the gateway must keep the tunnel.
    kept: Option<Time>,
    /// The client was lost, and the gateway must close the tunnel.
    must_go: bool,
    /// The gateway has no such connection any more.
    gone: bool,
    /// When that was seen first.
    ended: Option<Time>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The session was without a tunnel for a moment since its first one.
    gap: bool,
    /// An operator has ended the session.
    deleted: bool,
    /// When a tunnel of the session was last closed.
    closed: Option<Time>,
    /// When a spare of the session may have been parked: a tunnel opened, closed or lost its
    /// client.
    moments: Vec<Time>,
}

/// The rules of this run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    park: Park,
    window: Duration,
    wait: Duration,
    hearsay: Duration,
    /// The limit on a tunnel's idle time is so short that it may explain every closing.
    restless: bool,
    /// Workers lose work.
    sloppy: bool,
    /// The last stream id of a tunnel.
    last_id: Option<u32>,
    /// There are several gateways. What one gateway's sockets show happened earlier at another one.
    far: bool,
}

impl Terms {
    pub(crate) fn new(session: &SessionSettings, returns: &Returns, plan: &Plan) -> Self {
        let far = plan.many.is_some();
        let hearsay = match plan.cores {
            _ if far && plan.pauses == 0 => {
                HEARSAY * 2 + Duration::from_micros(10 * plan.delay.1 as u64)
            }
            _ if far => SLOW_HEARSAY,
            1 => Duration::ZERO,
            _ if plan.pauses == 0 && returns.pauses == 0 => HEARSAY,
            _ => SLOW_HEARSAY,
        };
        Self {
            park: session.park,
            window: session.park_window,
            wait: session.wait,
            hearsay,
            restless: session.idle < SILENCE,
            sloppy: plan.sloppy > 0,
            last_id: plan.last_id,
            far,
        }
    }
}

/// Why the gateway may close a session's last tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// There is a reason that can be seen from here.
    Known,
    /// Only two reasons are left: a limit on parked tunnels, or new work that needed the worker.
    /// The gateway counts both.
    Forced,
}

#[derive(Debug, Default)]
pub(crate) struct Parking {
    /// `None` if nothing is judged in this run.
    pub(crate) terms: Option<Terms>,
    clients: BTreeMap<usize, Client>,
    tunnels: BTreeMap<usize, Tunnel>,
    sessions: BTreeMap<String, Kept>,
    crashed: Option<Time>,
    draining: bool,
    returned: usize,
    /// How many last tunnels of sessions were closed with [`Why::Forced`].
    pub(crate) forced: u64,
    /// How often a tunnel served another client than before.
    pub(crate) resumed: usize,
    /// How often a client got the very tunnel that it had to get.
    pub(crate) expected: usize,
}

impl Parking {
    // ---- what happens ----

    pub(crate) fn client_comes(&mut self, link: usize) {
        self.clients.insert(link, Client::default());
    }

    pub(crate) fn client_leaves(&mut self, link: usize, farewell: Farewell) {
        if let Some(client) = self.clients.get_mut(&link) {
            client.farewell.get_or_insert(farewell);
        }
    }

    fn is_far(&self) -> bool {
        self.terms.is_some_and(|terms| terms.far)
    }

    /// The tunnels that `hit` names may be lost, or another one may take their place.
    pub(crate) fn struck(&mut self, hit: impl Fn(usize) -> bool, exchanges: &mut [Exchange]) {
        for (link, tunnel) in self.tunnels.iter_mut().filter(|(link, _)| hit(**link)) {
            tunnel.left = true;
            expect_no_more(exchanges, *link);
        }
    }

    /// Counts a client that wants to come back. True if it may.
    pub(crate) fn may_return(&mut self) -> bool {
        self.returned += 1;
        self.returned <= RETURNS
    }

    pub(crate) fn tunnel_comes(&mut self, link: usize, work: &Work) {
        let tunnel = Tunnel {
            session: work.id.clone(),
            version: work.version.clone(),
            again: work.kind == "reconnect",
            since: None,
            client: None,
            http1: false,
            active: Time::ZERO,
            left: false,
            used_up: false,
            served: 0,
            kept: None,
            must_go: false,
            gone: false,
            ended: None,
        };
        self.tunnels.insert(link, tunnel);
    }

    pub(crate) fn tunnel_opens(&mut self, link: usize, now: Time) {
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        tunnel.since = Some(now);
        self.sessions.entry(tunnel.session.clone()).or_default().moments.push(now);
    }

    /// The worker has ended a tunnel, or will.
    pub(crate) fn tunnel_left(&mut self, link: usize, exchanges: &mut [Exchange]) {
        if let Some(tunnel) = self.tunnels.get_mut(&link) {
            tunnel.left = true;
        }
        expect_no_more(exchanges, link);
    }

    /// A worker has sent something for a request.
    pub(crate) fn tunnel_works(&mut self, link: usize, now: Time) {
        if let Some(tunnel) = self.tunnels.get_mut(&link) {
            tunnel.active = now;
        }
    }

    /// A request has come to a worker. If the tunnel was another client's before, that client must
    /// be gone and the new one must have asked for the session.
    pub(crate) fn tunnel_serves(
        &mut self,
        link: usize,
        number: usize,
        exchanges: &mut [Exchange],
        (http1, now): (bool, Time),
    ) {
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        let exchange = &mut exchanges[number];
        if let Some(expected) = exchange.expects.take() {
            assert_eq!(
                expected, link,
                "exchange {number}: its tunnel was there, and it got another"
            );
            self.expected += 1;
        }
        (tunnel.http1, tunnel.active) = (http1, now);
        tunnel.served += 1;
        let before = tunnel.client.replace(exchange.client);
        let Some(before) = before.filter(|before| *before != exchange.client) else { return };
        tunnel.kept = None;
        self.resumed += 1;
        let lost = self.clients.get(&before).is_some_and(|client| client.lost.is_some());
        assert!(lost, "exchange {number}: the tunnel of client {before}, which is there");
        let (id, client) = (&tunnel.session, exchange.client);
        let named = exchanges.iter().any(|other| other.client == client && other.names(id));
        assert!(named, "exchange {number}: a session that its client has not asked for");
    }

    /// Whether the stream ids of a tunnel may be used up. Some requests of its client may still be
    /// on their way to the worker. Others may have been taken back before the worker saw whose they
    /// were.
    fn is_spent(&self, link: usize, exchanges: &[Exchange]) -> bool {
        let Some(last) = self.terms.and_then(|terms| terms.last_id) else { return false };
        let Some(tunnel) = self.tunnels.get(&link).filter(|tunnel| !tunnel.http1) else {
            return false;
        };
        let seen = exchanges.iter().find(|exchange| exchange.tunnel == Some(link));
        let unseen = |other: &&Exchange| {
            let comes = other.names(&tunnel.session) || other.named == Named::Nothing;
            let own = tunnel.client == Some(other.client) && other.tunnel.is_none();
            let refused = other.outcome == Some("answered by the gateway");
            comes && own && !refused && seen.is_some_and(|seen| seen.function == other.function)
        };
        let unseen = exchanges.iter().filter(unseen).count() as u32;
        tunnel.served + unseen + 3 > last / 2
    }

    /// A tunnel can carry no other client's requests.
    pub(crate) fn tunnel_used_up(&mut self, link: usize) {
        if let Some(tunnel) = self.tunnels.get_mut(&link) {
            tunnel.used_up = true;
        }
    }

    pub(crate) fn deleted(&mut self, id: &str, exchanges: &mut [Exchange]) -> Vec<usize> {
        self.sessions.entry(id.to_owned()).or_default().deleted = true;
        for number in 0..exchanges.len() {
            exchanges[number].excuse |= self.met_its_end(exchanges[number].client, exchanges);
        }
        let of_session = self.tunnels.iter().filter(|(_, tunnel)| tunnel.session == id);
        let links: Vec<usize> = of_session.map(|(link, _)| *link).collect();
        links.iter().for_each(|link| expect_no_more(exchanges, *link));
        for exchange in exchanges.iter_mut() {
            exchange.excuse |= exchange.tunnel.is_some_and(|link| links.contains(&link));
        }
        links
    }

    /// Whether a client has asked for a session that an operator has ended. Other requests of that
    /// client may wait for the session without naming it.
    pub(crate) fn met_its_end(&self, client: usize, exchanges: &[Exchange]) -> bool {
        let mut ended = self.sessions.iter().filter(|(_, session)| session.deleted);
        let asked = |id: &str| exchanges.iter().any(|e| e.client == client && e.names(id));
        ended.any(|(id, _)| asked(id))
    }

    pub(crate) fn unsettled(&mut self, drain: bool, now: Time, exchanges: &mut [Exchange]) {
        self.draining |= drain;
        if !drain {
            self.crashed = Some(now);
        }
        exchanges.iter_mut().for_each(|exchange| exchange.expects = None);
    }

    // ---- what is seen of the sockets ----

    /// The clients and tunnels to which the gateway had connections at the last look.
    pub(crate) fn watched(&self) -> (Vec<usize>, Vec<usize>) {
        let clients = self.clients.iter().filter(|(_, client)| client.lost.is_none());
        let tunnels = self.tunnels.iter().filter(|(_, tunnel)| !tunnel.gone);
        (clients.map(|(link, _)| *link).collect(), tunnels.map(|(link, _)| *link).collect())
    }

    /// The gateway has no connection to a client any more.
    pub(crate) fn client_lost(
        &mut self,
        link: usize,
        (by_gateway, now): (bool, Time),
        exchanges: &[Exchange],
    ) {
        let Some(client) = self.clients.get_mut(&link) else { return };
        client.lost = Some(now);
        client.by_gateway = by_gateway;
        let far = self.is_far();
        let links: Vec<usize> = self.tunnels.keys().copied().collect();
        for tunnel in links {
            let verdict = self.verdict(link, tunnel, exchanges);
            let spent = self.is_spent(tunnel, exchanges);
            let busy = self.clients[&link].farewell.as_ref().is_some_and(|f| !f.open.is_empty());
            let Some(entry) = self.tunnels.get_mut(&tunnel) else { continue };
            if entry.client == Some(link) && !entry.gone {
                entry.used_up |= entry.http1 && busy;
                entry.left |= spent;
                let stays = entry.left || entry.since.is_none();
                entry.must_go = verdict == Verdict::Closed && !stays && !far;
                entry.kept = (verdict == Verdict::Kept).then_some(now);
                if entry.kept.is_some() {
                    self.sessions.entry(entry.session.clone()).or_default().moments.push(now);
                    note("tunnel", tunnel, "is kept, its client was", [link as u64, 0]);
                }
            }
        }
    }

    /// What the rules say of a tunnel when this client is lost.
    fn verdict(&self, client: usize, tunnel: usize, exchanges: &[Exchange]) -> Verdict {
        let Some(terms) = self.terms else { return Verdict::Unknown };
        let of = self.clients.get(&client);
        let Some(of) = of.filter(|of| !of.by_gateway && !self.draining) else {
            return Verdict::Unknown;
        };
        let farewell = of.farewell.as_ref().filter(|farewell| !farewell.told);
        let Some(farewell) = farewell else { return Verdict::Unknown };
        let version = self.tunnels.get(&tunnel).map(|tunnel| &tunnel.version[..]);
        match terms.park {
            Park::Never => return Verdict::Closed,
            _ if farewell.said && (farewell.http1 || !farewell.fin) => return Verdict::Unknown,
            Park::Always => return Verdict::Kept,
            _ if farewell.said => return Verdict::Closed,
            _ if !farewell.fin => return Verdict::Kept,
            _ => {}
        }
        let keeps_silent = terms.park == Park::Unclean || version.is_some_and(streams);
        // The gateway answers the streams of a lost tunnel. The client may have left before that
        // answer.
        let lost = |link| {
            let over = self.tunnels.get(&link).is_some_and(|tunnel| tunnel.gone || tunnel.left);
            over || self.is_spent(link, exchanges)
        };
        let runs = |number: &usize| {
            let exchange = &exchanges[*number];
            let carried = exchange.tunnel.is_some_and(|link| !lost(link));
            carried && !exchange.down.ended && !exchange.excuse
        };
        match farewell.open.is_empty() {
            _ if keeps_silent => Verdict::Kept,
            true => Verdict::Closed,
            false if farewell.http1 || !farewell.open.iter().any(runs) => Verdict::Unknown,
            false => Verdict::Kept,
        }
    }

    /// The gateway has closed a tunnel, or its worker has. If it was the session's last one and
    /// need not have been closed, that is a fault.
    pub(crate) fn tunnel_closed(&mut self, link: usize, now: Time, exchanges: &mut [Exchange]) {
        expect_no_more(exchanges, link);
        let far = self.is_far();
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        tunnel.gone = true;
        tunnel.ended = Some(now);
        let id = tunnel.session.clone();
        let (mut left, opened) = (tunnel.left, tunnel.since.is_some());
        left |= self.is_spent(link, exchanges);
        let alone = !self.tunnels.values().any(|other| other.session == id && !other.gone);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let before = session.closed.replace(now);
        session.moments.push(now);
        let recently = before.is_some_and(|at| now < at + SLOW_HEARSAY);
        if far || !alone || left || !opened || recently || session.deleted {
            return;
        }
        let why = self.why_closed(link, now, exchanges);
        match why {
            Some(Why::Known) => {}
            Some(Why::Forced) => {
                note("tunnel", link, "was closed by force", [0, 0]);
                self.forced += 1;
            }
            None => panic!(
                "tunnel {link}: the last one of a session was closed while {:?}",
                self.tunnels[&link]
            ),
        }
    }

    fn why_closed(&self, link: usize, now: Time, exchanges: &[Exchange]) -> Option<Why> {
        let known = Some(Why::Known);
        let (Some(terms), Some(tunnel)) = (self.terms, self.tunnels.get(&link)) else {
            return known;
        };
        if self.draining || self.is_shaken(now) {
            return known;
        }
        let of = |exchange: &&Exchange| exchange.names(&tunnel.session);
        // A client that asked for the session may have got it before its request was seen.
        let mut asked = exchanges.iter().filter(of);
        let unserved = |exchange: &Exchange| exchange.tunnel.is_none();
        let Some(client) = tunnel.client else {
            return if tunnel.again {
                self.why_spare_closed(tunnel, now, exchanges)
            } else {
                known
            };
        };
        if asked.any(|exchange| exchange.client != client && unserved(exchange)) {
            return known;
        }
        let Some(lost) = self.clients.get(&client).and_then(|client| client.lost) else {
            let fine = tunnel.http1 || terms.restless || now >= tunnel.active + SILENCE;
            return known.filter(|_| fine);
        };
        let Some(kept) = tunnel.kept else { return known };
        debug_assert!(kept >= lost);
        // A spare was asked for, perhaps as soon as the tunnel was used up, and may have failed to
        // come.
        let asked = tunnel.since.is_none_or(|since| since + terms.wait <= now);
        let alone = tunnel.used_up && (asked || terms.sloppy);
        // In the turn that lost the client, the answer may have ended first, or have been a 101
        // that nobody asked for. Then the tunnel was closed behind that answer.
        let last = exchanges.iter().rfind(|exchange| exchange.tunnel == Some(link));
        let wrong = |last: &Exchange| last.upgrade && last.excuse && last.down.head.is_some();
        let over = last.is_some_and(|last| last.down.ended || wrong(last));
        let spent = kept == now && tunnel.http1 && over;
        if now >= kept + terms.window || alone || spent { known } else { Some(Why::Forced) }
    }

    /// Why a tunnel without a request was closed. It was a spare, or came for a client that did not
    /// use it.
    fn why_spare_closed(&self, tunnel: &Tunnel, now: Time, exchanges: &[Exchange]) -> Option<Why> {
        let known = Some(Why::Known);
        let Some(terms) = self.terms else { return known };
        let mut ends = Vec::new();
        for exchange in exchanges {
            let of = exchange.tunnel.and_then(|link| self.tunnels.get(&link));
            if !exchange.names(&tunnel.session) && of.is_none_or(|t| t.session != tunnel.session) {
                continue;
            }
            let Some(client) = self.clients.get(&exchange.client) else { return known };
            let Some(lost) = client.lost else { return known };
            if exchange
                .tunnel
                .is_none_or(|link| self.verdict(exchange.client, link, exchanges) != Verdict::Kept)
            {
                return known;
            }
            ends.push(lost);
        }
        // If no request of its client came to a worker before, it is not seen from here whose
        // tunnel this was.
        let Some(last) = ends.iter().max() else { return known };
        let due = |begun: &Time| {
            (*begun + terms.window..*begun + terms.window + SLOW_HEARSAY).contains(&now)
        };
        let moments = self.sessions.get(&tunnel.session).map(|session| &session.moments);
        // The tunnel was parked when its client was lost. That may be any client of the session: a
        // tunnel that served it may have ended long before.
        let mut begun = moments.into_iter().flatten().chain(&ends);
        let over = now >= *last + terms.window || begun.any(due);
        if over { known } else { Some(Why::Forced) }
    }

    /// Called after every turn. Notes which sessions have no tunnel now. Fails if a tunnel is still
    /// there that had to be closed: a worker that nobody needs must be free at once.
    pub(crate) fn look_at_sessions(&mut self, now: Time) {
        let useless = self.tunnels.iter().find(|(_, tunnel)| tunnel.must_go && !tunnel.gone);
        assert!(useless.is_none(), "kept for a client that said goodbye: {useless:?}");
        let gone: Vec<String> = self
            .sessions
            .iter()
            .filter(|(id, session)| {
                !session.gap && !self.tunnels.keys().any(|link| self.serves(*link, id, now))
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.sessions.entry(id).or_default().gap = true;
        }
    }

    /// Whether a session has this tunnel for certain: all cores know it, and it will not be closed.
    fn serves(&self, link: usize, id: &str, now: Time) -> bool {
        let tunnel = &self.tunnels[&link];
        let settled = |since: Time| !tunnel.again || since + SLOW_HEARSAY <= now;
        if tunnel.session != id || tunnel.gone || !tunnel.since.is_some_and(settled) {
            return false;
        }
        let lost = tunnel.client.and_then(|client| self.clients.get(&client)?.lost);
        // A tunnel that loses its client is closed if its session had another tunnel.
        let other = |(other, of): (&usize, &Tunnel)| {
            let there = of.ended.is_none_or(|ended| lost.is_some_and(|at| at <= ended));
            *other != link && of.session == id && of.since.is_some() && there
        };
        lost.is_none() || !self.tunnels.iter().any(other)
    }

    /// How many of these tunnels must be parked, and how many may be.
    pub(crate) fn parked_among(&self, links: &[usize], exchanges: &[Exchange]) -> (usize, usize) {
        let (mut must, mut may) = (0, 0);
        for link in links {
            let Some(tunnel) = self.tunnels.get(link).filter(|tunnel| !tunnel.gone) else {
                continue;
            };
            let client = tunnel.client.and_then(|client| self.clients.get(&client));
            let here = client.is_some_and(|client| client.lost.is_none());
            let taken = exchanges
                .iter()
                .any(|exchange| exchange.names(&tunnel.session) && exchange.tunnel.is_none());
            let certain = tunnel.kept.is_some() && !tunnel.left && !tunnel.used_up && !taken;
            must += usize::from(certain && !self.draining);
            may += usize::from(!here || taken);
        }
        (must, may)
    }

    // ---- judged ----

    /// Whether a core panicked so recently that the cores may not know all they should of each
    /// other.
    fn is_shaken(&self, now: Time) -> bool {
        self.crashed.is_some_and(|at| now < at + SLOW_HEARSAY)
    }

    /// A client asks for a session. Returns the tunnel that must serve it, if that is certain.
    /// `first` is true for the first request of a connection.
    pub(crate) fn expects(
        &self,
        (id, http1, first): (&str, bool, bool),
        now: Time,
        exchanges: &mut [Exchange],
    ) -> Option<usize> {
        let terms = self.terms?;
        let same = |exchange: &&mut Exchange| exchange.names(id);
        let mut alone = true;
        for exchange in exchanges.iter_mut().filter(same) {
            // An earlier request may be overtaken by this one. Even one that its client took back
            // may still be on its way.
            exchange.expects = None;
            alone &= exchange.outcome.is_some();
        }
        let session = self.sessions.get(id)?;
        let mut of = self.tunnels.iter().filter(|(_, tunnel)| tunnel.session == id && !tunnel.gone);
        let (link, tunnel) = of.next()?;
        let only = of.next().is_none() && alone && !session.deleted && !self.draining;
        let settled = tunnel.kept.is_some_and(|at| at + terms.hearsay <= now);
        // A client that took its request back may have got the tunnel all the same. So may a client
        // that asked before the tunnel was kept, if it was still there then: its request may have
        // come later.
        let taken = exchanges.iter().any(|other| {
            let served = other.tunnel.is_some() || other.outcome == Some("answered by the gateway");
            let lost = self.clients.get(&other.client).and_then(|client| client.lost);
            let there = lost.is_none_or(|lost| tunnel.kept.is_some_and(|at| at <= lost));
            other.names(id) && !served && there
        });
        let fits = tunnel.http1 == http1 && !tunnel.used_up && !tunnel.left;
        // Near the end of the window the owner may have closed a tunnel that another gateway still
        // holds.
        let ends = tunnel.kept.is_some_and(|at| at + terms.window <= now + SLOW_HEARSAY);
        if terms.far && (ends || !first) {
            return None;
        }
        (only && settled && fits && !taken && !self.is_shaken(now)).then_some(*link)
    }

    /// The gateway refused a request. It must have had a reason.
    pub(crate) fn refused(&self, number: usize, exchange: &Exchange, code: u8, now: Time) {
        let Some(terms) = self.terms else { return };
        let Named::Session(id) = &exchange.named else { return };
        if exchange.was_told(code) {
            return;
        }
        let waited = code == 4 && now >= exchange.began + terms.wait;
        if exchange.expects.is_some() && !waited && !exchange.excuse {
            let fine = [8, 14].contains(&code);
            assert!(fine, "exchange {number}: its tunnel waits for it, but it was told {code}");
        }
        let excused = exchange.excuse || self.draining || self.is_shaken(exchange.began);
        let judged = code == 5 && !excused && !terms.far;
        let Some(session) = self.sessions.get(id).filter(|_| judged) else { return };
        let there = !session.gap && !session.deleted;
        let tunnels = || self.tunnels.iter().filter(|(_, t)| t.session == *id).collect::<Vec<_>>();
        assert!(!there, "exchange {number}: its session was there all the time: {:?}", tunnels());
    }
}

/// A tunnel may be lost for a good reason, so no request must get it any more.
fn expect_no_more(exchanges: &mut [Exchange], link: usize) {
    for exchange in exchanges.iter_mut().filter(|exchange| exchange.expects == Some(link)) {
        exchange.expects = None;
    }
}

impl Exchange {
    /// Whether the exchange names this session and may have it.
    pub(crate) fn names(&self, id: &str) -> bool {
        self.hopeless.is_none() && matches!(&self.named, Named::Session(named) if named == id)
    }
}
