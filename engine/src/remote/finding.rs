//! The findings about a remote control plane, for `ringway doctor`.

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grade {
    /// Nothing to do.
    Fine,
    /// The gateway serves, but not for the whole configuration.
    Poor,
    /// The gateway does not serve.
    Broken,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) what: String,
    pub(crate) grade: Grade,
    /// What was seen.
    pub(crate) seen: String,
    /// What to do about it; empty where there is nothing to do.
    pub(crate) fix: String,
}

impl Finding {
    pub(super) fn fine(what: &str, seen: impl Into<String>) -> Self {
        Self { what: what.into(), grade: Grade::Fine, seen: seen.into(), fix: String::new() }
    }

    pub(super) fn poor(what: &str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), grade: Grade::Poor, seen: seen.into(), fix: fix.into() }
    }

    pub(super) fn broken(what: &str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), grade: Grade::Broken, seen: seen.into(), fix: fix.into() }
    }
}
