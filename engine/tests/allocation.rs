//! In steady state a relayed call allocates nothing: neither per frame nor per stream.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

#[path = "scenario/peer.rs"]
#[expect(dead_code, reason = "shared with the frame scripts, which use more of it")]
mod peer;
#[path = "scenario/world.rs"]
#[expect(dead_code, reason = "shared with the frame scripts, which use more of it")]
mod world;

use peer::Peer;
use world::World;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One unary call with a message of `bytes` each way; the allocations of the shard alone.
fn call(world: &mut World, client: &mut Peer, worker: &mut Peer, bytes: &[u8]) -> u64 {
    world.counted = 0;
    client.seen.clear();
    worker.seen.clear();
    worker.forget_keys();
    let stream = client.request(world, &[], false);
    client.data(world, stream, bytes, true);
    worker.sync(world);
    let key = worker.key(0);
    let head = [(":status", "200"), ("content-type", "application/grpc")];
    worker.head(world, key, &head, false);
    worker.data(world, key, bytes, false);
    worker.head(world, key, &[("grpc-status", "0")], true);
    client.sync(world);
    assert_eq!(client.heads().len(), 2);
    world.counted
}

#[test]
fn a_warm_call_allocates_nothing() {
    let mut world = World::new();
    world.count = || ALLOCATIONS.load(Ordering::Relaxed);
    let mut client = Peer::client(&mut world);
    let first = client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], true);
    client.sync(&mut world);
    assert!(!client.h2.is_open(first));
    for bytes in [&[7; 100][..], &[7; 3000], &[7; 60_000]] {
        for _ in 0..200 {
            call(&mut world, &mut client, &mut worker, bytes);
        }
        let allocations: u64 =
            (0..500).map(|_| call(&mut world, &mut client, &mut worker, bytes)).sum();
        assert_eq!(allocations, 0, "{} bytes a message, 500 calls", bytes.len());
    }
}
