use std::collections::BTreeSet;
use std::sync::Mutex as Held;

use futures_util::StreamExt;

use super::super::link::Link;
use super::super::rights::{Right, Rights};
use super::super::testing::{Region, Server, link, until};
use super::*;
use crate::control::port::Topic;

const VERSION: &str = "v-1";

struct Rig {
    server: Server,
    region: Region,
    ledger: Ledger,
    meters: Arc<WithdrawMeters>,
    rights: Arc<Rights>,
}

impl Rig {
    async fn new() -> Self {
        let server = Server::start();
        let url = server.url();
        Self::with(server, &url).await
    }

    async fn with(server: Server, url: &str) -> Self {
        let rights = Arc::new(Rights::default());
        let link = {
            let rights = rights.clone();
            link(url, move |event| rights.heard(&event.to_string())).await
        };
        Self::on(server, link, rights).await
    }

    async fn on(server: Server, link: Link, rights: Arc<Rights>) -> Self {
        let region = Region::new(link.clone());
        region.request_stream(VERSION).await;
        region.lookup_stream().await;
        let meters = Arc::<WithdrawMeters>::default();
        let streams = Streams::new(link, region.name.clone(), rights.clone());
        let ledger = Ledger::new(streams, meters.clone());
        Self { server, region, ledger, meters, rights }
    }

    /// Publishes work whose answer comes.
    async fn publish(&self, number: u64) -> Uuid {
        let id = self.enter(number);
        let sequence = self.region.publish(VERSION, id).await;
        self.ledger.published(ticket(number), Some(sequence));
        id
    }

    fn enter(&self, number: u64) -> Uuid {
        let id = Uuid::from_u128(number.into());
        assert!(self.ledger.publishing(ticket(number), VERSION.into(), id));
        id
    }

    async fn holds(&self, ids: impl IntoIterator<Item = Uuid>) {
        let ids: BTreeSet<Uuid> = ids.into_iter().collect();
        until("the stream holds what it is to hold", async || {
            self.region.held(VERSION).await == ids
        })
        .await;
    }

    /// Waits until so many pieces of work are in the ledger.
    async fn keeps(&self, count: usize) {
        until("the ledger holds so many", async || self.ledger.table().entries.len() == count)
            .await;
    }

    fn counts(&self, line: &str) -> bool {
        let mut out = String::new();
        self.meters.render(&mut out, MOST_UNSETTLED);
        out.lines().any(|other| other.ends_with(line))
    }
}

fn ticket(number: u64) -> AskTicket {
    AskTicket { core: 1, life: 7, about: Topic::Tunnel, number }
}

#[tokio::test]
async fn what_nobody_waits_for_leaves_the_stream_where_no_worker_ever_was() {
    let rig = Rig::new().await;
    let first = rig.publish(1).await;
    rig.publish(2).await;
    rig.ledger.withdraw(ticket(2));
    rig.ledger.withdraw(ticket(3));
    rig.holds([first]).await;
    rig.keeps(1).await;
    assert!(rig.counts("{result=\"succeeded\",trigger=\"client_departed\"} 1"));
    assert!(rig.counts("ringway_nats_unsettled_work 1"));
}

#[tokio::test]
async fn what_a_worker_has_stays() {
    let rig = Rig::new().await;
    let (first, second) = (rig.publish(1).await, rig.publish(2).await);
    let third = rig.publish(3).await;
    rig.publish(4).await;
    rig.region.take(VERSION, 2).await;
    // Registered by a worker that another consumer has served.
    rig.region.register("v-other", third).await;
    for number in 1..=4 {
        rig.ledger.withdraw(ticket(number));
    }
    rig.keeps(0).await;
    rig.holds([first, second, third]).await;
    assert!(rig.counts("{reason=\"nothing_pending\"} 3"));
}

#[tokio::test]
async fn how_far_work_has_come_is_what_its_stream_says() {
    let rig = Rig::new().await;
    rig.publish(1).await;
    rig.publish(2).await;
    rig.region.take(VERSION, 1).await;
    assert_eq!(rig.ledger.progress(ticket(1)).await, Progress::Taken);
    assert_eq!(rig.ledger.progress(ticket(2)).await, Progress::Queued);
    // Nobody has told where it is, and it is found; one that is on its way is not.
    rig.ledger.published(ticket(2), None);
    assert_eq!(rig.ledger.progress(ticket(2)).await, Progress::Queued);
    rig.enter(3);
    rig.ledger.published(ticket(3), None);
    rig.enter(4);
    for number in 3..=5 {
        assert_eq!(rig.ledger.progress(ticket(number)).await, Progress::Unknown, "{number}");
    }
}

#[tokio::test]
async fn a_worker_that_comes_keeps_its_work() {
    let rig = Rig::new().await;
    let id = rig.publish(1).await;
    rig.ledger.settled(ticket(1));
    rig.ledger.withdraw(ticket(1));
    assert!(rig.ledger.table().entries.is_empty());
    // Also if it comes while the look is on its way.
    let queued = Queued { version: VERSION.into(), id, sequence: None };
    let look = rig.ledger.streams.look(&VERSION.into(), Instant::now()).await.unwrap();
    let fate = rig.ledger.streams.take_back(&queued, look, || false).await;
    assert_eq!(fate, Ok(Fate::Taken));
    rig.holds([id]).await;
}

#[tokio::test]
async fn a_withdrawal_waits_for_the_answer_to_its_publish() {
    let rig = Rig::new().await;
    let id = rig.enter(1);
    rig.ledger.withdraw(ticket(1));
    let sequence = rig.region.publish(VERSION, id).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    rig.holds([id]).await;
    rig.ledger.published(ticket(1), Some(sequence));
    rig.holds([]).await;
    rig.enter(2);
    rig.ledger.withdraw(ticket(2));
    rig.ledger.refused(ticket(2));
    rig.keeps(0).await;
    assert!(rig.counts("{reason=\"nothing_pending\"} 1"));
}

#[tokio::test]
async fn a_publish_whose_answer_never_came_is_looked_for() {
    let rig = Rig::new().await;
    let (taken, gone, late) = (rig.enter(1), rig.enter(2), rig.enter(3));
    rig.region.publish(VERSION, taken).await;
    rig.region.take(VERSION, 1).await;
    rig.region.publish(VERSION, gone).await;
    for number in 1..=3 {
        rig.ledger.published(ticket(number), None);
        rig.ledger.withdraw(ticket(number));
    }
    rig.keeps(1).await;
    rig.holds([taken]).await;
    // What was still on its way is found the second time.
    rig.region.publish(VERSION, late).await;
    rig.keeps(0).await;
    rig.holds([taken]).await;
    assert!(rig.counts("{result=\"succeeded\",trigger=\"client_departed\"} 2"));
}

#[tokio::test]
async fn withdrawals_wait_while_nats_is_away() {
    let mut rig = Rig::new().await;
    let kept = rig.publish(1).await;
    for number in 2..=40 {
        rig.publish(number).await;
    }
    rig.server.stop();
    until("the loss is noticed", async || !rig.region.link.is_up()).await;
    for number in 2..=40 {
        rig.ledger.withdraw(ticket(number));
    }
    rig.ledger.settled(ticket(40));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.ledger.table().entries.len(), 39);
    rig.server.again();
    rig.keeps(1).await;
    rig.holds([kept, Uuid::from_u128(40)]).await;
    assert!(rig.counts("{result=\"failed\",trigger=\"client_departed\"} 0"));
}

#[tokio::test]
async fn one_look_serves_all_that_wait_for_it() {
    let rig = Rig::new().await;
    for number in 0..400 {
        rig.publish(number).await;
    }
    let looks = rig.region.link.client.subscribe("$JS.API.CONSUMER.INFO.>").await.unwrap();
    let seen = Arc::new(Held::new(Vec::new()));
    let counting = tokio::spawn({
        let seen = seen.clone();
        looks.for_each(move |_| {
            seen.lock().unwrap().push(Instant::now());
            std::future::ready(())
        })
    });
    rig.region.link.client.flush().await.unwrap();
    for number in 0..400 {
        rig.ledger.withdraw(ticket(number));
        if number % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    rig.keeps(0).await;
    counting.abort();
    let seen = seen.lock().unwrap().clone();
    assert!((2..=100).contains(&seen.len()), "{} looks for 400 withdrawals", seen.len());
    let lasted = *seen.last().unwrap() - seen[0];
    let most = lasted.as_millis() / super::super::withdraw::LOOK_EVERY.as_millis() + 2;
    assert!(seen.len() as u128 <= most, "{} looks in {lasted:?}", seen.len());
}

#[tokio::test]
async fn a_right_that_is_missing_costs_nothing_else() {
    let server = Server::with(
        "authorization { users = [{ user: a, password: b, permissions: \
         { publish: { deny: [\"$JS.API.STREAM.PURGE.rq_>\", \"$JS.API.STREAM.PURGE.*\"] } } }] }",
    );
    let url = server.url().replace("//", "//a:b@");
    let rig = Rig::with(server, &url).await;
    let ids = [rig.publish(1).await, rig.publish(2).await];
    rig.ledger.withdraw(ticket(1));
    rig.keeps(1).await;
    assert!(rig.rights.lacks(Right::Purge));
    rig.ledger.withdraw(ticket(2));
    rig.keeps(0).await;
    assert!(rig.counts("{reason=\"invoker_unsupported\"} 2"));
    rig.holds(ids).await;
}

#[tokio::test]
async fn a_shard_that_begins_anew_leaves_nothing_behind() {
    let rig = Rig::new().await;
    rig.publish(1).await;
    rig.ledger.forget_core(0, 8);
    rig.ledger.forget_core(1, 7);
    assert!(rig.ledger.table().entries.values().all(|entry| entry.unwanted.is_none()));
    rig.ledger.forget_core(1, 8);
    rig.holds([]).await;
}

#[tokio::test]
async fn a_gateway_that_ends_takes_back_what_no_worker_has() {
    let rig = Rig::new().await;
    let taken = rig.publish(1).await;
    rig.region.take(VERSION, 1).await;
    for number in 2..=100 {
        rig.publish(number).await;
    }
    let settled = rig.publish(101).await;
    rig.ledger.settled(ticket(101));
    assert_eq!(rig.ledger.withdraw_all(Duration::from_secs(10)).await, 99);
    rig.holds([taken, settled]).await;
    assert!(rig.counts("{result=\"succeeded\",trigger=\"shutdown\"} 99"));
    assert!(!rig.ledger.publishing(ticket(102), VERSION.into(), Uuid::nil()));
}

#[tokio::test]
async fn a_gateway_that_ends_does_not_wait_for_nats_for_ever() {
    let mut rig = Rig::new().await;
    rig.publish(1).await;
    rig.enter(2);
    rig.server.stop();
    let began = Instant::now();
    assert_eq!(rig.ledger.withdraw_all(Duration::from_millis(300)).await, 0);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(rig.counts("{reason=\"budget_exhausted\"} 2"));
    // The answer that comes after all finds nobody.
    rig.ledger.published(ticket(2), None);
    assert!(rig.ledger.table().entries.is_empty());
}

#[tokio::test]
async fn a_stream_that_is_gone_holds_nothing() {
    let rig = Rig::new().await;
    let id = rig.enter(1);
    rig.ledger.published(ticket(1), Some(9));
    rig.region.link.jetstream.delete_stream(format!("rq_here_{VERSION}")).await.unwrap();
    rig.ledger.withdraw(ticket(1));
    rig.keeps(0).await;
    assert!(rig.counts("{reason=\"nothing_pending\"} 1"), "{id}");
}
