//! The oracle: what really happened, as both far ends know it. Whoever makes an exchange, a session
//! or a token enters it here, and whoever meets it checks it.

use std::collections::{BTreeMap, BTreeSet};

use ringway_proto::id::{Node, RequestIds};
use ringway_proto::time::Time;

use super::body::{self, Way};
use super::h2::List;
use super::parking::Parking;
use super::stranger::Heard;

/// The process that made a session's id.
pub(crate) fn maker(id: &str) -> Option<Node> {
    RequestIds::maker_of(id.parse().ok()?)
}

/// What a client asked for by `nvcf-reqid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Nothing,
    /// A session this tenant has met.
    Session(String),
    /// A well-formed id that belongs to nobody.
    Nobody(String),
}

/// One direction of an exchange: what its sender put in, and what came out at the other end.
#[derive(Debug, Default)]
pub(crate) struct Half {
    pub(crate) head: Option<List>,
    pub(crate) sent: usize,
    pub(crate) ended: bool,
    pub(crate) trailers: Option<List>,
    pub(crate) got: usize,
    pub(crate) got_end: bool,
    /// One of the exchange's peers has gone mad, so anything may come out.
    pub(crate) spoiled: bool,
}

impl Half {
    /// More of the body came out. It must be what went in.
    pub(crate) fn arrived(&mut self, exchange: usize, way: Way, bytes: &[u8]) {
        let upto = self.got + bytes.len();
        if self.spoiled {
            self.got = upto;
            return;
        }
        assert!(
            body::is_part(exchange, way, self.got, bytes),
            "exchange {exchange}, {way:?}: wrong bytes somewhere in {}..{upto}",
            self.got
        );
        assert!(
            upto <= self.sent,
            "exchange {exchange}, {way:?}: {upto} bytes came of {} sent",
            self.sent
        );
        self.got = upto;
    }

    /// The end came out. It must have gone in, and everything before it must have come out.
    pub(crate) fn finished(&mut self, exchange: usize, way: Way, trailers: Option<List>) {
        if self.spoiled {
            self.got_end = true;
            return;
        }
        assert!(self.ended, "exchange {exchange}, {way:?}: END_STREAM that nobody sent");
        assert_eq!(self.got, self.sent, "exchange {exchange}, {way:?}: the end overtook DATA");
        assert_eq!(trailers, self.trailers, "exchange {exchange}, {way:?}: other trailers");
        assert!(!self.got_end, "exchange {exchange}, {way:?}: a second end");
        self.got_end = true;
    }
}

/// One request and what became of it.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The client connection, by peer number.
    pub(crate) client: usize,
    pub(crate) tenant: &'static str,
    /// The credential that the client shows.
    pub(crate) key: &'static str,
    pub(crate) began: Time,
    pub(crate) function: &'static str,
    /// Empty if the client named none.
    pub(crate) version: &'static str,
    pub(crate) named: Named,
    pub(crate) grpc: bool,
    pub(crate) method_head: bool,
    /// The gRPC code with which the request must be refused. No worker may see it.
    pub(crate) hopeless: Option<u8>,
    /// The head is the same as in other requests, so the body begins with the exchange's number.
    pub(crate) twin: bool,
    pub(crate) http1: bool,
    /// The request asks for another protocol.
    pub(crate) upgrade: bool,
    pub(crate) up: Half,
    pub(crate) down: Half,
    /// The Content-Length that the worker has sent over HTTP/1.
    pub(crate) length: Option<usize>,
    /// The answer may have ended before the request.
    pub(crate) early: bool,
    pub(crate) interim_sent: u32,
    pub(crate) interim_got: u32,
    /// The tunnel that served it, by peer number.
    pub(crate) tunnel: Option<usize>,
    /// The tunnel that waits for this request. No other may serve it.
    pub(crate) expects: Option<usize>,
    /// How the exchange ended for the client.
    pub(crate) outcome: Option<&'static str>,
    /// The client has lost interest, or its connection.
    pub(crate) quit: bool,
    /// Something has happened for which the exchange may fail.
    pub(crate) excuse: bool,
    /// The gRPC codes with which the control plane refused this request or one like it, a bit each.
    pub(crate) told: u32,
    /// The most bytes of an answer that the client reads in good time.
    pub(crate) most_down: usize,
    /// The request names a session of a process that has ended.
    pub(crate) too_late: bool,
}

impl Exchange {
    pub(crate) fn spoil(&mut self) {
        self.excuse = true;
        self.up.spoiled = true;
        self.down.spoiled = true;
    }
}

/// A session as the workers know it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) tenant: String,
    pub(crate) function: String,
    pub(crate) version: String,
    /// The worker that opened the session's first tunnel.
    pub(crate) worker: Option<usize>,
    pub(crate) tunnels: usize,
}

/// A tunnel that ends from its worker's side.
#[derive(Debug)]
pub(crate) struct EndingTunnel {
    pub(crate) tunnel: usize,
    /// The client that uses the tunnel. `None` means any client of the tenant.
    pub(crate) client: Option<usize>,
    pub(crate) session: String,
    pub(crate) tenant: String,
}

/// A worker token.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) session: String,
    pub(crate) accepted: usize,
}

/// A worker process: the version that it serves, and its sessions with their tunnels counted.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) function: &'static str,
    pub(crate) version: &'static str,
    pub(crate) sessions: BTreeMap<String, usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) sessions: BTreeMap<String, Session>,
    pub(crate) tokens: BTreeMap<String, Token>,
    pub(crate) workers: Vec<Worker>,
    /// Client connections that their clients have ended, or whose clients have gone mad.
    pub(crate) clients_gone: BTreeSet<usize>,
    /// Clients that have gone mad, or of which a worker has.
    pub(crate) mad: BTreeSet<usize>,
    /// Sessions that clients have met: id, tenant and function.
    pub(crate) met: Vec<(String, &'static str, &'static str)>,
    /// CONNECTs that were answered with 200.
    pub(crate) accepted: usize,
    /// CONNECTs that were answered otherwise.
    pub(crate) rejected: usize,
    /// Tunnels whose worker has left or is leaving. The gateway may not know it yet.
    pub(crate) leaving: Vec<EndingTunnel>,
    /// The gateway was told to drain.
    pub(crate) draining: bool,
    /// A core has panicked.
    pub(crate) crashed: bool,
    /// Polls asked and CONNECTs sent.
    pub(crate) asked: usize,
    /// Body bytes of the whole run.
    pub(crate) relayed: usize,
    pub(crate) parking: Parking,
    /// Processes that have ended, in a run with several gateways.
    pub(crate) dead: BTreeSet<Node>,
    /// A process has died without a drain, in such a run.
    pub(crate) killed: bool,
    /// Until this time a gateway that failed, or a failed way to one, may still have effects.
    pub(crate) felt_until: Time,
    /// Connections that need a gateway that failed.
    pub(crate) bereft: BTreeSet<usize>,
    /// Sessions with a tunnel that needs a failed gateway. The session's owner may not know yet
    /// that the tunnel is lost.
    pub(crate) struck: BTreeSet<String>,
    /// Connections that need a gateway that leaves.
    pub(crate) going: BTreeSet<usize>,
    /// The sessions of tunnels, by peer number.
    pub(crate) tunnels: BTreeMap<usize, String>,
    /// When the last tunnel of a session ended, as its worker saw it.
    pub(crate) emptied: BTreeMap<String, Time>,
    /// What strangers have said at the port for other gateways.
    pub(crate) strange: Heard,
    /// Tunnels that were dialled before the last one of their session ended, and were accepted
    /// later.
    pub(crate) crossed: usize,
}

impl Ledger {
    pub(crate) fn end(&mut self, exchange: usize, outcome: &'static str) {
        let entry = &mut self.exchanges[exchange];
        assert!(
            entry.outcome.is_none(),
            "exchange {exchange} ended as {outcome} after {:?}",
            entry.outcome
        );
        super::journal::note(
            "exchange",
            exchange,
            outcome,
            [entry.up.got as u64, entry.down.got as u64],
        );
        entry.outcome = Some(outcome);
    }

    /// A tunnel ends from its worker's side. An exchange that uses it, waits for it, or asks for it
    /// before the gateway knows, may fail.
    pub(crate) fn is_leaving(&mut self, leaving: EndingTunnel) {
        let took = self.takers(&leaving.session);
        for exchange in self.exchanges.iter_mut().filter(|exchange| exchange.outcome.is_none()) {
            exchange.excuse |= took.contains(&exchange.client)
                || leaving.concerns(exchange.client, exchange.tenant, &exchange.named);
        }
        self.parking.tunnel_left(leaving.tunnel, &mut self.exchanges);
        self.leaving.push(leaving);
    }

    /// Whether a request of this client may meet a tunnel that has ended.
    pub(crate) fn is_risky(&self, client: usize, tenant: &str, named: &Named) -> bool {
        let may_meet = |leaving: &EndingTunnel| {
            leaving.concerns(client, tenant, named)
                || self.takers(&leaving.session).contains(&client)
        };
        let struck =
            |named: &Named| matches!(named, Named::Session(id) if self.struck.contains(id));
        let mut own = self.exchanges.iter().filter(|exchange| exchange.client == client);
        self.draining
            || self.bereft.contains(&client)
            || struck(named)
            || (!self.struck.is_empty() && own.any(|exchange| struck(&exchange.named)))
            || self.leaving.iter().any(may_meet)
    }

    /// A node has failed, and what needs it may fail. `homes` says at which node each connection
    /// came in.
    pub(crate) fn strike(&mut self, node: usize, homes: &[usize]) {
        let lives = |id: &str| maker(id).is_some_and(|of| usize::from(of.number()) == node);
        let tunnels = &self.tunnels;
        let hit = |tunnel: usize| {
            homes[tunnel] == node || tunnels.get(&tunnel).is_some_and(|id| lives(id))
        };
        self.bereft.extend((0..homes.len()).filter(|link| homes[*link] == node));
        self.bereft.extend(tunnels.keys().filter(|tunnel| hit(**tunnel)));
        let of_hit = tunnels.iter().filter(|(tunnel, _)| hit(**tunnel));
        self.struck.extend(of_hit.map(|(_, id)| id.clone()));
        for exchange in &self.exchanges {
            let named = matches!(&exchange.named, Named::Session(id) if lives(id));
            if named || exchange.tunnel.is_some_and(hit) {
                self.bereft.insert(exchange.client);
            }
        }
        for exchange in &mut self.exchanges {
            // A worker may have been on its way to this exchange through that node.
            exchange.excuse |= exchange.tunnel.is_none()
                || exchange.tunnel.is_some_and(hit)
                || self.bereft.contains(&exchange.client);
        }
        self.parking.struck(hit, &mut self.exchanges);
    }

    /// A node leaves. What runs there must not fail, but nobody has to find a session there any
    /// more.
    pub(crate) fn leave(&mut self, node: usize, homes: &[usize]) {
        let lives = |id: &str| maker(id).is_some_and(|of| usize::from(of.number()) == node);
        let tunnels = &self.tunnels;
        let hit = |tunnel: usize| {
            homes[tunnel] == node || tunnels.get(&tunnel).is_some_and(|id| lives(id))
        };
        self.going.extend((0..homes.len()).filter(|link| homes[*link] == node));
        for exchange in &self.exchanges {
            let named = matches!(&exchange.named, Named::Session(id) if lives(id));
            if named || exchange.tunnel.is_some_and(hit) {
                self.going.insert(exchange.client);
            }
        }
        self.parking.struck(hit, &mut self.exchanges);
    }

    /// Whether a connection may end without a word.
    pub(crate) fn is_bereft(&self, link: usize) -> bool {
        self.crashed || self.bereft.contains(&link)
    }

    /// Judges a refusal in a run with several gateways. If the process of a session has ended, its
    /// clients are refused at once and not after a wait.
    pub(crate) fn judge_refusal(&self, number: usize, code: u8) {
        let exchange = &self.exchanges[number];
        let waited = exchange.too_late && code == 4;
        assert!(!waited, "exchange {number}: waited for a session of a process that has ended");
    }

    /// Clients that have asked for this session by its id. It may be theirs by now, also for their
    /// requests that name nothing. The worker learns of such a client only from its first request.
    fn takers(&self, session: &str) -> BTreeSet<usize> {
        let asked = self.exchanges.iter().filter(|exchange| exchange.names(session));
        asked.map(|exchange| exchange.client).collect()
    }

    /// The worker on a tunnel has gone mad. That meets its client, and whoever took the session
    /// over without the worker knowing it yet.
    pub(crate) fn tunnel_madness(&mut self, session: &str, client: usize) {
        self.madness(client);
        self.takers(session).into_iter().for_each(|taker| self.madness(taker));
    }

    /// A client, or the worker on one of its tunnels, has gone mad.
    pub(crate) fn madness(&mut self, client: usize) {
        self.mad.insert(client);
        for exchange in self.exchanges.iter_mut().filter(|exchange| exchange.client == client) {
            exchange.spoil();
        }
    }

    /// A worker takes work. It must be for the version that this worker serves.
    pub(crate) fn work(&mut self, worker: usize, work: &Work, listed: &[String]) {
        let of = &self.workers[worker];
        assert_eq!((work.function.as_str(), work.version.as_str()), (of.function, of.version));
        let known = self.sessions.entry(work.id.clone()).or_insert_with(|| Session {
            tenant: work.tenant.clone(),
            function: work.function.clone(),
            version: work.version.clone(),
            worker: None,
            tunnels: 0,
        });
        assert_eq!(known.tenant, work.tenant, "session {} has changed hands", work.id);
        if work.kind == "reconnect" {
            assert!(listed.contains(&work.id), "a reconnect for a session the poll did not list");
        }
        let token = Token { session: work.id.clone(), accepted: 0 };
        // Work is delivered again if its answer may have been lost.
        self.tokens.entry(work.token.clone()).or_insert(token);
    }

    /// A CONNECT was answered with 200.
    pub(crate) fn accept(&mut self, (token, session): (&str, &str), worker: usize, since: Time) {
        self.accepted += 1;
        let known = self.tokens.get_mut(token).expect("a token nobody was given opened a tunnel");
        assert_eq!(known.session, session, "a tunnel for another session than the token's");
        known.accepted += 1;
        assert_eq!(known.accepted, 1, "a token was taken twice: session {session}");
        let dead = maker(session).is_some_and(|node| self.dead.contains(&node));
        let late = dead && since >= self.felt_until;
        assert!(!late, "session {session}: a tunnel to a process that has ended");
        if self.emptied.get(session).is_some_and(|at| since <= *at) {
            super::journal::note("session", self.accepted, "had no tunnel when one came", [0, 0]);
            self.crossed += 1;
        }
        let known = self.sessions.get_mut(session).expect("the token's session");
        known.tunnels += 1;
        let first = *known.worker.get_or_insert(worker);
        assert_eq!(first, worker, "session {session} has tunnels to two workers");
        *self.workers[worker].sessions.entry(session.to_owned()).or_default() += 1;
    }

    /// A tunnel has ended. A worker ends the session with its last tunnel (contract 4.6).
    pub(crate) fn tunnel_ended(&mut self, session: &str, worker: usize, now: Time) {
        if let Some(known) = self.sessions.get_mut(session) {
            known.tunnels -= 1;
        }
        let held = &mut self.workers[worker].sessions;
        if let Some(count) = held.get_mut(session) {
            *count -= 1;
            if *count == 0 {
                held.remove(session);
                self.emptied.insert(session.to_owned(), now);
            }
        }
    }
}

impl EndingTunnel {
    fn concerns(&self, client: usize, tenant: &str, named: &Named) -> bool {
        let asks = matches!(named, Named::Session(id) if *id == self.session);
        asks || self.client.map_or(self.tenant == tenant, |of| of == client)
    }
}

/// The work in one answer to a poll.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) function: String,
    pub(crate) version: String,
    pub(crate) token: String,
}
