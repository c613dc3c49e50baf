//! Listeners. If another program has the port, the error names that program.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringway_stdio::Trouble;
use socket2::{Domain, Protocol, Socket, Type};

use super::MORE_FILES;

/// For how long a taken port is tried again: a process that has just died gives it back late.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait to be accepted.
pub(crate) const BACKLOG: i32 = 4096;
/// Most sockets and processes looked through for a port's owner.
const MAX_LOOK: usize = 100_000;

/// A port that could not be had.
#[derive(Debug)]
pub(crate) struct PortError {
    what: &'static str,
    address: SocketAddr,
    error: io::Error,
    owner: Option<String>,
}

impl PortError {
    /// The error for a port that another program has.
    #[cfg(test)]
    pub(crate) fn taken(what: &'static str, address: SocketAddr, owner: Option<String>) -> Self {
        Self { what, address, error: io::ErrorKind::AddrInUse.into(), owner }
    }

    /// The whole error, for people.
    pub(crate) fn trouble(&self) -> Trouble {
        Trouble::new(self.what(), self.why(), self.fix())
    }

    /// Who has the port, as `name (process 1234)`.
    pub(crate) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// What is wrong.
    pub(crate) fn cause(&self) -> String {
        format!("{}: {}", self.what(), self.why())
    }

    fn what(&self) -> String {
        format!("the {} address {} cannot be used", self.what, self.address)
    }

    fn why(&self) -> String {
        match self.error.kind() {
            io::ErrorKind::AddrInUse => match &self.owner {
                Some(owner) => format!("the port is taken by {owner}"),
                None => "the port is taken".into(),
            },
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE".into(),
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
            _ => self.error.to_string(),
        }
    }

    /// What to do about it.
    pub(crate) fn fix(&self) -> String {
        let what = self.what;
        match self.error.kind() {
            _ if matches!(self.error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                MORE_FILES.into()
            }
            _ if what == "cluster" => "give cluster.listen another address".into(),
            io::ErrorKind::AddrInUse => {
                format!("end that one, or give listen.{what} (--{what}) another port")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("give listen.{what} (--{what}) one it has, or 0.0.0.0")
            }
            _ => format!("give listen.{what} (--{what}) another port"),
        }
    }
}

/// Makes `count` listeners on one port, each for a core of its own.
///
/// SO_REUSEPORT lets a second gateway of the same user bind the same port without an error, and
/// each would get half of the connections. So a socket without it tries the port first.
///
/// # Errors
/// When the port cannot be bound within a second.
pub(super) fn listen(
    what: &'static str,
    address: SocketAddr,
    count: usize,
) -> Result<Vec<TcpListener>, PortError> {
    let fail = |error| failed(what, address, error);
    let until = Instant::now() + RETRY;
    loop {
        match try_listen(address, count) {
            Ok(listeners) => return Ok(listeners),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(fail(error)),
            Err(error) if Instant::now() >= until => return Err(fail(error)),
            Err(_) => std::thread::sleep(RETRY_PAUSE),
        }
    }
}

/// Whether the port can be bound now.
///
/// # Errors
/// Why not.
pub(crate) fn state(what: &'static str, address: SocketAddr) -> Result<(), PortError> {
    try_listen(address, 0).map(drop).map_err(|error| failed(what, address, error))
}

fn failed(what: &'static str, address: SocketAddr, error: io::Error) -> PortError {
    let taken = error.kind() == io::ErrorKind::AddrInUse;
    let owner = taken.then(|| owner_of(address.port())).flatten();
    PortError { what, address, error, owner }
}

fn try_listen(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let probe = socket(address)?;
    probe.bind(&address.into())?;
    probe.listen(1)?;
    // With port 0 the kernel has picked one.
    let address = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        listeners.push(socket.into());
    }
    Ok(listeners)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT do not keep the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

/// The program that listens on this port, as far as /proc tells: `ringway (process 1234)`.
fn owner_of(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).take(MAX_LOOK).find_map(|line| listening_inode(line, port))
    })?;
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let processes = std::fs::read_dir("/proc").ok()?.flatten().take(MAX_LOOK);
    for process in processes {
        let id = process.file_name().to_string_lossy().into_owned();
        let path = process.path();
        if id.parse::<u32>().is_ok() && holds(&path, &wanted) {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some(format!("{} (process {id})", name.trim()));
        }
    }
    Some("another process".into())
}

/// The inode of a line of /proc/net/tcp that is a listener on `port`.
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local, 16) == Ok(port);
    if listens { fields.get(9)?.parse().ok() } else { None }
}

fn holds(process: &Path, wanted: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(process.join("fd")) else { return false };
    files
        .flatten()
        .take(MAX_LOOK)
        .any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_owner() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen("client", address, 1).unwrap_err().trouble().to_string();
        assert!(error.contains(&format!("client address {address}")), "{error}");
        assert!(error.contains("taken by ") && error.contains("--client"), "{error}");
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
    }

    #[test]
    fn a_second_gateway_is_not_hidden_by_shared_ports() {
        let first = listen("client", "127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), address);
        assert!(listen("client", address, 1).is_err());
    }

    #[test]
    fn a_port_that_is_given_back_in_time_is_had() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let end = std::thread::spawn(move || {
            std::thread::sleep(RETRY_PAUSE * 3);
            drop(taken);
        });
        listen("worker", address, 1).unwrap();
        end.join().unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_refused_at_once() {
        let error =
            listen("admin", "192.0.2.1:0".parse().unwrap(), 1).unwrap_err().trouble().to_string();
        assert!(error.contains("no such address"), "{error}");
    }
}
