//! A reactor in a simulated world: the same loop on a [`Kernel`] that a test makes up, driven turn by
//! turn by whoever keeps that world's time.

use std::cell::{RefCell, RefMut};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Instant;

use super::accept::ListenSocket;
use super::backend::Ring;
use super::fault::SetupError;
use super::kernel::{Kernel, Simulated, SimulatedListener};
use super::options::{BusyPoll, Options};
use super::stall::Schedstat;
use super::stream::Listening;
use super::uring::{Share, Wait};
use super::{Host, Reactor};
use crate::mailbox::Mailbox;
use crate::net::{ConnId, Core, Listener, Net};
use crate::pool::Pool;

/// One core of a simulated world. Between two [steps](Self::step) it sleeps.
///
/// There are no transports: nothing is decrypted.
pub struct Simulation<C: Core, K: Kernel> {
    reactor: Reactor<C>,
    kernel: Rc<RefCell<K>>,
    /// How long the core may sleep.
    wait: Wait,
}

impl<C: Core, K: Kernel + 'static> Simulation<C, K> {
    /// Sets a core up, and lets it accept.
    ///
    /// # Errors
    /// [`SetupError::Options`] if an option cannot work.
    pub fn new(
        options: Options,
        listeners: Vec<(Listener, Box<dyn SimulatedListener>)>,
        mailbox: Mailbox<C::Message>,
        kernel: K,
        core: C,
    ) -> Result<Self, SetupError> {
        // Looking for work takes time, and a simulated core's time passes only while it sleeps.
        let options = Options { busy_poll: BusyPoll::Never, ..options };
        options.check()?;
        let kernel = Rc::new(RefCell::new(kernel));
        let simulated =
            Simulated { kernel: Rc::clone(&kernel) as _, send_bytes: options.send_bytes };
        let listen_socket = |(listener, socket)| {
            let keep_alive = options.keep_alive_of(listener);
            ListenSocket::new(listener, Listening::Simulated(socket), keep_alive, false)
        };
        let listen_sockets = listeners.into_iter().map(listen_socket).collect::<Result<_, _>>()?;
        let host = Host {
            net: Net::new(Pool::new(options.blocks, options.block_bytes)),
            ring: Ring::Simulated(simulated),
            share: Share::of(&options),
            listen_sockets,
            gates: Vec::new(),
            origin: Instant::now(),
            schedstat: Schedstat::silent(),
        };
        let mut reactor = Reactor::on(host, options, mailbox, core);
        reactor.net.now = reactor.clock();
        reactor.open_listen_sockets();
        let mut this = Self { reactor, kernel, wait: Wait::No };
        this.sleep();
        Ok(this)
    }

    /// Wakes up for one turn of the loop, and sleeps again. Returns for how long, if nothing
    /// happens.
    pub fn step(&mut self) -> Wait {
        self.kernel.borrow_mut().leave(&mut self.reactor.net.pool);
        self.reactor.get_up(self.wait);
        self.reactor.tell();
        self.reactor.decide();
        self.sleep()
    }

    fn sleep(&mut self) -> Wait {
        self.wait = self.reactor.lie_down();
        let mut kernel = self.kernel.borrow_mut();
        kernel.enter(&self.reactor.net.pool);
        if kernel.has_work() { Wait::No } else { self.wait }
    }

    /// Calls the core between two turns. Its wishes are carried out in the next one.
    pub fn visit<R>(&mut self, f: impl FnOnce(&mut C, &mut Net) -> R) -> R {
        self.reactor.net.now = self.reactor.clock();
        self.reactor.call(f)
    }

    /// The core.
    pub fn core(&self) -> &C {
        &self.reactor.core
    }

    /// The core, for taking its messages for others.
    pub fn core_mut(&mut self) -> &mut C {
        &mut self.reactor.core
    }

    /// The core's network interface.
    pub fn net(&self) -> &Net {
        &self.reactor.net
    }

    /// The core's simulated kernel.
    pub fn kernel(&self) -> RefMut<'_, K> {
        self.kernel.borrow_mut()
    }

    /// The sockets that are open, and their connections.
    pub fn sockets(&self) -> impl Iterator<Item = (RawFd, ConnId)> {
        self.reactor.sockets.iter().map(|socket| (socket.fd(), socket.conn))
    }
}
