//! Mailboxes and both doorbells between real reactors: nobody sleeps through a message, whoever
//! sends it and however a core ends.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod reactor_rig;

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use reactor_rig::{Noise, Probe, SOON, start, until};
use ringway::mailbox::{Full, Mailbox, Sender, mailbox};
use ringway::net::{ConnId, Core, End, Listener, Net};
use ringway::pool::Segment;
use ringway::reactor::{BusyPoll, Options, Reactor};
use ringway_proto::time::Time;

/// What goes round.
enum Pass {
    /// The next core, and the core where a token ends.
    Next(Sender<Self>, mpsc::Sender<u32>),
    /// A token with so many passes left.
    Token(u32),
    /// From outside: to be answered.
    Knock(mpsc::Sender<u32>),
    Panic,
    Stop,
}

/// Passes tokens on.
#[derive(Default)]
struct Passer {
    next: Option<(Sender<Pass>, mpsc::Sender<u32>)>,
    passed: u32,
    rung: u64,
    stopped: bool,
}

impl Passer {
    fn pass(&mut self, net: &mut Net, left: u32) {
        let (next, end) = self.next.as_ref().expect("the test says who is next");
        self.passed += 1;
        if left == 0 {
            end.send(self.passed).unwrap();
            return;
        }
        match next.deliver(Pass::Token(left - 1)) {
            Ok(Some(bell)) => net.ring(bell),
            Ok(None) => {}
            Err(Full(_)) => panic!("few tokens, many places"),
        }
    }
}

impl Core for Passer {
    type Message = Pass;

    fn accepted(&mut self, _: &mut Net, _: ConnId, _: Listener, _: SocketAddr) {}
    fn dialled(&mut self, _: &mut Net, _: ConnId, _: Result<(), i32>) {}
    fn received(&mut self, _: &mut Net, _: ConnId, _: Segment) {}
    fn ended(&mut self, _: &mut Net, _: ConnId, _: End) {}
    fn written(&mut self, _: &mut Net, _: ConnId, _: usize) {}
    fn message_received(&mut self, net: &mut Net, message: Pass) {
        match message {
            Pass::Next(next, end) => self.next = Some((next, end)),
            Pass::Token(left) => self.pass(net, left),
            Pass::Knock(answer) => answer.send(self.passed).unwrap(),
            Pass::Panic => panic!("on purpose"),
            Pass::Stop => self.stopped = true,
        }
    }
    fn turn(&mut self, net: &mut Net) {
        self.rung = net.tally.rings;
    }
    fn relieve(&mut self, _: &mut Net) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn finished(&self) -> bool {
        self.stopped
    }
}

/// As many reactors in a circle; `tokens` go round until each was passed on `passes` times. Nothing
/// else ever wakes the cores. How often a ring woke one.
fn circle(options: &[Options], tokens: u32, passes: u32) -> u64 {
    let cores: Vec<_> =
        options.iter().map(|options| start(options.clone(), Passer::default())).collect();
    let (end, ended) = mpsc::channel();
    for (at, core) in cores.iter().enumerate() {
        let next = cores[(at + 1) % cores.len()].sender.clone();
        assert!(core.sender.send(Pass::Next(next, end.clone())).is_ok());
    }
    for token in 0..tokens as usize {
        assert!(cores[token % cores.len()].sender.send(Pass::Token(passes)).is_ok());
    }
    for _ in 0..tokens {
        ended.recv_timeout(3 * SOON).expect("somebody slept through a message");
    }
    cores.into_iter().map(|core| core.stop(Pass::Stop).rung).sum()
}

#[test]
fn two_cores_wake_each_other_by_ring() {
    // Each pass wakes the other one, unless that is not asleep yet.
    let rung = circle(&[Options::default(), Options::default()], 1, 20_000);
    assert!(rung > 0, "no wake-up by ring");
}

#[test]
fn several_tokens_go_round_sleeping_and_spinning_cores() {
    let spins = |busy_poll| Options { busy_poll, ..Options::default() };
    let options = [
        Options::default(),
        spins(BusyPoll::Micros(20)),
        spins(BusyPoll::Auto),
        Options { entries: 8, ..Options::default() },
        Options::default(),
    ];
    circle(&options, 5, 5_000);
}

#[test]
fn threads_and_cores_send_to_the_same_sleeper() {
    const KNOCKS: u32 = 2_000;
    let cores = [(); 2].map(|()| start(Options::default(), Passer::default()));
    let (end, ended) = mpsc::channel();
    for (core, next) in cores.iter().zip([&cores[1], &cores[0]]) {
        let next = next.sender.clone();
        assert!(core.sender.send(Pass::Next(next, end.clone())).is_ok());
    }
    assert!(cores[0].sender.send(Pass::Token(20_000)).is_ok());
    let threads: Vec<_> = (0..4)
        .map(|nth| {
            let target = cores[nth % 2].sender.clone();
            thread::spawn(move || {
                let mut noise = Noise::new(nth as u64 + 1);
                for _ in 0..KNOCKS {
                    let (answer, answered) = mpsc::channel();
                    let mut knock = Pass::Knock(answer);
                    while let Err(Full(back)) = target.send(knock) {
                        knock = back;
                        thread::yield_now();
                    }
                    answered.recv_timeout(SOON).expect("a knock was slept through");
                    if noise.next().is_multiple_of(4) {
                        // Long enough that the core sleeps again.
                        thread::sleep(Duration::from_micros(noise.next() % 200));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    ended.recv_timeout(3 * SOON).expect("the token got lost");
    for core in cores {
        core.stop(Pass::Stop);
    }
}

/// A core that is made again with the same mailbox whenever it panics.
fn immortal(sender: &Sender<Pass>, mut inbox: Mailbox<Pass>) -> thread::JoinHandle<u32> {
    let sender = sender.clone();
    thread::spawn(move || {
        let mut lives = 1;
        loop {
            let life = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let core = Passer::default();
                let options = Options::default();
                Reactor::new(options, Vec::new(), inbox, Instant::now(), core).unwrap().run();
            }));
            if life.is_ok() {
                return lives;
            }
            lives += 1;
            inbox = sender.reopen().expect("the last receiver is gone");
        }
    })
}

/// Sends from a core's thread, which rings by ring. Whether somebody took it.
fn send_from(caller: &reactor_rig::Running<Probe>, sender: &Sender<Pass>, message: Pass) -> bool {
    let sender = sender.clone();
    caller.ask(move |_, net| match sender.deliver(message) {
        Ok(Some(bell)) => {
            net.ring(bell);
            true
        }
        Ok(None) => true,
        Err(Full(_)) => false,
    })
}

#[test]
fn a_core_that_panics_again_and_again_is_reached_by_the_same_sender() {
    const LIVES: u32 = 60;
    let (sender, inbox) = mailbox(64).unwrap();
    let thread = immortal(&sender, inbox);
    let caller = start(Options::default(), Probe::default());
    let mut pause = Noise::new(9);
    for _ in 1..LIVES {
        let (answer, answered) = mpsc::channel();
        until("the next life", || {
            // Between two lives nobody takes it, and the end of one drops it.
            let sent = send_from(&caller, &sender, Pass::Knock(answer.clone()));
            let wait = if sent { 20 } else { 0 };
            answered.recv_timeout(Duration::from_millis(wait)).ok()
        });
        // The new core lives and sleeps after each message. Its own ring wakes it, not its
        // predecessors'.
        for _ in 0..20 {
            let (answer, answered) = mpsc::channel();
            assert!(send_from(&caller, &sender, Pass::Knock(answer)));
            answered.recv_timeout(SOON).expect("a knock was slept through");
            thread::sleep(Duration::from_micros(pause.next() % 100));
        }
        // The core ends while others ring.
        assert!(sender.send(Pass::Panic).is_ok());
        for _ in 0..pause.next() % 4 {
            send_from(&caller, &sender, Pass::Token(0));
        }
    }
    until("the last word", || sender.send(Pass::Stop).ok());
    until("its end", || {
        thread.is_finished().then_some(()).or_else(|| {
            let _ = sender.send(Pass::Stop);
            None
        })
    });
    assert!(thread.join().unwrap() >= LIVES);
    caller.finish();
}

fn is_rung(inbox: &Mailbox<u32>, within: Duration) -> bool {
    let mut poll = libc::pollfd { fd: inbox.bell(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd that lives on this stack frame.
    let ready = unsafe { libc::poll(&raw mut poll, 1, within.as_millis() as i32) };
    ready == 1
}

/// Rings the bell of a sleeper on a core's thread.
fn ring_it(probe: &reactor_rig::Running<Probe>, sender: &Sender<u32>) {
    let sender = sender.clone();
    probe.ask(move |_, net| {
        let bell = sender.deliver(1).unwrap().expect("it sleeps");
        net.ring(bell);
    });
}

#[test]
fn a_ring_that_cannot_be_rung_is_rung_by_eventfd() {
    let probe = start(Options::default(), Probe::default());
    let (sender, mut inbox) = mailbox(8).unwrap();
    // Not a ring; not even open.
    let file = std::fs::File::open("/dev/null").unwrap();
    for fd in [file.as_fd().as_raw_fd(), 1 << 20] {
        let published = inbox.publish(Some(fd));
        assert!(inbox.fall_asleep() && !is_rung(&inbox, Duration::ZERO));
        ring_it(&probe, &sender);
        assert!(is_rung(&inbox, SOON));
        drop(published);
        assert_eq!(inbox.receive(), Some(1));
        inbox = unrung(&sender, inbox);
    }
    // Nothing published.
    assert!(inbox.fall_asleep());
    ring_it(&probe, &sender);
    assert!(is_rung(&inbox, SOON));
    probe.finish();
}

/// The same mailbox with its bell silent again: the counter is read.
fn unrung(sender: &Sender<u32>, inbox: Mailbox<u32>) -> Mailbox<u32> {
    let mut counter = 0_u64;
    // SAFETY: eight bytes that live on this stack frame.
    let n = unsafe { libc::read(inbox.bell(), (&raw mut counter).cast(), 8) };
    assert_eq!(n, 8);
    drop(inbox);
    sender.reopen().unwrap()
}

#[test]
fn a_core_that_ends_or_panics_with_a_bell_in_hand_rings_it() {
    for panics in [false, true] {
        let (sender, mut inbox) = mailbox(8).unwrap();
        assert!(inbox.fall_asleep());
        let probe = start(Options::default(), Probe::default());
        let errand = Box::new(move |probe: &mut Probe, net: &mut Net| {
            let bell = sender.deliver(1).unwrap().expect("it sleeps");
            net.ring(bell);
            assert!(!panics, "on purpose");
            probe.stopped = true;
        });
        if panics {
            probe.panic(errand);
        } else {
            probe.stop(errand);
        }
        assert!(is_rung(&inbox, SOON));
    }
}
