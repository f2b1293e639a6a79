//! The direction of dependencies: `values ← engine, semantics ← query ← server/*`, the SDK apart from all of them, and nothing
//! that links a transform.

use std::collections::BTreeSet;
use std::fs;

use crate::workspace::{Workspace, root};

/// Each room, and the rooms it may know. A room that is not listed is not part of the house.
const MAY_KNOW: [(&str, &[&str]); 14] = [
    ("eadem-macros", &[]),
    ("eadem-sdk", &["eadem-macros"]),
    ("eadem-build", &[]),
    ("eadem-values", &[]),
    ("eadem-semantics", &["eadem-values"]),
    ("eadem-engine", &["eadem-values"]),
    ("eadem-query", &["eadem-values", "eadem-semantics", "eadem-engine"]),
    ("eadem-registry", RUNTIME),
    ("eadem-offline", RUNTIME),
    ("eadem-online", RUNTIME),
    ("eadem-api", SERVER),
    ("eadem", SERVER_AND_API),
    // Compares components with the same crates built natively, so it alone may link transforms.
    ("eadem-benches", BENCHED),
    // Measures whole processes; apart, so that the engine's figures need no DataFusion.
    ("eadem-benches-system", BENCHED_AS_A_WHOLE),
];

const RUNTIME: &[&str] = &["eadem-values", "eadem-semantics", "eadem-engine", "eadem-query"];
const SERVER: &[&str] = &[
    "eadem-values",
    "eadem-semantics",
    "eadem-engine",
    "eadem-query",
    "eadem-registry",
    "eadem-offline",
    "eadem-online",
];
const SERVER_AND_API: &[&str] = &[
    "eadem-values",
    "eadem-semantics",
    "eadem-engine",
    "eadem-query",
    "eadem-registry",
    "eadem-offline",
    "eadem-online",
    "eadem-api",
    "eadem-build",
];
const BENCHED: &[&str] = &["eadem-values", "eadem-engine", "eadem-sdk"];
const BENCHED_AS_A_WHOLE: &[&str] = &[
    "eadem-values",
    "eadem-semantics",
    "eadem-engine",
    "eadem-query",
    "eadem-registry",
    "eadem-offline",
    "eadem-online",
    "eadem-benches",
];

/// What a room must not be linked with, directly or through others.
const ABSENT: [(&str, &[&str]); 7] = [
    ("eadem-values", &["tokio", "wasmtime", "datafusion", "object_store", "sqlx", "reqwest", "axum"]),
    ("eadem-semantics", &["tokio", "wasmtime", "datafusion", "object_store", "sqlx", "reqwest", "axum"]),
    ("eadem-engine", &["tokio", "async-std", "datafusion", "object_store", "sqlx", "reqwest", "hyper", "axum"]),
    ("eadem-query", &["axum", "sqlx", "deltalake-core", "redb", "fjall"]),
    ("eadem-online", &["datafusion", "wasmtime", "axum", "reqwest", "sqlx"]),
    ("eadem-registry", &["datafusion", "wasmtime", "axum", "reqwest"]),
    ("eadem-build", &["wasmtime", "datafusion", "tokio", "axum"]),
];

fn is_transform(place: &str) -> bool {
    place.starts_with("transforms/")
}

#[test]
fn rooms_know_only_the_rooms_below_them() {
    let workspace = Workspace::main();
    let ours: BTreeSet<&str> = workspace.members().map(|package| package.name.as_str()).collect();
    for (name, may_know) in MAY_KNOW {
        // Tests may use rooms beside; what is linked into the product may not.
        for dependency in &workspace.package(name).dependencies {
            let is_ours = ours.contains(dependency.name.as_str());
            let is_allowed = may_know.contains(&dependency.name.as_str());
            let is_measured = name == "eadem-benches" && is_transform(&workspace.package_place(&dependency.name));
            assert!(
                !is_ours || is_allowed || is_measured || dependency.kind == "dev",
                "{name} must not depend on {}; see ARCHITECTURE.md, dependencies",
                dependency.name
            );
        }
    }
}

#[test]
fn tests_of_rooms_below_do_not_use_rooms_above() {
    let workspace = Workspace::main();
    let server: BTreeSet<&str> = workspace
        .members()
        .filter(|package| package.place().starts_with("server/"))
        .map(|package| &*package.name)
        .collect();
    for package in workspace.members().filter(|package| package.place().starts_with("runtime/")) {
        for dependency in &package.dependencies {
            assert!(!server.contains(&*dependency.name), "{} must not test with {}", package.name, dependency.name);
        }
    }
}

#[test]
fn every_room_is_listed_and_named_after_its_folder() {
    let workspace = Workspace::main();
    for package in workspace.members().filter(|package| !is_transform(&package.place())) {
        let is_listed = package.name == "eadem-tests" || MAY_KNOW.iter().any(|(name, _)| *name == package.name);
        assert!(is_listed, "{} is not listed here: decide what it may know", package.name);
        let place = package.place();
        let folder = place.rsplit('/').next().unwrap();
        let expected = match place.as_str() {
            // These two carry the product's name.
            "server/eadem" => "eadem".to_owned(),
            "sdk/rust" => "eadem-sdk".to_owned(),
            // A part of the benches.
            "benches/system" => "eadem-benches-system".to_owned(),
            _ => format!("eadem-{folder}"),
        };
        assert_eq!(package.name, expected, "the package in {place}");
    }
}

#[test]
fn what_a_room_does_not_know_is_absent() {
    let workspace = Workspace::main();
    for (name, absent) in ABSENT {
        let closure = workspace.closure_without_tests(name);
        assert!(!closure.is_empty(), "{name} seems to depend on nothing");
        for package in closure {
            assert!(!absent.contains(&&*package.name), "{name} is linked with {}", package.name);
        }
    }
}

#[test]
fn only_the_engine_speaks_to_wasmtime() {
    let workspace = Workspace::main();
    for package in workspace.members().filter(|package| package.name != "eadem-engine") {
        let speaks = package.dependencies.iter().any(|dependency| dependency.name == "wasmtime");
        assert!(!speaks, "{} uses wasmtime itself", package.name);
    }
}

#[test]
fn no_transform_is_linked_by_the_store() {
    let workspace = Workspace::main();
    for package in workspace.members() {
        let place = package.place();
        if !place.starts_with("server/") && !place.starts_with("runtime/") {
            continue;
        }
        for linked in workspace.closure(&package.name) {
            assert!(!is_transform(&linked.place()), "{} links the transform {}", package.name, linked.name);
        }
    }
}

#[test]
fn the_sdk_depends_on_nothing_of_the_host() {
    let workspace = Workspace::main();
    for name in ["eadem-sdk", "eadem-macros", "eadem-build"] {
        for linked in workspace.closure_without_tests(name).iter().filter(|package| package.source.is_none()) {
            assert!(linked.place().starts_with("sdk/"), "{name} depends on {}", linked.place());
        }
    }
}

#[test]
fn every_transform_has_a_folder_of_its_own() {
    let transforms = Workspace::transforms();
    let mut count = 0;
    for package in transforms.members().filter(|package| is_transform(&package.place())) {
        count += 1;
        assert_eq!(package.place(), format!("transforms/{}", package.name.replace('-', "_")));
        for linked in transforms.closure(&package.name).iter().filter(|linked| linked.source.is_none()) {
            let place = linked.place();
            assert!(place.starts_with("sdk/rust") || is_transform(&place), "{} links {place}", package.name);
        }
    }
    assert!(count > 0, "no transform was found");
}

/// The product's shape: a new top-level folder is a decision.
#[test]
fn top_level_folders_are_known() {
    let known = ["wit", "sdk", "runtime", "transforms", "server", "tests", "benches", "docs", "demo", "scripts"];
    for entry in fs::read_dir(root()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let holds_a_crate = entry.path().join("Cargo.toml").exists();
        assert!(!holds_a_crate || known.contains(&&*name), "{name}/ is not part of the house");
    }
    for folder in known {
        assert!(root().join(folder).is_dir(), "{folder}/ is missing");
    }
}
