use std::fs;
use std::path::Path;
use std::process::{Command, Output};

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

/// Cargo in the crate's folder, natively; what it compiles is shared by the tests here.
fn cargo_in(crate_dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(crate_dir)
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("native"))
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap()
}

#[test]
fn a_new_crate_passes_its_tests_and_becomes_a_component() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = new_crate(dir.path(), "weather", &sdk()).unwrap();
    lock_as_the_examples(&crate_dir);

    let tests = cargo_in(&crate_dir, &["test", "--quiet", "--lib"]);
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

#[test]
fn a_new_crate_is_warned_of_the_maps_of_std() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = new_crate(dir.path(), "std_maps", &sdk()).unwrap();
    lock_as_the_examples(&crate_dir);
    if !cargo_in(&crate_dir, &["clippy", "--version"]).status.success() {
        eprintln!("skipped: clippy is not installed (rustup component add clippy)");
        return;
    }
    let lint = || {
        let output = cargo_in(&crate_dir, &["clippy", "--quiet", "--lib"]);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{printed}");
        printed
    };
    assert_eq!(lint(), "", "the template itself gives no warning");

    let source = crate_dir.join("src/lib.rs");
    let counting = "\npub fn kinds(names: &[&str]) -> usize {\n    \
                    names.iter().collect::<std::collections::HashSet<_>>().len()\n}\n";
    fs::write(&source, fs::read_to_string(&source).unwrap() + counting).unwrap();
    let printed = lint();
    assert!(printed.contains("std::collections::HashSet") && printed.contains("eadem::prelude"), "{printed}");
}
