//! Tells the engine which wasmtime it is built with, for its fingerprint.

use std::path::Path;

fn main() {
    let lock_file = Path::new("../../Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock_file.display());
    let lock = std::fs::read_to_string(lock_file).unwrap_or_default();
    let version = locked_version(&lock, "wasmtime").unwrap_or("unknown");
    println!("cargo:rustc-env=EADEM_WASMTIME_VERSION={version}");
}

fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let named = format!("name = \"{package}\"\nversion = \"");
    let (_, after) = lock.split_once(&named)?;
    after.split('"').next()
}
