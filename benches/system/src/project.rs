//! Projects that bars are measured on, in `target/bench`, and the product's own binary at work on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;

use crate::process::root;

/// What a project is made of.
pub(crate) struct Contents<'a> {
    /// Names of components, as `scripts/components.sh` leaves them.
    pub(crate) components: &'a [&'a str],
    /// Its `eadem.toml`.
    pub(crate) settings: &'a str,
    /// Its one file of definitions.
    pub(crate) definitions: &'a str,
}

/// Where a project is, whether or not it is there.
pub(crate) fn folder(name: &str) -> PathBuf {
    root().join("target/bench").join(name)
}

/// Makes a project in the place of what is there.
pub(crate) fn make(name: &str, contents: &Contents<'_>) -> Result<PathBuf> {
    let folder = folder(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(folder.join("features"))?;
    std::fs::create_dir_all(folder.join("transforms"))?;
    for component in contents.components {
        let file = format!("{component}.wasm");
        let made = root().join("target/components").join(&file);
        let copy = folder.join("transforms").join(&file);
        std::fs::copy(&made, copy).with_context(|| made.display().to_string())?;
    }
    std::fs::write(folder.join("eadem.toml"), contents.settings)?;
    std::fs::write(folder.join("features/definitions.toml"), contents.definitions)?;
    Ok(folder.canonicalize()?)
}

/// The product, at work on a project.
pub(crate) fn eadem(folder: &Path) -> Result<Command> {
    Ok(work_on(folder, Command::new(binary()?)))
}

/// The product, which was built with this program and lies beside it.
pub(crate) fn binary() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("eadem"))
}

/// What becomes the product, told about the project.
pub(crate) fn work_on(folder: &Path, mut command: Command) -> Command {
    command.current_dir(folder).env_remove("EADEM_HOME").env("EADEM_LOG", "warn");
    command
}

/// Runs a verb, which has to succeed.
pub(crate) fn run(folder: &Path, verb: &[&str]) -> Result<()> {
    let ended = eadem(folder)?.args(verb).stdout(Stdio::null()).status()?;
    ensure!(ended.success(), "eadem {} ended with {ended}", verb.join(" "));
    Ok(())
}

/// Runs a verb, which has to succeed, and gives what it says.
pub(crate) fn answer(folder: &Path, verb: &[&str]) -> Result<Json> {
    let output = eadem(folder)?.args(verb).args(["--output", "json"]).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "eadem {} ended with {}", verb.join(" "), output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}
