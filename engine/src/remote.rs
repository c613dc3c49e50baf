//! The remote control planes: NVIDIA's API, which says who may call, and NATS, by which work
//! reaches workers. All of it runs on the control thread. The cores ask by messages and get their
//! answers by messages ([`crate::control::port`]).

mod answers;
mod api;
mod driver;
mod finding;
mod health;
mod login;
mod nats;
mod probe;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway_proto::id::Node;
use ringway_stdio::Trouble;
use tokio::sync::{mpsc, watch};

use crate::config::{Function, Remote as Settings};
use crate::control::port::{Ask, Located};
use crate::mailbox::Sender;
use crate::message::ShardMessage;

use answers::Answers;
use api::{Api, secrets};
use driver::{Driver, Planes};
pub(crate) use nats::greet;
pub use nats::{Among, Relay};
use nats::{Nats, Own};

pub(crate) use finding::{Finding, Grade};
pub use health::Health;
pub(crate) use probe::examine;

/// The messages and services of `engine/nvcf`, compiled.
pub mod pb {
    #![expect(
        missing_docs,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "it is generated; the meanings stand in `engine/nvcf`"
    )]
    tonic::include_proto!("nvcf");

    /// The messages of the rate limiter.
    pub mod limiter {
        tonic::include_proto!("nvcfratelimiter");
    }
}

/// Messages of the cores that wait for the control thread, each with the questions of one turn.
const ASKED: usize = 4096;
/// How long a start waits for NATS: until it is there, knows this gateway, and the work that a
/// predecessor has left is removed.
const START_LIMIT: Duration = Duration::from_secs(2);
/// How long an end takes at most to take work back from NATS, beside the drain.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The running remote control plane.
#[derive(Clone, Debug)]
pub struct Remote {
    planes: Planes,
    meters: Arc<api::Meters>,
    health: watch::Receiver<Health>,
    red_after: Duration,
}

impl Remote {
    /// Starts the configured planes. No server need be reachable: a missing one is tried for ever,
    /// and waited for at most 2 s. `worker` is the address of the worker listener, which no other
    /// process has now; `cluster` is what it has to do with other gateways; `functions` are those
    /// that the gateway's own file names.
    ///
    /// # Errors
    /// What was configured cannot work, whatever the servers say.
    pub async fn start(
        settings: &Settings,
        (worker, cluster): (SocketAddr, Option<Among>),
        functions: &[Function],
    ) -> Result<Self, Trouble> {
        let meters = Arc::new(api::Meters::default());
        let secrets = secrets::watch(settings.secrets.clone(), meters.clone());
        let authority = settings.authority.as_ref();
        let api = authority.map(|authority| Api::start(authority, &secrets, &meters));
        let api = api.transpose()?;
        let secrets = login::of(settings, &secrets, &meters)?;
        let (worker, versions) = (process(worker), nats::queued(functions));
        let own = Own { worker, versions, cluster };
        let nats = Nats::start(settings, secrets, own, START_LIMIT).await?;
        let health = health::watch(api.as_ref().map(|api| api.health.clone()), nats.health());
        let (client, limiter) = api.map(|api| (api.client, api.limiter)).unzip();
        let planes = Planes { client, limiter: limiter.flatten(), nats };
        Ok(Self { planes, meters, health, red_after: settings.red_after })
    }

    /// Serves these functions from now on.
    pub fn serve_functions(&self, functions: &[Function]) {
        self.planes.nats.serve(nats::queued(functions));
    }

    /// The node that names this gateway in ids and tokens.
    #[must_use]
    pub fn node(&self) -> Node {
        self.planes.nats.node()
    }

    /// Where other gateways reach this one, as far as that is known.
    #[must_use]
    pub fn relay(&self) -> Option<SocketAddr> {
        self.planes.nats.relay()
    }

    /// Where the admin port of another gateway of the cluster answers this one.
    pub async fn admin_of(&self, node: Node) -> Located {
        self.planes.nats.admin_of(node).await
    }

    /// Answers the questions that the cores send by the returned sender, for as long as the cores
    /// run.
    pub fn serve(&self, cores: &Arc<[Sender<ShardMessage>]>) -> mpsc::Sender<Vec<Ask>> {
        let (asks, asked) = mpsc::channel(ASKED);
        let answers = Answers::new(cores.clone());
        tokio::spawn(answers.clone().retry());
        tokio::spawn(Driver::new(self.planes.clone(), answers).run(asked));
        asks
    }

    /// What works and what does not, kept up to date.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Why no client should be sent here, if the reason has lasted for longer than allowed (design
    /// 3.27).
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        self.health.borrow().red_for(self.red_after)
    }

    /// Takes back the work that no worker has, and leaves NATS; takes at most 2 s.
    pub async fn end(&self) {
        let withdrawn = self.planes.nats.shutdown(END_LIMIT).await;
        if withdrawn > 0 {
            tracing::info!(withdrawn, "queued work was taken back");
        }
    }

    /// Writes the metrics of all of it as Prometheus reads them.
    pub fn render(&self, out: &mut String) {
        self.meters.render(out);
        self.planes.nats.render(out);
        self.health.borrow().render(out);
    }
}

/// A name of this process's worker listener that no other living process can have: the machine's
/// run, its network, and the address there. A predecessor with the same name is dead.
fn process(worker: SocketAddr) -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let run = match (read.trim(), network.to_str().unwrap_or_default()) {
        // Without these, and on a port that the kernel picks, the name has to be that of the
        // process.
        ("", _) | (_, "") => format!("process {}", std::process::id()),
        _ if worker.port() == 0 => format!("process {}", std::process::id()),
        (boot, network) => format!("{boot} {network}"),
    };
    format!("{run} {worker}")
}
