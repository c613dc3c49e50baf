//! Ringway's tools: the worker (`ringway-worker`), the stand-ins for what NVIDIA does not publish
//! as a server (`ringway-stand-in`), and the house rules as tests (`tests/tidy.rs`), next to the
//! scripts that install what the tests need and run them.

#![deny(unsafe_code)]
// The macros of std panic when nobody reads; those of `ringway-stdio` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod nats;
pub mod pb;
pub mod stand_in;
pub mod worker;
