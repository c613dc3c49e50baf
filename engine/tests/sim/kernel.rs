//! The sockets of one core and what the kernel makes of the operations on them: how much a receive
//! brings, when a cancelled one ends, in which order completions come.

use std::collections::VecDeque;

use ringway::border::{ConnId, End};
use ringway::pool::{Pool, Segment};
use ringway_proto::time::Time;

use super::seed::Seed;
use super::wire::{Link, Wires};

/// Blocks lent at a time, bytes of one receive, and of one socket in one turn.
const LENT: usize = 4;
const RECEIVE_CAP: usize = 64 * 1024;
const RECEIVE_LIMIT: usize = 128 * 1024;

/// Receives of one socket in one turn at most.
const SHOTS: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Flushing,
    Lingering,
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receive {
    Idle,
    Armed,
    /// The cancel takes so many more turns.
    Cancelling {
        turns: u8,
    },
    Starved,
}

/// One socket, as in `reactor/socket.rs`.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) link: usize,
    pub(crate) conn: ConnId,
    pub(crate) phase: Phase,
    pub(crate) receive: Receive,
    pub(crate) offered: usize,
    pub(crate) polling: bool,
    /// The poll was asked to end.
    pub(crate) cancelled: bool,
    pub(crate) fin: bool,
    /// Closing it is a RST.
    pub(crate) resets: bool,
    pub(crate) broken: Option<End>,
    pub(crate) progress: Time,
    pub(crate) dropped: usize,
}

impl Socket {
    pub(crate) fn new(link: usize, conn: ConnId) -> Self {
        Self {
            link,
            conn,
            phase: Phase::Open,
            receive: Receive::Idle,
            offered: 0,
            polling: false,
            cancelled: false,
            fin: false,
            resets: false,
            broken: None,
            progress: Time::ZERO,
            dropped: 0,
        }
    }

    pub(crate) fn is_receiving(&self) -> bool {
        matches!(self.receive, Receive::Armed | Receive::Cancelling { .. })
    }

    pub(crate) fn is_still(&self) -> bool {
        self.phase == Phase::Open && !self.is_receiving() && self.offered == 0 && !self.polling
    }

    pub(crate) fn may_send(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Flushing)
            && self.offered == 0
            && !self.polling
            && self.broken.is_none()
    }
}

/// An ended operation, or one more result of one that goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Done {
    /// Up to so many bytes; `last`: the receive has ended with them.
    Received {
        conn: ConnId,
        bytes: usize,
        last: bool,
    },
    Ended {
        conn: ConnId,
    },
    Failed {
        conn: ConnId,
        end: End,
    },
    Cancelled {
        conn: ConnId,
    },
    /// The cancel came between two shots and found nothing.
    CancelMissed {
        conn: ConnId,
    },
    /// Taken bytes, no room (`None`), or a broken connection.
    Sent {
        conn: ConnId,
        result: Result<usize, Option<End>>,
    },
    Writable {
        conn: ConnId,
    },
}

#[derive(Default)]
pub(crate) struct Kernel {
    sockets: Vec<Option<Socket>>,
    /// Sends that will complete in the next enter.
    pub(crate) sends: Vec<Done>,
    /// Blocks to be filled, and how much of the first is.
    lent: VecDeque<u16>,
    filled: usize,
}

impl Kernel {
    pub(crate) fn add(&mut self, socket: Socket) {
        let slot = socket.conn.slot as usize;
        if slot >= self.sockets.len() {
            self.sockets.resize_with(slot + 1, || None);
        }
        assert!(self.sockets[slot].is_none(), "a slot was given to two sockets");
        self.sockets[slot] = Some(socket);
    }

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Socket> {
        self.sockets.get(conn.slot as usize)?.as_ref().filter(|socket| socket.conn == conn)
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Socket> {
        self.sockets.get_mut(conn.slot as usize)?.as_mut().filter(|socket| socket.conn == conn)
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Socket> {
        self.sockets.get_mut(conn.slot as usize)?.take_if(|socket| socket.conn == conn)
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.iter().flatten()
    }

    /// Connections whose output does not move.
    pub(crate) fn stuck(&self) -> Vec<ConnId> {
        let stuck = self.sockets().filter(|socket| socket.broken.is_some() || socket.polling);
        stuck.map(|socket| socket.conn).collect()
    }

    pub(crate) fn lend(&mut self, pool: &mut Pool) {
        while pool.ring_lent() < LENT {
            let Some(block) = pool.lend() else { break };
            self.lent.push_back(block);
        }
    }

    /// Moves received bytes into the current block: the segment, and how many did not fit into it.
    pub(crate) fn fill(
        &mut self,
        pool: &mut Pool,
        link: &mut Link,
        bytes: usize,
    ) -> Option<(Segment, usize)> {
        let block = *self.lent.front()?;
        let room = pool.block_bytes() - self.filled;
        let n = bytes.min(room);
        let more = n < room;
        let segment = pool.filled(block, n, more);
        self.filled += n;
        if !more {
            self.lent.pop_front();
            self.filled = 0;
        }
        let into = pool.bytes_mut(segment);
        let (first, second) = link.inbound.as_slices();
        let cut = n.min(first.len());
        into[..cut].copy_from_slice(&first[..cut]);
        into[cut..].copy_from_slice(&second[..n - cut]);
        link.inbound.drain(..n);
        Some((segment, bytes - n))
    }

    pub(crate) fn has_work(&self, wires: &Wires) -> bool {
        !self.sends.is_empty()
            || self.sockets().any(|socket| {
                let link = &wires.links[socket.link];
                (socket.receive == Receive::Armed && link.is_readable())
                    || matches!(socket.receive, Receive::Cancelling { .. })
                    || (socket.polling && (link.is_writable() || socket.cancelled))
            })
    }

    /// What one enter brings. Results of one operation come in order, others in any.
    pub(crate) fn completions(&mut self, wires: &mut Wires, seed: &mut Seed) -> Vec<Done> {
        let mut queues: Vec<VecDeque<Done>> = Vec::new();
        for done in self.sends.drain(..) {
            queues.push(VecDeque::from([done]));
        }
        for socket in self.sockets.iter_mut().flatten() {
            let link = &mut wires.links[socket.link];
            if socket.polling && (link.is_writable() || socket.cancelled) {
                queues.push(VecDeque::from([Done::Writable { conn: socket.conn }]));
            }
            let shots = receives(socket, link, seed);
            // A send that took the socket's error away ended before the receive that sees no more
            // than the end.
            let failed = |queue: &&mut VecDeque<Done>| {
                let Some(Done::Sent { conn, result: Err(Some(_)) }) = queue.front() else {
                    return false;
                };
                *conn == socket.conn
            };
            match queues.iter_mut().find(failed) {
                Some(queue) => queue.extend(shots),
                None if shots.is_empty() => {}
                None => queues.push(shots),
            }
        }
        let mut all = Vec::new();
        while !queues.is_empty() {
            let at = seed.below(queues.len());
            match queues[at].pop_front() {
                Some(done) => all.push(done),
                None => drop(queues.swap_remove(at)),
            }
        }
        all
    }
}

/// The results of one socket's receive in this enter.
fn receives(socket: &mut Socket, link: &mut Link, seed: &mut Seed) -> VecDeque<Done> {
    let conn = socket.conn;
    let mut shots = VecDeque::new();
    let cancelled = match &mut socket.receive {
        Receive::Armed => false,
        Receive::Cancelling { turns: 0 } => true,
        Receive::Cancelling { turns } => {
            *turns -= 1;
            // It is between the cancel and its end: bytes may still come.
            if seed.chance(50) {
                return shots;
            }
            false
        }
        Receive::Idle | Receive::Starved => return shots,
    };
    let (mut left, mut taken) = (link.inbound.len(), 0);
    let wanted = if cancelled { seed.below(2) } else { seed.range(1, SHOTS) };
    for _ in 0..wanted {
        let most = RECEIVE_CAP.min(RECEIVE_LIMIT - taken).min(left);
        if most == 0 {
            break;
        }
        let bytes = link.next_cut(seed, most);
        (left, taken) = (left - bytes, taken + bytes);
        // A receive may also end by itself, with bytes.
        let last = !cancelled && seed.chance(3);
        shots.push_back(Done::Received { conn, bytes, last });
        if last {
            return shots;
        }
    }
    if cancelled {
        // A dead socket's cancel always finds something.
        let missed = !socket.cancelled && socket.phase == Phase::Open && seed.chance(5);
        shots.push_back(if missed {
            Done::CancelMissed { conn }
        } else {
            Done::Cancelled { conn }
        });
    } else if left == 0 && (link.in_reset.is_some() || link.in_fin) {
        shots.push_back(match link.in_reset {
            Some(end) if !link.error_taken => Done::Failed { conn, end },
            _ => Done::Ended { conn },
        });
    }
    shots
}
