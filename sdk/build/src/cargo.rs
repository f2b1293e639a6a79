//! What cargo is asked, and what it answers.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{BuildError, GuestToolchain, TARGET};

/// The release profile of every component, whatever the author's Cargo.toml says: fast, small, without unwinding;
/// function names stay, so that a backtrace can be read.
pub(crate) const PROFILE: [(&str, &str); 8] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_STRIP", "debuginfo"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

/// The part of `cargo metadata` that a build needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_root: PathBuf,
    pub(crate) target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    /// None for a package in a folder of this machine.
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    kind: Vec<String>,
    crate_types: Vec<String>,
}

/// One line of `cargo build --message-format=json`.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// A compiled core module.
#[derive(Debug)]
pub(crate) struct CoreModule {
    pub(crate) manifest_path: PathBuf,
    /// Name of the library or example, in snake case.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// One of a family, beside the crate's library or instead of it.
    pub(crate) is_example: bool,
}

impl Package {
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }

    fn cdylibs(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|target| target.is_cdylib())
    }

    pub(crate) fn makes_components(&self) -> bool {
        self.cdylibs().next().is_some()
    }

    /// True where examples of type cdylib stand for a family of components.
    pub(crate) fn has_component_examples(&self) -> bool {
        self.cdylibs().any(Target::is_example)
    }
}

impl Target {
    fn is_example(&self) -> bool {
        self.kind.iter().any(|kind| kind == "example")
    }

    fn is_cdylib(&self) -> bool {
        self.crate_types.iter().any(|crate_type| crate_type == "cdylib")
    }
}

/// Reads the workspace that the crate belongs to.
pub(crate) fn metadata(
    toolchain: &GuestToolchain,
    crate_dir: &Path,
    extra_args: &[String],
) -> Result<Metadata, BuildError> {
    let not_a_crate = |reason: String| BuildError::NotACrate { path: crate_dir.to_owned(), reason };
    let manifest = crate_dir.join("Cargo.toml");
    if !manifest.is_file() {
        return Err(not_a_crate("it holds no Cargo.toml".to_owned()));
    }
    let output = toolchain
        .cargo_command()
        .args(["metadata", "--format-version", "1", "--filter-platform", TARGET, "--manifest-path"])
        .arg(&manifest)
        .args(extra_args)
        .envs(env::var_os("CARGO_TARGET_DIR").map(|dir| ("CARGO_TARGET_DIR", dir)))
        .stderr(Stdio::piped())
        .output()
        .map_err(BuildError::io(format!("running {}", toolchain.cargo.display())))?;
    if !output.status.success() {
        return Err(not_a_crate(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| not_a_crate(format!("cargo metadata: {error}")))
}

impl Metadata {
    /// The package whose Cargo.toml lies in the folder.
    pub(crate) fn package_at(&self, crate_dir: &Path) -> Option<&Package> {
        let wanted = crate_dir.canonicalize().ok()?;
        self.packages.iter().find(|package| package.folder().canonicalize().is_ok_and(|folder| folder == wanted))
    }

    /// Where intermediate files go. A target folder that several workspaces share may see two crates of one name, of which
    /// each would overwrite the other's module: there, each workspace has a folder of its own.
    pub(crate) fn guest_target_dir(&self) -> PathBuf {
        let guests = self.target_directory.join("eadem-guest");
        if self.target_directory.starts_with(&self.workspace_root) {
            return guests;
        }
        let digest = hex::encode(Sha256::digest(self.workspace_root.as_os_str().as_encoded_bytes()));
        guests.join(digest.get(..16).unwrap_or(&digest))
    }

    /// Compiler flags that replace every folder of this machine by a name, so that the same sources make the same
    /// bytes wherever they lie.
    pub(crate) fn path_remaps(&self) -> Vec<String> {
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let cargo_home =
            env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")));
        let mut remaps = Vec::new();
        if let Some(home) = &cargo_home {
            remaps.push(remap(&home.join("registry/src"), "registry"));
            remaps.push(remap(&home.join("git/checkouts"), "git"));
        }
        // Where two prefixes fit, the compiler takes the last: the workspace first, then folders that may lie in it.
        remaps.push(remap(&self.workspace_root, "."));
        let local: BTreeSet<(&Path, &str)> = self
            .packages
            .iter()
            .filter(|package| package.source.is_none() && !package.folder().starts_with(&self.workspace_root))
            .map(|package| (package.folder(), package.name.as_str()))
            .collect();
        remaps.extend(local.into_iter().map(|(folder, name)| remap(folder, name)));
        remaps
    }
}

/// What one cargo run is to build, all of it in one workspace.
pub(crate) struct Job<'a> {
    pub(crate) toolchain: &'a GuestToolchain,
    pub(crate) metadata: &'a Metadata,
    pub(crate) packages: &'a [&'a Package],
    pub(crate) flags: Vec<String>,
    pub(crate) target_dir: PathBuf,
    pub(crate) extra_args: &'a [String],
    /// Let cargo print its progress instead of keeping it for the error.
    pub(crate) show_progress: bool,
}

/// Compiles the packages and says where each core module lies.
pub(crate) fn build(job: &Job<'_>) -> Result<Vec<CoreModule>, BuildError> {
    let mut command = job.toolchain.cargo_command();
    command
        .current_dir(&job.metadata.workspace_root)
        .args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(&job.target_dir)
        .args(job.extra_args)
        .arg("--lib")
        .env("CARGO_ENCODED_RUSTFLAGS", job.flags.join("\u{1f}"))
        .envs(PROFILE)
        .stdout(Stdio::piped())
        .stderr(if job.show_progress { Stdio::inherit() } else { Stdio::piped() });
    for package in job.packages {
        command.arg("--package").arg(&package.name);
    }
    if job.packages.iter().any(|package| package.has_component_examples()) {
        command.arg("--examples");
    }
    let output = command
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(BuildError::io(format!("running {}", job.toolchain.cargo.display())))?;
    if !output.status.success() {
        return Err(BuildError::Compile { diagnostics: String::from_utf8_lossy(&output.stderr).into_owned() });
    }
    Ok(core_modules(&output.stdout))
}

fn core_modules(messages: &[u8]) -> Vec<CoreModule> {
    let lines = messages.split(|byte| *byte == b'\n');
    // Lines of other shapes are for people or for other tools.
    let parsed = lines.filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    parsed.filter_map(core_module).collect()
}

fn core_module(message: Message) -> Option<CoreModule> {
    let target = message.target.filter(|target| message.reason == "compiler-artifact" && target.is_cdylib())?;
    let is_wasm = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wasm");
    let path = message.filenames.into_iter().find(is_wasm)?;
    Some(CoreModule {
        manifest_path: message.manifest_path,
        name: target.name.replace('-', "_"),
        path,
        is_example: target.is_example(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(root: &str, target: &str) -> Metadata {
        Metadata { packages: Vec::new(), workspace_root: root.into(), target_directory: target.into() }
    }

    #[test]
    fn workspaces_that_share_a_target_folder_keep_their_modules_apart() {
        let own = workspace("/a", "/a/target").guest_target_dir();
        assert_eq!(own, Path::new("/a/target/eadem-guest"));

        let [one, other] = ["/a", "/b"].map(|root| workspace(root, "/shared").guest_target_dir());
        assert!(one.starts_with("/shared/eadem-guest") && other.starts_with("/shared/eadem-guest"));
        assert_ne!(one, other);
        assert_eq!(one, workspace("/a", "/shared").guest_target_dir());
    }
}
