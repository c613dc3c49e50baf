//! The way of questions to the control plane. The local plane answers within the turn. A remote
//! plane takes time; its driver fetches the questions.

use super::facts::{Answer, Ask, ForSessions, Question, Topic, key_numbered};
use super::timer::Due;
use super::turn::Turn;
use crate::control::local::Policy;
use crate::control::port::Plane;

/// Questions for a remote control plane that its driver has not taken yet. There are at most as
/// many as sessions may have open, and one withdrawal for each that was taken before.
#[derive(Debug, Default)]
pub(super) struct PlaneQueue {
    out: Vec<Ask>,
}

impl PlaneQueue {
    /// Asks a question. `draw` gives a random number, with which one of several versions is picked.
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
            // The local plane answered within the turn, so there is nothing to withdraw.
            (Plane::Local, Question::Withdraw) if ticket.about == Topic::Call => {}
            (Plane::Remote, Question::Authorise(_)) => {
                turn.arm(ask.deadline, Due::Ask(key_numbered(ticket.number)));
                self.out.push(ask);
            }
            // The local plane queues no work and knows no sessions of other gateways: only a remote
            // plane is asked this.
            (
                _,
                Question::Submit(_)
                | Question::Lookup(_)
                | Question::Locate(_)
                | Question::Progress { .. }
                | Question::Settled,
            ) => self.out.push(ask),
            (_, Question::Withdraw) => {
                // A question that the driver has not taken needs no withdrawal. Progress is asked
                // only of work that the driver has taken.
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

    /// The questions since the last call, in order.
    pub(super) fn take(&mut self, into: &mut Vec<Ask>) {
        into.append(&mut self.out);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.out.is_empty()
    }
}
