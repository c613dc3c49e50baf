//! Which core serves a client's fresh connection: the one that accepted it, unless that one is
//! clearly busier than another.
//!
//! The kernel deals connections out by a hash. That is even for many connections, but not for a
//! few: half the time two connections share one of two cores. A connection can go to another core
//! once, before its first read, while it is only a descriptor. After that it stays.
//!
//! A hand-over costs about as much as waking a core, so it must pay. For few connections any
//! difference counts. For many the difference must be above an eighth, which a fair hash hardly
//! makes. The number of short connections says little, so a budget bounds the hand-overs that they
//! cause. A connection on its way to a core counts as that core's, so that a burst is not thrown
//! back and forth.
//!
//! If several cores share a queue, the kernel does not deal: the core that looks first takes all
//! connections that wait. Then the budget does not count, because a hand-over is the only way to
//! the other cores.

use ringway_proto::time::Time;

use crate::mailbox::Sender;
use crate::message::ShardMessage;

/// Hand-overs allowed at once, and the time until one more is allowed.
const BURST: u32 = 64;
const REFILL_MICROS: u64 = 10_000;
/// For how long a core measures how busy it is.
const WINDOW_MICROS: u64 = 100_000;
/// A core that has not measured for this long sleeps.
const STALE_MILLIS: u32 = 250;
/// A core that has no more connections than another one hands one over only if it is busier by this
/// many percentage points.
const BUSIER: u8 = 30;
/// Cores looked at for one connection. If there are more, the next connection looks at the next
/// ones.
const LOOKED_AT: usize = 8;

/// How much a core has to do, packed into one number that other cores can read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Client connections: 23 bits.
    clients: u32,
    /// Whether the core takes no more clients: 1 bit.
    closed: bool,
    /// Share of the time in which the core was not idle, in percent: 8 bits.
    busy: u8,
    /// When that was measured, in milliseconds of the process's time: 32 bits.
    at: u32,
}

const MOST_CLIENTS: u32 = (1 << 23) - 1;

impl Load {
    fn word(self) -> u64 {
        let clients = self.clients.min(MOST_CLIENTS) << 1 | u32::from(self.closed);
        u64::from(clients) << 40 | u64::from(self.busy) << 32 | u64::from(self.at)
    }

    fn of(word: u64, now: Time) -> Self {
        let (clients, busy, at) = ((word >> 40) as u32, (word >> 32) as u8, word as u32);
        let stale = millis(now).wrapping_sub(at) > STALE_MILLIS;
        let busy = if stale { 0 } else { busy };
        Self { clients: clients >> 1, closed: clients & 1 == 1, busy, at }
    }

    /// Whether a new connection is better off with `other`, which must take clients.
    fn yields_to(self, other: Self) -> bool {
        let more = self.clients > other.clients + other.clients / 8;
        let busier = self.busy >= other.busy.saturating_add(BUSIER);
        more || (busier && self.clients >= other.clients)
    }
}

fn millis(now: Time) -> u32 {
    (now.0 / 1_000) as u32
}

/// One core's view of the others.
#[derive(Debug)]
pub(super) struct Balance {
    own: usize,
    /// Whether the kernel does not deal, because cores share a queue.
    deals: bool,
    load: Load,
    shown: u64,
    /// The window being measured: its begin, and how long the core had been idle by then.
    since: Option<(Time, u64)>,
    /// Hand-overs spent of the budget, and since when the budget refills.
    spent: u32,
    refilled: Time,
    /// Where to look next.
    next: usize,
}

impl Balance {
    /// `deals` says that the kernel does not deal, because cores share a queue.
    pub(super) fn new(own: usize, deals: bool) -> Self {
        Self {
            own,
            deals,
            load: Load::default(),
            shown: 0,
            since: None,
            spent: 0,
            refilled: Time::ZERO,
            next: 0,
        }
    }

    /// The core leaves: it hands no connection over any more, and takes none.
    pub(super) fn close(&mut self) {
        self.load.closed = true;
    }

    /// Once per loop turn: how many clients the core has, and how long it has been idle so far.
    pub(super) fn measure(&mut self, now: Time, clients: usize, idle_micros: u64) {
        self.load.clients = u32::try_from(clients).unwrap_or(MOST_CLIENTS);
        let (begun, idle) = *self.since.get_or_insert((now, idle_micros));
        let window = now.since(begun).as_micros() as u64;
        if window >= WINDOW_MICROS {
            let idle = idle_micros.saturating_sub(idle).min(window);
            self.load.busy = ((window - idle) * 100 / window) as u8;
            self.load.at = millis(now);
            self.since = Some((now, idle_micros));
        }
    }

    /// Shows the other cores the measurement, if it has changed.
    pub(super) fn show(&mut self, cores: &[Sender<ShardMessage>]) {
        let word = self.load.word();
        if word != self.shown
            && let Some(own) = cores.get(self.own)
        {
            self.shown = word;
            own.show(word);
        }
    }

    /// The core that should have a connection just accepted, if not this one. `going` names the
    /// targets of the connections that are about to be handed over.
    pub(super) fn choose(
        &mut self,
        now: Time,
        cores: &[Sender<ShardMessage>],
        going: impl Iterator<Item = u16> + Clone,
    ) -> Option<u16> {
        if self.load.closed || cores.len() < 2 {
            return None;
        }
        let best = self.least(now, cores, going)?;
        if !self.load.yields_to(best.1) || !(self.deals || self.spend(now)) {
            return None;
        }
        Some(best.0 as u16)
    }

    /// The least loaded of some others.
    fn least(
        &mut self,
        now: Time,
        cores: &[Sender<ShardMessage>],
        going: impl Iterator<Item = u16> + Clone,
    ) -> Option<(usize, Load)> {
        let others = cores.len() - 1;
        let first = self.next;
        self.next = (first + LOOKED_AT.min(others)) % cores.len();
        let looked_at = (first..first + cores.len()).map(|at| at % cores.len());
        let looked_at = looked_at.filter(|core| *core != self.own).take(LOOKED_AT);
        let open = looked_at.filter(|core| cores[*core].is_open());
        let load = |core: usize| {
            let mut load = Load::of(cores[core].shown(), now);
            let going = going.clone().filter(|to| usize::from(*to) == core).count();
            let coming = cores[core].waiting() + going;
            load.clients = load.clients.saturating_add(coming as u32);
            (core, load)
        };
        let taking = open.map(load).filter(|(_, load)| !load.closed);
        taking.min_by_key(|(_, load)| (load.clients, load.busy))
    }

    fn spend(&mut self, now: Time) -> bool {
        let back = now.since(self.refilled).as_micros() as u64 / REFILL_MICROS;
        if back > 0 {
            self.spent = self.spent.saturating_sub(u32::try_from(back).unwrap_or(u32::MAX));
            self.refilled = now;
        }
        let may = self.spent < BURST;
        self.spent += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use std::iter::empty;
    use std::time::Duration;

    use super::*;
    use crate::mailbox::{Mailbox, mailbox};

    const NOW: Time = Time(10_000_000);

    fn load(clients: u32, busy: u8) -> Load {
        Load { clients, closed: false, busy, at: millis(NOW) }
    }

    fn cores(count: usize) -> (Vec<Sender<ShardMessage>>, Vec<Mailbox<ShardMessage>>) {
        (0..count).map(|_| mailbox(1024).unwrap()).unzip()
    }

    #[test]
    fn a_load_fits_a_word_and_goes_stale() {
        let busy = load(70_000, 93);
        assert_eq!(Load::of(busy.word(), NOW), busy);
        let later = NOW + Duration::from_millis(u64::from(STALE_MILLIS) + 1);
        assert_eq!(Load::of(busy.word(), later).busy, 0, "a core that slept is not busy");
        // The count of milliseconds wraps round after 49 days.
        let before = Load { at: u32::MAX - 9, ..busy };
        let after = Time((u64::from(u32::MAX) + 11) * 1_000);
        assert_eq!(Load::of(before.word(), after).busy, 93);
        let most = Load { clients: u32::MAX, closed: true, busy: 100, at: 0 };
        let read = Load::of(most.word(), Time::ZERO);
        assert_eq!(read, Load { clients: MOST_CLIENTS, ..most });
    }

    #[test]
    fn a_connection_goes_where_there_are_fewer_or_less_is_done() {
        for (own, other, goes) in [
            (load(0, 0), load(0, 0), false),
            (load(1, 0), load(0, 0), true),
            (load(8, 0), load(7, 0), true),
            (load(9, 0), load(8, 0), false),
            (load(10, 0), load(8, 0), true),
            (load(112, 0), load(100, 0), false),
            (load(113, 0), load(100, 0), true),
            (load(4, 90), load(4, 60), true),
            (load(4, 89), load(4, 60), false),
            (load(3, 100), load(4, 0), false),
        ] {
            assert_eq!(own.yields_to(other), goes, "{own:?} {other:?}");
        }
    }

    /// The kernel deals `count` connections to one core, in one turn or one in each. Returns how
    /// many that core keeps, and how many it hands over.
    fn burst(count: usize, at_once: bool, deals: bool) -> (usize, usize) {
        let (cores, mut inboxes) = cores(2);
        let mut balance = Balance::new(0, deals);
        let (mut kept, mut going) = (0, Vec::new());
        for _ in 0..count {
            balance.measure(NOW, kept, 0);
            match balance.choose(NOW, &cores, going.iter().copied()) {
                None => kept += 1,
                Some(other) if at_once => going.push(other),
                // Puts a message into the other core's mailbox; any message will do.
                Some(other) => cores[usize::from(other)].send(ShardMessage::Unready).unwrap(),
            }
        }
        let moved = std::iter::from_fn(|| inboxes[1].receive()).count();
        (kept, moved + going.len())
    }

    #[test]
    fn a_burst_on_one_core_ends_up_even() {
        for at_once in [false, true] {
            assert_eq!(burst(2, at_once, false), (1, 1));
            assert_eq!(burst(16, at_once, false), (8, 8));
            // Beyond the budget the kernel's hash decides.
            assert_eq!(burst(1000, at_once, false), (1000 - BURST as usize, BURST as usize));
            // If cores share a queue there is no hash: all are shared out, except for the eighth
            // that may differ.
            let (kept, moved) = burst(1000, at_once, true);
            assert_eq!(kept + moved, 1000);
            assert!(kept >= moved && kept <= moved + moved / 8 + 1, "{kept} {moved}");
        }
    }

    #[test]
    fn short_connections_do_not_move_for_nothing() {
        let (cores, _inboxes) = cores(2);
        let mut balance = Balance::new(0, false);
        balance.measure(NOW, 0, 0);
        let one_by_one =
            (0..1000).filter(|_| balance.choose(NOW, &cores, empty()).is_some()).count();
        assert_eq!(one_by_one, 0);
        // Three at a time here, none there, 10 000 a second: a hundred may go.
        balance.measure(NOW, 3, 0);
        let at = |nth: u64| NOW + Duration::from_micros(nth * 100);
        let moved =
            (0..10_000).filter(|nth| balance.choose(at(*nth), &cores, empty()).is_some()).count();
        assert!(moved <= BURST as usize + 100, "{moved} of 10 000 in a second");
    }

    #[test]
    fn a_core_that_goes_or_is_gone_gets_nothing() {
        let (cores, mut inboxes) = cores(3);
        let mut balance = Balance::new(0, false);
        balance.measure(NOW, 9, 0);
        let mut going = Balance::new(1, false);
        going.close();
        going.show(&cores);
        assert_eq!(balance.choose(NOW, &cores, empty()), Some(2));
        drop(inboxes.pop());
        assert_eq!(balance.choose(NOW, &cores, empty()), None);
        let _open = cores[2].reopen().unwrap();
        assert_eq!(balance.choose(NOW, &cores, empty()), Some(2));
        balance.close();
        assert_eq!(balance.choose(NOW, &cores, empty()), None);
    }

    #[test]
    fn all_of_many_cores_are_looked_at_in_turn() {
        let (cores, _inboxes) = cores(30);
        let mut balance = Balance::new(7, false);
        balance.measure(NOW, 2, 0);
        for (core, sender) in cores.iter().enumerate() {
            sender.show(load(u32::from(core != 23) * 2, 0).word());
        }
        let found = (0..8).filter_map(|_| balance.choose(NOW, &cores, empty())).collect::<Vec<_>>();
        assert!(found.contains(&23) && found.iter().all(|core| *core == 23), "{found:?}");
    }

    #[test]
    fn how_busy_a_core_is_is_measured_over_a_tenth_of_a_second() {
        let (cores, _inboxes) = cores(1);
        let mut balance = Balance::new(0, false);
        let mut now = NOW;
        for turn in 0..=100 {
            balance.measure(now, 5, turn * 250);
            balance.show(&cores);
            now += Duration::from_millis(1);
        }
        let shown = Load::of(cores[0].shown(), now);
        assert_eq!(shown, Load { clients: 5, closed: false, busy: 75, at: 10_100 });
    }
}
