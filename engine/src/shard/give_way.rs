//! A parked session holds a worker. The dispatch home of a function version knows where its
//! tunnels are parked; when new work has waited there for `session.park_yield`, the tunnel that
//! was parked first gives way. An operator can end a session, too.

use std::collections::{BTreeMap, HashMap};

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::Shard;
use super::attach::{Attachment, State, key_of};
use super::close::Cause;
use super::table::Key;
use super::timer::Due;
use crate::border::Border;
use crate::control::local::{Ticket, Version};
use crate::post::{CorePost, Parks};
use crate::trail::Event;

/// The parked tunnels of the function versions whose dispatch home a core is.
#[derive(Debug, Default)]
pub(crate) struct Yard {
    versions: HashMap<Version, BTreeMap<u64, Ticket>>,
    places: HashMap<Ticket, (Version, u64)>,
    next: u64,
    /// When the queues are looked at.
    due: Option<Time>,
}

impl Yard {
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn enter(&mut self, ticket: Ticket, version: Version) {
        // Told again, it is the same one.
        self.leave(ticket);
        self.next += 1;
        self.versions.entry(version.clone()).or_default().insert(self.next, ticket);
        self.places.insert(ticket, (version, self.next));
    }

    pub(crate) fn leave(&mut self, ticket: Ticket) {
        let Some((version, place)) = self.places.remove(&ticket) else { return };
        if let Some(of_version) = self.versions.get_mut(&version) {
            of_version.remove(&place);
            if of_version.is_empty() {
                self.versions.remove(&version);
            }
        }
    }

    fn oldest(&self, version: &Version) -> Option<Ticket> {
        self.versions.get(version)?.first_key_value().map(|(_, ticket)| *ticket)
    }

    /// What was parked on a core that has begun anew.
    pub(crate) fn forget_core(&mut self, core: u16) {
        let gone: Vec<Ticket> =
            self.places.keys().filter(|ticket| ticket.core == core).copied().collect();
        for ticket in gone {
            self.leave(ticket);
        }
    }
}

impl Shard {
    /// Tells the dispatch home of an attachment's function version that it is parked.
    pub(super) fn tell_parks(&mut self, border: &mut Border, key: Key) {
        let ticket = self.ticket(key);
        let Some(attachment) = self.attachments.get(key).filter(|a| a.is_parked()) else { return };
        let (function, version) =
            (attachment.owner.function.clone(), attachment.owner.version.clone());
        let home = self.dispatch_home(&function, &version);
        let parks = Parks { ticket, function, version };
        if home == self.settings.core {
            self.parked_elsewhere(border, parks);
        } else {
            self.tell(home, CorePost::Parks(Box::new(parks)));
        }
    }

    /// The counterpart of [`Self::tell_parks`].
    pub(super) fn tell_unparks(&mut self, key: Key, function: &str, version: &str) {
        let (home, ticket) = (self.dispatch_home(function, version), self.ticket(key));
        if home == self.settings.core {
            self.yard.leave(ticket);
        } else {
            self.tell(home, CorePost::Unparks(ticket));
        }
    }

    /// A tunnel of a function version whose queue is here is parked, on whatever core.
    pub(super) fn parked_elsewhere(&mut self, border: &mut Border, parks: Parks) {
        let Parks { ticket, function, version } = parks;
        let version = (function, version);
        self.yard.enter(ticket, version.clone());
        self.look_at_queue(border, &version);
    }

    /// As many parked tunnels give way as new work of this version has waited long enough.
    pub(super) fn look_at_queue(&mut self, border: &mut Border, version: &Version) {
        let patience = self.settings.config.session.park_yield;
        while let Some(oldest) = self.yard.oldest(version) {
            if !self.local.lose_patience(version, patience, border.now) {
                break;
            }
            self.yard.leave(oldest);
            if oldest.core == self.settings.core {
                self.give_way(border, oldest);
            } else {
                self.tell(oldest.core, CorePost::Yield(oldest));
            }
        }
        if self.yard.oldest(version).is_none() {
            return;
        }
        let Some(due) = self.local.waits_since(version).map(|since| since + patience) else {
            return;
        };
        if self.yard.due.is_none_or(|armed| due < armed) {
            self.yard.due = Some(due);
            self.timers.arm(due, Due::Yield);
        }
    }

    /// The time has come for one of the queues.
    pub(super) fn look_at_queues(&mut self, border: &mut Border) {
        if self.yard.due.is_none_or(|due| due > border.now) {
            return;
        }
        self.yard.due = None;
        let mut versions: Vec<Version> = self.yard.versions.keys().cloned().collect();
        // In an order that is the same each time: the table has none.
        versions.sort_unstable();
        for version in versions {
            self.look_at_queue(border, &version);
        }
    }

    /// A new session needs the worker of this parked one.
    pub(super) fn give_way(&mut self, border: &mut Border, ticket: Ticket) {
        let key = key_of(ticket);
        if self.attachments.get(key).is_some_and(Attachment::is_parked) {
            self.metrics.resumes.yields += 1;
            self.note_of(key, Event::Yielded);
            self.give_up(border, key, Cause::YIELDED);
        }
    }

    /// An operator ends a session: what this core has of it goes, and so does what is on its way.
    pub(super) fn end_session(&mut self, border: &mut Border, id: Uuid) {
        let of_session = self.attachments.iter().filter(|(_, of)| of.session == id);
        let keys: Vec<Key> = of_session.map(|(key, _)| key).collect();
        let fault = Fault::SessionNotFound { request_id: id };
        for key in keys {
            match self.attachments.get_mut(key).map(|attachment| &mut attachment.state) {
                Some(State::Asking { question }) => {
                    question.ended = true;
                    self.refuse_waiters(border, key, &fault);
                }
                Some(_) => self.give_up_with(border, key, Cause::DELETED, &fault),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn who_was_parked_first_is_the_oldest_wherever_it_is() {
        let version = |name: &str| -> Version { ("f".into(), Arc::from(name)) };
        let ticket = |core, number| Ticket { core, number };
        let (one, two) = (version("1"), version("2"));
        let mut yard = Yard::default();
        yard.enter(ticket(1, 1), one.clone());
        yard.enter(ticket(0, 1), one.clone());
        yard.enter(ticket(0, 2), two.clone());
        assert_eq!(yard.oldest(&one), Some(ticket(1, 1)));
        // Once more, it is the youngest.
        yard.enter(ticket(1, 1), one.clone());
        assert_eq!(yard.oldest(&one), Some(ticket(0, 1)));
        yard.forget_core(0);
        assert_eq!((yard.oldest(&one), yard.oldest(&two)), (Some(ticket(1, 1)), None));
        yard.leave(ticket(1, 1));
        yard.leave(ticket(1, 1));
        assert!(yard.is_empty() && yard.versions.is_empty());
    }
}
