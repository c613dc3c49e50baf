//! The workers' listener: its connections before they are tunnels ([`worker_conn`], [`requests`]),
//! their polls ([`polls`]), where work waits for them ([`queue`]), and this core's part of the
//! dispatch ([`mod@home`]).
//!
//! A connection and the dispatch home of its polls talk by messages between cores, even if both are
//! on this core. So one core and many are one path.

mod home;
mod parked_index;
mod polls;
mod queue;
mod requests;
#[cfg(test)]
mod tests;
mod worker_conn;

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::fields::Fields;
use ringway_proto::time::Time;

use self::home::DispatchHome;
use self::requests::PollState;
use self::worker_conn::{After, WorkerConn, WorkerConns};
use super::facts::{Admitted, ForWorkers, OfVersion};
use super::settings::ShardSettings;
use super::turn::Turn;
use crate::control::local::{DispatchLimits, Policy, PollAnswer, PollId};
use crate::message::{CoreMessage, MovedConnect, Parks};
use crate::net::{Close, ConnId, Detached, End};
use crate::pool::Segment;

/// The component.
#[derive(Debug)]
pub(super) struct Workers {
    worker_conns: WorkerConns,
    poll_state: PollState,
    home: DispatchHome,
    /// Connections with input behind a poll, to be served on in the next turn.
    paused: Vec<ConnId>,
}

impl Workers {
    pub(super) fn new(settings: &ShardSettings, policy: Arc<Policy>) -> Self {
        let limits = &settings.config.limits;
        // If this shard replaces a dead one, it must not use that one's rounds again.
        let rounds = u64::from(settings.generation) << 32;
        Self {
            worker_conns: WorkerConns::default(),
            poll_state: PollState { policy, rounds, fields: Fields::new() },
            home: DispatchHome::new(DispatchLimits {
                queue: limits.work_queue,
                polls: limits.polls,
            }),
            paused: Vec::new(),
        }
    }

    // ---- connections ----

    /// A worker's connection was accepted, and there is room for it.
    pub(super) fn accepted(&mut self, turn: &mut Turn<'_>, conn: ConnId, peer: SocketAddr) {
        let mut worker_conn = Box::new(WorkerConn::new(conn, peer, turn.now));
        worker_conn.watch(turn);
        self.worker_conns.insert(worker_conn);
    }

    /// Whether this component has the connection.
    pub(super) fn holds(&self, conn: ConnId) -> bool {
        self.worker_conns.get(conn).is_some()
    }

    pub(super) fn received(&mut self, turn: &mut Turn<'_>, conn: ConnId, segment: Segment) {
        self.at(conn, |worker_conn, poll_state| worker_conn.received(turn, poll_state, segment));
    }

    /// The worker's bytes have ended.
    pub(super) fn ended(&mut self, turn: &mut Turn<'_>, conn: ConnId, end: End) {
        self.at(conn, |worker_conn, _| {
            worker_conn.over(turn, end);
            turn.net.close(conn, Close::Flush);
            After::Gone
        });
    }

    /// The PROXY header of a connection says who the peer is.
    pub(super) fn addressed(&mut self, conn: ConnId, peer: SocketAddr) {
        if let Some(worker_conn) = self.worker_conns.get_mut(conn) {
            worker_conn.peer = peer;
        }
    }

    /// A connection that moves has nothing under way any more.
    pub(super) fn detached(&mut self, turn: &mut Turn<'_>, conn: ConnId, detached: Detached) {
        if let Some(worker_conn) = self.worker_conns.take(conn) {
            worker_conn.detached(turn, detached);
        }
    }

    /// A connection's timer has fired ([`Due::WorkerConn`](super::timer::Due::WorkerConn)).
    pub(super) fn look_at(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        self.at(conn, |worker_conn, _| worker_conn.look_at(turn));
    }

    /// All connections, in order.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.worker_conns.ids()
    }

    /// Ends a connection. To end all of them, the facts of one end must be done before the next
    /// end: the work that was lost with one connection goes to the next one.
    pub(super) fn end(&mut self, turn: &mut Turn<'_>, conn: ConnId, how: Close) {
        self.at(conn, |worker_conn, _| {
            worker_conn.close_how(turn, how);
            After::Gone
        });
    }

    /// Does something with a connection, if it is still there. If that has ended the connection, it
    /// leaves the table.
    fn at(&mut self, conn: ConnId, act: impl FnOnce(&mut WorkerConn, &mut PollState) -> After) {
        if let Some(mut worker_conn) = self.worker_conns.take(conn) {
            let after = act(&mut worker_conn, &mut self.poll_state);
            self.put_back(worker_conn, after);
        }
    }

    fn put_back(&mut self, worker_conn: Box<WorkerConn>, after: After) {
        match after {
            After::Gone => return,
            After::Paused => self.paused.push(worker_conn.conn),
            After::Stays => {}
        }
        self.worker_conns.insert(worker_conn);
    }

    fn connect(&mut self, turn: &mut Turn<'_>, moved: MovedConnect) {
        let mut worker_conn = Box::new(WorkerConn::adopted(turn, moved));
        let after = worker_conn.serve(turn, &mut self.poll_state);
        self.put_back(worker_conn, after);
    }

    fn admit(&mut self, turn: &mut Turn<'_>, conn: ConnId, admitted: Admitted) {
        if let Some(worker_conn) = self.worker_conns.take(conn) {
            worker_conn.admit(turn, admitted);
        }
    }

    // ---- polls ----

    /// Whether the connection still waits for this poll's answer.
    fn waits_for(&self, poll: PollId) -> bool {
        self.worker_conns
            .get(poll.conn)
            .is_some_and(|worker_conn| worker_conn.polls.wait_in(poll.round))
    }

    fn poll_answered(&mut self, turn: &mut Turn<'_>, poll: PollId, answer: &PollAnswer) {
        if self.waits_for(poll) {
            self.at(poll.conn, |worker_conn, _| worker_conn.poll_answered(turn, answer));
        } else {
            polls::unwanted(turn, poll, answer);
        }
    }

    fn poll_refused(&mut self, turn: &mut Turn<'_>, poll: PollId) {
        if self.waits_for(poll) {
            self.at(poll.conn, |worker_conn, _| worker_conn.poll_refused(turn));
        }
    }

    // ---- the dispatch's time ----

    /// New work may have waited for so long that a parked tunnel yields
    /// ([`Due::Yield`](super::timer::Due::Yield)).
    pub(super) fn look_at_queues(&mut self, turn: &mut Turn<'_>) {
        self.home.look_at_queues(turn);
    }

    /// Called each turn, and at the latest when [`Self::deadline`] says.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
        for conn in std::mem::take(&mut self.paused) {
            self.at(conn, |worker_conn, poll_state| worker_conn.serve_on(turn, poll_state));
        }
        self.home.turn(turn);
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        if self.paused.is_empty() { self.home.deadline() } else { Some(Time::ZERO) }
    }

    // ---- other cores, and other rules ----

    /// Drops what a core asked of this one: its work and its polls. Forgets the tunnels parked
    /// there.
    pub(super) fn forget_core(&mut self, turn: &mut Turn<'_>, core: u16) {
        self.home.forget_core(turn, core);
    }

    /// A core has forgotten this one: polls that wait there are answered with no work.
    pub(super) fn renew(&mut self, turn: &mut Turn<'_>, core: u16) {
        for conn in self.worker_conns.waiting_at(core) {
            self.at(conn, |worker_conn, _| worker_conn.poll_overdue(turn));
        }
    }

    /// Uses these rules from now on.
    pub(super) fn replace_policy(&mut self, policy: Arc<Policy>) {
        self.poll_state.policy = policy;
    }

    // ---- facts ----

    pub(super) fn on(&mut self, turn: &mut Turn<'_>, fact: ForWorkers) {
        match fact {
            ForWorkers::Admit { conn, admitted } => self.admit(turn, conn, *admitted),
            ForWorkers::Reject { conn, result, age } => {
                self.at(conn, |worker_conn, _| worker_conn.reject(turn, result, age));
            }
            ForWorkers::SendAway { conn, node } => {
                if let Some(worker_conn) = self.worker_conns.take(conn) {
                    worker_conn.send_away(turn, node);
                }
            }
            ForWorkers::Back(back) => worker_conn::back(turn, *back),
            ForWorkers::Arrived(arrived) => {
                let mut worker_conn = Box::new(WorkerConn::arrived(turn, *arrived));
                worker_conn.watch(turn);
                self.worker_conns.insert(worker_conn);
            }
            ForWorkers::SendHome { conn, core } => {
                self.at(conn, |worker_conn, _| worker_conn.send_home(turn, core));
            }
            ForWorkers::NoWayHome { conn } => {
                self.at(conn, |worker_conn, _| worker_conn.no_way_home(turn))
            }
            ForWorkers::Submit(work) => queue::submit(turn, work),
            ForWorkers::Withdraw(of) => queue::withdraw(turn, &of),
            ForWorkers::Served(of) => queue::served(turn, &of),
            ForWorkers::Recall(of) => queue::recall(turn, &of),
            ForWorkers::Impatient(of) => {
                let OfVersion { ticket, function, version } = *of;
                let home = turn.settings.dispatch_home(&function, &version);
                let parks = Parks { ticket, function, version };
                turn.send(home, CoreMessage::Impatient(Box::new(parks)));
            }
            ForWorkers::Parks(parks) => {
                let home = turn.settings.dispatch_home(&parks.function, &parks.version);
                turn.send(home, CoreMessage::Parks(parks));
            }
            ForWorkers::Unparks(of) => turn.send(home(turn, &of), CoreMessage::Unparks(of.ticket)),
            ForWorkers::Connect(moved) => self.connect(turn, *moved),
            ForWorkers::TurnAway(detached) => worker_conn::turn_away(turn, detached),
            ForWorkers::Submitted(work) => self.home.submitted(turn, *work),
            ForWorkers::Withdrawn(ticket) => self.home.withdrawn(turn, ticket),
            ForWorkers::RecallAsked(ticket) => self.home.recall_asked(turn, ticket),
            ForWorkers::Polled(poll, request) => self.home.polled(turn, poll, *request),
            ForWorkers::PollRefused(poll) => self.poll_refused(turn, poll),
            ForWorkers::Delivered(poll) => self.home.delivered(turn, poll),
            ForWorkers::Doubted(poll) => self.home.doubted(turn, poll),
            ForWorkers::PollGone(poll) => self.home.gone(turn, poll),
            ForWorkers::PollAnswered(poll, answer) => self.poll_answered(turn, poll, &answer),
            ForWorkers::ImpatientThere(parks) => {
                self.home.impatient(turn, &(parks.function, parks.version));
            }
            ForWorkers::ParkedThere(parks) => self.home.parked(turn, *parks),
            ForWorkers::UnparkedThere(ticket) => self.home.unparked(ticket),
        }
    }

    // ---- values ----

    /// Connections that are no tunnels yet.
    pub(super) fn len(&self) -> usize {
        self.worker_conns.len()
    }

    /// Polls that wait here, of all cores.
    pub(super) fn polls(&self) -> usize {
        self.home.polls()
    }

    /// Work items in the fullest queue.
    pub(super) fn fullest(&self) -> usize {
        self.home.fullest()
    }

    /// Whether no connection, work, poll or parked tunnel is known.
    pub(super) fn is_empty(&self) -> bool {
        self.worker_conns.len() == 0 && self.home.is_empty()
    }
}

/// The dispatch home of an attachment's work.
fn home(turn: &Turn<'_>, of: &OfVersion) -> u16 {
    turn.settings.dispatch_home(&of.function, &of.version)
}
