//! Addresses from which connections come that prove nothing. A few of them are heard. Then the next
//! connection from there is closed as it comes, which costs a fraction of hearing it out. From then
//! on the kernel keeps the address out for a while, which costs next to nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use ringway_proto::time::Time;

use super::super::bucket::Bucket;
use super::owners::{MOST, take};
use crate::net::MOST_KEPT_OUT;

/// How many preludes of one address may prove nothing: a burst, then so many a second.
const TRIES: (u32, u32) = (64, 16);
/// For how long an address is kept out.
const KEPT_OUT_FOR: Duration = Duration::from_secs(5);
/// How long every connection from an address is heard after a gateway there has proved itself.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// An address without its port.
fn host(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), 0)
}

/// What is remembered of the peers that connect.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    tried: HashMap<SocketAddr, Bucket>,
    /// Addresses at which a gateway is known to be, and until when.
    known: HashMap<SocketAddr, Time>,
    /// Addresses that the kernel keeps out, and until when.
    kept_out: Vec<(SocketAddr, Time)>,
}

impl Suspects {
    /// Whether a connection from this address is to be heard.
    pub(super) fn hears(&mut self, peer: SocketAddr, now: Time) -> bool {
        let (burst, rate) = TRIES;
        let ip = host(peer);
        let tired = self.tried.get_mut(&ip).is_some_and(|tried| !tried.has(burst, rate, now));
        !tired || self.known.get(&ip).is_some_and(|until| now < *until)
    }

    /// Keeps an address out for a while that is not heard. If that changes anything: all addresses
    /// that are kept out now, and when this one may be let in again.
    pub(super) fn keep_out(
        &mut self,
        peer: SocketAddr,
        now: Time,
    ) -> Option<(Box<[SocketAddr]>, Time)> {
        let (ip, until) = (host(peer), now + KEPT_OUT_FOR);
        let more = self.kept_out.len() < MOST_KEPT_OUT
            && self.kept_out.iter().all(|(other, _)| *other != ip);
        more.then(|| {
            self.kept_out.push((ip, until));
            (self.kept_out.iter().map(|(ip, _)| *ip).collect(), until)
        })
    }

    /// The addresses that are still to be kept out.
    pub(super) fn still_kept_out(&mut self, now: Time) -> Box<[SocketAddr]> {
        self.kept_out.retain(|(_, until)| now < *until);
        self.kept_out.iter().map(|(ip, _)| *ip).collect()
    }

    /// A gateway at this address has proved itself.
    pub(super) fn proved(&mut self, peer: SocketAddr, now: Time) {
        if self.known.len() >= MOST {
            self.known.retain(|_, until| now < *until);
        }
        if self.known.len() < MOST {
            self.known.insert(host(peer), now + KNOWN_FOR);
        }
    }

    /// A connection from this address proved nothing.
    pub(super) fn failed(&mut self, peer: SocketAddr, now: Time) {
        take(&mut self.tried, host(peer), TRIES, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000_000);

    fn peer(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], port))
    }

    fn tries(of: &mut Suspects, from: u8, now: Time) -> u32 {
        let heard = |port: &u16| {
            let hears = of.hears(peer(from, *port), now);
            of.failed(peer(from, *port), now);
            hears
        };
        (1..1000).filter(heard).count() as u32
    }

    #[test]
    fn who_proves_nothing_is_not_heard_for_long_and_others_are() {
        let mut of = Suspects::default();
        assert_eq!(tries(&mut of, 1, START), TRIES.0);
        assert!(of.hears(peer(2, 1), START));
        assert_eq!(tries(&mut of, 1, START + Duration::from_secs(1)), TRIES.1);
        assert!(!of.hears("[::ffff:192.0.2.1]:7".parse().unwrap(), START + Duration::from_secs(1)));
    }

    #[test]
    fn where_a_gateway_is_everybody_is_heard() {
        let mut of = Suspects::default();
        tries(&mut of, 1, START);
        of.proved(peer(1, 9), START);
        assert!(of.hears(peer(1, 1), START));
        assert_eq!(tries(&mut of, 1, START + (KNOWN_FOR - Duration::from_secs(1))), 999);
        tries(&mut of, 1, START + KNOWN_FOR);
        assert!(!of.hears(peer(1, 1), START + KNOWN_FOR));
    }

    #[test]
    fn who_is_not_heard_is_kept_out_for_a_while() {
        let mut of = Suspects::default();
        let (ips, until) = of.keep_out(peer(1, 1), START).unwrap();
        assert_eq!((&*ips, until), (&[peer(1, 0)][..], START + KEPT_OUT_FOR));
        assert!(of.keep_out(peer(1, 2), START).is_none(), "it is already");
        let later = START + Duration::from_secs(1);
        assert_eq!(of.keep_out(peer(2, 2), later).unwrap().0.len(), 2);
        assert_eq!(*of.still_kept_out(until), [peer(2, 0)]);
        assert!(of.still_kept_out(later + KEPT_OUT_FOR).is_empty());
        let added = (0..=255).filter(|host| of.keep_out(peer(*host, 1), START).is_some());
        assert_eq!(added.count(), MOST_KEPT_OUT);
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let mut of = Suspects::default();
        for n in 0..3 * MOST as u32 {
            let peer = SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 1));
            of.failed(peer, START);
            of.proved(peer, START);
        }
        assert!(of.tried.len() <= MOST && of.known.len() <= MOST);
        assert_eq!(tries(&mut of, 1, START + KNOWN_FOR), TRIES.0, "the old ones are forgotten");
    }
}
