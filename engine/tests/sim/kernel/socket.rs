//! Sockets and listeners, as the reactor holds them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use ringway::net::{Listener, SimulatedSocket};
use ringway::reactor::SimulatedListener;

use super::super::journal::note;
use super::super::wire::{Wiring, descriptor};

/// The gateway's end of a link.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) wiring: Wiring,
    pub(super) number: RawFd,
}

impl SimulatedSocket for Socket {
    fn number(&self) -> i32 {
        self.number
    }

    fn peer(&self) -> SocketAddr {
        let number = self.number as usize;
        self.wiring.lock().address(number)
    }

    fn set_resets(&self, resets: bool) {
        self.wiring.lock().links[self.number as usize].resets = resets;
    }

    fn unacknowledged(&self) -> usize {
        self.wiring.lock().links[self.number as usize].unacknowledged()
    }

    fn end_writing(&self) {
        self.wiring.lock().shut(self.number as usize);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        note("link", self.number as usize, "is closed", [0, 0]);
        self.wiring.lock().close(self.number as usize);
    }
}

/// A listener of one core.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) wiring: Wiring,
    pub(super) core: usize,
    pub(super) listener: Listener,
}

impl SimulatedListener for Port {
    fn number(&self) -> RawFd {
        descriptor(self.listener)
    }

    fn end(&self) -> Vec<Box<dyn SimulatedSocket>> {
        let come = self.wiring.lock().end_listener(self.core, self.listener).into_iter();
        let socket = |link: usize| -> Box<dyn SimulatedSocket> {
            Box::new(Socket { wiring: self.wiring.clone(), number: link as RawFd })
        };
        come.map(socket).collect()
    }

    fn keep_out(&self, addresses: &[SocketAddr]) -> io::Result<()> {
        self.wiring.lock().keep_out((self.core, self.listener), addresses)
    }
}
