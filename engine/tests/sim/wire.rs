//! The network: each connection is two ordered byte streams with a delay, a peer's buffer of
//! limited size, and an end.

use std::collections::VecDeque;

use ringway::border::End;
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
    /// All there is.
    Whole,
    /// Up to so many bytes.
    Random(usize),
    /// Single bytes, for so long; then as they come.
    Single(usize),
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    /// The core whose socket it is; none before the accept and between two cores.
    pub(crate) core: Option<usize>,
    pub(crate) cut: Cut,
    delay: (usize, usize),
    /// Arrived at the gateway's socket.
    pub(crate) inbound: VecDeque<u8>,
    pub(crate) in_fin: bool,
    pub(crate) in_reset: Option<End>,
    /// A send was told of the reset: no receive will be.
    pub(crate) error_taken: bool,
    to_gateway: VecDeque<Packet>,
    last_in: Time,
    to_peer: VecDeque<Packet>,
    last_out: Time,
    /// Bytes sent to the peer that it has not read.
    unread: usize,
    capacity: usize,
    /// The gateway's socket is closed.
    pub(crate) closed: bool,
    /// The gateway's FIN is out.
    fin_sent: bool,
    /// The peer has closed: what comes for it is answered with RST.
    pub(crate) peer_closed: bool,
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
            unread: 0,
            capacity,
            closed: false,
            fin_sent: false,
            peer_closed: false,
        }
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
        self.to_gateway.pop_front()
    }

    pub(crate) fn arrived_at_peer(&mut self) -> Option<Packet> {
        self.to_peer.pop_front()
    }

    /// The peer has read so many bytes.
    pub(crate) fn was_read(&mut self, bytes: usize) {
        self.unread -= bytes;
    }

    /// Bytes of the next receive.
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

/// All connections, and what was put on them and is not scheduled yet.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    pub(crate) links: Vec<Link>,
    /// Arrivals to be scheduled.
    pub(crate) arrivals: Vec<(Time, Toward, usize)>,
}

impl Wires {
    /// The peer puts something on the wire.
    pub(crate) fn peer_sends(&mut self, link: usize, packet: Packet, now: Time, seed: &mut Seed) {
        let wire = &mut self.links[link];
        let at = later(now, wire.delay, seed).max(wire.last_in);
        wire.last_in = at;
        wire.to_gateway.push_back(packet);
        self.arrivals.push((at, Toward::Gateway, link));
    }

    /// Nothing of the peer's that is put on the wire from now on arrives before this.
    pub(crate) fn hold(&mut self, link: usize, until: Time) {
        let wire = &mut self.links[link];
        wire.last_in = wire.last_in.max(until);
    }

    /// The gateway's kernel puts something on the wire.
    pub(crate) fn gateway_sends(
        &mut self,
        link: usize,
        packet: Packet,
        now: Time,
        seed: &mut Seed,
    ) {
        let wire = &mut self.links[link];
        if let Packet::Bytes(bytes) = &packet {
            wire.unread += bytes.len();
        }
        let at = later(now, wire.delay, seed).max(wire.last_out);
        wire.last_out = at;
        wire.to_peer.push_back(packet);
        self.arrivals.push((at, Toward::Peer, link));
    }

    /// The gateway sends its FIN and goes on reading.
    pub(crate) fn shut(&mut self, link: usize, now: Time, seed: &mut Seed) {
        if !std::mem::replace(&mut self.links[link].fin_sent, true) {
            self.gateway_sends(link, Packet::Fin, now, seed);
        }
    }

    /// The gateway closes its socket by RST.
    pub(crate) fn cut(&mut self, link: usize, now: Time, seed: &mut Seed) {
        let wire = &mut self.links[link];
        wire.core = None;
        wire.inbound.clear();
        if !std::mem::replace(&mut wire.closed, true) && wire.in_reset.is_none() {
            self.gateway_sends(link, Packet::Reset(End::Reset), now, seed);
        }
    }

    /// The gateway closes its socket: FIN, or RST if something was left unread.
    pub(crate) fn close(&mut self, link: usize, now: Time, seed: &mut Seed) {
        let wire = &mut self.links[link];
        wire.core = None;
        if std::mem::replace(&mut wire.closed, true) || wire.in_reset.is_some() {
            return;
        }
        if wire.inbound.is_empty() {
            self.shut(link, now, seed);
        } else {
            wire.inbound.clear();
            self.gateway_sends(link, Packet::Reset(End::Reset), now, seed);
        }
    }
}

fn later(now: Time, delay: (usize, usize), seed: &mut Seed) -> Time {
    Time(now.0 + seed.range(delay.0, delay.1) as u64)
}
