//! One core: a real shard on a model of the reactor. The order of facts in a turn, which operations
//! are armed and cancelled when, and what is told after an end follow `reactor/mod.rs` and
//! `reactor/pump.rs`; the kernel's freedom (how much, how late, in which order) is the seed's.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringway::border::{Border, Carried, Close, ConnId, Core as _, End, LINGER, Listener, Output};
use ringway::border::{Parcel, Wish};
use ringway::post::ShardPost;
use ringway::reactor::{DROP_BUDGET, FLUSH_STALL, RELIEVE_BELOW};
use ringway::shard::Shard;
use ringway_proto::time::Time;

use super::journal::note;
use super::kernel::{Done, Kernel, Phase, Receive, Socket};
use super::plane::Heard;
use super::seed::Seed;
use super::wire::{Packet, Wires};

/// Bytes of one send at most, and segments.
const SEND_BYTES: usize = 256 * 1024;
const SEND_SEGMENTS: usize = 64;

/// Starved receives tried again per lent block.
const FEED_PER_BLOCK: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Stall,
    Linger,
}

#[derive(Clone, Copy, Debug)]
enum News {
    Undialled(ConnId),
    Broken(ConnId),
    Detached(ConnId),
}

/// The world as a core's turn sees it.
pub(crate) struct Around<'a> {
    pub(crate) wires: &'a mut Wires,
    pub(crate) seed: &'a mut Seed,
    /// Sends take less than there is room for, now and then.
    pub(crate) short_writes: u32,
}

/// One core.
pub(crate) struct Core {
    number: usize,
    pub(crate) shard: Shard,
    pub(crate) border: Border,
    pub(crate) kernel: Kernel,
    /// Connections that wait to be accepted.
    pub(crate) knocking: Vec<(usize, Listener, SocketAddr)>,
    pub(crate) mailbox: VecDeque<ShardPost>,
    pub(crate) capacity: usize,
    pub(crate) shut: Vec<Listener>,
    /// Cores that have not heard yet that this one began anew.
    pub(crate) untold: Vec<u16>,
    /// Links it has let go of, and those of whose end the shard was told.
    pub(crate) handed: Vec<usize>,
    pub(crate) told: Vec<usize>,
    /// What the control plane has said to it since that was judged.
    pub(crate) heard: Vec<Heard>,
    news: Vec<News>,
    dirty: Vec<ConnId>,
    looks: Vec<ConnId>,
    starved: VecDeque<ConnId>,
    timers: VecDeque<(Time, Due, ConnId)>,
    short: bool,
    relieved: bool,
}

impl Core {
    pub(crate) fn new(number: usize, shard: Shard, border: Border, capacity: usize) -> Self {
        Self {
            number,
            shard,
            border,
            kernel: Kernel::default(),
            knocking: Vec::new(),
            mailbox: VecDeque::new(),
            capacity,
            shut: Vec::new(),
            untold: Vec::new(),
            handed: Vec::new(),
            told: Vec::new(),
            heard: Vec::new(),
            news: Vec::new(),
            dirty: Vec::new(),
            looks: Vec::new(),
            starved: VecDeque::new(),
            timers: VecDeque::new(),
            short: false,
            relieved: false,
        }
    }

    /// One loop turn. True if there was anything to do in it.
    pub(crate) fn turn(&mut self, now: Time, mut around: Around<'_>) -> bool {
        let around = &mut around;
        self.border.now = now;
        self.border.tally.turns += 1;
        let due = self.deadline().is_some_and(|at| at <= now);
        let mut busy = due || !self.news.is_empty() || !self.mailbox.is_empty();
        self.tell_news(around);
        self.accept();
        let done = self.kernel.completions(around.wires, around.seed);
        busy |= !done.is_empty();
        for done in done {
            self.completed(done, around);
        }
        while self.timers.front().is_some_and(|(at, ..)| *at <= now) {
            if let Some((_, due, conn)) = self.timers.pop_front() {
                self.due(due, conn);
            }
        }
        for _ in 0..self.capacity {
            let Some(post) = self.mailbox.pop_front() else { break };
            match post {
                ShardPost::Answer { ticket, answer } => self.hear(ticket, answer),
                post => self.shard.posted(&mut self.border, post),
            }
        }
        self.shard.turn(&mut self.border);
        self.act(around);
        busy
    }

    /// Whether a link's connection is, or comes to be, one of the shard's.
    pub(crate) fn holds(&self, link: usize) -> bool {
        let mut sockets = self.kernel.sockets().filter(|socket| socket.link == link);
        match sockets.next() {
            Some(socket) => {
                let output = self.border.output(socket.conn);
                self.border.is_open(socket.conn) && output.is_some_and(|o| o.closing().is_none())
            }
            None => self.knocking.iter().any(|(knocking, ..)| *knocking == link),
        }
    }

    /// Whether another turn has something to do at once.
    pub(crate) fn is_busy(&self, wires: &Wires) -> bool {
        !self.news.is_empty()
            || !self.dirty.is_empty()
            || !self.looks.is_empty()
            || !self.border.is_quiet()
            || !self.knocking.is_empty()
            || !self.mailbox.is_empty()
            || (!self.starved.is_empty()
                && (self.border.pool.ring_lent() > 0 || (self.short && !self.relieved)))
            || self.kernel.has_work(wires)
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let own = self.timers.front().map(|(at, ..)| *at);
        [own, self.shard.deadline()].into_iter().flatten().min()
    }

    // ---- facts ----

    fn tell_news(&mut self, around: &mut Around<'_>) {
        for news in std::mem::take(&mut self.news) {
            match news {
                News::Undialled(conn) => {
                    self.border.kill(conn);
                    self.shard.dialled(&mut self.border, conn, Err(111));
                    self.border.free(conn);
                }
                News::Broken(conn) => {
                    if let Some(end) = self.kernel.get(conn).and_then(|socket| socket.broken) {
                        self.fail(conn, end);
                    }
                }
                News::Detached(conn) => self.hand_over(conn, around),
            }
        }
    }

    fn accept(&mut self) {
        for (link, listener, peer) in std::mem::take(&mut self.knocking) {
            let conn = self.border.open();
            note("core", self.number, "accepts link, slot", [link as u64, u64::from(conn.slot)]);
            self.kernel.add(Socket::new(link, conn));
            self.looks.push(conn);
            self.shard.accepted(&mut self.border, conn, listener, peer);
        }
    }

    fn completed(&mut self, done: Done, around: &mut Around<'_>) {
        match done {
            Done::Received { conn, bytes, last } => self.received(conn, bytes, last, around),
            Done::Ended { conn } => {
                if self.end_receive(conn) {
                    self.fin(conn);
                }
            }
            Done::Failed { conn, end } => {
                if self.end_receive(conn) {
                    let broken = self.kernel.get(conn).and_then(|socket| socket.broken);
                    self.fail(conn, broken.unwrap_or(end));
                }
            }
            Done::Cancelled { conn } => {
                self.end_receive(conn);
            }
            Done::CancelMissed { conn } => {
                if let Some(socket) = self.kernel.get_mut(conn) {
                    socket.receive = Receive::Armed;
                    self.looks.push(conn);
                }
            }
            Done::Sent { conn, result } => self.sent(conn, result),
            Done::Writable { conn } => {
                let Some(socket) = self.kernel.get_mut(conn) else { return };
                socket.polling = false;
                socket.cancelled = false;
                match socket.phase {
                    Phase::Closing => self.looks.push(conn),
                    Phase::Open if is_leaving(&self.border, conn) => self.looks.push(conn),
                    _ => self.dirty.push(conn),
                }
            }
        }
    }

    fn end_receive(&mut self, conn: ConnId) -> bool {
        // It may have ended for want of a block meanwhile: then nothing came after that.
        let Some(socket) = self.kernel.get_mut(conn).filter(|s| s.is_receiving()) else {
            return false;
        };
        socket.receive = Receive::Idle;
        self.looks.push(conn);
        true
    }

    fn received(&mut self, conn: ConnId, bytes: usize, last: bool, around: &mut Around<'_>) {
        let Some(socket) = self.kernel.get_mut(conn).filter(|s| s.is_receiving()) else { return };
        let link = &mut around.wires.links[socket.link];
        let Some((segment, rest)) = self.kernel.fill(&mut self.border.pool, link, bytes) else {
            // No block was free: the receive ends with ENOBUFS.
            note("core", self.number, "is out of receive blocks, slot", [u64::from(conn.slot), 0]);
            let socket = self.kernel.get_mut(conn).expect("found above");
            socket.receive = Receive::Starved;
            self.looks.push(conn);
            self.starved.push_back(conn);
            self.border.tally.starved += 1;
            return;
        };
        let socket = self.kernel.get_mut(conn).expect("found above");
        if last {
            socket.receive = Receive::Idle;
            self.looks.push(conn);
        }
        let (link, len) = (socket.link as u64, u64::from(segment.len));
        if self.border.is_open(conn) {
            note("core", self.number, "receives on link, bytes", [link, len]);
            self.border.tally.receives += 1;
            self.shard.received(&mut self.border, conn, segment);
        } else {
            note("core", self.number, "drops late bytes of link", [link, len]);
            socket.dropped += segment.len as usize;
            self.looks.push(conn);
        }
        self.border.pool.release(segment);
        if rest > 0 && !last {
            self.received(conn, rest, false, around);
        }
    }

    fn sent(&mut self, conn: ConnId, result: Result<usize, Option<End>>) {
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        let offered = std::mem::take(&mut socket.offered);
        if socket.phase == Phase::Closing {
            return self.looks.push(conn);
        }
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(None) => {
                socket.polling = true;
                self.border.tally.blocked_sends += 1;
                return;
            }
            Err(Some(end)) => {
                socket.broken = Some(end);
                return self.looks.push(conn);
            }
        };
        socket.progress = self.border.now;
        self.border.tally.sends += 1;
        self.border.sent(conn, bytes);
        if self.border.is_open(conn) {
            self.shard.written(&mut self.border, conn, bytes);
        }
        let socket = self.kernel.get_mut(conn).expect("nothing is removed within a turn's facts");
        if bytes < offered {
            self.border.tally.blocked_sends += 1;
            socket.polling = true;
        } else {
            self.dirty.push(conn);
        }
    }

    fn fin(&mut self, conn: ConnId) {
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        let told = std::mem::replace(&mut socket.fin, true);
        note("core", self.number, "sees FIN of link", [socket.link as u64, 0]);
        if let Some(end) = socket.broken {
            self.fail(conn, end);
        } else if !told && self.border.is_open(conn) {
            self.told.push(socket.link);
            // Whose end is told is not let go of.
            if self.border.keep(conn) {
                self.looks.push(conn);
                self.dirty.push(conn);
            }
            self.shard.ended(&mut self.border, conn, End::Fin);
        }
    }

    fn fail(&mut self, conn: ConnId, end: End) {
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        note("core", self.number, "sees the end of link", [socket.link as u64, end as u64]);
        socket.phase = Phase::Closing;
        self.looks.push(conn);
        let open = self.border.is_open(conn);
        let link = socket.link;
        self.border.kill(conn);
        if open {
            self.told.push(link);
            self.shard.ended(&mut self.border, conn, end);
        }
    }

    fn due(&mut self, due: Due, conn: ConnId) {
        let now = self.border.now;
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        let matters = match due {
            Due::Stall => socket.phase == Phase::Flushing,
            Due::Linger => socket.phase == Phase::Lingering,
        };
        if !matters {
            return;
        }
        if due == Due::Stall && now.since(socket.progress) < FLUSH_STALL {
            return self.set(due, conn);
        }
        socket.phase = Phase::Closing;
        self.border.kill(conn);
        self.looks.push(conn);
    }

    fn set(&mut self, due: Due, conn: ConnId) {
        let after = if due == Due::Stall { FLUSH_STALL } else { LINGER };
        self.timers.push_back((self.border.now + after, due, conn));
        self.timers.make_contiguous().sort_by_key(|timer| timer.0);
    }

    // ---- acts ----

    fn act(&mut self, around: &mut Around<'_>) {
        self.refill(around);
        let mut wishes = Vec::new();
        self.border.take_wishes(&mut wishes);
        for wish in wishes {
            match wish {
                Wish::Dial(conn, _) => self.news.push(News::Undialled(conn)),
                Wish::Look(conn) => self.look(conn, around),
                Wish::Unlisten(listener) => self.shut.push(listener),
                Wish::Adopt(conn, socket) => self.adopt(conn, socket, around),
                // The world looks into every mailbox by itself.
                // Only a reactor's occupant gives fresh connections away.
                Wish::Ring(_) | Wish::Admit(..) | Wish::KeepOut(..) => {}
            }
        }
        for conn in std::mem::take(&mut self.looks) {
            self.look(conn, around);
        }
        self.flush(around);
    }

    fn refill(&mut self, around: &mut Around<'_>) {
        self.kernel.lend(&mut self.border.pool);
        let was_short = self.short;
        self.short = self.is_short();
        self.relieved = self.short && was_short;
        if self.relieved {
            note("core", self.number, "is relieved", [0, 0]);
            self.border.tally.relieved += 1;
            for conn in self.kernel.stuck() {
                self.border.copy_out(conn);
            }
            self.kernel.lend(&mut self.border.pool);
            if self.is_short() {
                self.shard.relieve(&mut self.border);
                self.kernel.lend(&mut self.border.pool);
            }
        }
        let room = self.border.pool.ring_lent() * FEED_PER_BLOCK;
        for _ in 0..room.min(self.starved.len()) {
            let Some(conn) = self.starved.pop_front() else { break };
            if let Some(socket) = self.kernel.get_mut(conn)
                && socket.receive == Receive::Starved
            {
                socket.receive = Receive::Idle;
                self.look(conn, around);
            }
        }
    }

    fn is_short(&self) -> bool {
        let pool = &self.border.pool;
        pool.ring_free() * 100 < pool.ring_blocks() * RELIEVE_BELOW
    }

    fn look(&mut self, conn: ConnId, around: &mut Around<'_>) {
        self.heed_open_end(conn);
        self.heed_close(conn);
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        let spent = socket.dropped > DROP_BUDGET;
        if socket.phase == Phase::Lingering && (socket.fin || spent) {
            socket.phase = Phase::Closing;
        }
        if socket.phase == Phase::Closing {
            return self.finish(conn, around);
        }
        if is_leaving(&self.border, conn) {
            if socket.broken.is_none() && socket.is_still() {
                self.news.push(News::Detached(conn));
            }
            socket.cancelled |= socket.polling;
        }
        let wanted = wants_bytes(socket, &self.border) && socket.broken != Some(End::Failed);
        match (wanted, socket.receive) {
            (true, Receive::Idle) => socket.receive = Receive::Armed,
            (false, Receive::Armed) => {
                let turns = around.seed.below(3) as u8;
                socket.receive = Receive::Cancelling { turns };
            }
            (false, Receive::Starved) => socket.receive = Receive::Idle,
            _ => {}
        }
        if socket.broken.is_some() && socket.receive == Receive::Idle {
            self.news.push(News::Broken(conn));
        }
    }

    fn heed_open_end(&mut self, conn: ConnId) {
        let open_ended = self.border.output(conn).is_some_and(Output::is_open_ended);
        if let (true, Some(socket)) = (open_ended, self.kernel.get_mut(conn)) {
            socket.resets = true;
        }
    }

    fn heed_close(&mut self, conn: ConnId) {
        let Some(output) = self.border.output(conn) else { return };
        let closing = output.closing();
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        match (closing, socket.phase) {
            (_, Phase::Closing) | (None, _) => {}
            (Some(Close::Now), _) => socket.phase = Phase::Closing,
            (Some(Close::Flush), Phase::Open) => {
                socket.phase = Phase::Flushing;
                socket.progress = self.border.now;
                self.dirty.push(conn);
                self.set(Due::Stall, conn);
            }
            (Some(Close::Flush), _) => {}
        }
    }

    fn finish(&mut self, conn: ConnId, around: &mut Around<'_>) {
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        if socket.receive == Receive::Armed {
            socket.receive = Receive::Cancelling { turns: around.seed.below(3) as u8 };
        }
        socket.cancelled = true;
        if socket.offered > 0 {
            return;
        }
        self.border.kill(conn);
        let (link, resets) = (socket.link, socket.resets);
        let still = !socket.is_receiving() && !socket.polling;
        if still {
            note("core", self.number, "closes link", [link as u64, u64::from(conn.slot)]);
            self.kernel.remove(conn);
            self.border.free(conn);
            if resets {
                around.wires.cut(link, self.border.now, around.seed);
            } else {
                around.wires.close(link, self.border.now, around.seed);
            }
        }
    }

    fn flush(&mut self, around: &mut Around<'_>) {
        self.border.take_dirty(&mut self.dirty);
        for conn in std::mem::take(&mut self.dirty) {
            self.send(conn, around);
        }
    }

    fn send(&mut self, conn: ConnId, around: &mut Around<'_>) {
        let Some(socket) = self.kernel.get_mut(conn) else { return };
        let Some(output) = self.border.output(conn) else { return };
        // What a connection that is let go of has not sent, its next owner sends.
        if !socket.may_send() || is_leaving(&self.border, conn) {
            return;
        }
        let link = socket.link;
        if output.queue().is_empty() {
            if socket.phase == Phase::Flushing && output.is_open_ended() {
                socket.phase = Phase::Closing;
                self.look(conn, around);
            } else if socket.phase == Phase::Flushing {
                socket.resets = false;
                socket.phase = Phase::Lingering;
                around.wires.shut(link, self.border.now, around.seed);
                self.set(Due::Linger, conn);
                self.look(conn, around);
            }
            return;
        }
        let mut bytes = Vec::new();
        for segment in output.queue().iter().take(SEND_SEGMENTS) {
            let room = SEND_BYTES - bytes.len();
            let part = segment.part(0, room.min(segment.len as usize));
            bytes.extend_from_slice(self.border.pool.bytes(part));
        }
        socket.offered = bytes.len();
        let wire = &mut around.wires.links[link];
        let mut room = wire.room();
        if room > 1 && around.seed.chance(around.short_writes) {
            room = around.seed.range(1, room);
        }
        let result = if let Some(end) = wire.in_reset {
            wire.error_taken = true;
            Err(Some(end))
        } else if room == 0 {
            Err(None)
        } else {
            bytes.truncate(room);
            Ok(bytes.len())
        };
        let took = result.map_or(0, |bytes| bytes as u64);
        note("core", self.number, "sends on link, bytes", [link as u64, took]);
        if result.is_ok() {
            let packet = Packet::Bytes(bytes);
            around.wires.gateway_sends(link, packet, self.border.now, around.seed);
        }
        self.kernel.sends.push(Done::Sent { conn, result });
    }

    // ---- connections that change cores ----

    fn hand_over(&mut self, conn: ConnId, around: &mut Around<'_>) {
        let wished = self.border.output(conn).is_some_and(Output::is_detaching);
        let still = self.kernel.get(conn).is_some_and(Socket::is_still);
        if !wished || !still || !self.border.is_open(conn) {
            return;
        }
        let Some(socket) = self.kernel.remove(conn) else { return };
        note("core", self.number, "lets go of link", [socket.link as u64, 0]);
        around.wires.links[socket.link].core = None;
        self.handed.push(socket.link);
        let unsent = self.border.take_unsent(conn);
        self.border.free(conn);
        let parcel = Parcel { socket: Carried::Simulated(socket.link as u64), unsent };
        self.shard.detached(&mut self.border, conn, parcel);
    }

    fn adopt(&mut self, conn: ConnId, socket: Carried, around: &mut Around<'_>) {
        let Carried::Simulated(link) = socket else { panic!("a real socket in a simulated world") };
        note("core", self.number, "takes up link", [link, u64::from(conn.slot)]);
        around.wires.links[link as usize].core = Some(self.number);
        self.kernel.add(Socket::new(link as usize, conn));
        self.looks.push(conn);
        self.dirty.push(conn);
    }
}

/// Whether the shard lets go of the connection and has not closed it since.
fn is_leaving(border: &Border, conn: ConnId) -> bool {
    border.output(conn).is_some_and(|output| output.is_detaching() && output.closing().is_none())
}

fn wants_bytes(socket: &Socket, border: &Border) -> bool {
    if socket.fin {
        return false;
    }
    match socket.phase {
        Phase::Open => border
            .output(socket.conn)
            .is_some_and(|output| !output.is_paused() && !output.is_detaching()),
        Phase::Flushing | Phase::Lingering => socket.dropped <= DROP_BUDGET,
        Phase::Closing => false,
    }
}
