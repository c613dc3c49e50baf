//! A worker's connection whose CONNECT landed on another core than its token's: it moves there,
//! with what was read of it, and is served as if it had come there (design 3.2, 3.3).

use ringway_proto::date::HttpDate;
use ringway_proto::h1::connect::ConnectResult;
use ringway_proto::h1::write_text;

use super::Shard;
use super::conn::{Conn, Plain};
use crate::border::{Border, Close, ConnId, Core, Parcel};
use crate::metrics::Limit;
use crate::pool::Segment;
use crate::post::{CorePost, MovedConnect};

/// Bytes of a connection that move along: the CONNECT and what came behind it (design 3.3). A
/// worker says nothing before we do (contract WK-12).
pub(crate) const MOVED_BYTES: usize = 64 * 1024;

impl Shard {
    /// Lets go of a worker's connection, so that the core `to` can take it up.
    pub(super) fn send_home(&mut self, border: &mut Border, conn: ConnId, to: u16) {
        if self.mail_waits(to) {
            self.metrics.limit_hit(Limit::Mailbox);
            border.put(conn, &no_room(self.settings.date(self.now)));
            return self.end_plain(border, conn);
        }
        if let Some(Conn::Door(door)) = self.conns.get_mut(conn) {
            door.desk.moving = Some(to);
            border.detach(conn);
            self.bound_moved(border, conn);
        }
    }

    /// Bytes that come while nothing may be read any more. False if the connection does not move.
    pub(super) fn received_moving(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        segment: Segment,
    ) -> bool {
        let Some(Conn::Door(door)) = self.conns.get_mut(conn) else { return false };
        if door.desk.moving.is_none() {
            return false;
        }
        door.input.extend_from_slice(border.pool.bytes(segment));
        self.bound_moved(border, conn);
        true
    }

    fn bound_moved(&mut self, border: &mut Border, conn: ConnId) {
        if let Some(Conn::Door(door)) = self.conns.get(conn)
            && door.input.len() > MOVED_BYTES
        {
            self.door_answer(border, conn, 400, "too much was sent behind the CONNECT");
            self.end_plain(border, conn);
        }
    }

    /// Nothing is under way on the connection any more: it goes.
    pub(super) fn let_go_of(&mut self, border: &mut Border, conn: ConnId, parcel: Parcel) {
        let door = match self.conns.remove(conn) {
            Some(Conn::Door(door)) => door,
            Some(Conn::Hop(hop)) => return self.tunnel_detached(*hop, parcel),
            Some(Conn::Fresh(_)) | None => return,
        };
        let Plain { peer, opened, input, desk, .. } = *door;
        let Some(to) = desk.moving else { return };
        let from = self.settings.core;
        let moved = MovedConnect { parcel, input, peer, opened, from };
        if let Err(CorePost::Connect(moved)) = self.ask(to, CorePost::Connect(Box::new(moved))) {
            self.turn_away(border, moved.parcel);
        }
    }

    /// The token's home has no room for the connection: the worker tries again (contract WK-5).
    pub(super) fn turn_away(&self, border: &mut Border, parcel: Parcel) {
        let conn = border.adopt(parcel);
        border.put(conn, &no_room(self.settings.date(self.now)));
        border.close(conn, Close::Flush);
    }

    /// A CONNECT for a token of ours that landed on another core.
    pub(super) fn connect_moved_here(&mut self, border: &mut Border, moved: MovedConnect) {
        let limits = &self.settings.config.limits;
        let clients = self.metrics.active_connections as usize;
        if self.conns.len().saturating_sub(clients) >= limits.worker_connections {
            self.metrics.limit_hit(Limit::WorkerConnections);
            return self.turn_away(border, moved.parcel);
        }
        let conn = border.adopt(moved.parcel);
        let mut door = Plain::new(moved.peer, border.now);
        door.opened = moved.opened;
        door.input = moved.input;
        door.moved_from = Some(moved.from);
        door.begun = Some(border.now);
        self.conns.insert(conn, Conn::Door(Box::new(door)));
        self.serve_door(border, conn);
    }

    /// The connection of a CONNECT ended while it moved: nobody can take it over.
    pub(super) fn moved_nowhere(&mut self, door: &Plain) {
        if door.desk.moving.is_some() {
            self.count_connect(ConnectResult::HijackFailed, None, door.peer);
        }
    }

    /// Bytes that lie outside the receive memory, as if they had just come.
    pub(super) fn receive_copy(&mut self, border: &mut Border, conn: ConnId, bytes: &[u8]) {
        let mut queue = std::collections::VecDeque::new();
        border.stash_bytes(bytes, &mut queue);
        for segment in queue {
            self.received(border, conn, segment);
            border.pool.release(segment);
        }
    }
}

fn no_room(date: HttpDate) -> Vec<u8> {
    let mut out = Vec::new();
    write_text(503, "the gateway is overloaded, try again\n", false, date, &mut out);
    out
}
