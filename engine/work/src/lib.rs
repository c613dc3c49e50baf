//! What a worker and its gateway say to each other: polls and work items (`POST /v1/work`), and the
//! CONNECT by which the worker dials back (contract 4). No I/O: the programs that work have
//! runtimes of their own.
#![deny(unsafe_code)]

mod answer;
mod endpoint;
mod request;
mod work;

pub use answer::{AnswerFault, Head, PollResponse, readable};
pub use endpoint::{Endpoint, EndpointFault};
pub use request::{ANSWER_TIMEOUT, DIAL_TIMEOUT, Sender, pauses};
pub use work::{Connection, Http1, Kind, Poll, Secret, Work, short};
