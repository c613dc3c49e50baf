//! How connections end from our side: by a fault of the peer's, in order, or because the peer takes
//! nothing any more.

use ringway_proto::h2::{ConnFault, ErrorCode, LimitId, NO_TAG};

use super::super::cause::{Cause, Gone};
use super::super::facts::ForRelay;
use super::super::turn::Turn;
use super::flow::{OUTPUT_FULL, no_memory};
use super::hop::{Hop, HopRole, Shutdown, sent_away};
use super::hops::Hops;
use super::link::Link;
use crate::log::Line;
use crate::metrics::Limit;
use crate::net::{Close, ConnId, End};

/// Payload of the PING between the two GOAWAYs.
pub(super) const DRAIN_PING: [u8; 8] = *b"goaway-2";

/// The highest stream id: a GOAWAY that refuses nothing yet (RFC 9113 §6.8).
const EVERY_STREAM: u32 = 0x7fff_ffff;

impl Hops {
    /// After one receive: liveness, limits that stop reading, timers.
    #[inline(always)]
    pub(super) fn after_http2(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let hop = self.known(conn);
        hop.received_at = turn.now;
        hop.answered();
        let unread = hop.link.wants_pause();
        let weary = hop.link.glitches_high();
        let partial = hop.partial as usize != hop.link.partial();
        if unread || turn.net.queued(conn) > OUTPUT_FULL {
            self.stop_reading(turn, conn, conn);
        }
        let over = partial && self.count_partial(turn, conn);
        self.watch(turn, conn);
        if weary {
            self.warn(turn, conn);
        }
        if over {
            self.fail(turn, conn, no_memory());
        }
    }

    /// The peer broke a rule that ends the connection: GOAWAY, then the end.
    pub(super) fn fail(&mut self, turn: &mut Turn<'_>, conn: ConnId, fault: ConnFault) {
        if let Some(limit) = fault.limit {
            turn.limit_hit(limit_of(limit));
        }
        let hop = self.known(conn);
        let last = hop.link.highest_peer_stream();
        let reason = fault.reason.as_bytes();
        hop.link.goaway(last, fault.code, reason, &mut turn.net.sink(conn));
        let (peer, tunnel) = (hop.peer, hop.tunnel().is_some());
        turn.net.close(conn, Close::Flush);
        if tunnel {
            let http1 = fault == ConnFault::SPEAKS_HTTP1;
            let cause = if http1 { Cause::SPEAKS_HTTP1 } else { Cause::BROKEN };
            turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
        } else {
            // A client that broke the protocol loses its sessions. One that was only too busy may
            // come back to them.
            let how = match fault.code {
                ErrorCode::EnhanceYourCalm => Gone::ToldOff,
                _ => Gone::ByUs(Cause::CLIENT_GONE),
            };
            turn.relay(ForRelay::ClientOver { conn, how });
        }
        turn.line(Line::ConnectionFailed { peer, tunnel, fault });
    }

    /// Closes a connection whose peer takes nothing any more.
    pub(super) fn cut(&self, turn: &mut Turn<'_>, conn: ConnId) {
        let tunnel = self.hop(conn).map(|hop| hop.tunnel().is_some());
        if tunnel == Some(true) {
            let cause = Cause::STALLED;
            turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
        } else {
            turn.net.close(conn, Close::Now);
            // A client that takes nothing any more is treated as lost, so that it may come back.
            turn.relay(ForRelay::ClientOver { conn, how: Gone::Ended(End::Timeout) });
        }
    }

    /// The first GOAWAY of a client connection.
    pub(super) fn warn(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let hop = self.hop_mut(conn).filter(|hop| !hop.is_shutting_down());
        let Some(Hop { link, role: HopRole::Client(client), .. }) = hop else { return };
        match link {
            Link::H2(_) => {
                // This GOAWAY refuses nothing. The PING behind it asks for a sign that it was read.
                let out = &mut turn.net.sink(conn);
                link.goaway(EVERY_STREAM, ErrorCode::NoError, b"", out);
                link.ping(DRAIN_PING, out);
                client.shutdown = Shutdown::Warned { since: turn.now };
                self.watch(turn, conn);
            }
            // A running HTTP/1 exchange says in its response that it is the last. An idle
            // connection ends.
            Link::H1(h1) => {
                client.shutdown = Shutdown::Final;
                h1.codec.close_after();
                if h1.slot == NO_TAG && h1.codec.is_between() && h1.upgrading.is_none() {
                    turn.net.close(conn, Close::Flush);
                    let how = Gone::ByUs(Cause::SHUTDOWN);
                    turn.relay(ForRelay::ClientOver { conn, how });
                }
            }
        }
    }

    /// The final GOAWAY: what came up to now is served, nothing after it.
    pub(super) fn last_goaway(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let Hop { link, role, .. } = self.known(conn);
        let HopRole::Client(client) = role else { return };
        let last = link.highest_peer_stream();
        link.goaway(last, ErrorCode::NoError, b"", &mut turn.net.sink(conn));
        link.refuse_new(true);
        client.shutdown = Shutdown::Final;
        if link.streams() == 0 {
            turn.net.close(conn, Close::Flush);
            turn.relay(ForRelay::ClientOver { conn, how: sent_away(turn) });
        }
    }
}

/// The name in metrics of a limit of the HTTP/2 codec.
fn limit_of(limit: LimitId) -> Limit {
    match limit {
        LimitId::L1 => Limit::Streams,
        LimitId::L2 => Limit::HeaderBytes,
        LimitId::L3 => Limit::HeaderBlock,
        LimitId::L4 => Limit::HpackTable,
        LimitId::L5 => Limit::Glitches,
        LimitId::L6 => Limit::QueuedAnswers,
        LimitId::L7 => Limit::EmptyData,
        LimitId::L8 => Limit::WindowUpdates,
        LimitId::L9 => Limit::StreamWindow,
        LimitId::L10 => Limit::Handshake,
    }
}
