//! The gateway: a reactor per core that touches and decides nothing, a shard per core that decides
//! and touches nothing, and a control thread for what is not on the data path.
#![deny(unsafe_code)]

pub mod border;
pub mod config;
pub mod control;
pub mod demo;
pub mod metrics;
pub mod pool;
pub mod post;
