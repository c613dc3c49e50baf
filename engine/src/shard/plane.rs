//! Who answers what sessions ask of the control plane: the local one, within the turn, or one that
//! takes time, whose driver is told what is asked.

use super::facts::{Answer, Ask, ForSessions, Question, Topic, key_numbered};
use super::timer::Due;
use super::turn::Turn;
use crate::control::local::Policy;
use crate::control::port::Plane;

/// What is asked of a control plane that takes time, and its driver has not taken yet. At most as
/// many questions as sessions let wait, and one withdrawal for each that was taken before.
#[derive(Debug, Default)]
pub(super) struct PlaneQueue {
    out: Vec<Ask>,
}

impl PlaneQueue {
    /// Something is asked. `draw` gives a random number to those that pick one of several versions.
    pub(super) fn ask(
        &mut self,
        turn: &mut Turn<'_>,
        (policy, draw): (&Policy, impl FnOnce() -> u64),
        ask: Ask,
    ) {
        let ticket = ask.ticket;
        match (turn.settings.plane, &ask.what) {
            (Plane::Local, Question::Authorise(call)) => {
                let (credential, function) = (call.credential(), call.function());
                let granted = policy.authorise(credential, function, call.version(), draw());
                let answer = granted.map_or_else(Answer::Denied, Answer::Granted);
                turn.sessions(ForSessions::Answered { ticket, answer });
            }
            // It was answered before anybody could leave.
            (Plane::Local, Question::Withdraw) if ticket.about == Topic::Call => {}
            (Plane::Remote, Question::Authorise(_)) => {
                turn.arm(ask.deadline, Due::Ask(key_numbered(ticket.number)));
                self.out.push(ask);
            }
            // The local plane has no work and no sessions of others: these are a remote one's.
            (
                _,
                Question::Submit(_)
                | Question::Lookup(_)
                | Question::Locate(_)
                | Question::Progress { .. }
                | Question::Settled,
            ) => self.out.push(ask),
            (_, Question::Withdraw) => {
                // Of what was not said yet nothing has to be taken back; how far it has come is
                // asked of what was.
                let unsaid = |other: &Ask| {
                    other.ticket == ticket && !matches!(other.what, Question::Progress { .. })
                };
                match self.out.iter().position(unsaid) {
                    Some(at) => drop(self.out.remove(at)),
                    None => self.out.push(ask),
                }
            }
        }
    }

    /// What was asked since the last call, in order.
    pub(super) fn take(&mut self, into: &mut Vec<Ask>) {
        into.append(&mut self.out);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.out.is_empty()
    }
}
