//! The clients' connections, as far as sessions know them: what each was granted, its attachments,
//! and how fast it may cause sessions (L12).
//!
//! A *dispatch* asks a worker for a new session. Each dispatch is charged to its client's bucket. A
//! function with `dial` costs nothing, because its server is connected to and no worker asked. A
//! tunnel for a session that is there already costs nothing either. The charge comes back when the
//! function's side ends the tunnel in order: a server that closes after each response makes no
//! client a flood.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use ringway_proto::time::Time;
use smallvec::SmallVec;

use super::super::bucket::Bucket;
use super::super::facts::{Caller, Met, Wanted};
use super::super::table::Key;
use super::called::Called;
use crate::config::{Limits, Scope};
use crate::control::port::{Grant, Owner};
use crate::net::ConnId;

/// One client's connection. Most connections carry one user of one function, with one session, and
/// need no memory besides this.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) caller: Caller,
    /// Credentials and function keys seen on this connection, each authorised once.
    pub(super) pins: SmallVec<[Pin; 1]>,
    /// Questions to the control plane that are not answered yet.
    pub(super) questions: SmallVec<[Key; 2]>,
    /// Live attachments.
    pub(super) attachments: SmallVec<[Key; 2]>,
    /// Attachments there ever were, for the histogram at close.
    pub(super) tunnels_seen: u32,
    /// New dispatches allowed now, and since when they refill.
    dispatches: Bucket,
}

/// A number in [`Pin::rules`] that no rules have: what the pin was granted is used up.
pub(super) const USED_UP: u32 = u32::MAX;

/// A pin: what a credential may call on this connection.
#[derive(Debug)]
pub(super) struct Pin {
    /// A hash over credential, function and version. Pins are found by it first.
    hash: u64,
    said: Said,
    pub(super) grant: Grant,
    /// When the pin was granted.
    pub(super) granted_at: Time,
    /// The number of the rules that granted the pin.
    pub(super) rules: u32,
    /// The attachment that requests without an id use.
    pub(super) attachment: Option<Key>,
}

/// A client's credential and what the client calls, as it said them, in one piece of memory.
struct Said {
    octets: Box<[u8]>,
    credential: u32,
    /// The length of the function. [`AS_GRANTED`] if the client called what was granted by its
    /// canonical ids: then they are in the grant, and not here.
    function: u32,
}

/// The value in [`Said`] in place of a length if the ids are in the grant.
const AS_GRANTED: u32 = u32::MAX;

impl Said {
    fn new(wanted: &Wanted, granted: &Owner) -> Self {
        let call = &wanted.call;
        let (credential, function, version) = (call.credential(), call.function(), call.version());
        let same = (function, version) == (granted.function.as_bytes(), granted.version.as_bytes());
        let called: [&[u8]; 2] = if same { [b"", b""] } else { [function, version] };
        Self {
            octets: [credential, called[0], called[1]].concat().into(),
            credential: credential.len() as u32,
            function: if same { AS_GRANTED } else { function.len() as u32 },
        }
    }

    fn credential(&self) -> &[u8] {
        &self.octets[..self.credential as usize]
    }
}

impl fmt::Debug for Said {
    /// Without the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.octets[self.credential as usize..].escape_ascii())
    }
}

impl Client {
    /// Whether another gateway has brought this client's connection for one user, and this is the
    /// first request of another user.
    pub(super) fn is_shared_by(&self, wanted: &Wanted) -> bool {
        let first = self.pins.first().filter(|_| self.caller.brought);
        first.is_some_and(|first| {
            let of_first = |credential: &[u8]| credential == first.credential();
            let alone = self.pins.iter().all(|pin| of_first(pin.credential()));
            alone && !of_first(wanted.call.credential())
        })
    }
}

impl Pin {
    pub(super) fn new(wanted: &Wanted, hash: u64, grant: Grant, (now, rules): (Time, u32)) -> Self {
        let said = Said::new(wanted, &grant.owner);
        Self { hash, said, grant, granted_at: now, rules, attachment: None }
    }

    pub(super) fn credential(&self) -> &[u8] {
        self.said.credential()
    }

    /// The function as the client called it.
    pub(super) fn function(&self) -> &[u8] {
        self.called().map_or(self.grant.owner.function.as_bytes(), |(function, _)| function)
    }

    /// The version as the client called it; empty if it named none.
    pub(super) fn version(&self) -> &[u8] {
        self.called().map_or(self.grant.owner.version.as_bytes(), |(_, version)| version)
    }

    fn called(&self) -> Option<(&[u8], &[u8])> {
        let Said { octets, credential, function } = &self.said;
        let called = &octets[*credential as usize..];
        (*function != AS_GRANTED).then(|| called.split_at(*function as usize))
    }

    fn is_for(&self, wanted: &Wanted, hash: u64, scope: Scope) -> bool {
        self.hash == hash
            && (scope == Scope::Connection || self.said.credential() == wanted.call.credential())
            && self.function() == wanted.call.function()
            && self.version() == wanted.call.version()
    }
}

impl Client {
    fn new(caller: Caller) -> Self {
        Self {
            caller,
            pins: SmallVec::new(),
            questions: SmallVec::new(),
            attachments: SmallVec::new(),
            tunnels_seen: 0,
            dispatches: Bucket::default(),
        }
    }

    /// The pin for what a request wants.
    pub(super) fn pin(&self, wanted: &Wanted, hash: u64, scope: Scope) -> Option<usize> {
        self.pins.iter().position(|pin| pin.is_for(wanted, hash, scope))
    }

    /// The live attachment that this pin's requests use, by design 3.12's scope.
    pub(super) fn pinned(&mut self, pin: usize, scope: Scope) -> Option<Key> {
        let mine = self.pins.get(pin)?;
        if mine.attachment.is_some() || scope != Scope::Tenant {
            return mine.attachment;
        }
        let same_owner = |other: &&Pin| {
            other.function() == mine.function()
                && other.version() == mine.version()
                && other.grant.owner.tenant == mine.grant.owner.tenant
                && other.attachment.is_some()
        };
        let shared = self.pins.iter().find(same_owner)?.attachment;
        self.pins[pin].attachment = shared;
        shared
    }

    /// Adds a pin. False if `most` are in use already.
    pub(super) fn grant(&mut self, pin: Pin, most: usize) -> bool {
        if self.pins.len() >= most {
            // The connection's users change: pins without an attachment make room.
            self.forget_idle_pins();
        }
        if self.pins.len() >= most {
            return false;
        }
        self.pins.push(pin);
        true
    }

    fn forget_idle_pins(&mut self) {
        self.pins.retain(|pin| pin.attachment.is_some());
    }

    /// Requests without an id use from now on the attachment that a question led to, if they used
    /// none before. The same holds for an attachment of a session whose home is here.
    fn pin_asked(&mut self, called: Called<'_>, tenant: &Arc<str>, key: Key) {
        let Called { function, version } = called;
        let asked = self.pins.iter_mut().find(|pin| {
            pin.function() == function
                && pin.version() == version
                && pin.grant.owner.tenant == *tenant
        });
        if let Some(pin) = asked {
            pin.attachment.get_or_insert(key);
        }
    }

    fn own(&mut self, key: Key) {
        self.attachments.push(key);
    }

    /// Requests without an id no longer use this attachment.
    fn unpin(&mut self, key: Key) {
        for pin in &mut self.pins {
            if pin.attachment == Some(key) {
                pin.attachment = None;
            }
        }
    }

    /// Whether the client has made more sessions in its time than a worker would be asked for.
    fn is_hasty(&self, limits: &Limits, now: Time) -> bool {
        let seconds = now.since(self.caller.opened).as_secs();
        let most = u64::from(limits.dispatch_burst) + seconds * u64::from(limits.dispatch_rate);
        u64::from(self.tunnels_seen) >= most
    }
}

/// All clients of a core that have asked for a session.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Boxed: half of a table's places are empty.
    table: HashMap<ConnId, Box<Client>, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    /// The number of clients that have so many attachments. Clients that have none are not counted.
    widths: BTreeMap<usize, usize>,
}

impl Clients {
    /// The connection of a request, known from now on.
    pub(super) fn meet(&mut self, caller: Caller) -> &mut Client {
        self.table.entry(caller.conn).or_insert_with(|| Box::new(Client::new(caller)))
    }

    pub(super) fn get(&self, conn: ConnId) -> Option<&Client> {
        self.table.get(&conn).map(|client| &**client)
    }

    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Client> {
        self.table.get_mut(&conn).map(|client| &mut **client)
    }

    pub(super) fn remove(&mut self, conn: ConnId) -> Option<Box<Client>> {
        let client = self.table.remove(&conn)?;
        self.narrows(client.attachments.len());
        Some(client)
    }

    /// Counts a client that has so many attachments.
    fn widens(&mut self, width: usize) {
        if width > 0 {
            *self.widths.entry(width).or_insert(0) += 1;
        }
    }

    /// The counterpart of [`Self::widens`].
    fn narrows(&mut self, width: usize) {
        if let Some(count) = self.widths.get_mut(&width) {
            *count -= 1;
            if *count == 0 {
                self.widths.remove(&width);
            }
        }
    }

    /// A hash over what decides whether two requests are granted alike.
    pub(super) fn hash(&self, wanted: &Wanted, scope: Scope) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        if scope != Scope::Connection {
            hasher.write(wanted.call.credential());
        }
        hasher.write(wanted.call.function());
        hasher.write_u8(0xff);
        hasher.write(wanted.call.version());
        hasher.finish()
    }

    /// Forgets the pins that no attachment uses: what they were granted has to be asked for again.
    pub(super) fn forget_idle_pins(&mut self) {
        self.table.values_mut().for_each(|client| client.forget_idle_pins());
    }

    /// The attachment that requests without an id use.
    pub(super) fn uses(&self, conn: ConnId, pin: usize) -> Option<Key> {
        self.table.get(&conn)?.pins.get(pin)?.attachment
    }

    /// A client has one attachment more.
    pub(super) fn own(&mut self, conn: ConnId, key: Key) {
        if let Some(client) = self.get_mut(conn) {
            client.own(key);
            let width = client.attachments.len();
            self.narrows(width - 1);
            self.widens(width);
        }
    }

    /// The counterpart of [`Self::own`].
    pub(super) fn disown(&mut self, conn: ConnId, key: Key) {
        if let Some(client) = self.get_mut(conn) {
            let before = client.attachments.len();
            client.attachments.retain(|other| *other != key);
            client.unpin(key);
            let width = client.attachments.len();
            self.narrows(before);
            self.widens(width);
        }
    }

    /// A question of a client has ended.
    pub(super) fn heard(&mut self, conn: ConnId, question: Key) {
        if let Some(client) = self.get_mut(conn) {
            client.questions.retain(|other| *other != question);
            if client.questions.is_empty() {
                // Few clients ask again: memory of their own is given back.
                client.questions.shrink_to_fit();
            }
        }
    }

    pub(super) fn unpin(&mut self, conn: ConnId, key: Key) {
        if let Some(client) = self.get_mut(conn) {
            client.unpin(key);
        }
    }

    /// Uses up what the pins of this attachment were granted. They serve the session they have, and
    /// are asked about again before another one.
    pub(super) fn spend(&mut self, conn: ConnId, key: Key) {
        let pins = self.get_mut(conn).map(|client| &mut client.pins);
        for pin in pins.into_iter().flatten().filter(|pin| pin.attachment == Some(key)) {
            pin.rules = USED_UP;
        }
    }

    /// A tunnel is to come for a client, or is there. Requests of this pin without an id use its
    /// attachment from now on, if they used none before.
    pub(super) fn pin(&mut self, conn: ConnId, pin: usize, key: Key) {
        if let Some(client) = self.get_mut(conn) {
            client.tunnels_seen += 1;
            if let Some(pin) = client.pins.get_mut(pin) {
                pin.attachment.get_or_insert(key);
            }
        }
    }

    /// As [`Self::pin`], for an attachment that a question to another core led to.
    pub(super) fn pin_asked(
        &mut self,
        conn: ConnId,
        called: Called<'_>,
        tenant: &Arc<str>,
        key: Key,
    ) {
        if let Some(client) = self.get_mut(conn) {
            client.tunnels_seen += 1;
            client.pin_asked(called, tenant, key);
        }
    }

    /// Whether a client may cause one more dispatch. If not: whole seconds until it may.
    pub(super) fn may_dispatch(
        &mut self,
        conn: ConnId,
        limits: &Limits,
        now: Time,
    ) -> Result<(), u32> {
        let (burst, rate) = (limits.dispatch_burst, limits.dispatch_rate);
        let bucket = self.get_mut(conn).map(|client| &mut client.dispatches);
        if let Some(bucket) = bucket
            && !bucket.has(burst, rate, now)
        {
            return Err(bucket.seconds_left(burst, rate, now));
        }
        Ok(())
    }

    /// Charges a client. A worker is asked for a new session; or the client asked for a session in
    /// vain, because there is none for it, or because it did not wait.
    pub(super) fn charge(&mut self, conn: Option<ConnId>) {
        if let Some(client) = conn.and_then(|conn| self.get_mut(conn)) {
            client.dispatches.charge();
        }
    }

    /// Gives a client back what it was charged.
    pub(super) fn give_back(&mut self, conn: Option<ConnId>) {
        if let Some(client) = conn.and_then(|conn| self.get_mut(conn)) {
            client.dispatches.give_back();
        }
    }

    pub(super) fn is_hasty(&self, conn: ConnId, limits: &Limits, now: Time) -> bool {
        self.get(conn).is_some_and(|client| client.is_hasty(limits, now))
    }

    /// A client's address, and when it was granted the owner's function.
    pub(super) fn met(&self, conn: ConnId, owner: &Owner) -> Option<Met> {
        let client = self.get(conn)?;
        let own = |pin: &&Pin| {
            pin.grant.owner.tenant == owner.tenant && pin.grant.owner.function == owner.function
        };
        let authorised = client.pins.iter().find(own).map(|pin| pin.granted_at);
        let Caller { peer, opened, .. } = client.caller;
        Some(Met { client: peer, at: opened, authorised })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty() && self.widths.is_empty()
    }

    /// The most attachments that one client has.
    pub(super) fn widest(&self) -> usize {
        self.widths.last_key_value().map_or(0, |(width, _)| *width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::port::Call;

    #[test]
    fn what_rests_is_small() {
        assert!(size_of::<Pin>() <= 80, "{}", size_of::<Pin>());
        // This size includes the client's first pin.
        assert!(size_of::<Client>() <= 200, "{}", size_of::<Client>());
        let attachment = size_of::<super::super::attachment::Attachment>();
        assert!(attachment <= 136, "{attachment}");
    }

    #[test]
    fn a_pin_knows_what_it_was_called_and_keeps_what_the_grant_does_not_say() {
        let id = "11111111-1111-4111-8111-111111111111";
        let owner = Owner::new("t".into(), id.into(), "v".into());
        let owner = Arc::new(owner);
        let plain = id.replace('-', "");
        let calls = [(id, "v", 3), (id, "", 3 + 36), (&plain, "v", 3 + 32 + 1), (id, "w", 3 + 37)];
        for (function, version, kept) in calls {
            let call = Arc::new(Call::new(b"key", function.as_bytes(), version.as_bytes()));
            let wanted = Wanted { call: call.clone(), id: None, window: None };
            let grant = Grant { owner: owner.clone() };
            let pin = Pin::new(&wanted, 0, grant, (Time::ZERO, 0));
            assert_eq!((pin.function(), pin.version()), (call.function(), call.version()));
            assert_eq!((pin.said.credential(), pin.said.octets.len()), (&b"key"[..], kept));
        }
    }
}
