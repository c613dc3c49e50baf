//! The polls of a worker's connection, and the work that they were answered with.

use std::time::Duration;

use ringway_proto::time::Time;

use super::super::facts::Edge;
use super::super::turn::Turn;
use crate::control::local::{POLL_WAIT, PollAnswer, PollFault, PollId, PollRequest, Work};
use crate::message::CoreMessage;
use crate::net::ConnId;
use crate::timeline::Event;

/// How much longer than the dispatch's own time a poll waits for an answer of its dispatch home.
const POLL_GRACE: Duration = Duration::from_secs(5);

/// The answer to a poll if there is no work.
const NO_WORK: &[u8] = b"HTTP/1.1 204 No Content\r\ndate: ";

/// The answer with work, up to the value of its length.
const WORK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: ";

/// The polls of one connection.
#[derive(Debug)]
pub(super) struct Polls {
    conn: ConnId,
    /// The present round: polls that belong together (see [`PollId::round`]). None before the first
    /// poll, and after the connection has given up waiting.
    round: Option<Round>,
}

#[derive(Debug)]
struct Round {
    number: u64,
    /// The dispatch home of the last poll.
    home: u16,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// `polls` polls are not answered yet: one at most for a worker that waits for its answers. At
    /// `until` all are answered with no work, whatever the dispatch home says.
    Waits { polls: u32, until: Time },
    /// The last poll was answered with work, and it is not known yet whether the answer has
    /// arrived.
    Offered,
    /// All polls are answered, and their dispatch home knows what has become of the answers.
    Settled,
}

/// What has become of an answer with work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The answer has arrived: the worker has said something since.
    Arrived,
    /// The answer was sent, and whether it has arrived will not be known.
    Unsure,
    /// The answer was not sent whole, or no poll waits for one any more.
    Lost,
}

impl Fate {
    fn of(self, poll: PollId) -> CoreMessage {
        match self {
            Self::Arrived => CoreMessage::Delivered(poll),
            Self::Unsure => CoreMessage::Doubted(poll),
            Self::Lost => CoreMessage::Gone(poll),
        }
    }
}

impl Polls {
    pub(super) fn new(conn: ConnId) -> Self {
        Self { conn, round: None }
    }

    /// Polls that are not answered yet.
    pub(super) fn waiting(&self) -> u32 {
        match self.round {
            Some(Round { stage: Stage::Waits { polls, .. }, .. }) => polls,
            _ => 0,
        }
    }

    /// When the polls that wait are answered with no work.
    pub(super) fn until(&self) -> Option<Time> {
        match self.round {
            Some(Round { stage: Stage::Waits { until, .. }, .. }) => Some(until),
            _ => None,
        }
    }

    /// Whether polls wait for an answer of that core.
    pub(super) fn wait_at(&self, core: u16) -> bool {
        self.waiting() > 0 && self.round.as_ref().is_some_and(|round| round.home == core)
    }

    /// Whether a poll of this round waits.
    pub(super) fn wait_in(&self, number: u64) -> bool {
        self.waiting() > 0 && self.round.as_ref().is_some_and(|round| round.number == number)
    }

    /// Sends a worker's poll to its dispatch home. `rounds` counts the rounds of this core.
    pub(super) fn place(&mut self, turn: &mut Turn<'_>, request: PollRequest, rounds: &mut u64) {
        let home = turn.settings.dispatch_home(&request.function_id, &request.function_version_id);
        // This is the next request on the connection, so the answer before has arrived.
        self.told(turn, Fate::Arrived);
        if self.waiting() > 0 && !self.wait_at(home) {
            self.end(turn);
        }
        let polls = self.waiting() + 1;
        let number = self.round.as_ref().map_or_else(
            || {
                *rounds += 1;
                *rounds
            },
            |round| round.number,
        );
        let until = turn.now + POLL_WAIT + POLL_GRACE;
        self.round = Some(Round { number, home, stage: Stage::Waits { polls, until } });
        let poll = self.id(turn, number);
        turn.send(home, CoreMessage::Poll(poll, Box::new(request)));
    }

    /// Tells the dispatch home what has become of the last answer with work.
    pub(super) fn told(&mut self, turn: &mut Turn<'_>, fate: Fate) {
        if let Some(round) = &mut self.round
            && let Stage::Offered = round.stage
        {
            round.stage = Stage::Settled;
            let (home, number) = (round.home, round.number);
            let poll = self.id(turn, number);
            turn.send(home, fate.of(poll));
        }
    }

    /// Another request came while a poll waits: the poll is replaced.
    pub(super) fn end(&mut self, turn: &mut Turn<'_>) {
        self.told(turn, Fate::Arrived);
        self.nothing(turn);
    }

    /// Answers all polls that wait with no work. Answers on their way to them are void.
    pub(super) fn nothing(&mut self, turn: &mut Turn<'_>) {
        if let Some(Round { number, home, stage: Stage::Waits { polls, .. } }) = self.round {
            self.round = None;
            let poll = self.id(turn, number);
            turn.send(home, Fate::Lost.of(poll));
            for _ in 0..polls {
                self.put_no_work(turn);
            }
        }
    }

    /// Answers one of the polls that wait.
    pub(super) fn answered(&mut self, turn: &mut Turn<'_>, answer: &PollAnswer) {
        let crossed = self.less();
        match answer {
            PollAnswer::Nothing => self.put_no_work(turn),
            PollAnswer::Work(work) => {
                self.put_work(turn, work);
                let round = self.round.as_mut().expect("a poll of it was just answered");
                if !crossed {
                    round.stage = Stage::Offered;
                    return;
                }
                // The connection's newer poll came before this answer, so it does not show that the
                // answer has arrived. A request that shows it may come only after the newer poll's
                // answer. But the dispatch home gives no second work before it has heard of the
                // first, so it is told now.
                let (home, number) = (round.home, round.number);
                let poll = self.id(turn, number);
                turn.send(home, Fate::Unsure.of(poll));
            }
        }
    }

    /// There is no room for the last poll at its dispatch home, or on the way there. The polls that
    /// it would have replaced are answered first. Returns the answer to the last one.
    #[must_use]
    pub(super) fn refused(&mut self, turn: &mut Turn<'_>) -> PollFault {
        if self.less() {
            self.end(turn);
        }
        PollFault { status: 503, text: "too many polls wait: try later".into() }
    }

    /// Counts one poll less that waits. True if others still wait.
    fn less(&mut self) -> bool {
        let round = self.round.as_mut().expect("only a poll that waits is answered");
        match &mut round.stage {
            Stage::Waits { polls, .. } if *polls > 1 => {
                *polls -= 1;
                true
            }
            stage => {
                *stage = Stage::Settled;
                false
            }
        }
    }

    /// The connection has ended. `may_have_arrived`: all that was sent may have arrived. That is
    /// not sure even after a FIN, because the FIN may have crossed the answer.
    pub(super) fn left(self, turn: &mut Turn<'_>, may_have_arrived: bool) {
        let Some(round) = &self.round else { return };
        let fate = match round.stage {
            Stage::Waits { .. } => Fate::Lost,
            Stage::Offered if may_have_arrived => Fate::Unsure,
            Stage::Offered => Fate::Lost,
            Stage::Settled => return,
        };
        let poll = self.id(turn, round.number);
        turn.send(round.home, fate.of(poll));
    }

    fn id(&self, turn: &Turn<'_>, round: u64) -> PollId {
        PollId { node: turn.settings.node, core: turn.settings.core, conn: self.conn, round }
    }

    fn put_no_work(&self, turn: &mut Turn<'_>) {
        let date = turn.date();
        turn.put(self.conn, NO_WORK);
        turn.put(self.conn, date.as_bytes());
        turn.put(self.conn, b"\r\n\r\n");
    }

    fn put_work(&self, turn: &mut Turn<'_>, work: &Work) {
        let date = turn.date();
        let settings = turn.settings;
        let direct = settings.config.cluster.direct.as_deref();
        let json = work.to_json(direct.into_iter().chain([&*settings.advertise]));
        turn.put(self.conn, WORK);
        turn.put(self.conn, date.as_bytes());
        turn.put(self.conn, b"\r\ncontent-length: ");
        turn.put(self.conn, json.len().to_string().as_bytes());
        turn.put(self.conn, b"\r\n\r\n");
        turn.put(self.conn, &json);
        turn.edge(Edge::Note { session: work.request_id, at: None, event: Event::HandedOut });
    }
}

/// No poll waits for this answer: its work is queued again.
pub(super) fn unwanted(turn: &mut Turn<'_>, poll: PollId, answer: &PollAnswer) {
    if let PollAnswer::Work(work) = answer {
        let home = turn.settings.dispatch_home(&work.owner.function, &work.owner.version);
        turn.send(home, Fate::Lost.of(poll));
    }
}
