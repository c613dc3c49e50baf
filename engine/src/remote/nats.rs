//! Work, registrations and reconnects travel over NATS (contract 5.4, 6 and 7.2).
//!
//! All of it runs on the control thread. Each question is a task of its own, so none waits for
//! another. While no server is there, no message is given to the client library, which would send
//! it at some later time (design 3.23).

mod auth;
mod connect;
mod fixes;
mod ledger;
mod link;
mod lookup;
mod made;
mod meters;
mod nodes;
mod pace;
mod payload;
mod predecessors;
mod probe;
mod reconnect;
mod replies;
mod requests;
mod rights;
mod streaming;
mod submit;
mod tally;
mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod withdraw;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway_proto::id::{Node, RequestIds};
use ringway_stdio::Trouble;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::config::Remote;
use crate::control::local::{Work, WorkKind};
use crate::control::port::{Answer, AskTicket, Located, Progress};
use crate::keys::Keys;
use crate::metrics::single;

pub(super) use auth::{Secrets, TokenSource};
pub(super) use link::State;
pub(super) use meters::Meters;
pub(crate) use probe::greet;
pub(in crate::remote) use probe::{Own as Probed, examine};
pub(in crate::remote) use requests::{Versions, queued};

use connect::{Listener, News};
use ledger::Ledger;
use link::Link;
use lookup::Lookups;
pub use nodes::Relay;
use nodes::{Liveness, NodeConfig, Nodes};
use pace::Pace;
use predecessors::Predecessors;
use reconnect::Reconnects;
use replies::Replies;
use requests::Requests;
use rights::Rights;
use streaming::Dispatch;
use submit::{Published, Publisher, To};
use tally::WithdrawMeters;
use tasks::Tasks;
use withdraw::Streams;

/// NATS, as the driver asks it.
#[derive(Clone, Debug)]
pub(super) struct Nats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    region: Arc<str>,
    /// The URIs that workers dial, in order.
    proxy_uris: Vec<String>,
    meters: Arc<Meters>,
    ledger: Ledger,
    nodes: Nodes,
    predecessors: Predecessors,
    rights: Arc<Rights>,
    withdrawals: Arc<WithdrawMeters>,
    lookups: Lookups,
    publisher: Publisher,
    /// The request streams; none if NVIDIA's control plane makes them.
    requests: Option<Requests>,
    reconnects: Reconnects,
    tasks: Tasks,
    faults: Arc<Pace>,
}

/// What a gateway needs for the others of its cluster.
#[derive(Clone, Debug)]
pub struct Among {
    /// Where the others reach it.
    pub relay: Relay,
    /// Where the others ask it for its sessions; none if its admin port is only for its own
    /// machine.
    pub admin: Option<Relay>,
    /// The keys by which they know each other, kept up to date.
    pub keys: watch::Receiver<Arc<Keys>>,
}

/// The facts about this process.
#[derive(Debug)]
pub(super) struct Own {
    /// The name of its worker listener, which no other living process has.
    pub(super) worker: String,
    /// Versions whose request streams this gateway keeps, if nobody else does.
    pub(super) versions: Versions,
    /// What it needs for the other gateways.
    pub(super) cluster: Option<Among>,
}

impl Nats {
    /// Begins to connect, which goes on for ever: it does not matter whether a server is there. Who
    /// this gateway is among others, and what a predecessor of it has left, is settled for at most
    /// `limit`; what is not done by then goes on by itself.
    ///
    /// # Errors
    /// What is configured cannot be used, whatever the servers say.
    pub(super) async fn start(
        settings: &Remote,
        secrets: Secrets,
        own: Own,
        limit: Duration,
    ) -> Result<Self, Trouble> {
        if !payload::is_token(&settings.region) {
            let region = &settings.region;
            return Err(Trouble::new(
                format!("the region {region:?} cannot be part of a subject"),
                "it has other characters than a name of NATS may have",
                "set AWS_REGION or nats.region to letters, digits, _ and -",
            ));
        }
        let until = Instant::now() + limit;
        let (meters, rights) = (Arc::new(Meters::default()), Arc::new(Rights::default()));
        let region: Arc<str> = settings.region.as_str().into();
        let link = connect::connect(&settings.nats, secrets, meters.clone(), told(&rights)).await?;
        let replies = Replies::start(link.client.clone()).await.map_err(|error| {
            let fix = "this is a fault of Ringway's: report it, with its log";
            Trouble::new("NATS cannot be listened to", error, fix)
        })?;
        let lookups = Lookups::new(link.clone(), region.clone(), &settings.nats.placement);
        tokio::spawn(lookups.clone().keep());
        let requests = settings.authority.is_none().then(|| {
            let (link, rights, placement) =
                (link.clone(), rights.clone(), &settings.nats.placement);
            Requests::start(link, rights, region.clone(), placement, own.versions)
        });
        let place = NodeConfig {
            link: link.clone(),
            rights: rights.clone(),
            region: region.clone(),
            placement: settings.nats.placement.clone(),
            worker: own.worker,
            relay: own.cluster.as_ref().map(|among| among.relay),
            admin: own.cluster.as_ref().and_then(|among| among.admin),
            keys: own.cluster.map(|among| among.keys),
            pace: nodes::Pace::default(),
        };
        let nodes = Nodes::enter(place, limit).await.map_err(|error| {
            let fix = "allow getrandom in the container's seccomp profile";
            Trouble::new("the kernel gives no random numbers", error, fix)
        })?;
        let streams = Streams::new(link.clone(), region.clone(), rights.clone());
        let withdrawals = Arc::new(WithdrawMeters::default());
        let predecessors = Predecessors::new(streams.clone(), nodes.clone(), withdrawals.clone());
        predecessors.at_start(until.saturating_duration_since(Instant::now())).await;
        Ok(Self(Arc::new(Inner {
            ledger: Ledger::new(streams, withdrawals.clone()),
            publisher: Publisher::new(link.clone(), replies, (rights.clone(), requests.clone())),
            requests,
            reconnects: Reconnects::new(link.clone(), lookups.clone()),
            nodes,
            predecessors,
            rights,
            withdrawals,
            lookups,
            region,
            proxy_uris: settings.direct_uri.iter().chain([&settings.proxy_uri]).cloned().collect(),
            meters,
            tasks: Tasks::default(),
            faults: Arc::default(),
            link,
        })))
    }

    /// What names this gateway in ids and tokens.
    pub(super) fn node(&self) -> Node {
        self.0.nodes.me()
    }

    /// The request streams of these versions are kept from now on, if nobody else does it.
    pub(super) fn serve(&self, versions: Versions) {
        if let Some(requests) = &self.0.requests {
            requests.serve(versions);
        }
    }

    /// Asks for a worker. The ticket is noted before the first pause, so that later messages about
    /// it are understood.
    pub(super) async fn submit(&self, ticket: AskTicket, work: &Work) -> Answer {
        match work.kind {
            WorkKind::New if work.owner.kind.streaming => self.dispatch(ticket, work),
            WorkKind::New => self.publish(ticket, work).await,
            WorkKind::Reconnect | WorkKind::Spare => self.reconnect(ticket, work).await,
        }
    }

    /// Publishes work into the version's stream.
    async fn publish(&self, ticket: AskTicket, work: &Work) -> Answer {
        let Inner { region, proxy_uris, ledger, publisher, .. } = &*self.0;
        let version = &work.owner.version;
        if !payload::is_token(version) {
            return no_subject(version);
        }
        if !ledger.publishing(ticket, version.clone(), work.request_id) {
            return too_many();
        }
        let stream = format!("rq_{region}_{version}");
        let subject = format!("rq.{region}.{version}.{}", work.request_id);
        let payload = payload::payload(work, region, proxy_uris);
        match publisher.publish(To { stream: &stream, version }, &subject, payload).await {
            Published::There(sequence) => {
                ledger.published(ticket, sequence);
                Answer::Queued
            }
            Published::Not(why) => {
                ledger.refused(ticket);
                Answer::Unqueued(why)
            }
            Published::Unknown(why) => {
                ledger.published(ticket, None);
                // The client is answered that the work was not queued, so nobody will wait for it.
                ledger.withdraw(ticket);
                Answer::Unqueued(why)
            }
        }
    }

    /// Asks the workers of a streaming function, in a task of its own. The client waits for the
    /// worker.
    fn dispatch(&self, ticket: AskTicket, work: &Work) -> Answer {
        let Inner { region, proxy_uris, link, tasks, faults, .. } = &*self.0;
        let version = work.owner.version.to_string();
        if !payload::is_token(&version) {
            return no_subject(&version);
        }
        let Some(run) = tasks.begin(ticket) else { return too_many() };
        let dispatch = Dispatch {
            link: link.clone(),
            version,
            id: work.request_id.to_string(),
            payload: payload::payload(work, region, proxy_uris),
            faults: faults.clone(),
        };
        tokio::spawn(dispatch.run(run));
        Answer::Queued
    }

    /// Asks the worker that holds the session.
    async fn reconnect(&self, ticket: AskTicket, work: &Work) -> Answer {
        let Inner { region, proxy_uris, reconnects, tasks, .. } = &*self.0;
        let Some(mut run) = tasks.begin(ticket) else { return too_many() };
        self.meet(work.request_id, work.owner.version.clone());
        let payload = payload::payload(work, region, proxy_uris);
        tokio::select! {
            answer = reconnects.ask(work.request_id, payload) => answer,
            // The worker is there, or nobody waits for it any more.
            () = run.stopped() => Answer::Queued,
        }
    }

    /// A session of another gateway was met. If that gateway is dead, its queued work is taken
    /// back.
    fn meet(&self, id: Uuid, version: Arc<str>) {
        let Inner { nodes, predecessors, .. } = &*self.0;
        let Some(maker) = RequestIds::maker_of(id).filter(|maker| *maker != nodes.me()) else {
            return;
        };
        let (nodes, predecessors) = (nodes.clone(), predecessors.clone());
        tokio::spawn(async move {
            if matches!(nodes.liveness(maker).await, Liveness::Dead) {
                predecessors.met_dead(&version);
            }
        });
    }

    /// Finds the owner of a session.
    pub(super) async fn lookup(&self, id: Uuid) -> Answer {
        match self.0.lookups.find(id).await {
            Ok(Some(registration)) => Answer::Registered(Box::new(registration)),
            Ok(None) => Answer::Unregistered,
            Err(why) => Answer::Failed(why),
        }
    }

    /// Where another gateway is: at most one read of its record.
    pub(super) async fn locate(&self, node: Node) -> Located {
        match self.0.nodes.liveness(node).await {
            Liveness::Live(record) => record.relay().map_or(Located::Unknown, Located::At),
            Liveness::Dead => Located::Dead,
            Liveness::Unknown => Located::Unknown,
        }
    }

    /// Where another gateway may be asked for its sessions: at most one read of its record.
    pub(super) async fn admin_of(&self, node: Node) -> Located {
        match self.0.nodes.liveness(node).await {
            Liveness::Live(record) => record.admin().map_or(Located::Unknown, Located::At),
            Liveness::Dead => Located::Dead,
            Liveness::Unknown => Located::Unknown,
        }
    }

    /// How far the work has come that was queued under this ticket. A streaming function's work is
    /// in no stream: its workers are asked until one has replied.
    pub(super) async fn progress(&self, ticket: AskTicket, streaming: bool) -> Progress {
        match streaming {
            true if self.0.tasks.has(ticket) => Progress::Queued,
            true => Progress::Taken,
            false => self.0.ledger.progress(ticket).await,
        }
    }

    /// The worker that was asked for is there.
    pub(super) fn settled(&self, ticket: AskTicket) {
        self.0.tasks.stop(ticket);
        self.0.ledger.settled(ticket);
    }

    /// Nobody waits for the worker any more.
    pub(super) fn withdraw(&self, ticket: AskTicket) {
        self.0.tasks.stop(ticket);
        self.0.ledger.withdraw(ticket);
    }

    /// A core's shard has begun anew: nobody waits for what its former ones asked for.
    pub(super) fn forget_core(&self, core: u16, life: u32) {
        self.0.tasks.forget_core(core, life);
        self.0.ledger.forget_core(core, life);
    }

    /// Whether a server is there, or since when not and why.
    pub(super) fn health(&self) -> watch::Receiver<State> {
        self.0.link.state.clone()
    }

    /// Takes back the work that no worker has, and closes the connection. Ends within `limit`,
    /// whatever NATS does. Returns how much was taken back.
    pub(super) async fn shutdown(&self, limit: Duration) -> usize {
        let end = Instant::now() + limit;
        self.0.tasks.stop_all();
        let withdrawn = self.0.ledger.withdraw_all(limit).await;
        self.0.nodes.leave(end.saturating_duration_since(Instant::now())).await;
        if let Ok(Err(error)) = timeout_at(end, self.0.link.client.drain()).await {
            tracing::debug!(%error, "the connection to NATS was closed already");
        }
        withdrawn
    }

    /// Writes the metrics as Prometheus reads them.
    pub(super) fn render(&self, out: &mut String) {
        self.0.meters.render(out);
        self.0.withdrawals.render(out, ledger::MOST_UNSETTLED);
        self.0.rights.render(out);
        let alive = self.0.nodes.alive();
        single(out, ("ringway_nodes_alive", "gauge"), "Gateways whose records are there.", alive);
    }

    /// Where other gateways reach this one, as far as that is known.
    pub(super) fn relay(&self) -> Option<SocketAddr> {
        self.0.nodes.relay()
    }
}

/// Tells the rights of the connection's events.
fn told(rights: &Arc<Rights>) -> Listener {
    let rights = rights.clone();
    Listener(Box::new(move |news| match news {
        News::Connected => rights.connected(),
        News::Error(text) => rights.heard(text),
    }))
}

fn no_subject(version: &str) -> Answer {
    Answer::Unqueued(format!("the version {version:?} cannot be part of a subject"))
}

fn too_many() -> Answer {
    Answer::Unqueued("too much work is being asked for".into())
}
