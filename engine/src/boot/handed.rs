//! Listeners that the starter of this process has opened and keeps open (systemd's `.socket` units,
//! `sd_listen_fds(3)`). While the gateway starts anew, clients wait in their queues instead of
//! being refused.
//!
//! A listener's name (`FileDescriptorName=`), or else its port, says what it is for. If there is
//! one for each core (`ReusePort=`, one `ListenStream=` a core), each core gets its own, and the
//! kernel deals connections out. Otherwise cores share a queue, and `balance.rs` deals them out.

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use ringway_stdio::Trouble;

use super::{BootError, MORE_FILES};
use crate::config::Config;

/// Most sockets that may be handed down: one for each of three ports and each core that there may
/// be.
const MOST: usize = 3 * crate::config::MAX_CORES;

/// The listeners that were handed down, by what they are for.
#[derive(Debug, Default)]
pub(super) struct Handed {
    pub(super) client: Vec<TcpListener>,
    pub(super) worker: Vec<TcpListener>,
    pub(super) admin: Vec<TcpListener>,
}

impl Handed {
    /// Takes the listeners handed down to this process. Changes the environment, so no other thread
    /// may run yet.
    ///
    /// # Errors
    /// When a descriptor is no TCP listener, or for none of the three ports.
    pub(super) fn take(config: &Config) -> Result<Self, BootError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut sockets = ListenFd::from_env();
        if sockets.len() > MOST {
            return Err(BootError::config(Trouble::new(
                "the sockets that were handed down cannot be used",
                format!("they are {}, and {MOST} is the most", sockets.len()),
                "leave out lines ListenStream= of the socket's unit",
            )));
        }
        let mut handed = Self::default();
        let mut names = names.split(':');
        for at in 0..sockets.len() {
            let name = names.next().unwrap_or_default();
            let socket = sockets.take_tcp_listener(at).and_then(prepared);
            handed.put(config, name, socket).map_err(|(why, fix)| {
                // The first one is descriptor 3.
                let what = format!("the socket handed down as descriptor {} is of no use", at + 3);
                BootError::config(Trouble::new(what, why, fix))
            })?;
        }
        Ok(handed)
    }

    fn put(
        &mut self,
        config: &Config,
        name: &str,
        socket: io::Result<(TcpListener, SocketAddr)>,
    ) -> Result<(), (String, &'static str)> {
        let (socket, address) = socket.map_err(|error| {
            let why = format!("it ({name}) is no TCP listener: {error}");
            (why, "write a ListenStream= with a port of TCP")
        })?;
        let listen = &config.listen;
        let is = |what, own: SocketAddr| {
            let named = ["client", "worker", "admin"].contains(&name);
            if named { name == what } else { own.port() == address.port() }
        };
        let place = if is("client", listen.client) {
            &mut self.client
        } else if is("worker", listen.worker) {
            &mut self.worker
        } else if is("admin", listen.admin) {
            &mut self.admin
        } else {
            let why = format!(
                "it ({name}, {address}) is for none of listen.client ({}), listen.worker ({}) and \
                 listen.admin ({})",
                listen.client, listen.worker, listen.admin
            );
            let fix = "give ListenStream= one of these ports, or the socket's unit \
                       FileDescriptorName=client, worker or admin";
            return Err((why, fix));
        };
        place.push(socket);
        Ok(())
    }

    /// How many listeners there are.
    pub(super) fn count(&self) -> usize {
        self.client.len() + self.worker.len() + self.admin.len()
    }
}

/// Makes a listener blocking, as io_uring wants it, so that cores can share it. (Epoll's accepts
/// set what they need.)
fn prepared(socket: Option<TcpListener>) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = socket.ok_or(io::ErrorKind::NotFound)?;
    socket.set_nonblocking(false)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

/// Deals listeners out to `count` cores. Each core gets at least one: its own, or a copy of one
/// that others have too.
///
/// # Errors
/// When there is no descriptor for a copy.
pub(super) fn deal(
    sockets: Vec<TcpListener>,
    count: usize,
) -> Result<Vec<Vec<TcpListener>>, Trouble> {
    let mut copies = Vec::new();
    if !sockets.is_empty() {
        for core in sockets.len()..count {
            let copy = sockets[core % sockets.len()].try_clone();
            copies.push(copy.map_err(|error| {
                Trouble::new("a core has no copy of a listener", error, MORE_FILES)
            })?);
        }
    }
    let mut dealt: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
    for (at, socket) in sockets.into_iter().chain(copies).enumerate() {
        dealt[at % count.max(1)].push(socket);
    }
    Ok(dealt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> (TcpListener, SocketAddr) {
        prepared(Some(TcpListener::bind("127.0.0.1:0").unwrap())).unwrap()
    }

    #[test]
    fn a_socket_is_known_by_its_name_or_else_by_its_port() {
        let mut config = Config::dev();
        let mut handed = Handed::default();
        handed.put(&config, "worker", Ok(socket())).unwrap();
        assert_eq!((handed.count(), handed.worker.len()), (1, 1));
        let (client, address) = socket();
        config.listen.client = address;
        handed.put(&config, "ringway.socket", Ok((client, address))).unwrap();
        assert_eq!((handed.count(), handed.client.len()), (2, 1));
        let (why, fix) = handed.put(&config, "unknown", Ok(socket())).unwrap_err();
        assert!(why.contains("none of listen.client") && fix.contains("ListenStream="), "{why}");
        let none = Err(io::ErrorKind::InvalidInput.into());
        assert!(handed.put(&config, "client", none).unwrap_err().0.contains("no TCP listener"));
        assert_eq!(handed.count(), 2);
    }

    #[test]
    fn every_core_has_a_listener_and_every_listener_a_core() {
        for (sockets, cores) in [(1, 1), (1, 2), (2, 2), (2, 3), (3, 2)] {
            let made = (0..sockets).map(|_| socket().0).collect();
            let dealt = deal(made, cores).unwrap();
            assert_eq!(dealt.len(), cores);
            assert!(dealt.iter().all(|own| !own.is_empty()), "{sockets} {cores}");
            let all = dealt.iter().flatten().map(|own| own.local_addr().unwrap());
            let all: std::collections::HashSet<_> = all.collect();
            assert_eq!(all.len(), sockets, "{sockets} {cores}");
        }
    }
}
