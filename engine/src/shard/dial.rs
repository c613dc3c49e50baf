//! Functions with `dial`: no worker is asked. The core connects to the function's server itself,
//! once for each attachment, and the connection is the tunnel.
//!
//! Such a server knows no sessions: coming back by id is one more connection to it.

use std::collections::HashMap;
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;

use super::Shard;
use super::attach::State;
use super::close::Cause;
use super::table::Key;
use crate::border::{Border, Close, ConnId};
use crate::config::Dial;
use crate::control::local::WorkKind;
use crate::metrics::Limit;
use crate::trail::Event;

/// gRPC code UNAVAILABLE: the client may try again.
const UNAVAILABLE: u8 = 14;

/// Whose the dials under way are.
pub(super) type Dials = HashMap<ConnId, Key>;

/// How far a dial has come.
#[derive(Debug)]
pub(crate) struct Dialling {
    pub(super) kind: WorkKind,
    to: Arc<Dial>,
    /// Which address comes next: they are begun with one at random, and each is tried once.
    next: usize,
    left: usize,
    conn: Option<ConnId>,
    since: Time,
}

impl Shard {
    /// Connects to the server of an attachment's function; false if workers serve it.
    pub(super) fn dial_function(&mut self, border: &mut Border, key: Key, kind: WorkKind) -> bool {
        let draw = self.random_u64();
        let Some(attachment) = self.attachments.get_mut(key) else { return false };
        let to = self.policy.dial(&attachment.owner.function, &attachment.owner.version);
        let Some(to) = to else { return false };
        if kind == WorkKind::New {
            let (function, version) = (&attachment.owner.function, &attachment.owner.version);
            let tenant = &attachment.owner.tenant;
            self.metrics.function_requests.count(function, version, tenant, border.now);
        }
        let left = to.addresses.len();
        let next = (draw % left.max(1) as u64) as usize;
        let since = border.now;
        attachment.state = State::Dialling(Dialling { kind, to, next, left, conn: None, since });
        self.pending.enter(&attachment.owner.tenant, kind);
        self.metrics.worker_connections_opened += 1;
        self.metrics.session_init_seconds[usize::from(kind == WorkKind::Reconnect)].observe(0.0);
        self.dial_next(border, key, Cause::NO_ADDRESS);
        true
    }

    /// Dials the next address; without one the attachment ends, for the reason given.
    fn dial_next(&mut self, border: &mut Border, key: Key, otherwise: Cause) {
        let clients = self.metrics.active_connections as usize;
        let others = self.conns.len().saturating_sub(clients) + self.dials.len();
        let full = others >= self.settings.config.limits.worker_connections;
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        let State::Dialling(dialling) = &mut attachment.state else { return };
        if dialling.left == 0 {
            let function = &attachment.owner.function;
            let text = format!("the server of function {function} cannot be reached");
            let fault = Fault::Api { code: UNAVAILABLE, text };
            return self.give_up_with(border, key, otherwise, &fault);
        }
        if full {
            self.metrics.limit_hit(Limit::WorkerConnections);
            return self.give_up_with(border, key, Cause::NO_CONNECTION, &Fault::Overloaded);
        }
        let address = dialling.to.addresses[dialling.next];
        dialling.next = (dialling.next + 1) % dialling.to.addresses.len();
        dialling.left -= 1;
        let conn = border.dial(address);
        dialling.conn = Some(conn);
        self.dials.insert(conn, key);
    }

    /// A dial has ended: the connection is the tunnel, or the next address is tried.
    pub(super) fn dial_ended(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        result: Result<(), i32>,
    ) {
        let attachment = self.dials.remove(&conn).and_then(|key| {
            let attachment = self.attachments.get_mut(key)?;
            Some((key, attachment))
        });
        let Some((key, attachment)) = attachment else {
            // Nobody waits for it any more.
            return border.close(conn, Close::Now);
        };
        let State::Dialling(dialling) = &mut attachment.state else {
            return border.close(conn, Close::Now);
        };
        dialling.conn = None;
        if let Err(errno) = result {
            return self.dial_next(border, key, Cause::undialled(errno));
        }
        let addresses = &dialling.to.addresses;
        let peer = addresses[(dialling.next + addresses.len() - 1) % addresses.len()];
        let took = border.now.since(dialling.since).into();
        self.pending.leave(&attachment.owner.tenant, dialling.kind);
        self.note_of(key, Event::Dialled { server: peer.into(), took });
        self.become_tunnel(border, conn, (peer, border.now), key);
        self.watch(conn);
    }

    /// An attachment ends: a dial of its is not wanted any more.
    pub(super) fn stop_dialling(&mut self, border: &mut Border, key: Key) {
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        if let State::Dialling(dialling) = &mut attachment.state
            && let Some(conn) = dialling.conn.take()
        {
            self.dials.remove(&conn);
            border.close(conn, Close::Now);
        }
    }
}
