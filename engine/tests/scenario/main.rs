//! Frame scripts against a shard, in reading order: no sockets, no sleeps.

mod calls;
mod ends;
mod peer;
mod sessions;
mod world;
