//! A shard without sockets: what a peer sends is put where a reactor would put it, what the shard
//! queues is read as the kernel would take it. Time moves only when a test says so.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use ringway::config::Config;
use ringway::control::local::Policy;
use ringway::control::port::Plane;
use ringway::log::Lines;
use ringway::message::{Bookmark, ControlMessage, SessionRow, ShardMessage};
use ringway::net::{
    Carried, ConnId, Core, Detached, End, Listener, Net, Output, SimulatedSocket, Wish,
};
use ringway::pool::Pool;
use ringway::shard::{Shard, ShardSettings};
use ringway_proto::id::Node;

/// How long a parked or used-up tunnel stays beside the one that has come instead.
pub(crate) const SETTLES: Duration = Duration::from_secs(1);

pub(crate) const FUNCTION: &str = "11111111-1111-4111-8111-111111111111";
pub(crate) const VERSION: &str = "22222222-2222-4222-8222-222222222222";

/// No two sockets of all worlds have one number.
static NEXT_SOCKET: AtomicI32 = AtomicI32::new(1);

/// A socket that is nothing but its number.
#[derive(Debug)]
struct Numbered(u64);

impl SimulatedSocket for Numbered {
    fn number(&self) -> i32 {
        self.0 as i32
    }

    fn peer(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.0 as u16))
    }

    fn set_resets(&self, _resets: bool) {}

    fn unacknowledged(&self) -> usize {
        0
    }

    fn end_writing(&self) {}
}

pub(crate) struct World {
    pub(crate) shard: Shard,
    pub(crate) net: Net,
    /// The bytes sent on each connection, and whether it was closed.
    outputs: HashMap<ConnId, (VecDeque<u8>, bool)>,
    next_port: u16,
    /// The connections that the shard dials, oldest first.
    pub(crate) dials: VecDeque<(ConnId, SocketAddr)>,
    blocked: HashSet<ConnId>,
    /// Connections that were closed by RST.
    reset: HashSet<ConnId>,
    /// Bytes of one receive at most: tests split input anywhere.
    pub(crate) cut: usize,
    /// Reads a counter of allocations; `counted` is what the shard's calls added to it.
    pub(crate) count: fn() -> u64,
    pub(crate) counted: u64,
    /// Which socket each connection is: it keeps its number on whatever core it is.
    sockets: HashMap<ConnId, u64>,
    /// Connections that the shard detaches stay until the test says so.
    pub(crate) hold: bool,
    /// Connections taken up from other cores.
    pub(crate) adopted: u64,
    held: Vec<ConnId>,
}

/// Which of several cores a world is, and for which time.
#[derive(Clone, Copy)]
pub(crate) struct CoreSetup {
    pub(crate) core: u16,
    pub(crate) cores: u16,
    pub(crate) life: u32,
    /// Octets kept of a client before its first answer.
    pub(crate) unanswered: usize,
    pub(crate) plane: Plane,
    pub(crate) dispatch: Plane,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// With more lines of configuration.
    pub(crate) fn with(more: &str) -> Self {
        Self::with_changed(more, |_| {})
    }

    /// With more lines of configuration, and changed after it was read.
    pub(crate) fn with_changed(more: &str, change: impl FnOnce(&mut Config)) -> Self {
        let setup = CoreSetup {
            core: 0,
            cores: 1,
            life: 0,
            unanswered: 0,
            plane: Plane::Local,
            dispatch: Plane::Local,
        };
        Self::on(setup, more, change)
    }

    /// One of several cores.
    pub(crate) fn on(setup: CoreSetup, more: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::settled(setup, more, change, |_| {})
    }

    /// The same, told something else than others at its start.
    pub(crate) fn settled(
        setup: CoreSetup,
        more: &str,
        change: impl FnOnce(&mut Config),
        settle: impl FnOnce(&mut ShardSettings),
    ) -> Self {
        let text = format!(
            r#"
            [listen]
            client = "127.0.0.1:10081"
            worker = "127.0.0.1:10086"
            [control]
            mode = "local"
            advertise = "http://127.0.0.1:10086"
            [[tenant]]
            name = "dev"
            client_keys = ["dev-key", "dev-key-2"]
            [[tenant]]
            name = "other"
            client_keys = ["other-key"]
            [[function]]
            id = "{FUNCTION}"
            version = "{VERSION}"
            tenants = ["dev", "other"]
            worker_keys = ["dev-worker-key"]
            {more}
            "#
        );
        let mut config =
            Config::parse(&text, "test.toml", ".".as_ref()).expect("a good configuration");
        change(&mut config);
        let policy = Arc::new(Policy::new(&config.tenants, &config.functions));
        let mut settings = ShardSettings {
            config: Arc::new(config),
            plane: setup.plane,
            dispatch: setup.dispatch,
            core: setup.core,
            cores: setup.cores,
            node: Node::new(0, 7).expect("a node"),
            secret: [3; 16],
            keys: None,
            seed: [5 + setup.core as u8 + 16 * setup.life as u8; 32],
            generation: setup.life << 20,
            unanswered: setup.unanswered,
            advertise: "http://127.0.0.1:10086".into(),
            unix_micros_at_zero: 1_000_000,
            version: "test",
            commit: "test",
        };
        settle(&mut settings);
        let mut net = Net::new(Pool::new(256, 64 * 1024));
        net.now = ringway_proto::time::Time(1_000_000);
        Self {
            shard: Shard::new(settings, policy),
            net,
            outputs: HashMap::new(),
            next_port: 40_000,
            dials: VecDeque::new(),
            blocked: HashSet::new(),
            reset: HashSet::new(),
            cut: usize::MAX,
            count: || 0,
            counted: 0,
            sockets: HashMap::new(),
            hold: false,
            adopted: 0,
            held: Vec::new(),
        }
    }

    pub(crate) fn connect(&mut self, listener: Listener) -> ConnId {
        self.next_port += 1;
        let peer = SocketAddr::from(([127, 0, 0, 1], self.next_port));
        let conn = self.net.open();
        self.outputs.insert(conn, (VecDeque::new(), false));
        self.sockets.insert(conn, NEXT_SOCKET.fetch_add(1, Ordering::Relaxed) as u64);
        self.shard.accepted(&mut self.net, conn, listener, peer);
        self.settle();
        conn
    }

    /// Bytes from a peer, in receives of at most `cut`.
    pub(crate) fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        for part in bytes.chunks(self.cut.min(32 * 1024)) {
            if !self.net.is_open(conn) {
                return;
            }
            let block = self.net.pool.lend().expect("a receive block");
            let segment = self.net.pool.filled(block, part.len(), false);
            self.net.pool.bytes_mut(segment).copy_from_slice(part);
            let before = (self.count)();
            self.shard.received(&mut self.net, conn, segment);
            self.counted += (self.count)() - before;
            self.net.pool.release(segment);
            self.settle();
        }
    }

    pub(crate) fn end(&mut self, conn: ConnId, end: End) {
        self.shard.ended(&mut self.net, conn, end);
        if !end.is_half() {
            self.net.kill(conn);
        }
        self.settle();
    }

    /// The bytes sent on a connection since the last call.
    pub(crate) fn take(&mut self, conn: ConnId) -> Vec<u8> {
        self.settle();
        self.outputs.get_mut(&conn).map(|o| o.0.drain(..).collect()).unwrap_or_default()
    }

    pub(crate) fn is_closed(&self, conn: ConnId) -> bool {
        self.outputs.get(&conn).is_none_or(|output| output.1)
    }

    /// Whether a connection was closed so that its end cannot pass for that of a message.
    pub(crate) fn is_reset(&self, conn: ConnId) -> bool {
        self.is_closed(conn) && self.reset.contains(&conn)
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.net.now + time;
        while let Some(at) = self.shard.deadline().filter(|at| *at <= until) {
            self.net.now = self.net.now.max(at);
            self.settle();
        }
        self.net.now = until;
        self.settle();
    }

    /// Ends the turn: takes all output and carries out the wishes.
    pub(crate) fn settle(&mut self) {
        let before = (self.count)();
        self.shard.turn(&mut self.net);
        self.counted += (self.count)() - before;
        let put_off = self.shard.metrics().facts_put_off;
        assert_eq!(put_off, 0, "facts have led to each other without end");
        // Nobody reads the log of this world.
        self.shard.take_lines(&mut Lines::default());
        loop {
            let mut dirty = Vec::new();
            self.net.take_dirty(&mut dirty);
            let mut wishes = Vec::new();
            self.net.take_wishes(&mut wishes);
            if dirty.is_empty() && wishes.is_empty() {
                break;
            }
            for conn in dirty {
                self.flush(conn);
            }
            wishes.into_iter().for_each(|wish| self.carry_out(wish));
        }
    }

    /// Ends the oldest dial; its connection and where it leads.
    pub(crate) fn dialled(&mut self, result: Result<(), i32>) -> (ConnId, SocketAddr) {
        let (conn, address) = self.dials.pop_front().expect("a dial");
        if result.is_err() {
            self.net.kill(conn);
        } else {
            self.outputs.insert(conn, (VecDeque::new(), false));
        }
        self.shard.dialled(&mut self.net, conn, result);
        self.settle();
        (conn, address)
    }

    fn carry_out(&mut self, wish: Wish) {
        let conn = match wish {
            Wish::Look(conn) => conn,
            Wish::Dial(conn, address) => return self.dials.push_back((conn, address)),
            Wish::Adopt(conn, Carried::Simulated(socket)) => {
                self.adopted += 1;
                self.outputs.entry(conn).or_default();
                self.sockets.insert(conn, socket.number() as u64);
                return;
            }
            _ => return,
        };
        // As a reactor: nothing more is heard of a dial that is not wanted any more.
        self.dials.retain(|(dialled, _)| *dialled != conn);
        if self.net.output(conn).is_some_and(|output| output.closing().is_some()) {
            self.outputs.entry(conn).or_default().1 = true;
            if self.net.output(conn).is_some_and(Output::is_open_ended) {
                self.reset.insert(conn);
            }
            self.net.free(conn);
        } else if self.net.output(conn).is_some_and(Output::is_detaching) {
            self.held.push(conn);
            if !self.hold {
                self.hand_over();
            }
        }
    }

    /// Hands over what the shard detaches.
    pub(crate) fn hand_over(&mut self) {
        for conn in std::mem::take(&mut self.held) {
            if self.net.is_open(conn) {
                let socket = Carried::Simulated(Box::new(Numbered(self.sockets[&conn])));
                let unsent = self.net.take_unsent(conn);
                self.outputs.remove(&conn);
                self.net.free(conn);
                self.shard.detached(&mut self.net, conn, Detached { socket, unsent });
            }
        }
    }

    pub(crate) fn socket(&self, conn: ConnId) -> u64 {
        self.sockets[&conn]
    }

    /// The connection that is this socket, if it is here; the last one, if several were.
    pub(crate) fn conn_of(&self, socket: u64) -> Option<ConnId> {
        let found = self
            .sockets
            .iter()
            .filter(|(conn, other)| **other == socket && self.outputs.contains_key(*conn));
        found.map(|(conn, _)| *conn).max_by_key(|conn| (conn.generation, conn.slot))
    }

    /// The peer takes no bytes, or takes them again.
    pub(crate) fn block(&mut self, conn: ConnId, blocked: bool) {
        if blocked {
            self.blocked.insert(conn);
        } else if self.blocked.remove(&conn) {
            self.flush(conn);
            self.settle();
        }
    }

    /// A peer that takes no bytes takes so many of those that wait.
    pub(crate) fn take_some(&mut self, conn: ConnId, bytes: usize) {
        self.net.sent(conn, bytes);
        self.shard.written(&mut self.net, conn, bytes);
        self.settle();
    }

    fn flush(&mut self, conn: ConnId) {
        if self.blocked.contains(&conn) {
            return;
        }
        let Some(output) = self.net.output(conn) else { return };
        let mut bytes = Vec::new();
        for segment in output.queue() {
            bytes.extend_from_slice(self.net.pool.bytes(*segment));
        }
        if bytes.is_empty() {
            return;
        }
        self.outputs.entry(conn).or_default().0.extend(&bytes);
        let before = (self.count)();
        self.net.sent(conn, bytes.len());
        self.shard.written(&mut self.net, conn, bytes.len());
        self.counted += (self.count)() - before;
    }

    pub(crate) fn deliver(&mut self, message: ShardMessage) {
        self.shard.message_received(&mut self.net, message);
        self.settle();
    }

    pub(crate) fn relieve(&mut self) {
        self.shard.relieve(&mut self.net);
    }

    /// The core's rows of `/sessions`, as the admin port joins them.
    pub(crate) fn sessions(&mut self) -> Vec<SessionRow> {
        let (mut rows, mut next) = (Vec::new(), Some(Bookmark::BEGIN));
        while let Some(from) = next.take() {
            self.deliver(ShardMessage::Rows { ticket: 1, from, wanted: None });
            for message in self.messages() {
                if let ControlMessage::Rows { page, .. } = message {
                    rows.extend(page.rows);
                    next = page.next;
                }
            }
        }
        SessionRow::joined(rows)
    }

    pub(crate) fn messages(&mut self) -> Vec<ControlMessage> {
        let mut messages = Vec::new();
        self.shard.take_messages(&mut messages);
        messages
    }
}
