//! This core as dispatch home of function versions: their work and polls meet here, whichever core
//! they come from. A parked session holds a worker; when new work has waited for
//! `session.park_yield`, the tunnel that was parked first yields.
//!
//! Every answer goes as a message to the core that asked, which may be this one.

use ringway_proto::time::Time;

use super::super::timer::Due;
use super::super::turn::Turn;
use super::parked_index::ParkedIndex;
use crate::control::local::{
    Dispatch, DispatchLimits, FunctionVersion, PollAnswer, PollId, PollRequest, Ticket, Work,
};
use crate::message::{CoreMessage, Parks};
use crate::metrics::Limit;

/// The queues of work, the polls that wait for work, and the parked tunnels that keep workers from
/// it.
#[derive(Debug)]
pub(super) struct DispatchHome {
    local: Dispatch,
    parked_index: ParkedIndex,
    /// Memory that is reused in every turn.
    answers: Vec<(PollId, PollAnswer)>,
}

impl DispatchHome {
    pub(super) fn new(limits: DispatchLimits) -> Self {
        Self {
            local: Dispatch::new(limits),
            parked_index: ParkedIndex::default(),
            answers: Vec::new(),
        }
    }

    // ---- work ----

    /// An attachment's work has come.
    pub(super) fn submitted(&mut self, turn: &mut Turn<'_>, work: Work) {
        let ticket = work.ticket;
        let version = work.key();
        if self.local.submit(work, turn.now).is_err() {
            turn.limit_hit(Limit::WorkQueue);
            turn.send(ticket.core, CoreMessage::QueueFull(ticket));
        }
        self.look_at_queue(turn, &version);
        self.answer_polls(turn);
    }

    /// No attachment waits for the work any more.
    pub(super) fn withdrawn(&mut self, turn: &mut Turn<'_>, ticket: Ticket) {
        self.local.withdraw(ticket);
        self.answer_polls(turn);
    }

    /// The work is wanted only if no worker has been told of it yet.
    pub(super) fn recall_asked(&mut self, turn: &mut Turn<'_>, ticket: Ticket) {
        if self.local.recall(ticket) {
            turn.send(ticket.core, CoreMessage::Recalled(ticket));
        }
        self.answer_polls(turn);
    }

    // ---- polls ----

    /// A worker asks for work.
    pub(super) fn polled(&mut self, turn: &mut Turn<'_>, poll: PollId, request: PollRequest) {
        let taken = self.local.poll(poll, request, turn.now);
        // If this poll replaces another one, that one is answered first.
        self.answer_polls(turn);
        if taken.is_err() {
            turn.limit_hit(Limit::Polls);
            turn.send(poll.core, CoreMessage::TooManyPolls(poll));
        }
    }

    /// The poll's answer has arrived.
    pub(super) fn delivered(&mut self, turn: &mut Turn<'_>, poll: PollId) {
        self.local.delivered(poll);
        self.answer_polls(turn);
    }

    /// The poll's answer was sent, and nothing will tell whether it has arrived.
    pub(super) fn doubted(&mut self, turn: &mut Turn<'_>, poll: PollId) {
        self.local.doubted(poll, turn.now);
        self.answer_polls(turn);
    }

    /// Nobody waits for the poll's answer any more.
    pub(super) fn gone(&mut self, turn: &mut Turn<'_>, poll: PollId) {
        self.local.gone(poll);
        self.answer_polls(turn);
    }

    /// Sends the dispatch's answers to the cores of the polls.
    fn answer_polls(&mut self, turn: &mut Turn<'_>) {
        self.local.take_answers(&mut self.answers);
        for (poll, answer) in self.answers.drain(..) {
            turn.send(poll.core, CoreMessage::Answer(poll, answer));
        }
        while let Some(version) = self.local.take_queued_again() {
            self.look_at_queue(turn, &version);
        }
    }

    // ---- parked tunnels ----

    /// A tunnel of a function version whose queue is here is parked.
    pub(super) fn parked(&mut self, turn: &mut Turn<'_>, parks: Parks) {
        let Parks { ticket, function, version } = parks;
        let version = (function, version);
        self.parked_index.enter(ticket, version.clone());
        self.look_at_queue(turn, &version);
    }

    pub(super) fn unparked(&mut self, ticket: Ticket) {
        self.parked_index.leave(ticket);
    }

    /// New work of this version has waited long enough, in a queue outside this gateway.
    pub(super) fn impatient(&mut self, turn: &mut Turn<'_>, version: &FunctionVersion) {
        if let Some(oldest) = self.parked_index.oldest(version) {
            self.parked_index.leave(oldest);
            turn.send(oldest.core, CoreMessage::Yield(oldest));
        }
    }

    /// As many parked tunnels yield as new work of this version has waited long enough.
    fn look_at_queue(&mut self, turn: &mut Turn<'_>, version: &FunctionVersion) {
        let patience = turn.settings.config.session.park_yield;
        while let Some(oldest) = self.parked_index.oldest(version) {
            if !self.local.lose_patience(version, patience, turn.now) {
                break;
            }
            self.parked_index.leave(oldest);
            turn.send(oldest.core, CoreMessage::Yield(oldest));
        }
        if self.parked_index.oldest(version).is_some()
            && let Some(since) = self.local.waits_since(version)
            && self.parked_index.arm(since + patience)
        {
            turn.arm(since + patience, Due::Yield);
        }
    }

    /// The time has come for one of the queues ([`Due::Yield`]).
    pub(super) fn look_at_queues(&mut self, turn: &mut Turn<'_>) {
        if self.parked_index.take_due(turn.now) {
            for version in self.parked_index.versions() {
                self.look_at_queue(turn, &version);
            }
        }
    }

    // ---- time, and cores that begin anew ----

    /// Answers the polls that have waited long enough, and queues work again whose delivery was in
    /// doubt.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
        if self.local.deadline().is_some_and(|at| at <= turn.now) {
            self.local.turn(turn.now);
            self.answer_polls(turn);
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.local.deadline()
    }

    /// Drops the work and the polls of a core that has begun anew.
    pub(super) fn forget_core(&mut self, turn: &mut Turn<'_>, core: u16) {
        self.local.forget_core(core);
        self.parked_index.forget_core(core);
        self.answer_polls(turn);
    }

    // ---- values ----

    /// Polls that wait.
    pub(super) fn polls(&self) -> usize {
        self.local.polls()
    }

    /// Work items in the fullest queue.
    pub(super) fn fullest(&self) -> usize {
        self.local.fullest()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.local.is_empty() && self.parked_index.is_empty()
    }
}
