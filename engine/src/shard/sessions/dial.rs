//! Functions with `dial`: no worker is asked. The core connects to the function's server itself,
//! once for each attachment, and the connection is the tunnel.
//!
//! Such a server knows no sessions: coming back by id is one more connection to it.

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::time::Time;

use crate::config::Dial;
use crate::control::local::WorkKind;
use crate::net::ConnId;

/// How far a dial has come.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) kind: WorkKind,
    to: Arc<Dial>,
    /// The address that comes next. The first one is drawn at random, and each is tried once.
    next: usize,
    left: usize,
    /// The connection under way.
    pub(super) conn: Option<ConnId>,
    pub(super) since: Time,
}

impl Dialling {
    /// A dial of which nothing is tried yet. `draw` is random.
    pub(super) fn new(kind: WorkKind, to: Arc<Dial>, draw: u64, since: Time) -> Self {
        let left = to.addresses.len();
        let next = (draw % left.max(1) as u64) as usize;
        Self { kind, to, next, left, conn: None, since }
    }

    /// The next address to be tried; none if all were.
    pub(super) fn next(&mut self) -> Option<SocketAddr> {
        if self.left == 0 {
            return None;
        }
        let address = self.to.addresses[self.next];
        self.next = (self.next + 1) % self.to.addresses.len();
        self.left -= 1;
        Some(address)
    }

    /// The address that was tried last.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        let addresses = &self.to.addresses;
        let before = (self.next + addresses.len()).checked_sub(1)?;
        addresses.get(before % addresses.len().max(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_tried_once_and_the_last_one_is_named() {
        let addresses: Vec<SocketAddr> =
            (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        let to = Arc::new(Dial { server: "s:1".into(), addresses: addresses.clone() });
        let mut dialling = Dialling::new(WorkKind::New, to, 4, Time::ZERO);
        for at in [1, 2, 0] {
            assert_eq!(dialling.next(), Some(addresses[at]));
            assert_eq!(dialling.peer(), Some(addresses[at]));
        }
        assert_eq!(dialling.next(), None);
    }

    #[test]
    fn a_name_without_an_address_has_nothing_to_try() {
        let to = Arc::new(Dial { server: "s:1".into(), addresses: Vec::new() });
        assert_eq!(Dialling::new(WorkKind::New, to, 4, Time::ZERO).next(), None);
    }
}
