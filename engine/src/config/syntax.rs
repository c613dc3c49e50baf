//! The two ways a configuration can be written, and how a fix is worded in each.

/// How a configuration is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Syntax {
    #[default]
    Toml,
    Yaml,
}

impl Syntax {
    /// What a file of this name is written in, if its extension says so.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }

    /// The head of a table.
    pub(super) fn table(self, name: &str) -> String {
        match self {
            Self::Toml => format!("[{name}]"),
            Self::Yaml => format!("\"{name}:\""),
        }
    }

    /// One of several tables.
    pub(super) fn item(self, name: &str) -> String {
        match self {
            Self::Toml => format!("a [[{name}]]"),
            Self::Yaml => format!("an item of \"{name}:\""),
        }
    }

    /// What to write for a table.
    pub(super) fn write_table(self, name: &str) -> String {
        match self {
            Self::Toml => format!("write [{name}]"),
            Self::Yaml => format!("write \"{name}:\" and its settings indented, without \"-\""),
        }
    }

    /// What to write for a list of tables.
    pub(super) fn write_tables(self, name: &str) -> String {
        match self {
            Self::Toml => format!("write [[{name}]]"),
            Self::Yaml => format!("write \"{name}:\" and a \"-\" before each"),
        }
    }

    /// A setting and its value, as they are to be written.
    pub(super) fn pair(self, name: &str, value: &str) -> String {
        match self {
            Self::Toml => format!("{name} = {value}"),
            Self::Yaml => format!("{name}: {value}"),
        }
    }
}
