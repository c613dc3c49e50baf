//! What it takes to measure a gateway from outside: a load generator, a lean HTTP/2 endpoint to
//! put behind it, a bare TCP relay to compare with, and the run that interleaves them.
//!
//! The walk: [`load`] drives many [`caller::Caller`]s against the proxy, behind which an
//! [`endpoint::Endpoint`] answers, reached by [`backend`] (listening) or [`worker`] (dialling back
//! through `CONNECT`). [`relay`] is the baseline, [`compare`] the measurement. [`web`] and [`site`]
//! are the same two sides for HTTP/1.1 and WebSockets, [`pipe`] a long way between. The
//! sides do no I/O of their own: bytes in, bytes out; [`drive`] joins them to a socket on monoio.
//!
//! Not `forbid(unsafe_code)`: the baseline relay must be plain epoll, and neither epoll nor CPU
//! affinity has a safe interface in what the workspace depends on. All of it is in [`sys`].
#![deny(unsafe_code)]
// The macros of std panic when nobody reads; those of `ringway-stdio` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod backend;
pub mod beside;
pub mod caller;
pub mod capacity;
pub mod check;
pub mod compare;
pub mod cpu;
pub mod drive;
pub mod endpoint;
pub mod fault;
pub mod fields;
pub mod flow;
pub mod http1;
pub mod line;
pub mod load;
pub mod memory;
pub mod outcome;
pub mod pace;
pub mod pipe;
pub mod relay;
pub mod relay_monoio;
pub mod resume;
pub mod scrape;
pub mod site;
pub mod socket;
pub mod streamer;
pub mod sys;
pub mod tally;
pub mod tls;
pub mod verify;
pub mod web;
pub mod websocket;
pub mod wire;
pub mod worker;
