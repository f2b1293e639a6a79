use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::BuildError;

/// The target every transform is compiled for: WebAssembly without any operating system.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The oldest compiler the SDK builds with; the workspace's `rust-version`.
const RUSTC_MIN: &str = env!("CARGO_PKG_RUST_VERSION");

/// Changes when the way the standard library is built changes, so that old cached ones are not used.
const STD_CACHE_FORMAT: u32 = 2;

/// Where the guest's standard library comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StdSource {
    /// The toolchain carries it ready-made.
    Installed,
    /// It was compiled once from the toolchain's library sources; the folder is a sysroot for the target.
    BuiltFromSource {
        /// Pass it to the compiler as `--sysroot`.
        sysroot: PathBuf,
        /// Where the sources are.
        sources: PathBuf,
    },
}

/// A compiler, a package manager and a linker that together make WebAssembly.
#[derive(Debug, Clone)]
pub struct GuestToolchain {
    /// The compiler to run.
    pub rustc: PathBuf,
    /// The package manager that belongs to it.
    pub cargo: PathBuf,
    /// For example `1.95.0`.
    pub rustc_version: String,
    /// Set where the compiler carries no linker for WebAssembly of its own.
    pub linker: Option<PathBuf>,
    /// Where the standard library comes from.
    pub std_source: StdSource,
}

impl GuestToolchain {
    /// Finds a toolchain, in this order: the current one with the target installed; the system's with the target
    /// installed; either of them with library sources, from which the standard library is then built once and kept
    /// in the cache folder (`EADEM_CACHE_DIR`, else `$XDG_CACHE_HOME/eadem`, else `~/.cache/eadem`).
    /// `EADEM_GUEST_RUSTC` names the one compiler to use instead.
    ///
    /// Building a standard library takes a minute or two; with `show_progress` a line on standard error says so.
    ///
    /// # Errors
    /// [`BuildError::NoToolchain`] says what was tried and which commands install one.
    pub fn find(show_progress: bool) -> Result<Self, BuildError> {
        let mut rejections = Vec::new();
        let compilers: Vec<Compiler> = compiler_paths()
            .into_iter()
            .filter_map(|path| Compiler::probe(&path).map_err(|reason| rejections.push((path, reason))).ok())
            .collect();

        if let Some(compiler) = compilers.iter().find(|compiler| compiler.has_target()) {
            return Ok(compiler.with_installed_target());
        }
        for compiler in &compilers {
            match compiler.with_built_std(show_progress) {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => rejections.push((compiler.rustc.clone(), reason)),
            }
        }
        Err(BuildError::NoToolchain(no_toolchain_message(&rejections)))
    }

    /// A cargo command that uses this toolchain and nothing else of the caller's settings.
    pub(crate) fn cargo_command(&self) -> Command {
        cargo_command(&self.cargo, &self.rustc)
    }

    /// The compiler flags that belong to the toolchain itself.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if let Some(linker) = &self.linker {
            flags.push(format!("-Clinker={}", linker.display()));
        }
        if let StdSource::BuiltFromSource { sysroot, sources } = &self.std_source {
            flags.push(format!("--sysroot={}", sysroot.display()));
            flags.extend(source_remaps(sources, &self.rustc_version));
        }
        flags
    }
}

impl fmt::Display for GuestToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} at {}", self.rustc_version, self.rustc.display())?;
        match &self.std_source {
            StdSource::Installed => write!(f, ", {TARGET} installed")?,
            StdSource::BuiltFromSource { sysroot, .. } => {
                write!(f, ", standard library built from source in {}", sysroot.display())?;
            }
        }
        match &self.linker {
            Some(linker) => write!(f, ", linker {}", linker.display()),
            None => Ok(()),
        }
    }
}

/// Compilers worth asking, best first.
fn compiler_paths() -> Vec<PathBuf> {
    if let Some(only) = env::var_os("EADEM_GUEST_RUSTC") {
        return vec![PathBuf::from(only)];
    }
    let on_path = env::var_os("RUSTC").map(PathBuf::from).or_else(|| find_on_path("rustc"));
    let system = Some(PathBuf::from("/usr/bin/rustc")).filter(|path| path.exists());
    let mut seen = BTreeSet::new();
    on_path.into_iter().chain(system).filter(|path| seen.insert(path.clone())).collect()
}

/// One compiler that runs, and what it says of itself.
struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
    release: String,
    host: String,
    verbose_version: String,
    sysroot: PathBuf,
}

impl Compiler {
    /// Asks the compiler who it is; the error says why it cannot be used.
    fn probe(rustc: &Path) -> Result<Self, String> {
        let verbose_version = run(Command::new(rustc).arg("-vV"))?;
        let field = |name: &str| {
            let line = verbose_version.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).ok_or_else(|| format!("`rustc -vV` does not name its {name}"))
        };
        let release = field("release:")?;
        let host = field("host:")?;
        if version_number(&release) < version_number(RUSTC_MIN) {
            return Err(format!("it is rustc {release}, and the SDK needs {RUSTC_MIN} or newer"));
        }
        let sysroot = PathBuf::from(run(Command::new(rustc).args(["--print", "sysroot"]))?.trim());
        let cargo = cargo_beside(rustc)?;
        Ok(Self { rustc: rustc.to_owned(), cargo, release, host, verbose_version, sysroot })
    }

    fn has_target(&self) -> bool {
        let libraries = self.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        contains_file(&libraries, |name| name.starts_with("libstd-") && name.ends_with(".rlib"))
    }

    fn with_installed_target(&self) -> GuestToolchain {
        let own_linker = self.sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-lld");
        let linker = if own_linker.exists() { None } else { self.find_linker() };
        self.toolchain(linker, StdSource::Installed)
    }

    fn with_built_std(&self, show_progress: bool) -> Result<GuestToolchain, String> {
        let sources = self.sysroot.join("lib/rustlib/src/rust");
        if !sources.join("library/std/Cargo.toml").exists() {
            return Err(format!("{TARGET} is not installed, and neither are the library sources"));
        }
        let linker = self.find_linker().ok_or("it has library sources, but no linker for WebAssembly was found")?;
        let sysroot = self.built_std(&linker, &sources, show_progress)?;
        Ok(self.toolchain(Some(linker), StdSource::BuiltFromSource { sysroot, sources }))
    }

    fn toolchain(&self, linker: Option<PathBuf>, std_source: StdSource) -> GuestToolchain {
        GuestToolchain {
            rustc: self.rustc.clone(),
            cargo: self.cargo.clone(),
            rustc_version: self.release.clone(),
            linker,
            std_source,
        }
    }

    /// The linker of this toolchain, of any rustup toolchain, or of LLVM.
    fn find_linker(&self) -> Option<PathBuf> {
        let in_sysroot = |sysroot: &Path| sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-lld");
        let rustup_home =
            env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".rustup")));
        let rustup_toolchains = rustup_home.map(|home| sorted_entries(&home.join("toolchains"))).unwrap_or_default();
        let carried =
            std::iter::once(self.sysroot.clone()).chain(rustup_toolchains).map(|sysroot| in_sysroot(&sysroot));
        if let Some(found) = carried.into_iter().find(|path| path.exists()) {
            return Some(found);
        }
        let newest_first = (14..=30).rev().map(|version| format!("wasm-ld-{version}"));
        let names = ["rust-lld".to_owned(), "wasm-ld".to_owned()].into_iter().chain(newest_first);
        names.into_iter().find_map(|name| find_on_path(&name))
    }

    /// A sysroot with the standard library for the target, built on first use and shared by all later builds.
    fn built_std(&self, linker: &Path, sources: &Path, show_progress: bool) -> Result<PathBuf, String> {
        let mut key = Sha256::new();
        key.update(self.verbose_version.as_bytes());
        key.update(STD_CACHE_FORMAT.to_le_bytes());
        let key = hex::encode(key.finalize());
        let cache = cache_dir()?;
        let sysroot = cache.join(format!("sysroot-{}-{}", self.release, key.get(..16).unwrap_or(&key)));
        if sysroot.join("lib").exists() {
            return Ok(sysroot);
        }
        if show_progress {
            eprintln!("building the standard library for {TARGET}, once, into {}", sysroot.display());
        }
        fs::create_dir_all(&cache).map_err(|error| format!("cannot create {}: {error}", cache.display()))?;
        let scratch = tempfile::Builder::new()
            .prefix("std-")
            .tempdir_in(&cache)
            .map_err(|error| format!("cannot create a folder in {}: {error}", cache.display()))?;
        self.build_std_in(scratch.path(), linker, sources)?;
        let finished = scratch.path().join("sysroot");
        match fs::rename(&finished, &sysroot) {
            Ok(()) => Ok(sysroot),
            // Another process was faster; its result is the same.
            Err(_) if sysroot.join("lib").exists() => Ok(sysroot),
            Err(error) => Err(format!("cannot move {} into place: {error}", finished.display())),
        }
    }

    fn build_std_in(&self, scratch: &Path, linker: &Path, sources: &Path) -> Result<(), String> {
        let package = scratch.join("package");
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        fs::create_dir_all(package.join("src")).map_err(|error| format!("{}: {error}", package.display()))?;
        write(
            package.join("Cargo.toml"),
            "[package]\nname = \"eadem_std_probe\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n",
        )?;
        write(package.join("src/lib.rs"), "")?;

        let mut flags = vec![
            format!("-Clinker={}", linker.display()),
            // Later builds optimise across crates, and for that the library must carry its bitcode.
            "-Cembed-bitcode=yes".to_owned(),
        ];
        flags.extend(source_remaps(sources, &self.release));
        let target_dir = scratch.join("target");
        let mut command = cargo_command(&self.cargo, &self.rustc);
        command
            .current_dir(&package)
            .args(["build", "--release", "--quiet", "--target", TARGET, "-Zbuild-std=std,panic_abort"])
            .arg("--target-dir")
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("RUSTC_BOOTSTRAP", "1");
        for (name, value) in crate::cargo::PROFILE {
            command.env(name, value);
        }
        run(&mut command).map_err(|error| format!("its standard library does not build for {TARGET}: {error}"))?;

        let libraries = scratch.join("sysroot/lib/rustlib").join(TARGET).join("lib");
        fs::create_dir_all(&libraries).map_err(|error| format!("{}: {error}", libraries.display()))?;
        for built in sorted_entries(&target_dir.join(TARGET).join("release/deps")) {
            let Some(name) = built.file_name().and_then(|name| name.to_str()) else { continue };
            if !name.ends_with(".rlib") || name.starts_with("libeadem_std_probe") {
                continue;
            }
            fs::copy(&built, libraries.join(name)).map_err(|error| format!("{}: {error}", built.display()))?;
        }
        if !contains_file(&libraries, |name| name.starts_with("libstd-")) {
            return Err(format!("building its standard library for {TARGET} left no library behind"));
        }
        Ok(())
    }
}

/// The folder of the library sources under both of its names: distributions link it from elsewhere.
fn source_remaps(sources: &Path, release: &str) -> Vec<String> {
    let real = sources.canonicalize().unwrap_or_else(|_| sources.to_owned());
    let names = BTreeSet::from([sources.to_owned(), real]);
    names.iter().map(|name| format!("--remap-path-prefix={}=/rustc/{release}", name.display())).collect()
}

/// Cargo with this compiler, free of settings that the caller's environment holds for other builds.
fn cargo_command(cargo: &Path, rustc: &Path) -> Command {
    let mut command = Command::new(cargo);
    let leaks = env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        let of_cargo = name.starts_with("CARGO_")
            && !["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR"].contains(&&*name)
            && !["CARGO_REGISTR", "CARGO_HTTP_", "CARGO_NET_", "CARGO_SOURCE_"]
                .iter()
                .any(|kept| name.starts_with(kept));
        of_cargo || ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO"].contains(&&*name)
    });
    for name in leaks {
        command.env_remove(name);
    }
    command.env("RUSTC", rustc).stdin(Stdio::null());
    // Not those in /usr/local, where rustup may stand.
    let is_system = ["/usr/bin", "/usr/lib"].iter().any(|folder| rustc.starts_with(folder));
    if is_system {
        // A test runner of another toolchain points these at its own libraries and compiler.
        command.env_remove("LD_LIBRARY_PATH").env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC_BOOTSTRAP");
        let path = env::var_os("PATH").unwrap_or_default();
        let system_first =
            [PathBuf::from("/usr/bin"), PathBuf::from("/bin")].into_iter().chain(env::split_paths(&path));
        if let Ok(path) = env::join_paths(system_first) {
            command.env("PATH", path);
        }
    }
    command
}

fn cargo_beside(rustc: &Path) -> Result<PathBuf, String> {
    let beside = rustc.parent().map(|folder| folder.join("cargo")).filter(|path| path.exists());
    beside.or_else(|| find_on_path("cargo")).ok_or_else(|| "no cargo stands beside it or on the PATH".to_owned())
}

/// Standard output of a command that must succeed; the error carries what it printed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("it does not run: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cache_dir() -> Result<PathBuf, String> {
    let named = env::var_os("EADEM_CACHE_DIR").map(PathBuf::from);
    let xdg = || env::var_os("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("eadem"));
    let home = || env::home_dir().map(|home| home.join(".cache/eadem"));
    named.or_else(xdg).or_else(home).ok_or_else(|| "no folder for its standard library: set EADEM_CACHE_DIR".to_owned())
}

fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

fn contains_file(folder: &Path, wanted: impl Fn(&str) -> bool) -> bool {
    sorted_entries(folder).iter().filter_map(|path| path.file_name()?.to_str()).any(wanted)
}

fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// `1.95.0-nightly` as `(1, 95)`.
fn version_number(release: &str) -> (u32, u32) {
    let mut parts = release.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn no_toolchain_message(rejections: &[(PathBuf, String)]) -> String {
    let mut message = format!("no toolchain here compiles for {TARGET}, which transforms are built for.\n");
    if rejections.is_empty() {
        message.push_str("No rustc was found on the PATH or at /usr/bin/rustc.\n");
    }
    for (rustc, reason) in rejections {
        message.push_str(&format!("  {}: {}\n", rustc.display(), reason.replace('\n', "\n    ")));
    }
    message.push_str(&format!(
        "Any one of these gives you one:\n\
         \x20 rustup target add {TARGET}\n\
         \x20 rustup component add rust-src\n\
         \x20 apt-get install --no-install-recommends rustc-web cargo-web rust-web-src lld    (Debian, Ubuntu)\n\
         Then run the command again. EADEM_GUEST_RUSTC=/path/to/rustc picks one compiler."
    ));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version_number("1.100.0") > version_number("1.95.0"));
        assert_eq!(version_number("1.95.0-nightly"), version_number("1.95.3"));
    }

    #[test]
    fn the_message_names_what_was_tried_and_what_to_run() {
        let tried = [(PathBuf::from("/opt/rustc"), "it is rustc 1.60.0".to_owned())];
        let message = no_toolchain_message(&tried);
        assert!(message.contains("/opt/rustc: it is rustc 1.60.0"), "{message}");
        assert!(message.contains("rustup target add wasm32-unknown-unknown"), "{message}");
        assert!(
            message.contains("apt-get install --no-install-recommends rustc-web cargo-web rust-web-src"),
            "{message}"
        );
    }
}
