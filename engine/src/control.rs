//! Who may call what, and how work reaches a worker: the control planes a shard can ask.

pub mod local;
pub mod owner;
pub mod port;
pub mod work;
