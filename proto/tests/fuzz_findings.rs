//! Checks what must hold for every input that the fuzzer is started with, and for every input that
//! ever broke something (`proto/fuzz/findings`).

#[expect(unreachable_pub, reason = "another crate has it as its root")]
#[path = "../fuzz/src/lib.rs"]
mod checks;

use std::fs;
use std::path::Path;

/// Runs each target on the inputs that this folder has for it. Returns the smallest number of
/// inputs that a target has.
fn try_all(folder: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder);
    let counts = checks::TARGETS.map(|(name, check)| {
        let Ok(entries) = fs::read_dir(root.join(name)) else { return 0 };
        let paths = entries.map(|entry| entry.expect("the folder can be read").path());
        let inputs = paths.map(|path| {
            println!("{}", path.display());
            check(&fs::read(path).expect("the file can be read"));
        });
        inputs.count()
    });
    counts.into_iter().min().unwrap_or_default()
}

#[test]
fn seeds_hold() {
    assert!(try_all("seeds") > 0, "each target has some");
}

#[test]
fn findings_stay_mended() {
    try_all("findings");
    // A folder that belongs to no target would never be tried.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/findings");
    for entry in fs::read_dir(root).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        let name = entry.file_name();
        assert!(checks::TARGETS.iter().any(|(target, _)| name == *target), "{name:?}");
    }
}

#[test]
fn every_target_is_built() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    for (name, _) in checks::TARGETS {
        assert!(manifest.contains(&format!("fuzz_targets/{name}.rs")), "{name}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), checks::TARGETS.len());
}
