//! Why a program cannot do what it was asked for, in three parts.

use std::fmt;

/// What does not work, why, and what to do about it. All three have to be given, so no command and
/// no start can end with less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    what: String,
    why: String,
    fix: String,
}

impl Trouble {
    /// `why` may be an error of the system; `fix` is a sentence that tells somebody what to do.
    pub fn new(what: impl Into<String>, why: impl fmt::Display, fix: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), fix: fix.into() }
    }

    /// What does not work.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> &str {
        &self.fix
    }

    /// [Complains](crate::complain()) of it.
    pub fn complain(&self) {
        crate::complain(&format!("error: {self}"));
    }
}

impl fmt::Display for Trouble {
    /// One line: `what: why; fix`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, why, fix } = self;
        write!(f, "{what}: {why}; {fix}")
    }
}

impl std::error::Error for Trouble {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_parts_are_told_in_one_line() {
        let why = std::io::Error::from_raw_os_error(2);
        let trouble = Trouble::new("x.key cannot be read", why, "name a file that is there");
        let text = "x.key cannot be read: No such file or directory (os error 2); name a file that \
                    is there";
        assert_eq!(trouble.to_string(), text);
        let parts = [trouble.what(), trouble.fix()];
        assert_eq!(parts, ["x.key cannot be read", "name a file that is there"]);
        assert!(trouble.why().starts_with("No such file"));
    }
}
