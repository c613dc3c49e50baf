//! One core: a real shard in the real reactor, on a kernel of the simulated world.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ringway::mailbox::{Full, Mailbox, Sender};
use ringway::message::{CoreMessage, ShardMessage};
use ringway::net::{self, Carried, ConnId, Detached, End, Listener, Net};
use ringway::pool::Segment;
use ringway::reactor::{Options, Simulation, Wait};
use ringway::shard::Shard;
use ringway_proto::time::Time;

use super::journal::note;
use super::kernel::Kernel;
use super::plane::Heard;
use super::wire::{Wiring, link_of};

/// The pause before a core that began anew tries again to tell the others so.
const TELL_PAUSE: Duration = Duration::from_millis(10);

/// Rounds of messages to other cores in one turn. A message that found no room may cause new ones.
const ROUNDS: usize = 4;

/// A message that a core has put into another one's mailbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) to: usize,
    /// The other core has to be woken.
    pub(crate) wakes: bool,
    /// The message is counted. The news that a core began anew is not.
    pub(crate) counts: bool,
    pub(crate) carries_tunnel: bool,
    /// With this message a parked tunnel goes to another client.
    pub(crate) moves: bool,
}

/// What the reactor calls: the shard, and the messages between this core and the others.
pub(crate) struct CoreRuntime {
    /// The core's number in the world.
    number: usize,
    /// The core's number at its node.
    own: usize,
    pub(crate) shard: Shard,
    wiring: Wiring,
    mails: Vec<Sender<ShardMessage>>,
    /// Cores that have not heard yet that this one began anew.
    untold: Vec<u16>,
    tell_at: Option<Time>,
    /// Links of connections that were accepted here.
    links: BTreeMap<(u32, u32), usize>,
    /// Links of whose end the shard was told.
    pub(crate) told: Vec<usize>,
    /// Answers of the control plane that are not judged yet.
    pub(crate) heard: Vec<Heard>,
    /// Answers of the control plane that came by the mailbox.
    pub(crate) answers: u64,
    pub(crate) sent: Vec<Sent>,
    /// How often the reactor has reported something.
    calls: u64,
}

impl CoreRuntime {
    pub(crate) fn new(
        (number, own): (usize, usize),
        shard: Shard,
        wiring: &Wiring,
        mails: &[Sender<ShardMessage>],
        anew: bool,
    ) -> Self {
        let others = (0..mails.len()).filter(|core| anew && *core != own);
        Self {
            number,
            own,
            shard,
            wiring: wiring.clone(),
            untold: others.map(|core| core as u16).collect(),
            mails: mails.to_vec(),
            tell_at: None,
            links: BTreeMap::new(),
            told: Vec::new(),
            heard: Vec::new(),
            answers: 0,
            sent: Vec::new(),
            calls: 0,
        }
    }

    /// Puts a message into another core's mailbox, behind the news that this one began anew.
    fn send(&mut self, to: u16, message: ShardMessage) -> Result<(), Full<ShardMessage>> {
        if !self.tell(to) {
            return Err(Full(message));
        }
        let moves = matches!(
            message,
            ShardMessage::Core(CoreMessage::Claim { .. } | CoreMessage::Resumed(_))
        );
        let carries_tunnel =
            matches!(&message, ShardMessage::Core(message) if message.carries_tunnel());
        self.put(
            to,
            message,
            Sent { to: self.whose(to), wakes: false, counts: true, carries_tunnel, moves },
        )
    }

    /// The number in the world of a core of its node.
    fn whose(&self, core: u16) -> usize {
        self.number - self.own + usize::from(core)
    }

    fn put(
        &mut self,
        to: u16,
        message: ShardMessage,
        sent: Sent,
    ) -> Result<(), Full<ShardMessage>> {
        let bell = self.mails[usize::from(to)].deliver(message)?;
        self.sent.push(Sent { wakes: bell.is_some(), ..sent });
        if let Some(bell) = bell {
            bell.rung();
        }
        Ok(())
    }

    /// Tells a core that this one began anew, unless it knows. True if it knows now.
    fn tell(&mut self, to: u16) -> bool {
        if !self.untold.contains(&to) {
            return true;
        }
        let news = ShardMessage::Restarted { core: self.own as u16 };
        let sent = Sent {
            to: self.whose(to),
            wakes: false,
            counts: false,
            carries_tunnel: false,
            moves: false,
        };
        let told = self.put(to, news, sent).is_ok();
        self.untold.retain(|core| !told || *core != to);
        told
    }

    /// Puts the shard's messages into the other cores' mailboxes, which may be full.
    fn deliver(&mut self, net: &mut Net) {
        for to in self.untold.clone() {
            self.tell(to);
        }
        self.tell_at = (!self.untold.is_empty()).then(|| net.now + TELL_PAUSE);
        for _ in 0..ROUNDS {
            let mut messages = Vec::new();
            self.shard.take_core_messages(&mut messages);
            if messages.is_empty() {
                break;
            }
            let mut full = Vec::new();
            for (to, message) in messages {
                let message = ShardMessage::Core(message);
                // The order between two cores is kept: once a message found no room, none behind it
                // is tried.
                let sent =
                    if full.contains(&to) { Err(Full(message)) } else { self.send(to, message) };
                if let Err(Full(ShardMessage::Core(message))) = sent {
                    note("core", self.number, "finds a full mailbox", [to.into(), 0]);
                    full.push(to);
                    self.shard.undelivered(net, to, message);
                }
            }
        }
    }
}

impl net::Core for CoreRuntime {
    type Message = ShardMessage;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, listener: Listener, peer: SocketAddr) {
        self.calls += 1;
        self.links.insert((conn.slot, conn.generation), link_of(peer));
        self.shard.accepted(net, conn, listener, peer);
    }

    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>) {
        self.calls += 1;
        self.shard.dialled(net, conn, result);
    }

    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        self.calls += 1;
        self.shard.received(net, conn, segment);
    }

    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        self.calls += 1;
        note("core", self.number, "is told of an end, slot", [conn.slot.into(), end as u64]);
        self.told.extend(self.links.get(&(conn.slot, conn.generation)));
        self.shard.ended(net, conn, end);
    }

    fn detached(&mut self, net: &mut Net, conn: ConnId, detached: Detached) {
        self.calls += 1;
        let Carried::Simulated(socket) = &detached.socket else {
            panic!("a real socket in a simulated world")
        };
        let number = socket.number() as usize;
        note("core", self.number, "detaches link", [number as u64, 0]);
        self.wiring.lock().links[number].core = None;
        self.shard.detached(net, conn, detached);
    }

    fn written(&mut self, net: &mut Net, conn: ConnId, bytes: usize) {
        self.calls += 1;
        self.shard.written(net, conn, bytes);
    }

    fn awaits(&self, conn: ConnId) -> bool {
        self.shard.awaits(conn)
    }

    fn message_received(&mut self, net: &mut Net, message: ShardMessage) {
        self.calls += 1;
        match message {
            ShardMessage::Answer { ticket, answer } => {
                self.answers += 1;
                self.hear(net, ticket, answer);
            }
            message => self.shard.message_received(net, message),
        }
    }

    fn turn(&mut self, net: &mut Net) {
        self.shard.turn(net);
        self.deliver(net);
    }

    fn relieve(&mut self, net: &mut Net) {
        note("core", self.number, "is relieved", [0, 0]);
        self.shard.relieve(net);
    }

    fn deadline(&self) -> Option<Time> {
        [self.shard.deadline(), self.tell_at].into_iter().flatten().min()
    }

    fn finished(&self) -> bool {
        self.shard.finished()
    }
}

/// One core.
pub(crate) struct Core {
    pub(crate) simulation: Simulation<CoreRuntime, Kernel>,
    /// How long the core sleeps if nothing happens.
    pub(crate) waits: Wait,
    /// Answers of the control plane that were put into the core's mailbox.
    pub(crate) answers: u64,
}

impl Core {
    pub(crate) fn new(
        options: Options,
        runtime: CoreRuntime,
        kernel: Kernel,
        inbox: Mailbox<ShardMessage>,
    ) -> Self {
        let listeners = Kernel::listeners(runtime.number, &runtime.wiring);
        let simulation = Simulation::new(options, listeners, inbox, kernel, runtime);
        Self {
            simulation: simulation.expect("options that work"),
            waits: Wait::Forever,
            answers: 0,
        }
    }

    pub(crate) fn shard(&self) -> &Shard {
        &self.simulation.core().shard
    }

    /// One loop turn. True if there was anything to do in it.
    pub(crate) fn turn(&mut self) -> bool {
        let (slept, calls) = (self.waits != Wait::No, self.simulation.core().calls);
        self.waits = self.simulation.step();
        slept || self.simulation.kernel().told > 0 || self.simulation.core().calls > calls
    }

    /// Whether the shard has a link's connection, or will be given it.
    pub(crate) fn holds(&self, link: usize) -> bool {
        let net = self.simulation.net();
        match self.simulation.sockets().find(|(number, _)| *number as usize == link) {
            Some((_, conn)) => {
                let output = net.output(conn);
                net.is_open(conn) && output.is_some_and(|o| o.closing().is_none())
            }
            None => self.simulation.core().wiring.lock().is_knocking(link),
        }
    }
}
