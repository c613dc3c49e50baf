//! Compiles the messages and services of the echo function and of NVIDIA's API; no `protoc` is
//! needed.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=echo/echo.proto");
    println!("cargo::rerun-if-changed=nvcf");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut echo = protox::Compiler::new(["echo"])?;
    echo.include_imports(true).open_file("echo.proto")?;
    std::fs::write(out.join("echo.bin"), echo.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(echo.file_descriptor_set())?;
    let mut nvcf = protox::Compiler::new(["nvcf"])?;
    nvcf.include_imports(true).open_file("nvcf.proto")?.open_file("ratelimiter.proto")?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .compile_fds(nvcf.file_descriptor_set())?;
    Ok(())
}
