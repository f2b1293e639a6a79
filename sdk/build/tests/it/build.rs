use std::fs;
use std::path::{Path, PathBuf};

use eadem_build::{BuildError, BuildOptions, SdkLocation, build_component, build_from_text, new_crate};

use crate::new_crate::{lock_as_the_examples, sdk};

/// Intermediate files of all tests here lie together, so that the SDK is compiled once. Tests run beside each other, so
/// that each has a crate of another name: two of one name would overwrite each other's module.
pub(crate) fn options() -> BuildOptions {
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    BuildOptions { target_dir: Some(target_dir), ..BuildOptions::default() }
}

fn crate_with(dir: &Path, name: &str, source: &str) -> PathBuf {
    let crate_dir = new_crate(dir, name, &sdk()).unwrap();
    lock_as_the_examples(&crate_dir);
    fs::write(crate_dir.join("src/lib.rs"), source).unwrap();
    crate_dir
}

const HONEST: &str = r#"
    use eadem::prelude::*;
    #[derive(Input)] pub struct In { x: i64 }
    #[derive(Output)] pub struct Out { y: i64 }
    #[transform(owner = "tests")] pub fn probe(row: In) -> Out { Out { y: row.x / (row.x - 1) } }
"#;

#[test]
fn the_same_source_makes_the_same_bytes_in_any_folder_and_names_none() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let built = [one.path(), other.path()].map(|dir| {
        let crate_dir = crate_with(dir, "same_bytes", HONEST);
        build_component(&crate_dir, &BuildOptions { out_dir: Some(dir.join("out")), ..options() }).unwrap()
    });
    assert_ne!(built[0].path, built[1].path);
    assert_eq!(built[0].bytes, built[1].bytes);

    let text = String::from_utf8_lossy(&built[0].bytes).into_owned();
    let home = std::env::home_dir().unwrap();
    for folder in [one.path(), Path::new(env!("CARGO_MANIFEST_DIR")), &home] {
        let folder = folder.to_str().unwrap();
        assert!(!text.contains(folder), "{folder} is named in the component");
    }
    assert!(text.contains("src/lib.rs"), "a panic still says where");
}

#[test]
fn the_stack_is_as_large_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = crate_with(dir.path(), "stack", HONEST);
    let small = build_component(&crate_dir, &options()).unwrap();
    let large = build_component(&crate_dir, &BuildOptions { stack_bytes: 1 << 20, ..options() }).unwrap();
    assert_eq!(initial_pages(&large.bytes) - initial_pages(&small.bytes), (1 << 20 >> 16) - 1);
}

/// Pages of the first memory that any core module inside declares.
fn initial_pages(component: &[u8]) -> u64 {
    for payload in wasmparser::Parser::new(0).parse_all(component) {
        if let wasmparser::Payload::MemorySection(memories) = payload.unwrap() {
            return memories.into_iter().next().unwrap().unwrap().initial;
        }
    }
    panic!("no memory in the component");
}

#[test]
fn a_crate_that_does_not_compile_says_what_the_compiler_said() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = crate_with(dir.path(), "broken", &HONEST.replace("row.x / (row.x - 1)", "row.z"));
    let error = build_component(&crate_dir, &options()).unwrap_err();
    assert!(matches!(error, BuildError::Compile { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("no field `z`") && message.contains("src/lib.rs"), "{message}");
}

#[test]
fn a_crate_without_a_transform_is_told_to_mark_one() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = crate_with(dir.path(), "unmarked", "pub fn probe(x: i64) -> i64 { x }");
    let message = build_component(&crate_dir, &options()).unwrap_err().to_string();
    assert!(message.contains("#[transform(owner ="), "{message}");
}

#[test]
fn a_family_of_components_is_not_one() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = crate_with(dir.path(), "family", HONEST);
    let manifest = crate_dir.join("Cargo.toml");
    let example = "[[example]]\nname = \"cousin\"\ncrate-type = [\"cdylib\"]\n";
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap() + example).unwrap();
    fs::create_dir(crate_dir.join("examples")).unwrap();
    fs::write(crate_dir.join("examples/cousin.rs"), HONEST).unwrap();

    let options = BuildOptions { out_dir: Some(dir.path().join("out")), ..options() };
    let error = build_component(&crate_dir, &options).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, BuildError::SeveralComponents { .. }), "{message}");
    for file in ["out/family.wasm", "out/cousin.wasm"] {
        assert!(message.contains(file) && dir.path().join(file).is_file(), "{message}");
    }
}

#[test]
fn a_crate_without_a_cdylib_is_told_how_to_have_one() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = crate_with(dir.path(), "no_cdylib", HONEST);
    let manifest = crate_dir.join("Cargo.toml");
    let plain = fs::read_to_string(&manifest).unwrap().replace(r#"["cdylib", "rlib"]"#, r#"["rlib"]"#);
    fs::write(&manifest, plain).unwrap();
    let message = build_component(&crate_dir, &options()).unwrap_err().to_string();
    assert!(message.contains(r#"crate-type = ["cdylib", "rlib"]"#), "{message}");
}

#[test]
fn a_folder_without_a_crate_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = build_component(dir.path(), &options()).unwrap_err();
    assert!(matches!(error, BuildError::NotACrate { .. }), "{error}");
    assert!(error.to_string().contains("Cargo.toml"), "{error}");
}

#[test]
fn an_sdk_that_is_not_there_is_an_error_of_the_crate() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = new_crate(dir.path(), "no_sdk", &SdkLocation::Path("nowhere".into())).unwrap();
    let error = build_component(&crate_dir, &options()).unwrap_err();
    assert!(matches!(error, BuildError::NotACrate { .. }), "{error}");
}

#[test]
fn text_becomes_a_component_or_says_where_it_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../transforms/hostile/wat");
    let component = build_from_text(&shapes.join("start_loops.wat"), dir.path()).unwrap();
    assert_eq!(component.bytes[4..8], [0x0d, 0, 1, 0], "a component by its header");
    let module = build_from_text(&shapes.join("core_module.core.wat"), dir.path()).unwrap();
    assert_eq!(module.name, "core_module");
    assert_eq!(module.bytes[4..8], [1, 0, 0, 0], "a core module by its header");

    let broken = dir.path().join("broken.wat");
    fs::write(&broken, "(module (func (result i33)))").unwrap();
    let message = build_from_text(&broken, dir.path()).unwrap_err().to_string();
    assert!(message.contains("i33"), "{message}");
}

/// Runs in a process of its own, because it changes the environment.
#[test]
fn a_compiler_that_cannot_is_named_and_ways_out_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = crate_with(dir.path(), "no_compiler", HONEST);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_eadem-build"))
        .arg(&crate_dir)
        .env("EADEM_GUEST_RUSTC", "/nowhere/rustc")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(printed.contains("/nowhere/rustc") && printed.contains("rustup target add"), "{printed}");
}

/// Where the system's compiler carries library sources, it builds without an installed target. Takes minutes, so only
/// `make soak` does it.
#[test]
fn a_compiler_with_sources_builds_its_library_once() {
    let rustc = Path::new("/usr/bin/rustc");
    if !std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1") {
        eprintln!("skipped: EADEM_SOAK is not 1");
        return;
    }
    if !rustc.exists() || !Path::new("/usr/lib/rustlib/src/rust/library").exists() {
        eprintln!("skipped: no /usr/bin/rustc with library sources (apt-get install rustc-web cargo-web rust-web-src)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = crate_with(dir.path(), "own_std", HONEST);
    let build = || {
        std::process::Command::new(env!("CARGO_BIN_EXE_eadem-build"))
            .args(["--quiet", "--out"])
            .arg(dir.path().join("out"))
            .arg(&crate_dir)
            .env("EADEM_GUEST_RUSTC", rustc)
            .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("system"))
            .output()
            .unwrap()
    };
    for expected in ["built", "unchanged"] {
        let output = build();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(printed.contains("built from source") && printed.contains(expected), "{printed}");
    }
    let bytes = fs::read(dir.path().join("out/own_std.wasm")).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("/usr/lib/rustlib"), "the library's folder is named");
}
