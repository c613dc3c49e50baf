use std::collections::BTreeSet;

use super::super::link::Link;
use super::super::rights::Rights;
use super::super::testing::{PACE, Region, Server, enter, link, until};
use super::*;

const LIMIT: Duration = Duration::from_secs(2);

fn predecessors(link: &Link, nodes: Nodes) -> Predecessors {
    let streams = Streams::new(link.clone(), "here".into(), Arc::new(Rights::default()));
    Predecessors::new(streams, nodes, Arc::default())
}

/// Ids that a gateway has made.
fn ids<const N: usize>(nodes: &Nodes) -> [Uuid; N] {
    let mint = RequestIds::new(nodes.me(), 3);
    std::array::from_fn(|_| {
        let mut random = [0; 16];
        getrandom::fill(&mut random).unwrap();
        mint.mint(random)
    })
}

async fn publish(region: &Region, version: &str, ids: &[Uuid]) {
    for id in ids {
        region.publish(version, *id).await;
    }
}

#[tokio::test]
async fn what_a_dead_gateway_left_unclaimed_is_gone_and_nothing_else() {
    let server = Server::start();
    let link = link(&server.url(), |_| ()).await;
    let region = Region::new(link.clone());
    for version in ["v-1", "v-2"] {
        region.request_stream(version).await;
    }
    region.lookup_stream().await;
    let (old, live) = (enter(&link, "a:1").await, enter(&link, "b:1").await);
    let away = enter(&link, "c:1").await;
    old.kill();
    away.leave(LIMIT).await;
    let ([taken], [registered], of_live) = (ids(&old), ids(&old), ids::<3>(&live));
    let (left, of_away) = (ids::<40>(&old), ids::<2>(&away));
    let foreign = [Uuid::from_u128(5), Uuid::from_u128(4 << 76 | 2 << 62 | 9)];
    publish(&region, "v-1", &[taken]).await;
    region.take("v-1", 1).await;
    publish(&region, "v-1", &of_live).await;
    publish(&region, "v-1", &left).await;
    publish(&region, "v-1", &[registered]).await;
    publish(&region, "v-2", &foreign).await;
    publish(&region, "v-2", &of_away).await;
    region.register("v-1", registered).await;

    let new = predecessors(&link, enter(&link, "a:1").await);
    let began = Instant::now();
    new.at_start(LIMIT).await;
    let took = began.elapsed();
    let kept: BTreeSet<Uuid> = of_live.into_iter().chain([taken, registered]).collect();
    assert_eq!(region.held("v-1").await, kept, "in {took:?}");
    assert!(took < LIMIT, "{took:?}");
    // Of the one that is away it is not known yet whether it comes back.
    assert_eq!(region.held("v-2").await.len(), foreign.len() + of_away.len());
    let foreign: BTreeSet<Uuid> = foreign.into();
    until("it was away for long enough", async || region.held("v-2").await == foreign).await;
    assert!(began.elapsed() >= PACE.dead_after(), "{:?}", began.elapsed());
    assert_eq!(region.held("v-1").await, kept);
    assert_eq!(new.meters.withdrawn(Trigger::ClientDeparted), 42);
}

#[tokio::test]
async fn a_dead_id_that_is_met_has_its_stream_gone_through_once_in_a_while() {
    let server = Server::start();
    let link = link(&server.url(), |_| ()).await;
    let region = Region::new(link.clone());
    for version in ["v-1", "v-2"] {
        region.request_stream(version).await;
    }
    let old = enter(&link, "a:1").await;
    old.kill();
    let [first, second, third] = ids(&old);
    publish(&region, "v-1", &[first]).await;
    let new = predecessors(&link, enter(&link, "a:1").await);
    new.met_dead("v-1");
    until("it is taken back", async || region.held("v-1").await.is_empty()).await;
    publish(&region, "v-1", &[second]).await;
    publish(&region, "v-2", &[third]).await;
    new.met_dead("v-1");
    new.met_dead("v-2");
    until("it is taken back", async || region.held("v-2").await.is_empty()).await;
    assert_eq!(region.held("v-1").await.len(), 1, "it had just been gone through");
}

#[tokio::test]
async fn a_start_does_not_wait_for_nats() {
    let mut server = Server::start();
    let link = link(&server.url(), |_| ()).await;
    let region = Region::new(link.clone());
    region.request_stream("v-1").await;
    let old = enter(&link, "a:1").await;
    publish(&region, "v-1", &ids::<3>(&old)).await;
    old.kill();
    server.stop();
    until("the loss is noticed", async || !link.is_up()).await;
    let new = predecessors(&link, enter(&link, "a:1").await);
    let began = Instant::now();
    new.at_start(Duration::from_millis(200)).await;
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    // The record has gone with NATS's memory: it takes two times to live to be sure.
    server.again();
    until("it is taken back", async || region.held("v-1").await.is_empty()).await;
}
