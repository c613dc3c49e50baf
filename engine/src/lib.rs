//! The gateway: a reactor per core that touches and decides nothing, a shard per core that decides
//! and touches nothing, and a control thread for what is not on the data path.
#![deny(unsafe_code)]
// The macros of std panic when nobody reads; those of `ringway-stdio` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod admin;
pub mod bare;
pub mod boot;
pub mod carry;
pub mod config;
pub mod conn;
pub mod console;
pub mod control;
pub mod demo;
pub mod doctor;
mod json;
pub mod keys;
pub mod log;
mod machine;
pub mod mailbox;
pub mod message;
pub mod metrics;
pub mod net;
pub mod output;
pub mod pool;
mod question;
#[expect(unsafe_code, reason = "operations of the kernel on memory of ours")]
pub mod reactor;
pub mod remote;
pub mod shard;
pub mod timeline;
pub mod tls;
pub mod transport;

pub use ringway_cli::{COMMIT, VERSION};
