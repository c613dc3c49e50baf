//! The directory of the sessions whose home is this core. What several cores want of a session is
//! put in order here and nowhere else: whoever comes back first gets the tunnel that waits.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexMap;
use ringway_proto::fault::Fault;
use ringway_proto::time::Time;
use smallvec::SmallVec;
use uuid::Uuid;

use super::called::Called;
use crate::control::local::{SessionFacts, Ticket};
use crate::control::port::Owner;
use crate::message::{Join, Leave, MemberState, SessionRow, Speaks};
use crate::metrics::CloseReason;

/// Closed sessions that `/sessions` still shows.
const RECENT: usize = 256;

/// A request id and its owner.
#[derive(Debug)]
pub(super) struct SessionEntry {
    pub(super) id: Uuid,
    pub(super) facts: SessionFacts,
    /// The seal of the credential that opened the session. None where the control plane answers at
    /// once, and where the credential is not known.
    pub(super) seal: Option<NonZeroU64>,
    /// The session's attachments, on all cores. Mostly there is one.
    pub(super) members: SmallVec<[Member; 1]>,
    /// The row of the last attachment that has ended, with what those before it carried. Spares
    /// leave no row.
    row: Option<Box<SessionRow>>,
}

/// One attachment of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) ticket: Ticket,
    pub(super) member_state: MemberState,
}

impl SessionEntry {
    pub(super) fn new(id: Uuid, facts: SessionFacts) -> Self {
        Self { id, facts, seal: None, members: SmallVec::new(), row: None }
    }

    /// Whether there is a tunnel: the worker ends the session with its last one (contract 4.6).
    pub(super) fn has_tunnel(&self) -> bool {
        self.members.iter().any(|member| member.member_state != MemberState::Wanted)
    }

    /// The parked tunnel that a client may take up which speaks so.
    pub(super) fn parked(&self, client: Speaks) -> Option<Ticket> {
        let fits = |member: &&Member| match member.member_state {
            MemberState::Parked(speaks) => speaks.fits(client),
            _ => false,
        };
        self.members.iter().find(fits).map(|member| member.ticket)
    }

    pub(super) fn set(&mut self, ticket: Ticket, member_state: MemberState) {
        match self.members.iter_mut().find(|member| member.ticket == ticket) {
            Some(member) => member.member_state = member_state,
            None => self.members.push(Member { ticket, member_state }),
        }
    }

    /// Takes out the parked attachments that are to end. Only a session's last tunnel stays parked.
    fn surplus(&mut self) -> Vec<Ticket> {
        let is_parked = |member: &Member| matches!(member.member_state, MemberState::Parked(_));
        let in_use = |member: &Member| {
            matches!(member.member_state, MemberState::Open | MemberState::Coming { .. })
        };
        let last = self.members.iter().rposition(is_parked);
        let kept = last.filter(|_| !self.members.iter().any(in_use));
        let kept = kept.map(|at| self.members[at].ticket);
        let mut gone = Vec::new();
        self.members.retain(|member| {
            let stays = !is_parked(member) || Some(member.ticket) == kept;
            if !stays {
                gone.push(member.ticket);
            }
            stays
        });
        gone
    }

    /// The row that remains of a session that ended with its core.
    fn lost_row(&self, core: u16, (now, unix_micros): (Time, u64)) -> SessionRow {
        let age = now.since(self.facts.opened).as_millis();
        SessionRow {
            request_id: self.id,
            function_id: self.facts.owner.function.clone(),
            function_version_id: self.facts.owner.version.clone(),
            tenant: self.facts.owner.tenant.clone(),
            state: "closed",
            core,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            ended_at: Some(unix_micros),
            close_reason: Some(CloseReason::Shutdown.label()),
            ..SessionRow::default()
        }
    }
}

/// Whether a request with this function key and tenant may have the session: E8, E9, E10, in the
/// order of contract 3.3.
pub(super) fn check(
    facts: &SessionFacts,
    request_id: Uuid,
    Called { function, version }: Called<'_>,
    tenant: &Arc<str>,
) -> Result<(), Fault> {
    if facts.owner.function.as_bytes() != function {
        return Err(Fault::FunctionMismatch { request_id });
    }
    if !version.is_empty() && facts.owner.version.as_bytes() != version {
        return Err(Fault::VersionMismatch { request_id });
    }
    if facts.owner.tenant != *tenant {
        return Err(Fault::TenantMismatch { request_id });
    }
    Ok(())
}

/// All sessions of one core.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// The entries are boxed, because a table of tables has many empty places. They have an order,
    /// so that they can be gone through piece by piece.
    live: IndexMap<Uuid, Box<SessionEntry>, foldhash::fast::RandomState>,
    recent: VecDeque<SessionRow>,
}

impl Directory {
    pub(super) fn get(&self, id: Uuid) -> Option<&SessionEntry> {
        self.live.get(&id).map(|session| &**session)
    }

    pub(super) fn insert(&mut self, session: SessionEntry) {
        self.live.insert(session.id, Box::new(session));
    }

    /// The facts of a session, for a client that may have it, and the tunnel that waits for that
    /// client, if there is one that it can use.
    pub(super) fn find(
        &self,
        id: Uuid,
        wanted: Called<'_>,
        tenant: &Arc<str>,
        speaks: Speaks,
    ) -> Result<(SessionFacts, Option<Ticket>), Fault> {
        let session = self.live.get(&id).filter(|session| session.has_tunnel());
        let session = session.ok_or(Fault::SessionNotFound { request_id: id })?;
        check(&session.facts, id, wanted, tenant)?;
        Ok((session.facts.clone(), session.parked(speaks)))
    }

    /// The owner of a session, if this client opened it and can take up its tunnel: then the control
    /// plane need not be asked (design 5).
    pub(super) fn vouch(
        &self,
        id: Uuid,
        called: Called<'_>,
        seal: NonZeroU64,
        speaks: Speaks,
    ) -> Option<Arc<Owner>> {
        let session = self.live.get(&id).filter(|session| session.seal == Some(seal))?;
        session.parked(speaks)?;
        let owner = &session.facts.owner;
        check(&session.facts, id, called, &owner.tenant).ok()?;
        Some(owner.clone())
    }

    fn remember(&mut self, row: SessionRow) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(row);
    }

    /// An attachment of a session that is here. An attachment that joins twice counts once, and a
    /// session that is not known any more is known again. Returned: the attachments that are to end
    /// now.
    #[must_use]
    pub(super) fn join(&mut self, Join { id, ticket, facts, member_state }: Join) -> Vec<Ticket> {
        let session = self.live.entry(id).or_insert_with(|| Box::new(SessionEntry::new(id, facts)));
        session.set(ticket, member_state);
        session.surplus()
    }

    /// An attachment is in another state now. Returned: the attachments that are to end now.
    #[must_use]
    pub(super) fn set_member_state(
        &mut self,
        id: Uuid,
        ticket: Ticket,
        member_state: MemberState,
    ) -> Vec<Ticket> {
        let Some(session) = self.live.get_mut(&id) else { return Vec::new() };
        if !session.members.iter().any(|member| member.ticket == ticket) {
            return Vec::new();
        }
        session.set(ticket, member_state);
        session.surplus()
    }

    /// The tunnel of `parked` goes to the attachment `to`, which may be the same one: nobody else
    /// gets it from now on.
    pub(super) fn claim(&mut self, id: Uuid, parked: Ticket, to: Ticket) {
        if let Some(session) = self.live.get_mut(&id) {
            if parked == to {
                return session.set(to, MemberState::Open);
            }
            session.members.retain(|member| member.ticket != parked);
            session.set(to, MemberState::Coming { from: parked.core });
        }
    }

    /// An attachment leaves. The last one ends the session, of which `row` remains for a while.
    pub(super) fn leave(&mut self, Leave { id, ticket, row }: Leave) {
        let Some(session) = self.live.get_mut(&id) else { return };
        let before = session.members.len();
        session.members.retain(|member| member.ticket != ticket);
        if session.members.len() == before {
            return;
        }
        if let Some(mut row) = row {
            if let Some(before) = &session.row {
                row.carry(before);
            }
            session.row = Some(Box::new(row));
        }
        if !session.members.is_empty() {
            return;
        }
        if let Some(row) = self.live.swap_remove(&id).and_then(|session| session.row) {
            self.remember(*row);
        }
    }

    /// The attachments to which a tunnel was to come from a core that has begun anew. It will not
    /// come.
    pub(super) fn robbed_by(&self, core: u16) -> Vec<Ticket> {
        let members = self.live.values().flat_map(|session| &session.members);
        let robbed =
            members.filter(|member| member.member_state == MemberState::Coming { from: core });
        let mut tickets: Vec<Ticket> = robbed.map(|member| member.ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// The attachments of a core that has begun anew are gone. `now` is given as Unix time too.
    pub(super) fn forget_core(&mut self, core: u16, now: (Time, u64)) {
        let of_core = |session: &SessionEntry| {
            let tickets = session.members.iter().map(|member| member.ticket);
            let tickets = tickets.filter(|ticket| ticket.core == core);
            tickets.map(|ticket| (session.id, ticket)).collect::<Vec<_>>()
        };
        let mut gone: Vec<(Uuid, Ticket)> =
            self.live.values().flat_map(|session| of_core(session)).collect();
        gone.sort_unstable();
        for (id, ticket) in gone {
            let row = self.live.get(&id).map(|session| session.lost_row(core, now));
            self.leave(Leave { id, ticket, row });
        }
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// The sums that ended attachments have left, of those sessions in these places that go on.
    pub(super) fn carried(&self, places: Range<u32>) -> impl Iterator<Item = SessionRow> {
        places.filter_map(|place| {
            let (_, session) = self.live.get_index(place as usize)?;
            Some(session.row.as_ref()?.carried())
        })
    }

    /// The rows of sessions that ended not long ago, newest first.
    pub(super) fn recent(&self) -> impl Iterator<Item = &SessionRow> {
        self.recent.iter().rev()
    }
}
