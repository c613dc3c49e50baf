//! The only user of io_uring, epoll and the clock: drives a [`Core`] over sockets.
//!
//! One loop turn: enter the kernel (sleeping if there is nothing to do), tell the core everything
//! that completed, let it decide, then flush each dirty connection once. Small messages are cheap
//! because sends are gathered per turn instead of made one by one.
//!
//! `pump.rs` says what a connection's completions mean, and `socket.rs` has its states. The
//! kernel's operations are in `uring.rs`, or in `epoll.rs` for hosts that forbid io_uring. Tests
//! make up a kernel of their own (`kernel.rs`) and drive the loop in that kernel's time
//! (`simulation.rs`).

mod accept;
mod backend;
mod buffer;
mod dial;
mod doorbell;
mod epoll;
mod fault;
mod filter;
mod kernel;
mod moving;
mod options;
mod outq;
mod pump;
mod simulation;
mod slices;
mod socket;
mod spin;
mod stall;
#[cfg(test)]
mod states;
mod stream;
mod tag;
mod timer;
mod transport;
mod trial;
mod uring;
mod wait;

use std::collections::VecDeque;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use ringway_proto::time::Time;

use crate::mailbox::{Mailbox, Published};
use crate::net::{Close, ConnId, Core, LINGER, Listener, Net, Wish};
use crate::pool::Pool;
use crate::transport::{Fact, Gate, Scratch};
use accept::ListenSocket;
use backend::Ring;
use doorbell::Bells;
use socket::{Socket, Sockets};
use spin::SpinWindow;
use stall::{Pace, Schedstat};
use stream::{Listening, Stream};
use tag::Kind;
use timer::Timers;

pub use accept::{ACCEPT_PAUSE, ACCEPTS_PER_TURN};
pub use backend::try_rings;
pub use fault::SetupError;
pub use kernel::{Kernel, SimulatedListener};
pub use options::{BusyPoll, KeepAlive, Options};
pub use outq::unacknowledged;
pub use pump::DROP_BUDGET;
pub use simulation::Simulation;
pub use slices::take_long_turns;
pub use tag::{Completion, Tag};
pub use timer::{DIAL_TIMEOUT, FLUSH_STALL};
pub use trial::{Feature, Trial, try_features};
pub use uring::{Accepts, Report, Share, Wait};

/// Below this share of free receive blocks, in percent, the core is asked to free some.
pub const RELIEVE_BELOW: usize = 25;

/// How long connections may still be flushed after the core has finished.
pub const END_WAIT: Duration = LINGER;

/// How much of that time a peer has for its FIN after it was sent everything.
const END_PAUSE: Duration = Duration::from_millis(250);

/// Starved receives that are tried again per lent block. Small messages share a block.
const FEED_PER_BLOCK: usize = 4;

/// An event found outside the kernel's completions. The core is told at the start of the next turn.
#[derive(Debug)]
enum News {
    /// A connection of a listener that has been closed since.
    Accepted(Stream, Listener),
    /// A dial failed before it began.
    Undialled(ConnId, i32),
    /// A send found the connection broken and no receive is under way that would tell.
    Broken(ConnId),
    /// Nothing is under way any more on a connection that the core detaches.
    Detached(ConnId),
    /// A connection that cannot be taken up.
    Refused(ConnId),
}

/// The parts on which a reactor is set up.
struct Host {
    net: Net,
    ring: Ring,
    share: Share,
    listen_sockets: Vec<ListenSocket>,
    gates: Vec<Gate>,
    origin: Instant,
    schedstat: Schedstat,
}

/// One core's loop.
///
/// A reactor stays on the thread that made it. Ring and payload memory live outside the core, and
/// all calls into the core go through one method.
pub struct Reactor<C: Core> {
    // Fields are dropped in order. `published` goes first, so that nobody rings a ring that is
    // being dropped. The ring goes before the payload memory, which the kernel uses until then.
    published: Published,
    bells: Bells,
    ring: Ring,
    listen_sockets: Vec<ListenSocket>,
    sockets: Sockets,
    timers: Timers,
    mailbox: Mailbox<C::Message>,
    net: Net,
    core: C,
    options: Options,
    /// The bounds of one receive that this kernel knows.
    share: Share,
    origin: Instant,
    /// What connections have to pass, by listener.
    gates: Vec<Gate>,
    /// Memory that transports share, and the facts of the last one.
    scratch: Scratch,
    facts: Vec<Fact>,
    /// Connections with something to send that the network interface does not know of: half-sent
    /// ones.
    dirty: Vec<ConnId>,
    /// Connections whose operations have to be looked at.
    looks: Vec<ConnId>,
    wishes: Vec<Wish>,
    news: Vec<News>,
    /// Connections that wait to be let in, and whether they inherited their listener's options.
    crowd: VecDeque<(Stream, Listener, bool)>,
    /// How many were let in in this turn.
    let_in: usize,
    /// Connections whose receive found no block, longest waiting first.
    starved: VecDeque<ConnId>,
    /// Sends under way: none between turns, so that output may be changed and copied out.
    sending: usize,
    /// The connections of those sends whose success the kernel does not report.
    untold: Vec<ConnId>,
    /// Whether receive blocks were short in the last turn.
    short: bool,
    /// Whether the last turn did everything against the shortage.
    relieved: bool,
    /// For how long the core looks for work before it sleeps.
    window: SpinWindow,
    /// How long the core's turns take.
    pace: Pace,
    schedstat: Schedstat,
    /// Whether the listeners are closed.
    closing: bool,
    /// When the last flushes are cut off.
    end_at: Option<Time>,
}

impl<C: Core> Reactor<C> {
    /// Sets the core up on the calling thread, which has to be the one that [runs](Self::run) it.
    /// `origin` is the process's [`Time::ZERO`].
    ///
    /// # Errors
    /// [`SetupError`] says what the host lacks or forbids, and the fix.
    pub fn new(
        options: Options,
        listeners: Vec<(Listener, TcpListener)>,
        mailbox: Mailbox<C::Message>,
        origin: Instant,
        core: C,
    ) -> Result<Self, SetupError> {
        options.check()?;
        if let Some(cpu) = options.pin {
            uring::pin(cpu)?;
        }
        let mut net = Net::new(Pool::new(options.blocks, options.block_bytes));
        let (ring, share) = Ring::new(&options, &mut net.pool)?;
        let gates = listeners.iter().map(|(listener, _)| options.entrances.gate(*listener));
        let gates = gates.collect();
        let listen_socket = |(listener, socket)| {
            let inherited = options.inherited.contains(&listener);
            let keep_alive = options.keep_alive_of(listener);
            ListenSocket::new(listener, Listening::Kernel(socket), keep_alive, inherited)
        };
        let listen_sockets = listeners.into_iter().map(listen_socket).collect::<Result<_, _>>()?;
        let schedstat = Schedstat::of_thread();
        let host = Host { net, ring, share, listen_sockets, gates, origin, schedstat };
        Ok(Self::on(host, options, mailbox, core))
    }

    fn on(host: Host, options: Options, mailbox: Mailbox<C::Message>, core: C) -> Self {
        let Host { net, mut ring, share, listen_sockets, gates, origin, schedstat } = host;
        ring.bell(mailbox.bell(), Tag::numbered(Kind::Bell, 0));
        Self {
            published: mailbox.publish(ring.fd()),
            bells: Bells::default(),
            ring,
            listen_sockets,
            sockets: Sockets::default(),
            timers: Timers::default(),
            mailbox,
            net,
            core,
            window: SpinWindow::new(options.busy_poll),
            pace: Pace::default(),
            schedstat,
            options,
            share,
            origin,
            gates,
            scratch: Scratch::default(),
            facts: Vec::new(),
            dirty: Vec::new(),
            looks: Vec::new(),
            wishes: Vec::new(),
            news: Vec::new(),
            crowd: VecDeque::new(),
            let_in: 0,
            starved: VecDeque::new(),
            sending: 0,
            untold: Vec::new(),
            short: false,
            relieved: false,
            closing: false,
            end_at: None,
        }
    }

    /// Serves until the core has [finished](Core::finished); then closes every socket, so that the
    /// ports are free when it returns, and gives the core back.
    pub fn run(mut self) -> C {
        self.net.now = self.clock();
        self.open_listen_sockets();
        while !self.call(|core, _| core.finished()) {
            self.gather();
            self.decide();
        }
        self.end()
    }

    /// After the completions: tells the core the messages of other threads, lets it decide, and
    /// does what it decided.
    fn decide(&mut self) {
        self.messages();
        self.call(|core, net| core.turn(net));
        self.act();
    }

    /// Every call into the core goes through here.
    fn call<R>(&mut self, f: impl FnOnce(&mut C, &mut Net) -> R) -> R {
        f(&mut self.core, &mut self.net)
    }

    fn add(&mut self, socket: Socket) {
        self.sockets.add(socket);
        self.net.tally.sockets = self.sockets.live() as u64;
    }

    /// Closes a socket that nothing is under way on, and frees its slot.
    fn remove(&mut self, conn: ConnId) {
        self.ring.forget(Tag::of(Kind::Receive, conn));
        let socket = self.sockets.remove(conn);
        self.end_transport(socket.and_then(|socket| socket.transport));
        self.net.tally.sockets = self.sockets.live() as u64;
        self.net.free(conn);
    }

    // ---- facts ----

    /// Waits for completions and tells the core of them.
    fn gather(&mut self) {
        self.rest();
        self.tell();
    }

    /// Tells the core what has happened.
    fn tell(&mut self) {
        self.net.now = self.clock();
        self.turn_ends();
        self.pace.begins(self.net.now);
        self.net.tally.turns += 1;
        self.tell_news();
        self.let_crowd_in();
        let batch = self.ring.take_batch();
        if batch.iter().any(|completion| completion.tag.kind().is_call()) {
            self.window.called(self.net.now);
        }
        let sends_told = self.tell_sends(&batch);
        for completion in &batch {
            if !(sends_told && completion.tag.kind() == Kind::Send) {
                self.completed(*completion);
            }
        }
        self.ring.give_back(batch);
        assert_eq!(self.sending, 0, "every send has ended when the enter that took it returns");
        while let Some((due, conn)) = self.timers.pop(self.net.now) {
            self.due(due, conn);
        }
        if !self.closing && self.listen_deadline().is_some_and(|at| at <= self.net.now) {
            self.open_listen_sockets();
        }
    }

    fn completed(&mut self, completion: Completion) {
        match completion.tag.kind() {
            Kind::Accept => self.accepted(completion),
            Kind::Receive => self.received(completion),
            Kind::Send => self.sent(completion),
            Kind::Writable => self.writable(completion),
            Kind::Connect => self.connected(completion),
            Kind::Cancel => self.cancel_ended(completion),
            // The message that the bell rang for is in the mailbox, which every turn looks into.
            Kind::Bell if completion.more() => {}
            Kind::Bell => self.ring.bell(self.mailbox.bell(), completion.tag),
            Kind::Ring => self.ring_failed(completion),
            Kind::Rung => {}
        }
    }

    fn tell_news(&mut self) {
        let mut news = std::mem::take(&mut self.news);
        for item in news.drain(..) {
            match item {
                News::Accepted(stream, listener) => self.admit(stream, listener, false),
                News::Undialled(conn, errno) => {
                    self.tell_undialled(conn, errno);
                    self.net.free(conn);
                }
                News::Broken(conn) => {
                    if let Some(end) = self.sockets.get(conn).and_then(|socket| socket.broken) {
                        self.fail(conn, end);
                    }
                }
                News::Detached(conn) => self.hand_over(conn),
                News::Refused(conn) => self.refuse(conn),
            }
        }
        // The core may have caused more of these events, which are for the next turn.
        news.append(&mut self.news);
        self.news = news;
    }

    /// Tells the core the messages of other threads: one mailbox full per turn, so that they cannot
    /// keep it busy.
    fn messages(&mut self) {
        for _ in 0..self.mailbox.capacity() {
            let Some(message) = self.mailbox.receive() else { break };
            self.window.called(self.net.now);
            self.call(|core, net| core.message_received(net, message));
        }
    }

    // ---- acts ----

    /// Does what the core decided.
    fn act(&mut self) {
        self.refill();
        self.settle();
        self.flush();
    }

    /// Gives receive blocks back to the kernel, and tries receives again that found none.
    fn refill(&mut self) {
        self.ring.lend(&mut self.net.pool);
        // The blocks of one turn are mostly sent and back in the next, so nothing is copied for one
        // turn's shortage.
        let was_short = self.short;
        self.short = self.is_short();
        self.relieved = self.short && was_short && !self.closing;
        if self.relieved {
            self.relieve();
        }
        // About as many receives as find room: the others keep their place in the queue.
        let room = self.net.pool.ring_lent() * FEED_PER_BLOCK;
        for _ in 0..room.min(self.starved.len()) {
            let Some(conn) = self.starved.pop_front() else { break };
            self.feed(conn);
        }
    }

    fn is_short(&self) -> bool {
        let pool = &self.net.pool;
        pool.ring_free() * 100 < pool.ring_blocks() * RELIEVE_BELOW
    }

    /// Gets receive blocks back that are kept for long: by peers that take nothing, then by the
    /// core itself. Blocks that flow come back by themselves and are not copied.
    fn relieve(&mut self) {
        self.net.tally.relieved += 1;
        for conn in self.sockets.stuck() {
            self.net.copy_out(conn);
        }
        self.ring.lend(&mut self.net.pool);
        if self.is_short() {
            self.call(|core, net| core.relieve(net));
            self.ring.lend(&mut self.net.pool);
        }
    }

    /// Starts and stops operations as wished for and as needed.
    fn settle(&mut self) {
        let mut wishes = std::mem::take(&mut self.wishes);
        self.net.take_wishes(&mut wishes);
        for wish in wishes.drain(..) {
            match wish {
                Wish::Dial(conn, address) => self.dial(conn, address),
                Wish::Look(conn) => self.look(conn),
                Wish::Unlisten(listener) => self.shut_listen_sockets(listener),
                Wish::KeepOut(listener, addresses) => self.keep_out(listener, &addresses),
                // Only a tunnel moves this way, or a worker's connection that was to become one.
                Wish::Adopt(conn, socket) => self.adopt(conn, socket, Some(Listener::Worker)),
                Wish::Admit(conn, socket, listener) => self.adopt(conn, socket, Some(listener)),
                Wish::Ring(bell) => self.ring_bell(bell),
            }
        }
        self.wishes = wishes;
        let mut looks = std::mem::take(&mut self.looks);
        for conn in looks.drain(..) {
            self.look(conn);
        }
        self.looks = looks;
    }

    // ---- the end ----

    /// Closes everything in order: a port is free only when its last accept has ended.
    fn end(mut self) -> C {
        self.close_listen_sockets();
        let begun = self.net.now;
        self.end_at = Some(begun + END_PAUSE);
        for conn in self.sockets.all() {
            self.net.close(conn, Close::Now);
        }
        self.act();
        while self.sockets.live() > 0 || self.listen_sockets.iter().any(ListenSocket::is_armed) {
            if self.end_at.is_some_and(|at| at <= self.net.now) {
                let unsent = self.sockets.all().into_iter().any(|c| self.net.queued(c) > 0);
                if !unsent || begun + END_WAIT <= self.net.now {
                    break;
                }
                self.end_at = Some(self.net.now + END_PAUSE);
            }
            self.gather();
            self.act();
        }
        let Self { published, ring, listen_sockets, core, .. } = self;
        drop(published);
        drop(ring);
        drop(listen_sockets);
        core
    }
}
