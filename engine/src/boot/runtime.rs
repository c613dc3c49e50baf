//! What a core's reactor serves: a shard, and around it everything that concerns other cores. It
//! carries messages to other cores and to the control thread, and sends a client's fresh connection
//! to the core that has most time for it. The shard sees only connections that it serves itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway_proto::time::Time;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::balance::Balance;
use crate::control::port::{Answer, Ask, Question};
use crate::log::{self, Lines};
use crate::mailbox::{Full, Sender};
use crate::message::{ControlMessage, CoreMessage, ShardMessage};
use crate::metrics::{Backend, Limit};
use crate::net::{ConnId, Core, Detached, End, Listener, Net};
use crate::pool::Segment;
use crate::shard::Shard;

/// The pause before a core whose mailbox was full is told again that this one began anew.
const TELL_PAUSE: Duration = Duration::from_millis(10);
/// How long a core without clients stays when it has to drain. Connections that waited in its
/// listeners' queues come in its next turns.
const DRAINED_PAUSE: Duration = Duration::from_millis(20);
/// The pause before messages to the control plane are tried again that found no room.
const ASK_PAUSE: Duration = Duration::from_millis(5);
/// How long the message that a worker has come waits for another message. Nobody waits for it, and
/// alone it would wake the control thread once for each session.
const SETTLED_PAUSE: Duration = Duration::from_millis(20);
/// Rounds of messages to other cores in one turn: a message that could not be delivered may cause
/// new ones.
const ROUNDS: usize = 4;

/// A client's connection on its way to another core.
#[derive(Debug)]
struct MovingClient {
    conn: ConnId,
    to: u16,
    peer: SocketAddr,
}

/// A shard and its place among the cores.
#[derive(Debug)]
pub(super) struct CoreRuntime {
    shard: Shard,
    own: usize,
    /// Every core's mailbox, this one's too.
    cores: Arc<[Sender<ShardMessage>]>,
    mailbox: usize,
    balance: Balance,
    /// The lines that the shard has left for the log in this turn.
    lines: Lines,
    moving: Vec<MovingClient>,
    /// Cores that do not know yet that this one began anew. Before that message they get no other.
    untold: Vec<u16>,
    tell_at: Option<Time>,
    /// The core drains, and does not end before this time.
    stays_until: Option<Time>,
    outbound: VecDeque<(u16, CoreMessage)>,
    taken: Vec<(u16, CoreMessage)>,
    /// Cores that had no room for one of the messages being sent.
    full: Vec<u16>,
    counted: Counted,
    /// The way of messages to the control thread.
    messages: mpsc::Sender<ControlMessage>,
    asks: Asks,
    backend: Backend,
    waiting: Vec<ControlMessage>,
    /// The name by which a test makes the core panic.
    #[cfg(test)]
    name: u32,
}

/// The shard's questions to a remote control plane.
#[derive(Debug, Default)]
struct Asks {
    /// The way to the plane; none if it is local.
    plane: Option<mpsc::Sender<Vec<Ask>>>,
    /// The messages to be sent next. Ends of questions must not be lost, so they stay here while
    /// there is no room: at most one for each question that was asked.
    next: Vec<Ask>,
    /// When the ends that found no room are sent again.
    again_at: Option<Time>,
    /// Until when messages that can wait are held back, to go with others.
    held_until: Option<Time>,
}

impl Asks {
    /// When the messages that wait have to be sent.
    fn due(&self) -> Option<Time> {
        self.again_at.or(self.held_until)
    }
}

/// Counters that the shard cannot keep.
#[derive(Debug, Default)]
struct Counted {
    sent: u64,
    full: u64,
}

/// What a runtime is made with.
pub(super) struct CoreParts {
    pub(super) own: usize,
    pub(super) cores: Arc<[Sender<ShardMessage>]>,
    /// Messages that fit into a mailbox.
    pub(super) mailbox: usize,
    /// Whether the shard replaces one that panicked.
    pub(super) anew: bool,
    pub(super) messages: mpsc::Sender<ControlMessage>,
    /// Where questions to a control plane go that takes time.
    pub(super) asks: Option<mpsc::Sender<Vec<Ask>>>,
    /// Whether io_uring or epoll drives the core.
    pub(super) backend: Backend,
    /// Several cores accept clients from one queue.
    pub(super) shares: bool,
}

impl CoreRuntime {
    pub(super) fn new(shard: Shard, parts: CoreParts) -> Self {
        let others = (0..parts.cores.len()).filter(|core| parts.anew && *core != parts.own);
        Self {
            shard,
            own: parts.own,
            untold: others.map(|core| core as u16).collect(),
            cores: parts.cores,
            mailbox: parts.mailbox,
            balance: Balance::new(parts.own, parts.shares),
            lines: Lines::default(),
            moving: Vec::new(),
            tell_at: None,
            stays_until: None,
            outbound: VecDeque::new(),
            taken: Vec::new(),
            full: Vec::new(),
            counted: Counted::default(),
            messages: parts.messages,
            asks: Asks { plane: parts.asks, ..Asks::default() },
            backend: parts.backend,
            waiting: Vec::new(),
            #[cfg(test)]
            name: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn named(mut self, name: u32) -> Self {
        self.name = name;
        self
    }

    // ---- to other cores ----

    /// Sends one message to a core. If there is no room, the shard gets it back.
    fn send(
        &mut self,
        net: &mut Net,
        to: u16,
        message: ShardMessage,
    ) -> Result<(), Full<ShardMessage>> {
        let told = self.tell(net, to);
        let sent = match self.cores.get(usize::from(to)) {
            Some(core) if told => core.deliver(message),
            _ => Err(Full(message)),
        };
        match sent {
            Ok(bell) => {
                self.counted.sent += 1;
                if let Some(bell) = bell {
                    net.ring(bell);
                }
                Ok(())
            }
            Err(full) => {
                self.counted.full += 1;
                Err(full)
            }
        }
    }

    /// Tells a core that this one began anew, unless it knows. True if it knows now.
    fn tell(&mut self, net: &mut Net, to: u16) -> bool {
        let Some(at) = self.untold.iter().position(|core| *core == to) else { return true };
        let restarted = ShardMessage::Restarted { core: self.own as u16 };
        // A core that began anew later than this one knows nothing of this core's former shard.
        if let Some(core) = self.cores.get(usize::from(to)).filter(|core| core.is_open()) {
            match core.deliver(restarted) {
                Ok(Some(bell)) => net.ring(bell),
                Ok(None) => {}
                Err(Full(_)) => return false,
            }
        }
        self.untold.swap_remove(at);
        true
    }

    /// Tells the cores again that had no room for that message.
    fn tell_all(&mut self, net: &mut Net) {
        if self.untold.is_empty() || self.tell_at.is_some_and(|at| at > net.now) {
            return;
        }
        for core in self.untold.clone() {
            self.tell(net, core);
        }
        self.tell_at = (!self.untold.is_empty()).then(|| net.now + TELL_PAUSE);
    }

    /// Sends the shard's messages to other cores. A message that a core has no room for comes back,
    /// with all later ones for the same core, so that none overtakes another.
    fn send_core_messages(&mut self, net: &mut Net) {
        for _ in 0..ROUNDS {
            self.full.clear();
            self.shard.take_core_messages(&mut self.taken);
            self.outbound.extend(self.taken.drain(..));
            if self.outbound.is_empty() {
                return;
            }
            while let Some((to, message)) = self.outbound.pop_front() {
                if self.full.contains(&to) {
                    self.shard.undelivered(net, to, message);
                } else if let Err(Full(ShardMessage::Core(message))) =
                    self.send(net, to, ShardMessage::Core(message))
                {
                    self.full.push(to);
                    self.shard.undelivered(net, to, message);
                }
            }
        }
        // The rest is sent in the next turn, which comes at once.
        self.shard.take_core_messages(&mut self.taken);
        self.outbound.extend(self.taken.drain(..));
    }

    // ---- fresh connections ----

    /// Takes up a fresh connection of another core, or one of this core that found no room
    /// elsewhere.
    fn take_up(&mut self, net: &mut Net, detached: Detached, peer: SocketAddr) {
        let conn = net.admit(detached, Listener::Client);
        self.shard.accepted(net, conn, Listener::Client, peer);
        self.measure(net);
    }

    /// A core that drains goes on for a moment even without a client.
    fn await_late(&mut self, net: &Net) {
        let Some(until) = self.stays_until else { return };
        self.stays_until = Some(until).filter(|until| *until > net.now);
        self.shard.stay(self.stays_until.is_some());
    }

    fn measure(&mut self, net: &Net) {
        let clients = self.shard.clients();
        self.balance.measure(net.now, clients, net.tally.idle.as_micros() as u64);
        self.balance.show(&self.cores);
    }

    // ---- to the log ----

    /// Gives the shard's lines to the log. The shard has no clock, so they get the time of this
    /// turn.
    fn write_lines(&mut self) {
        self.shard.take_lines(&mut self.lines);
        log::write(self.own as u16, &mut self.lines);
    }

    // ---- to the control plane ----

    /// Sends the shard's questions, once a turn. If there is no room, new questions are refused at
    /// once, but ends of questions wait.
    fn send_asks(&mut self, net: &mut Net) {
        self.shard.take_asks(&mut self.asks.next);
        let Asks { plane, next, again_at, held_until } = &mut self.asks;
        if next.is_empty() || again_at.is_some_and(|at| at > net.now) {
            return;
        }
        if next.iter().all(|ask| matches!(ask.what, Question::Settled))
            && *held_until.get_or_insert(net.now + SETTLED_PAUSE) > net.now
        {
            return;
        }
        (*again_at, *held_until) = (None, None);
        let Some(plane) = plane else { return next.clear() };
        let (Err(TrySendError::Full(asks)) | Err(TrySendError::Closed(asks))) =
            plane.try_send(std::mem::take(next))
        else {
            return;
        };
        for ask in asks {
            if matches!(ask.what, Question::Settled | Question::Withdraw) {
                self.asks.next.push(ask);
            } else {
                self.counted.full += 1;
                self.shard.answered(net, ask.ticket, Answer::Full);
            }
        }
        self.asks.again_at = Some(net.now + ASK_PAUSE);
    }

    // ---- to the control thread ----

    /// Sends the shard's messages. A full channel loses them, because whoever asked has a deadline.
    fn send_messages(&mut self, net: &Net) {
        self.shard.take_messages(&mut self.waiting);
        for mut message in self.waiting.drain(..) {
            if let ControlMessage::Snapshot { snapshot, .. } = &mut message {
                snapshot.core = self.own as u16;
                snapshot.idle = net.tally.idle;
                snapshot.stalls = net.tally.stalls;
                snapshot.sockets = net.tally.sockets;
                let metrics = &mut snapshot.metrics;
                let mailbox = Limit::Mailbox.index();
                metrics.io_backend[self.backend.index()] = 1;
                metrics.limit_max[mailbox] = self.mailbox as u64;
                metrics.limit_used[mailbox] = self.cores[self.own].waiting() as u64;
                metrics.limit_hits[mailbox] += self.counted.full;
                metrics.cross_core_messages += self.counted.sent;
                metrics.core_moves += net.tally.adopts;
            }
            // See above.
            let _ = self.messages.try_send(message);
        }
    }
}

/// Lines that were left after the last turn, or before a panic, are logged too.
impl Drop for CoreRuntime {
    fn drop(&mut self) {
        self.write_lines();
    }
}

impl Core for CoreRuntime {
    type Message = ShardMessage;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, listener: Listener, peer: SocketAddr) {
        // A worker's connection goes where its token says, not to the core with most time.
        let going = self.moving.iter().map(|client| client.to);
        if listener == Listener::Client
            && let Some(to) = self.balance.choose(net.now, &self.cores, going)
        {
            self.moving.push(MovingClient { conn, to, peer });
            return net.detach(conn);
        }
        self.shard.accepted(net, conn, listener, peer);
        self.measure(net);
    }

    fn awaits(&self, conn: ConnId) -> bool {
        self.shard.awaits(conn)
    }

    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>) {
        self.shard.dialled(net, conn, result);
    }

    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        self.shard.received(net, conn, segment);
    }

    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        self.shard.ended(net, conn, end);
    }

    fn addressed(&mut self, net: &mut Net, conn: ConnId, peer: SocketAddr) {
        self.shard.addressed(net, conn, peer);
    }

    fn detached(&mut self, net: &mut Net, conn: ConnId, detached: Detached) {
        let Some(at) = self.moving.iter().position(|client| client.conn == conn) else {
            return self.shard.detached(net, conn, detached);
        };
        let MovingClient { to, peer, .. } = self.moving.swap_remove(at);
        let sent = self.send(net, to, ShardMessage::Client { detached, peer });
        if let Err(Full(ShardMessage::Client { detached, peer })) = sent {
            self.take_up(net, detached, peer);
        }
    }

    fn written(&mut self, net: &mut Net, conn: ConnId, bytes: usize) {
        self.shard.written(net, conn, bytes);
    }

    fn message_received(&mut self, net: &mut Net, message: ShardMessage) {
        #[cfg(test)]
        super::tests::panic_if_asked(self.name, self.own);
        match message {
            ShardMessage::Client { detached, peer } => return self.take_up(net, detached, peer),
            ShardMessage::Unready | ShardMessage::Stop => self.balance.close(),
            ShardMessage::Drain { .. } => {
                self.balance.close();
                // Set only once, because the message may come again.
                self.stays_until.get_or_insert(net.now + DRAINED_PAUSE);
            }
            ShardMessage::Snapshot { .. }
            | ShardMessage::Beat { .. }
            | ShardMessage::Rows { .. }
            | ShardMessage::Timeline { .. }
            | ShardMessage::Core(_)
            | ShardMessage::Policy(_)
            | ShardMessage::Keys(_)
            | ShardMessage::Answer { .. }
            | ShardMessage::Health(_)
            | ShardMessage::End { .. }
            | ShardMessage::Restarted { .. } => {}
        }
        // The shard's answers are sent with the turn, which follows.
        self.shard.message_received(net, message);
    }

    fn turn(&mut self, net: &mut Net) {
        self.await_late(net);
        self.shard.turn(net);
        self.tell_all(net);
        self.send_core_messages(net);
        self.send_asks(net);
        self.send_messages(net);
        self.measure(net);
        self.write_lines();
    }

    fn relieve(&mut self, net: &mut Net) {
        self.shard.relieve(net);
    }

    fn deadline(&self) -> Option<Time> {
        let unsent = (!self.outbound.is_empty()).then_some(Time::ZERO);
        let own = [self.shard.deadline(), self.tell_at, self.stays_until, self.asks.due(), unsent];
        own.into_iter().flatten().min()
    }

    fn finished(&self) -> bool {
        self.shard.finished()
    }
}
