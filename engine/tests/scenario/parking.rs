//! Tunnels that outlive their clients, on one core.

use std::time::Duration;

use ringway::border::End;

use crate::peer::{Peer, poll};
use crate::world::World;

/// A client with a session whose worker has answered the first call.
pub(crate) fn attached(world: &mut World) -> (Peer, Peer, String) {
    let mut client = Peer::client(world);
    client.request(world, &[], true);
    let mut worker = Peer::worker(world);
    answer(world, &mut worker, 0);
    client.sync(world);
    let id = client.field(0, "nvcf-reqid").expect("an id").to_owned();
    (client, worker, id)
}

/// The worker answers its `n`th request.
pub(crate) fn answer(world: &mut World, worker: &mut Peer, n: usize) {
    worker.sync(world);
    let key = worker.key(n);
    worker.head(world, key, &[(":status", "200"), ("grpc-status", "0")], true);
}

/// A client that comes back, and what its call was answered.
pub(crate) fn back(world: &mut World, worker: &mut Peer, id: &str, n: usize) -> Peer {
    let mut client = Peer::client(world);
    client.request(world, &[("nvcf-reqid", id)], true);
    answer(world, worker, n);
    client.sync(world);
    client
}

#[test]
fn a_client_that_was_lost_finds_its_tunnel_again() {
    let mut world = World::new();
    let (client, mut worker, id) = attached(&mut world);
    let before = world.shard.metrics().clone();
    world.end(client.conn, End::Reset);
    assert!(!world.is_closed(worker.conn));
    world.pass(Duration::from_secs(20));
    let client = back(&mut world, &mut worker, &id, 1);
    assert_eq!(client.field(0, ":status"), Some("200"));
    assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
    assert_eq!(client.field(0, "set-cookie"), Some(&*format!("nvcf-request-id={id}")));
    // No dispatch, no CONNECT.
    assert!(poll(&mut world, &[&id]).is_none());
    let now = world.shard.metrics();
    assert_eq!(now.tokens_issued, before.tokens_issued);
    assert_eq!(now.worker_connections_opened, before.worker_connections_opened);
    // The window is over, the tunnel is in use.
    world.pass(Duration::from_secs(20));
    assert!(!world.is_closed(worker.conn));
    // And a client that ends in order takes its worker along.
    world.end(client.conn, End::Fin);
    assert!(world.is_closed(worker.conn) && world.shard.is_empty());
}

#[test]
fn the_window_ends() {
    let mut world = World::new();
    let (client, mut worker, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_millis(29_900));
    assert!(!world.is_closed(worker.conn));
    worker.sync(&mut world);
    world.pass(Duration::from_millis(200));
    assert!(world.is_closed(worker.conn) && world.shard.is_empty());
    let mut late = Peer::client(&mut world);
    late.request(&mut world, &[("nvcf-reqid", &id)], true);
    late.sync(&mut world);
    assert_eq!(late.field(0, "grpc-status"), Some("5"));
}
