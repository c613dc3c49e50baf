//! Sessions and pins as bytes, and back: for a later process, and for another node.

use std::fmt;
use std::sync::Arc;

use prost::Message;
use ringway_proto::id::{CORE_LIMIT, Node};
use uuid::Uuid;

use super::super::facts::Wanted;
use super::super::settings::ShardSettings;
use super::client::{Clients, Pin};
use super::directory::{Directory, Member, SessionEntry};
use crate::carry::{Kind, Unreadable, pack, time_of, unix_of, unpack};
use crate::control::local::{SessionFacts, Ticket};
use crate::control::port::{self as version, Call, Grant, Owner, Rate};
use crate::message::{MemberState, Speaks};
use crate::net::ConnId;

/// The rates, by their numbers as bytes.
const RATES: [Rate; 3] = [Rate::Unlimited, Rate::Beside, Rate::Before];

#[derive(Clone, PartialEq, Message)]
struct OwnerMessage {
    #[prost(string, tag = "1")]
    tenant: String,
    #[prost(string, tag = "2")]
    function: String,
    #[prost(string, tag = "3")]
    version: String,
    #[prost(string, tag = "4")]
    subject: String,
    #[prost(bool, tag = "5")]
    streaming: bool,
    #[prost(bool, tag = "6")]
    gfn: bool,
    /// A place in [`RATES`].
    #[prost(uint32, tag = "7")]
    rate: u32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionMessage {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    owner: Option<OwnerMessage>,
    #[prost(uint64, tag = "3")]
    opened: u64,
    #[prost(message, repeated, tag = "4")]
    members: Vec<MemberMessage>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct MemberMessage {
    #[prost(uint32, tag = "1")]
    node: u32,
    #[prost(uint32, tag = "2")]
    incarnation: u32,
    #[prost(uint32, tag = "3")]
    core: u32,
    #[prost(uint64, tag = "4")]
    number: u64,
    /// See [`state_numbered`].
    #[prost(uint32, tag = "5")]
    member_state: u32,
    /// For a tunnel that is on its way: the core where it was.
    #[prost(uint32, tag = "6")]
    from: u32,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct PinMessage {
    #[prost(bytes = "vec", tag = "1")]
    credential: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    function: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    version: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    owner: Option<OwnerMessage>,
    #[prost(uint64, tag = "5")]
    granted_at: u64,
    #[prost(uint32, tag = "6")]
    rules: u32,
}

impl fmt::Debug for PinMessage {
    // The credential is for no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinMessage").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl OwnerMessage {
    fn of(owner: &Owner) -> Self {
        let Owner { tenant, function, version, subject, kind } = owner;
        let version::Kind { streaming, gfn, rate } = *kind;
        let text = |text: &Arc<str>| text.to_string();
        Self {
            tenant: text(tenant),
            function: text(function),
            version: text(version),
            subject: text(subject),
            streaming,
            gfn,
            rate: RATES.iter().position(|known| *known == rate).unwrap_or(0) as u32,
        }
    }

    fn read(of: Option<Self>) -> Result<Arc<Owner>, Unreadable> {
        let Self { tenant, function, version, subject, streaming, gfn, rate } =
            of.ok_or(Unreadable::Part("owner"))?;
        let rate = *RATES.get(rate as usize).ok_or(Unreadable::Part("rate"))?;
        Ok(Arc::new(Owner {
            tenant: tenant.into(),
            function: function.into(),
            version: version.into(),
            subject: subject.into(),
            kind: version::Kind { streaming, gfn, rate },
        }))
    }
}

impl MemberMessage {
    fn of(member: &Member) -> Self {
        let Member { ticket, member_state } = *member;
        let (member_state, from) = number_of(member_state);
        Self {
            node: ticket.node.number().into(),
            incarnation: ticket.node.incarnation().into(),
            core: ticket.core.into(),
            number: ticket.number,
            member_state,
            from: from.into(),
        }
    }

    fn read(self) -> Result<Member, Unreadable> {
        let part = Unreadable::Part("member");
        let narrow = |number: u32| u16::try_from(number).map_err(|_| part.clone());
        let node = Node::new(narrow(self.node)?, narrow(self.incarnation)?);
        let (node, core, from) =
            (node.ok_or(part.clone())?, narrow(self.core)?, narrow(self.from)?);
        let member_state = state_numbered(self.member_state, from).ok_or(part.clone())?;
        if core >= CORE_LIMIT || from >= CORE_LIMIT {
            return Err(part);
        }
        Ok(Member { ticket: Ticket { node, core, number: self.number }, member_state })
    }
}

fn number_of(member_state: MemberState) -> (u32, u16) {
    match member_state {
        MemberState::Wanted => (1, 0),
        MemberState::Coming { from } => (2, from),
        MemberState::Open => (3, 0),
        MemberState::Spare => (4, 0),
        MemberState::Parked(Speaks::Http1) => (5, 0),
        MemberState::Parked(Speaks::Http2) => (6, 0),
        MemberState::Parked(Speaks::Any) => (7, 0),
    }
}

fn state_numbered(number: u32, from: u16) -> Option<MemberState> {
    match (number, from) {
        (1, 0) => Some(MemberState::Wanted),
        (2, from) => Some(MemberState::Coming { from }),
        (3, 0) => Some(MemberState::Open),
        (4, 0) => Some(MemberState::Spare),
        (5, 0) => Some(MemberState::Parked(Speaks::Http1)),
        (6, 0) => Some(MemberState::Parked(Speaks::Http2)),
        (7, 0) => Some(MemberState::Parked(Speaks::Any)),
        _ => None,
    }
}

impl SessionEntry {
    fn to_bytes(&self, zero: u64) -> Vec<u8> {
        let message = SessionMessage {
            id: self.id.as_bytes().to_vec(),
            owner: Some(OwnerMessage::of(&self.facts.owner)),
            opened: unix_of(self.facts.opened, zero),
            members: self.members.iter().map(MemberMessage::of).collect(),
        };
        pack(Kind::Session, &message)
    }

    fn from_bytes(bytes: &[u8], zero: u64) -> Result<Self, Unreadable> {
        let SessionMessage { id, owner, opened, members } = unpack(Kind::Session, bytes)?;
        let id = Uuid::from_slice(&id).map_err(|_| Unreadable::Part("id"))?;
        let facts =
            SessionFacts { owner: OwnerMessage::read(owner)?, opened: time_of(opened, zero) };
        let mut session = Self::new(id, facts);
        for member in members {
            let Member { ticket, member_state } = member.read()?;
            if session.members.iter().any(|other| other.ticket == ticket) {
                return Err(Unreadable::Part("member"));
            }
            session.set(ticket, member_state);
        }
        Ok(session)
    }
}

impl Pin {
    fn to_bytes(&self, zero: u64) -> Vec<u8> {
        let message = PinMessage {
            credential: self.credential().to_vec(),
            function: self.function().to_vec(),
            version: self.version().to_vec(),
            owner: Some(OwnerMessage::of(&self.grant.owner)),
            granted_at: unix_of(self.granted_at, zero),
            rules: self.rules,
        };
        pack(Kind::Pin, &message)
    }

    /// A pin without an attachment. `hash` is this process's own: no other one knows its key.
    fn from_bytes(
        bytes: &[u8],
        zero: u64,
        hash: impl FnOnce(&Wanted) -> u64,
    ) -> Result<Self, Unreadable> {
        let of: PinMessage = unpack(Kind::Pin, bytes)?;
        let call = Arc::new(Call::new(&of.credential, &of.function, &of.version));
        let wanted = Wanted { call, id: None, window: None };
        let grant = Grant { owner: OwnerMessage::read(of.owner)? };
        let granted = (time_of(of.granted_at, zero), of.rules);
        Ok(Self::new(&wanted, hash(&wanted), grant, granted))
    }
}

/// A session whose home is here, as bytes.
pub(super) fn session(
    directory: &Directory,
    settings: &ShardSettings,
    id: Uuid,
) -> Option<Vec<u8>> {
    let session = directory.get(id)?;
    Some(session.to_bytes(settings.unix_micros_at_zero))
}

/// A session that was elsewhere has its home here from now on.
pub(super) fn take_up_session(
    directory: &mut Directory,
    settings: &ShardSettings,
    bytes: &[u8],
) -> Result<Uuid, Unreadable> {
    let session = SessionEntry::from_bytes(bytes, settings.unix_micros_at_zero)?;
    let id = session.id;
    if directory.get(id).is_some() {
        return Err(Unreadable::Unwanted);
    }
    directory.insert(session);
    Ok(id)
}

/// The pins of a client's connection as bytes, each for itself.
pub(super) fn pins(clients: &Clients, settings: &ShardSettings, conn: ConnId) -> Vec<Vec<u8>> {
    let client = clients.get(conn);
    let pins = client.into_iter().flat_map(|client| &client.pins);
    pins.map(|pin| pin.to_bytes(settings.unix_micros_at_zero)).collect()
}

/// Takes up a pin on a connection that is known here, so that what its credential was granted
/// elsewhere need not be asked for again. The rules that granted it are not looked at: who takes a
/// pin up trusts its maker.
pub(super) fn take_up_pin(
    clients: &mut Clients,
    settings: &ShardSettings,
    conn: ConnId,
    bytes: &[u8],
) -> Result<(), Unreadable> {
    let (scope, most) = (settings.config.session.scope, settings.config.limits.attachments);
    let hash = |wanted: &Wanted| clients.hash(wanted, scope);
    let pin = Pin::from_bytes(bytes, settings.unix_micros_at_zero, hash)?;
    let client = clients.get_mut(conn).ok_or(Unreadable::Unwanted)?;
    let known = client.pins.iter().any(|other| {
        (other.credential(), other.function(), other.version())
            == (pin.credential(), pin.function(), pin.version())
    });
    if known || !client.grant(pin, most) {
        return Err(Unreadable::Unwanted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ringway_proto::time::Time;

    use super::*;

    const ZERO: u64 = 1_000_000;

    fn owner() -> Arc<Owner> {
        Arc::new(Owner {
            tenant: "t".into(),
            function: "f".into(),
            version: "v".into(),
            subject: "s".into(),
            kind: version::Kind { streaming: true, gfn: true, rate: Rate::Before },
        })
    }

    fn full() -> SessionEntry {
        let facts = SessionFacts { owner: owner(), opened: Time(77) };
        let mut session = SessionEntry::new(Uuid::from_u128(9), facts);
        let member_states = [
            MemberState::Wanted,
            MemberState::Coming { from: CORE_LIMIT - 1 },
            MemberState::Open,
            MemberState::Spare,
            MemberState::Parked(Speaks::Http1),
            MemberState::Parked(Speaks::Http2),
            MemberState::Parked(Speaks::Any),
        ];
        for (number, member_state) in member_states.into_iter().enumerate() {
            let node = Node::new(4095, number as u16).unwrap();
            let number = u64::MAX - number as u64;
            session.set(Ticket { node, core: CORE_LIMIT - 1, number }, member_state);
        }
        session
    }

    fn pin(called: (&[u8], &[u8])) -> Pin {
        let call = Arc::new(Call::new(b"very secret", called.0, called.1));
        let wanted = Wanted { call, id: None, window: None };
        let grant = Grant { owner: owner() };
        Pin::new(&wanted, 7, grant, (Time(5), 3))
    }

    /// Whatever end the bytes are cut at, and whatever bit is wrong: they are refused, or read as
    /// something else.
    fn is_read_strictly<T>(bytes: &[u8], read: impl Fn(&[u8]) -> Result<T, Unreadable>) {
        for end in 0..bytes.len() {
            let why = read(&bytes[..end]).err().expect("it is cut off");
            assert!(matches!(why, Unreadable::Short { there, .. } if there == end), "{why}");
        }
        let long = [bytes, b"x"].concat();
        assert_eq!(read(&long).err(), Some(Unreadable::Trailing(1)));
        for (at, why) in [(0, Unreadable::Version(0x41)), (1, Unreadable::Kind(0x41))] {
            let mut other = bytes.to_vec();
            other[at] = 0x41;
            assert_eq!(read(&other).err(), Some(why));
        }
        for at in 0..bytes.len() * 8 {
            let mut broken = bytes.to_vec();
            broken[at / 8] ^= 1 << (at % 8);
            if let Err(why) = read(&broken) {
                assert!(!why.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_session_is_the_same_again() {
        let session = full();
        let bytes = session.to_bytes(ZERO);
        let again = SessionEntry::from_bytes(&bytes, ZERO).unwrap();
        assert_eq!(format!("{again:?}"), format!("{session:?}"));
        let later = SessionEntry::from_bytes(&bytes, ZERO + 70).unwrap();
        assert_eq!(later.facts.opened, Time(7));
        is_read_strictly(&bytes, |bytes| SessionEntry::from_bytes(bytes, ZERO));
    }

    #[test]
    fn a_pin_is_the_same_again_and_shows_no_credential() {
        for called in [(&b"f"[..], &b"v"[..]), (b"F", b""), (b"f", b"")] {
            let pin = pin(called);
            let bytes = pin.to_bytes(ZERO);
            let hash = |wanted: &Wanted| {
                assert_eq!((wanted.call.function(), wanted.call.version()), called);
                7
            };
            let again = Pin::from_bytes(&bytes, ZERO, hash).unwrap();
            assert_eq!(format!("{again:?}"), format!("{pin:?}"));
            assert_eq!(again.credential(), b"very secret");
            let message: PinMessage = unpack(Kind::Pin, &bytes).unwrap();
            assert!(!format!("{message:?} {again:?}").contains("secret"));
            is_read_strictly(&bytes, |bytes| Pin::from_bytes(bytes, ZERO, |_| 7));
        }
    }

    #[test]
    fn a_member_that_cannot_be_is_refused() {
        let good = MemberMessage::of(&full().members[0]);
        assert!(good.read().is_ok());
        let wrong = [
            MemberMessage { node: 4096, ..good },
            MemberMessage { incarnation: 1 << 16, ..good },
            MemberMessage { core: u32::from(CORE_LIMIT), ..good },
            MemberMessage { member_state: 0, ..good },
            MemberMessage { member_state: 8, ..good },
            MemberMessage { member_state: 3, from: 1, ..good },
            MemberMessage { member_state: 2, from: u32::from(CORE_LIMIT), ..good },
        ];
        for member in wrong {
            assert_eq!(member.read().err(), Some(Unreadable::Part("member")), "{member:?}");
        }
        let (id, owner) = (vec![0; 16], Some(OwnerMessage::of(&owner())));
        let twice = SessionMessage { id, owner, opened: 0, members: vec![good, good] };
        let no_owner = SessionMessage { owner: None, members: Vec::new(), ..twice.clone() };
        let no_id = SessionMessage { id: vec![0; 15], ..no_owner.clone() };
        for (message, part) in [(twice, "member"), (no_owner, "owner"), (no_id, "id")] {
            let bytes = pack(Kind::Session, &message);
            assert_eq!(SessionEntry::from_bytes(&bytes, 0).err(), Some(Unreadable::Part(part)));
        }
    }
}
