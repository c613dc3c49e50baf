//! Other cores that begin anew, and messages for which they had no room: all components say again
//! what is still true. And how a core leaves, which it does when the others can spare it.

use std::time::Duration;

use super::Shard;
use super::facts::Fact;
use super::timer::Due;
use super::turn::{Draining, Turn};
use crate::border::{Border, Close, Listener};

impl Shard {
    /// Another core has lost messages that were meant for this one: what it asked of it is void, and
    /// what was asked of it is done again.
    pub(super) fn void(&mut self, border: &mut Border, core: u16) {
        self.workers.forget_core(turn!(self, border), core);
        self.sessions.core_void(turn!(self, border), core);
        self.workers.renew(turn!(self, border), core);
        self.leave(Fact::Renewed { core });
    }

    /// Another core's shard panicked: all it knew is gone.
    pub(super) fn restarted(&mut self, border: &mut Border, core: u16) {
        let attachments = self.sessions.len();
        if self.cores.restarted(turn!(self, border), attachments, core) {
            self.workers.forget_core(turn!(self, border), core);
            self.sessions.core_restarted(turn!(self, border), core);
            self.workers.renew(turn!(self, border), core);
            self.leave(Fact::Renewed { core });
        }
    }

    /// Messages for which there was no room are sent again.
    #[cold]
    pub(super) fn resend(&mut self, border: &mut Border) {
        for core in self.cores.overrun(&*turn!(self, border)) {
            self.sessions.renew(turn!(self, border), core);
            self.workers.renew(turn!(self, border), core);
            self.leave(Fact::Renewed { core });
            self.settle(border);
        }
        self.cores.retry(&*turn!(self, border));
    }

    // ---- leaving ----

    /// Takes no new clients, warns the ones there are.
    pub(super) fn drain(&mut self, border: &mut Border, max: Duration) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(Draining::Open);
        border.unlisten(Listener::Client);
        self.timers.arm(border.now + max, Due::Drain);
        // Nobody may come back any more.
        self.sessions.drain(turn!(self, border));
        self.settle(border);
        self.relay.drain(turn!(self, border));
        self.nodes.leave(turn!(self, border));
    }

    /// Ends everything that is left.
    pub(super) fn end_all(&mut self, border: &mut Border, how: Close) {
        self.draining = Some(Draining::Over);
        border.unlisten(Listener::Client);
        border.unlisten(Listener::Worker);
        border.unlisten(Listener::Cluster);
        self.relay.end_all(turn!(self, border), how);
        self.settle(border);
        for conn in self.workers.ids() {
            self.workers.end(turn!(self, border), conn, how);
            self.settle(border);
        }
        for conn in self.nodes.ids() {
            self.nodes.end(turn!(self, border), conn, how);
        }
    }

    /// Called each turn while the core drains: that is over when no client is left, on any core. Until
    /// then other cores' tokens, work and sessions need this one.
    #[cold]
    pub(super) fn drain_turn(&mut self, border: &mut Border) {
        let open = self.draining == Some(Draining::Open);
        if open && !self.stays && self.all_are_idle() {
            self.end_all(border, Close::Flush);
        }
        let over = self.draining == Some(Draining::Over);
        if over || self.has_no_peers() {
            let attachments = self.sessions.len();
            self.cores.tell_idle(turn!(self, border), attachments);
        }
        // Connections that are still being flushed are the reactor's concern.
        self.finished |= over;
    }

    pub(super) fn all_are_idle(&self) -> bool {
        self.cores.all_are_idle(self.settings.cores, self.has_no_peers())
    }

    /// Whether nobody needs this core: no client, and none that is relayed.
    fn has_no_peers(&self) -> bool {
        self.relay.clients() == 0 && self.nodes.relays() == 0
    }
}
