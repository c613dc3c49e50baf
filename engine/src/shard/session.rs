//! The directory of the sessions whose home is this core.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ringway_proto::time::Time;
use uuid::Uuid;

use crate::post::SessionRow;

/// Closed sessions that `/sessions` still shows.
const RECENT: usize = 256;

/// A request id and its owner.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: Uuid,
    pub(crate) tenant: Arc<str>,
    pub(crate) function: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) opened: Time,
    /// Attachments that wait or have a tunnel.
    pub(crate) attachments: u32,
    /// Tunnels open now: the worker ends the session with its last one (contract 4.6).
    pub(crate) tunnels: u32,
}

impl Session {
    pub(crate) fn new(
        id: Uuid,
        tenant: Arc<str>,
        function: Arc<str>,
        version: Arc<str>,
        opened: Time,
    ) -> Self {
        Self { id, tenant, function, version, opened, attachments: 0, tunnels: 0 }
    }
}

/// All sessions of one core.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    live: HashMap<Uuid, Session, foldhash::fast::RandomState>,
    recent: VecDeque<SessionRow>,
}

impl Sessions {
    pub(crate) fn insert(&mut self, session: Session) {
        self.live.insert(session.id, session);
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<&Session> {
        self.live.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: Uuid) -> Option<&mut Session> {
        self.live.get_mut(&id)
    }

    /// One attachment less; the last one ends the session, of which `row` remains for a while.
    pub(crate) fn detach(&mut self, id: Uuid, had_tunnel: bool, row: impl FnOnce() -> SessionRow) {
        let Some(session) = self.live.get_mut(&id) else { return };
        session.attachments -= 1;
        session.tunnels -= u32::from(had_tunnel);
        if session.attachments == 0 {
            self.live.remove(&id);
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(row());
        }
    }

    /// An attachment less that never was more than a wish.
    pub(crate) fn forget(&mut self, id: Uuid) {
        if let Some(session) = self.live.get_mut(&id) {
            session.attachments -= 1;
            if session.attachments == 0 {
                self.live.remove(&id);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    /// The rows of sessions that ended not long ago, newest first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = &SessionRow> {
        self.recent.iter().rev()
    }
}
