//! What is still being done under tickets, and can be stopped: dispatches of streaming functions
//! and reconnects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::control::port::AskTicket;

/// As many may run at once as there may be questions out.
const MOST_TASKS: usize = 65_536;

/// All that runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks(Arc<Mutex<HashMap<AskTicket, oneshot::Sender<()>>>>);

/// One of them; it runs no more when this is dropped.
#[derive(Debug)]
pub(super) struct Task {
    tasks: Tasks,
    ticket: AskTicket,
    stopped: oneshot::Receiver<()>,
}

impl Tasks {
    fn all(&self) -> MutexGuard<'_, HashMap<AskTicket, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one; none if too many run.
    pub(super) fn begin(&self, ticket: AskTicket) -> Option<Task> {
        let mut all = self.all();
        if all.len() >= MOST_TASKS {
            return None;
        }
        let (stop, stopped) = oneshot::channel();
        all.insert(ticket, stop);
        Some(Task { tasks: self.clone(), ticket, stopped })
    }

    /// Whether the one of a ticket runs.
    pub(super) fn has(&self, ticket: AskTicket) -> bool {
        self.all().contains_key(&ticket)
    }

    /// Stops the one of a ticket, if it runs.
    pub(super) fn stop(&self, ticket: AskTicket) {
        // Dropping the sender tells the receiver to stop.
        self.all().remove(&ticket);
    }

    /// Stops those of a core's former shards.
    pub(super) fn forget_core(&self, core: u16, life: u32) {
        self.all().retain(|ticket, _| ticket.core != core || ticket.life == life);
    }

    /// Stops all.
    pub(super) fn stop_all(&self) {
        self.all().clear();
    }
}

impl Task {
    /// Waits until it is stopped.
    pub(super) async fn stopped(&mut self) {
        // Nothing is ever sent: the sender goes.
        let _ = (&mut self.stopped).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.tasks.stop(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::control::port::Topic;

    fn ticket(core: u16, life: u32) -> AskTicket {
        AskTicket { core, life, about: Topic::Tunnel, number: 1 }
    }

    #[test]
    fn a_run_ends_when_it_is_stopped_or_its_shard_is_gone() {
        let tasks = Tasks::default();
        let tickets = [ticket(0, 1), ticket(0, 2), ticket(1, 1)];
        let mut begun: Vec<Task> =
            tickets.iter().map(|ticket| tasks.begin(*ticket).unwrap()).collect();
        let mut stopped = || -> Vec<bool> {
            begun.iter_mut().map(|run| run.stopped().now_or_never().is_some()).collect()
        };
        assert_eq!(stopped(), [false, false, false]);
        assert!(tasks.has(ticket(0, 1)) && !tasks.has(ticket(7, 1)));
        tasks.forget_core(0, 2);
        tasks.stop(ticket(1, 1));
        tasks.stop(ticket(7, 1));
        assert_eq!(tasks.all().len(), 1);
        begun.remove(1);
        assert!(tasks.all().is_empty());
    }
}
