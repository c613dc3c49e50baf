//! What `ringway dev` adds to the gateway: an echo function, and a worker that serves it (or
//! bridges to a server of the user's) through the real dispatch and the real CONNECT.
//!
//! It runs on a thread of its own and knows of the gateway only what any worker knows: an address,
//! a key, and the two rules of `POST /v1/work` and `CONNECT /v1/proxy`.

mod bridge;
mod echo;
mod poll;
mod tunnel;
mod worker;

pub use echo::{Echo, FILE_DESCRIPTORS, pb, routes};
pub use tunnel::Serve;
pub(crate) use tunnel::look_at;
pub(crate) use worker::POLLS;
pub use worker::{Worker, WorkerOptions};
