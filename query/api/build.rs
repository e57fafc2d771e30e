//! Compiles the protos without protoc. Spans stay opaque: OTLP messages map to `raw`, which carries their bytes.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_file("sluicebox/v1/trace_query.proto")?;
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .extern_path(".opentelemetry.proto.trace.v1.TracesData", "crate::raw::RawTraces")
        // No code for the rest of OTLP: nothing here takes spans apart.
        .extern_path(".opentelemetry", "crate::raw::opentelemetry")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
