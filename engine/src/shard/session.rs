//! The directory of the sessions whose home is this core.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;
use uuid::Uuid;

use crate::control::local::Ticket;
use crate::metrics::CloseReason;
use crate::post::{Join, Leave, SessionFacts, SessionRow};

/// Closed sessions that `/sessions` still shows.
const RECENT: usize = 256;

/// A request id and its owner.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: Uuid,
    pub(crate) facts: SessionFacts,
    /// Attachments that wait or have a tunnel, on all cores.
    pub(crate) attachments: u32,
    /// Tunnels open now: the worker ends the session with its last one (contract 4.6).
    pub(crate) tunnels: u32,
    /// The attachments on other cores, and whether each has its tunnel.
    elsewhere: Vec<(Ticket, bool)>,
}

impl Session {
    pub(crate) fn new(id: Uuid, facts: SessionFacts) -> Self {
        Self { id, facts, attachments: 0, tunnels: 0, elsewhere: Vec::new() }
    }

    fn has_tunnel(&mut self, at: usize) {
        if !std::mem::replace(&mut self.elsewhere[at].1, true) {
            self.tunnels += 1;
        }
    }

    /// What remains of a session that ended with its core.
    fn lost_row(&self, core: u16, now: Time) -> SessionRow {
        let age = now.since(self.facts.opened).as_millis();
        SessionRow {
            request_id: self.id,
            function_id: self.facts.function.to_string(),
            function_version_id: self.facts.version.to_string(),
            tenant: self.facts.tenant.to_string(),
            state: "closed",
            core,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            close_reason: Some(CloseReason::Shutdown.label()),
            ..SessionRow::default()
        }
    }

    fn place(&self, ticket: Ticket) -> Option<usize> {
        self.elsewhere.iter().position(|(other, _)| *other == ticket)
    }
}

/// Whether a request with this function key and tenant may have the session: E8, E9, E10, in the
/// contract's order (3.3).
pub(crate) fn check(
    facts: &SessionFacts,
    request_id: Uuid,
    (function, version): (&[u8], &[u8]),
    tenant: &Arc<str>,
) -> Result<(), Fault> {
    if facts.function.as_bytes() != function {
        return Err(Fault::FunctionMismatch { request_id });
    }
    if !version.is_empty() && facts.version.as_bytes() != version {
        return Err(Fault::VersionMismatch { request_id });
    }
    if facts.tenant != *tenant {
        return Err(Fault::TenantMismatch { request_id });
    }
    Ok(())
}

/// All sessions of one core.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    live: HashMap<Uuid, Session, foldhash::fast::RandomState>,
    recent: VecDeque<SessionRow>,
}

impl Sessions {
    pub(crate) fn insert(&mut self, session: Session) {
        self.live.insert(session.id, session);
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<&Session> {
        self.live.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: Uuid) -> Option<&mut Session> {
        self.live.get_mut(&id)
    }

    /// One attachment less; the last one ends the session, of which `row` remains for a while.
    pub(crate) fn detach(&mut self, id: Uuid, had_tunnel: bool, row: impl FnOnce() -> SessionRow) {
        let Some(session) = self.live.get_mut(&id) else { return };
        session.attachments -= 1;
        session.tunnels -= u32::from(had_tunnel);
        if session.attachments == 0 {
            self.live.remove(&id);
            self.remember(row());
        }
    }

    fn remember(&mut self, row: SessionRow) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(row);
    }

    /// An attachment less that never was more than a wish.
    pub(crate) fn forget(&mut self, id: Uuid) {
        if let Some(session) = self.live.get_mut(&id) {
            session.attachments -= 1;
            if session.attachments == 0 {
                self.live.remove(&id);
            }
        }
    }

    /// An attachment of another core. Told again, it counts once; a session that is not known any
    /// more is known again.
    pub(crate) fn join(&mut self, Join { id, ticket, facts, tunnel }: Join) {
        let session = self.live.entry(id).or_insert_with(|| Session::new(id, facts));
        let at = session.place(ticket).unwrap_or_else(|| {
            session.attachments += 1;
            session.elsewhere.push((ticket, false));
            session.elsewhere.len() - 1
        });
        if tunnel {
            session.has_tunnel(at);
        }
    }

    /// An attachment of another core has its tunnel.
    pub(crate) fn tunnel_elsewhere(&mut self, id: Uuid, ticket: Ticket) {
        if let Some(session) = self.live.get_mut(&id)
            && let Some(at) = session.place(ticket)
        {
            session.has_tunnel(at);
        }
    }

    /// An attachment of another core less; the last one ends the session.
    pub(crate) fn leave(&mut self, Leave { id, ticket, row }: Leave) {
        let Some(session) = self.live.get_mut(&id) else { return };
        let Some(at) = session.place(ticket) else { return };
        let (_, had_tunnel) = session.elsewhere.swap_remove(at);
        session.attachments -= 1;
        session.tunnels -= u32::from(had_tunnel);
        if session.attachments == 0 {
            self.live.remove(&id);
            if let Some(row) = row {
                self.remember(row);
            }
        }
    }

    /// The attachments of a core that has begun anew are gone.
    pub(crate) fn forget_core(&mut self, core: u16, now: Time) {
        let of_core = |session: &Session| {
            let tickets = session.elsewhere.iter().map(|(ticket, _)| *ticket);
            let tickets = tickets.filter(|ticket| ticket.core == core);
            tickets.map(|ticket| (session.id, ticket)).collect::<Vec<_>>()
        };
        let mut gone: Vec<(Uuid, Ticket)> = self.live.values().flat_map(of_core).collect();
        gone.sort_unstable();
        for (id, ticket) in gone {
            let row = self.live.get(&id).map(|session| session.lost_row(core, now));
            self.leave(Leave { id, ticket, row });
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    /// The rows of sessions that ended not long ago, newest first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = &SessionRow> {
        self.recent.iter().rev()
    }
}
