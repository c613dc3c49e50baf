//! What a gateway does about its name among the others, decided without I/O and without a clock
//! (design 3.22). The answers of the bucket go in, and what is to be asked next comes out.
//!
//! ```text
//! Drawing ──▶ Entering ──▶ Resting
//!    ▲  taken     │
//!    └────────────┘
//!            the same connection
//! Resting ─┬─────────────────────▶ Refreshing ──▶ Resting, or Looking: the record is not as it was
//!          └─────────────────────▶ Doubting ────▶ Refreshing, or as from Looking
//!            another connection
//! Looking ──▶ PuttingBack, or EnteringAgain, or Resting: another run's record is there
//!
//! Leaving, LeavingLooks ──▶ Left
//! ```
//!
//! A gateway that runs keeps its pair, whatever becomes of the record: ids of its own are out under that
//! pair. The gateway writes over three things only: its own record, what is no record at all, and a
//! record that nobody has refreshed for the time that one lives.
//!
//! A bucket that was emptied begins its revisions anew. A revision from before may then be another
//! run's. So our record is read again after each new connection, before it is written or taken away.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::super::withdraw::Trouble;
use super::known::{Found, Known, Liveness, Look, Looker, is_within};
use super::record::{Addresses, Pace, Record, claimed_run, read};
use crate::keys::Keys;

/// Pairs drawn before it is given up that one is free: of 2^28, the first one nearly always is.
const MOST_DRAWS: usize = 16;
/// Looks at what is there instead of our record, beside the first one, until the next refresh.
const MORE_LOOKS: u8 = 1;

/// What the bucket is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Write a record over this revision, or where there is no record.
    Put { node: Node, over: Option<u64>, bytes: Bytes },
    /// Say which record is there.
    Read(Node),
    /// Take the record of this revision away.
    Delete { node: Node, revision: u64 },
}

/// What is to be done next about the own record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another pair is to be drawn: [`Claims::drawn`].
    Draw,
    /// The bucket is asked, and [`Claims::heard`] hears what it says.
    Ask(Ask),
    /// The connection was lost meanwhile. [`Claims::again`] goes on in a moment.
    Pause,
    /// There is nothing to do until [`Claims::due`].
    Rest,
}

/// What the bucket says.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    /// The record was written or taken away, with this revision.
    Done(u64),
    /// Another record is there than the asker expects.
    Refused,
    /// These octets are there, with their revision; or nothing is.
    Found(Option<(Bytes, u64)>),
    /// There is no answer.
    Failed(Trouble),
}

/// What the log is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A record cannot be read.
    Unreadable(Node, &'static str),
    /// The own record cannot be entered.
    Trouble(String),
    /// The own pair is somebody else's.
    Taken,
}

/// What is being done about the own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Another pair is drawn. So many attempts are left.
    Drawing(usize),
    /// The pair is entered for the first time.
    Entering(usize),
    /// The connection was lost while the pair was entered.
    Pausing(usize),
    Resting,
    Refreshing,
    /// The record is read because the connection is another one than before.
    Doubting,
    /// The record was not there as we knew it, and is read. So many more looks are left until the
    /// next refresh.
    Looking(u8),
    /// The record is written over this revision of something else.
    PuttingBack(u64, u8),
    EnteringAgain(u8),
    /// The record is taken away, if it has this revision.
    Leaving(u64),
    /// The record is read, because its revision is not known.
    LeavingLooks,
    Left,
}

/// The own record.
#[derive(Debug, Default)]
struct Presence {
    revision: Option<u64>,
    /// The number of the record's stay in the bucket, if it is there as far as we know. A stay ends
    /// when the record was gone.
    spell: Option<u64>,
    spells: u64,
    /// When the record was refreshed last.
    last: Option<Time>,
    /// Another run's record under our pair.
    other: Option<Other>,
    /// The trouble that is in the log already.
    told: Option<Told>,
}

/// Another run's record under our pair.
#[derive(Clone, Copy, Debug)]
struct Other {
    run: u64,
    revision: u64,
    /// How long the record was there unchanged, at least.
    stood: Duration,
    /// When the record was seen last.
    last: Time,
}

/// A gateway's name among the others, and what it knows of them.
#[derive(Debug)]
pub(super) struct Claims {
    me: Node,
    record: Record,
    keys: Option<Arc<Keys>>,
    pace: Pace,
    doing: Doing,
    presence: Presence,
    /// The connection by which our record was refreshed last.
    connection: Option<u64>,
    /// The latest time that was given.
    latest: Time,
    known: Known,
    told: Vec<Told>,
}

impl Claims {
    /// The claim of a gateway that is to enter this pair.
    pub(super) fn new(me: Node, record: Record, keys: Option<Arc<Keys>>, pace: Pace) -> Self {
        Self {
            me,
            record,
            keys,
            pace,
            doing: Doing::Entering(MOST_DRAWS),
            presence: Presence::default(),
            connection: None,
            latest: Time::ZERO,
            known: Known::default(),
            told: Vec::new(),
        }
    }

    /// The pair, which stays once [`Self::settle`] was called.
    pub(super) fn me(&self) -> Node {
        self.me
    }

    /// What is to be done next about the own record. `at`: where others reach this gateway now.
    pub(super) fn next(&self, at: &Addresses) -> Next {
        let node = self.me;
        let put = |over| {
            let bytes = self.record.written(node, at, self.keys.as_deref());
            Next::Ask(Ask::Put { node, over, bytes })
        };
        match self.doing {
            Doing::Drawing(_) => Next::Draw,
            Doing::Pausing(_) => Next::Pause,
            Doing::Entering(_) | Doing::EnteringAgain(_) => put(None),
            Doing::Refreshing => put(self.presence.revision),
            Doing::PuttingBack(over, _) => put(Some(over)),
            Doing::Doubting | Doing::Looking(_) | Doing::LeavingLooks => Next::Ask(Ask::Read(node)),
            Doing::Leaving(revision) => Next::Ask(Ask::Delete { node, revision }),
            Doing::Resting | Doing::Left => Next::Rest,
        }
    }

    /// This pair was drawn instead of one that is taken.
    pub(super) fn drawn(&mut self, node: Node) {
        if let Doing::Drawing(left) = self.doing {
            self.me = node;
            self.doing = if left > 0 { Doing::Entering(left) } else { Doing::Resting };
        }
    }

    /// The pair is entered once more after the connection was lost.
    pub(super) fn again(&mut self) {
        if let Doing::Pausing(left) = self.doing {
            self.doing = Doing::Entering(left);
        }
    }

    /// The pair is kept from now on, entered or not.
    pub(super) fn settle(&mut self) {
        self.doing = Doing::Resting;
    }

    /// The record is to be refreshed: it is time, a connection is there again, or the keys are others.
    /// `connection`: the one that there is.
    pub(super) fn due(&mut self, connection: Option<u64>) {
        if self.doing == Doing::Resting {
            let same = self.connection == connection;
            self.connection = connection;
            if !same {
                self.presence.other = None;
            }
            self.doing = if same { Doing::Refreshing } else { Doing::Doubting };
        }
    }

    /// Records are signed with these keys from now on, and proved by them.
    pub(super) fn replace(&mut self, keys: Option<Arc<Keys>>) {
        let [before, now] = [&self.keys, &keys].map(|keys| keys.as_ref().map(Arc::as_ptr));
        if before != now {
            self.keys = keys;
            self.known.doubt();
        }
    }

    /// The gateway ends: its record is to be taken away. `connection`: the one that there is.
    pub(super) fn leave(&mut self, connection: Option<u64>) {
        let doubts = self.doing == Doing::Doubting || self.connection != connection;
        self.doing = match self.presence.revision.take() {
            Some(revision) if !doubts => Doing::Leaving(revision),
            // Whether the record is there, and with which revision, is not known.
            _ => Doing::LeavingLooks,
        };
        self.presence.spell = None;
    }

    /// What the bucket says to the latest [`Ask`].
    pub(super) fn heard(&mut self, heard: Heard, now: Time) {
        self.passes(now);
        self.doing = match (self.doing, heard) {
            (Doing::Entering(left), heard) => self.entering(left, heard, now),
            (Doing::Leaving(_), Heard::Refused) => Doing::LeavingLooks,
            (Doing::LeavingLooks, Heard::Found(Some((bytes, revision)))) => {
                // The record was refreshed as the gateway began to leave.
                let own = claimed_run(&bytes) == Some(self.record.run());
                if own { Doing::Leaving(revision) } else { Doing::Left }
            }
            (Doing::Leaving(_) | Doing::LeavingLooks | Doing::Left, _) => Doing::Left,
            (Doing::Refreshing, Heard::Done(revision)) => {
                let still = self.presence.revision.is_some();
                self.is_here(revision, still, now)
            }
            (Doing::PuttingBack(..) | Doing::EnteringAgain(_), Heard::Done(revision)) => {
                self.is_here(revision, false, now)
            }
            (Doing::Doubting, Heard::Found(Some((bytes, revision))))
                if claimed_run(&bytes) == Some(self.record.run()) =>
            {
                if self.presence.revision.replace(revision) != Some(revision) {
                    self.presence.spell = None;
                }
                Doing::Refreshing
            }
            (_, Heard::Failed(trouble @ (Trouble::Down | Trouble::Denied))) => {
                self.is_away(&trouble)
            }
            // Servers do not all report another revision in the same way.
            (Doing::Refreshing, _) => Doing::Looking(MORE_LOOKS),
            (Doing::Doubting, Heard::Found(found)) => self.found(found, MORE_LOOKS, now),
            (Doing::Looking(left), Heard::Found(found)) => self.found(found, left, now),
            // The record has changed since the look: its life has ended, or a request of ours from
            // before has arrived late. One more look finds that out. Who writes on and on is not raced
            // with.
            (Doing::PuttingBack(_, left) | Doing::EnteringAgain(left), Heard::Refused) => {
                self.presence.spell = None;
                left.checked_sub(1).map_or(Doing::Resting, Doing::Looking)
            }
            (_, Heard::Failed(trouble)) => self.is_away(&trouble),
            (doing, _) => doing,
        };
    }

    /// Draws the conclusions of an answer while the pair is entered for the first time.
    fn entering(&mut self, left: usize, heard: Heard, now: Time) -> Doing {
        let left = left.saturating_sub(1);
        match heard {
            Heard::Done(revision) => self.is_here(revision, false, now),
            Heard::Refused => Doing::Drawing(left),
            Heard::Failed(Trouble::Down) if left > 0 => Doing::Pausing(left),
            Heard::Failed(trouble) => self.is_away(&trouble),
            Heard::Found(_) => Doing::Entering(left),
        }
    }

    /// Says what to do about what is there in place of the record that we knew. NATS came back without
    /// it, or an answer was lost.
    fn found(&mut self, found: Option<(Bytes, u64)>, left: u8, now: Time) -> Doing {
        // The revision that we knew is not there. If the bucket has begun its revisions anew, another
        // run's record may get it.
        self.presence.revision = None;
        let Some((bytes, revision)) = &found else {
            self.presence.spell = None;
            self.presence.other = None;
            return Doing::EnteringAgain(left);
        };
        let put_back = Doing::PuttingBack(*revision, left);
        if let Err(why) = read(self.keys.as_ref(), (&self.me.to_string(), bytes)) {
            self.told.push(Told::Unreadable(self.me, why));
        }
        match claimed_run(bytes) {
            // Something that is of no gateway keeps nobody's name.
            None => put_back,
            // Our own record, whose answer was lost, has lived for a while, so it is written again at
            // once. The same is done if somebody says falsely that a record is ours.
            Some(run) if run == self.record.run() => put_back,
            Some(run) if self.is_stale(run, *revision, now) => put_back,
            Some(_) => self.is_taken(),
        }
    }

    /// Whether nobody has refreshed another run's record for the time that a record lives. A clock may
    /// jump, so no more than a refresh's time counts between two looks.
    fn is_stale(&mut self, run: u64, revision: u64, now: Time) -> bool {
        let before = self.presence.other;
        let before = before.filter(|other| (other.run, other.revision) == (run, revision));
        let stood = before.map_or(Duration::ZERO, |other| {
            other.stood + now.since(other.last).min(self.pace.refresh)
        });
        self.presence.other = Some(Other { run, revision, stood, last: now });
        stood >= self.pace.ttl
    }

    /// Our record is there; `still`: as it was before.
    fn is_here(&mut self, revision: u64, still: bool, now: Time) -> Doing {
        let presence = &mut self.presence;
        // A record that was not refreshed for so long may have been gone meanwhile.
        let unbroken =
            still && presence.last.is_some_and(|last| is_within(last, now, self.pace.ttl));
        if !unbroken || presence.spell.is_none() {
            presence.spells += 1;
            presence.spell = Some(presence.spells);
        }
        presence.last = Some(now);
        presence.revision = Some(revision);
        presence.other = None;
        presence.told = None;
        Doing::Resting
    }

    fn is_away(&mut self, trouble: &Trouble) -> Doing {
        // With a server gone there is nothing to say that the connection does not say, and a missing
        // right is logged with what it costs, where it is noticed.
        if !matches!(trouble, Trouble::Down | Trouble::Denied) {
            self.tell(Told::Trouble(trouble.to_string()));
        }
        if self.doing == Doing::Doubting {
            self.connection = None;
        }
        Doing::Resting
    }

    /// Another gateway has drawn the same pair while our record was not there. Ids of ours are out under
    /// the pair, so it is kept.
    fn is_taken(&mut self) -> Doing {
        self.presence.spell = None;
        self.tell(Told::Taken);
        Doing::Resting
    }

    /// Tells the log once, until all is well again.
    fn tell(&mut self, told: Told) {
        if self.presence.told.as_ref() != Some(&told) {
            self.presence.told = Some(told.clone());
            self.told.push(told);
        }
    }

    /// What the log is to be told, each thing once.
    pub(super) fn told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// Whether the own record was ever in the bucket, of a gateway that does not leave.
    pub(super) fn was_entered(&self) -> bool {
        let leaves = matches!(self.doing, Doing::Leaving(_) | Doing::LeavingLooks | Doing::Left);
        self.presence.spells > 0 && !leaves
    }

    /// The number of the own record's stay in the bucket; none if the record may be gone by now.
    pub(super) fn spell(&self, now: Time) -> Option<u64> {
        let Presence { spell, last, .. } = self.presence;
        let fresh = last.is_some_and(|last| is_within(last, now, self.pace.ttl));
        spell.filter(|_| fresh)
    }

    /// What is known of a node without asking.
    pub(super) fn known(&mut self, node: Node, now: Time) -> Option<Liveness> {
        self.passes(now);
        if node == self.me {
            return Some(Liveness::Live(self.record.clone()));
        }
        self.known.believed(node, now, self.pace).cloned()
    }

    /// A node's record is read; [`Self::looked`] hears what it is.
    pub(super) fn look(&mut self, node: Node, now: Time) -> Look {
        self.passes(now);
        self.known.look(node, now)
    }

    /// Notes the time. What a clock that has jumped back makes young again is not believed.
    fn passes(&mut self, now: Time) {
        if now < self.latest {
            self.known.doubt();
        }
        self.latest = now;
    }

    /// Draws the conclusions of a look: a node's record was found, or none, or there was no answer.
    pub(super) fn looked(
        &mut self,
        look: Look,
        found: Result<Option<Bytes>, Trouble>,
        now: Time,
    ) -> Liveness {
        let found = match found {
            Ok(Some(bytes)) => match read(self.keys.as_ref(), (&look.node.to_string(), &bytes)) {
                Ok(record) => Found::Record(record),
                Err(why) => {
                    self.told.push(Told::Unreadable(look.node, why));
                    Found::Unreadable
                }
            },
            Ok(None) => Found::Nothing,
            Err(_) => Found::Unsaid,
        };
        self.passes(now);
        let (spell, worker, pace) = (self.spell(now), &*self.record.worker, self.pace);
        self.known.looked(look, found, Looker { spell, worker, pace }, now)
    }

    /// Nodes whose records are missing, and are to be looked for at each refresh.
    pub(super) fn missed(&self) -> Vec<Node> {
        self.known.missed()
    }

    /// The records of others that are believed.
    #[cfg(test)]
    pub(super) fn table(&self) -> impl Iterator<Item = (Node, &Record)> {
        self.known.table()
    }
}
