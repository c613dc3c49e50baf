//! Other cores that begin anew, and messages for which they had no room: all components say again
//! what is still true.

use super::Shard;
use super::facts::Fact;
use super::turn::Turn;
use crate::border::Border;

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
}
