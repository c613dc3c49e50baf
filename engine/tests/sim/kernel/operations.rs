//! The operations that are under way on one socket, and their completions in a turn.

use std::collections::VecDeque;

use ringway::reactor::{Completion, Share, Tag};

use super::super::seed::Seed;
use super::super::wire::Link;
use super::errno;

/// One socket has at most so many receives in one turn.
const SHOTS: usize = 6;

/// A cancel under way, which takes so many more turns.
#[derive(Debug)]
pub(super) struct Cancel {
    pub(super) tag: Tag,
    pub(super) turns: u8,
}

#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) tag: Tag,
    pub(super) share: Share,
    /// Of its share.
    pub(super) taken: usize,
    pub(super) cancel: Option<Cancel>,
}

#[derive(Debug)]
pub(super) struct Polling {
    pub(super) tag: Tag,
    /// A send has found too little room, or the poll has just begun.
    pub(super) blocked: bool,
    pub(super) fin_told: bool,
    pub(super) break_told: bool,
    pub(super) cancel: Option<Tag>,
}

impl Polling {
    /// What the poll tells of a connection now.
    fn tells(&self, link: &Link, ring: bool) -> Option<i32> {
        let (room, broken) = (link.is_writable(), link.in_reset.is_some());
        if !ring {
            return room.then_some(0);
        }
        let changed = (self.blocked && room)
            || (link.in_fin && !self.fin_told)
            || (broken && !self.break_told);
        let bits = |is: bool, bits: libc::c_short| if is { i32::from(bits) } else { 0 };
        changed.then(|| {
            bits(room, libc::POLLOUT)
                | bits(link.in_fin, libc::POLLIN | libc::POLLRDHUP)
                | bits(broken, libc::POLLERR | libc::POLLHUP)
        })
    }
}

/// A connect under way.
#[derive(Debug)]
pub(super) struct Connecting {
    pub(super) tag: Tag,
    pub(super) cancel: Option<Tag>,
}

impl Connecting {
    /// The result of the connect, if it ends now.
    fn ends(&self, link: &Link) -> Option<i32> {
        link.dialled.or(self.cancel.map(|_| -libc::ECANCELED))
    }
}

/// The operations that are under way on one socket.
#[derive(Debug, Default)]
pub(super) struct Operations {
    pub(super) receive: Option<Receiving>,
    pub(super) poll: Option<Polling>,
    pub(super) connect: Option<Connecting>,
}

impl Operations {
    pub(super) fn is_none(&self) -> bool {
        self.receive.is_none() && self.poll.is_none() && self.connect.is_none()
    }

    pub(super) fn have_work(&self, link: &Link, ring: bool) -> bool {
        let receives = |receive: &Receiving| receive.cancel.is_some() || link.is_readable();
        let tells = |poll: &Polling| poll.cancel.is_some() || poll.tells(link, ring).is_some();
        let ends = |connect: &Connecting| connect.ends(link).is_some();
        self.receive.as_ref().is_some_and(receives)
            || self.poll.as_ref().is_some_and(tells)
            || self.connect.as_ref().is_some_and(ends)
    }

    /// The completions of a connect that ends.
    pub(super) fn connects(&mut self, link: &Link) -> Vec<Completion> {
        let Some(result) = self.connect.as_ref().and_then(|connect| connect.ends(link)) else {
            return Vec::new();
        };
        let ended = self.connect.take();
        let cancelled = if result == -libc::ECANCELED { 0 } else { -libc::ENOENT };
        let told = |connect: Connecting| {
            let cancel = connect.cancel.map(|tag| Completion::last(tag, cancelled));
            std::iter::once(Completion::last(connect.tag, result)).chain(cancel)
        };
        ended.into_iter().flat_map(told).collect()
    }
}

/// One more result of a receive.
#[derive(Debug)]
pub(super) enum Shot {
    /// So many bytes have come. `last`: the receive has ended with them.
    Bytes {
        bytes: usize,
        last: bool,
    },
    End(i32),
    Cancelled,
    /// The cancel came between two shots and found nothing.
    Missed,
}

/// The results of one socket's receive in this turn.
pub(super) fn shots(
    receive: &mut Receiving,
    link: &mut Link,
    ring: bool,
    seed: &mut Seed,
) -> VecDeque<Shot> {
    let mut shots = VecDeque::new();
    let cancelled = match &mut receive.cancel {
        None => false,
        Some(Cancel { turns: 0, .. }) => true,
        Some(Cancel { turns, .. }) => {
            *turns -= 1;
            // Between the cancel and its end bytes may still come.
            if seed.chance(50) {
                return shots;
            }
            false
        }
    };
    if !ring {
        // With epoll a share counts for one turn only.
        receive.taken = 0;
    }
    let bound = |bound: u32| if bound == 0 { usize::MAX } else { bound as usize };
    let (cap, limit) = (bound(receive.share.cap), bound(receive.share.limit));
    let (mut left, mut taken) = (link.inbound.len(), receive.taken);
    let wanted = if cancelled { seed.below(2) } else { seed.range(1, SHOTS) };
    for _ in 0..wanted {
        let most = cap.min(limit - taken).min(left);
        if most == 0 {
            break;
        }
        let bytes = link.next_cut(seed, most);
        (left, taken) = (left - bytes, taken + bytes);
        // A receive may also end by itself, with bytes.
        let last = taken == limit || (!cancelled && seed.chance(3));
        shots.push_back(Shot::Bytes { bytes, last });
        if last {
            return shots;
        }
    }
    if cancelled {
        shots.push_back(if seed.chance(5) { Shot::Missed } else { Shot::Cancelled });
    } else if left == 0 && (link.in_reset.is_some() || link.in_fin) {
        shots.push_back(Shot::End(match link.in_reset {
            Some(end) if !link.error_taken => -errno(end),
            _ => 0,
        }));
    }
    shots
}

/// What a poll for room tells in this turn. A poll that goes on is put back.
pub(super) fn polls(
    mut poll: Polling,
    link: &Link,
    ring: bool,
    (goes_on, seed): (&mut Option<Polling>, &mut Seed),
) -> VecDeque<Completion> {
    let mut told = VecDeque::new();
    let bits = poll.tells(link, ring).filter(|_| poll.cancel.is_none() || seed.chance(50));
    if let Some(bits) = bits {
        poll.blocked &= !link.is_writable();
        poll.fin_told = link.in_fin;
        poll.break_told = link.in_reset.is_some();
        // A poll may end by itself, and with epoll it always does.
        if !ring || seed.chance(3) {
            told.push_back(Completion::last(poll.tag, bits));
            told.extend(poll.cancel.map(|cancel| Completion::last(cancel, -libc::ENOENT)));
            return told;
        }
        told.push_back(Completion::one_of(poll.tag, bits));
    }
    if let Some(cancel) = poll.cancel {
        told.push_back(Completion::last(poll.tag, -libc::ECANCELED));
        told.push_back(Completion::last(cancel, 0));
    } else {
        *goes_on = Some(poll);
    }
    told
}
