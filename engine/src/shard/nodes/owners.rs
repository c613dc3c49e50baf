//! What is remembered of other gateways: which of them was not reached, and how many connections
//! each was brought.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::super::bucket::Bucket;

/// The pause after which a gateway that was not reached is tried again (design 3.22).
const REST: Duration = Duration::from_secs(1);
/// Most gateways in one table, and most clients.
pub(super) const MOST: usize = 1024;
/// How many relays the ids in requests may cause: a burst, then so many a second. To one gateway;
/// of one client, if its address is known; of all for which a record has to be read.
const OF_TARGET: (u32, u32) = (4096, 1024);
const OF_SOURCE: (u32, u32) = (64, 16);
const OF_RECORDS: (u32, u32) = (512, 256);

/// What is remembered of other gateways.
#[derive(Debug, Default)]
pub(super) struct Owners {
    unreached: HashMap<SocketAddr, Time>,
    targets: HashMap<Node, Bucket>,
    /// By the clients' addresses without the port.
    sources: HashMap<SocketAddr, Bucket>,
    records: Bucket,
}

impl Owners {
    /// Whether it is too early to try this address again.
    pub(super) fn rests(&self, address: SocketAddr, now: Time) -> bool {
        self.unreached.get(&address).is_some_and(|until| now < *until)
    }

    /// A gateway was not reached.
    pub(super) fn not_reached(&mut self, address: SocketAddr, now: Time) {
        if self.unreached.len() >= MOST {
            self.unreached.retain(|_, until| now < *until);
        }
        if self.unreached.len() < MOST {
            self.unreached.insert(address, now + REST);
        }
    }

    /// A gateway was reached.
    pub(super) fn reached(&mut self, address: SocketAddr) {
        self.unreached.remove(&address);
    }

    /// Whether one more client may be brought to this gateway. Only the id in its request asks for
    /// that, and anybody can write one. `source`: the client's own address, if it is known.
    /// `reads`: a record has to be read.
    pub(super) fn may_bring(
        &mut self,
        node: Node,
        (source, reads): (Option<SocketAddr>, bool),
        now: Time,
    ) -> bool {
        let of_target = take(&mut self.targets, node, OF_TARGET, now);
        let of_source = source.is_none_or(|mut source| {
            source.set_port(0);
            take(&mut self.sources, source, OF_SOURCE, now)
        });
        let (burst, rate) = OF_RECORDS;
        of_target && of_source && (!reads || self.records.take(burst, rate, now))
    }
}

/// Takes a permit from the bucket of `key`. A full table forgets the keys that come seldom.
pub(super) fn take<K: std::hash::Hash + Eq>(
    table: &mut HashMap<K, Bucket>,
    key: K,
    (burst, rate): (u32, u32),
    now: Time,
) -> bool {
    if table.len() >= MOST && !table.contains_key(&key) {
        // Addresses that have come seldom are forgotten first.
        table.retain(|_, bucket| !bucket.has(1, rate, now));
        if table.len() >= MOST {
            return false;
        }
    }
    table.entry(key).or_default().take(burst, rate, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000_000);

    fn node(number: u16) -> Node {
        Node::new(number, 1).unwrap()
    }

    #[test]
    fn who_was_not_reached_is_left_alone_for_a_second() {
        let mut owners = Owners::default();
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        assert!(!owners.rests(address, START));
        owners.not_reached(address, START);
        assert!(owners.rests(address, START + Duration::from_millis(999)));
        assert!(!owners.rests(address, START + REST));
        owners.reached(address);
        assert!(!owners.rests(address, START));
        for port in 0..2 * MOST as u16 {
            owners.not_reached(SocketAddr::new(address.ip(), port), START);
        }
        assert!(owners.unreached.len() <= MOST);
    }

    #[test]
    fn what_ids_cause_is_bounded_by_target_by_source_and_in_all() {
        let mut owners = Owners::default();
        let taken = |owners: &mut Owners, node, of| {
            (0..10_000).filter(|_| owners.may_bring(node, of, START)).count() as u32
        };
        assert_eq!(taken(&mut owners, node(1), (None, false)), OF_TARGET.0);
        assert_eq!(taken(&mut owners, node(2), (None, false)), OF_TARGET.0);
        let source = Some("192.0.2.1:7".parse().unwrap());
        assert_eq!(taken(&mut owners, node(3), (source, false)), OF_SOURCE.0);
        let all = (10..4000).filter(|n| owners.may_bring(node(*n), (None, true), START)).count();
        assert_eq!(all as u32, OF_RECORDS.0);
        assert!(owners.targets.len() <= MOST);
    }
}
