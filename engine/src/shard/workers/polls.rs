//! What a worker's connection asked the dispatch: its polls, and the work that it was answered.

use std::time::Duration;

use ringway_proto::time::Time;

use super::super::facts::Edge;
use super::super::turn::Turn;
use crate::control::local::{POLL_WAIT, PollAnswer, PollFault, PollId, PollRequest, Work};
use crate::message::CoreMessage;
use crate::net::ConnId;
use crate::timeline::Event;

/// How much longer than the dispatch's own time a poll waits for a word of its dispatch home.
const POLL_GRACE: Duration = Duration::from_secs(5);

/// The answer to a poll when there is nothing.
const NO_WORK: &[u8] = b"HTTP/1.1 204 No Content\r\ndate: ";

/// The answer with work, up to its length.
const WORK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: ";

/// The polls of one connection.
#[derive(Debug)]
pub(super) struct Polls {
    conn: ConnId,
    /// Polls that belong together (see [`PollId::round`]); none before the first one, and after the
    /// connection gave up waiting.
    round: Option<Round>,
}

#[derive(Debug)]
struct Round {
    number: u64,
    /// The dispatch home of its last poll.
    home: u16,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// So many polls are not answered yet, which is one at most for a worker that waits for its
    /// answers. All are answered with nothing at `until`, whatever the dispatch home says.
    Waits { polls: u32, until: Time },
    /// The last one was answered with work, and nothing tells yet whether that has arrived.
    Offered,
    /// All are answered, and what is to be said of the answers was said.
    Settled,
}

/// What is known of an answer with work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has arrived: the worker has said something since.
    Arrived,
    /// It was sent, and nothing will tell.
    Unsure,
    /// It was not sent, or not all of it; or nobody waits for one any more.
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

    /// When those that wait are answered with nothing.
    pub(super) fn until(&self) -> Option<Time> {
        match self.round {
            Some(Round { stage: Stage::Waits { until, .. }, .. }) => Some(until),
            _ => None,
        }
    }

    /// Whether polls wait for a word of that core.
    pub(super) fn wait_at(&self, core: u16) -> bool {
        self.waiting() > 0 && self.round.as_ref().is_some_and(|round| round.home == core)
    }

    /// Whether one of this round waits.
    pub(super) fn wait_in(&self, number: u64) -> bool {
        self.waiting() > 0 && self.round.as_ref().is_some_and(|round| round.number == number)
    }

    /// A worker's poll goes to where its work would be. `rounds` numbers those of the core.
    pub(super) fn place(&mut self, turn: &mut Turn<'_>, request: PollRequest, rounds: &mut u64) {
        let home = turn.settings.dispatch_home(&request.function_id, &request.function_version_id);
        // The next request on the connection: what was answered before has arrived.
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

    /// This is what is known of the work that the connection was answered before.
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

    /// Answers all that wait with nothing; what was on its way to them is void.
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

    /// One of the polls that wait has its answer.
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
                // A newer poll of the connection was here before this answer and so tells nothing
                // of it, and what does may come only behind the newer one's own answer. The
                // dispatch home gives no second work before it has heard of the first: it is told
                // what is known now.
                let (home, number) = (round.home, round.number);
                let poll = self.id(turn, number);
                turn.send(home, Fate::Unsure.of(poll));
            }
        }
    }

    /// The dispatch home has no room for the last poll, or there was none on the way to it. Those
    /// before it, which it would have replaced, are answered first. What it is answered itself.
    #[must_use]
    pub(super) fn refused(&mut self, turn: &mut Turn<'_>) -> PollFault {
        if self.less() {
            self.end(turn);
        }
        PollFault { status: 503, text: "too many polls wait: try later".into() }
    }

    /// One that waits is answered. Whether others still wait.
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

    /// The connection has ended; whether all that was sent may have arrived. Its FIN may have
    /// crossed the answer: then the worker has not read it.
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

/// Nobody waits for this answer: its work is queued again.
pub(super) fn unwanted(turn: &mut Turn<'_>, poll: PollId, answer: &PollAnswer) {
    if let PollAnswer::Work(work) = answer {
        let home = turn.settings.dispatch_home(&work.owner.function, &work.owner.version);
        turn.send(home, Fate::Lost.of(poll));
    }
}
