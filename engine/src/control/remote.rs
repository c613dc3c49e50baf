//! The control planes that take time: NVIDIA's API, which says who may call, and NATS, by which
//! work reaches workers. All of it runs on the control thread; the cores ask by messages and are
//! answered so ([`super::port`]).

mod answers;
pub mod api;
mod driver;
pub mod nats;

/// The messages and services of `engine/nvcf`, compiled.
pub mod pb {
    #![expect(
        missing_docs,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "it is generated; the meanings stand in `engine/nvcf`"
    )]
    tonic::include_proto!("nvcf");

    /// The rate limiter's.
    pub mod limiter {
        tonic::include_proto!("nvcfratelimiter");
    }
}
