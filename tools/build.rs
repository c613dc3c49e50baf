//! Compiles the messages of NVIDIA's API and workers, and the services that stand in for it; no
//! `protoc` is needed.

use std::error::Error;

/// The gateway's: one definition for both sides.
const FOLDER: &str = "../engine/nvcf";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let mut nvcf = protox::Compiler::new([FOLDER])?;
    nvcf.include_imports(true).open_file("nvcf.proto")?.open_file("ratelimiter.proto")?;
    tonic_prost_build::configure()
        .build_client(false)
        .emit_rerun_if_changed(false)
        .compile_fds(nvcf.file_descriptor_set())?;
    Ok(())
}
