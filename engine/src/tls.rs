//! Certificates: read, checked, made into what handshakes use, and replaced while the gateway runs.

mod pair;
mod vault;

pub use pair::{EXPIRES_SOON, Files, Pair, PairError};
pub use vault::Vault;
