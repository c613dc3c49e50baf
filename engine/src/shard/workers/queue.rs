//! Puts work where it waits for a worker, and takes it back. That is the dispatch home of its
//! function version, which may be this core, or a remote control plane.

use super::super::facts::{Ask, AskTicket, Fact, ForSessions, OfVersion, Question, Topic};
use super::super::turn::Turn;
use super::home;
use crate::control::local::{Ticket, Work};
use crate::control::port::Plane;
use crate::message::CoreMessage;

/// Queues an attachment's work.
pub(super) fn submit(turn: &mut Turn<'_>, work: Box<Work>) {
    match turn.settings.dispatch {
        Plane::Local => {
            let owner = &work.owner;
            let home = turn.settings.dispatch_home(&owner.function, &owner.version);
            turn.send(home, CoreMessage::Submit(work));
        }
        Plane::Remote => ask(turn, work.ticket, Question::Submit(work)),
    }
}

/// No attachment waits for the work any more.
pub(super) fn withdraw(turn: &mut Turn<'_>, of: &OfVersion) {
    match turn.settings.dispatch {
        Plane::Local => turn.send(home(turn, of), CoreMessage::Withdraw(of.ticket)),
        Plane::Remote => ask(turn, of.ticket, Question::Withdraw),
    }
}

/// The work's worker is there.
pub(super) fn served(turn: &mut Turn<'_>, of: &OfVersion) {
    match turn.settings.dispatch {
        Plane::Local => turn.send(home(turn, of), CoreMessage::Withdraw(of.ticket)),
        Plane::Remote => ask(turn, of.ticket, Question::Settled),
    }
}

/// Takes a spare's work back, unless a worker has been told of it already. A remote plane has no
/// queue for spares: if no worker has come by now, none listens.
pub(super) fn recall(turn: &mut Turn<'_>, of: &OfVersion) {
    match turn.settings.dispatch {
        Plane::Local => turn.send(home(turn, of), CoreMessage::Recall(of.ticket)),
        Plane::Remote => turn.sessions(ForSessions::Recalled(of.ticket)),
    }
}

fn ask(turn: &mut Turn<'_>, ticket: Ticket, what: Question) {
    let (settings, number) = (turn.settings, ticket.number);
    let (core, life, about) = (settings.core, settings.generation, Topic::Tunnel);
    let deadline = turn.now + settings.config.session.wait;
    turn.fact(Fact::Ask(Ask { ticket: AskTicket { core, life, about, number }, deadline, what }));
}
