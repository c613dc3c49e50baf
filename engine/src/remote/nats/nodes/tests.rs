mod fixed;
mod model;
#[expect(clippy::print_stdout, reason = "whoever plays a seed again reads what happens")]
mod seeds;

use async_nats::jetstream::kv;
use async_nats::jetstream::stream::StorageType;

use super::super::link::Link;
use super::super::rights::Rights;
use super::super::testing::{PACE, Server, enter, link, place, until};
use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn is_live(liveness: &Liveness, worker: &str) -> bool {
    matches!(liveness, Liveness::Live(record) if record.worker == worker)
}

async fn rig() -> (Server, Link) {
    let server = Server::start();
    let link = link(&server.url(), |_| ()).await;
    (server, link)
}

#[tokio::test]
async fn a_record_is_there_for_as_long_as_its_gateway() {
    let (_server, link) = rig().await;
    let (first, second) = (enter(&link, "a:1").await, enter(&link, "b:1").await);
    let spell = first.spell();
    assert!(spell.is_some());
    assert!(is_live(&first.liveness(first.me()).await, "a:1"));
    let began = Instant::now();
    while began.elapsed() < 3 * PACE.ttl {
        assert!(is_live(&second.liveness(first.me()).await, "a:1"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(first.spell(), spell, "it was never gone");
    first.leave(LIMIT).await;
    until("its record is gone", async || second.liveness(first.me()).await == Liveness::Unknown)
        .await;
}

#[tokio::test]
async fn who_had_this_address_before_is_dead_at_once() {
    let (_server, link) = rig().await;
    let old = enter(&link, "a:1").await;
    old.kill();
    let new = enter(&link, "a:1").await;
    assert_ne!(old.me(), new.me());
    assert_eq!(new.liveness(old.me()).await, Liveness::Dead);
    // And stays so when its record is over.
    tokio::time::sleep(2 * PACE.ttl).await;
    assert_eq!(new.liveness(old.me()).await, Liveness::Dead);
}

#[tokio::test]
async fn who_is_missing_for_two_times_to_live_is_dead_then() {
    let (_server, link) = rig().await;
    let (old, new) = (enter(&link, "a:1").await, enter(&link, "b:1").await);
    let other = enter(&link, "c:1").await;
    old.kill();
    let began = Instant::now();
    let mut last = Liveness::Unknown;
    while last != Liveness::Dead {
        let now = new.liveness(old.me()).await;
        let step = (&last, &now);
        assert!(
            !matches!(step, (Liveness::Unknown, Liveness::Live(_))) || began.elapsed() < PACE.ttl
        );
        assert!(began.elapsed() < 6 * PACE.ttl, "{now:?}");
        last = now;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its record lives for one time to live; then it is missing for two.
    assert!(began.elapsed() >= 2 * PACE.ttl, "{:?}", began.elapsed());
    assert!(is_live(&new.liveness(other.me()).await, "c:1"));
}

#[tokio::test]
async fn nobody_is_dead_for_one_who_was_away_himself() {
    let (mut server, link) = rig().await;
    let (old, new) = (enter(&link, "a:1").await, enter(&link, "b:1").await);
    old.kill();
    until("it is missed", async || new.liveness(old.me()).await == Liveness::Unknown).await;
    let (missed, spell) = (Instant::now(), new.spell());
    server.stop();
    tokio::time::sleep(2 * PACE.ttl).await;
    assert_eq!(new.liveness(old.me()).await, Liveness::Unknown);
    // It comes back empty, and our record is entered again.
    server.again();
    until("it is entered again", async || new.spell().is_some() && new.spell() != spell).await;
    assert_eq!(new.look_for(old.me()).await, Liveness::Unknown);
    until("it was missing for long enough then", async || {
        new.liveness(old.me()).await == Liveness::Dead
    })
    .await;
    assert!(missed.elapsed() >= 4 * PACE.ttl, "{:?}", missed.elapsed());
}

#[tokio::test]
async fn a_gateway_starts_without_nats_and_is_entered_later() {
    let (mut server, link) = rig().await;
    link.up().await;
    server.stop();
    until("the loss is noticed", async || !link.is_up()).await;
    let began = Instant::now();
    let limit = Duration::from_millis(200);
    let nodes = Nodes::enter(place(&link, "a:1"), limit).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(nodes.spell().is_none());
    server.again();
    tokio::time::timeout(LIMIT, nodes.here()).await.unwrap();
    let other = enter(&link, "b:1").await;
    assert!(is_live(&other.liveness(nodes.me()).await, "a:1"));
}

#[tokio::test]
async fn a_pair_that_another_has_taken_is_left_to_it() {
    let (_server, link) = rig().await;
    let nodes = enter(&link, "a:1").await;
    let store = link.jetstream.get_key_value("ringway_nodes_here").await.unwrap();
    let key = format!("{:03x}-{:04x}", nodes.me().number(), nodes.me().incarnation());
    let theirs = r#"{"version":1,"worker":"b:1","run":5}"#;
    store.put(&key, theirs.into()).await.unwrap();
    until("it is noticed", async || nodes.spell().is_none()).await;
    tokio::time::sleep(2 * PACE.refresh).await;
    // A gateway without a record of its own says nothing of others.
    store.put("001-0001", r#"{"version":1,"worker":"a:1","run":5}"#.into()).await.unwrap();
    assert_eq!(nodes.liveness(Node::new(1, 1).unwrap()).await, Liveness::Unknown);
    let kept = store.get(&key).await.unwrap();
    assert!(kept.is_none_or(|kept| kept == theirs));
}

#[tokio::test]
async fn a_record_that_was_written_over_is_put_back() {
    let (_server, link) = rig().await;
    let (nodes, other) = (enter(&link, "a:1").await, enter(&link, "b:1").await);
    let store = link.jetstream.get_key_value("ringway_nodes_here").await.unwrap();
    for text in ["nonsense", r#"{"version":2,"worker":"c:1","run":5}"#] {
        store.put(nodes.me().to_string(), text.into()).await.unwrap();
        assert_eq!(other.look_for(nodes.me()).await, Liveness::Unknown);
        until("it is put back", async || is_live(&other.look_for(nodes.me()).await, "a:1")).await;
    }
    assert!(nodes.spell().is_some());
}

#[tokio::test]
async fn where_others_may_ask_is_told_with_the_secret_alone() {
    let (_server, link) = rig().await;
    let keys = Keys::of(&[crate::config::Secret::from("a secret of the cluster")]).unwrap();
    let reach = |port| Some(Relay { address: "192.0.2.7".parse().ok(), port });
    let among = |worker: &str| NodeConfig {
        relay: reach(1),
        admin: reach(2),
        keys: Some(watch::Sender::new(keys.clone()).subscribe()),
        ..place(&link, worker)
    };
    let nodes = Nodes::enter(among("a:1"), LIMIT).await.unwrap();
    let other = Nodes::enter(among("b:1"), LIMIT).await.unwrap();
    let Liveness::Live(record) = other.liveness(nodes.me()).await else { panic!("it is here") };
    assert_eq!(record.admin(), "192.0.2.7:2".parse().ok());
    // A gateway without the secret cannot know that the record is true.
    let alone = enter(&link, "c:1").await;
    let Liveness::Live(record) = alone.liveness(nodes.me()).await else { panic!("it is here") };
    assert_eq!(record.admin(), None);
    let store = link.jetstream.get_key_value("ringway_nodes_here").await.unwrap();
    let (key, value) = (nodes.me().to_string(), store.get(nodes.me().to_string()).await.unwrap());
    let text = String::from_utf8(value.unwrap().to_vec()).unwrap();
    for (from, to) in [("192.0.2.7:2", "192.0.2.8:2"), (r#""admin":"192.0.2.7:2","#, "")] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        assert!(read_record(Some(&keys), (&key, changed.as_bytes())).is_err(), "{changed}");
    }
    assert!(read_record(Some(&keys), (&key, text.as_bytes())).is_ok());
}

#[tokio::test]
async fn with_another_secret_a_record_is_signed_anew_at_once() {
    let (_server, link) = rig().await;
    let keys = |secret: &str| Keys::of(&[crate::config::Secret::from(secret)]).unwrap();
    let sender = watch::Sender::new(keys("the first secret of the cluster"));
    // It is refreshed for no other reason while this runs.
    let pace = Pace { ttl: PACE.ttl, refresh: 100 * PACE.ttl };
    let of = NodeConfig { keys: Some(sender.subscribe()), pace, ..place(&link, "a:1") };
    let nodes = Nodes::enter(of, LIMIT).await.unwrap();
    let second = keys("the second secret of the cluster");
    let seen = NodeConfig {
        keys: Some(watch::Sender::new(second.clone()).subscribe()),
        ..place(&link, "b:1")
    };
    let other = Nodes::enter(seen, LIMIT).await.unwrap();
    assert_eq!(other.look_for(nodes.me()).await, Liveness::Unknown);
    let began = Instant::now();
    sender.send_replace(second);
    until("it is signed anew", async || is_live(&other.look_for(nodes.me()).await, "a:1")).await;
    assert!(began.elapsed() < PACE.ttl, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_is_no_record_tells_nothing() {
    let (_server, link) = rig().await;
    let nodes = enter(&link, "a:1").await;
    let store = link.jetstream.get_key_value("ringway_nodes_here").await.unwrap();
    for (number, text) in [
        (1, r#"{"version":2,"worker":"a:1","run":5}"#),
        (2, r#"{"version":1,"worker":7,"run":5}"#),
        (3, "\u{0}"),
        (4, ""),
    ] {
        store.put(format!("{number:03x}-0000"), text.into()).await.unwrap();
        let node = Node::new(number, 0).unwrap();
        assert_eq!(nodes.liveness(node).await, Liveness::Unknown, "{text}");
    }
    store.put("005-0000", r#"{"version":1,"worker":"a:1","run":5}"#.into()).await.unwrap();
    assert_eq!(nodes.liveness(Node::new(5, 0).unwrap()).await, Liveness::Dead);
}

#[tokio::test]
async fn a_bucket_that_is_not_ours_is_not_used() {
    let (_server, link) = rig().await;
    link.up().await;
    let config = kv::Config {
        bucket: "ringway_nodes_here".into(),
        storage: StorageType::Memory,
        max_age: Duration::from_secs(3600),
        ..kv::Config::default()
    };
    let store = link.jetstream.create_key_value(config).await.unwrap();
    let nodes = enter(&link, "a:1").await;
    store.put("005-0000", r#"{"version":1,"worker":"a:1","run":5}"#.into()).await.unwrap();
    assert!(nodes.spell().is_none());
    assert_eq!(nodes.liveness(Node::new(5, 0).unwrap()).await, Liveness::Unknown);
}

#[tokio::test]
async fn without_the_right_to_a_bucket_nobody_is_dead() {
    let server = Server::with(
        "authorization { users = [{ user: a, password: b, permissions: { publish: { deny: \
         [\"$KV.>\", \"$JS.API.STREAM.*.KV_ringway_nodes_here\", \"$JS.API.INFO\"] } } }] }",
    );
    let rights = Arc::new(Rights::default());
    let link = {
        let rights = rights.clone();
        let url = server.url().replace("//", "//a:b@");
        link(&url, move |event| rights.heard(&event.to_string())).await
    };
    let place = NodeConfig { rights: rights.clone(), ..place(&link, "a:1") };
    let nodes = Nodes::enter(place, Duration::from_secs(1)).await.unwrap();
    until("the right is missed", async || rights.lacks(super::super::rights::Right::Nodes)).await;
    assert_eq!(nodes.liveness(Node::new(5, 0).unwrap()).await, Liveness::Unknown);
}
