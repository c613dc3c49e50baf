//! This core's work and polls on their way to their dispatch home: the one core where those of a
//! function version meet. On that core it is a call, on any other a message.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;

use super::Shard;
use super::attach::{State, key_of};
use super::close::Cause;
use super::conn::{Conn, Plain};
use super::table::Key;
use crate::border::{Border, Close, ConnId};
use crate::control::local::{POLL_WAIT, PollAnswer, PollFault, PollId, PollRequest, Ticket, Work};
use crate::metrics::Limit;
use crate::post::CorePost;
use crate::trail::Event;

/// How much longer than the dispatch's own time a poll waits for a word of another core.
const POLL_GRACE: Duration = Duration::from_secs(5);

/// Where a worker's connection stands with the dispatch.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// The dispatch home of its last poll.
    home: u16,
    /// See [`PollId::round`]; 0: no poll was made since the last one ended.
    round: u64,
    /// Work was sent to it and nothing tells yet whether that has arrived.
    offered: bool,
    /// When the last poll is answered with nothing, whatever the other core says.
    pub(crate) until: Option<Time>,
    /// Its CONNECT is for this core: the connection moves there.
    pub(crate) moving: Option<u16>,
}

/// What is known of an answer with work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// It has arrived: the worker has said something since.
    Arrived,
    /// It was sent, and nothing will tell.
    Unsure,
    /// It was not sent, or not all of it; or nobody waits for one any more.
    Lost,
}

/// The answer to a poll when there is nothing.
const NO_WORK: &[u8] = b"HTTP/1.1 204 No Content\r\ndate: ";

/// The answer with work, up to its length.
const WORK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: ";

impl Shard {
    /// The core where work and polls of a function version meet.
    pub(super) fn dispatch_home(&self, function: &str, version: &str) -> u16 {
        let cores = self.settings.cores;
        if cores <= 1 {
            return self.settings.core;
        }
        // The same on every core.
        let mut hasher = DefaultHasher::new();
        (function, version).hash(&mut hasher);
        (hasher.finish() % u64::from(cores)) as u16
    }

    /// Hands an attachment's work to its dispatch home.
    pub(super) fn submit(&mut self, border: &mut Border, key: Key, work: Work) {
        let home = self.dispatch_home(&work.function, &work.version);
        if home == self.settings.core {
            let version = (work.function.clone(), work.version.clone());
            if self.local.submit(work, self.now).is_err() {
                self.metrics.limit_hit(Limit::WorkQueue);
                self.give_up(border, key, Cause::QUEUE_FULL);
            }
            self.look_at_queue(border, &version);
        } else if let Err(CorePost::Submit(work)) = self.ask(home, CorePost::Submit(Box::new(work)))
        {
            self.no_room_for(border, home, work);
        }
    }

    /// Another core's mailbox has no room for work. A client is told to try again; for a spare
    /// there is nobody to do so, and its session may depend on it: it waits.
    pub(super) fn no_room_for(&mut self, border: &mut Border, home: u16, work: Box<Work>) {
        let attachment = self.attachments.get(key_of(work.ticket));
        if attachment.is_some_and(|attachment| attachment.client.is_none()) {
            self.keep(home, CorePost::Submit(work));
        } else {
            self.not_submitted(border, work.ticket, &Fault::MailboxFull);
        }
    }

    /// Another core's work has come.
    pub(super) fn submitted(&mut self, border: &mut Border, work: Work) {
        let ticket = work.ticket;
        let version = (work.function.clone(), work.version.clone());
        if self.local.submit(work, self.now).is_err() {
            self.metrics.limit_hit(Limit::WorkQueue);
            self.answer_polls(border);
            self.tell(ticket.core, CorePost::QueueFull(ticket));
        }
        self.look_at_queue(border, &version);
    }

    /// The work did not get into its queue.
    pub(super) fn not_submitted(&mut self, border: &mut Border, ticket: Ticket, fault: &Fault) {
        let key = key_of(ticket);
        let state = self.attachments.get(key).map(|attachment| &attachment.state);
        if let Some(State::Waiting { .. }) = state {
            let cause = match fault {
                Fault::WorkQueueFull => Cause::QUEUE_FULL,
                _ => Cause::NO_ROOM,
            };
            self.give_up_with(border, key, cause, fault);
        }
    }

    /// Nobody waits for an attachment's work any more.
    pub(super) fn withdraw(&mut self, key: Key, function: &str, version: &str) {
        let home = self.dispatch_home(function, version);
        let ticket = self.ticket(key);
        if home == self.settings.core {
            self.local.withdraw(ticket);
        } else {
            self.tell(home, CorePost::Withdraw(ticket));
        }
    }

    /// A worker's poll goes to where its work would be.
    pub(super) fn place_poll(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        request: PollRequest,
    ) -> Result<(), PollFault> {
        let home = self.dispatch_home(&request.function_id, &request.function_version_id);
        let away = home != self.settings.core;
        // The next request on the connection: what was answered before has arrived.
        self.poll_told(conn, Fate::Arrived);
        if let Some(Conn::Door(door)) = self.conns.get(conn)
            && door.polls > 0
            && door.desk.home != home
        {
            self.end_poll(border, conn);
        }
        let Some(Conn::Door(door)) = self.conns.get_mut(conn) else { return Ok(()) };
        if door.desk.round == 0 {
            self.rounds += 1;
            door.desk.round = self.rounds;
        }
        door.desk.home = home;
        door.desk.until = away.then(|| self.now + POLL_WAIT + POLL_GRACE);
        let poll = PollId { core: self.settings.core, conn, round: door.desk.round };
        let taken = if away {
            self.ask(home, CorePost::Poll(poll, Box::new(request))).is_ok()
        } else {
            let taken = self.local.poll(poll, request, self.now).is_ok();
            if !taken {
                self.metrics.limit_hit(Limit::Polls);
            }
            taken
        };
        if !taken {
            return Err(too_many());
        }
        if let Some(Conn::Door(door)) = self.conns.get_mut(conn) {
            door.polls += 1;
        }
        Ok(())
    }

    /// This is what is known of the work that the connection was answered before.
    pub(super) fn poll_told(&mut self, conn: ConnId, fate: Fate) {
        let core = self.settings.core;
        let Some(Conn::Door(door)) = self.conns.get_mut(conn) else { return };
        if std::mem::take(&mut door.desk.offered) {
            let poll = PollId { core, conn, round: door.desk.round };
            let home = door.desk.home;
            self.say_of_poll(home, poll, fate);
        }
    }

    fn say_of_poll(&mut self, home: u16, poll: PollId, fate: Fate) {
        if home != self.settings.core {
            let post = match fate {
                Fate::Arrived => CorePost::Delivered(poll),
                Fate::Unsure => CorePost::Doubted(poll),
                Fate::Lost => CorePost::Gone(poll),
            };
            return self.tell(home, post);
        }
        match fate {
            Fate::Arrived => self.local.delivered(poll),
            Fate::Unsure => self.local.doubted(poll, self.now),
            Fate::Lost => self.local.gone(poll),
        }
    }

    /// Another request came while a poll waits: the poll is replaced (design 4.5).
    pub(super) fn end_poll(&mut self, border: &mut Border, conn: ConnId) {
        self.answer_polls(border);
        self.poll_told(conn, Fate::Arrived);
        self.nothing_for(border, conn);
    }

    /// Answers all polls of a connection with nothing; what was on its way to them is void.
    pub(super) fn nothing_for(&mut self, border: &mut Border, conn: ConnId) {
        let core = self.settings.core;
        let Some(Conn::Door(door)) = self.conns.get_mut(conn) else { return };
        let polls = std::mem::take(&mut door.polls);
        if polls == 0 {
            return;
        }
        let poll = PollId { core, conn, round: std::mem::take(&mut door.desk.round) };
        let home = door.desk.home;
        door.desk.until = None;
        self.say_of_poll(home, poll, Fate::Lost);
        for _ in 0..polls {
            self.put_no_work(border, conn);
        }
    }

    fn put_no_work(&self, border: &mut Border, conn: ConnId) {
        border.put(conn, NO_WORK);
        border.put(conn, self.settings.date(self.now).as_bytes());
        border.put(conn, b"\r\n\r\n");
    }

    /// The connection's poll has waited longer than its dispatch home lets any wait.
    pub(super) fn poll_overdue(&mut self, border: &mut Border, conn: ConnId) {
        self.nothing_for(border, conn);
        self.poll_settled(border, conn);
    }

    /// A worker's connection has ended before it became a tunnel; whether all that was sent may
    /// have arrived. Its FIN may have crossed the answer: then the worker has not read it.
    pub(super) fn leave_desk(&mut self, conn: ConnId, door: &Plain, may_have_arrived: bool) {
        let poll = PollId { core: self.settings.core, conn, round: door.desk.round };
        if door.desk.offered && may_have_arrived {
            self.say_of_poll(door.desk.home, poll, Fate::Unsure);
        }
        if door.polls > 0 || (door.desk.offered && !may_have_arrived) {
            self.say_of_poll(door.desk.home, poll, Fate::Lost);
        }
    }

    /// Sends the answers that the dispatch has.
    pub(super) fn answer_polls(&mut self, border: &mut Border) {
        let mut answers = std::mem::take(&mut self.poll_answers);
        loop {
            self.local.take_answers(&mut answers);
            if answers.is_empty() {
                break;
            }
            for (poll, answer) in answers.drain(..) {
                if poll.core == self.settings.core {
                    self.poll_answered(border, poll, &answer);
                } else {
                    self.tell(poll.core, CorePost::Answer(poll, answer));
                }
            }
        }
        self.poll_answers = answers;
        while let Some(version) = self.local.take_queued_again() {
            self.look_at_queue(border, &version);
        }
    }

    /// A poll of this core has its answer.
    pub(super) fn poll_answered(&mut self, border: &mut Border, poll: PollId, answer: &PollAnswer) {
        let Some(door) = self.waiting_door(poll) else {
            if let PollAnswer::Work(work) = answer {
                let home = self.dispatch_home(&work.function, &work.version);
                self.say_of_poll(home, poll, Fate::Lost);
            }
            return;
        };
        door.polls -= 1;
        // A newer poll of the connection was here before this answer and so tells nothing of it,
        // and what does may come only behind the newer one's own answer. The dispatch home gives
        // no second work before it has heard of the first: it is told what is known now.
        let crossed = door.polls > 0;
        let home = door.desk.home;
        match answer {
            PollAnswer::Nothing => self.put_no_work(border, poll.conn),
            PollAnswer::Work(work) => {
                door.desk.offered = !crossed;
                let id = work.request_id;
                let json = work.to_json(&self.settings.advertise);
                border.put(poll.conn, WORK);
                border.put(poll.conn, self.settings.date(self.now).as_bytes());
                border.put(poll.conn, b"\r\ncontent-length: ");
                border.put(poll.conn, json.len().to_string().as_bytes());
                border.put(poll.conn, b"\r\n\r\n");
                border.put(poll.conn, &json);
                self.note(id, Event::HandedOut);
                if crossed {
                    self.say_of_poll(home, poll, Fate::Unsure);
                }
            }
        }
        self.poll_settled(border, poll.conn);
    }

    /// The poll's dispatch home has no room for it, or there was none on the way to it.
    pub(super) fn poll_refused(&mut self, border: &mut Border, poll: PollId) {
        let Some(door) = self.waiting_door(poll) else { return };
        // Those before it, which it would have replaced, are answered first.
        door.polls -= 1;
        if door.polls > 0 {
            self.end_poll(border, poll.conn);
        }
        let PollFault { status, text } = too_many();
        self.door_answer(border, poll.conn, status, &text);
        self.poll_settled(border, poll.conn);
    }

    /// The connection that waits for this poll's answer.
    fn waiting_door(&mut self, poll: PollId) -> Option<&mut Plain> {
        match self.conns.get_mut(poll.conn)? {
            Conn::Door(door) if door.polls > 0 && door.desk.round == poll.round => Some(door),
            _ => None,
        }
    }

    /// A poll was answered.
    fn poll_settled(&mut self, border: &mut Border, conn: ConnId) {
        let now = self.now;
        let Some(Conn::Door(door)) = self.conns.get_mut(conn) else { return };
        door.idle_since = now;
        if door.last && door.polls == 0 {
            border.close(conn, Close::Flush);
            self.poll_told(conn, Fate::Unsure);
            self.conns.remove(conn);
        } else {
            self.watch(conn);
        }
    }

    /// The worker polls of this core that wait for another core's word.
    pub(super) fn polls_at(&self, home: u16) -> Vec<ConnId> {
        let waits = |conn: &ConnId| match self.conns.get(*conn) {
            Some(Conn::Door(door)) => door.polls > 0 && door.desk.home == home,
            _ => false,
        };
        self.conns.ids().into_iter().filter(waits).collect()
    }
}

fn too_many() -> PollFault {
    PollFault { status: 503, text: "too many polls wait: try later".into() }
}
