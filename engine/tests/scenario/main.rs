//! Frame scripts against a shard, in reading order: no sockets, no sleeps.

mod calls;
mod cores;
mod cores_orders;
mod cores_trouble;
mod crowd;
mod cut;
mod dial;
mod ends;
mod http1;
mod http1_upgrade;
mod large;
mod machine;
mod parking;
mod parking_cores;
mod peer;
mod quiet;
mod replacing;
mod runs;
mod sessions;
mod silence;
mod spares;
mod spares_cores;
mod timeline;
mod trailers;
mod wasteful;
mod world;
