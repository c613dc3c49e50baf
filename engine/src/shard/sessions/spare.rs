//! Spare tunnels, which take the place of others (design 5). A WebSocket uses its tunnel up, and so
//! does a client that is lost in the middle of an HTTP/1 exchange. A worker's GOAWAY, or stream ids
//! that run out, end a tunnel that is in use. A worker ends a session with its last tunnel. So
//! another tunnel is asked of the worker in time, by the way that clients come back.
//!
//! A spare is an attachment without a client. Its parent is the attachment whose tunnel it is to
//! replace, and each of the two names the other. Nothing is said on a spare's tunnel until a client
//! has it, so it serves any client. There are no spares for functions that are dialled, because
//! nobody there knows the session.

use std::time::Duration;

use super::super::cause::Cause;
use super::super::facts::{Edge, ForRelay, ForWorkers, Lost};
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::attachment::{Attachment, Kin, Owed, State, UsedBy};
use super::roster::Roster;
use crate::control::local::WorkKind;
use crate::message::Speaks;
use crate::metrics::{CloseReason, SpareOutcome};
use crate::timeline::Event;

/// How long requests wait for a tunnel in place of one whose worker said GOAWAY.
pub(super) const REPLACE_WAIT: Duration = Duration::from_secs(5);

/// A spare that was lost sooner than this is not asked for again, because the worker will not have
/// it.
const LASTING: Duration = Duration::from_secs(5);

/// How long a used-up tunnel that its worker has ended is kept for a spare of which no worker has
/// heard. As long as we do not close the tunnel, a worker may count it as the session's.
pub(super) const LAST_CHANCE: Duration = Duration::from_secs(1);

impl Roster {
    /// Asks the worker for a tunnel that takes the place of this attachment's. Returns whether one
    /// is to be expected. If so, the relay hears of it.
    pub(super) fn ask_spare(&mut self, turn: &mut Turn<'_>, key: Key) -> bool {
        let expected = match self.attachments.get(key).map(|of| of.kin) {
            Some(Kin::HasSpare(_)) => true,
            Some(Kin::Alone | Kin::Succeeds(_)) => self.begin_spare(turn, key),
            Some(Kin::StandsInFor(_)) | None => false,
        };
        if expected {
            turn.relay(ForRelay::Replaced { key, yes: true });
        }
        expected
    }

    fn begin_spare(&mut self, turn: &mut Turn<'_>, key: Key) -> bool {
        let may = |of: &&Attachment| {
            let there = matches!(
                of.state(),
                State::Attached { .. } | State::Parking { .. } | State::Parked { .. }
            );
            there && of.terms.spares
        };
        let Some(of) = self.attachments.get(key).filter(may) else { return false };
        let (id, facts, address) = (of.session, of.facts.clone(), of.address);
        if turn.draining.is_some()
            || !self.admit_pending(turn, &facts.owner.tenant, WorkKind::Spare)
        {
            return false;
        }
        let state = State::deferred(WorkKind::Spare, turn.now);
        let mut spare = Attachment::new((None, address), id, facts, turn.now, state);
        spare.owed = Owed::Outcome;
        let spare = self.begin(turn, spare);
        self.attachments.link(key, spare);
        self.deferred_spares.push(spare);
        self.tell_join(turn, spare);
        turn.edge(Edge::Spare { session: id, outcome: SpareOutcome::Asked });
        true
    }

    /// The relay asks whether a spare is to be expected.
    pub(super) fn wants_spare(&mut self, turn: &mut Turn<'_>, key: Key) {
        if self.attachments.live(key).is_some() && !self.ask_spare(turn, key) {
            turn.relay(ForRelay::Replaced { key, yes: false });
        }
    }

    /// An attachment without a client has got its tunnel.
    pub(super) fn spare_came(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(of) = self.attachments.get(key) {
            let (session, kin) = (of.session, of.kin);
            turn.edge(Edge::Spare { session, outcome: SpareOutcome::Came });
            let Kin::StandsInFor(parent) = kin else { return self.park_spare(turn, key) };
            match self.attachments.get(parent) {
                Some(of) if of.is_spent() => self.swap(turn, parent, key),
                Some(of) => {
                    if let State::UsedUp { by, .. } = *of.state() {
                        self.succeed(turn, (parent, by), key);
                    }
                }
                None => {}
            }
        }
    }

    /// The spare is parked in the place of its parent, whose tunnel is used up. The parent's tunnel
    /// closes only when the worker counts the spare's. The worker may see the end of the old tunnel
    /// before the answer on the new one, and would end the session then.
    pub(super) fn succeed(&mut self, turn: &mut Turn<'_>, (parent, by): (Key, UsedBy), spare: Key) {
        self.attachments.separate(parent, spare);
        let counted = match self.attachments.state(spare) {
            Some(State::Attached { settles: Some(at), .. }) => *at,
            _ => turn.now,
        };
        if counted <= turn.now || turn.draining.is_some() {
            self.end(turn, parent, by.cause());
        } else {
            self.attachments.set(parent, State::UsedUp { by, settles: true });
            // The session's home hears that the parent is not in use: beside a tunnel in use no
            // spare stays parked.
            self.tell_state(turn, parent);
            turn.arm(counted, Due::Settled(parent));
            self.attachments.set_kin(spare, Kin::Succeeds(parent));
        }
        self.park_spare(turn, spare);
    }

    /// The spare is on its own now: it is kept for a client that comes back.
    pub(super) fn park_spare(&mut self, turn: &mut Turn<'_>, key: Key) {
        if turn.draining.is_some() {
            return self.end(turn, key, Cause::SHUTDOWN);
        }
        self.outcome(turn, key, SpareOutcome::Parked);
        self.park(turn, key, UsedBy::Client);
    }

    /// Counts what has become of a spare, once.
    fn outcome(&mut self, turn: &mut Turn<'_>, key: Key, outcome: SpareOutcome) {
        if let Some(of) = self.attachments.get_mut(key)
            && of.owed == Owed::Outcome
        {
            of.owed = Owed::Nothing;
            turn.edge(Edge::Spare { session: of.session, outcome });
        }
    }

    // ---- tunnels that take no more streams ----

    /// The attachment's tunnel takes no more streams. Another tunnel takes its place, and the
    /// client notices nothing. If none is to be had, requests that wait are placed anew.
    pub(super) fn spent(&mut self, turn: &mut Turn<'_>, key: Key, goaway: bool) {
        if let Some(of) = self.attachments.get_mut(key) {
            if goaway {
                let (session, event) = (of.session, Event::Goaway);
                turn.edge(Edge::Note { session, at: None, event });
            }
            match of.state_mut() {
                State::Attached { spent, .. }
                | State::Parking { spent, .. }
                | State::Parked { spent, .. } => *spent = true,
                // Another core asks for a spare, or none is needed any more.
                State::Moving { .. } | State::Ending(_) => return,
                _ => {}
            }
            if self.ask_spare(turn, key) {
                turn.arm(turn.now + REPLACE_WAIT, Due::Replace(key));
            } else {
                self.place_anew(turn, key);
                turn.relay(ForRelay::Replaced { key, yes: false });
            }
        }
    }

    /// Requests of a client that were not sent yet are placed as if they came now: in a fresh
    /// session, or, if they name one, at another tunnel of it.
    fn place_anew(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(client) = self.attachments.get(key).and_then(|of| of.client) {
            self.clients.unpin(client, key);
            turn.relay(ForRelay::PlaceAnew { key });
        }
    }

    /// The attachment goes on with its spare's tunnel. What runs on the old tunnel ends there, as
    /// the spare's streams.
    fn swap(&mut self, turn: &mut Turn<'_>, key: Key, spare: Key) {
        self.attachments.separate(key, spare);
        self.attachments.set(spare, State::Attached { spent: true, settles: None });
        self.outcome(turn, spare, SpareOutcome::Replaced);
        turn.relay(ForRelay::Swap { key, spare });
        turn.relay(ForRelay::Replaced { key, yes: false });
        if let Some(of) = self.attachments.get_mut(key) {
            match of.state_mut() {
                // Nothing was said on the new tunnel.
                State::Parked { spent, speaks, .. } => (*spent, *speaks) = (false, Speaks::Any),
                State::Attached { spent, .. } => *spent = false,
                _ => {}
            }
            if of.is_parked() {
                self.tell_state(turn, key);
            }
        }
    }

    /// Requests have waited long enough for a tunnel in place of one that takes no more streams.
    pub(super) fn replace_overdue(&mut self, turn: &mut Turn<'_>, key: Key) {
        let served = self.attachments.get(key).filter(|of| of.client.is_some());
        if let Some(spare) = served.and_then(Attachment::spare)
            && self.attachments.get(spare).is_some_and(|spare| !spare.has_tunnel())
        {
            self.end(turn, spare, Cause::NO_WORKER);
        }
    }

    /// The attachment takes the place of another one, and takes over that one's spare.
    pub(super) fn adopt_spare(&mut self, turn: &mut Turn<'_>, key: Key, spare: Key) {
        self.attachments.link(key, spare);
        turn.relay(ForRelay::Replaced { key, yes: true });
    }

    /// The attachment has no use for its spare any more. Its tunnel goes to another core, where
    /// another spare can be asked for, or its session ends with the tunnel.
    pub(super) fn end_spare_of(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(spare) = self.attachments.get(key).and_then(Attachment::spare) {
            self.attachments.separate(key, spare);
            self.end_unneeded(turn, spare, Cause::ABANDONED);
        }
    }

    /// The worker has ended the tunnel that this spare was asked for. If no worker knows of the
    /// spare by now, none ever will: the session ended with that tunnel.
    pub(super) fn recall(&mut self, turn: &mut Turn<'_>, spare: Key) {
        if let Some(of) = self.attachments.get(spare) {
            match of.state() {
                State::Deferred { .. } => self.end(turn, spare, Cause::UNTAKEN),
                State::Waiting { .. } => {
                    turn.workers(ForWorkers::Recall(of.of_version(spare, turn.settings)));
                }
                _ => {}
            }
        }
    }

    // ---- ends ----

    /// A tunnel has ended, or is ended by the relay.
    pub(super) fn lost(&mut self, turn: &mut Turn<'_>, lost: Lost) {
        let Lost { key, cause, going, last } = lost;
        if last {
            self.end_spare_of(turn, key);
        }
        if let Some(of) = self.attachments.live(key).filter(|_| going)
            && of.client.is_some()
            && of.spare().is_some()
        {
            // The tunnel was to be replaced: requests that wait for its spare are placed anew.
            self.end_spare_of(turn, key);
            self.place_anew(turn, key);
        }
        self.end(turn, key, cause);
    }

    /// An attachment has ended. Its spare goes on or ends, and so does the attachment whose place
    /// it was to take, or has taken.
    pub(super) fn kin_ended(&mut self, turn: &mut Turn<'_>, ended: &Attachment, cause: Cause) {
        if ended.owed == Owed::Outcome {
            let outcome = match cause.reason {
                CloseReason::Shutdown | CloseReason::Deleted => SpareOutcome::Unused,
                _ => SpareOutcome::Failed,
            };
            turn.edge(Edge::Spare { session: ended.session, outcome });
        }
        match ended.kin {
            Kin::Alone => {}
            Kin::HasSpare(spare) => self.parent_ended(turn, spare, cause),
            Kin::StandsInFor(parent) => self.spare_ended(turn, parent, ended),
            Kin::Succeeds(parent) => self.end(turn, parent, cause),
        }
    }

    /// A session outlives a tunnel that its worker ended, or that was lost, if there is another
    /// tunnel.
    fn parent_ended(&mut self, turn: &mut Turn<'_>, spare: Key, cause: Cause) {
        self.attachments.set_kin(spare, Kin::Alone);
        if cause.reason != CloseReason::WorkerClosed {
            self.end_unneeded(turn, spare, cause);
        } else if self.attachments.get(spare).is_some_and(Attachment::has_tunnel) {
            self.park_spare(turn, spare);
        } else {
            self.recall(turn, spare);
        }
    }

    fn end_unneeded(&mut self, turn: &mut Turn<'_>, spare: Key, cause: Cause) {
        self.outcome(turn, spare, SpareOutcome::Unused);
        self.end(turn, spare, cause);
    }

    fn spare_ended(&mut self, turn: &mut Turn<'_>, parent: Key, spare: &Attachment) {
        let served = matches!(spare.was(), super::attachment::Was::Served);
        let lasted = served && spare.opened + LASTING <= turn.now;
        self.attachments.set_kin(parent, Kin::Alone);
        if let Some(of) = self.attachments.live(parent) {
            let spent = of.is_spent();
            if let State::UsedUp { by, .. } = *of.state() {
                return self.end(turn, parent, by.cause());
            }
            if spent {
                self.place_anew(turn, parent);
            }
            if spent || !lasted || !self.ask_spare(turn, parent) {
                turn.relay(ForRelay::Replaced { key: parent, yes: false });
            }
        }
    }

    /// Ends what is kept only for clients that come back: nobody may come back any more.
    pub(super) fn drop_spares(&mut self, turn: &mut Turn<'_>) {
        for key in self.attachments.keys() {
            if self.is_for_later(key) {
                self.end(turn, key, Cause::SHUTDOWN);
            }
        }
    }

    /// Whether an attachment serves neither a client now, nor the streams of one.
    fn is_for_later(&self, key: Key) -> bool {
        let parent = match self.attachments.get(key).map(|of| of.kin) {
            Some(Kin::StandsInFor(parent)) => self.attachments.get(parent),
            _ => None,
        };
        let replaces = parent.is_some_and(|of| of.client.is_some() && of.is_spent());
        let later = |of: &Attachment| of.client.is_none() && !of.is_spent();
        !replaces && self.attachments.get(key).is_some_and(later)
    }
}
