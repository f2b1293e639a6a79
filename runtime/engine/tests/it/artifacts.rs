//! Artefacts: made once, trusted only if this host made them.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use eadem_engine::{CallClass, Engine, EngineError, Transform, UploadOptions};
use eadem_values::Digest;

use crate::support::{apply_int64s, component, config, engine_with, x_to_y, y_of};

/// Loads `poison_row` and says whether its bytes were asked for, that is, whether it was compiled.
fn load(engine: &Engine) -> (Transform, bool) {
    let bytes = component("poison_row");
    let was_asked = Cell::new(false);
    let provider = || {
        was_asked.set(true);
        Ok(bytes.clone())
    };
    let transform = engine.load(Digest::of(&bytes), provider, x_to_y("poison_row"), false, None).unwrap();
    let applied = apply_int64s(&transform, &[3, 4], CallClass::Batch);
    assert_eq!(y_of(&applied), [Some(3), Some(4)]);
    (transform, was_asked.get())
}

fn digest() -> Digest {
    Digest::of(&component("poison_row"))
}

#[test]
fn an_artefact_is_compiled_once() {
    let test = engine_with(|_| {});
    assert!(load(&test.engine).1);
    assert!(!load(&test.engine).1);
    // Another engine in the same directory, as after a restart.
    let restarted = Engine::new(config(test.directory.path())).unwrap();
    assert!(!load(&restarted).1);
}

#[test]
fn upload_leaves_the_artefact_that_load_takes() {
    let test = engine_with(|_| {});
    test.engine.accept(&component("poison_row"), &UploadOptions { rows: 4, ..UploadOptions::default() }).unwrap();
    assert!(!load(&test.engine).1);
}

#[test]
fn any_changed_byte_makes_a_forgery_which_is_recompiled() {
    let test = engine_with(|_| {});
    load(&test.engine);
    let path = test.engine.artifact_path(&digest(), false);
    let authentic = fs::read(&path).unwrap();
    // Magic, version, hash, first and last byte of the code, and one amidst.
    for at in [0, 8, 12, 43, 44, authentic.len() / 2, authentic.len() - 1] {
        let mut forged = authentic.clone();
        forged[at] ^= 1;
        fs::write(&path, &forged).unwrap();
        assert!(load(&test.engine).1, "byte {at}");
        assert_eq!(fs::read(&path).unwrap().len(), authentic.len(), "the forgery was replaced");
    }
    for cut in [0, 10, 44, authentic.len() - 1] {
        fs::write(&path, &authentic[..cut]).unwrap();
        assert!(load(&test.engine).1, "cut to {cut} bytes");
    }
}

#[test]
fn an_artefact_that_cannot_be_stored_stops_nothing() {
    let test = engine_with(|_| {});
    // Where the file should stand stands a directory.
    fs::create_dir(test.engine.artifact_path(&digest(), false)).unwrap();
    assert!(load(&test.engine).1);
    assert!(load(&test.engine).1, "it is compiled again");
}

#[test]
fn of_threads_that_want_the_same_artefact_one_compiles() {
    let test = engine_with(|_| {});
    let bytes = component("poison_row");
    let compiled = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let provider = || {
                    compiled.fetch_add(1, Ordering::Relaxed);
                    Ok(bytes.clone())
                };
                test.engine.load(digest(), provider, x_to_y("poison_row"), false, None).unwrap();
            });
        }
    });
    assert_eq!(compiled.into_inner(), 1);
}

#[test]
fn what_a_writer_left_behind_long_ago_is_removed() {
    let test = engine_with(|_| {});
    let (old, new) = (test.directory.path().join(".unfinished-old"), test.directory.path().join(".unfinished-new"));
    fs::write(&new, "half an artefact").unwrap();
    fs::write(&old, "half an artefact").unwrap();
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 3_600);
    File::options().write(true).open(&old).unwrap().set_modified(yesterday).unwrap();
    Engine::new(config(test.directory.path())).unwrap();
    assert!(!old.exists());
    assert!(new.exists(), "another process may be writing it");
}

#[test]
fn a_compiler_that_reads_nothing_is_ended() {
    // A component larger than a pipe holds, and a program that neither reads nor answers.
    let test = engine_with(|config| {
        config.compile_ms_max = 200;
        config.compiler.program = "/bin/sleep".into();
        config.compiler.args = vec!["600".to_owned()];
    });
    let mut bytes = component("bench_string");
    // A custom section of 1 MiB.
    bytes.extend([0, 0x81, 0x80, 0x40, 0]);
    bytes.extend(vec![0; 1 << 20]);
    let refusal = test.engine.accept(&bytes, &UploadOptions::default()).unwrap_err();
    assert_eq!(refusal.code(), "compile_time", "{refusal}");
}

#[test]
fn a_compiler_that_the_machine_kills_ran_out_of_memory() {
    let test = engine_with(|config| {
        config.compiler.program = "/bin/sh".into();
        config.compiler.args = vec!["-c".to_owned(), "kill -9 $$".to_owned()];
    });
    let refusal = test.engine.accept(&component("bench_string"), &UploadOptions::default()).unwrap_err();
    assert_eq!(refusal.code(), "compile_memory", "{refusal}");
}

#[test]
fn an_artefact_of_another_host_is_recompiled() {
    let (ours, theirs) = (engine_with(|_| {}), engine_with(|_| {}));
    load(&theirs.engine);
    let path = ours.engine.artifact_path(&digest(), false);
    fs::copy(theirs.engine.artifact_path(&digest(), false), &path).unwrap();
    assert!(load(&ours.engine).1);
}

#[test]
fn an_artefact_cannot_stand_in_for_another() {
    let test = engine_with(|_| {});
    load(&test.engine);
    let plain = test.engine.artifact_path(&digest(), false);
    let strict = test.engine.artifact_path(&digest(), true);
    assert_ne!(plain, strict);
    fs::copy(&plain, &strict).unwrap();
    let was_asked = Cell::new(false);
    let provider = || {
        was_asked.set(true);
        Ok(component("poison_row"))
    };
    test.engine.load(digest(), provider, x_to_y("poison_row"), true, None).unwrap();
    assert!(was_asked.get(), "the plain artefact was taken for the strict one");

    let other = Digest::of(&component("panics"));
    fs::copy(&plain, test.engine.artifact_path(&other, false)).unwrap();
    let error = test.engine.load(other, || Err("asked".to_owned()), x_to_y("panics"), false, None).unwrap_err();
    assert!(error.to_string().ends_with("asked"), "{error}");
}

#[test]
fn bytes_of_another_digest_are_not_compiled() {
    let test = engine_with(|_| {});
    let error = test.engine.load(digest(), || Ok(component("panics")), x_to_y("x"), false, None).unwrap_err();
    assert!(
        matches!(&error, EngineError::Artifact { what, .. } if what.starts_with("the bytes that were provided are sha256:")),
        "{error}"
    );
}

#[test]
fn the_key_is_for_its_owner_only() {
    let test = engine_with(|_| {});
    let key = test.directory.path().join("artifact.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read(&key).unwrap().len(), 32);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Engine::new(config(test.directory.path())).unwrap_err();
    assert!(error.to_string().contains("others may read or write it (mode 644)"), "{error}");
}

#[test]
fn a_configured_key_is_the_key() {
    let test = engine_with(|config| config.artifact_key_hex = Some("ab".repeat(32)));
    load(&test.engine);
    assert!(!test.directory.path().join("artifact.key").exists());
    let with_key = |key: &str| {
        let mut config = config(test.directory.path());
        config.artifact_key_hex = Some(key.to_owned());
        Engine::new(config)
    };
    assert!(!load(&with_key(&"ab".repeat(32)).unwrap()).1);
    assert!(load(&with_key(&"cd".repeat(32)).unwrap()).1);
    let error = with_key("short").unwrap_err();
    assert_eq!(error.to_string(), "the engine cannot start: artifact_key_hex: a key is 64 hexadecimal digits");
}

#[test]
fn a_compiler_that_cannot_run_is_no_fault_of_the_component() {
    let test = engine_with(|config| config.compiler.program = "/nonexistent/compiler".into());
    let refusal = test.engine.accept(&component("poison_row"), &UploadOptions::default()).unwrap_err();
    assert!(!refusal.blames_component(), "{refusal}");
    assert!(refusal.to_string().contains("/nonexistent/compiler"), "{refusal}");
}

#[test]
fn the_fingerprint_names_engine_contract_and_processor() {
    let test = engine_with(|_| {});
    let fingerprint = test.engine.fingerprint();
    assert!(fingerprint.contains("wasmtime/48."), "{fingerprint}");
    assert!(fingerprint.contains("contract/0.1.0"), "{fingerprint}");
    assert!(fingerprint.contains(" cpu/"), "{fingerprint}");
    assert_eq!(fingerprint, engine_with(|_| {}).engine.fingerprint());
}
