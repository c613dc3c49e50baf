//! The embedded control plane: keys and functions from the configuration file, work handed to
//! workers that poll for it. Pure: no I/O, no clock, no randomness of its own.
//!
//! The local plane lives inside a shard, on a core's thread
//! (`docs/decisions/0001-local-dispatch-on-a-core.md`).

mod dispatch;
mod policy;
mod poll;

pub use super::work::{FunctionVersion, Ticket, Work, WorkKind};
pub use dispatch::{
    Dispatch, DispatchLimits, POLL_WAIT, PollAnswer, PollId, QueueFull, TooManyPolls,
};
pub use policy::{Policy, PollFault, SessionFacts};
pub use poll::PollRequest;
