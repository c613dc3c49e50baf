//! Other cores that begin anew, and messages for which they had no room: in both cases all
//! components say again what is still true. Also the drain of a core, which ends only when the
//! other cores do not need it any more.

use std::time::Duration;

use super::Shard;
use super::facts::Fact;
use super::timer::Due;
use super::turn::{Draining, Turn};
use crate::net::{Close, Listener, Net};

impl Shard {
    /// Another core has lost messages that were for this one. Its requests to this core are void,
    /// and this core's requests to it are made again.
    pub(super) fn void(&mut self, net: &mut Net, core: u16) {
        self.workers.forget_core(turn!(self, net), core);
        self.sessions.core_void(turn!(self, net), core);
        self.workers.renew(turn!(self, net), core);
        self.leave(Fact::Renewed { core });
    }

    /// Another core's shard panicked and has lost all state.
    pub(super) fn restarted(&mut self, net: &mut Net, core: u16) {
        let attachments = self.sessions.len();
        if self.cores.restarted(turn!(self, net), attachments, core) {
            self.workers.forget_core(turn!(self, net), core);
            self.sessions.core_restarted(turn!(self, net), core);
            self.workers.renew(turn!(self, net), core);
            self.leave(Fact::Renewed { core });
        }
    }

    /// Sends messages again for which there was no room.
    #[cold]
    pub(super) fn resend(&mut self, net: &mut Net) {
        for core in self.cores.overrun(&*turn!(self, net)) {
            self.sessions.renew(turn!(self, net), core);
            self.workers.renew(turn!(self, net), core);
            self.leave(Fact::Renewed { core });
            self.settle(net);
        }
        self.cores.retry(&*turn!(self, net));
    }

    // ---- leaving ----

    /// Begins a drain: no new clients are taken, and those of now are warned.
    pub(super) fn drain(&mut self, net: &mut Net, max: Duration) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(Draining::Open);
        net.unlisten(Listener::Client);
        self.timers.arm(net.now + max, Due::Drain);
        // No client may come back any more.
        self.sessions.drain(turn!(self, net));
        self.settle(net);
        self.relay.drain(turn!(self, net));
        self.nodes.leave(turn!(self, net));
    }

    /// Ends every connection that is left.
    pub(super) fn end_all(&mut self, net: &mut Net, how: Close) {
        self.draining = Some(Draining::Over);
        net.unlisten(Listener::Client);
        net.unlisten(Listener::Worker);
        net.unlisten(Listener::Cluster);
        self.relay.end_all(turn!(self, net), how);
        self.settle(net);
        for conn in self.workers.ids() {
            self.workers.end(turn!(self, net), conn, how);
            self.settle(net);
        }
        for conn in self.nodes.ids() {
            self.nodes.end(turn!(self, net), conn, how);
        }
    }

    /// Called each turn while the core drains. The drain is over when no core has a client left.
    /// Until then other cores' tokens, work and sessions need this core.
    #[cold]
    pub(super) fn drain_turn(&mut self, net: &mut Net) {
        let open = self.draining == Some(Draining::Open);
        if open && !self.stays && self.all_are_idle() {
            self.end_all(net, Close::Flush);
        }
        let over = self.draining == Some(Draining::Over);
        if over || self.has_no_peers() {
            let attachments = self.sessions.len();
            self.cores.tell_idle(turn!(self, net), attachments);
        }
        // Connections that are still being flushed are the reactor's concern.
        self.finished |= over;
    }

    pub(super) fn all_are_idle(&self) -> bool {
        self.cores.all_are_idle(self.settings.cores, self.has_no_peers())
    }

    /// Whether no peer needs this core: it has no client, and relays none.
    fn has_no_peers(&self) -> bool {
        self.relay.clients() == 0 && self.nodes.relays() == 0
    }
}
