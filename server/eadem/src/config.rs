//! Configuration in layers: defaults → `eadem.toml` → `EADEM_*` → flags. Every value remembers where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use eadem_api::Limits;
use eadem_engine::EngineConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// The tables of `eadem.toml` that are configuration and not definitions.
pub(crate) const CONFIGURATION_TABLES: &[&str] = &["server", "store", "jobs", "limits", "engine"];

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) server: ServerConfig,
    pub(crate) store: StoreConfig,
    pub(crate) jobs: JobsConfig,
    pub(crate) limits: Limits,
    pub(crate) engine: EngineConfig,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerConfig {
    /// Address and port. Only loopback, until there are credentials.
    pub(crate) listen: String,
    /// Seconds that requests in flight get after SIGTERM.
    pub(crate) drain_s: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoreConfig {
    /// Registry, stores, artefacts and datasets of this project; relative to its folder.
    pub(crate) data_dir: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct JobsConfig {
    /// Chunks of one backfill that are worked on at once.
    pub(crate) workers: usize,
    /// Rows that a chunk of a backfill aims at.
    pub(crate) chunk_rows: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7878".to_owned(), drain_s: 20 }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { data_dir: PathBuf::from(".eadem") }
    }
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self { workers: 2, chunk_rows: 1 << 20 }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Origin {
    /// Built in.
    Default,
    /// The project's `eadem.toml`.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// `--set` on the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// The configuration with the origin of every value.
#[derive(Debug, Clone)]
pub(crate) struct Layered {
    pub(crate) config: Config,
    /// Dotted key → value and origin, sorted.
    pub(crate) values: BTreeMap<String, (Json, Origin)>,
}

/// Reads all layers. `flags` are `key=value` pairs.
pub(crate) fn load(project_file: &Path, flags: &[String]) -> anyhow::Result<Layered> {
    let environment: Vec<(String, String)> = std::env::vars().filter(|(name, _)| name.starts_with("EADEM_")).collect();
    let file_text = match std::fs::read_to_string(project_file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", project_file.display())),
    };
    layer(project_file, file_text.as_deref(), &environment, flags)
}

fn layer(
    project_file: &Path,
    file_text: Option<&str>,
    environment: &[(String, String)],
    flags: &[String],
) -> anyhow::Result<Layered> {
    let mut values = BTreeMap::new();
    flatten("", &serde_json::to_value(Config::default())?, &Origin::Default, &mut values);
    let known: Vec<String> = values.keys().cloned().collect();

    if let Some(text) = file_text {
        let table: toml::Table = toml::from_str(text).with_context(|| format!("{}", project_file.display()))?;
        let mut from_file = BTreeMap::new();
        for name in CONFIGURATION_TABLES {
            if let Some(value) = table.get(*name) {
                let value = serde_json::to_value(value)?;
                flatten(name, &value, &Origin::File(project_file.to_owned()), &mut from_file);
            }
        }
        for (key, value) in from_file {
            check_known(&key, &known, &project_file.display().to_string())?;
            values.insert(key, value);
        }
    }
    for (name, text) in environment {
        let Some(key) = known.iter().find(|key| &environment_name(key) == name) else {
            let names_a_setting =
                CONFIGURATION_TABLES.iter().any(|table| name.starts_with(&environment_name(&format!("{table}."))));
            if !names_a_setting {
                continue;
            }
            let names: Vec<String> = known.iter().map(|key| environment_name(key)).collect();
            let hint = eadem_registry::definitions::did_you_mean(name, names.iter().map(String::as_str));
            bail!("environment variable {name} sets nothing that exists{hint}; `eadem config` lists every setting");
        };
        values.insert(key.clone(), (scalar(text), Origin::Environment(name.clone())));
    }
    for flag in flags {
        let (key, text) = flag.split_once('=').with_context(|| format!("--set takes key=value, found `{flag}`"))?;
        check_known(key, &known, "--set")?;
        values.insert(key.to_owned(), (scalar(text), Origin::Flag));
    }
    let config = serde_json::from_value(nest(&values)).map_err(|error| {
        let place = values.iter().filter(|(_, (_, origin))| *origin != Origin::Default);
        let set: Vec<String> = place.map(|(key, (_, origin))| format!("{key} (from {origin})")).collect();
        anyhow::anyhow!("configuration: {error}; set here: {}", set.join(", "))
    })?;
    Ok(Layered { config, values })
}

fn environment_name(key: &str) -> String {
    format!("EADEM_{}", key.replace('.', "_").to_uppercase())
}

fn check_known(key: &str, known: &[String], origin: &str) -> anyhow::Result<()> {
    if known.iter().any(|name| name == key) {
        return Ok(());
    }
    let hint = eadem_registry::definitions::did_you_mean(key, known.iter().map(String::as_str));
    bail!("{origin}: unknown setting `{key}`{hint}; `eadem config` lists every setting");
}

fn flatten(prefix: &str, value: &Json, origin: &Origin, into: &mut BTreeMap<String, (Json, Origin)>) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, value, origin, into);
            }
        }
        leaf => {
            into.insert(prefix.to_owned(), (leaf.clone(), origin.clone()));
        }
    }
}

fn nest(values: &BTreeMap<String, (Json, Origin)>) -> Json {
    let mut root = Map::new();
    for (key, (value, _)) in values {
        let mut parts: Vec<&str> = key.split('.').collect();
        let leaf = parts.pop().unwrap_or_default();
        let mut at = &mut root;
        for part in parts {
            let child = at.entry(part.to_owned()).or_insert_with(|| Json::Object(Map::new()));
            if !child.is_object() {
                *child = Json::Object(Map::new());
            }
            let Json::Object(map) = child else { return Json::Object(Map::new()) };
            at = map;
        }
        at.insert(leaf.to_owned(), value.clone());
    }
    Json::Object(root)
}

/// `12`, `true` and `[…]` as what they are, everything else as text.
fn scalar(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|_| Json::from(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn layered(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> anyhow::Result<Layered> {
        let environment: Vec<_> = environment.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        layer(Path::new("eadem.toml"), Some(file), &environment, &flags)
    }

    #[test]
    fn each_layer_overrides_the_one_before() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\n[jobs]\nworkers = 3\n[entity.x]\nkeys = { a = \"utf8\" }";
        let all = layered(file, &[("EADEM_JOBS_WORKERS", "4")], &["jobs.chunk_rows=10"]).unwrap();
        assert_eq!(all.config.server.listen, "127.0.0.1:1");
        assert_eq!((all.config.jobs.workers, all.config.jobs.chunk_rows), (4, 10));
        assert_eq!(all.values["jobs.workers"].1, Origin::Environment("EADEM_JOBS_WORKERS".to_owned()));
        assert_eq!(all.values["server.listen"].1, Origin::File(PathBuf::from("eadem.toml")));
        assert_eq!(all.values["server.drain_s"].1, Origin::Default);
        assert_eq!(all.values["jobs.chunk_rows"].1, Origin::Flag);
    }

    #[test]
    fn unknown_settings_are_refused_with_the_nearest_name() {
        let file = layered("[server]\nlissten = \"x\"", &[], &[]).unwrap_err().to_string();
        assert!(file.contains("eadem.toml: unknown setting `server.lissten`; did you mean `server.listen`?"), "{file}");
        let variable = layered("", &[("EADEM_JOBS_WORKER", "1")], &[]).unwrap_err().to_string();
        assert!(variable.contains("did you mean `EADEM_JOBS_WORKERS`?"), "{variable}");
        let wrong_type = layered("", &[("EADEM_JOBS_WORKERS", "many")], &[]).unwrap_err().to_string();
        assert!(wrong_type.contains("EADEM_JOBS_WORKERS"), "{wrong_type}");
    }
}
