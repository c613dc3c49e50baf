//! What the bytes mean: HTTP/2, HPACK, HTTP/1, the worker's CONNECT, PROXY headers, routing
//! fields, ids.
//!
//! Bytes in, values out; the caller owns the buffers. No sockets, no clock ([`time::Time`] is an
//! argument), no threads, no randomness of its own, no unsafe code. The engine's shard feeds this
//! crate with what its reactor received and sends what it wrote into a [`Sink`].
#![forbid(unsafe_code)]

pub mod answer;
pub mod date;
mod decimal;
pub mod detect;
pub mod fault;
pub mod fields;
pub mod grpc;
pub mod h1;
pub mod h2;
pub mod hpack;
pub mod id;
pub mod prelude;
pub mod proxy;
pub mod route;
pub mod time;
pub mod trailer;

/// Where bytes to be sent are appended.
pub trait Sink {
    /// Appends `bytes`, whole and in order.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
