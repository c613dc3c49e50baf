//! The network: each connection is two ordered byte streams with a delay, a peer's buffer of
//! limited size, and an end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use ringway::net::{End, Listener};
use ringway_proto::time::Time;

use super::seed::Seed;

/// What is on its way in one direction.
#[derive(Debug)]
pub(crate) enum Packet {
    Bytes(Vec<u8>),
    Fin,
    Reset(End),
}

/// How the gateway's receives are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// A receive takes all there is.
    Whole,
    /// A receive takes up to so many bytes.
    Random(usize),
    /// So many receives take single bytes, and all others what has come.
    Single(usize),
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    /// The core that has the socket. No core has it before the accept, and on its way between two cores.
    pub(crate) core: Option<usize>,
    pub(crate) cut: Cut,
    delay: (usize, usize),
    /// Bytes that have arrived at the gateway's socket.
    pub(crate) inbound: VecDeque<u8>,
    pub(crate) in_fin: bool,
    pub(crate) in_reset: Option<End>,
    /// A send was told of the reset, so that no receive will be.
    pub(crate) error_taken: bool,
    /// Each packet, and how many of the gateway's bytes had reached the peer when it was sent.
    to_gateway: VecDeque<(Packet, usize)>,
    last_in: Time,
    to_peer: VecDeque<Packet>,
    last_out: Time,
    /// How many of the gateway's bytes were sent, have arrived, and are acknowledged.
    sent: usize,
    reached: usize,
    acknowledged: usize,
    /// Bytes sent to the peer that it has not read.
    unread: usize,
    capacity: usize,
    /// The gateway's socket is closed.
    pub(crate) closed: bool,
    /// The gateway's FIN is sent.
    pub(crate) fin_sent: bool,
    /// Closing the gateway's socket sends a RST.
    pub(crate) resets: bool,
    /// The peer has closed and answers everything with a RST.
    pub(crate) peer_closed: bool,
    /// The node whose end this is.
    pub(crate) home: usize,
    /// The node that has made the connection. A client or a worker has made it if there is none.
    pub(crate) from: Option<usize>,
    /// The last number of its peer's address, unless the peer is a node.
    pub(crate) host: u8,
    /// The link that is the other end, if the peer is another node and has accepted.
    pub(crate) other: Option<usize>,
    /// How the dial has ended, if the gateway has made the connection.
    pub(crate) dialled: Option<i32>,
    /// Nothing passes this connection any more.
    pub(crate) severed: bool,
    /// When the machine whose end this is has vanished. It has said nothing since then.
    pub(crate) vanished: Option<Time>,
}

impl Link {
    pub(crate) fn new(delay: (usize, usize), capacity: usize, cut: Cut) -> Self {
        Self {
            core: None,
            cut,
            delay,
            inbound: VecDeque::new(),
            in_fin: false,
            in_reset: None,
            error_taken: false,
            to_gateway: VecDeque::new(),
            last_in: Time::ZERO,
            to_peer: VecDeque::new(),
            last_out: Time::ZERO,
            sent: 0,
            reached: 0,
            acknowledged: 0,
            unread: 0,
            capacity,
            closed: false,
            fin_sent: false,
            resets: false,
            peer_closed: false,
            home: 0,
            from: None,
            host: HONEST,
            other: None,
            dialled: None,
            severed: false,
            vanished: None,
        }
    }

    /// Bytes for the gateway's socket that it has not received.
    pub(crate) fn backlog(&self) -> usize {
        let coming = self.to_gateway.iter().map(|(packet, _)| match packet {
            Packet::Bytes(bytes) => bytes.len(),
            Packet::Fin | Packet::Reset(_) => 0,
        });
        self.inbound.len() + coming.sum::<usize>()
    }

    /// Whether the peer, if it is a node, takes no more now. Its buffer has a limited size too.
    pub(crate) fn is_full(&self) -> bool {
        self.backlog() >= self.capacity
    }

    /// Bytes the gateway may send now.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.unread)
    }

    /// Whether a receive would end with something.
    pub(crate) fn is_readable(&self) -> bool {
        !self.inbound.is_empty() || self.in_fin || self.in_reset.is_some()
    }

    /// Whether a poll for room would end.
    pub(crate) fn is_writable(&self) -> bool {
        self.room() > 0 || self.in_reset.is_some()
    }

    pub(crate) fn arrived_at_gateway(&mut self) -> Option<Packet> {
        let (packet, reached) = self.to_gateway.pop_front()?;
        self.acknowledged = self.acknowledged.max(reached);
        Some(packet)
    }

    pub(crate) fn arrived_at_peer(&mut self) -> Option<Packet> {
        let packet = self.to_peer.pop_front();
        if let Some(Packet::Bytes(bytes)) = &packet {
            self.reached += bytes.len();
        }
        packet
    }

    /// Whatever the gateway has sent and has not arrived yet is lost.
    pub(crate) fn lose_sent(&mut self) {
        self.to_peer.clear();
    }

    /// How many of the gateway's bytes are not acknowledged. The peer acknowledges with the packets
    /// that it sends.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.sent - self.acknowledged
    }

    /// The peer has read so many bytes.
    pub(crate) fn was_read(&mut self, bytes: usize) {
        self.unread -= bytes;
    }

    /// How many bytes the next receive takes.
    pub(crate) fn next_cut(&mut self, seed: &mut Seed, most: usize) -> usize {
        let most = most.min(self.inbound.len());
        match &mut self.cut {
            Cut::Whole => most,
            Cut::Random(limit) => seed.range(1, (*limit).max(1)).min(most),
            Cut::Single(left) if *left > 0 => {
                *left -= 1;
                most.min(1)
            }
            Cut::Single(_) => most,
        }
    }
}

/// Which way something travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Toward {
    Gateway,
    Peer,
}

/// A connection that waits to be accepted.
#[derive(Debug)]
struct Knocking {
    core: usize,
    listener: Listener,
    link: usize,
}

/// All connections, and the packets on them whose arrival is not scheduled yet.
#[derive(Debug)]
pub(crate) struct Wires {
    pub(crate) now: Time,
    seed: Seed,
    pub(crate) links: Vec<Link>,
    /// Arrivals to be scheduled.
    pub(crate) arrivals: Vec<(Time, Toward, usize)>,
    knocking: Vec<Knocking>,
    /// Listeners that are closed, by their descriptors.
    shut: BTreeSet<(usize, i32)>,
    /// Whether the kernels of this world can keep addresses out.
    pub(crate) filters: bool,
    /// The addresses that each core's listeners keep out.
    kept_out: BTreeMap<(usize, i32), Vec<IpAddr>>,
    /// Links whose cores wish them to be connected, and where to.
    pub(crate) dials: Vec<(usize, SocketAddr)>,
    /// The delay and the capacity of a link that a gateway makes.
    pub(crate) pattern: (usize, usize, usize),
}

/// The network, which world, kernels and sockets share. Nobody holds its lock while another one of
/// them is asked.
#[derive(Clone, Debug)]
pub(crate) struct Wiring(Arc<Mutex<Wires>>);

impl Wiring {
    pub(crate) fn new(now: Time, seed: Seed) -> Self {
        let (links, arrivals, knocking) = (Vec::new(), Vec::new(), Vec::new());
        let (shut, dials, pattern) = (BTreeSet::new(), Vec::new(), (0, 0, usize::MAX));
        let (filters, kept_out) = (true, BTreeMap::new());
        let wires =
            Wires { now, seed, links, arrivals, knocking, shut, filters, kept_out, dials, pattern };
        Self(Arc::new(Mutex::new(wires)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Wires> {
        match self.0.try_lock() {
            Ok(wires) => wires,
            // A failed run is taken down.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => panic!("the network is held while it is asked for"),
        }
    }
}

/// The machine of strangers that prove nothing, and that of all others who are no node.
pub(crate) const SUSPECT: u8 = 6;
pub(crate) const HONEST: u8 = 1;

/// An address from which nobody comes.
pub(crate) fn nobody() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 9))
}

/// What stands for a listener's descriptor.
pub(crate) fn descriptor(listener: Listener) -> i32 {
    match listener {
        Listener::Client => 0,
        Listener::Worker => 1,
        Listener::Cluster => 2,
    }
}

pub(crate) fn link_of(address: SocketAddr) -> usize {
    usize::from(address.port() - 10_000)
}

impl Wires {
    /// The address from which a link's peer comes; [`link_of`] is the way back.
    pub(crate) fn address(&self, link: usize) -> SocketAddr {
        let Link { from, host, .. } = self.links[link];
        let host = from.map_or([127, 0, 0, host], |node| [10, 0, 0, 1 + node as u8]);
        SocketAddr::from((host, 10_000 + link as u16))
    }

    // ---- listeners ----

    pub(crate) fn knock(&mut self, core: usize, listener: Listener, link: usize) {
        self.knocking.push(Knocking { core, listener, link });
    }

    pub(crate) fn knocks(&self, core: usize, listener: Listener) -> bool {
        self.knocking.iter().any(|come| come.core == core && come.listener == listener)
    }

    pub(crate) fn is_knocking(&self, link: usize) -> bool {
        self.knocking.iter().any(|come| come.link == link)
    }

    /// Takes up to so many connections out of a listener's queue.
    pub(crate) fn let_in(&mut self, core: usize, listener: Listener, most: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        self.knocking.retain(|come| {
            let takes = come.core == core && come.listener == listener && taken.len() < most;
            if takes {
                taken.push(come.link);
            }
            !takes
        });
        taken
    }

    /// Nobody connects to a listener any more. Returns those that have connected.
    pub(crate) fn end_listener(&mut self, core: usize, listener: Listener) -> Vec<usize> {
        self.shut.insert((core, descriptor(listener)));
        self.let_in(core, listener, usize::MAX)
    }

    pub(crate) fn is_shut(&self, core: usize, listener: Listener) -> bool {
        self.shut.contains(&(core, descriptor(listener)))
    }

    /// A core wishes to let nobody in from these addresses, and everybody else.
    pub(crate) fn keep_out(
        &mut self,
        (core, listener): (usize, Listener),
        addresses: &[SocketAddr],
    ) -> io::Result<()> {
        let addresses: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
        let suspect = IpAddr::from([127, 0, 0, SUSPECT]);
        let wrong = addresses.iter().find(|address| **address != suspect);
        assert!(wrong.is_none(), "core {core} keeps out {wrong:?}, who has done nothing");
        if !self.filters {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.kept_out.insert((core, descriptor(listener)), addresses);
        Ok(())
    }

    /// Whether a listener keeps a link's peer out.
    pub(crate) fn keeps_out(&self, core: usize, listener: Listener, host: u8) -> bool {
        let all = self.kept_out.get(&(core, descriptor(listener)));
        all.is_some_and(|all| all.contains(&IpAddr::from([127, 0, 0, host])))
    }

    /// A core whose listeners keep somebody out, and who that is. Listeners that are closed do not
    /// count.
    pub(crate) fn anybody_kept_out(&self) -> Option<(usize, IpAddr)> {
        let open = self.kept_out.iter().filter(|(listener, _)| !self.shut.contains(listener));
        open.flat_map(|((core, _), all)| all.iter().map(|address| (*core, *address))).next()
    }

    /// A core gets new listeners, since another process is there.
    pub(crate) fn listen_anew(&mut self, core: usize) {
        self.shut.retain(|(of, _)| *of != core);
        self.kept_out.retain(|(of, _), _| *of != core);
        let here = self.knocking.extract_if(.., |come| come.core == core);
        for link in here.map(|come| come.link).collect::<Vec<_>>() {
            self.links[link].resets = true;
            self.close(link);
        }
    }

    /// Makes a socket that is to be connected.
    pub(crate) fn socket(&mut self, core: usize, node: usize) -> usize {
        let (low, high, capacity) = self.pattern;
        let mut link = Link::new((low, high), capacity, Cut::Whole);
        (link.core, link.home, link.from) = (Some(core), node, Some(node));
        self.links.push(link);
        self.links.len() - 1
    }

    /// Whether a link leads nowhere: it is broken, or nobody has accepted it yet.
    pub(crate) fn leads_nowhere(&self, link: usize) -> bool {
        let of = &self.links[link];
        of.severed || (of.from == Some(of.home) && of.other.is_none())
    }

    /// Both ends of a link between nodes hear that it is broken.
    pub(crate) fn sever(&mut self, link: usize, end: End) {
        let both = std::iter::once(link).chain(self.links[link].other);
        for link in both.collect::<Vec<_>>() {
            let of = &mut self.links[link];
            of.severed = true;
            if !of.closed {
                of.in_reset.get_or_insert(end);
            }
        }
    }

    // ---- what is put on the wire ----

    /// The peer puts something on the wire.
    pub(crate) fn peer_sends(&mut self, link: usize, packet: Packet) {
        let wire = &mut self.links[link];
        let at = later(self.now, wire.delay, &mut self.seed).max(wire.last_in);
        wire.last_in = at;
        wire.to_gateway.push_back((packet, wire.reached));
        self.arrivals.push((at, Toward::Gateway, link));
    }

    /// Whatever the peer puts on the wire from now on arrives no earlier than this.
    pub(crate) fn hold(&mut self, link: usize, until: Time) {
        let wire = &mut self.links[link];
        wire.last_in = wire.last_in.max(until);
    }

    /// The gateway's kernel puts something on the wire.
    pub(crate) fn gateway_sends(&mut self, link: usize, packet: Packet) {
        let wire = &mut self.links[link];
        if wire.vanished.is_some() {
            return;
        }
        if let Packet::Bytes(bytes) = &packet {
            wire.unread += bytes.len();
            wire.sent += bytes.len();
        }
        let at = later(self.now, wire.delay, &mut self.seed).max(wire.last_out);
        wire.last_out = at;
        wire.to_peer.push_back(packet);
        self.arrivals.push((at, Toward::Peer, link));
    }

    /// The gateway sends its FIN and goes on reading.
    pub(crate) fn shut(&mut self, link: usize) {
        if !std::mem::replace(&mut self.links[link].fin_sent, true) {
            self.gateway_sends(link, Packet::Fin);
        }
    }

    /// The gateway closes its socket. The peer gets a FIN, or a RST if bytes were left unread or the
    /// gateway wished so.
    pub(crate) fn close(&mut self, link: usize) {
        let wire = &mut self.links[link];
        wire.core = None;
        if std::mem::replace(&mut wire.closed, true) || wire.in_reset.is_some() {
            return;
        }
        if wire.inbound.is_empty() && !wire.resets {
            self.shut(link);
        } else {
            wire.inbound.clear();
            self.gateway_sends(link, Packet::Reset(End::Reset));
        }
    }
}

fn later(now: Time, delay: (usize, usize), seed: &mut Seed) -> Time {
    Time(now.0 + seed.range(delay.0, delay.1) as u64)
}
