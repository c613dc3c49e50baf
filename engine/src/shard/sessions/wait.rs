//! Attachments that wait for their worker: what a remote control plane says of their work, what a worker
//! shows that dials back, and what becomes of those that wait in vain.

use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::h1::connect::ConnectResult;
use ringway_proto::id::{Node, TokenFault};
use uuid::Uuid;

use super::super::cause::Cause;
use super::super::facts::{
    Admitted, Answer, Ask, AskTicket, Edge, Fact, ForWorkers, Progress, Question, key_numbered,
};
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::Sessions;
use super::attachment::{Stage, State};
use crate::control::local::WorkKind;
use crate::control::port::Plane;
use crate::metrics::{AskOutcome, Limit};
use crate::net::ConnId;
use crate::timeline::Event;

/// How much longer a wait takes at most that is over. The control plane has this time to say how
/// far the work has come. A worker that comes meanwhile is welcome.
const LAST_WORD: Duration = Duration::from_millis(250);

/// The place where a token is good.
enum Taken {
    /// Here, for this attachment. The token was minted so long before.
    Here(Key, Duration),
    /// Another core has to say.
    Elsewhere(u16),
    /// Another gateway has to say. None: no gateway of the cluster is named, and there is somebody
    /// else to ask.
    Away(Option<Node>),
}

impl Sessions {
    /// A worker shows a token.
    pub(super) fn token(&mut self, turn: &mut Turn<'_>, conn: ConnId, (text, id): (&[u8], Uuid)) {
        let answer = match self.take_token(turn, text, id) {
            Ok(Taken::Elsewhere(core)) => ForWorkers::SendHome { conn, core },
            Ok(Taken::Away(node)) => ForWorkers::SendAway { conn, node },
            Ok(Taken::Here(key, age)) => {
                self.shown(turn, key);
                let attachments = &mut self.roster.attachments;
                if let Some(of) = attachments.get(key) {
                    turn.workers(ForWorkers::Served(of.of_version(key, turn.settings)));
                    let kind = of.kind().unwrap_or(WorkKind::New);
                    attachments.set(key, State::Arriving { kind });
                }
                let admitted = Admitted { key, age, session: id };
                ForWorkers::Admit { conn, admitted: Box::new(admitted) }
            }
            Err((result, age)) => ForWorkers::Reject { conn, result, age },
        };
        turn.workers(answer);
    }

    /// Finds the attachment that waits with this token. Taking it is one step: whoever comes second
    /// finds that the attachment waits no more (contract WK-8).
    fn take_token(
        &mut self,
        turn: &mut Turn<'_>,
        text: &[u8],
        id: Uuid,
    ) -> Result<Taken, (ConnectResult, Option<Duration>)> {
        // The worker does not hear what is wrong with its token (contract 4.2).
        let unknown = (ConnectResult::TokenUnknown, None);
        let cluster = &turn.settings.config.cluster;
        let address = match self.mint.read(text) {
            Ok(address) => address,
            // Only a token that a MAC proves can name another gateway.
            Err(TokenFault::ForeignNode(node)) if cluster.relays() => {
                return Ok(Taken::Away(Some(node)));
            }
            Err(_) if cluster.fallback.is_some() => return Ok(Taken::Away(None)),
            Err(_) => return Err(unknown),
        };
        if address.core != turn.settings.core && address.core < turn.settings.cores {
            return Ok(Taken::Elsewhere(address.core));
        }
        let key = Key { slot: address.slot, generation: address.generation };
        let expired = (ConnectResult::TokenExpired, None);
        let of = self.roster.attachments.get_mut(key).ok_or(expired)?;
        let session = of.session;
        let State::Waiting { token, issued, wrong, .. } = of.state_mut() else {
            return Err(expired);
        };
        if !token.matches(text) {
            return Err(unknown);
        }
        let age = turn.now.since(*issued);
        if session == id {
            return Ok(Taken::Here(key, age));
        }
        *wrong += 1;
        let revoked = *wrong >= turn.settings.config.limits.token_tries;
        turn.edge(Edge::Note { session, at: None, event: Event::Refused });
        if revoked {
            turn.limit_hit(Limit::TokenTries);
            self.roster.end(turn, key, Cause::REVOKED);
        }
        Err((ConnectResult::RequestIdMismatch, Some(age)))
    }

    /// The control plane says what has become of an attachment's work, or whose a session is that
    /// this gateway does not know. An answer for an attachment that waits for neither is late.
    pub(super) fn tunnel_answered(
        &mut self,
        turn: &mut Turn<'_>,
        ticket: AskTicket,
        answer: Answer,
    ) {
        let key = key_numbered(ticket.number);
        let of = self.roster.attachments.get(key).filter(|_| self.questions.are_ours(ticket));
        let waits = of.map(|of| (of.session, of.state()));
        match (waits, answer) {
            (Some((_, State::Waiting { stage: Stage::Given, .. })), Answer::Queued) => {
                self.queued(turn, key);
            }
            (Some((_, State::Waiting { stage: Stage::Over, .. })), answer) => {
                let progress = match answer {
                    Answer::Stands(progress) => progress,
                    _ => Progress::Unknown,
                };
                self.waited_in_vain(turn, key, progress);
            }
            (Some((_, State::Waiting { stage: Stage::Queued, .. })), answer) => {
                // A worker that has taken the work already needs nobody to make room.
                if answer == Answer::Stands(Progress::Queued)
                    && let Some(of) = self.roster.attachments.get(key)
                {
                    turn.workers(ForWorkers::Impatient(of.of_version(key, turn.settings)));
                }
            }
            (Some((id, State::Waiting { .. })), refused) => {
                let (cause, fault) = match refused {
                    Answer::Limited => (Cause::LIMITED, Fault::RateLimited),
                    Answer::Unqueued(_) => (Cause::UNQUEUED, Fault::PublishFailed),
                    Answer::Unheard => (Cause::NO_WORKER, Fault::NoWorker),
                    Answer::Unregistered => {
                        (Cause::NO_WORKER, Fault::SessionNotFound { request_id: id })
                    }
                    _ => (Cause::UNQUEUED, Fault::Overloaded),
                };
                self.not_submitted(turn, key, (cause, fault));
            }
            (Some((_, State::Asking(_))), answer) => self.looked_up(turn, key, answer),
            _ => turn.metrics.asks[AskOutcome::Late.index()] += 1,
        }
    }

    /// The control plane has queued an attachment's work. Only from now on can a worker that
    /// becomes free take it, so only from now on may a parked session yield to it.
    fn queued(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(of) = self.roster.attachments.get_mut(key)
            && let session = of.session
            && let State::Waiting { kind, since, stage, .. } = of.state_mut()
        {
            *stage = Stage::Queued;
            let took = turn.now.since(*since);
            if *kind != WorkKind::Spare {
                let again = usize::from(*kind == WorkKind::Reconnect);
                turn.metrics.session_init_seconds[again].observe(took.as_secs_f64());
            }
            if *kind == WorkKind::New {
                let event = Event::Queued { took };
                turn.edge(Edge::Note { session, at: None, event });
                turn.arm(turn.now + turn.settings.config.session.park_yield, Due::Patience(key));
            }
        }
    }

    /// A worker shows the token of an attachment's work: it was queued, whoever said so first. The
    /// stream's acknowledgement and the worker come by different ways.
    pub(super) fn shown(&mut self, turn: &mut Turn<'_>, key: Key) {
        if turn.settings.dispatch == Plane::Remote
            && let Some(State::Waiting { stage: Stage::Given, .. }) =
                self.roster.attachments.state(key)
        {
            self.queued(turn, key);
        }
    }

    /// The time has come for an attachment to have its worker, or another core's answer.
    pub(crate) fn waited(&mut self, turn: &mut Turn<'_>, key: Key) {
        let wait = turn.settings.config.session.wait;
        let Some(of) = self.roster.attachments.get_mut(key) else { return };
        let session = of.session;
        match of.state_mut() {
            State::Waiting { kind: WorkKind::New, issued, stage, .. }
                if *stage == Stage::Queued && *issued + wait <= turn.now =>
            {
                *stage = Stage::Over;
                self.ask_progress(turn, key, LAST_WORD);
                turn.arm(turn.now + LAST_WORD, Due::Wait(key));
            }
            State::Waiting { issued, .. } if *issued + wait <= turn.now => {
                self.waited_in_vain(turn, key, Progress::Unknown);
            }
            State::Asking(_) => {
                self.roster.leave(turn, (session, key), None);
                self.roster.end_asking(turn, key, Fault::NoWorker);
            }
            _ => {}
        }
    }

    /// No worker came. `progress` says how far the work had come.
    fn waited_in_vain(&mut self, turn: &mut Turn<'_>, key: Key, progress: Progress) {
        if let Some(of) = self.roster.attachments.get(key)
            && let State::Waiting { issued, .. } = of.state()
        {
            let (session, waited) = (of.session, turn.now.since(*issued));
            let (cause, fault) = match progress {
                Progress::Unknown => (Cause::NO_WORKER, Fault::NoWorker),
                Progress::Queued => (Cause::NO_TAKER, Fault::NoTaker { waited }),
                Progress::Taken => (Cause::NO_CALLBACK, Fault::NoCallback { waited }),
            };
            if progress != Progress::Unknown {
                let event = Event::Stood { taken: progress == Progress::Taken };
                turn.edge(Edge::Note { session, at: None, event });
            }
            self.roster.end_with(turn, key, cause, fault);
        }
    }

    /// A new session has waited for its worker for so long that a parked one may yield, if the new
    /// session's work is still queued. The session then waits anew, because what is done for it
    /// takes its time too.
    pub(crate) fn impatient(&self, turn: &mut Turn<'_>, key: Key) {
        if let Some(of) = self.roster.attachments.get(key)
            && matches!(of.state(), State::Waiting { stage: Stage::Queued, .. })
        {
            let patience = turn.settings.config.session.park_yield;
            self.ask_progress(turn, key, LAST_WORD);
            turn.arm(turn.now + patience, Due::Patience(key));
        }
    }

    /// Asks how far the work has come.
    fn ask_progress(&self, turn: &mut Turn<'_>, key: Key, limit: Duration) {
        if let Some(of) = self.roster.attachments.get(key) {
            let streaming = of.facts.owner.kind.streaming;
            let (ticket, deadline) = (self.questions.tunnel_ticket(key), turn.now + limit);
            turn.fact(Fact::Ask(Ask { ticket, deadline, what: Question::Progress { streaming } }));
        }
    }
}
