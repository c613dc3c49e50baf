//! Runs a core under a real reactor on its own thread, and lets a test ask it things.
#![allow(dead_code, unused_macros, reason = "each test binary uses its part")]
#![allow(clippy::allow_attributes, reason = "expect would be unfulfilled in some binaries")]

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway::mailbox::{Sender, mailbox};
use ringway::metrics::Backend;
use ringway::net::{ConnId, Core, Detached, End, Listener, Net, Tally};
use ringway::pool::Segment;
use ringway::reactor::{Options, Reactor};
use ringway_proto::time::Time;

/// Longest wait for something that should come at once.
pub(crate) const SOON: Duration = Duration::from_secs(60);

thread_local! {
    static BACKEND: Cell<Backend> = const { Cell::new(Backend::Ring) };
}

/// Runs a test whose reactors are driven by `backend`.
pub(crate) fn on(backend: Backend, test: fn()) {
    BACKEND.set(backend);
    test();
}

/// Makes two tests of each function: one on io_uring, one on epoll.
macro_rules! on_both_backends {
    ($($test:ident,)+) => {
        mod on_ring {
            $(#[test]
            fn $test() {
                crate::reactor_rig::on(ringway::metrics::Backend::Ring, super::$test);
            })+
        }

        mod on_epoll {
            $(#[test]
            fn $test() {
                crate::reactor_rig::on(ringway::metrics::Backend::Epoll, super::$test);
            })+
        }
    };
}

/// A reactor at work.
pub(crate) struct Running<C: Core> {
    pub(crate) address: SocketAddr,
    pub(crate) sender: Sender<C::Message>,
    thread: JoinHandle<C>,
}

pub(crate) fn start<C>(options: Options, core: C) -> Running<C>
where
    C: Core + Send + 'static,
    C::Message: Send,
{
    start_on(TcpListener::bind("127.0.0.1:0").unwrap(), options, core)
}

pub(crate) fn start_on<C>(listener: TcpListener, options: Options, core: C) -> Running<C>
where
    C: Core + Send + 'static,
    C::Message: Send,
{
    start_by(Listener::Client, listener, options, core)
}

pub(crate) fn start_by<C>(
    of: Listener,
    listener: TcpListener,
    options: Options,
    core: C,
) -> Running<C>
where
    C: Core + Send + 'static,
    C::Message: Send,
{
    let address = listener.local_addr().unwrap();
    let options = Options { backend: BACKEND.get(), ..options };
    let (sender, mailbox) = mailbox(1024).unwrap();
    let thread = std::thread::spawn(move || {
        let listeners = vec![(of, listener)];
        Reactor::new(options, listeners, mailbox, Instant::now(), core).unwrap().run()
    });
    Running { address, sender, thread }
}

impl<C: Core> Running<C> {
    pub(crate) fn stop(self, message: C::Message) -> C {
        assert!(self.sender.send(message).is_ok(), "the mailbox was full");
        self.thread.join().unwrap()
    }

    /// As [`Self::stop`], with a message that the core does not survive.
    pub(crate) fn panic(self, message: C::Message) {
        assert!(self.sender.send(message).is_ok(), "the mailbox was full");
        assert!(self.thread.join().is_err(), "the core survived");
    }
}

/// Waits until `probe` has an answer.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(begun.elapsed() < SOON, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that no shift or loss leaves alike.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// What a core saw of its own network interface.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sight {
    pub(crate) tally: Tally,
    pub(crate) chunks_live: usize,
    pub(crate) chunks_most: usize,
    pub(crate) free: usize,
    pub(crate) copied_out: u64,
}

/// How often a [`Watched`] core is looked at even if nothing happens.
const GLANCE: Duration = Duration::from_millis(20);

/// A core that is looked at from outside.
pub(crate) struct Watched<C> {
    pub(crate) core: C,
    now: Time,
    pub(crate) sight: Arc<Mutex<Sight>>,
}

impl<C> Watched<C> {
    pub(crate) fn new(core: C) -> (Self, Arc<Mutex<Sight>>) {
        let sight = Arc::new(Mutex::new(Sight::default()));
        (Self { core, now: Time::ZERO, sight: Arc::clone(&sight) }, sight)
    }
}

impl<C: Core> Core for Watched<C> {
    type Message = C::Message;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, by: Listener, peer: SocketAddr) {
        self.core.accepted(net, conn, by, peer);
    }
    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>) {
        self.core.dialled(net, conn, result);
    }
    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        self.core.received(net, conn, segment);
    }
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        self.core.ended(net, conn, end);
    }
    fn addressed(&mut self, net: &mut Net, conn: ConnId, peer: SocketAddr) {
        self.core.addressed(net, conn, peer);
    }
    fn detached(&mut self, net: &mut Net, conn: ConnId, detached: Detached) {
        self.core.detached(net, conn, detached);
    }
    fn awaits(&self, conn: ConnId) -> bool {
        self.core.awaits(conn)
    }
    fn written(&mut self, net: &mut Net, conn: ConnId, bytes: usize) {
        self.core.written(net, conn, bytes);
    }
    fn message_received(&mut self, net: &mut Net, message: C::Message) {
        self.core.message_received(net, message);
    }
    fn turn(&mut self, net: &mut Net) {
        self.core.turn(net);
        self.now = net.now;
        let mut sight = self.sight.lock().unwrap();
        sight.tally = net.tally;
        sight.chunks_live = net.pool.chunks_live();
        sight.chunks_most = sight.chunks_most.max(sight.chunks_live);
        sight.free = net.pool.ring_free();
        sight.copied_out = net.copied_out;
    }
    fn relieve(&mut self, net: &mut Net) {
        self.core.relieve(net);
    }
    fn deadline(&self) -> Option<Time> {
        let glance = self.now + GLANCE;
        Some(self.core.deadline().map_or(glance, |at| at.min(glance)))
    }
    fn finished(&self) -> bool {
        self.core.finished()
    }
}

/// What was told to a [`Probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    Accepted(ConnId),
    Dialled(ConnId, Result<(), i32>),
    Ended(ConnId, End),
}

type Errand = Box<dyn FnOnce(&mut Probe, &mut Net) + Send>;

/// A core that notes what it is told and does what the test sends it to do.
#[derive(Default)]
pub(crate) struct Probe {
    pub(crate) facts: Vec<Fact>,
    /// Connections accepted in this turn, and in the turn with most of them.
    pub(crate) accepted_now: usize,
    pub(crate) most_accepted: usize,
    pub(crate) bytes: HashMap<ConnId, Vec<u8>>,
    pub(crate) written: HashMap<ConnId, usize>,
    /// The core does not wait for reports of written bytes.
    pub(crate) patient: bool,
    pub(crate) detached_ones: Vec<(ConnId, Detached)>,
    pub(crate) deadline: Option<Time>,
    pub(crate) fired: Option<Time>,
    pub(crate) stopped: bool,
}

impl Probe {
    pub(crate) fn ends(&self, conn: ConnId) -> Vec<End> {
        let ended = |fact: &Fact| match fact {
            Fact::Ended(of, end) if *of == conn => Some(*end),
            _ => None,
        };
        self.facts.iter().filter_map(ended).collect()
    }
}

impl Core for Probe {
    type Message = Errand;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, _: Listener, _: SocketAddr) {
        assert!(net.is_open(conn));
        self.accepted_now += 1;
        self.facts.push(Fact::Accepted(conn));
    }
    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>) {
        assert_eq!(net.is_open(conn), result.is_ok());
        self.facts.push(Fact::Dialled(conn, result));
    }
    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        assert!(net.is_open(conn), "a dead id was told of bytes");
        self.bytes.entry(conn).or_default().extend_from_slice(net.pool.bytes(segment));
    }
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        assert_eq!(net.is_open(conn), end.is_half());
        self.facts.push(Fact::Ended(conn, end));
    }
    fn awaits(&self, _: ConnId) -> bool {
        !self.patient
    }
    fn written(&mut self, net: &mut Net, conn: ConnId, bytes: usize) {
        assert!(net.is_open(conn), "a dead id was told of a send");
        *self.written.entry(conn).or_default() += bytes;
    }
    fn message_received(&mut self, net: &mut Net, message: Errand) {
        message(self, net);
    }
    fn turn(&mut self, net: &mut Net) {
        self.most_accepted = self.most_accepted.max(std::mem::take(&mut self.accepted_now));
        if self.deadline.is_some_and(|at| at <= net.now) {
            self.deadline = None;
            self.fired = Some(net.now);
        }
    }
    fn detached(&mut self, net: &mut Net, conn: ConnId, detached: Detached) {
        assert!(!net.is_open(conn), "a detached connection is dead");
        self.detached_ones.push((conn, detached));
    }
    fn relieve(&mut self, _: &mut Net) {}
    fn deadline(&self) -> Option<Time> {
        self.deadline
    }
    fn finished(&self) -> bool {
        self.stopped
    }
}

impl Running<Probe> {
    /// Does something on the core's thread and brings the answer back.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        errand: impl FnOnce(&mut Probe, &mut Net) -> T + Send + 'static,
    ) -> T {
        let (answer, answered) = mpsc::channel();
        let errand: Errand = Box::new(move |probe, net| {
            let _ = answer.send(errand(probe, net));
        });
        assert!(self.sender.send(errand).is_ok(), "the mailbox was full");
        answered.recv_timeout(SOON).expect("the core did not answer")
    }

    /// The connection of the `nth` accept.
    pub(crate) fn accepted(&self, nth: usize) -> ConnId {
        until("an accept", || {
            self.ask(move |probe, _| {
                let mut accepts = probe.facts.iter().filter_map(|fact| match fact {
                    Fact::Accepted(conn) => Some(*conn),
                    _ => None,
                });
                accepts.nth(nth)
            })
        })
    }

    /// The connection that was detached, once it is.
    pub(crate) fn detached(&self, conn: ConnId) -> Detached {
        until("a connection to be detached", || {
            self.ask(move |probe, _| {
                let at = probe.detached_ones.iter().position(|(of, _)| *of == conn)?;
                Some(probe.detached_ones.swap_remove(at).1)
            })
        })
    }

    pub(crate) fn finish(self) -> Probe {
        self.stop(Box::new(|probe: &mut Probe, _: &mut Net| probe.stopped = true))
    }
}
