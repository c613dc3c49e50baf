//! What tests of configurations have in common.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A tenant and a function.
pub(crate) const PARTIES: &str = r#"
[[tenant]]
name = "dev"
client_keys = ["dev-key"]
[[function]]
id = "11111111-1111-4111-8111-111111111111"
version = "22222222-2222-4222-8222-222222222222"
tenants = ["dev"]
worker_keys = ["dev-worker-key"]
"#;

/// A folder of its own, gone with the value.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringway-config-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left there is the system's to clean up.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
