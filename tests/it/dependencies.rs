//! Licences, bans and sources of everything that is linked, by the rules of `deny.toml`; cargo-deny checks the same and more
//! where it is installed.

use std::fs;

use toml::Table;

use crate::spdx;
use crate::workspace::{Package, Workspace, features, root};

fn rules() -> Table {
    fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap()
}

fn texts(rules: &Table, section: &str, key: &str) -> Vec<String> {
    let list = rules[section][key].as_array().unwrap_or_else(|| panic!("[{section}] {key} is a list"));
    list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn everything() -> impl Iterator<Item = &'static Package> {
    Workspace::main().packages.iter().chain(&Workspace::transforms().packages)
}

#[test]
fn licences_are_allowed() {
    let allowed = texts(&rules(), "licenses", "allow");
    let is_allowed = |name: &str| allowed.iter().any(|allowed| allowed == name);
    for package in everything() {
        let Package { name, version, license, .. } = package;
        let license = license.as_deref().unwrap_or_else(|| panic!("{name} {version} declares no licence"));
        let satisfied = spdx::is_satisfied(license, &is_allowed);
        let satisfied = satisfied.unwrap_or_else(|error| panic!("licence of {name} {version}: {error}"));
        assert!(satisfied, "{name} {version} is licensed {license}, which deny.toml does not allow");
    }
}

#[test]
fn sources_are_allowed() {
    let allowed = texts(&rules(), "sources", "allow-registry");
    for package in everything() {
        let Some(source) = &package.source else {
            assert!(package.folder.starts_with(root()), "{} stands outside of the project", package.name);
            continue;
        };
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        assert!(allowed.iter().any(|allowed| allowed == registry), "{} comes from {source}", package.name);
    }
}

#[test]
fn banned_crates_are_absent() {
    let rules = rules();
    let banned: Vec<&str> =
        rules["bans"]["deny"].as_array().unwrap().iter().map(|entry| entry["crate"].as_str().unwrap()).collect();
    assert!(!banned.is_empty());
    for package in everything() {
        assert!(!banned.contains(&&*package.name), "{} {} is banned by deny.toml", package.name, package.version);
    }
}

#[test]
fn every_dependency_names_its_versions() {
    assert_eq!(rules()["bans"]["wildcards"].as_str(), Some("deny"));
    for package in everything().filter(|package| package.source.is_none()) {
        for dependency in &package.dependencies {
            let is_wild = dependency.requirement == "*" && !dependency.is_path;
            assert!(!is_wild, "{} takes any version of {}", package.name, dependency.name);
        }
    }
}

/// Where a dependency of tests switched on a feature of a crate, `make test` would compile that crate a second time after
/// `make build`, with everything that depends on it.
#[test]
fn tests_change_no_feature_of_what_is_built() {
    let (built, tested) = (features("normal,build"), features("normal,build,dev"));
    assert!(built.len() > 100, "only {} packages were found", built.len());
    for (package, its) in &built {
        let in_tests = &tested[package];
        assert_eq!(its, in_tests, "{package} is compiled with other features for tests; see [dev-dependencies]");
    }
}
