//! The contract changes only together with its version.

use std::fs;

use sha2::{Digest, Sha256};

use crate::workspace::root;

const LOCK: &str = "tests/wit.lock";

/// The digest of every file in `wit/`, by name and length, so that moving a byte between files shows.
fn digest_of_contract() -> String {
    let mut files: Vec<_> = fs::read_dir(root().join("wit")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.iter().all(|path| path.is_file()), "wit/ has a folder, which this digest does not look into");
    let mut digest = Sha256::new();
    for path in files {
        let content = fs::read(&path).unwrap();
        digest.update(path.file_name().unwrap().as_encoded_bytes());
        digest.update([0]);
        digest.update((content.len() as u64).to_le_bytes());
        digest.update(content);
    }
    format!("sha256:{}", hex::encode(digest.finalize()))
}

fn version_of_contract() -> String {
    let text = fs::read_to_string(root().join("wit/transform.wit")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("package eadem:transform@"));
    line.expect("wit/transform.wit names its package").trim_end_matches(';').to_owned()
}

/// `version digest` per line; `#` begins a comment.
fn recorded() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(LOCK)).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap()).collect()
}

#[test]
fn the_version_moves_when_the_contract_does() {
    let (version, digest) = (version_of_contract(), digest_of_contract());
    let (_, recorded) = recorded().into_iter().find(|(recorded, _)| *recorded == version).unwrap_or_else(|| {
        panic!("version {version} of the contract is not recorded; add to {LOCK}:\n{version} {digest}");
    });
    assert_eq!(
        digest, recorded,
        "wit/ is no longer what version {version} was. Raise the version in wit/transform.wit and record it in {LOCK} \
         (only while {version} is unreleased may its line be replaced by `{version} {digest}`)"
    );
}

#[test]
fn no_version_is_recorded_twice_and_no_contract_has_two_versions() {
    let recorded = recorded();
    for (at, (version, digest)) in recorded.iter().enumerate() {
        for (other_version, other_digest) in &recorded[at + 1..] {
            assert_ne!(version, other_version);
            assert_ne!(digest, other_digest, "{version} and {other_version} are the same contract");
        }
    }
}

/// The SDK carries its bindings ready-made; they name the contract that they were made from.
#[test]
fn the_sdks_bindings_are_those_of_the_contract() {
    let mut files: Vec<_> = fs::read_dir(root().join("wit")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let contract: Vec<u8> = files.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    let digest = hex::encode(Sha256::digest(contract));
    let bindings = fs::read_to_string(root().join("sdk/rust/src/bindings.rs")).unwrap();
    let first_line = bindings.lines().next().unwrap();
    assert!(
        first_line.contains(&format!("(sha256:{digest})")),
        "wit/ has changed since sdk/rust/src/bindings.rs was made: run scripts/bindings.sh"
    );
}
