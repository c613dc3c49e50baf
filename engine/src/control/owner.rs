//! Who a session belongs to, and what is known of the version that it calls.

use std::sync::Arc;

/// Who sessions belong to, as far as they have it in common. All of them share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who calls.
    pub tenant: Arc<str>,
    /// Canonical function id.
    pub function: Arc<str>,
    /// Canonical version id.
    pub version: Arc<str>,
    /// The caller's name as NVIDIA's API knows it, for its workers; empty where nobody asked it.
    pub subject: Arc<str>,
    /// Of the version.
    pub kind: Kind,
}

impl Owner {
    /// One of a function version that nothing else is known of.
    #[must_use]
    pub fn new(tenant: Arc<str>, function: Arc<str>, version: Arc<str>) -> Self {
        Self { tenant, function, version, subject: "".into(), kind: Kind::default() }
    }
}

/// What kind of version it is: what decides how its workers are asked.
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
    /// Not at all.
    #[default]
    Unlimited,
    /// While the session begins; a refusal is remembered.
    Beside,
    /// Before the session begins.
    Before,
}
