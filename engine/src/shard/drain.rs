//! Leaving in order: GOAWAY in two steps, open streams finish, then the rest is ended.

use std::time::Duration;

use ringway_proto::h2::ErrorCode;

use super::Shard;
use super::close::Cause;
use super::conn::{Client, Conn, Hop, Leaving, Side};
use super::link::Link;
use super::park::Gone;
use super::timer::Due;
use super::watch::DRAIN_PING;
use crate::border::{Border, Close, ConnId, Listener};
use crate::post::CorePost;

/// The highest stream id: a GOAWAY that refuses nothing yet (RFC 9113 §6.8).
const EVERY_STREAM: u32 = 0x7fff_ffff;

/// How far the whole core is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draining {
    /// Open streams may finish.
    Open,
    /// The limit has passed, or all was over before it.
    Over,
}

impl Shard {
    /// Takes no new clients, warns the ones there are.
    pub(super) fn drain(&mut self, border: &mut Border, max: Duration) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(Draining::Open);
        border.unlisten(Listener::Client);
        self.timers.arm(border.now + max, Due::Drain);
        // Nobody may come back any more.
        self.close_parked(border);
        self.drop_spares(border);
        for conn in self.conns.ids() {
            match self.conns.get_mut(conn) {
                Some(Conn::Hop(hop)) if hop.client().is_some() => self.warn(border, conn),
                Some(Conn::Fresh(_) | Conn::Door(_) | Conn::Hop(_)) | None => {}
            }
        }
    }

    /// The first GOAWAY of a client connection.
    pub(super) fn warn(&mut self, border: &mut Border, conn: ConnId) {
        if let Some(hop) = self.conns.hop_mut(conn)
            && !hop.is_leaving()
        {
            if matches!(hop.link, Link::H1(_)) {
                return self.http1_leave(border, conn);
            }
            hop.warn(border);
            self.watch(conn);
        }
    }

    /// The final GOAWAY: what came up to now is served, nothing after it.
    pub(super) fn last_goaway(&mut self, border: &mut Border, conn: ConnId) {
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let last = hop.link.highest_peer_stream();
        hop.link.goaway(last, ErrorCode::NoError, b"", &mut border.sink(conn));
        hop.link.refuse_new(true);
        let open = hop.link.streams();
        if let Some(client) = hop.client_mut() {
            client.leaving = Leaving::Final;
        }
        if open == 0 {
            border.close(conn, Close::Flush);
            let how = self.sent_away();
            self.client_gone(border, conn, how);
        }
    }

    /// Why a client connection ends that was asked to leave and has no streams any more.
    pub(super) fn sent_away(&self) -> Gone {
        if self.draining.is_some() { Gone::ByUs(Cause::SHUTDOWN) } else { Gone::ToldOff }
    }

    /// Ends everything that is left.
    pub(super) fn end_all(&mut self, border: &mut Border, how: Close) {
        self.draining = Some(Draining::Over);
        border.unlisten(Listener::Client);
        border.unlisten(Listener::Worker);
        for conn in self.conns.ids() {
            match self.conns.get_mut(conn) {
                Some(Conn::Hop(hop)) => match &hop.side {
                    Side::Client(_) => {
                        let last = hop.link.highest_peer_stream();
                        hop.link.goaway(last, ErrorCode::NoError, b"", &mut border.sink(conn));
                        border.close(conn, how);
                        self.client_gone(border, conn, Gone::ByUs(Cause::SHUTDOWN));
                    }
                    Side::Tunnel(_) => self.tunnel_gone(border, conn, Cause::SHUTDOWN),
                },
                Some(Conn::Fresh(_) | Conn::Door(_)) => {
                    border.close(conn, how);
                    self.plain_gone(border, conn);
                }
                None => {}
            }
        }
    }

    /// Called each turn: a drain is over when no client is left, on any core: until then other
    /// cores' tokens, work and sessions need this one.
    pub(super) fn drain_turn(&mut self, border: &mut Border) {
        let open = self.draining == Some(Draining::Open);
        if open && !self.stays && self.all_are_idle() {
            self.end_all(border, Close::Flush);
        }
        let over = self.draining == Some(Draining::Over);
        if over || self.metrics.active_connections == 0 {
            self.tell_idle();
        }
        // What is still being flushed is the reactor's.
        self.finished |= over;
    }

    fn tell_idle(&mut self) {
        if std::mem::replace(&mut self.told_idle, true) {
            return;
        }
        let core = self.settings.core;
        for other in (0..self.settings.cores).filter(|other| *other != core) {
            self.tell(other, CorePost::Idle { core });
        }
    }

    /// Whether all cores have said that they have no client left, and this one's word is out.
    pub(super) fn all_are_idle(&self) -> bool {
        let others = usize::from(self.settings.cores).saturating_sub(1);
        self.metrics.active_connections == 0
            && self.idle.len() >= others
            && (others == 0 || self.told_idle)
            && self.core_posts.is_empty()
            && !self.outbox.holds_idle()
    }

    /// Another core that drains has no client left.
    pub(super) fn idle_elsewhere(&mut self, core: u16) {
        if !self.idle.contains(&core) {
            self.idle.push(core);
        }
    }
}

impl Hop {
    /// Says GOAWAY without refusing anything, and asks for a sign that it was read.
    pub(super) fn warn(&mut self, border: &mut Border) {
        let out = &mut border.sink(self.conn);
        self.link.goaway(EVERY_STREAM, ErrorCode::NoError, b"", out);
        self.link.ping(DRAIN_PING, out);
        let since = border.now;
        if let Side::Client(Client { leaving, .. }) = &mut self.side {
            *leaving = Leaving::Warned { since };
        }
    }
}
