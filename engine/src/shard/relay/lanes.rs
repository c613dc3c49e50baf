//! The routes of a client's connection, and what was learned of them: which requests go by which
//! route.

use smallvec::SmallVec;

use super::super::table::Key;

/// A route of the connection, or one more kind of request that goes by it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    /// A keyed hash over credential, function and version: nobody can make another client's. It is
    /// kept as octets, so that an entry is no larger than what is in it.
    mark: [u8; 16],
    pub(super) route: Key,
    /// This lane makes the route the connection's own. It stays even if nothing is learned of the
    /// route.
    own: bool,
    learned: bool,
    /// Requests that name no session go here too.
    pub(super) unnamed: bool,
}

/// The lanes of one connection. Most connections have one route that is asked for in one way: that
/// is one entry, which takes no memory of its own.
#[derive(Debug, Default)]
pub(super) struct Lanes(SmallVec<[Lane; 1]>);

impl Lanes {
    /// A route becomes the connection's.
    pub(super) fn own(&mut self, route: Key) {
        self.0.push(Lane { mark: [0; 16], route, own: true, learned: false, unnamed: false });
    }

    /// The connection loses a route, with all its lanes.
    pub(super) fn disown(&mut self, route: Key) {
        self.0.retain(|lane| lane.route != route);
    }

    /// Requests with this mark go by this route.
    pub(super) fn learn(&mut self, mark: u128, route: Key, unnamed: bool) {
        let mark = mark.to_ne_bytes();
        let mut here = self.0.iter().enumerate().filter(|(_, lane)| lane.route == route);
        let known = here.clone().find(|(_, lane)| lane.learned && lane.mark == mark);
        let at = known.or_else(|| here.find(|(_, lane)| !lane.learned)).map(|(at, _)| at);
        match at.map(|at| &mut self.0[at]) {
            Some(lane) => {
                let unnamed = lane.unnamed || unnamed;
                *lane = Lane { mark, learned: true, unnamed, ..*lane };
            }
            None => self.0.push(Lane { mark, route, own: false, learned: true, unnamed }),
        }
    }

    /// Forgets what was learned of a route, because it holds no more. The route stays the
    /// connection's.
    pub(super) fn unlearn(&mut self, route: Key) {
        self.0.retain(|lane| lane.route != route || lane.own);
        for lane in self.0.iter_mut().filter(|lane| lane.route == route) {
            lane.learned = false;
            lane.unnamed = false;
        }
    }

    pub(super) fn knows_nothing(&self) -> bool {
        !self.0.iter().any(|lane| lane.learned)
    }

    /// The lanes by which requests with this mark may go.
    pub(super) fn of(&self, mark: u128) -> impl Iterator<Item = &Lane> + Clone {
        let mark = mark.to_ne_bytes();
        self.0.iter().filter(move |lane| lane.learned && lane.mark == mark)
    }

    /// The connection's routes, in the order in which they came.
    pub(super) fn routes(&self) -> impl Iterator<Item = Key> {
        self.0.iter().filter(|lane| lane.own).map(|lane| lane.route)
    }

    pub(super) fn has_routes(&self) -> bool {
        self.routes().next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Key = Key { slot: 1, generation: 7 };
    const OTHER: Key = Key { slot: 2, generation: 8 };

    fn of(lanes: &Lanes, mark: u128) -> Vec<(Key, bool)> {
        lanes.of(mark).map(|lane| (lane.route, lane.unnamed)).collect()
    }

    #[test]
    fn a_route_is_there_before_anything_is_known_of_it_and_after_that_is_wrong() {
        let mut lanes = Lanes::default();
        lanes.own(ONE);
        assert!(lanes.has_routes() && lanes.knows_nothing() && of(&lanes, 0).is_empty());
        lanes.learn(5, ONE, false);
        lanes.learn(5, ONE, true);
        lanes.learn(6, ONE, false);
        assert_eq!((of(&lanes, 5), of(&lanes, 6)), (vec![(ONE, true)], vec![(ONE, false)]));
        assert_eq!(lanes.routes().collect::<Vec<_>>(), [ONE]);
        lanes.unlearn(ONE);
        assert!(lanes.has_routes() && lanes.knows_nothing());
        lanes.learn(6, ONE, false);
        assert_eq!((of(&lanes, 5), of(&lanes, 6)), (vec![], vec![(ONE, false)]));
        lanes.disown(ONE);
        assert!(!lanes.has_routes() && lanes.knows_nothing());
    }

    #[test]
    fn routes_that_are_asked_for_alike_are_found_in_order_and_a_stranger_is_no_route() {
        let mut lanes = Lanes::default();
        lanes.own(ONE);
        lanes.own(OTHER);
        lanes.learn(5, ONE, true);
        lanes.learn(5, OTHER, false);
        assert_eq!(of(&lanes, 5), [(ONE, true), (OTHER, false)]);
        lanes.disown(ONE);
        lanes.learn(5, ONE, false);
        assert_eq!(lanes.routes().collect::<Vec<_>>(), [OTHER]);
        assert_eq!(of(&lanes, 5), [(OTHER, false), (ONE, false)]);
    }
}
