//! Attachments: a client's connection, a function key, a session and, once it is there, a tunnel.
//! An attachment is dispatched once, however many requests wait for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use ringway_proto::id::WorkerToken;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::super::cause::Cause;
use super::super::facts::{Named, OfVersion, Terms, Wanted};
use super::super::settings::ShardSettings;
use super::super::table::{Key, Table};
use super::dial::Dialling;
use super::parked_index::{ParkedIndex, ParkedOrder};
use super::pending::Pending;
use super::ticket;
use crate::control::local::{SessionFacts, Ticket, WorkKind};
use crate::message::{MemberState, Speaks};
use crate::net::{ConnId, End};

/// One attachment.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) session: Uuid,
    /// The session's facts. While its home is asked, they say what the client may call.
    pub(super) facts: SessionFacts,
    /// The client's connection. None for a spare, and for an attachment whose client has gone.
    pub(super) client: Option<ConnId>,
    /// The address of the client, or of the last one.
    pub(super) address: SocketAddr,
    pub(super) opened: Time,
    pub(super) kin: Kin,
    pub(super) owed: Owed,
    /// The client makes sessions faster than it may where workers are asked, so the attachment's
    /// log lines are counted.
    pub(super) counted: bool,
    /// The terms that the relay has for the attachment.
    pub(super) terms: Terms,
    /// For how many seconds the client asks a streaming worker to wait for it.
    pub(super) window: Option<u16>,
    state: State,
}

/// The relation of an attachment to another one of its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kin {
    #[default]
    Alone,
    /// The other attachment is this one's spare. Its tunnel will take the place of this one's.
    HasSpare(Key),
    /// This attachment is the other one's spare. Its tunnel will take the place of the other one's.
    StandsInFor(Key),
    /// This attachment was the other one's spare, and has taken its place. The other one's tunnel
    /// is used up. It stays beside this one's until the worker counts this one's, and no longer
    /// than this one lives. The other attachment does not name this one any more.
    Succeeds(Key),
}

/// What has to be settled when an attachment ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Owed {
    #[default]
    Nothing,
    /// The client was charged a dispatch for the attachment, and may get that back.
    Dispatch,
    /// The attachment was asked for as a spare, and its outcome is not counted yet.
    Outcome,
}

/// The state of an attachment.
#[derive(Debug)]
pub(super) enum State {
    /// An answer is awaited. It comes from the session's home or the control plane, which say
    /// whether the client may have the session, or from the core where the session's tunnel is
    /// parked.
    Asking(Box<Asking>),
    /// Nobody is asked for a tunnel yet. That waits for the end of the turn, so that a request
    /// which is taken back in the same turn costs no worker anything. `since` is when the first
    /// request came. `forsaken` means that nobody waits for the attachment any more; another
    /// request may still come in this turn.
    Deferred { kind: WorkKind, since: Time, forsaken: bool },
    /// Work is queued, or will be. The worker's CONNECT must bring this token. `since` is as
    /// before. `stage` is what a remote control plane has said of the work.
    Waiting {
        token: Box<WorkerToken>,
        kind: WorkKind,
        since: Time,
        issued: Time,
        wrong: u32,
        stage: Stage,
    },
    /// The function's server is dialled, so no worker is needed.
    Dialling(Box<Dialling>),
    /// The worker, or the server, is there, and its connection becomes the tunnel.
    Arriving { kind: WorkKind },
    /// The tunnel is there. `spent` means that it takes no more streams. `settles` is set if the
    /// worker has just opened this tunnel beside another one: it may count this one only from that
    /// time on (see `SETTLES`).
    Attached { spent: bool, settles: Option<Time> },
    /// The client has gone, and the relay looks whether the tunnel can be kept as it is.
    Parking { spent: bool, by: UsedBy },
    /// The tunnel can carry no other client's requests. It is held until its spare is there.
    /// `settles` means that the spare is there and its worker may not count it yet.
    UsedUp { by: UsedBy, settles: bool },
    /// The client has gone, and the tunnel is kept for a client that comes back.
    Parked { place: ParkedOrder, speaks: Speaks, spent: bool },
    /// The tunnel goes to another core, where its client is now.
    Moving { to: Ticket, speaks: Speaks, spent: bool },
    /// The attachment has ended, and the relay closes its route.
    Ending(Was),
}

/// How far a remote control plane has come with the work that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The plane has said nothing yet.
    Given,
    /// The work is queued.
    Queued,
    /// The work's time is over, and the plane is asked how far the work has come.
    Over,
}

/// A question to another core.
#[derive(Debug)]
pub(super) struct Asking {
    /// The function id as the client sent it.
    pub(super) function: Box<[u8]>,
    /// The version as the client sent it; empty if it named none.
    pub(super) version: Box<[u8]>,
    pub(super) since: Time,
    pub(super) asked: Asked,
}

/// Whether a session is still wanted while it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Wanted,
    /// No request waits for the answer any more. The answer may be the session's last tunnel, so it
    /// is waited for all the same.
    Forsaken,
    /// The session was ended: if its tunnel comes, that ends too.
    Ended,
}

/// The side that has used a tunnel up, if it is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UsedBy {
    /// The tunnel's client was lost.
    Client,
    /// The function's side has ended the tunnel.
    Function,
}

impl UsedBy {
    /// The cause with which such a tunnel ends.
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::Client => Cause::CLIENT_GONE,
            Self::Function => Cause::ended(End::Fin),
        }
    }
}

/// How far an attachment had come when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Was {
    /// The attachment was a question that led to nothing, or of which the session's home knows
    /// nothing. Its end is not recorded.
    Refused,
    /// Nobody was asked for a tunnel yet.
    Wish,
    /// A worker was asked or a server dialled, and there was no tunnel yet.
    Sought { spare: bool },
    /// The attachment had its tunnel.
    Served,
    /// The attachment's tunnel was about to go to another core's attachment.
    Moving(Ticket),
}

impl State {
    /// The state of an attachment whose work is queued when the turn ends.
    pub(super) fn deferred(kind: WorkKind, since: Time) -> Self {
        Self::Deferred { kind, since, forsaken: false }
    }
}

impl Asking {
    pub(super) fn new(wanted: &Wanted, since: Time) -> Self {
        let (function, version) = (wanted.call.function().into(), wanted.call.version().into());
        Self { function, version, since, asked: Asked::Wanted }
    }

    /// Takes the question out, when it is answered.
    pub(super) fn take(&mut self) -> Self {
        let (function, version) =
            (std::mem::take(&mut self.function), std::mem::take(&mut self.version));
        Self { function, version, since: self.since, asked: self.asked }
    }
}

impl Attachment {
    /// An attachment for which nobody is asked yet.
    pub(super) fn new(
        (client, address): (Option<ConnId>, SocketAddr),
        session: Uuid,
        facts: SessionFacts,
        opened: Time,
        state: State,
    ) -> Self {
        Self {
            session,
            facts,
            client,
            address,
            opened,
            kin: Kin::Alone,
            owed: Owed::Nothing,
            counted: false,
            terms: Terms::default(),
            window: None,
            state,
        }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Lends the values of the state, to be changed. The state itself changes through
    /// [`Attachments::set`].
    pub(super) fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The kind of work that the attachment waits for, or will wait for.
    pub(super) fn kind(&self) -> Option<WorkKind> {
        match &self.state {
            State::Deferred { kind, .. } | State::Waiting { kind, .. } => Some(*kind),
            State::Dialling(dialling) => Some(dialling.kind),
            _ => None,
        }
    }

    /// One more request waits for the attachment.
    pub(super) fn want(&mut self) {
        if let State::Deferred { forsaken, .. } = &mut self.state {
            *forsaken = false;
        }
    }

    pub(super) fn has_tunnel(&self) -> bool {
        match self.state {
            State::Arriving { .. }
            | State::Attached { .. }
            | State::Parking { .. }
            | State::UsedUp { .. }
            | State::Parked { .. }
            | State::Moving { .. } => true,
            State::Asking(_)
            | State::Deferred { .. }
            | State::Waiting { .. }
            | State::Dialling(_)
            | State::Ending(_) => false,
        }
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked { .. })
    }

    pub(super) fn is_asking(&self) -> bool {
        matches!(self.state, State::Asking(_))
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending(_))
    }

    /// Whether the attachment's tunnel takes no more streams. A tunnel that is held for its spare
    /// is not counted.
    pub(super) fn is_spent(&self) -> bool {
        match self.state {
            State::Attached { spent, .. }
            | State::Parking { spent, .. }
            | State::Parked { spent, .. }
            | State::Moving { spent, .. } => spent,
            _ => false,
        }
    }

    pub(super) fn spare(&self) -> Option<Key> {
        match self.kin {
            Kin::HasSpare(spare) => Some(spare),
            Kin::Alone | Kin::StandsInFor(_) | Kin::Succeeds(_) => None,
        }
    }

    /// Whether the attachment may take new streams of a session that a request names.
    pub(super) fn serves(&self, id: Uuid) -> bool {
        let asks = self.is_asking() || self.is_ending();
        // An attachment whose tunnel is spent takes requests all the same, if it has a spare.
        let going = self.is_spent() && self.spare().is_none();
        self.session == id && !asks && !going
    }

    /// Whether the attachment's answer would be this request's answer too.
    pub(super) fn asks(&self, id: Uuid, wanted: &Wanted, tenant: &Arc<str>) -> bool {
        let State::Asking(asking) = &self.state else { return false };
        self.session == id
            && *asking.function == *wanted.call.function()
            && *asking.version == *wanted.call.version()
            && self.facts.owner.tenant == *tenant
    }

    /// The attachment's state as its session's home knows it.
    pub(super) fn member_state(&self) -> MemberState {
        match self.state {
            State::Parked { speaks, .. } => MemberState::Parked(speaks),
            State::Attached { settles: None, .. } if self.client.is_some() => MemberState::Open,
            State::Attached { .. }
            | State::Parking { .. }
            | State::UsedUp { settles: true, .. } => MemberState::Spare,
            State::UsedUp { .. } | State::Moving { .. } => MemberState::Open,
            State::Asking(_)
            | State::Deferred { .. }
            | State::Waiting { .. }
            | State::Dialling(_)
            | State::Arriving { .. }
            | State::Ending(_) => MemberState::Wanted,
        }
    }

    /// How far the attachment has come, if it ends now.
    pub(super) fn was(&self) -> Was {
        match &self.state {
            State::Asking(_) | State::Deferred { .. } => Was::Wish,
            State::Waiting { kind, .. } => Was::Sought { spare: *kind == WorkKind::Spare },
            State::Dialling(_) => Was::Sought { spare: false },
            State::Moving { to, .. } => Was::Moving(*to),
            State::Ending(was) => *was,
            State::Arriving { .. }
            | State::Attached { .. }
            | State::Parking { .. }
            | State::UsedUp { .. }
            | State::Parked { .. } => Was::Served,
        }
    }

    /// The attachment's name for the log. `counted`: its lines are counted for the client's
    /// address.
    pub(super) fn named(&self, counted: bool) -> Named {
        Named {
            session: self.session,
            function: self.facts.owner.function.clone(),
            version: self.facts.owner.version.clone(),
            counted_for: counted.then(|| self.address.ip()),
        }
    }

    /// The attachment's name towards the dispatch.
    pub(super) fn of_version(&self, key: Key, settings: &ShardSettings) -> Box<OfVersion> {
        let owner = &self.facts.owner;
        let (function, version) = (owner.function.clone(), owner.version.clone());
        Box::new(OfVersion { ticket: ticket(settings, key), function, version })
    }
}

/// All attachments of a core, and what is counted of their states.
#[derive(Debug)]
pub(super) struct Attachments {
    table: Table<Attachment>,
    /// The attachments that wait for their worker.
    pending: Pending,
    /// The attachments that are parked.
    parked_index: ParkedIndex,
    /// The attachments that the dials under way are for.
    dials: HashMap<ConnId, Key>,
    /// How many attachments wait for another core's answer.
    asking: usize,
}

impl Attachments {
    /// A table without attachments; the first one's key has generation `generation`.
    pub(super) fn new(generation: u32) -> Self {
        Self {
            table: Table::new(generation),
            pending: Pending::default(),
            parked_index: ParkedIndex::default(),
            dials: HashMap::new(),
            asking: 0,
        }
    }

    pub(super) fn insert(&mut self, attachment: Attachment) -> Key {
        let tenant = attachment.facts.owner.tenant.clone();
        self.enters(&attachment.state, &tenant);
        self.table.insert(attachment)
    }

    pub(super) fn get(&self, key: Key) -> Option<&Attachment> {
        self.table.get(key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Attachment> {
        self.table.get_mut(key)
    }

    /// An attachment that has not ended.
    pub(super) fn live(&self, key: Key) -> Option<&Attachment> {
        self.get(key).filter(|attachment| !attachment.is_ending())
    }

    pub(super) fn state(&self, key: Key) -> Option<&State> {
        self.get(key).map(Attachment::state)
    }

    /// The attachment is in another state from now on.
    pub(super) fn set(&mut self, key: Key, state: State) {
        if let Some(attachment) = self.table.get_mut(key) {
            let tenant = attachment.facts.owner.tenant.clone();
            let old = std::mem::replace(&mut attachment.state, state);
            self.leaves(&old, &tenant);
            if let Some(attachment) = self.table.get(key) {
                count(&mut self.pending, &mut self.asking, (&attachment.state, &tenant));
            }
        }
    }

    /// The attachment's tunnel is parked.
    pub(super) fn park(&mut self, key: Key, speaks: Speaks, spent: bool) {
        if let Some(attachment) = self.get(key) {
            let tenant = attachment.facts.owner.tenant.clone();
            let place = self.parked_index.enter(key, &tenant);
            self.set(key, State::Parked { place, speaks, spent });
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Attachment> {
        let attachment = self.table.remove(key)?;
        self.leaves(&attachment.state, &attachment.facts.owner.tenant);
        Some(attachment)
    }

    fn enters(&mut self, state: &State, tenant: &Arc<str>) {
        count(&mut self.pending, &mut self.asking, (state, tenant));
    }

    fn leaves(&mut self, state: &State, tenant: &Arc<str>) {
        match state {
            State::Asking(_) => self.asking -= 1,
            State::Waiting { kind, .. } => self.pending.leave(tenant, *kind),
            State::Dialling(dialling) => {
                self.pending.leave(tenant, dialling.kind);
                if let Some(conn) = dialling.conn {
                    self.dials.remove(&conn);
                }
            }
            State::Parked { place, .. } => self.parked_index.leave(*place, tenant),
            _ => {}
        }
    }

    /// The dial for an attachment is under way; false if the attachment wants none.
    pub(super) fn dialling(&mut self, key: Key, conn: ConnId) -> bool {
        match self.table.get_mut(key).map(Attachment::state_mut) {
            Some(State::Dialling(dialling)) => {
                dialling.conn = Some(conn);
                self.dials.insert(conn, key);
                true
            }
            _ => false,
        }
    }

    /// A dial has ended. Returns the attachment that it was for, if that still wants it.
    pub(super) fn dialled(&mut self, conn: ConnId) -> Option<Key> {
        let key = self.dials.remove(&conn)?;
        match self.table.get_mut(key).map(Attachment::state_mut) {
            Some(State::Dialling(dialling)) => {
                dialling.conn = None;
                Some(key)
            }
            _ => None,
        }
    }

    /// Makes `spare` the spare of `key`.
    pub(super) fn link(&mut self, key: Key, spare: Key) {
        self.set_kin(key, Kin::HasSpare(spare));
        self.set_kin(spare, Kin::StandsInFor(key));
    }

    /// Parent and spare have nothing to do with each other any more.
    pub(super) fn separate(&mut self, parent: Key, spare: Key) {
        self.set_kin(parent, Kin::Alone);
        self.set_kin(spare, Kin::Alone);
    }

    pub(super) fn set_kin(&mut self, key: Key, kin: Kin) {
        if let Some(attachment) = self.get_mut(key) {
            attachment.kin = kin;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Attachment)> {
        self.table.iter()
    }

    /// How many slots there are, free ones included.
    pub(super) fn slots(&self) -> u32 {
        self.table.slots()
    }

    /// The attachments in these slots.
    pub(super) fn range(&self, slots: Range<u32>) -> impl Iterator<Item = (Key, &Attachment)> {
        self.table.range(slots)
    }

    /// The keys of the attachments that have not ended.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.iter().filter(|(_, of)| !of.is_ending()).map(|(key, _)| key).collect()
    }

    pub(super) fn pending(&self) -> &Pending {
        &self.pending
    }

    pub(super) fn parked_index(&self) -> &ParkedIndex {
        &self.parked_index
    }

    pub(super) fn asking(&self) -> usize {
        self.asking
    }

    pub(super) fn dials(&self) -> usize {
        self.dials.len()
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.len() == 0
            && self.pending.is_empty()
            && self.parked_index.len() == 0
            && self.dials.is_empty()
            && self.asking == 0
    }
}

/// Counts an attachment for the state that it enters. The index of parked attachments is kept
/// apart.
fn count(pending: &mut Pending, asking: &mut usize, (state, tenant): (&State, &Arc<str>)) {
    match state {
        State::Asking(_) => *asking += 1,
        State::Waiting { kind, .. } => pending.enter(tenant, *kind),
        State::Dialling(dialling) => pending.enter(tenant, dialling.kind),
        _ => {}
    }
}
