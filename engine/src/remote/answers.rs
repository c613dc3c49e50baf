//! The way back: answers for the cores, none of which may be lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::control::port::{Answer, AskTicket};
use crate::mailbox::{Full, Sender};
use crate::message::ShardMessage;

/// The pause before an answer is tried again whose core's mailbox was full.
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// Brings answers to the cores that asked. Answers that find a full mailbox wait here, in order.
/// There are at most as many as open questions.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    cores: Arc<[Sender<ShardMessage>]>,
    kept: Arc<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    messages: Mutex<VecDeque<(u16, ShardMessage)>>,
    some: Notify,
}

impl Answers {
    pub(super) fn new(cores: Arc<[Sender<ShardMessage>]>) -> Self {
        Self { cores, kept: Arc::default() }
    }

    /// Sends an answer to the core that asked.
    pub(super) fn say(&self, ticket: AskTicket, answer: Answer) {
        let (core, message) = (ticket.core, ShardMessage::Answer { ticket, answer });
        let mut kept = self.kept.messages.lock().unwrap_or_else(PoisonError::into_inner);
        // Answers that wait already for this core go first.
        let waits = kept.iter().any(|(other, _)| *other == core);
        let full = if waits { Some(message) } else { self.deliver(core, message) };
        if let Some(message) = full {
            kept.push_back((core, message));
            self.kept.some.notify_one();
        }
    }

    /// Delivers a message; returned if there is no room. A core that has ended needs none.
    fn deliver(&self, core: u16, message: ShardMessage) -> Option<ShardMessage> {
        let to = self.cores.get(usize::from(core))?;
        match to.deliver(message) {
            // Dropping the bell rings it.
            Ok(_bell) => None,
            Err(Full(message)) => Some(message).filter(|_| to.is_open()),
        }
    }

    /// Tries answers again that found no room, for ever.
    pub(super) async fn retry(self) {
        loop {
            self.kept.some.notified().await;
            while self.again() {
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }

    /// Whether something still waits.
    fn again(&self) -> bool {
        let mut kept = self.kept.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut full: Vec<u16> = Vec::new();
        for (core, message) in std::mem::take(&mut *kept) {
            let message =
                if full.contains(&core) { Some(message) } else { self.deliver(core, message) };
            if let Some(message) = message {
                full.push(core);
                kept.push_back((core, message));
            }
        }
        !kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::port::Topic;
    use crate::mailbox::mailbox;

    fn ticket(core: u16, number: u64) -> AskTicket {
        AskTicket { core, life: 1, about: Topic::Call, number }
    }

    #[test]
    fn what_found_no_room_comes_in_order() {
        let (first, mut inbox) = mailbox(1).unwrap();
        let (second, mut other) = mailbox(8).unwrap();
        let answers = Answers::new([first, second].into());
        for number in 1..=3 {
            answers.say(ticket(0, number), Answer::Queued);
        }
        answers.say(ticket(1, 4), Answer::Queued);
        let number = |inbox: &mut crate::mailbox::Mailbox<ShardMessage>| match inbox.receive() {
            Some(ShardMessage::Answer { ticket, .. }) => Some(ticket.number),
            Some(other) => panic!("{other:?}"),
            None => None,
        };
        assert_eq!((number(&mut inbox), number(&mut other)), (Some(1), Some(4)));
        assert!(answers.again());
        assert_eq!((number(&mut inbox), number(&mut inbox)), (Some(2), None));
        assert!(!answers.again());
        assert_eq!(number(&mut inbox), Some(3));
    }
}
