//! The connections of one core: what each is, found by id.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;

use ringway_proto::h1::head::Scan;
use ringway_proto::route::RoutingHead;
use ringway_proto::time::Time;

use super::bucket::Bucket;
use super::dispatch::Desk;
use super::link::Link;
use super::memo::{Answer, Call};
use super::pings::{Found, Pings};
use super::table::Key;
use crate::border::ConnId;
use crate::control::local::Owner;

/// Any connection. Boxed, so that the table of them stays small where hops rest.
#[derive(Debug)]
pub(crate) enum Conn {
    /// A client that has not said yet which protocol it speaks.
    Fresh(Box<Fresh>),
    /// A worker's connection before its CONNECT is accepted.
    Door(Box<Plain>),
    /// A connection of a relay.
    Hop(Box<Hop>),
}

/// A client connection before protocol detection.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Time,
    /// Bytes of the HTTP/2 magic seen so far.
    pub(crate) magic: usize,
}

/// A worker's connection that is answered by us.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Time,
    /// An unfinished request.
    pub(crate) input: Vec<u8>,
    /// How far its head was searched.
    pub(crate) scan: Scan,
    /// When the last request was answered, or the connection began.
    pub(crate) idle_since: Time,
    /// When the unfinished request began.
    pub(crate) begun: Option<Time>,
    /// A poll of this connection waits for work.
    /// Polls of this connection that are not answered yet.
    pub(crate) polls: u32,
    /// Where it stands with the dispatch.
    pub(crate) desk: Desk,
    /// The core that accepted it, if that was another one.
    pub(crate) moved_from: Option<u16>,
    /// The connection ends with the answer to its poll.
    pub(crate) last: bool,
    /// `100 Continue` was sent for the unfinished request.
    pub(crate) continued: bool,
    pub(crate) timer: Option<Time>,
}

impl Plain {
    pub(crate) fn new(peer: SocketAddr, now: Time) -> Self {
        Self {
            peer,
            opened: now,
            input: Vec::new(),
            idle_since: now,
            begun: None,
            polls: 0,
            desk: Desk::default(),
            moved_from: None,
            scan: Scan::default(),
            last: false,
            continued: false,
            timer: None,
        }
    }
}

/// One connection as the relay sees it.
pub(crate) struct Hop {
    pub(crate) conn: ConnId,
    pub(crate) link: Link,
    pub(crate) peer: SocketAddr,
    /// When the connection was accepted.
    pub(crate) opened: Time,
    /// When it became a hop.
    pub(crate) hop_since: Time,
    /// Exchanges with something to send on this hop, in turn; those that are gone are skipped.
    pub(crate) ready: VecDeque<Key>,
    /// DATA bytes received here that wait for another hop: less than its windows, or buffer, are.
    pub(crate) held: u32,
    pub(crate) received_at: Time,
    pub(crate) timer: Option<Time>,
    /// Hops that stopped reading until this one's output drains.
    pub(crate) stopped: Vec<ConnId>,
    /// Why this one does not read: how many hops it waits for.
    pub(crate) waits: u32,
    /// Bytes of a head that is not whole, as counted last.
    pub(crate) partial: u32,
    /// Size of the heads and trailers received here that wait with their exchanges.
    pub(crate) lists: u32,
    pub(crate) side: Side,
}

impl fmt::Debug for Hop {
    // The HPACK tables hold credentials: they are not for any log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hop")
            .field("conn", &self.conn)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// What a hop is for.
#[derive(Debug)]
pub(crate) enum Side {
    Client(Client),
    Tunnel(Tunnel),
}

/// A client's part of its hop.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Credentials and function keys seen on this connection, each authorised once.
    pub(crate) pins: Vec<Pin>,
    /// Live attachments of this connection.
    pub(crate) attachments: Vec<Key>,
    /// Attachments there ever were, for the histogram at close.
    pub(crate) tunnels_seen: u32,
    /// New dispatches allowed now, and since when they refill.
    pub(crate) dispatches: Bucket,
    pub(crate) leaving: Leaving,
    /// When the PING that is not answered yet was sent.
    pub(crate) pinged_at: Option<Time>,
    /// The client said GOAWAY and blamed nobody: it leaves in order.
    pub(crate) said_goaway: bool,
    /// Calls that repeat.
    pub(crate) calls: Vec<Call>,
}

/// How far a client connection is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leaving {
    #[default]
    No,
    /// The first GOAWAY and a PING are sent: requests already on their way still count.
    Warned { since: Time },
    /// The final GOAWAY is sent: streams finish, then it closes.
    Final,
}

/// What a credential may call on this connection.
#[derive(Debug)]
pub(crate) struct Pin {
    /// Over credential, function and version: found first by this.
    pub(crate) hash: u64,
    pub(crate) said: Said,
    pub(crate) grant: crate::control::local::Grant,
    /// When it was granted.
    pub(crate) granted_at: Time,
    /// Of the rules that granted it.
    pub(crate) rules: u32,
    /// The attachment that requests without an id use.
    pub(crate) attachment: Option<Key>,
}

/// What a client said of itself and of what it calls, in one piece of memory.
pub(crate) struct Said {
    octets: Box<[u8]>,
    credential: u32,
    /// [`AS_GRANTED`] if it called what was granted by its canonical ids, which stand there.
    function: u32,
}

/// In [`Said`], instead of a length.
const AS_GRANTED: u32 = u32::MAX;

impl Said {
    pub(crate) fn new(head: &RoutingHead<'_>, granted: &Owner) -> Self {
        let RoutingHead { credential, function, version, .. } = *head;
        let same = (function, version) == (granted.function.as_bytes(), granted.version.as_bytes());
        let called: [&[u8]; 2] = if same { [b"", b""] } else { [function, version] };
        Self {
            octets: [credential, called[0], called[1]].concat().into(),
            credential: credential.len() as u32,
            function: if same { AS_GRANTED } else { function.len() as u32 },
        }
    }

    pub(crate) fn credential(&self) -> &[u8] {
        &self.octets[..self.credential as usize]
    }
}

impl fmt::Debug for Said {
    /// Without the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.octets[self.credential as usize..].escape_ascii())
    }
}

impl Pin {
    /// The function as the client called it.
    pub(crate) fn function(&self) -> &[u8] {
        self.called().map_or(self.grant.owner.function.as_bytes(), |(function, _)| function)
    }

    /// The version as the client called it; empty if it named none.
    pub(crate) fn version(&self) -> &[u8] {
        self.called().map_or(self.grant.owner.version.as_bytes(), |(_, version)| version)
    }

    fn called(&self) -> Option<(&[u8], &[u8])> {
        let Said { octets, credential, function } = &self.said;
        let called = &octets[*credential as usize..];
        (*function != AS_GRANTED).then(|| called.split_at(*function as usize))
    }
}

/// Whether the function's side has begun to speak on a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It was asked nothing yet, and said nothing.
    #[default]
    Unasked,
    /// The first request went out then. Its process may have other things to do: it loads a model,
    /// or holds a lock.
    Asked(Time),
    /// Whatever it said.
    Yes,
}

/// A worker's part of its hop.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) attachment: Key,
    /// A request was sent on it.
    pub(crate) used: bool,
    /// The session cookie went out with one of its responses.
    pub(crate) cookie_sent: bool,
    /// When its last stream ended.
    pub(crate) idle_since: Option<Time>,
    /// When its deadlines were looked at last.
    pub(crate) looked_at: Time,
    /// What the peer has seen of our PINGs.
    pub(crate) pings: Pings,
    pub(crate) begun: Begun,
    /// The worker said GOAWAY: no new streams.
    pub(crate) going: bool,
    /// It has no client, and is kept until then.
    pub(crate) parked: Option<Time>,
    /// It was used up and is kept all the same, until another tunnel of the session is there.
    pub(crate) held: Option<Held>,
    /// Response heads and trailers that repeat.
    pub(crate) answers: Vec<Answer>,
}

/// Why a used-up tunnel is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Its client was lost. What it still says is thrown away, so that its end is seen.
    Lost {
        /// Bytes thrown away.
        dropped: usize,
    },
    /// The function's side has ended it.
    Finished,
}

impl Tunnel {
    /// A request goes out on it.
    pub(crate) fn asked(&mut self, now: Time) {
        if self.begun == Begun::Unasked {
            self.begun = Begun::Asked(now);
        }
    }
}

impl Client {
    /// What a question led to is what requests without an id use from now on, if they used nothing
    /// before: as when the session's home is here.
    pub(crate) fn pin_asked(
        &mut self,
        (function, version): (&[u8], &[u8]),
        tenant: &std::sync::Arc<str>,
        key: Key,
    ) {
        let asked = self.pins.iter_mut().find(|pin| {
            pin.function() == function
                && pin.version() == version
                && pin.grant.owner.tenant == *tenant
        });
        if let Some(pin) = asked {
            pin.attachment.get_or_insert(key);
        }
    }
}

impl Hop {
    pub(crate) fn client(&self) -> Option<&Client> {
        match &self.side {
            Side::Client(client) => Some(client),
            Side::Tunnel(_) => None,
        }
    }

    pub(crate) fn client_mut(&mut self) -> Option<&mut Client> {
        match &mut self.side {
            Side::Client(client) => Some(client),
            Side::Tunnel(_) => None,
        }
    }

    /// The peer is there: no PING is open any more.
    pub(crate) fn answered(&mut self) {
        match &mut self.side {
            Side::Client(client) => client.pinged_at = None,
            Side::Tunnel(tunnel) => {
                tunnel.pings.close();
                tunnel.begun = Begun::Yes;
            }
        }
    }

    /// It is read again: only from now on is the peer silent.
    pub(crate) fn read_again(&mut self, now: Time) {
        self.received_at = now;
        self.link.read_again(now);
        match &mut self.side {
            Side::Client(client) => client.pinged_at = None,
            Side::Tunnel(tunnel) => {
                tunnel.pings.close();
                if let Begun::Asked(at) = &mut tunnel.begun {
                    *at = now;
                }
            }
        }
    }

    /// What a PING, or the answer to one, finds here. What came until now counts for it.
    pub(crate) fn found(&mut self, now: Time) -> Found {
        let heard = self.link.has_heard();
        self.link.forget_heard();
        Found { now, in_use: self.link.streams() > 0, heard }
    }

    pub(crate) fn tunnel(&self) -> Option<&Tunnel> {
        match &self.side {
            Side::Tunnel(tunnel) => Some(tunnel),
            Side::Client(_) => None,
        }
    }

    pub(crate) fn tunnel_mut(&mut self) -> Option<&mut Tunnel> {
        match &mut self.side {
            Side::Tunnel(tunnel) => Some(tunnel),
            Side::Client(_) => None,
        }
    }
}

/// All connections, by the slot the border gave them.
#[derive(Debug, Default)]
pub(crate) struct Conns {
    slots: Vec<Option<(u32, Conn)>>,
    len: usize,
}

impl Conns {
    pub(crate) fn insert(&mut self, id: ConnId, conn: Conn) {
        let slot = id.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        if self.slots[slot].replace((id.generation, conn)).is_none() {
            self.len += 1;
        }
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&Conn> {
        match self.slots.get(id.slot as usize)? {
            Some((generation, conn)) if *generation == id.generation => Some(conn),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        match self.slots.get_mut(id.slot as usize)? {
            Some((generation, conn)) if *generation == id.generation => Some(conn),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Conn> {
        self.get(id)?;
        self.len -= 1;
        self.slots[id.slot as usize].take().map(|entry| entry.1)
    }

    pub(crate) fn hop(&self, id: ConnId) -> Option<&Hop> {
        match self.get(id)? {
            Conn::Hop(hop) => Some(hop),
            Conn::Fresh(_) | Conn::Door(_) => None,
        }
    }

    pub(crate) fn hop_mut(&mut self, id: ConnId) -> Option<&mut Hop> {
        match self.get_mut(id)? {
            Conn::Hop(hop) => Some(hop),
            Conn::Fresh(_) | Conn::Door(_) => None,
        }
    }

    /// Two hops at once; none if they are one.
    pub(crate) fn two_hops(&mut self, one: ConnId, other: ConnId) -> Option<[&mut Hop; 2]> {
        let slots = [one.slot as usize, other.slot as usize];
        let [one_slot, other_slot] = self.slots.get_disjoint_mut(slots).ok()?;
        let (one_generation, Conn::Hop(hop)) = one_slot.as_mut()? else { return None };
        let (other_generation, Conn::Hop(other_hop)) = other_slot.as_mut()? else { return None };
        let live = *one_generation == one.generation && *other_generation == other.generation;
        live.then_some([&mut **hop, &mut **other_hop])
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All hops, to be changed.
    pub(crate) fn hops_mut(&mut self) -> impl Iterator<Item = &mut Hop> {
        self.slots.iter_mut().flatten().filter_map(|(_, conn)| match conn {
            Conn::Hop(hop) => Some(&mut **hop),
            _ => None,
        })
    }

    pub(crate) fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.slots.iter().flatten().filter_map(|(_, conn)| match conn {
            Conn::Hop(hop) => Some(&**hop),
            Conn::Fresh(_) | Conn::Door(_) => None,
        })
    }

    pub(crate) fn ids(&self) -> Vec<ConnId> {
        let id = |(slot, entry): (usize, &Option<(u32, Conn)>)| {
            entry.as_ref().map(|e| ConnId { slot: slot as u32, generation: e.0 })
        };
        self.slots.iter().enumerate().filter_map(id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a session that rests costs, apart from the memory of its HPACK tables.
    #[test]
    fn what_rests_is_small() {
        assert!(size_of::<Option<(u32, Conn)>>() <= 24);
        assert!(size_of::<Hop>() <= 864, "{}", size_of::<Hop>());
        assert!(size_of::<Pin>() <= 80, "{}", size_of::<Pin>());
    }

    #[test]
    fn a_pin_knows_what_it_was_called_and_keeps_what_the_grant_does_not_say() {
        let id = "11111111-1111-4111-8111-111111111111";
        let owner = Owner { tenant: "t".into(), function: id.into(), version: "v".into() };
        let owner = std::sync::Arc::new(owner);
        let plain = id.replace('-', "");
        let calls = [(id, "v", 3), (id, "", 3 + 36), (&plain, "v", 3 + 32 + 1), (id, "w", 3 + 37)];
        for (function, version, kept) in calls {
            let head = RoutingHead {
                credential: b"key",
                function: function.as_bytes(),
                version: version.as_bytes(),
                request_id: None,
                style: ringway_proto::route::ReplyStyle::default(),
            };
            let pin = Pin {
                hash: 0,
                said: Said::new(&head, &owner),
                grant: crate::control::local::Grant { owner: owner.clone(), streaming: false },
                granted_at: Time::ZERO,
                rules: 0,
                attachment: None,
            };
            assert_eq!((pin.function(), pin.version()), (head.function, head.version));
            assert_eq!((pin.said.credential(), pin.said.octets.len()), (&b"key"[..], kept));
        }
    }
}
