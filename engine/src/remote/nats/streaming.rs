//! Work for a new session of a streaming function is asked of its workers by request, until one
//! answers (contract CP-12, CP-13).

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Request, RequestErrorKind};
use bytes::Bytes;
use tokio::time::sleep;

use super::link::Link;
use super::pace::Pace;
use super::tasks::Task;

/// Where workers are asked, one region after the other. Those that a client's place would name come
/// before it; the gateway knows of no places.
const REGIONS: [&str; 1] = ["default"];
/// How long an attempt waits for its reply, and how long one that failed otherwise.
const REPLY_LIMIT: Duration = Duration::from_secs(3);
const FAULT_PAUSE: Duration = Duration::from_secs(3);
/// Pause behind an attempt in the last region.
const ROUND_PAUSE: Duration = Duration::from_secs(1);
/// The reference ends it with the client. So does this gateway; a dispatch whose end nobody told
/// ends after this.
const LONGEST: Duration = Duration::from_secs(3600);

/// One dispatch.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) link: Link,
    pub(super) version: String,
    pub(super) id: String,
    pub(super) payload: Bytes,
    pub(super) faults: Arc<Pace>,
}

/// What an attempt came to.
enum Attempt {
    Reply,
    Nobody,
    Fault(String),
}

impl Dispatch {
    /// Asks until a worker replies or it is stopped. What fails meanwhile is for the log alone: the
    /// client waits for the worker itself.
    pub(super) async fn run(self, mut run: Task) {
        tokio::select! {
            () = run.stopped() => {}
            () = self.ask() => {}
            () = sleep(LONGEST) => {}
        }
    }

    async fn ask(&self) {
        loop {
            for region in REGIONS {
                // While no server is there, nothing is given to the library, which would keep it.
                self.link.up().await;
                match self.attempt(region).await {
                    Attempt::Reply => return,
                    Attempt::Nobody => {}
                    Attempt::Fault(why) => self.fault(region, &why).await,
                }
            }
            sleep(ROUND_PAUSE).await;
        }
    }

    async fn fault(&self, region: &str, why: &str) {
        if let Some(left_out) = self.faults.line() {
            tracing::warn!(request_id = self.id, region, why, left_out, "work was not sent");
        }
        sleep(FAULT_PAUSE).await;
    }

    async fn attempt(&self, region: &str) -> Attempt {
        let Some(epoch) = self.link.epoch() else { return Attempt::Nobody };
        let subject = format!("llsrq.{region}.{}.{}", self.version, self.id);
        // With an inbox of its own the library keeps nothing of a request that nobody replied to.
        let request = Request::new()
            .payload(self.payload.clone())
            .inbox(self.link.client.new_inbox())
            .timeout(Some(REPLY_LIMIT));
        let reply = tokio::select! {
            reply = self.link.client.send_request(subject, request) => reply,
            () = self.link.lost(epoch) => return Attempt::Nobody,
        };
        match reply {
            Ok(_) => Attempt::Reply,
            Err(error) => match error.kind() {
                RequestErrorKind::NoResponders | RequestErrorKind::TimedOut => Attempt::Nobody,
                _ => Attempt::Fault(error.to_string()),
            },
        }
    }
}
