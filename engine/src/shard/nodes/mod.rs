//! Connections that belong to other gateways, and those that other gateways bring (design 3.22).
//!
//! A connection goes elsewhere as a whole ([`out`]). Its owner is found and dialled, sends its
//! challenge, and answers the prelude. From then on bytes pass both ways unchanged ([`splice`]). If
//! the owner does not take the connection in time, the connection goes back to the component that
//! gave it away. A connection that another gateway brings ([`arrive`]) is passed on when its
//! prelude is proved.

mod arrive;
mod farewell;
mod hush;
mod out;
mod owners;
mod splice;
mod suspects;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::id::Node;

use self::arrive::Arrival;
use self::farewell::Farewells;
use self::hush::Hush;
use self::out::{Out, Step};
use self::owners::Owners;
use self::suspects::Suspects;
use super::facts::ForNodes;
use super::settings::ShardSettings;
use super::table::{Key, Table};
use super::timer::Due;
use super::turn::Turn;
use crate::carry::Client;
use crate::keys::Keys;
use crate::metrics::{Limit, RelayCause, ShardMetrics, TakenCause, TakenOutcome};
use crate::net::{Close, ConnId, End, Listener};
use crate::pool::Segment;

/// The time until the owner of a connection has taken it, once it is known to belong elsewhere.
/// Also the time until the prelude is here, once another gateway has connected (design 3.22).
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// Most octets of a connection that are carried to its owner: those that were kept, and one
/// receive.
pub(super) const MOST_CARRIED: usize = 128 * 1024;

/// The component.
pub(super) struct Nodes {
    /// None: no connection is relayed.
    keys: Option<Arc<Keys>>,
    roles: HashMap<ConnId, ConnRole, foldhash::fast::RandomState>,
    outs: Table<Out>,
    /// How many of these are clients' connections.
    clients: usize,
    arrivals: Table<Arrival>,
    farewells: Farewells,
    /// Connections to be taken from here, in order.
    ready: Vec<ConnRole>,
    owners: Owners,
    hush: Hush,
    suspects: Suspects,
    rng: ChaCha12Rng,
}

/// What a connection is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnRole {
    /// The connection came to this gateway and belongs to another one.
    Near(Key),
    /// This gateway has dialled the connection. It leads to the owner of another connection.
    Far(Key),
    /// Another gateway has made the connection.
    Arriving(Key),
    /// This gateway made it, to tell another one that this one leaves.
    Farewell,
}

/// A client's connection that goes on here.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) conn: ConnId,
    pub(super) client: Client,
    /// The gateway that has brought it; none: the client dialled this gateway, and the owner did
    /// not take it.
    pub(super) via: Option<Node>,
    /// The end of its bytes, if it has come meanwhile.
    pub(super) ended: Option<End>,
}

impl std::fmt::Debug for Nodes {
    // The state of the random numbers is a secret: the next challenge follows from it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").field("outs", &self.outs.len()).finish_non_exhaustive()
    }
}

impl Nodes {
    pub(super) fn new(settings: &ShardSettings) -> Self {
        let mut rng = ChaCha12Rng::from_seed(settings.seed);
        // Ids and tokens are made from the first stream.
        rng.set_stream(1);
        Self {
            keys: settings.keys.clone(),
            roles: HashMap::default(),
            outs: Table::new(settings.generation),
            clients: 0,
            arrivals: Table::new(settings.generation),
            farewells: Farewells::default(),
            ready: Vec::new(),
            owners: Owners::default(),
            hush: Hush::default(),
            suspects: Suspects::default(),
            rng,
        }
    }

    /// Replaces the keys by which the cluster's gateways know each other.
    pub(super) fn replace_keys(&mut self, keys: Arc<Keys>) {
        self.keys = Some(keys);
    }

    // ---- what the network interface says ----

    /// Whether the connection is one of these.
    #[inline]
    pub(super) fn holds(&self, conn: ConnId) -> bool {
        !self.roles.is_empty() && self.roles.contains_key(&conn)
    }

    /// Another gateway has connected, or somebody who pretends to be one.
    pub(super) fn accepted(&mut self, turn: &mut Turn<'_>, conn: ConnId, peer: SocketAddr) {
        if self.keys.is_none() {
            return turn.net.close(conn, Close::Now);
        }
        if !self.suspects.hears(peer, turn.now) {
            turn.metrics.relays.count_taken(TakenCause::None, TakenOutcome::Unheard);
            if let Some((addresses, until)) = self.suspects.keep_out(peer, turn.now) {
                turn.net.keep_out(Listener::Cluster, addresses);
                turn.arm(until, Due::KeptOut);
            }
            return turn.net.close(conn, Close::Now);
        }
        let mut challenge = [0; ringway_proto::prelude::CHALLENGE_LENGTH];
        self.rng.fill_bytes(&mut challenge);
        self.arrive(turn, conn, (peer, challenge));
    }

    /// Lets addresses in again that were kept out long enough ([`Due::KeptOut`]).
    pub(super) fn let_in_again(&mut self, turn: &mut Turn<'_>) {
        let still = self.suspects.still_kept_out(turn.now);
        turn.net.keep_out(Listener::Cluster, still);
    }

    /// The result of dialling a gateway.
    pub(super) fn dialled(&mut self, turn: &mut Turn<'_>, conn: ConnId, result: Result<(), i32>) {
        match self.roles.get(&conn).copied() {
            Some(ConnRole::Far(key)) => self.reached(turn, key, result),
            Some(ConnRole::Farewell) if result.is_err() => farewell::end(self, turn, conn),
            _ => {}
        }
    }

    pub(super) fn received(&mut self, turn: &mut Turn<'_>, conn: ConnId, segment: Segment) {
        match self.roles.get(&conn) {
            Some(ConnRole::Near(key)) => self.near_says(turn, *key, segment),
            Some(ConnRole::Far(key)) => self.far_says(turn, *key, segment),
            Some(ConnRole::Arriving(key)) => self.arriving_says(turn, *key, segment),
            Some(ConnRole::Farewell) => {
                if let Some(keys) = &self.keys
                    && self.farewells.hear(turn, keys, (conn, segment))
                {
                    farewell::end(self, turn, conn);
                }
            }
            None => {}
        }
    }

    /// The kernel took some of a connection's output.
    pub(super) fn written(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        match self.roles.get(&conn) {
            Some(ConnRole::Near(key) | ConnRole::Far(key)) => {
                let key = *key;
                self.out(key).drained(turn, conn);
            }
            Some(ConnRole::Arriving(_) | ConnRole::Farewell) | None => {}
        }
    }

    /// Whether something waits until a connection's output was taken.
    pub(super) fn awaits(&self, conn: ConnId) -> bool {
        match self.roles.get(&conn) {
            Some(ConnRole::Near(key) | ConnRole::Far(key)) => {
                self.outs.get(*key).is_some_and(Out::is_held)
            }
            Some(ConnRole::Arriving(_) | ConnRole::Farewell) | None => false,
        }
    }

    /// A connection's bytes have ended.
    pub(super) fn ended(&mut self, turn: &mut Turn<'_>, conn: ConnId, end: End) {
        match self.roles.get(&conn) {
            Some(ConnRole::Near(key)) => self.near_ended(turn, *key, end),
            Some(ConnRole::Far(key)) => self.far_ended(turn, *key, end),
            Some(ConnRole::Arriving(key)) => self.arriving_ended(turn, *key, end),
            Some(ConnRole::Farewell) => farewell::end(self, turn, conn),
            None => {}
        }
    }

    // ---- what goes on at this core ----

    /// Whether [`Self::take_ready`] has something.
    #[inline]
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next connection of a client that goes on at this core, if its peer has not gone meanwhile.
    pub(super) fn take_ready(&mut self, turn: &mut Turn<'_>) -> Option<Ready> {
        loop {
            let ready = match self.ready.pop()? {
                ConnRole::Near(key) => self.take_back(turn, key),
                ConnRole::Arriving(key) => self.take_arrived(key, turn.now),
                ConnRole::Far(_) | ConnRole::Farewell => None,
            };
            if ready.is_some() {
                return ready;
            }
        }
    }

    // ---- facts ----

    pub(super) fn on(&mut self, turn: &mut Turn<'_>, fact: ForNodes) {
        match fact {
            ForNodes::Take(strayed) => self.take(turn, *strayed),
            ForNodes::Located { number, answer } => {
                self.located(turn, super::facts::key_numbered(number), answer);
            }
            ForNodes::Admitted { conn, room } => {
                if let Some(ConnRole::Arriving(key)) = self.roles.get(&conn).copied() {
                    self.admitted(turn, key, room);
                }
            }
        }
    }

    // ---- the end ----

    /// This gateway leaves: the owners of what it relays are told.
    pub(super) fn leave(&mut self, turn: &mut Turn<'_>) {
        let owners = farewell::owners_served(self);
        owners.into_iter().for_each(|owner| farewell::tell_owner(self, turn, owner));
    }

    /// Tells owners again that have not answered ([`Due::Farewell`]).
    pub(super) fn leave_again(&mut self, turn: &mut Turn<'_>) {
        farewell::tell_again(self, turn);
    }

    /// Whether an owner is being told that this gateway leaves.
    pub(super) fn says_farewell(&self) -> bool {
        !self.farewells.is_empty()
    }

    /// All connections of this component, in order.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        let mut ids: Vec<ConnId> = self.roles.keys().copied().collect();
        // The table has no order.
        ids.sort_unstable_by_key(|conn| (conn.slot, conn.generation));
        ids
    }

    /// Ends a connection, and the one that it is relayed to or from.
    pub(super) fn end(&mut self, turn: &mut Turn<'_>, conn: ConnId, how: Close) {
        match self.roles.get(&conn).copied() {
            Some(ConnRole::Near(key) | ConnRole::Far(key)) => self.forget(turn, key, how),
            Some(ConnRole::Arriving(key)) => {
                self.remove_arrival(key);
                turn.net.close(conn, how);
            }
            Some(ConnRole::Farewell) => {
                farewell::end(self, turn, conn);
                // This gateway itself ends.
                self.farewells.give_up();
            }
            None => {}
        }
    }

    /// The entry of a connection's place. It exists: an entry and its places leave together.
    fn out(&mut self, key: Key) -> &mut Out {
        self.outs.get_mut(key).expect("a place leaves with its entry")
    }

    /// The same of what arrives.
    fn arrival(&mut self, key: Key) -> &mut Arrival {
        self.arrivals.get_mut(key).expect("a place leaves with its entry")
    }

    /// Takes an entry out with its places, whatever becomes of its connections.
    fn remove(&mut self, key: Key) -> Option<Out> {
        let out = self.outs.remove(key)?;
        self.clients -= usize::from(out.cause == RelayCause::Client);
        for conn in out.conns() {
            self.roles.remove(&conn);
        }
        Some(out)
    }

    /// The same of what arrives.
    fn remove_arrival(&mut self, key: Key) -> Option<Arrival> {
        let arrival = self.arrivals.remove(key)?;
        self.roles.remove(&arrival.conn);
        Some(arrival)
    }

    // ---- values ----

    /// Clients' connections that go elsewhere, or that other gateways bring.
    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    /// Whether a connection waits for its owner.
    pub(super) fn waits(&self, key: Key) -> bool {
        self.outs.get(key).is_some_and(|out| !matches!(out.step, Step::Flowing | Step::Back))
    }

    /// Whether a connection that another gateway brings is not complete yet.
    pub(super) fn arrives(&self, key: Key) -> bool {
        self.arrivals.get(key).is_some()
    }

    /// All other connections.
    pub(super) fn others(&self) -> usize {
        self.roles.len() - self.clients
    }

    /// Established relays, and clients of other gateways whose connections were taken here.
    pub(super) fn relays(&self) -> usize {
        self.outs.len() + self.arrivals.iter().filter(|(_, arrival)| arrival.is_taken()).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.roles.is_empty()
            && self.outs.len() == 0
            && self.arrivals.len() == 0
            && self.farewells.is_empty()
    }

    /// Sets the gauges.
    pub(super) fn gauge(&self, settings: &ShardSettings, metrics: &mut ShardMetrics) {
        metrics.relays.active = [0; RelayCause::COUNT];
        for (_, out) in self.outs.iter().filter(|(_, out)| matches!(out.step, Step::Flowing)) {
            metrics.relays.active[out.cause.index()] += 1;
        }
        if settings.config.cluster.relays() || settings.config.cluster.fallback.is_some() {
            metrics.gauge(Limit::Relays, self.outs.len(), settings.config.limits.relays);
        }
    }
}
