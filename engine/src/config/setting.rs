//! One setting: what it is called, what values it takes, and the units of those.

/// What values a setting takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// An IP address and a port.
    Address,
    /// A whole number in a range.
    Count(u64, u64),
    /// A duration in a range, in microseconds.
    Time(u64, u64),
    /// A size in a range, in bytes.
    Bytes(u64, u64),
    /// This word, or a whole number in a range.
    CountOr(&'static str, u64, u64),
    /// True or false.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of texts, which a function of its own reads; the text describes it.
    List(&'static str),
    /// A text that a function of its own reads; the text describes it.
    Own(&'static str),
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// The name with its table: `session.wait`.
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    /// The default as it would be written; empty if there is none.
    pub(super) default: &'static str,
    /// The default in `nvcf` mode, if that differs.
    pub(super) default_in_nvcf: Option<&'static str>,
    /// False while the feature is not built: the key is refused.
    pub(super) built: bool,
    pub(super) what: &'static str,
}

pub(super) const fn setting(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    what: &'static str,
) -> Setting {
    Setting { key, kind, default, default_in_nvcf: None, built: true, what }
}

pub(super) const fn later(key: &'static str, what: &'static str) -> Setting {
    Setting { key, kind: Kind::Own(""), default: "", default_in_nvcf: None, built: false, what }
}

pub(super) const fn in_nvcf(default: &'static str, setting: Setting) -> Setting {
    Setting { default_in_nvcf: Some(default), ..setting }
}

const US: u64 = 1;
pub(super) const MS: u64 = 1_000 * US;
pub(super) const S: u64 = 1_000 * MS;
pub(super) const DAY: u64 = 86_400 * S;
pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const MILLION: u64 = 1_000_000;

/// Most HTTP/2 allows for a window (RFC 9113 §6.9.1).
pub(super) const MAX_WINDOW: u64 = (1 << 31) - 1;
