//! Another core has begun anew: what it held for us is done again, what we held for it is dropped.

use ringway_proto::fault::Fault;

use super::Shard;
use super::attach::State;
use super::table::Key;
use crate::border::Border;
use crate::post::{CorePost, Join};

impl Shard {
    /// Another core's shard panicked: all it knew is gone.
    pub(super) fn restarted(&mut self, border: &mut Border, core: u16) {
        if core == self.settings.core {
            return;
        }
        self.drop_mail(core);
        // It may have heard of this core already, before this core heard of it; and what was to be
        // said after that has just been dropped.
        self.tell(core, CorePost::Void { core: self.settings.core });
        self.idle.retain(|other| *other != core);
        self.forget_core(border, core);
        // What was parked there is gone, and with it what was promised of it.
        for ticket in self.sessions.robbed_by(core) {
            self.answer_claim(border, ticket);
        }
        self.renew(border, core);
        if self.told_idle {
            self.tell(core, CorePost::Idle { core: self.settings.core });
        }
    }

    /// Drops what a core asked of this one: its work, its polls, its attachments to our sessions.
    pub(super) fn forget_core(&mut self, border: &mut Border, core: u16) {
        self.local.forget_core(core);
        self.yard.forget_core(core);
        self.answer_polls(border);
        self.sessions.forget_core(core, self.now);
    }

    /// Does again what this core asked of another one that has forgotten it.
    pub(super) fn renew(&mut self, border: &mut Border, core: u16) {
        for conn in self.polls_at(core) {
            self.poll_overdue(border, conn);
        }
        let keys: Vec<Key> = self.attachments.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.renew_join(border, key, core);
            self.renew_work(border, key, core);
            self.renew_place(border, key, core);
        }
    }

    fn renew_join(&mut self, border: &mut Border, key: Key, core: u16) {
        let Some(attachment) = self.attachments.get(key) else { return };
        let id = attachment.session;
        if self.session_home(id) != core {
            return;
        }
        if let State::Asking { .. } = attachment.state {
            // It may have heard the question all the same.
            self.leave_home(id, key, None);
            return self.end_asking(border, key, &Fault::MailboxFull);
        }
        if let State::Moving { .. } = attachment.state {
            // Its new core will say so.
            return;
        }
        let (facts, stand) = (attachment.facts(), self.stand_of(attachment));
        let join = Join { id, ticket: self.ticket(key), facts, stand };
        self.tell(core, CorePost::Join(Box::new(join)));
    }

    fn renew_place(&mut self, border: &mut Border, key: Key, core: u16) {
        let Some(attachment) = self.attachments.get(key).filter(|a| a.is_parked()) else { return };
        if self.dispatch_home(&attachment.owner.function, &attachment.owner.version) == core {
            self.tell_parks(border, key);
        }
    }

    /// Its token is still good: it lives with the attachment.
    fn renew_work(&mut self, border: &mut Border, key: Key, core: u16) {
        let Some(attachment) = self.attachments.get(key) else { return };
        let State::Waiting { token, kind, .. } = &attachment.state else { return };
        if self.dispatch_home(&attachment.owner.function, &attachment.owner.version) != core {
            return;
        }
        let work = self.work(key, *kind, token);
        self.submit(border, key, work);
    }
}
