//! HTTP/1 input that is not of the message under way: input that is put aside until it may be read,
//! input that nobody waits for, and input that cannot be read.

use ringway_proto::h1::head::HeadFault;
use ringway_proto::h1::{Fault, Role, write_text};
use ringway_proto::h2::{ConnFault, ErrorCode, NO_TAG};

use super::super::cause::{Cause, Gone};
use super::super::facts::ForRelay;
use super::super::turn::Turn;
use super::exchange::Served;
use super::flow::OUTPUT_FULL;
use super::hop::{Held, Hop, HopRole, TunnelState};
use super::link::Link;
use super::streams::Streams;
use crate::log::Line;
use crate::metrics::{CopyWhy, Limit};
use crate::net::{Close, ConnId};
use crate::pool::Segment;

/// Bytes over `limits.http1_buffer` that may still arrive after reading was stopped.
const LATE_BYTES: usize = 256 * 1024;

/// Bytes that may still come on a lost client's tunnel. After them the tunnel is not read any more.
const LAST_WORDS: usize = 1 << 20;

/// Bytes that a worker may send on a tunnel before the first request.
const UNASKED_BYTES: usize = 64 * 1024;

impl Streams {
    /// Puts input aside until it may be read; reading stops meanwhile.
    pub(super) fn keep(&mut self, turn: &mut Turn<'_>, conn: ConnId, rest: Segment) {
        let most = turn.settings.config.limits.http1_buffer + LATE_BYTES;
        let h1 = self.hops.h1_mut(conn).expect("the caller has just read it");
        let len = rest.len as usize;
        if h1.kept_bytes + len > most {
            // Reading was stopped before that, so no reactor that keeps to its contract comes here.
            turn.limit_hit(Limit::Http1Buffer);
            return self.hops.cut(turn, conn);
        }
        h1.kept_bytes += len;
        turn.net.stash(rest, &mut h1.kept);
        turn.metrics.payload_copied[CopyWhy::Waiting.index()] += len as u64;
        self.hops.add_buffered(turn, Some(conn), len);
    }

    /// After input: whether reading goes on, and how long a head may take.
    pub(super) fn after_http1(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let hops = &mut self.hops;
        let h1 = hops.h1_mut(conn).expect("the caller has just read it");
        if h1.slot == NO_TAG && h1.codec.held() > 0 {
            h1.begun.get_or_insert(turn.now);
        } else {
            h1.begun = None;
        }
        hops.gate(turn, conn);
        if turn.net.queued(conn) > OUTPUT_FULL {
            hops.stop_reading(turn, conn, conn);
        }
        let over = hops.count_partial(turn, conn);
        hops.watch(turn, conn);
        if over {
            self.http1_fault(turn, conn, Fault::Broken(HeadFault::TooLarge));
        }
    }

    /// Takes bytes that nobody waits for: on a tunnel that is held, or on which nothing was said.
    /// False if the connection is neither.
    pub(super) fn received_unasked(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        segment: Segment,
    ) -> bool {
        let hop = self.hops.known(conn);
        if let HopRole::Tunnel(tunnel) = &mut hop.role
            && let TunnelState::Held(held) = &mut tunnel.state
        {
            if let Held::Lost { dropped } = held {
                let before = std::mem::replace(dropped, *dropped + segment.len as usize);
                if before <= LAST_WORDS && *dropped > LAST_WORDS {
                    self.hops.pause(turn, conn);
                }
            }
            return true;
        }
        let unasked = match &mut hop.link {
            Link::H1(h1) => h1.unspoken.as_mut(),
            Link::H2(_) => None,
        };
        let Some(unasked) = unasked else { return false };
        unasked.extend_from_slice(turn.net.pool.bytes(segment));
        hop.received_at = turn.now;
        if unasked.len() > UNASKED_BYTES {
            let cause = Cause::UNASKED;
            turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
        }
        true
    }

    /// A peer's bytes cannot be read, or can be read in more than one way: its connection ends.
    pub(super) fn http1_fault(&self, turn: &mut Turn<'_>, conn: ConnId, fault: Fault) {
        let hop = self.hops.hop(conn);
        let Some(Hop { link: Link::H1(h1), peer, role, .. }) = hop else { return };
        let tunnel = matches!(role, HopRole::Tunnel(_));
        match fault {
            Fault::Broken(HeadFault::TooLarge) => turn.limit_hit(Limit::HeaderBytes),
            Fault::Broken(HeadFault::Timeout) => turn.limit_hit(Limit::Handshake),
            Fault::Broken(HeadFault::TooManyFields) => turn.limit_hit(Limit::HeaderFields),
            _ => {}
        }
        let told = ConnFault { code: ErrorCode::ProtocolError, reason: fault.text(), limit: None };
        turn.line(Line::ConnectionFailed { peer: *peer, tunnel, fault: told });
        if tunnel {
            let cause = Cause::MALFORMED;
            return turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
        }
        let exchange = self.exchanges.at(h1.slot).filter(|_| h1.slot != NO_TAG);
        let begun = exchange.is_some_and(|exchange| exchange.status != 0);
        let whole = exchange.is_none_or(|exchange| exchange.served == Served::Ourselves);
        if !begun && !h1.foreign {
            let date = turn.date();
            let out = &mut turn.net.sink(conn);
            write_text(fault.status(Role::Server), fault.text(), false, date, out);
        }
        turn.net.close(conn, if begun && !whole { Close::Now } else { Close::Flush });
        let how = Gone::ByUs(Cause::CLIENT_GONE);
        turn.relay(ForRelay::ClientOver { conn, how });
    }
}
