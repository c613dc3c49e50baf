//! Settings found by their names.

use super::settings::{SETTINGS, Setting};

impl Setting {
    /// The setting with this key.
    pub(super) fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// Whether variables of the environment can hold it: lists of tables are for files.
    pub(super) fn has_variable(&self) -> bool {
        let table = self.key.split('.').next().unwrap_or_default();
        !matches!(table, "tenant" | "function") && self.key != "cluster.nodes"
    }

    /// The names in one table.
    pub(super) fn names(table: &str) -> impl Iterator<Item = &'static str> {
        SETTINGS.iter().filter_map(move |setting| {
            let name = setting.key.strip_prefix(table)?.strip_prefix('.')?;
            (!name.contains('.')).then_some(name)
        })
    }
}
