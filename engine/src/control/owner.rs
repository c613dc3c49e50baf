//! The owner of a session, and what is known of the version that it calls.

use std::sync::Arc;

/// The owner of sessions: what all sessions of a tenant with a function version have in common.
/// All these sessions share one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The tenant that calls.
    pub tenant: Arc<str>,
    /// Canonical function id.
    pub function: Arc<str>,
    /// Canonical version id.
    pub version: Arc<str>,
    /// The caller's name from NVIDIA's API, which workers are given; empty if that API was not
    /// asked.
    pub subject: Arc<str>,
    /// The kind of the version.
    pub kind: Kind,
}

impl Owner {
    /// An owner for a function version of which nothing else is known.
    #[must_use]
    pub fn new(tenant: Arc<str>, function: Arc<str>, version: Arc<str>) -> Self {
        Self { tenant, function, version, subject: "".into(), kind: Kind::default() }
    }
}

/// What decides how the workers of a version are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// A function of the streaming kind.
    pub streaming: bool,
    /// Served by GFN: its workers are asked by region (contract CP-13).
    pub gfn: bool,
    /// Whether new sessions are limited.
    pub rate: Rate,
}

/// How the rate limiter is asked about new sessions (contract CP-9, CP-10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rate {
    /// The rate limiter is not asked.
    #[default]
    Unlimited,
    /// The limiter is asked while the session begins, and its refusal is remembered for the next
    /// one.
    Beside,
    /// The limiter is asked before the session begins.
    Before,
}
