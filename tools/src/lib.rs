//! Ringway's tools: the worker (`ringway-worker`), and the house rules as tests
//! (`tests/tidy.rs`), next to the scripts that install what the tests need and run them.

#![deny(unsafe_code)]
// They panic when nobody reads: `ringway-stdio` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod worker;
