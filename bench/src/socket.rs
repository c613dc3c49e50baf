//! How the generator makes its connections: from several loopback addresses where one has too few
//! ports, and with the frame of TLS around them where that is wanted.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use monoio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use crate::drive::{Ended, Link, Machine, drive_linked};
use crate::tls::{Tls, Trust};

/// Loopback source addresses of runs that make connections all the time. One has 28 000 ports by
/// default, each unusable for a minute after its connection.
pub const SOURCES: u8 = 64;

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct Route {
    /// The listener.
    pub target: SocketAddr,
    /// Whom to trust, for TLS.
    pub trust: Option<Trust>,
    /// Whether to spread connections over [`SOURCES`]; only to loopback.
    pub spread: bool,
    /// How long each read waits for the one before: a client that cannot follow.
    pub slow: Option<Duration>,
}

/// What the kernel may keep for a client that cannot follow, so that what waits does so elsewhere:
/// more than a segment of the loopback interface, of which it waits for room.
const SLOW_BUFFER: usize = 128 * 1024;

impl Route {
    /// The `number`th connection.
    ///
    /// # Errors
    /// The target is not there, or no port is free.
    pub async fn connect(&self, number: usize) -> io::Result<TcpStream> {
        let loopback = matches!(self.target.ip(), IpAddr::V4(ip) if ip.is_loopback());
        let spread = self.spread && loopback;
        if !spread && self.slow.is_none() {
            return TcpStream::connect_addr(self.target).await;
        }
        if !spread {
            let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
            // Before the connection is made: it decides what window is offered.
            socket.set_recv_buffer_size(SLOW_BUFFER)?;
            return self.joined(socket);
        }
        let source = Ipv4Addr::new(127, 0, 0, 1 + (number % usize::from(SOURCES)) as u8);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        self.joined(socket)
    }

    fn joined(&self, socket: Socket) -> io::Result<TcpStream> {
        // Blocking: loopback answers within the call.
        socket.connect(&self.target.into())?;
        // A ring waits for a socket that would block only if the socket itself would.
        socket.set_nonblocking(!monoio::utils::detect_uring())?;
        TcpStream::from_std(socket.into())
    }

    /// Connects and runs `machine` until either side ends.
    pub async fn run<M: Machine + 'static>(
        &self,
        number: usize,
        machine: Rc<RefCell<M>>,
        link: Rc<RefCell<Link>>,
    ) -> Result<(), Ended> {
        let stream = self.connect(number).await.map_err(|e| Ended::Lost(Some(e)))?;
        link.borrow_mut().slow(self.slow);
        match &self.trust {
            Some(trust) => {
                let tls = trust.around(machine).map_err(Ended::Fault)?;
                drive_linked(stream, Rc::new(RefCell::new(tls)), &[], link).await
            }
            None => drive_linked(stream, machine, &[], link).await,
        }
    }
}

/// A machine with or without TLS around it, for who drives it by hand.
pub enum Dressed<M> {
    /// As it is.
    Plain(Rc<RefCell<M>>),
    /// In TLS.
    Tls(Box<Tls<M>>),
}

impl<M: Machine> Dressed<M> {
    /// As the route wants it.
    ///
    /// # Errors
    /// The TLS side cannot be made.
    pub fn new(route: &Route, machine: Rc<RefCell<M>>) -> Result<Self, Ended> {
        Ok(match &route.trust {
            Some(trust) => Self::Tls(Box::new(trust.around(machine).map_err(Ended::Fault)?)),
            None => Self::Plain(machine),
        })
    }

    /// Gives it what was read.
    ///
    /// # Errors
    /// The peer broke a protocol.
    pub fn received(&mut self, bytes: &[u8]) -> Result<usize, Ended> {
        match self {
            Self::Plain(machine) => machine.borrow_mut().received(bytes),
            Self::Tls(machine) => machine.received(bytes),
        }
        .map_err(Ended::Fault)
    }

    /// Takes what is to be written.
    pub fn take_output(&mut self) -> Vec<u8> {
        match self {
            Self::Plain(machine) => std::mem::take(machine.borrow_mut().output()),
            Self::Tls(machine) => std::mem::take(machine.output()),
        }
    }

    /// What was written is gone: there is room for more.
    pub fn refill(&mut self) {
        match self {
            Self::Plain(machine) => machine.borrow_mut().refill(),
            Self::Tls(machine) => machine.refill(),
        }
    }
}
