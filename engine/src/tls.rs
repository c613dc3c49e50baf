//! Certificates: reading and checking them, making what handshakes use, and replacing it while the
//! gateway runs.

mod cert_store;
mod pair;

pub use cert_store::CertStore;
pub use pair::{EXPIRES_SOON, Files, Pair, PairError};

use crate::pool::CHUNK_BYTES;

/// Most octets that a record adds to its plaintext, a key update before it included.
pub const RECORD_OVERHEAD: usize = 128;

/// Octets of plaintext of one record: a full one fits an output chunk.
pub const RECORD_BYTES: usize = CHUNK_BYTES - RECORD_OVERHEAD;
