//! Tunnels whose client is gone (design 5). A worker ends a session with its last tunnel, so the
//! last one is kept for a while. It stays on the core where it was, with its attachment, which has
//! no client. The relay looks whether a tunnel can be kept as it is. A tunnel that is used up is
//! held until another one is there.

use std::sync::Arc;
use std::time::Duration;

use super::super::cause::{Cause, Gone};
use super::super::facts::{Edge, ForRelay, ForWorkers, Parted};
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::attachment::{Attachment, Owed, State, UsedBy};
use super::client::Client;
use super::roster::Roster;
use super::spare::LAST_CHANCE;
use crate::control::port::Plane;
use crate::message::Speaks;
use crate::metrics::Limit;
use crate::net::End;
use crate::timeline::Event;

impl Roster {
    /// A client has gone, and is in no table any more: its tunnels close at once (contract CL-23),
    /// or are kept for a client that comes back.
    pub(super) fn part(
        &mut self,
        turn: &mut Turn<'_>,
        (client, how): (&Client, Gone),
        routes: &[Parted],
    ) {
        let route = |key: Key| routes.iter().find(|route| route.key == key);
        if let Gone::Ended(end) = how {
            for key in &client.attachments {
                let busy = route(*key).is_some_and(|route| route.busy);
                self.note_client_end(turn, *key, Event::ClientEnded { end, busy });
            }
        }
        let by = match how {
            Gone::Function(End::Fin) => UsedBy::Function,
            _ => UsedBy::Client,
        };
        for key in &client.attachments {
            let kept = turn.draining.is_none() && route(*key).is_some_and(|route| route.kept);
            match self.attachments.get_mut(*key) {
                Some(of) if matches!(of.state(), State::Attached { .. }) && kept => {
                    self.park(turn, *key, by);
                }
                // The answer may be the session's last tunnel, so it is waited for.
                Some(of) if of.is_asking() => of.client = None,
                _ => self.end(turn, *key, how.cause()),
            }
        }
    }

    fn note_client_end(&self, turn: &mut Turn<'_>, key: Key, event: Event) {
        if let Some(of) = self.attachments.get(key).filter(|of| !of.is_asking()) {
            turn.edge(Edge::Note { session: of.session, at: None, event });
        }
    }

    /// An attachment has no client: its tunnel is to be kept, if it can carry another client's
    /// requests.
    pub(super) fn park(&mut self, turn: &mut Turn<'_>, key: Key, by: UsedBy) {
        if let Some(of) = self.attachments.get_mut(key) {
            of.client = None;
            if of.owed == Owed::Dispatch {
                of.owed = Owed::Nothing;
            }
            let (spent, until) = (of.is_spent(), turn.now + park_window(turn, of));
            self.attachments.set(key, State::Parking { spent, by });
            turn.relay(ForRelay::Park { key, until });
        }
    }

    /// The relay keeps the tunnel.
    pub(super) fn parked(&mut self, turn: &mut Turn<'_>, key: Key, speaks: Speaks) {
        if let Some(State::Parking { spent, .. }) = self.attachments.state(key) {
            let spent = *spent;
            if turn.draining.is_some() {
                return self.end(turn, key, Cause::CLIENT_GONE);
            }
            self.make_room(turn, key);
            self.attachments.park(key, speaks, spent);
            if let Some(of) = self.attachments.get(key) {
                turn.edge(Edge::Note { session: of.session, at: None, event: Event::Parked });
            }
            // The dispatch home hears of it first, because the session's home may end the
            // attachment at once.
            self.tell_parks(turn, key);
            self.tell_state(turn, key);
        }
    }

    /// The dispatch home of a parked attachment's function version hears of it.
    pub(super) fn tell_parks(&self, turn: &mut Turn<'_>, key: Key) {
        if let Some(of) = self.attachments.get(key).filter(|of| of.is_parked()) {
            let of = of.of_version(key, turn.settings);
            let (ticket, function, version) = (of.ticket, of.function, of.version);
            turn.workers(ForWorkers::Parks(Box::new(crate::message::Parks {
                ticket,
                function,
                version,
            })));
        }
    }

    /// One more attachment is to be parked. If there are too many, the oldest ends.
    fn make_room(&mut self, turn: &mut Turn<'_>, key: Key) {
        let limits = &turn.settings.config.limits;
        let (most, of_tenant) = (limits.parked_tunnels, limits.parked_per_tenant);
        let tenant = self.attachments.get(key).map(|of| of.facts.owner.tenant.clone());
        let crowded = |tenant: &Arc<str>| {
            let parked_index = self.attachments.parked_index();
            parked_index.oldest_of(tenant).filter(|_| parked_index.of_tenant(tenant) >= of_tenant)
        };
        if let Some(oldest) = tenant.as_ref().and_then(crowded) {
            turn.limit_hit(Limit::ParkedPerTenant);
            self.end(turn, oldest, Cause::CROWDED);
        }
        let parked_index = self.attachments.parked_index();
        if let Some(oldest) = parked_index.oldest().filter(|_| parked_index.len() >= most) {
            turn.limit_hit(Limit::ParkedTunnels);
            self.end(turn, oldest, Cause::CROWDED);
        }
    }

    /// The attachment's client is lost, and its tunnel can carry no other client's requests. A
    /// spare takes the tunnel's place; until the spare is there the tunnel is held.
    pub(super) fn used_up(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(State::Parking { by, .. }) = self.attachments.state(key) {
            let by = *by;
            let spare = self.attachments.get(key).and_then(Attachment::spare);
            let there =
                |spare: &Key| self.attachments.get(*spare).is_some_and(Attachment::has_tunnel);
            if let Some(spare) = spare.filter(there) {
                return self.succeed(turn, (key, by), spare);
            }
            if !self.ask_spare(turn, key) {
                return self.end(turn, key, by.cause());
            }
            self.attachments.set(key, State::UsedUp { by, settles: false });
            if by == UsedBy::Function {
                self.last_chance(turn, key);
            }
        }
    }

    /// The worker has ended a tunnel that is held. The attachment is kept for a while longer,
    /// because its spare may still come.
    pub(super) fn last_chance(&self, turn: &mut Turn<'_>, key: Key) {
        if let Some(spare) = self.attachments.get(key).and_then(Attachment::spare) {
            turn.arm(turn.now + LAST_CHANCE, Due::Recall(spare));
        }
    }

    /// A parked attachment ends, for a reason of its session's or its worker's. False if it is not
    /// parked.
    pub(super) fn end_parked(&mut self, turn: &mut Turn<'_>, key: Key, cause: Cause) -> bool {
        let parked = self.attachments.get(key).is_some_and(Attachment::is_parked);
        if parked {
            self.end(turn, key, cause);
        }
        parked
    }

    /// Ends all that is parked: nobody may come back any more.
    pub(super) fn close_parked(&mut self, turn: &mut Turn<'_>) {
        while let Some(oldest) = self.attachments.parked_index().oldest() {
            self.end(turn, oldest, Cause::SHUTDOWN);
        }
    }
}

/// How long an attachment's tunnel is kept. A streaming worker of NVIDIA's begins to wait for its
/// client when its last tunnel closes. So the tunnel is kept no longer than the client has asked
/// for (design 3.26).
fn park_window(turn: &Turn<'_>, of: &Attachment) -> Duration {
    let most = turn.settings.config.session.park_window;
    let waits = of.facts.owner.kind.streaming && turn.settings.dispatch == Plane::Remote;
    let asked = of.window.filter(|_| waits).map(|seconds| Duration::from_secs(seconds.into()));
    asked.map_or(most, |asked| asked.min(most))
}
