//! Ringway's tools: the worker (`ringway-worker`), and the house rules as tests
//! (`tests/tidy.rs`), next to the scripts that install what the tests need and run them.

#![deny(unsafe_code)]

pub mod worker;
