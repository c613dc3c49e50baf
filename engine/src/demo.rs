//! What `ringway dev` adds to the gateway: an echo function, and a worker that serves it (or
//! bridges to a server of the user's) through the real dispatch and the real CONNECT.
//!
//! The worker runs on a thread of its own. It knows only what any worker knows of a gateway: an
//! address, a key, and the rules of `POST /v1/work` and `CONNECT /v1/proxy`.

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
