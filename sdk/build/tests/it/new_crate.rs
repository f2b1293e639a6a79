use std::fs;
use std::path::Path;
use std::process::Command;

use eadem_build::{BuildOptions, SdkLocation, build_component, new_crate};

use crate::build::options;

/// The SDK of this very checkout.
pub(crate) fn sdk() -> SdkLocation {
    SdkLocation::Path(Path::new(env!("CARGO_MANIFEST_DIR")).join("../rust").canonicalize().unwrap())
}

/// The lock file of the examples names the same dependencies, so nothing needs to be looked up.
pub(crate) fn lock_as_the_examples(crate_dir: &Path) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../transforms/Cargo.lock");
    fs::copy(examples, crate_dir.join("Cargo.lock")).unwrap();
}

#[test]
fn a_new_crate_passes_its_tests_and_becomes_a_component() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = new_crate(dir.path(), "weather", &sdk()).unwrap();
    lock_as_the_examples(&crate_dir);

    let tests = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "--lib"])
        .current_dir(&crate_dir)
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("native"))
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&tests.stdout);
    assert!(tests.status.success(), "{printed}{}", String::from_utf8_lossy(&tests.stderr));
    assert!(printed.contains("2 passed"), "{printed}");

    let options = BuildOptions { out_dir: Some(dir.path().join("out")), ..options() };
    let built = build_component(&crate_dir, &options).unwrap();
    assert_eq!(built.name, "weather");
    assert_eq!(fs::read(&built.path).unwrap(), built.bytes);
    assert!(built.foreign_imports.is_empty());
    assert!(!built.unchanged);
    assert!(build_component(&crate_dir, &options).unwrap().unchanged);
}
