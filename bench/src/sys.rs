//! The system calls without a safe interface: epoll, CPU affinity, the file limit and a stop
//! signal. Everything unsafe of this crate is here; each function is safe to call.
#![expect(unsafe_code, reason = "the baseline must be plain epoll; see the crate's page")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Readable, or the peer has finished sending.
pub const IN: u32 = libc::EPOLLIN as u32;
/// Writable.
pub const OUT: u32 = libc::EPOLLOUT as u32;
/// The peer has finished sending.
pub const RDHUP: u32 = libc::EPOLLRDHUP as u32;
/// An error or a full hang-up; always reported.
pub const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// An edge-triggered epoll instance.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

/// What [`Epoll::wait`] found.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Ready(libc::epoll_event);

impl Ready {
    /// Room for [`Epoll::wait`] to write to.
    pub const EMPTY: Self = Self(libc::epoll_event { events: 0, u64: 0 });

    /// The value given to [`Epoll::add`].
    pub fn token(&self) -> u64 {
        self.0.u64
    }

    /// Whether any of `mask` is set.
    pub fn any(&self, mask: u32) -> bool {
        self.0.events & mask != 0
    }
}

impl Epoll {
    /// A new instance.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Watches `socket` for reading and writing, edge-triggered; closing it ends that.
    pub fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        let events = IN | OUT | RDHUP | libc::EPOLLET as u32;
        let mut event = libc::epoll_event { events, u64: token };
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open (borrowed), and `event` outlives the call.
        let rc =
            unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits (`block`) or looks, and fills the front of `ready`. A signal counts as nothing ready.
    pub fn wait(&self, ready: &mut [Ready], block: bool) -> io::Result<usize> {
        let room = i32::try_from(ready.len()).unwrap_or(i32::MAX);
        let timeout = if block { -1 } else { 0 };
        let events = ready.as_mut_ptr().cast::<libc::epoll_event>();
        // SAFETY: `events` points to `room` writable elements of `repr(transparent)` `Ready`.
        let n = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events, room, timeout) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) }
    }
}

/// Binds the calling thread, and what it spawns from now on, to `cpus`.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: `cpu_set_t` is plain old data for which zero means "no CPU".
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&c| c < libc::CPU_SETSIZE as usize) {
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies within `set`.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is initialised and its size is given with it; 0 means the calling thread.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The CPUs the calling thread may run on.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: `cpu_set_t` is plain old data for which zero means "no CPU".
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and its size is given with it; 0 means the calling thread.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let is_set = |cpu: &usize| {
        // SAFETY: `cpu` is below CPU_SETSIZE by the range it comes from.
        unsafe { libc::CPU_ISSET(*cpu, &set) }
    };
    Ok((0..libc::CPU_SETSIZE as usize).filter(is_set).collect())
}

/// Raises the limit of open files to what the system allows and returns it.
pub fn raise_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the whole call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is initialised and only read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Lets the calling thread's sleeps end as soon as they are over.
pub fn sharp_sleeps() {
    // SAFETY: PR_SET_TIMERSLACK takes one integer and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// Closing `socket` from now on resets the connection instead of finishing it.
pub fn end_by_reset(socket: &impl AsRawFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open (borrowed), and pointer and size are those of `linger`.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the calling thread, and what it spawns from now on, go before others on its CPU; without
/// permission nothing changes.
pub fn go_first() {
    // SAFETY: takes no pointers; 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM only set what [`stop_asked`] returns.
pub fn catch_stop() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: `sigaction` is plain old data; zero is an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let on_signal: extern "C" fn(libc::c_int) = on_stop;
        action.sa_sigaction = on_signal as libc::sighandler_t;
        // SAFETY: `on_stop` only stores to an atomic, which is async-signal-safe.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether a signal asked the run to stop.
pub fn stop_asked() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Ends the process group led by `leader`, at once. A group that is gone already is fine.
pub fn end_group(leader: u32) {
    let Ok(pid) = i32::try_from(leader) else { return };
    // 0 and 1 would mean this process's own group and every process.
    if pid > 1 {
        // SAFETY: takes no pointers; `pid` is a child of ours that was made a group leader.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
}
