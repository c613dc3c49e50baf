//! The messages of NVIDIA's API, its workers and its rate limiter (contract 5 and 6), generated
//! from the gateway's own definitions, which document them.
#![expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::excessive_nesting,
    reason = "generated; the proto file documents it"
)]

/// The API, and what travels by NATS.
pub mod nvcf {
    tonic::include_proto!("nvcf");
}

/// The rate limiter.
pub mod ratelimiter {
    tonic::include_proto!("nvcfratelimiter");
}
