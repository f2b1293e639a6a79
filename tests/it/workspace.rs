//! The workspace as cargo sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The folder of the virtual workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All packages of one resolved workspace, for this machine's platform.
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    /// By package id: what it depends on.
    edges: BTreeMap<String, Vec<Edge>>,
}

struct Edge {
    /// A package id.
    to: String,
    only_for_tests: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// SPDX, as declared.
    pub(crate) license: Option<String>,
    /// `None` for a package in a folder.
    pub(crate) source: Option<String>,
    pub(crate) folder: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

#[derive(Debug, Clone)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// The versions asked for; `*` for any.
    pub(crate) requirement: String,
    pub(crate) is_path: bool,
    /// `normal`, `dev` or `build`.
    pub(crate) kind: String,
}

impl Workspace {
    /// Reads what is resolved without the network where the packages are at hand, as they are after a build.
    fn of(manifest: &Path) -> Self {
        let offline = metadata(manifest, &["--offline"]);
        let text =
            offline.or_else(|_| metadata(manifest, &[])).unwrap_or_else(|error| panic!("cargo metadata: {error}"));
        let json: Value = serde_json::from_str(&text).unwrap();
        let packages = json["packages"].as_array().unwrap().iter().map(Package::of).collect();
        let nodes = json["resolve"]["nodes"].as_array().unwrap();
        let edges = nodes.iter().map(|node| (text_of(&node["id"]), edges_of(node))).collect();
        Self { packages, edges }
    }

    /// The store's, asked for once.
    pub(crate) fn main() -> &'static Self {
        static MAIN: LazyLock<Workspace> = LazyLock::new(|| Workspace::of(&root().join("Cargo.toml")));
        &MAIN
    }

    /// That of the transforms, asked for once.
    pub(crate) fn transforms() -> &'static Self {
        static TRANSFORMS: LazyLock<Workspace> = LazyLock::new(|| Workspace::of(&root().join("transforms/Cargo.toml")));
        &TRANSFORMS
    }

    /// The packages that stand in the workspace's own folders.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.source.is_none())
    }

    pub(crate) fn package(&self, name: &str) -> &Package {
        self.members().find(|package| package.name == name).unwrap_or_else(|| panic!("no member is called {name}"))
    }

    /// Where the package of this name stands; empty for one from a registry.
    pub(crate) fn package_place(&self, name: &str) -> String {
        self.members().find(|package| package.name == name).map(Package::place).unwrap_or_default()
    }

    /// Everything that this package is linked with, built by or tested with, itself excluded.
    pub(crate) fn closure(&self, name: &str) -> Vec<&Package> {
        self.reached_from(name, |_| true)
    }

    /// [`Workspace::closure`] without what only tests need.
    pub(crate) fn closure_without_tests(&self, name: &str) -> Vec<&Package> {
        self.reached_from(name, |edge| !edge.only_for_tests)
    }

    fn reached_from(&self, name: &str, follows: impl Fn(&Edge) -> bool) -> Vec<&Package> {
        let start = &self.package(name).id;
        let mut seen = BTreeSet::from([start.as_str()]);
        let mut open = vec![start.as_str()];
        while let Some(id) = open.pop() {
            for edge in self.edges.get(id).into_iter().flatten().filter(|edge| follows(edge)) {
                if seen.insert(&edge.to) {
                    open.push(&edge.to);
                }
            }
        }
        self.packages.iter().filter(|package| package.id != *start && seen.contains(package.id.as_str())).collect()
    }
}

impl Package {
    fn of(json: &Value) -> Self {
        Self {
            id: text_of(&json["id"]),
            name: text_of(&json["name"]),
            version: text_of(&json["version"]),
            license: json["license"].as_str().map(str::to_owned),
            source: json["source"].as_str().map(str::to_owned),
            folder: Path::new(json["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned(),
            dependencies: json["dependencies"].as_array().unwrap().iter().map(Dependency::of).collect(),
        }
    }

    /// The folder from the workspace's root on, with slashes.
    pub(crate) fn place(&self) -> String {
        let place = self.folder.strip_prefix(root()).unwrap_or(&self.folder);
        place.to_string_lossy().replace('\\', "/")
    }
}

impl Dependency {
    fn of(json: &Value) -> Self {
        Self {
            name: text_of(&json["name"]),
            requirement: text_of(&json["req"]),
            is_path: json["path"].is_string(),
            kind: json["kind"].as_str().unwrap_or("normal").to_owned(),
        }
    }
}

/// By package and version: the sets of features that it is compiled with for this machine, where these kinds of
/// dependencies count (`normal,build,dev`).
pub(crate) fn features(kinds: &str) -> BTreeMap<String, BTreeSet<String>> {
    let listed = |options: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["tree", "--workspace", "--locked", "--edges", kinds, "--prefix", "none", "--format", "{p}|{f}"]);
        output_of(command.args(options).current_dir(root()))
    };
    let text = listed(&["--offline"]).or_else(|_| listed(&[])).unwrap_or_else(|error| panic!("cargo tree: {error}"));
    let mut features: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (package, its) in text.lines().filter_map(|line| line.split_once('|')) {
        // The star says that what it depends on stands further up.
        let its = its.trim_end_matches(" (*)").to_owned();
        features.entry(package.to_owned()).or_default().insert(its);
    }
    features
}

fn metadata(manifest: &Path, options: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &host()]);
    output_of(command.args(options).arg("--manifest-path").arg(manifest))
}

fn output_of(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

fn text_of(json: &Value) -> String {
    json.as_str().unwrap_or_else(|| panic!("text expected, found {json}")).to_owned()
}

fn edges_of(node: &Value) -> Vec<Edge> {
    let edge = |dependency: &Value| {
        let kinds = dependency["dep_kinds"].as_array().unwrap();
        Edge { to: text_of(&dependency["pkg"]), only_for_tests: kinds.iter().all(|kind| kind["kind"] == "dev") }
    };
    node["deps"].as_array().unwrap().iter().map(edge).collect()
}
