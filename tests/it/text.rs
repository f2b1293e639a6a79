//! What no file of the project may say, and what every crate must.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::root;

/// Where there is no git to ask. Not of the project: what is built, what a demo left.
const SKIPPED: [&str; 4] = ["target", ".git", "eadem-demo", "node_modules"];

/// What git keeps; `None` without a repository.
fn files_of_git() -> Option<Vec<PathBuf>> {
    let arguments = ["ls-files", "-z"];
    let listed = Command::new("git").arg("-C").arg(root()).args(arguments).output().ok()?;
    let names = String::from_utf8(listed.stdout).ok().filter(|_| listed.status.success())?;
    // One that is deleted and not yet committed is listed still.
    let files = names.split_terminator('\0').map(|name| root().join(name)).filter(|path| path.is_file());
    Some(files.collect())
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !SKIPPED.contains(&&*name) {
                files_under(&path, found);
            }
            continue;
        }
        found.push(path);
    }
}

fn project_text() -> Vec<(PathBuf, String)> {
    let mut found = files_of_git().unwrap_or_default();
    if found.is_empty() {
        files_under(&root(), &mut found);
    }
    // What is not UTF-8 is data.
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Some((path, String::from_utf8(bytes).ok()?))
    };
    let texts: Vec<(PathBuf, String)> = found.into_iter().filter_map(read).collect();
    assert!(texts.len() > 100, "only {} files were found", texts.len());
    texts
}

/// A path of one machine means nothing on another.
#[test]
fn no_file_names_a_path_of_one_machine() {
    // Written apart, so that this file does not name them itself.
    let homes = [["/ro", "ot/"], ["/wo", "rk/"], ["/ho", "me/"], ["/Use", "rs/"]].map(|parts| parts.concat());
    for (path, text) in project_text() {
        for (number, line) in text.lines().enumerate() {
            for home in &homes {
                let begins_path = line.match_indices(home.as_str()).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|before| !before.is_alphanumeric() && !"._-~}/".contains(before))
                });
                assert!(!begins_path, "{}:{} names a path of one machine: {line}", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn every_member_has_the_workspaces_lints_and_licence() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let member = member.as_str().unwrap();
        let text = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let package: toml::Table = text.parse().unwrap();
        assert_eq!(package["lints"]["workspace"].as_bool(), Some(true), "{member} does not take the workspace's lints");
        assert_eq!(package["package"]["license"]["workspace"].as_bool(), Some(true), "{member}: licence");
        assert!(
            package["package"]["description"].as_str().is_some_and(|text| !text.is_empty()),
            "{member}: description"
        );
    }
}

#[test]
fn the_licence_is_whole() {
    let licence = fs::read_to_string(root().join("LICENSE")).unwrap();
    assert!(licence.contains("Apache License") && licence.contains("END OF TERMS AND CONDITIONS"));
}
