//! Clients' connections without an answered request, which can go elsewhere: to another core,
//! another node or a later process. With [`ShardSettings::unanswered`] the bytes of such a
//! connection are kept until its first request is answered.
//!
//! [`ShardSettings::unanswered`]: super::ShardSettings::unanswered

use std::collections::{HashMap, VecDeque};
use std::fmt;

use ringway_proto::id::Node;
use uuid::Uuid;

use super::Shard;
use super::facts::{Caller, Elsewhere, Fact, ForNodes, ForSessions, Stray, Strayed};
use super::nodes::Ready;
use super::turn::Turn;
use crate::carry::{Client, Released, Said, Unreadable};
use crate::message::CoreMessage;
use crate::metrics::RelayCause;
use crate::net::{Close, ConnId, Detached, End, Listener, Net};
use crate::pool::Segment;

/// Bytes that may still come on a released connection, beyond those that are kept: one receive.
const LATE_BYTES: usize = 64 * 1024;

/// So many connections are kept before the table is searched for those that were answered
/// meanwhile.
const UNSEEN: usize = 64;

/// Connections whose bytes are kept, and connections on their way out.
#[derive(Default)]
pub(super) struct Handover {
    /// Most octets kept of a connection; 0 if no connection may leave.
    most: usize,
    kept: HashMap<ConnId, Vec<u8>, foldhash::fast::RandomState>,
    /// While a connection is read: how many of its kept octets, at their end, are not read yet.
    unread: usize,
    /// At this number of connections the table is searched for those that were answered or have
    /// ended.
    sweep_at: usize,
    releasing: HashMap<ConnId, Client, foldhash::fast::RandomState>,
    released: Vec<Released>,
}

impl fmt::Debug for Handover {
    // The received bytes hold credentials, which must be in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover")
            .field("kept", &self.kept.len())
            .field("releasing", &self.releasing)
            .field("released", &self.released)
            .finish_non_exhaustive()
    }
}

impl Handover {
    pub(super) fn new(most: usize) -> Self {
        Self { most, sweep_at: UNSEEN, ..Self::default() }
    }

    /// Whether nothing is on its way out.
    pub(super) fn is_empty(&self) -> bool {
        self.releasing.is_empty() && self.released.is_empty()
    }

    /// Keeps a client's bytes from now on.
    fn keep(&mut self, conn: ConnId, bytes: Vec<u8>) {
        if self.most > 0 && bytes.len() <= self.most {
            self.kept.insert(conn, bytes);
        }
    }

    /// Whether the bytes of this connection are kept, because its client was not answered yet.
    #[inline]
    pub(super) fn keeps(&self, conn: ConnId) -> bool {
        self.most > 0 && (self.kept.contains_key(&conn) || self.releasing.contains_key(&conn))
    }

    /// More bytes have come. True if the connection is on its way out: then no component is given
    /// the bytes.
    pub(super) fn hear(&mut self, net: &mut Net, conn: ConnId, segment: Segment) -> bool {
        let bytes = net.pool.bytes(segment);
        if let Some(client) = self.releasing.get_mut(&conn) {
            let received = client.said.received_mut();
            received.extend_from_slice(bytes);
            if received.len() > self.most + LATE_BYTES {
                // Reading was stopped long before, so a reactor that keeps its contract never comes
                // here.
                self.releasing.remove(&conn);
                net.close(conn, Close::Now);
            }
            return true;
        }
        if let Some(kept) = self.kept.get_mut(&conn) {
            if kept.len() + bytes.len() > self.most {
                self.kept.remove(&conn);
            } else {
                kept.extend_from_slice(bytes);
            }
        }
        false
    }

    /// No I/O is under way on a connection any more. Returns the detached connection if it is not
    /// one that leaves.
    pub(super) fn hand_over(&mut self, conn: ConnId, detached: Detached) -> Option<Detached> {
        match self.releasing.remove(&conn) {
            Some(client) => {
                self.released.push(Released { detached, client });
                None
            }
            None => Some(detached),
        }
    }
}

/// Where a client's connection that is taken up here comes from.
#[derive(Clone, Copy, Debug)]
enum Whence {
    /// From a core of this gateway. The connection may leave this core again.
    ThisGateway,
    /// From another gateway, which has brought it here as to its owner.
    Another(Node),
    /// From this core: its owner did not take it.
    NotTaken,
}

// ---- clients of other gateways ----

/// A client's first request names a session of another gateway. Its connection goes there if it
/// can; otherwise the request is served here as well as possible.
pub(super) fn elsewhere(shard: &mut Shard, net: &mut Net, elsewhere: Box<Elsewhere>) {
    let (Caller { conn, peer, .. }, node) = (elsewhere.from, elsewhere.node);
    let may_leave = shard.handover.kept.contains_key(&conn) && shard.relay.is_unanswered(conn);
    let goes =
        may_leave && shard.draining.is_none() && shard.nodes.may_go(turn!(shard, net), node, peer);
    let kept = shard.handover.kept.get(&conn).filter(|_| goes);
    let unread = shard.handover.unread;
    let leave = |kept: &Vec<u8>| shard.relay.leave(turn!(shard, net), conn, (kept, unread));
    let client = kept.and_then(leave);
    let fact = match client {
        Some(client) => {
            shard.handover.kept.remove(&conn);
            let (cause, stray) = (RelayCause::Client, Stray::Client(client));
            let strayed = Strayed { conn, cause, node: Some(node), stray };
            Fact::Nodes(ForNodes::Take(Box::new(strayed)))
        }
        None => Fact::Sessions(ForSessions::PlaceHere(elsewhere)),
    };
    shard.leave(fact);
}

/// Another gateway brings a connection.
pub(super) fn knock(shard: &mut Shard, conn: ConnId, client: bool) {
    // Tokens of this gateway are good until it ends; sessions end with its drain.
    let room = match client {
        true => shard.draining.is_none() && shard.admits(Listener::Client).is_ok(),
        false => shard.admits(Listener::Worker).is_ok(),
    };
    shard.leave(Fact::Nodes(ForNodes::Admitted { conn, room }));
}

/// Another gateway leaves. Every core may have connections that it has brought, so all are told.
pub(super) fn node_leaves(shard: &mut Shard, node: Node) {
    for to in 0..shard.settings.cores {
        shard.leave(Fact::Send { to, message: CoreMessage::NodeLeaves(node) });
    }
}

/// Clients that other gateways have brought, and those that none has taken, go on here.
#[cold]
pub(super) fn go_on_here(shard: &mut Shard, net: &mut Net) {
    while let Some(ready) = shard.nodes.take_ready(turn!(shard, net)) {
        let Ready { conn, client, via, ended } = ready;
        let whence = via.map_or(Whence::NotTaken, Whence::Another);
        shard.go_on(net, conn, &client, whence);
        if let Some(end) = ended {
            shard.relay.ended(turn!(shard, net), conn, end);
            shard.settle(net);
        }
    }
}

impl Shard {
    // ---- clients that leave ----

    /// A client's connection begins here: its bytes are kept, if the settings ask for that.
    pub(super) fn keep_unanswered(&mut self, conn: ConnId) {
        self.handover.keep(conn, Vec::new());
        if self.handover.kept.len() > self.handover.sweep_at {
            let relay = &self.relay;
            self.handover.kept.retain(|conn, _| relay.is_unanswered(*conn));
            self.handover.sweep_at = 2 * self.handover.kept.len() + UNSEEN;
        }
    }

    /// Releases a client's connection of which no request was answered and none has gone to a
    /// worker. Its requests are answered where it is [taken up](Self::take_up). False if it stays:
    /// a request was answered, more than [`ShardSettings::unanswered`] octets have come, or this
    /// core drains.
    ///
    /// [`Self::take_released`] gives the connection once no I/O is under way on its socket. If the
    /// client ends it before that, it goes on here as if it had not been released.
    ///
    /// [`ShardSettings::unanswered`]: super::ShardSettings::unanswered
    pub fn release(&mut self, net: &mut Net, conn: ConnId) -> bool {
        let Some(kept) = self.handover.kept.get(&conn) else { return false };
        let client = self.relay.leave(turn!(self, net), conn, (kept, 0));
        let leaves = client.is_some();
        if let Some(client) = client {
            net.detach(conn);
            self.handover.kept.remove(&conn);
            self.handover.releasing.insert(conn, client);
        }
        self.settle(net);
        leaves
    }

    /// The released connections on which no I/O is under way any more, since the last call.
    pub fn take_released(&mut self, into: &mut Vec<Released>) {
        into.append(&mut self.handover.released);
    }

    /// Takes up a connection that another core, or another process, has released. None if this core
    /// has as many clients as it may: then the connection is closed.
    pub fn take_up(&mut self, net: &mut Net, released: Released) -> Option<ConnId> {
        if let Err(limit) = self.admits(Listener::Client) {
            self.metrics.limit_hit(limit);
            return None;
        }
        let Released { detached, client } = released;
        let conn = net.adopt(detached);
        self.go_on(net, conn, &client, Whence::ThisGateway);
        Some(conn)
    }

    /// Bytes of a connection of which some may have to be kept, since its client was not answered
    /// yet.
    #[cold]
    pub(super) fn received_and_kept(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        if !self.handover.hear(net, conn, segment) {
            self.read(net, conn, segment);
        }
    }

    /// Reads the bytes. Once the connection was answered, its kept bytes are forgotten.
    pub(super) fn read(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        let mut pos = 0;
        let mut step = self.relay.received(turn!(self, net), conn, segment, &mut pos);
        self.handover.unread = segment.len as usize - pos;
        self.settle(net);
        while step.is_more() {
            step = self.relay.received(turn!(self, net), conn, segment, &mut pos);
            self.handover.unread = segment.len as usize - pos;
            self.settle(net);
        }
        self.handover.unread = 0;
        if step.is_foreign() {
            self.workers.received(turn!(self, net), conn, segment);
            self.settle(net);
        }
        if self.handover.keeps(conn) && !self.relay.is_unanswered(conn) {
            // After an answer that the gateway made itself an HTTP/1 connection is as good as
            // fresh.
            if self.relay.start_over(conn) {
                self.handover.keep(conn, Vec::new());
            } else {
                self.handover.kept.remove(&conn);
            }
        }
    }

    /// A connection has ended, so it does not leave any more. If its client can still be answered,
    /// it goes on here.
    pub(super) fn stay_to_the_end(&mut self, net: &mut Net, conn: ConnId, end: End) {
        if let Some(client) = self.handover.releasing.remove(&conn).filter(|_| end.is_half()) {
            self.go_on(net, conn, &client, Whence::ThisGateway);
        }
        self.handover.kept.remove(&conn);
    }

    /// Reads all bytes that were received on a client's connection, as if they had just come.
    fn go_on(&mut self, net: &mut Net, conn: ConnId, client: &Client, whence: Whence) {
        let Client { peer, opened, said } = client;
        let via = match whence {
            Whence::Another(node) => Some(node),
            Whence::ThisGateway | Whence::NotTaken => None,
        };
        let begun = match said {
            Said::Heard(_) => {
                self.relay.come(turn!(self, net), conn, (*peer, *opened), via);
                Ok(None)
            }
            Said::Http2(carried) => {
                let of = (conn, *peer, *opened);
                self.relay.come_http2(turn!(self, net), of, (carried, via)).map(Some)
            }
        };
        let Ok(mut said_before) = begun else { return net.close(conn, Close::Now) };
        // A connection goes from gateway to gateway once at most. This one is not kept, so it
        // cannot leave.
        if let Whence::ThisGateway = whence {
            self.handover.keep(conn, said.received().to_vec());
        }
        let mut segments = VecDeque::new();
        net.stash_bytes(said.received(), &mut segments);
        let mut rest = said.received().len();
        for segment in segments {
            rest -= segment.len as usize;
            let mut pos = 0;
            loop {
                let turn = turn!(self, net);
                let step = match &mut said_before {
                    None => self.relay.received(turn, conn, segment, &mut pos),
                    Some(said) => self.relay.reread(turn, (conn, segment), &mut pos, said),
                };
                self.handover.unread = rest + segment.len as usize - pos;
                self.settle(net);
                if !step.is_more() {
                    break;
                }
            }
            net.pool.release(segment);
        }
        self.handover.unread = 0;
        if let Some(said) = said_before {
            self.relay.arrived(turn!(self, net), conn, said);
        }
        self.settle(net);
    }

    // ---- what a later process, or another node, needs to know ----

    /// A session as bytes, if its home is here: its facts, and its attachments with their present
    /// states.
    #[must_use]
    pub fn carry_session(&self, id: Uuid) -> Option<Vec<u8>> {
        self.sessions.carried(&self.settings, id)
    }

    /// This core becomes the home of a session that [`Self::carry_session`] turned into bytes
    /// elsewhere. The attachments keep their names. Messages to an attachment of another node, or
    /// of another run of this process, are void until its tunnel is taken up here as well.
    ///
    /// # Errors
    /// The bytes are no session, or a session with this id is here already.
    pub fn take_up_session(&mut self, bytes: &[u8]) -> Result<Uuid, Unreadable> {
        self.sessions.take_up(&self.settings, bytes)
    }

    /// The pins of a client's connection, each as bytes of its own. The bytes hold the credentials.
    #[must_use]
    pub fn carry_pins(&self, conn: ConnId) -> Vec<Vec<u8>> {
        self.sessions.carried_pins(&self.settings, conn)
    }

    /// Gives a pin from [`Self::carry_pins`] to a client's connection here that has asked for a
    /// session.
    ///
    /// # Errors
    /// The bytes are no pin. Or the connection has asked for no session, has a pin for the same
    /// call, or has as many pins as it may.
    pub fn take_up_pin(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), Unreadable> {
        self.sessions.take_up_pin(&self.settings, conn, bytes)
    }
}
