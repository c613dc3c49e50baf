//! What a worker and its gateway say to each other: polls and work items (`POST /v1/work`), and the
//! CONNECT by which the worker dials back (contract 4). No I/O: the programs that work have
//! runtimes of their own.
#![deny(unsafe_code)]

mod answer;
mod place;
mod request;
mod work;

pub use answer::{Answer, AnswerFault, Head, readable};
pub use place::{Place, PlaceFault};
pub use request::{ANSWER_TIMEOUT, DIAL_TIMEOUT, Sender, pauses};
pub use work::{Connection, Http1, Kind, Poll, Secret, Work, short};

/// What is told of a worker's server that cannot be reached when the worker begins.
pub const NO_TARGET: &str =
    "nothing answers at --target: start your server there; until then every call gets 502";
