//! Requests whose replies come by one subscription. The client library has such a thing too, but
//! keeps something of each request that was never replied to, for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::{Client, Message, PublishError};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::oneshot;

/// Requests with their replies. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Replies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    /// What the subjects of replies begin with; the request's number follows.
    inbox: String,
    next: AtomicU64,
    /// The requests that wait for a reply, by that number.
    waiting: Mutex<HashMap<u64, oneshot::Sender<Message>>>,
}

/// One request that is out; nobody waits for it when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    shared: Arc<Shared>,
    number: u64,
    reply: oneshot::Receiver<Message>,
}

impl Replies {
    /// Replies to requests of this client. There need be no server yet.
    pub(super) async fn start(client: Client) -> Result<Self, async_nats::SubscribeError> {
        let inbox = client.new_inbox();
        let mut replies = client.subscribe(format!("{inbox}.*")).await?;
        let (next, waiting) = (AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { client, inbox, next, waiting });
        let of_replies = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Some(reply) = replies.next().await {
                let Some(shared) = of_replies.upgrade() else { return };
                shared.take(reply);
            }
        });
        Ok(Self(shared))
    }

    /// Sends a request; its sender bounds how many are out.
    pub(super) async fn request(
        &self,
        subject: String,
        payload: Bytes,
    ) -> Result<Waiting, PublishError> {
        let shared = &self.0;
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        shared.waiting().insert(number, sender);
        let waiting = Waiting { shared: shared.clone(), number, reply };
        let inbox = format!("{}.{number}", shared.inbox);
        shared.client.publish_with_reply(subject, inbox, payload).await?;
        Ok(waiting)
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, reply: Message) {
        let number = reply.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let waits = number.and_then(|number: u64| self.waiting().remove(&number));
        if let Some(sender) = waits {
            // The request may have been given up just now.
            let _ = sender.send(reply);
        }
    }
}

impl Waiting {
    /// The reply; none if the client was closed.
    pub(super) async fn reply(mut self) -> Option<Message> {
        (&mut self.reply).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::testing::Server;
    use super::*;

    #[tokio::test]
    async fn nothing_is_kept_of_a_request_that_nobody_replied_to() {
        const SOON: Duration = Duration::from_secs(10);
        let server = Server::start();
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut asked = client.subscribe("ask").await.unwrap();
        let replies = Replies::start(client.clone()).await.unwrap();
        let first = replies.request("ask".into(), "1".into()).await.unwrap();
        let second = replies.request("ask".into(), "2".into()).await.unwrap();
        assert_eq!(replies.0.waiting().len(), 2);
        let one = timeout(SOON, asked.next()).await.unwrap().unwrap();
        let two = timeout(SOON, asked.next()).await.unwrap().unwrap();
        client.publish(two.reply.unwrap(), "b".into()).await.unwrap();
        let reply = timeout(SOON, second.reply()).await.unwrap().unwrap();
        assert_eq!(&*reply.payload, b"b");
        drop(first);
        assert!(replies.0.waiting().is_empty());
        // A reply that comes too late is dropped.
        client.publish(one.reply.unwrap(), "a".into()).await.unwrap();
        let third = replies.request("nobody".into(), "3".into()).await.unwrap();
        let reply = timeout(SOON, third.reply()).await.unwrap().unwrap();
        assert_eq!(reply.status, Some(async_nats::StatusCode::NO_RESPONDERS));
    }
}
