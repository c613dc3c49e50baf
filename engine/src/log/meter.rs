//! Limits the lines that a peer can cause as often as it likes. Of each address the first ones are
//! written, then one a second that says how many were left out. Lines of sessions that were served
//! within what admission allows are always written.
//!
//! An address is hashed to one of a fixed number of slots. So memory does not grow, and addresses
//! of one slot share its lines. Cores share the slots, but use them only for such lines.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slots for addresses.
const SLOTS: usize = 64;

/// Lines of one address at once, and the time after which there may be one more.
const BURST: u64 = 20;
const PAUSE: Duration = Duration::from_secs(1);

/// The same for each kind of line, so that one kind leaves room for the others.
const KIND_BURST: u64 = 10;
const KIND_PAUSE: Duration = Duration::from_secs(2);

/// If no line of a kind came for this long, a line of its own says how many were left out.
const QUIET: Duration = Duration::from_secs(4);

/// Kinds of lines that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Requests that got no session.
    OpenFailed,
    /// Worker CONNECTs that were refused.
    Rejected,
    /// Connections that broke a rule.
    ConnectionFailed,
    /// Sessions that got no worker, and those over what admission allows.
    Session,
}

impl Kind {
    pub(super) const ALL: [Self; 4] =
        [Self::OpenFailed, Self::Rejected, Self::ConnectionFailed, Self::Session];

    /// As the lines say that others were left out.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OpenFailed => "failed to open stateful work request",
            Self::Rejected => "rejecting worker CONNECT",
            Self::ConnectionFailed => "closing connection for a protocol fault",
            Self::Session => "worker connection",
        }
    }
}

/// Lines at once and a pause for each, as the time in microseconds at which all of them may be
/// written again.
#[derive(Debug)]
struct Bucket(AtomicU64);

impl Bucket {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes so many lines of `burst`, if there are as many.
    fn take(&self, lines: u64, (burst, pause): (u64, Duration), now: u64) -> bool {
        let pause = micros(pause);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let full_at = full_at.max(now) + lines * pause;
            (full_at <= now + burst * pause).then_some(full_at)
        });
        taken.is_ok()
    }

    fn give_back(&self, lines: u64, pause: Duration) {
        self.0.fetch_sub(lines * micros(pause), Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Share {
    bucket: Bucket,
    left_out: AtomicU64,
    /// When the last line of the kind was asked for, in microseconds.
    asked_at: AtomicU64,
}

impl Share {
    const fn new() -> Self {
        Self { bucket: Bucket::new(), left_out: AtomicU64::new(0), asked_at: AtomicU64::new(0) }
    }
}

/// One slot: the lines of the addresses that share it.
#[derive(Debug)]
struct Slot {
    all: Bucket,
    kinds: [Share; Kind::ALL.len()],
}

impl Slot {
    const fn new() -> Self {
        Self { all: Bucket::new(), kinds: [const { Share::new() }; Kind::ALL.len()] }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Meter {
    slots: [Slot; SLOTS],
}

impl Meter {
    pub(super) const fn new() -> Self {
        Self { slots: [const { Slot::new() }; SLOTS] }
    }

    /// Whether a record of so many lines may be written, `now` in microseconds of any clock: then
    /// how many records of its kind were left out before it.
    pub(super) fn pass(&self, from: IpAddr, kind: Kind, lines: u64, now: u64) -> Option<u64> {
        let slot = &self.slots[slot_of(from)];
        let share = &slot.kinds[kind as usize];
        share.asked_at.store(now, Ordering::Relaxed);
        if share.bucket.take(lines, (KIND_BURST, KIND_PAUSE), now) {
            if slot.all.take(lines, (BURST, PAUSE), now) {
                return Some(share.left_out.swap(0, Ordering::Relaxed));
            }
            share.bucket.give_back(lines, KIND_PAUSE);
        }
        share.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// What was left out and nothing has told since: kinds and how many.
    pub(super) fn untold(&self, now: u64, mut tell: impl FnMut(Kind, u64)) {
        for slot in &self.slots {
            for (kind, share) in Kind::ALL.iter().zip(&slot.kinds) {
                let waits = share.left_out.load(Ordering::Relaxed) > 0;
                let quiet = share.asked_at.load(Ordering::Relaxed) + micros(QUIET) <= now;
                if waits && quiet && slot.all.take(1, (BURST, PAUSE), now) {
                    tell(*kind, share.left_out.swap(0, Ordering::Relaxed));
                }
            }
        }
    }
}

/// Microseconds since the first call.
pub(super) fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    micros(START.get_or_init(Instant::now).elapsed())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn slot_of(from: IpAddr) -> usize {
    let mut hasher = DefaultHasher::new();
    match from.to_canonical() {
        IpAddr::V4(address) => address.octets().hash(&mut hasher),
        // A host has a whole /64 network of IPv6, so the address within it does not count.
        IpAddr::V6(address) => address.segments()[..4].hash(&mut hasher),
    }
    (hasher.finish() % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const SECOND: u64 = 1_000_000;

    /// Lines that pass of 1 000 a second of each kind for so many seconds.
    fn flood(meter: &Meter, kinds: &[Kind], lines: u64, from: u64, seconds: u64) -> u64 {
        let mut passed = 0;
        for n in 0..seconds * 1_000 {
            for kind in kinds {
                let now = from + n * 1_000;
                passed += meter.pass(HERE, *kind, lines, now).map_or(0, |_| lines);
            }
        }
        passed
    }

    #[test]
    fn an_address_has_its_first_lines_and_then_one_a_second() {
        for kinds in [&Kind::ALL[..1], &Kind::ALL[..2], &Kind::ALL[..]] {
            for lines in [1, 3] {
                let meter = Meter::new();
                let passed = flood(&meter, kinds, lines, SECOND, 60);
                assert!((20..=80).contains(&passed), "{kinds:?} {lines}: {passed}");
                // Waiting for a while gives no more lines.
                let passed = flood(&meter, kinds, lines, 3_600 * SECOND, 10);
                assert!((9..=30).contains(&passed), "{kinds:?} {lines}: {passed}");
            }
        }
    }

    #[test]
    fn who_floods_with_one_kind_leaves_room_for_another() {
        let meter = Meter::new();
        flood(&meter, &[Kind::OpenFailed], 1, SECOND, 60);
        assert!(meter.pass(HERE, Kind::Rejected, 1, 61 * SECOND).is_some());
        let far = IpAddr::from([192, 0, 2, 7]);
        assert_ne!(slot_of(far), slot_of(HERE), "else the test needs another address");
        assert!(meter.pass(far, Kind::OpenFailed, 1, 61 * SECOND).is_some());
    }

    #[test]
    fn what_was_left_out_is_counted_and_told_once() {
        let meter = Meter::new();
        let mut told = 0;
        let mut passed = 0;
        for n in 0..30_000 {
            if let Some(left_out) = meter.pass(HERE, Kind::OpenFailed, 1, SECOND + n * 1_000) {
                told += left_out;
                passed += 1;
            }
        }
        let mut late = Vec::new();
        meter.untold(32 * SECOND, |kind, left_out| late.push((kind, left_out)));
        assert_eq!(late, [], "it may go on");
        meter.untold(36 * SECOND, |kind, left_out| late.push((kind, left_out)));
        meter.untold(99 * SECOND, |kind, left_out| late.push((kind, left_out)));
        assert_eq!(late.len(), 1);
        assert_eq!(late[0].0, Kind::OpenFailed);
        assert_eq!(passed + told + late[0].1, 30_000);
    }

    #[test]
    fn an_ipv6_network_is_one_and_a_mapped_address_is_itself() {
        let one: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let other: IpAddr = "2001:db8:1:2:ffff::9".parse().unwrap();
        assert_eq!(slot_of(one), slot_of(other));
        assert_eq!(slot_of("::ffff:127.0.0.1".parse().unwrap()), slot_of(HERE));
    }
}
