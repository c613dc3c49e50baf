//! What cores say to each other, and what is done with a message that finds no room.
//!
//! A message to one's own core takes the same way without the mailbox: it is heard at once.
//!
//! A message that asks for something is refused at once, and its client or worker is told to try
//! again. A message that must not be lost waits in the outbox of its core. It is tried again in
//! order, and every later message waits behind it. The outbox is bounded. At its limit its content
//! is thrown away, and the other core gets one message that says so. Both cores then begin anew
//! with each other, as after a panic.

mod outbox;
#[cfg(test)]
mod tests;

use ringway_proto::fault::Fault;
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use self::outbox::Outbox;
use super::facts::{Fact, ForRelay, ForSessions, ForWorkers};
use super::turn::Turn;
use crate::control::local::WorkKind;
use crate::message::{CoreMessage, MovedConnect, Resumed, Vouched};
use crate::metrics::Limit;

/// What this core has to do about a message.
#[derive(Debug)]
pub(super) enum Heard {
    /// One component is told.
    Fact(Fact),
    /// [`ForWorkers::Connect`], if there may be one more connection of the functions' side;
    /// otherwise [`ForWorkers::TurnAway`].
    Connect(Box<MovedConnect>),
    /// [`ForSessions::Resumed`], with whether there may be one more connection to the functions'
    /// side.
    Resumed(Box<Resumed>),
    /// This core forgets what that core asked for, and asks again for what it wanted of that core.
    Void { core: u16 },
}

/// The component.
#[derive(Debug)]
pub(super) struct Cores {
    /// The node that these cores are of.
    node: Node,
    /// Messages for other cores, to be sent at the end of the turn.
    messages: Vec<(u16, CoreMessage)>,
    outbox: Outbox,
    /// Other cores that drain and have no client left.
    idle: Vec<u16>,
    /// The other cores were told that this core is idle.
    told_idle: bool,
}

impl Cores {
    /// The cores of this node; no message was sent yet.
    pub(super) fn new(node: Node) -> Self {
        let (messages, idle) = (Vec::new(), Vec::new());
        Self { node, messages, outbox: Outbox::default(), idle, told_idle: false }
    }

    // ---- saying ----

    /// Sends a message to a core. If that is this core, returns what to do about it. `attachments`
    /// is how many this core has: after a new beginning one message for each may follow, so that
    /// many may wait.
    #[must_use]
    pub(super) fn send(
        &mut self,
        turn: &mut Turn<'_>,
        attachments: usize,
        to: u16,
        message: CoreMessage,
    ) -> Option<Heard> {
        if to == turn.settings.core {
            return self.heard(message);
        }
        if !self.outbox.waits_for(to) {
            self.messages.push((to, message));
        } else if message.may_be_refused() {
            turn.limit_hit(Limit::Mailbox);
            self.refuse(turn, attachments, to, message);
        } else {
            self.keep(turn, attachments, to, message);
        }
        None
    }

    /// A message found its core's mailbox full.
    pub(super) fn undelivered(
        &mut self,
        turn: &mut Turn<'_>,
        attachments: usize,
        to: u16,
        message: CoreMessage,
    ) {
        if message.may_be_refused() {
            self.refuse(turn, attachments, to, message);
        } else {
            self.keep(turn, attachments, to, message);
        }
    }

    /// There is no room for a message that may be refused. A client is told to try again. A spare
    /// has no client that could, and its session may depend on it: so its work waits.
    fn refuse(&mut self, turn: &mut Turn<'_>, attachments: usize, to: u16, message: CoreMessage) {
        match message {
            CoreMessage::Connect(moved) => turn.workers(ForWorkers::TurnAway(moved.detached)),
            CoreMessage::Poll(poll, _) => turn.workers(ForWorkers::PollRefused(poll)),
            CoreMessage::Find(find) => turn.sessions(ForSessions::NotFound(find)),
            CoreMessage::Vouch(vouch) => {
                let vouched = Vouched { ticket: vouch.ticket, owner: None };
                turn.sessions(ForSessions::Vouched(Box::new(vouched)));
            }
            CoreMessage::Submit(work) if work.kind != WorkKind::Spare => {
                let (ticket, fault) = (work.ticket, Box::new(Fault::MailboxFull));
                turn.sessions(ForSessions::NotSubmitted { ticket, fault });
            }
            // The sender repeats this message by itself.
            CoreMessage::Impatient(_) => {}
            spare => self.keep(turn, attachments, to, spare),
        }
    }

    fn keep(&mut self, turn: &mut Turn<'_>, attachments: usize, to: u16, message: CoreMessage) {
        let most = turn.settings.config.limits.outbox + attachments;
        if self.outbox.keep(to, message, turn.now, most).is_err() {
            turn.limit_hit(Limit::Outbox);
        }
    }

    /// Whether that core's mailbox has no room, as far as this core knows.
    pub(super) fn mail_waits(&self, to: u16) -> bool {
        self.outbox.waits_for(to)
    }

    /// The messages for other cores since the last call, each with the core it is for. When one
    /// finds no room, it and all later ones of this call for the same core come back through
    /// [`Self::undelivered`]: the order between two cores has to be kept.
    pub(super) fn take_messages(&mut self, into: &mut Vec<(u16, CoreMessage)>) {
        into.append(&mut self.messages);
    }

    // ---- hearing ----

    /// A message from another core, or from this one to itself. None if it was for this component,
    /// or names something of another node.
    #[must_use]
    pub(super) fn heard(&mut self, message: CoreMessage) -> Option<Heard> {
        if !message.is_of(self.node) {
            return None;
        }
        let workers = |fact| Some(Heard::Fact(Fact::Workers(fact)));
        let sessions = |fact| Some(Heard::Fact(Fact::Sessions(fact)));
        match message {
            CoreMessage::Connect(moved) => Some(Heard::Connect(moved)),
            CoreMessage::Submit(work) => workers(ForWorkers::Submitted(work)),
            CoreMessage::Withdraw(ticket) => workers(ForWorkers::Withdrawn(ticket)),
            CoreMessage::Recall(ticket) => workers(ForWorkers::RecallAsked(ticket)),
            CoreMessage::Recalled(ticket) => sessions(ForSessions::Recalled(ticket)),
            CoreMessage::Poll(poll, request) => workers(ForWorkers::Polled(poll, request)),
            CoreMessage::Delivered(poll) => workers(ForWorkers::Delivered(poll)),
            CoreMessage::Doubted(poll) => workers(ForWorkers::Doubted(poll)),
            CoreMessage::Gone(poll) => workers(ForWorkers::PollGone(poll)),
            CoreMessage::Answer(poll, answer) => workers(ForWorkers::PollAnswered(poll, answer)),
            CoreMessage::TooManyPolls(poll) => workers(ForWorkers::PollRefused(poll)),
            CoreMessage::QueueFull(ticket) => {
                let fault = Box::new(Fault::WorkQueueFull);
                sessions(ForSessions::NotSubmitted { ticket, fault })
            }
            CoreMessage::Find(find) => sessions(ForSessions::Find(find)),
            CoreMessage::Found(found) => sessions(ForSessions::Found(found)),
            CoreMessage::Vouch(vouch) => sessions(ForSessions::Vouch(vouch)),
            CoreMessage::Vouched(vouched) => sessions(ForSessions::Vouched(vouched)),
            CoreMessage::Join(join) => sessions(ForSessions::Join(join)),
            CoreMessage::MemberState(id, ticket, member_state) => {
                sessions(ForSessions::MemberState(id, ticket, member_state))
            }
            CoreMessage::EndSurplus(ticket) => sessions(ForSessions::EndSurplus(ticket)),
            CoreMessage::Claim { parked, to } => sessions(ForSessions::Claim { parked, to }),
            CoreMessage::Resumed(resumed) => Some(Heard::Resumed(resumed)),
            CoreMessage::Parks(parks) => workers(ForWorkers::ParkedThere(parks)),
            CoreMessage::Impatient(parks) => workers(ForWorkers::ImpatientThere(parks)),
            CoreMessage::Unparks(ticket) => workers(ForWorkers::UnparkedThere(ticket)),
            CoreMessage::Yield(ticket) => sessions(ForSessions::YieldWorker(ticket)),
            CoreMessage::Leave(leave) => sessions(ForSessions::Leave(leave)),
            CoreMessage::NodeLeaves(node) => {
                Some(Heard::Fact(Fact::Relay(ForRelay::NodeLeaves { node })))
            }
            CoreMessage::Void { core } => Some(Heard::Void { core }),
            CoreMessage::Idle { core } => {
                if !self.idle.contains(&core) {
                    self.idle.push(core);
                }
                None
            }
        }
    }

    // ---- trying again, beginning anew ----

    /// Each turn, before [`Self::retry`]: the cores whose outbox was over its limit. They are told
    /// so. Behind that message all components say what is still true.
    #[must_use]
    pub(super) fn overrun(&mut self, turn: &Turn<'_>) -> Vec<u16> {
        let overrun = self.outbox.take_overrun();
        for to in &overrun {
            self.outbox.put(*to, CoreMessage::Void { core: turn.settings.core }, turn.now);
        }
        overrun
    }

    /// Each turn: what waits is tried again when it is due.
    pub(super) fn retry(&mut self, turn: &Turn<'_>) {
        self.outbox.take_due(turn.now, &mut self.messages);
    }

    /// Whether anything waits for [`Self::overrun`] or [`Self::retry`].
    pub(super) fn waits(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// When [`Self::overrun`] and [`Self::retry`] have something to do.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.outbox.deadline()
    }

    /// Another core's shard panicked: messages on their way there are void. That core is told to
    /// forget this one. Behind that message all components say what is still true. False if the
    /// core is this one: it learns nothing new from its own panic.
    #[must_use]
    pub(super) fn restarted(&mut self, turn: &mut Turn<'_>, attachments: usize, core: u16) -> bool {
        let own = turn.settings.core;
        if core == own {
            return false;
        }
        self.outbox.clear(core);
        self.messages.retain(|(to, message)| *to != core || message.carries_tunnel());
        self.idle.retain(|other| *other != core);
        // The new shard may have got messages of this core before this core heard of the panic. The
        // messages that were to follow those have just been dropped.
        self.tell(turn, attachments, core, CoreMessage::Void { core: own });
        true
    }

    /// A core has forgotten this one. Called after the same call of all other components, so that a
    /// core which ends because all are idle has heard everything else before.
    pub(super) fn renew(&mut self, turn: &mut Turn<'_>, attachments: usize, core: u16) {
        if self.told_idle {
            self.tell(turn, attachments, core, CoreMessage::Idle { core: turn.settings.core });
        }
    }

    fn tell(&mut self, turn: &mut Turn<'_>, attachments: usize, to: u16, message: CoreMessage) {
        if self.outbox.waits_for(to) {
            self.keep(turn, attachments, to, message);
        } else {
            self.messages.push((to, message));
        }
    }

    // ---- the end of a drain ----

    /// Tells the others, once, that this core drains and has no client left.
    pub(super) fn tell_idle(&mut self, turn: &mut Turn<'_>, attachments: usize) {
        if std::mem::replace(&mut self.told_idle, true) {
            return;
        }
        let core = turn.settings.core;
        for other in (0..turn.settings.cores).filter(|other| *other != core) {
            self.tell(turn, attachments, other, CoreMessage::Idle { core });
        }
    }

    /// Whether each of `cores` cores has said that it has no client left, and this core's own
    /// message has gone. `no_clients`: this core has none.
    pub(super) fn all_are_idle(&self, cores: u16, no_clients: bool) -> bool {
        let others = usize::from(cores).saturating_sub(1);
        no_clients
            && self.idle.len() >= others
            && (others == 0 || self.told_idle)
            && self.messages.is_empty()
            && !self.outbox.holds_idle()
    }

    // ---- values ----

    /// Messages that wait for room.
    pub(super) fn len(&self) -> usize {
        self.outbox.len()
    }

    /// Whether no message for any core is left.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.outbox.is_empty()
    }
}
