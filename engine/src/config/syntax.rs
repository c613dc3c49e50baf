//! The ways in which a configuration can be written, and how a fix is worded in each.

/// How a configuration is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Syntax {
    #[default]
    Toml,
    Yaml,
    /// There is no file: the configuration is in variables of the environment alone.
    Environment,
}

impl Syntax {
    /// The syntax of a file of this name, if its extension says it.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }

    /// How the head of a table is called in a fix.
    pub(super) fn table(self, name: &str) -> String {
        match self {
            Self::Toml | Self::Environment => format!("[{name}]"),
            Self::Yaml => format!("\"{name}:\""),
        }
    }

    /// How one of several tables is called in a fix.
    pub(super) fn item(self, name: &str) -> String {
        match self {
            Self::Toml => format!("a [[{name}]]"),
            Self::Yaml => format!("an item of \"{name}:\""),
            Self::Environment => format!("a configuration file (--config FILE) with a [[{name}]]"),
        }
    }

    /// What to write for a table.
    pub(super) fn write_table(self, name: &str) -> String {
        match self {
            Self::Toml | Self::Environment => format!("write [{name}]"),
            Self::Yaml => format!("write \"{name}:\" and its settings indented, without \"-\""),
        }
    }

    /// What to write for a list of tables.
    pub(super) fn write_tables(self, name: &str) -> String {
        match self {
            Self::Toml | Self::Environment => format!("write [[{name}]]"),
            Self::Yaml => format!("write \"{name}:\" and a \"-\" before each"),
        }
    }

    /// A setting and its value as they have to be written. `key` is the setting's full name.
    pub(super) fn pair(self, key: &str, value: &str) -> String {
        let name = key.rsplit_once('.').map_or(key, |(_, name)| name);
        match self {
            Self::Toml => format!("{name} = {value}"),
            Self::Yaml => format!("{name}: {value}"),
            Self::Environment => {
                format!("{}={}", variable(key), value.trim_matches(['[', ']', '"']))
            }
        }
    }
}

/// The beginning of the names of all variables that hold settings.
pub(super) const PREFIX: &str = "RINGWAY__";

/// The variable of a setting.
pub(super) fn variable(key: &str) -> String {
    PREFIX.to_owned() + &key.to_uppercase().replace('.', "__")
}
