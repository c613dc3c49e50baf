//! Messages that found no room in a mailbox and must not be lost.

use std::collections::VecDeque;
use std::time::Duration;

use ringway_proto::time::Time;

use crate::message::CoreMessage;

/// The pause before a message that found no room is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// The messages that wait for room, in order for each core.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// By core.
    cores: Vec<VecDeque<CoreMessage>>,
    waiting: usize,
    retry_at: Option<Time>,
    /// Cores for which more messages came than may wait.
    overrun: Vec<u16>,
}

/// More messages came for a core than may wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0 && self.overrun.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// When the next try is due.
    pub(super) fn deadline(&self) -> Option<Time> {
        if self.overrun.is_empty() { self.retry_at } else { Some(Time::ZERO) }
    }

    pub(super) fn waits_for(&self, core: u16) -> bool {
        self.overrun.contains(&core)
            || self.cores.get(usize::from(core)).is_some_and(|queue| !queue.is_empty())
    }

    /// Keeps a message, unless `most` wait already. A message for a core that was overrun is
    /// dropped: both cores begin anew with each other.
    ///
    /// # Errors
    /// `most` messages wait: the core counts as overrun from now on.
    pub(super) fn keep(
        &mut self,
        core: u16,
        message: CoreMessage,
        now: Time,
        most: usize,
    ) -> Result<(), Overrun> {
        if self.overrun.contains(&core) {
            return Ok(());
        }
        if self.waiting >= most {
            self.clear(core);
            self.overrun.push(core);
            return Err(Overrun);
        }
        self.put(core, message, now);
        Ok(())
    }

    /// Keeps a message, however many wait.
    pub(super) fn put(&mut self, core: u16, message: CoreMessage, now: Time) {
        let at = usize::from(core);
        if self.cores.len() <= at {
            self.cores.resize_with(at + 1, VecDeque::new);
        }
        self.cores[at].push_back(message);
        self.waiting += 1;
        self.retry_at.get_or_insert(now + RETRY);
    }

    /// Drops the messages that wait for a core, except those whose loss would lose a session.
    pub(super) fn clear(&mut self, core: u16) {
        if let Some(queue) = self.cores.get_mut(usize::from(core)) {
            self.waiting -= queue.len();
            queue.retain(CoreMessage::carries_tunnel);
            queue.shrink_to_fit();
            self.waiting += queue.len();
        }
        if self.waiting == 0 {
            self.retry_at = None;
        }
        self.overrun.retain(|other| *other != core);
    }

    /// The cores that were overrun. Their messages have been dropped.
    pub(super) fn take_overrun(&mut self) -> Vec<u16> {
        let overrun = std::mem::take(&mut self.overrun);
        for core in &overrun {
            self.clear(*core);
        }
        overrun
    }

    /// Whether the message that this core is idle still waits.
    pub(super) fn holds_idle(&self) -> bool {
        self.cores.iter().flatten().any(|message| matches!(message, CoreMessage::Idle { .. }))
    }

    /// Every message that waits, in order, if it is time to try again.
    pub(super) fn take_due(&mut self, now: Time, into: &mut Vec<(u16, CoreMessage)>) {
        if self.retry_at.is_none_or(|at| at > now) {
            return;
        }
        for (core, queue) in self.cores.iter_mut().enumerate() {
            into.extend(std::mem::take(queue).into_iter().map(|message| (core as u16, message)));
        }
        self.waiting = 0;
        self.retry_at = None;
    }
}
