//! The mail to other cores, and what is done with a message that finds no room.
//!
//! What asks for something is refused at once: whoever waits for it is told to try again. What must
//! not be lost waits in the outbox of its core and is tried again, in order, with everything later
//! behind it. The outbox is bounded: at its limit what is in it is thrown away, the other core is
//! told so with one word, and both begin anew with each other as after a panic (`restart.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;

use super::Shard;
use crate::border::Border;
use crate::metrics::Limit;
use crate::post::CorePost;

/// How long after a message found no room it is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(1);

/// Messages that must not be lost and found no room.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// By core.
    cores: Vec<VecDeque<CorePost>>,
    waiting: usize,
    retry_at: Option<Time>,
    /// Cores for which there was more than may wait.
    overrun: Vec<u16>,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0 && self.overrun.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// When the next try is due.
    pub(crate) fn deadline(&self) -> Option<Time> {
        if self.overrun.is_empty() { self.retry_at } else { Some(Time::ZERO) }
    }

    fn waits_for(&self, core: u16) -> bool {
        self.overrun.contains(&core)
            || self.cores.get(usize::from(core)).is_some_and(|queue| !queue.is_empty())
    }

    fn keep(&mut self, core: u16, post: CorePost, now: Time) {
        let at = usize::from(core);
        if self.cores.len() <= at {
            self.cores.resize_with(at + 1, VecDeque::new);
        }
        self.cores[at].push_back(post);
        self.waiting += 1;
        self.retry_at.get_or_insert(now + RETRY);
    }

    fn clear(&mut self, core: u16) {
        if let Some(queue) = self.cores.get_mut(usize::from(core)) {
            self.waiting -= queue.len();
            queue.retain(CorePost::carries_tunnel);
            queue.shrink_to_fit();
            self.waiting += queue.len();
        }
        if self.waiting == 0 {
            self.retry_at = None;
        }
        self.overrun.retain(|other| *other != core);
    }

    /// Whether a word that this core is idle waits.
    pub(crate) fn holds_idle(&self) -> bool {
        self.cores.iter().flatten().any(|post| matches!(post, CorePost::Idle { .. }))
    }

    /// Everything, in order.
    fn take(&mut self, into: &mut Vec<(u16, CorePost)>) {
        for (core, queue) in self.cores.iter_mut().enumerate() {
            into.extend(std::mem::take(queue).into_iter().map(|post| (core as u16, post)));
        }
        self.waiting = 0;
        self.retry_at = None;
    }
}

impl Shard {
    /// The messages for other cores since the last call, each with the core it is for. When one
    /// finds no room, it and all later ones of this call for the same core come back through
    /// [`Self::undelivered`]: the order between two cores has to be kept.
    pub fn take_core_posts(&mut self, into: &mut Vec<(u16, CorePost)>) {
        into.append(&mut self.core_posts);
    }

    /// A message found its core's mailbox full.
    pub fn undelivered(&mut self, border: &mut Border, to: u16, post: CorePost) {
        self.now = border.now;
        if !post.may_be_refused() {
            return self.keep(to, post);
        }
        match post {
            CorePost::Connect(moved) => self.turn_away(border, moved.parcel),
            CorePost::Submit(work) => self.no_room_for(border, to, work),
            CorePost::Poll(poll, _) => self.poll_refused(border, poll),
            CorePost::Find(find) => {
                let key = super::attach::key_of(find.ticket);
                self.end_asking(border, key, &Fault::MailboxFull);
            }
            _ => {}
        }
    }

    /// Says what must not be lost.
    pub(super) fn tell(&mut self, to: u16, post: CorePost) {
        debug_assert!(!post.may_be_refused() && to != self.settings.core, "{to}: {post:?}");
        if self.outbox.waits_for(to) {
            self.keep(to, post);
        } else {
            self.core_posts.push((to, post));
        }
    }

    /// Asks for what may be refused: it is, while other mail waits for that core.
    pub(super) fn ask(&mut self, to: u16, post: CorePost) -> Result<(), CorePost> {
        debug_assert!(post.may_be_refused() && to != self.settings.core, "{to}: {post:?}");
        if self.mail_waits(to) {
            self.metrics.limit_hit(Limit::Mailbox);
            return Err(post);
        }
        self.core_posts.push((to, post));
        Ok(())
    }

    /// Whether that core has no room now, as far as is known.
    pub(super) fn mail_waits(&self, to: u16) -> bool {
        self.outbox.waits_for(to)
    }

    pub(super) fn keep(&mut self, to: u16, post: CorePost) {
        if self.outbox.overrun.contains(&to) {
            return;
        }
        // One message for each attachment may have to follow a new beginning.
        let most = self.settings.config.limits.outbox + self.attachments.len();
        if self.outbox.waiting >= most {
            self.metrics.limit_hit(Limit::Outbox);
            self.outbox.clear(to);
            self.outbox.overrun.push(to);
            return;
        }
        self.outbox.keep(to, post, self.now);
    }

    /// Each turn: what waits is tried again when it is due.
    pub(super) fn retry_mail(&mut self, border: &mut Border) {
        for core in std::mem::take(&mut self.outbox.overrun) {
            self.outbox.clear(core);
            let own = self.settings.core;
            // Behind it in the outbox comes what is still true.
            self.outbox.keep(core, CorePost::Void { core: own }, border.now);
            self.renew(border, core);
        }
        if self.outbox.retry_at.is_some_and(|at| at <= border.now) {
            self.outbox.take(&mut self.core_posts);
        }
    }

    /// What is on its way to a core that has begun anew is void.
    pub(super) fn drop_mail(&mut self, to: u16) {
        self.outbox.clear(to);
        self.core_posts.retain(|(core, post)| *core != to || post.carries_tunnel());
    }

    /// What another core's shard says.
    pub(super) fn core_posted(&mut self, border: &mut Border, post: CorePost) {
        match post {
            CorePost::Connect(moved) => self.connect_moved_here(border, *moved),
            CorePost::Submit(work) => self.submitted(border, *work),
            CorePost::Withdraw(ticket) => self.local.withdraw(ticket),
            CorePost::Recall(ticket) => {
                if self.local.recall(ticket) {
                    self.tell(ticket.core, CorePost::Recalled(ticket));
                }
            }
            CorePost::Recalled(ticket) => self.recalled(border, ticket),
            CorePost::Poll(poll, request) => {
                if self.local.poll(poll, *request, self.now).is_err() {
                    self.metrics.limit_hit(Limit::Polls);
                    // What it replaced is answered first.
                    self.answer_polls(border);
                    self.tell(poll.core, CorePost::TooManyPolls(poll));
                }
            }
            CorePost::Delivered(poll) => self.local.delivered(poll),
            CorePost::Doubted(poll) => self.local.doubted(poll, self.now),
            CorePost::Gone(poll) => self.local.gone(poll),
            CorePost::Answer(poll, answer) => self.poll_answered(border, poll, &answer),
            CorePost::TooManyPolls(poll) => self.poll_refused(border, poll),
            CorePost::QueueFull(ticket) => {
                self.not_submitted(border, ticket, &Fault::WorkQueueFull);
            }
            CorePost::Find(find) => self.find(border, *find),
            CorePost::Found(found) => self.found(border, *found),
            CorePost::Join(join) => self.joined(border, *join),
            CorePost::Stand(id, ticket, stand) => self.stands(border, id, ticket, stand),
            CorePost::LetGo(ticket) => self.let_go_parked(border, ticket),
            CorePost::Claim { parked, to } => self.claimed(border, parked, to),
            CorePost::Resumed(resumed) => self.resumed(border, *resumed),
            CorePost::Parks(parks) => self.parked_elsewhere(border, *parks),
            CorePost::Unparks(ticket) => self.yard.leave(ticket),
            CorePost::Yield(ticket) => self.give_way(border, ticket),
            CorePost::Leave(leave) => self.sessions.leave(*leave),
            CorePost::Void { core } => {
                self.forget_core(border, core);
                self.renew(border, core);
            }
            CorePost::Idle { core } => self.idle_elsewhere(core),
        }
        self.answer_polls(border);
    }
}
