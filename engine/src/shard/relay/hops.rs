//! The relay's connections, found by id, and what is counted of them together.

use super::super::timer::Due;
use super::super::turn::Turn;
use super::hop::{Fresh, Hop, Timeouts};
use super::link::Link;
use crate::net::ConnId;

/// The wait before a connection is looked at again whose deadline has passed without consequence.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// A connection. Boxed, so that the table of them stays small where hops rest.
#[derive(Debug)]
pub(super) enum Conn {
    /// A client that has not said yet which protocol it speaks.
    Fresh(Box<Fresh>),
    /// A connection of a relay.
    Hop(Box<Hop>),
}

/// All connections, by the slot the network interface gave them.
#[derive(Debug, Default)]
pub(super) struct Hops {
    slots: Vec<Option<(u32, Conn)>>,
    len: usize,
    clients: usize,
    /// DATA bytes, heads and trailers that wait.
    pub(super) buffered: usize,
    /// Bytes of large heads that are not whole yet: of clients, and of tunnels.
    pub(super) parts: [usize; 2],
    /// Streams without progress are being looked for.
    pub(super) sweeping: bool,
}

impl Conn {
    fn is_client(&self) -> bool {
        match self {
            Self::Fresh(_) => true,
            Self::Hop(hop) => hop.client().is_some(),
        }
    }
}

impl Hops {
    pub(super) fn insert(&mut self, id: ConnId, conn: Conn) {
        let slot = id.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.clients += usize::from(conn.is_client());
        match self.slots[slot].replace((id.generation, conn)) {
            Some((_, before)) => self.clients -= usize::from(before.is_client()),
            None => self.len += 1,
        }
    }

    pub(super) fn insert_hop(&mut self, hop: Hop) {
        self.insert(hop.conn, Conn::Hop(Box::new(hop)));
    }

    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        match self.slots.get_mut(id.slot as usize)? {
            Some((generation, conn)) if *generation == id.generation => Some(conn),
            _ => None,
        }
    }

    pub(super) fn holds(&self, id: ConnId) -> bool {
        matches!(self.slots.get(id.slot as usize), Some(Some((of, _))) if *of == id.generation)
    }

    pub(super) fn remove(&mut self, id: ConnId) -> Option<Conn> {
        if !self.holds(id) {
            return None;
        }
        let (_, conn) = self.slots[id.slot as usize].take()?;
        self.len -= 1;
        self.clients -= usize::from(conn.is_client());
        Some(conn)
    }

    pub(super) fn remove_hop(&mut self, id: ConnId) -> Option<Box<Hop>> {
        match self.remove(id)? {
            Conn::Hop(hop) => Some(hop),
            Conn::Fresh(_) => None,
        }
    }

    pub(super) fn hop(&self, id: ConnId) -> Option<&Hop> {
        match self.slots.get(id.slot as usize)? {
            Some((generation, Conn::Hop(hop))) if *generation == id.generation => Some(hop),
            _ => None,
        }
    }

    pub(super) fn hop_mut(&mut self, id: ConnId) -> Option<&mut Hop> {
        match self.slots.get_mut(id.slot as usize)? {
            Some((generation, Conn::Hop(hop))) if *generation == id.generation => Some(hop),
            _ => None,
        }
    }

    /// A hop whose call is under way: connections leave the table by facts only, between two calls.
    pub(super) fn known(&mut self, id: ConnId) -> &mut Hop {
        self.hop_mut(id).expect("a connection leaves between two calls")
    }

    pub(super) fn h1_mut(&mut self, id: ConnId) -> Option<&mut super::h1::H1> {
        match &mut self.hop_mut(id)?.link {
            Link::H1(h1) => Some(h1),
            Link::H2(_) => None,
        }
    }

    /// Two hops at once; none if they are one.
    pub(super) fn two_hops(&mut self, one: ConnId, other: ConnId) -> Option<[&mut Hop; 2]> {
        let slots = [one.slot as usize, other.slot as usize];
        let [one_slot, other_slot] = self.slots.get_disjoint_mut(slots).ok()?;
        match (one_slot, other_slot) {
            (Some((one_life, Conn::Hop(hop))), Some((other_life, Conn::Hop(other_hop))))
                if *one_life == one.generation && *other_life == other.generation =>
            {
                Some([&mut **hop, &mut **other_hop])
            }
            _ => None,
        }
    }

    /// Connections of clients, those included that have said nothing yet.
    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    pub(super) fn tunnels(&self) -> usize {
        self.len - self.clients
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0 && self.buffered == 0 && self.parts == [0; 2]
    }

    /// How many slots there are, free ones included.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The hops in these slots.
    pub(super) fn range(&self, slots: std::ops::Range<usize>) -> impl Iterator<Item = &Hop> {
        let slots = self.slots.get(slots).unwrap_or_default();
        slots.iter().flatten().filter_map(|(_, conn)| match conn {
            Conn::Hop(hop) => Some(&**hop),
            Conn::Fresh(_) => None,
        })
    }

    pub(super) fn ids(&self) -> Vec<ConnId> {
        let id = |(slot, entry): (usize, &Option<(u32, Conn)>)| {
            entry.as_ref().map(|e| ConnId { slot: slot as u32, generation: e.0 })
        };
        self.slots.iter().enumerate().filter_map(id).collect()
    }

    /// Arms the connection's timer if its next deadline is earlier than what is armed.
    pub(super) fn watch(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let timeouts = Timeouts::of(turn.settings);
        match self.get_mut(conn) {
            Some(Conn::Fresh(fresh)) => {
                turn.arm(fresh.opened + timeouts.handshake, Due::hop(conn));
            }
            Some(Conn::Hop(hop)) => {
                let at = hop.deadline(&timeouts);
                if let Some(at) = at.filter(|at| hop.timer.is_none_or(|armed| *at < armed)) {
                    // A deadline that has passed was looked at in this instant, and nothing could
                    // be done about it. To look at it again at once would keep the core in this
                    // turn for ever.
                    let at = if at > turn.now { at } else { turn.now + LOOK_AGAIN };
                    hop.timer = Some(at);
                    turn.arm(at, Due::hop(conn));
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bounds the cost of a session that rests, apart from the memory of its HPACK tables.
    #[test]
    fn what_rests_is_small() {
        assert!(size_of::<Option<(u32, Conn)>>() <= 24);
        assert!(size_of::<Hop>() <= 848, "{}", size_of::<Hop>());
        let route = size_of::<super::super::routes::Route>();
        assert!(route <= 96, "{route}");
    }
}
