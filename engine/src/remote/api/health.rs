//! Checks in the background whether the API is well (contract 8.4).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::channel::words;
use super::meters::{Meters, Rpc};
use super::repeats::Repeats;

/// The time between two checks, and after one that failed.
const CHECK_EVERY: Duration = Duration::from_secs(3);
const CHECK_AGAIN: Duration = Duration::from_secs(1);
/// A check that takes longer has failed (contract 8.4).
const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// What the last check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiHealth {
    /// None while the API is well. Before the first check it counts as not well.
    pub(crate) red: Option<Red>,
}

/// Why the API is not well before the first check.
const NOT_YET: &str = "it was not checked yet";

impl ApiHealth {
    /// Whether a check has found something out.
    pub(crate) fn is_known(&self) -> bool {
        self.red.as_ref().is_none_or(|red| &*red.why != NOT_YET)
    }
}

/// The API is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Red {
    /// Since when: the first check that failed, or the start.
    pub(crate) since: Instant,
    /// Why the last check failed.
    pub(crate) why: Arc<str>,
}

/// Checks the API for as long as somebody wants to know.
pub(super) fn watch(channel: Channel, meters: Arc<Meters>) -> watch::Receiver<ApiHealth> {
    let red = Red { since: Instant::now(), why: NOT_YET.into() };
    let (sender, receiver) = watch::channel(ApiHealth { red: Some(red) });
    tokio::spawn(run(HealthClient::new(channel), sender, meters));
    receiver
}

async fn run(
    mut client: HealthClient<Channel>,
    sender: watch::Sender<ApiHealth>,
    meters: Arc<Meters>,
) {
    let repeats = Repeats::default();
    loop {
        let found = check(&mut client, &meters).await;
        meters.api_checked(found.is_ok());
        let pause = match found {
            Ok(()) => {
                let was = sender.send_replace(ApiHealth { red: None });
                if was.red.is_some() {
                    repeats.over();
                    tracing::info!("NVIDIA's API is healthy");
                }
                CHECK_EVERY
            }
            Err(why) => {
                if let Some(left_out) = repeats.due(&why) {
                    tracing::warn!(why, left_out, "NVIDIA's API fails its health check");
                }
                sender.send_modify(|health| {
                    let since = health.red.as_ref().map_or_else(Instant::now, |red| red.since);
                    health.red = Some(Red { since, why: why.into() });
                });
                CHECK_AGAIN
            }
        };
        tokio::select! {
            () = sender.closed() => return,
            () = sleep(pause) => {}
        }
    }
}

/// One check, without a credential (contract 8.4).
async fn check(client: &mut HealthClient<Channel>, meters: &Meters) -> Result<(), String> {
    let timed = meters.time(Rpc::Health);
    let asked = client.check(HealthCheckRequest { service: String::new() });
    let (code, found) = match timeout(CHECK_LIMIT, asked).await {
        Ok(Ok(answer)) => {
            let status = answer.into_inner().status;
            let found = match ServingStatus::try_from(status) {
                Ok(ServingStatus::Serving) => Ok(()),
                Ok(status) => Err(format!("it says {}", status.as_str_name())),
                Err(_) => Err(format!("it says {status}, which is no status")),
            };
            (Code::Ok, found)
        }
        Ok(Err(status)) => (status.code(), Err(words(&status))),
        Err(_) => (Code::DeadlineExceeded, Err("it did not answer within 5 s".into())),
    };
    timed.ended(code);
    found
}
