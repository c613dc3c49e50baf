//! What a test can only see when nothing else runs in its process: descriptors, allocations,
//! kernel threads, limits. The tests take turns.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[macro_use]
mod reactor_rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reactor_rig::{Probe, SOON, Watched, start, start_on, until};
use ringway::bare::{Bare, BareMessage};
use ringway::mailbox::mailbox;
use ringway::net::{ConnId, Core, End, Listener, Net};
use ringway::pool::Segment;
use ringway::reactor::{KeepAlive, Options, Reactor, SetupError};
use ringway_proto::time::Time;

/// Counts allocations of threads that asked for it.
struct Counting;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Kernel threads working for rings of this process.
fn ring_workers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    names.filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("iou-wrk"))).count()
}

/// Echoes on one thread for as long as the process lives.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
        }
    });
    address
}

fn call(stream: &mut TcpStream, message: &[u8]) {
    let mut answer = [0; 4096];
    stream.write_all(message).unwrap();
    stream.read_exact(&mut answer[..message.len()]).unwrap();
    assert_eq!(&answer[..message.len()], message);
}

fn a_thousand_connections_leave_nothing_behind() {
    let _alone = alone();
    let target = echo_server();
    let before = open_descriptors();
    let (core, sight) = Watched::new(Bare::new(target));
    let relay = start(Options::default(), core);
    for round in 0_u32..1000 {
        let mut stream = TcpStream::connect(relay.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        call(&mut stream, &round.to_be_bytes());
        if round.is_multiple_of(3) {
            // Gone with bytes unread on its way: the relay sees a reset.
            stream.write_all(&[0; 100]).unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    until("all sockets closed", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    let seen = *sight.lock().unwrap();
    assert_eq!((seen.tally.accepts, seen.chunks_live), (1000, 0));
    assert_eq!(seen.free, Options::default().blocks, "receive blocks got lost");
    relay.stop(BareMessage::Stop);
    until("all descriptors closed", || (open_descriptors() == before).then_some(()));
}

fn a_panicking_core_leaves_nothing_behind() {
    let _alone = alone();
    let before = open_descriptors();
    let probe = start(Options::default(), Probe::default());
    let address = probe.address;
    let mut streams: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let conn = probe.accepted(99);
    probe.ask(move |_, net| net.put(conn, &vec![0; 16 << 20]));
    // Everything is under way: accepts, receives, a poll of a blocked peer.
    let message = Box::new(|_: &mut Probe, _: &mut Net| panic!("on purpose"));
    probe.panic(message);
    TcpListener::bind(address).expect("the port is free");
    for stream in &mut streams {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let ended = std::io::copy(stream, &mut std::io::sink());
        assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
    drop(streams);
    until("all descriptors closed", || (open_descriptors() == before).then_some(()));
}

fn sends_end_inside_the_enter_and_never_use_kernel_threads() {
    let _alone = alone();
    let probe = start(Options::default(), Probe::default());
    let mut clients: Vec<_> = (0..8).map(|_| TcpStream::connect(probe.address).unwrap()).collect();
    // Sends that take all, a part, and nothing.
    for nth in 0..8 {
        let conn = probe.accepted(nth);
        probe.ask(move |_, net| net.put(conn, &vec![7; 32 << 20]));
    }
    until("blocked sends", || probe.ask(|_, net| (net.tally.blocked_sends >= 8).then_some(())));
    assert_eq!(ring_workers(), 0);
    for client in &mut clients {
        let mut rest = client.try_clone().unwrap().take(32 << 20);
        assert_eq!(std::io::copy(&mut rest, &mut std::io::sink()).unwrap(), 32 << 20);
    }
    assert_eq!(ring_workers(), 0);
    probe.finish();
}

/// How often cores took too long is counted apart from how long they slept.
fn a_core_that_looks_at_nothing_else_for_long_is_counted() {
    const LONG: Duration = Duration::from_millis(100);
    let _alone = alone();
    let probe = start(Options::default(), Probe::default());
    let before = probe.ask(|_, net| net.tally.stalls);
    assert_eq!(before.counts.iter().sum::<u64>(), 0);
    // A core that sleeps does not stall.
    thread::sleep(LONG);
    probe.ask(|_, _| thread::sleep(LONG));
    let after = until("the turn's end", || {
        let stalls = probe.ask(|_, net| net.tally.stalls);
        (stalls.counts.iter().sum::<u64>() > 0).then_some(stalls)
    });
    // On a crowded machine others may have had a part of it.
    assert!(after.sum > LONG / 5, "{after:?}");
    assert!(after.counts[3..].iter().sum::<u64>() > 0, "{after:?}");
    probe.finish();
}

/// Echoes without allocating, and counts what the reactor allocates around it.
struct Echo {
    stopped: bool,
}

impl Core for Echo {
    type Message = ();
    fn accepted(&mut self, _: &mut Net, _: ConnId, _: Listener, _: SocketAddr) {}
    fn dialled(&mut self, _: &mut Net, _: ConnId, _: Result<(), i32>) {}
    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        let half = segment.len as usize / 2;
        let bytes = net.pool.bytes(segment.part(0, half)).first().copied();
        net.put(conn, bytes.as_slice());
        let done = bytes.as_slice().len();
        net.push(conn, segment.part(done, segment.len as usize - done));
    }
    fn ended(&mut self, net: &mut Net, conn: ConnId, _: End) {
        net.close(conn, ringway::net::Close::Now);
    }
    fn written(&mut self, _: &mut Net, _: ConnId, _: usize) {}
    fn message_received(&mut self, _: &mut Net, (): ()) {
        self.stopped = true;
    }
    fn turn(&mut self, _: &mut Net) {
        COUNTED.set(true);
    }
    fn relieve(&mut self, _: &mut Net) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn finished(&self) -> bool {
        self.stopped
    }
}

fn a_turn_in_steady_state_allocates_nothing() {
    let _alone = alone();
    let echo = start(Options::default(), Echo { stopped: false });
    let mut streams: Vec<_> = (0..32)
        .map(|_| {
            let stream = TcpStream::connect(echo.address).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream
        })
        .collect();
    let mut run = |rounds: usize| {
        for round in 0..rounds {
            for stream in &mut streams {
                stream.write_all(&[round as u8; 1500]).unwrap();
            }
            for stream in &mut streams {
                stream.read_exact(&mut [0; 1500]).unwrap();
            }
        }
    };
    run(500);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    run(2000);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(before > 0, "the counter counts");
    // A queue may reach a new greatest length; nothing may be paid per turn, let alone per message.
    assert!(allocations < 8, "{allocations} in 64000 echoes");
    echo.stop(());
}

/// Lowers the limit of open files to a few more than are open now, until dropped.
struct NoDescriptors(libc::rlimit);

impl NoDescriptors {
    fn but(spare: u64) -> Self {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure lives for the call.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut old) }, 0);
        let lowest_free = std::fs::File::open("/dev/null").unwrap();
        let cur = std::os::fd::AsRawFd::as_raw_fd(&lowest_free) as u64;
        Self::set(libc::rlimit { rlim_cur: cur + spare, ..old });
        Self(old)
    }

    fn set(limit: libc::rlimit) {
        // SAFETY: the structure lives for the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        Self::set(self.0);
    }
}

fn without_descriptors_accepting_pauses_and_goes_on_later() {
    let _alone = alone();
    let sockets: Vec<_> = (0..6)
        .map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap())
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // For the mailbox's bell, the ring, the file of its waits for a CPU, and the two of the trial
    // receive, which are given back.
    // (An armed accept keeps to the limit it was armed under: it is lowered before.)
    let limited = NoDescriptors::but(5);
    let probe = start_on(listener, Options::default(), Probe::default());
    let before = probe.ask(|_, net| net.tally);
    for socket in &sockets {
        socket.connect(&probe.address.into()).unwrap();
    }
    // Asking would wake it: after a while it is asked once; a slow machine may need another.
    let begun = Instant::now();
    let (tally, failures) = until("some failures", || {
        thread::sleep(Duration::from_millis(450));
        let tally = probe.ask(|_, net| net.tally);
        let failures = tally.accept_failures - before.accept_failures;
        (failures >= 2).then_some((tally, failures))
    });
    let (took, turns) = (begun.elapsed().as_millis() as u64, tally.turns - before.turns);
    assert!(failures <= took / 75, "{failures} failures in {took} ms");
    assert!(turns < took / 15, "{turns} turns in {took} ms");
    assert_eq!(tally.accepts, 2);
    drop(limited);
    probe.accepted(5);
    probe.finish();
}

fn reactor() -> Result<(), SetupError> {
    let (_sender, mailbox) = mailbox(1).unwrap();
    let core = Echo { stopped: true };
    Reactor::new(Options::default(), Vec::new(), mailbox, Instant::now(), core).map(drop)
}

/// Makes `io_uring_setup` of this thread fail.
fn forbid_rings(errno: i32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The system call's number is first in what a filter sees.
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no pointers are passed.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program and its filter live for the call.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0);
}

#[test]
fn a_host_that_blocks_rings_is_named_with_the_fix() {
    let _alone = alone();
    reactor().expect("io_uring works here");
    for (errno, words) in [
        (libc::EPERM, ["forbidden", "seccomp"]),
        (libc::ENOSYS, ["missing", "6.12"]),
        (libc::ENOMEM, ["memory", "ulimit -l"]),
        (libc::EMFILE, ["descriptor", "ulimit -n"]),
        (libc::EINVAL, ["DEFER_TASKRUN", "6.1"]),
    ] {
        let error = thread::spawn(move || {
            forbid_rings(errno);
            reactor().expect_err("the filter forbids it")
        });
        let error = error.join().unwrap().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{errno}: {error}");
    }
}

#[test]
fn options_that_cannot_work_are_refused() {
    let _alone = alone();
    let usual = Options::default().keep_alive;
    let odd = Duration::from_millis(1500);
    let wrong = [
        Options { blocks: 0, ..Options::default() },
        Options { entries: 100, ..Options::default() },
        Options { block_bytes: 0, ..Options::default() },
        Options { lent: 0, ..Options::default() },
        Options { connections: 0, ..Options::default() },
        Options { pin: Some(1 << 20), ..Options::default() },
        Options { keep_alive: KeepAlive { probes: 0, ..usual }, ..Options::default() },
        Options { keep_alive: KeepAlive { idle: Duration::ZERO, ..usual }, ..Options::default() },
        Options { keep_alive: KeepAlive { interval: odd, ..usual }, ..Options::default() },
        Options {
            keep_alive: KeepAlive { user_timeout: Duration::ZERO, ..usual },
            ..Options::default()
        },
    ];
    for options in wrong {
        let (_sender, mailbox) = mailbox(1).unwrap();
        let core = Echo { stopped: true };
        let name = format!("{options:?}");
        let made = Reactor::new(options, Vec::new(), mailbox, Instant::now(), core);
        assert!(made.is_err(), "{name}");
    }
}

on_both_backends! {
    a_thousand_connections_leave_nothing_behind,
    a_panicking_core_leaves_nothing_behind,
    sends_end_inside_the_enter_and_never_use_kernel_threads,
    a_core_that_looks_at_nothing_else_for_long_is_counted,
    a_turn_in_steady_state_allocates_nothing,
    without_descriptors_accepting_pauses_and_goes_on_later,
}
