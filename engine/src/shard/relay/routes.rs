//! Routes: what the relay knows of an attachment, under the attachment's own key.

use smallvec::SmallVec;
use uuid::Uuid;

use super::super::facts::{RouteFacts, Tally, Terms};
use super::super::table::Key;
use super::exchange::Exchange;
use crate::net::ConnId;

/// Waiters that are gone before the list of them is cleaned.
const GONE_WAITERS: usize = 64;

/// The way between a client and a tunnel.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) client: Option<ConnId>,
    pub(super) tunnel: Option<ConnId>,
    /// The route had a tunnel, which has ended. True if that tunnel had answered and its end has
    /// cut nothing.
    pub(super) lost: Option<bool>,
    pub(super) session: Uuid,
    pub(super) terms: Terms,
    /// Another tunnel is to come in the place of the route's, or the route's goes to another core.
    pub(super) replaced: bool,
    /// Exchanges whose head waits for the tunnel or for a stream on it, in order. Few wait at once,
    /// so that the first is taken out without a ring.
    pub(super) waiters: SmallVec<[Key; 2]>,
    /// How many of these waiters still wait: the others are gone and are skipped.
    pub(super) waiting: u32,
    pub(super) streams: u32,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
}

impl Route {
    pub(super) fn new(session: Uuid, client: Option<ConnId>, terms: Terms) -> Self {
        Self {
            client,
            tunnel: None,
            lost: None,
            session,
            terms,
            replaced: false,
            waiters: SmallVec::new(),
            waiting: 0,
            streams: 0,
            bytes_up: 0,
            bytes_down: 0,
        }
    }

    /// The session's id as text, for a head.
    pub(super) fn id(&self) -> [u8; 36] {
        let mut id = [0; 36];
        self.session.hyphenated().encode_lower(&mut id);
        id
    }

    /// One more exchange waits for the route.
    pub(super) fn wait(&mut self, waiter: Key) {
        self.waiters.push(waiter);
        self.waiting += 1;
    }

    /// The first waiter leaves the list. `waited` is false if its exchange had gone before.
    pub(super) fn next(&mut self, waited: bool) {
        if !self.waiters.is_empty() {
            self.waiters.remove(0);
        }
        self.waiting -= u32::from(waited);
        if self.waiters.is_empty() {
            // Most routes have waiters once: memory of their own is given back.
            self.waiters.shrink_to_fit();
        }
    }

    /// An exchange no longer needs the route. True if nobody does any more and there is no tunnel.
    pub(super) fn leave(&mut self, exchange: &Exchange) -> bool {
        self.bytes_up += exchange.up.bytes;
        self.bytes_down += exchange.down.bytes;
        if exchange.worker.is_some() {
            self.streams -= 1;
            return false;
        }
        self.waiting -= 1;
        self.waiting == 0 && self.tunnel.is_none()
    }

    /// The route's tunnel has come with what it carried of the session before, up and down.
    pub(super) fn carry(&mut self, (up, down): (u64, u64)) {
        self.bytes_up += up;
        self.bytes_down += down;
    }

    /// Whether many of the waiters are gone.
    pub(super) fn is_stale(&self) -> bool {
        self.waiters.len() > GONE_WAITERS + 2 * self.waiting as usize
    }

    pub(super) fn is_busy(&self) -> bool {
        self.streams + self.waiting > 0
    }

    /// The sum of what the route has carried, at its end.
    pub(super) fn tally(&self, carried: RouteFacts) -> Tally {
        Tally {
            streams: carried.streams,
            bytes_up: carried.bytes_up,
            bytes_down: carried.bytes_down,
            answered: self.lost == Some(true),
            tunnel: self.lost.is_some(),
        }
    }
}

/// All routes, by the slot of their keys.
#[derive(Debug, Default)]
pub(super) struct Routes {
    slots: Vec<Option<(u32, Box<Route>)>>,
    len: usize,
}

impl Routes {
    pub(super) fn insert(&mut self, key: Key, route: Route) {
        let slot = key.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let before = self.slots[slot].replace((key.generation, Box::new(route)));
        assert!(
            before.is_none(),
            "an attachment's slot was given away before its route was closed"
        );
        self.len += 1;
    }

    pub(super) fn get(&self, key: Key) -> Option<&Route> {
        let (generation, route) = self.slots.get(key.slot as usize)?.as_ref()?;
        (*generation == key.generation).then_some(route)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Route> {
        let (generation, route) = self.slots.get_mut(key.slot as usize)?.as_mut()?;
        (*generation == key.generation).then_some(route)
    }

    pub(super) fn set_terms(&mut self, key: Key, terms: Terms) {
        if let Some(route) = self.get_mut(key) {
            route.terms = terms;
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Box<Route>> {
        self.get(key)?;
        self.len -= 1;
        let route = self.slots[key.slot as usize].take().map(|(_, route)| route);
        if self.len == 0 {
            // A burst's memory is given back.
            self.slots = Vec::new();
        }
        route
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}
