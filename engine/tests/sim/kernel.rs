//! What the kernel makes of one core's operations: how much a receive brings and a send takes, when
//! a cancelled operation ends, in which order completions come. All code above the kernel is the
//! gateway's own.

mod operations;
mod socket;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::RawFd;

use ringway::net::{End, Listener, SimulatedSocket};
use ringway::pool::{Pool, Segment};
use ringway::reactor::{self, Accepts, Completion, Options, Report, Share, SimulatedListener, Tag};
use ringway_proto::time::Time;

use self::operations::{Cancel, Connecting, Operations, Polling, Receiving, Shot, polls, shots};
use self::socket::{Port, Socket};
use super::journal::note;
use super::seed::Seed;
use super::wire::{Packet, Wires, Wiring, descriptor};

/// So many blocks are lent at a time.
const LENT: usize = 4;

/// How a kernel behaves, in one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Whether the kernel behaves as io_uring: a send that took all is told only if that was asked for,
    /// and a poll goes on and tells of changes, and of the peer's FIN unasked. Otherwise it behaves as
    /// epoll: every send is told, and a poll ends when there is room.
    ring: bool,
    /// Receives may take as much as they find, until they are cancelled.
    unbounded: bool,
    /// There is room for so few connections that they are accepted one by one.
    narrow: bool,
}

impl Manner {
    /// The manner is drawn by dice of its own.
    pub(crate) fn of(number: u64) -> Self {
        let mut seed = Seed::new(number.rotate_left(32) ^ 0x7269_6e67);
        Self { ring: seed.chance(65), unbounded: seed.chance(20), narrow: seed.chance(20) }
    }

    /// The options with which a reactor is made.
    pub(crate) fn options(self, core: usize, blocks: usize, block_bytes: usize) -> Options {
        let all = Options::default();
        let most = |many: usize| if self.narrow { 1_000 } else { many };
        let bound = |bytes: usize| if self.unbounded { 0 } else { bytes };
        Options {
            core: core as u16,
            blocks,
            block_bytes,
            lent: LENT,
            receive_cap: bound(all.receive_cap),
            receive_limit: bound(all.receive_limit),
            clients: most(all.clients),
            workers: most(all.workers),
            ..all
        }
    }
}

#[derive(Debug)]
struct Accepting {
    listener: RawFd,
    often: Accepts,
    tag: Tag,
    cancel: Option<Tag>,
}

#[derive(Debug)]
struct Sending {
    socket: RawFd,
    parts: Vec<Segment>,
    report: Report,
    tag: Tag,
}

/// What an operation under way causes next.
#[derive(Debug)]
enum Next {
    Told(Completion),
    Shot(RawFd, Shot),
}

/// One core's kernel.
pub(crate) struct Kernel {
    core: usize,
    node: usize,
    wiring: Wiring,
    manner: Manner,
    /// How many sends take less than there is room for, in percent.
    short_writes: u32,
    seed: Seed,
    accepts: Vec<Accepting>,
    sockets: BTreeMap<RawFd, Operations>,
    sends: Vec<Sending>,
    /// Operations that have ended and whose completions are to come, and their socket if they have one.
    ended: Vec<(Option<RawFd>, Completion)>,
    /// The blocks to be filled, and how much of the first one is filled.
    lent: VecDeque<u16>,
    filled: usize,
    batch: Vec<Completion>,
    /// Completions of the last turn.
    pub(crate) told: usize,
}

impl Kernel {
    /// Whether the core is receiving on this socket.
    pub(crate) fn receives(&self, socket: RawFd) -> bool {
        self.sockets.get(&socket).is_some_and(|of| of.receive.is_some())
    }

    pub(crate) fn new(
        (core, node): (usize, usize),
        wiring: &Wiring,
        (manner, short_writes): (Manner, u32),
        seed: Seed,
    ) -> Self {
        Self {
            core,
            node,
            wiring: wiring.clone(),
            manner,
            short_writes,
            seed,
            accepts: Vec::new(),
            sockets: BTreeMap::new(),
            sends: Vec::new(),
            ended: Vec::new(),
            lent: VecDeque::new(),
            filled: 0,
            batch: Vec::new(),
            told: 0,
        }
    }

    /// A core's listeners. Their queues outlive the core.
    pub(crate) fn listeners(
        core: usize,
        wiring: &Wiring,
    ) -> Vec<(Listener, Box<dyn SimulatedListener>)> {
        let port = |listener| -> (Listener, Box<dyn SimulatedListener>) {
            (listener, Box::new(Port { wiring: wiring.clone(), core, listener }))
        };
        [Listener::Client, Listener::Worker, Listener::Cluster].map(port).into()
    }

    /// The connections that listeners let in.
    fn accepting(&mut self, wires: &mut Wires) -> Vec<VecDeque<Next>> {
        let mut queues = Vec::new();
        for mut accept in std::mem::take(&mut self.accepts) {
            let mut queue = VecDeque::new();
            if let Some(tag) = accept.cancel.take() {
                queue.push_back(Next::Told(Completion::last(accept.tag, -libc::ECANCELED)));
                queue.push_back(Next::Told(Completion::last(tag, 0)));
                queues.push(queue);
                continue;
            }
            let listener = listener(accept.listener);
            let once = accept.often == Accepts::One;
            let most = if once { 1 } else { usize::MAX };
            let come = wires.let_in(self.core, listener, most);
            let ended = once && !come.is_empty();
            for link in come {
                let made = if once { Completion::last } else { Completion::one_of };
                queue.push_back(Next::Told(made(accept.tag, link as i32)));
            }
            queues.push(queue);
            if !ended {
                self.accepts.push(accept);
            }
        }
        queues
    }

    /// What all operations cause next, in order for each socket.
    fn nexts(&mut self, wires: &mut Wires) -> Vec<VecDeque<Next>> {
        let mut queues = self.accepting(wires);
        let Self { core, manner, seed, sockets, ended, .. } = self;
        let mut of_sockets: BTreeMap<RawFd, VecDeque<Next>> = BTreeMap::new();
        for (socket, completion) in ended.drain(..) {
            // A send has ended before what comes after it: a receive that sees no more than the end,
            // room that it has waited for.
            match socket {
                Some(socket) => {
                    of_sockets.entry(socket).or_default().push_back(Next::Told(completion));
                }
                None => queues.push(VecDeque::from([Next::Told(completion)])),
            }
        }
        for (socket, operations) in sockets.iter_mut() {
            let link = &mut wires.links[*socket as usize];
            let here = link.core == Some(*core);
            assert!(here || operations.is_none(), "link {socket}: what is under way outlives it");
            let mut shots = match &mut operations.receive {
                Some(receive) => shots(receive, link, manner.ring, seed),
                None => VecDeque::new(),
            };
            let mut polls = match operations.poll.take() {
                Some(poll) => polls(poll, link, manner.ring, (&mut operations.poll, &mut *seed)),
                None => VecDeque::new(),
            };
            let queue = of_sockets.entry(*socket).or_default();
            queue.extend(operations.connects(link).into_iter().map(Next::Told));
            while !shots.is_empty() || !polls.is_empty() {
                let shot = if seed.chance(50) { shots.pop_front() } else { None };
                match shot {
                    Some(shot) => queue.push_back(Next::Shot(*socket, shot)),
                    None => queue.extend(polls.pop_front().map(Next::Told)),
                }
            }
        }
        sockets.retain(|_, operations| !operations.is_none());
        queues.extend(of_sockets.into_values());
        queues.retain(|queue| !queue.is_empty());
        queues
    }

    /// A receive brings something, unless it has ended meanwhile.
    fn shoot(&mut self, socket: RawFd, shot: &Shot, wires: &mut Wires, pool: &mut Pool) {
        let Some(receive) = self.sockets.get_mut(&socket).and_then(|of| of.receive.as_mut()) else {
            return;
        };
        let tag = receive.tag;
        match *shot {
            Shot::Bytes { bytes, last } => {
                receive.taken += bytes;
                if self.fill(socket, (tag, bytes, last), wires, pool) {
                    self.disarm(socket, -libc::ENOENT);
                }
            }
            Shot::End(result) => {
                note("core", self.core, "sees the end of link", [socket as u64, result as u64]);
                self.batch.push(Completion::last(tag, result));
                self.disarm(socket, -libc::ENOENT);
            }
            Shot::Cancelled => {
                self.batch.push(Completion::last(tag, -libc::ECANCELED));
                self.disarm(socket, 0);
            }
            Shot::Missed => {
                let missed = receive.cancel.take().expect("it was cancelled");
                self.batch.push(Completion::last(missed.tag, -libc::ENOENT));
            }
        }
    }

    /// A receive has ended, and with it the operation that was to cancel it.
    fn disarm(&mut self, socket: RawFd, cancelled: i32) {
        let ended = self.sockets.get_mut(&socket).and_then(|of| of.receive.take());
        if let Some(cancel) = ended.and_then(|receive| receive.cancel) {
            self.batch.push(Completion::last(cancel.tag, cancelled));
        }
    }

    /// Moves received bytes into lent blocks. Returns whether the receive has ended.
    fn fill(
        &mut self,
        socket: RawFd,
        (tag, mut bytes, last): (Tag, usize, bool),
        wires: &mut Wires,
        pool: &mut Pool,
    ) -> bool {
        let inbound = &mut wires.links[socket as usize].inbound;
        while bytes > 0 {
            let Some(block) = self.lent.front().copied() else {
                note("core", self.core, "is out of receive blocks, link", [socket as u64, 0]);
                self.batch.push(Completion::last(tag, -libc::ENOBUFS));
                return true;
            };
            let size = pool.block_bytes();
            let n = bytes.min(size - self.filled);
            let start = usize::from(block) * size + self.filled;
            let into = &mut pool.ring_memory()[start..start + n];
            into.iter_mut().zip(inbound.drain(..n)).for_each(|(to, byte)| *to = byte);
            bytes -= n;
            self.filled += n;
            let full = self.filled == size;
            if full {
                self.lent.pop_front();
                self.filled = 0;
            }
            note("core", self.core, "receives on link, bytes", [socket as u64, n as u64]);
            let made = if last && bytes == 0 { Completion::last } else { Completion::one_of };
            self.batch.push(made(tag, n as i32).in_block(block, full));
        }
        last
    }

    /// Makes one send.
    fn transmit(&mut self, send: Sending, wires: &mut Wires, pool: &Pool) {
        let Sending { socket, parts, report, tag } = send;
        let link = &mut wires.links[socket as usize];
        assert_eq!(link.core, Some(self.core), "link {socket}: a send on a socket of others");
        assert!(!link.fin_sent, "link {socket}: a send behind its own FIN");
        let offered: usize = parts.iter().map(|part| part.len as usize).sum();
        let mut room = link.room().min(offered);
        if room > 1 && self.seed.chance(self.short_writes) {
            room = self.seed.range(1, room);
        }
        let result = if let Some(end) = link.in_reset {
            link.error_taken = true;
            -errno(end)
        } else if room == 0 {
            -libc::EAGAIN
        } else {
            room as i32
        };
        note("core", self.core, "sends on link, bytes", [socket as u64, result.max(0) as u64]);
        if result > 0 {
            let mut bytes = Vec::with_capacity(offered);
            parts.iter().for_each(|part| bytes.extend_from_slice(pool.bytes(*part)));
            bytes.truncate(room);
            wires.gateway_sends(socket as usize, Packet::Bytes(bytes));
        }
        let whole = room == offered && result > 0;
        if let Some(poll) = self.sockets.get_mut(&socket).and_then(|of| of.poll.as_mut()) {
            poll.blocked |= !whole;
        }
        if !(self.manner.ring && whole && report == Report::Failure) {
            self.ended.push((Some(socket), Completion::last(tag, result)));
        }
    }
}

impl reactor::Kernel for Kernel {
    fn now(&self) -> Time {
        self.wiring.lock().now
    }

    fn accept(&mut self, listener: RawFd, often: Accepts, tag: Tag) {
        self.accepts.push(Accepting { listener, often, tag, cancel: None });
    }

    fn accepted(&mut self, socket: RawFd) -> Box<dyn SimulatedSocket> {
        note("core", self.core, "accepts link", [socket as u64, 0]);
        Box::new(Socket { wiring: self.wiring.clone(), number: socket })
    }

    fn socket(&mut self) -> Box<dyn SimulatedSocket> {
        let number = self.wiring.lock().socket(self.core, self.node) as RawFd;
        note("core", self.core, "dials by link", [number as u64, 0]);
        Box::new(Socket { wiring: self.wiring.clone(), number })
    }

    fn connect(&mut self, socket: RawFd, address: SocketAddr, tag: Tag) {
        self.sockets.entry(socket).or_default().connect = Some(Connecting { tag, cancel: None });
        self.wiring.lock().dials.push((socket as usize, address));
    }

    fn adopted(&mut self, socket: RawFd) {
        note("core", self.core, "takes up link", [socket as u64, 0]);
        let here = self.wiring.lock().links[socket as usize].core.replace(self.core);
        assert_eq!(here, None, "link {socket}: two cores have it");
    }

    fn receive(&mut self, socket: RawFd, share: Share, tag: Tag) {
        let operations = self.sockets.entry(socket).or_default();
        let receive = Receiving { tag, share, taken: 0, cancel: None };
        let before = operations.receive.replace(receive);
        assert!(before.is_none(), "link {socket}: two receives at the same time");
    }

    fn send(&mut self, socket: RawFd, parts: Vec<Segment>, report: Report, tag: Tag) {
        let two = self.sends.iter().any(|send| send.socket == socket);
        assert!(
            !two && !parts.is_empty(),
            "link {socket}: two sends in one turn, or one of nothing"
        );
        self.sends.push(Sending { socket, parts, report, tag });
    }

    fn writable(&mut self, socket: RawFd, tag: Tag) {
        let poll = Polling { tag, blocked: true, fin_told: false, break_told: false, cancel: None };
        let before = self.sockets.entry(socket).or_default().poll.replace(poll);
        assert!(before.is_none(), "link {socket}: two polls at the same time");
    }

    fn cancel(&mut self, target: Tag, tag: Tag) {
        if let Some(accept) = self.accepts.iter_mut().find(|accept| accept.tag == target) {
            accept.cancel = Some(tag);
            return;
        }
        for operations in self.sockets.values_mut() {
            if let Some(receive) = operations.receive.as_mut().filter(|r| r.tag == target) {
                let turns = self.seed.below(3) as u8;
                if receive.cancel.is_none() {
                    receive.cancel = Some(Cancel { tag, turns });
                    return;
                }
                return self.ended.push((None, Completion::last(tag, 0)));
            }
            if let Some(poll) = operations.poll.as_mut().filter(|poll| poll.tag == target) {
                poll.cancel = Some(tag);
                return;
            }
            if let Some(connect) = operations.connect.as_mut().filter(|c| c.tag == target) {
                connect.cancel = Some(tag);
                return;
            }
        }
        self.ended.push((None, Completion::last(tag, -libc::ENOENT)));
    }

    fn lend(&mut self, pool: &mut Pool) {
        while pool.ring_lent() < LENT {
            let Some(block) = pool.lend() else { break };
            self.lent.push_back(block);
        }
    }

    fn enter(&mut self, pool: &Pool) {
        let wiring = self.wiring.clone();
        let mut wires = wiring.lock();
        for send in std::mem::take(&mut self.sends) {
            self.transmit(send, &mut wires, pool);
        }
    }

    fn leave(&mut self, pool: &mut Pool) {
        let wiring = self.wiring.clone();
        let mut wires = wiring.lock();
        let mut queues = self.nexts(&mut wires);
        while !queues.is_empty() {
            let at = self.seed.below(queues.len());
            match queues[at].pop_front() {
                Some(Next::Told(completion)) => self.batch.push(completion),
                Some(Next::Shot(socket, shot)) => self.shoot(socket, &shot, &mut wires, pool),
                None => drop(queues.swap_remove(at)),
            }
        }
        self.told = self.batch.len();
    }

    fn take_batch(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.batch)
    }

    fn has_work(&self) -> bool {
        let wires = self.wiring.lock();
        let works = |(socket, operations): (&RawFd, &Operations)| {
            operations.have_work(&wires.links[*socket as usize], self.manner.ring)
        };
        let lets_in = |accept: &Accepting| {
            accept.cancel.is_some() || wires.knocks(self.core, listener(accept.listener))
        };
        !self.ended.is_empty() || self.accepts.iter().any(lets_in) || self.sockets.iter().any(works)
    }
}

fn errno(end: End) -> i32 {
    match end {
        End::Timeout => libc::ETIMEDOUT,
        _ => libc::ECONNRESET,
    }
}

fn listener(number: RawFd) -> Listener {
    let all = [Listener::Client, Listener::Worker, Listener::Cluster];
    all.into_iter().find(|of| descriptor(*of) == number).expect("a listener's descriptor")
}
