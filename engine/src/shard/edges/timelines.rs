//! The timelines: what happened to each session on this core. They are kept for a while after the
//! session has left the core. Only edges are noted; a frame costs nothing
//! (`engine/tests/allocation.rs`).
//!
//! `limits.trace_records` bounds how many events are kept. When it is reached, the session that
//! left this core longest ago is forgotten. If all are still here, the one that came first is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use ringway_proto::time::Time;
use uuid::Uuid;

use crate::control::local::SessionFacts;
use crate::timeline::{Ask, Entry, Event, IdBegin, Part, Pings};

/// How long the events of a session are kept after its last one here.
const KEPT: Duration = Duration::from_secs(300);

/// Events kept of one session on this core: the first few, and the latest of the rest.
const EVENTS: usize = 64;
const FIRST: usize = 16;

/// Most sessions in one answer: the id that was asked for may be short and fit many.
const ANSWERED: usize = 8;

/// One session's events.
#[derive(Debug)]
struct Kept {
    place: ForgetOrder,
    /// Attachments of the session on this core.
    here: u32,
    facts: Option<SessionFacts>,
    entries: VecDeque<Entry>,
    pings: Option<Pings>,
    lost: u32,
    touched: Time,
}

/// The order in which sessions are forgotten: first those that have left this core, in the order
/// they left. Every session has one, so it is a single word. Its highest bit says that the session
/// is still here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ForgetOrder(u64);

impl ForgetOrder {
    const HERE: u64 = 1 << 63;

    fn new(here: bool, number: u64) -> Self {
        Self(if here { number | Self::HERE } else { number })
    }

    fn is_here(self) -> bool {
        self.0 & Self::HERE != 0
    }
}

/// The core that answers, and its clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoreTime {
    pub(super) core: u16,
    pub(super) now: Time,
    pub(super) unix_micros_at_zero: u64,
}

/// All timelines of a core.
#[derive(Debug)]
pub(super) struct Timelines {
    most: usize,
    records: usize,
    /// Boxed: a table of tables has many empty places.
    timelines: HashMap<Uuid, Box<Kept>, foldhash::fast::RandomState>,
    places: BTreeMap<ForgetOrder, Uuid>,
    next: u64,
}

impl Timelines {
    pub(super) fn new(most: usize) -> Self {
        Self { most, records: 0, timelines: HashMap::default(), places: BTreeMap::new(), next: 0 }
    }

    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// Keeps one event. True if another session had to be forgotten before its time.
    pub(super) fn note(&mut self, id: Uuid, entry: Entry, now: Time) -> bool {
        if self.most == 0 {
            return false;
        }
        self.forget_old(now);
        let forgot = self.make_room(id);
        let kept = self.timelines.entry(id).or_insert_with(|| {
            let place = ForgetOrder::new(false, self.next);
            self.next += 1;
            self.places.insert(place, id);
            Box::new(Kept::new(place))
        });
        let full = self.records >= self.most;
        self.records += usize::from(kept.keep(entry, full));
        kept.touched = now;
        let was = kept.here;
        match entry.event {
            Event::Asked(_) | Event::TunnelMoved { .. } => kept.here += 1,
            Event::Closed { .. } | Event::SpareFailed { .. } | Event::TunnelLeft { .. } => {
                kept.here = kept.here.saturating_sub(1);
            }
            _ => {}
        }
        if kept.here == 0 || was == 0 {
            // The latest to leave, or to be here, is the last to be forgotten.
            self.places.remove(&kept.place);
            kept.place = ForgetOrder::new(kept.here > 0, self.next);
            self.next += 1;
            self.places.insert(kept.place, id);
        }
        forgot
    }

    /// An attachment of the session begins here; `facts` say whose it is.
    pub(super) fn own(&mut self, id: Uuid, facts: SessionFacts) {
        if let Some(kept) = self.timelines.get_mut(&id) {
            kept.facts = Some(facts);
        }
    }

    /// A tunnel of the session has come here. Notes whose session it is, if that is not known yet.
    pub(super) fn meet(&mut self, id: Uuid, facts: SessionFacts) {
        if let Some(kept) = self.timelines.get_mut(&id) {
            kept.facts.get_or_insert(facts);
        }
    }

    /// How long before `at` the latest event of this kind was. Only for new sessions: what a worker
    /// is asked for a session that it has already says nothing of starts.
    pub(super) fn since(
        &self,
        id: Uuid,
        at: Time,
        wanted: impl Fn(Event) -> bool,
    ) -> Option<Duration> {
        let entries = &self.timelines.get(&id)?.entries;
        let asked = |entry: &&Entry| matches!(entry.event, Event::Asked(_));
        let new = entries.iter().rev().find(asked)?.event;
        if !matches!(new, Event::Asked(Ask::New | Ask::Dial)) {
            return None;
        }
        let found = entries.iter().rev().find(|entry| wanted(entry.event))?;
        Some(at.since(found.at))
    }

    /// The session's worker has answered a PING.
    pub(super) fn ponged(&mut self, id: Uuid, took: Duration, now: Time) {
        if let Some(kept) = self.timelines.get_mut(&id) {
            match &mut kept.pings {
                Some(pings) => pings.add(took, now),
                none => *none = Some(Pings::first(took, now)),
            }
        }
    }

    /// This core's part of the timelines of sessions whose id begins with `wanted`.
    pub(super) fn parts(&self, wanted: IdBegin, of: CoreTime) -> Vec<Part> {
        let part = |(id, kept): (Uuid, &Kept)| Part {
            core: of.core,
            id,
            facts: kept.facts.clone(),
            entries: kept.entries.iter().copied().collect(),
            pings: kept.pings,
            lost: kept.lost,
            now: of.now,
            unix_micros_at_zero: of.unix_micros_at_zero,
        };
        self.found(wanted, of.now).into_iter().map(part).collect()
    }

    /// Forgets the sessions whose time is over.
    fn forget_old(&mut self, now: Time) {
        while let Some((place, id)) = self.places.first_key_value() {
            let old = |kept: &Kept| kept.touched + KEPT <= now;
            if place.is_here() || !self.timelines.get(id).is_none_or(|kept| old(kept)) {
                return;
            }
            self.forget_first();
        }
    }

    fn make_room(&mut self, id: Uuid) -> bool {
        let mut forgot = false;
        while self.records >= self.most {
            if self.places.first_key_value().is_some_and(|(_, first)| *first == id) {
                // No other session can be forgotten before this one: so it loses its own events.
                return forgot;
            }
            self.forget_first();
            forgot = true;
        }
        forgot
    }

    fn forget_first(&mut self) {
        if let Some((_, id)) = self.places.pop_first()
            && let Some(kept) = self.timelines.remove(&id)
        {
            self.records -= kept.entries.len();
        }
    }

    fn found(&self, wanted: IdBegin, now: Time) -> Vec<(Uuid, &Kept)> {
        let fresh = |kept: &&Kept| kept.here > 0 || kept.touched + KEPT > now;
        if let Some(id) = wanted.whole() {
            let kept = self.timelines.get(&id).map(|kept| &**kept).filter(fresh);
            return kept.map(|kept| (id, kept)).into_iter().collect();
        }
        let matching = self.timelines.iter().filter(|(id, _)| wanted.matches(**id));
        let mut found: Vec<(Uuid, &Kept)> =
            matching.map(|(id, kept)| (*id, &**kept)).filter(|(_, kept)| fresh(kept)).collect();
        found.sort_unstable_by_key(|(_, kept)| std::cmp::Reverse(kept.place));
        found.truncate(ANSWERED);
        found
    }
}

impl Kept {
    fn new(place: ForgetOrder) -> Self {
        Self {
            place,
            here: 0,
            facts: None,
            entries: VecDeque::new(),
            pings: None,
            lost: 0,
            touched: Time::ZERO,
        }
    }

    /// True if the timeline grew by one event; false if another event had to go.
    fn keep(&mut self, entry: Entry, full: bool) -> bool {
        let full = full || self.entries.len() >= EVENTS;
        if full {
            self.entries.remove(FIRST.min(self.entries.len() - 1));
            self.lost = self.lost.saturating_add(1);
        }
        if self.entries.len() == self.entries.capacity() {
            // There are many sessions, and most have a handful of events.
            self.entries.reserve_exact((self.entries.len() / 4).max(2));
        }
        self.entries.push_back(entry);
        !full
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{CloseCode, CloseReason};
    use crate::timeline::{Party, Timer};

    const CLOSED: Event = Event::Closed {
        side: Party::Client,
        reason: CloseReason::ClientClosed,
        code: CloseCode::None,
        timer: Timer::NONE,
        detail: "",
    };

    fn id(number: u64) -> Uuid {
        Uuid::from_u128(u128::from(number) << 64 | 1 << 127)
    }

    fn seconds(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn note(timelines: &mut Timelines, number: u64, at: u64, event: Event) -> bool {
        timelines.note(id(number), Entry { at: seconds(at), event }, seconds(at))
    }

    fn kept(timelines: &Timelines, number: u64, at: u64) -> Vec<Event> {
        let begin = IdBegin::parse(&id(number).to_string()).expect("an id");
        let found = timelines.found(begin, seconds(at));
        found.iter().flat_map(|(_, kept)| kept.entries.iter().map(|entry| entry.event)).collect()
    }

    #[test]
    fn events_stay_a_while_after_the_close_and_no_longer() {
        let mut timelines = Timelines::new(100);
        note(&mut timelines, 1, 10, Event::Asked(Ask::New));
        note(&mut timelines, 2, 10, Event::Asked(Ask::New));
        note(&mut timelines, 1, 11, CLOSED);
        assert_eq!(kept(&timelines, 1, 310).len(), 2);
        assert!(kept(&timelines, 1, 311).is_empty(), "its time is over");
        assert_eq!(kept(&timelines, 2, 100_000).len(), 1, "it is still here");
        note(&mut timelines, 3, 400, Event::Asked(Ask::New));
        assert_eq!(
            (timelines.records(), timelines.timelines.len(), timelines.places.len()),
            (2, 2, 2)
        );
    }

    #[test]
    fn who_left_longest_ago_makes_room_then_who_has_been_here_longest() {
        let mut timelines = Timelines::new(4);
        note(&mut timelines, 1, 1, Event::Asked(Ask::New));
        note(&mut timelines, 2, 2, Event::Asked(Ask::New));
        note(&mut timelines, 2, 3, CLOSED);
        assert!(!note(&mut timelines, 3, 4, Event::Asked(Ask::New)));
        assert!(note(&mut timelines, 4, 5, Event::Asked(Ask::New)), "2 has gone");
        assert!(kept(&timelines, 2, 5).is_empty());
        note(&mut timelines, 5, 6, Event::Asked(Ask::New));
        assert!(note(&mut timelines, 6, 7, Event::Asked(Ask::New)), "1 has been here longest");
        assert!(kept(&timelines, 1, 7).is_empty());
        assert_eq!((timelines.records(), kept(&timelines, 3, 7).len()), (4, 1));
    }

    #[test]
    fn one_session_keeps_its_first_events_and_the_latest() {
        let mut timelines = Timelines::new(1000);
        note(&mut timelines, 1, 0, Event::Asked(Ask::New));
        for at in 1..1000 {
            let took = Duration::from_secs(at);
            note(&mut timelines, 1, at, Event::Stalled { side: Party::Client, took });
        }
        let events = kept(&timelines, 1, 1000);
        assert_eq!((events.len(), timelines.records()), (EVENTS, EVENTS));
        assert_eq!(events[0], Event::Asked(Ask::New));
        let took = Duration::from_secs(999);
        assert_eq!(events.last(), Some(&Event::Stalled { side: Party::Client, took }));
        assert_eq!(timelines.timelines[&id(1)].lost, 1000 - EVENTS as u32);
    }

    #[test]
    fn a_recorder_smaller_than_one_session_holds_to_its_limit() {
        for most in [1, 2, 20] {
            let mut timelines = Timelines::new(most);
            for at in 0..100 {
                note(&mut timelines, at % 3, at, Event::Asked(Ask::New));
                assert!(timelines.records() <= most, "{most}: {}", timelines.records());
            }
            assert!(timelines.records() > 0);
        }
        let mut off = Timelines::new(0);
        note(&mut off, 1, 1, Event::Asked(Ask::New));
        assert_eq!((off.records(), off.timelines.len()), (0, 0));
    }

    #[test]
    fn a_short_id_finds_the_latest_few() {
        let mut timelines = Timelines::new(1000);
        for number in 0..100 {
            note(&mut timelines, number, number, Event::Asked(Ask::New));
        }
        let begin = IdBegin::parse("80000000").expect("digits");
        let found = timelines.found(begin, seconds(100));
        assert_eq!(found.len(), ANSWERED);
        assert_eq!(found[0].0, id(99));
    }
}
