//! Tells the binary what it is built with, for the fingerprint of training sets.

use std::path::Path;

fn main() {
    let lock_file = Path::new("../../Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock_file.display());
    let lock = std::fs::read_to_string(lock_file).unwrap_or_default();
    for (package, variable) in [("datafusion", "LOCKED_DATAFUSION_VERSION"), ("chrono-tz", "LOCKED_CHRONO_TZ_VERSION")]
    {
        let version = locked_version(&lock, package).unwrap_or("unknown");
        println!("cargo:rustc-env={variable}={version}");
    }
}

fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let named = format!("name = \"{package}\"\nversion = \"");
    let (_, after) = lock.split_once(&named)?;
    after.split('"').next()
}
