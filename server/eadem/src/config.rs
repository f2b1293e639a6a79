//! Configuration in layers: defaults → `eadem.toml` → `EADEM_*` → flags. Every value remembers where it came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use eadem_api::{EFFECT_ROWS_MAX, Limits, Policy};
use eadem_engine::EngineConfig;
use eadem_offline::{Location, StoreLimits};
use eadem_online::scylla::{PASSWORD_VARIABLE, ScyllaConfig, USER_VARIABLE};
use eadem_registry::definitions::{DEFINITION_KINDS, did_you_mean};
use eadem_registry::{DEFAULT_PROJECT, PostgresAddress, RegistryAddress};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use toml::de::DeTable;

/// The tables of `eadem.toml` that are configuration and not definitions.
pub(crate) const CONFIGURATION_TABLES: &[&str] = &["server", "store", "jobs", "limits", "policy", "engine"];

/// Variables of the environment that are no settings: those that the binary, its builder or the tests read elsewhere.
const OTHER_VARIABLES: &[&str] = &[
    "EADEM_AOT_KEY",
    "EADEM_CACHE_DIR",
    "EADEM_DEMO_DATA",
    "EADEM_GUEST_RUSTC",
    "EADEM_HOME",
    "EADEM_LOG",
    "EADEM_PROJECT",
    REGISTRY_PASSWORD_VARIABLE,
    "EADEM_SCYLLA_PASSWORD",
    "EADEM_SCYLLA_USER",
    "EADEM_SDK",
    "EADEM_SEED",
    "EADEM_SERVER",
    "EADEM_SERVER_CA",
    "EADEM_SOAK",
    "EADEM_TOKEN",
    "EADEM_TOKEN_FILE",
];

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) server: ServerConfig,
    pub(crate) store: StoreConfig,
    pub(crate) jobs: JobsConfig,
    pub(crate) limits: Limits,
    pub(crate) policy: Policy,
    pub(crate) engine: EngineConfig,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerConfig {
    /// Address and port. Beyond loopback only with an admin's token and TLS.
    pub(crate) listen: String,
    /// Where TLS is.
    pub(crate) tls: TlsMode,
    /// A PEM file, relative to the project's folder: the server's certificate, then those that vouch for it.
    pub(crate) tls_certificate: Option<PathBuf>,
    /// A PEM file with the certificate's key.
    pub(crate) tls_key: Option<PathBuf>,
    /// Seconds that requests in flight get after SIGTERM.
    pub(crate) drain_s: u64,
    /// The share of requests for features that is logged: 0 none, 1 all.
    pub(crate) request_log_share: f64,
}

/// Where TLS is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TlsMode {
    /// Here, if there is a certificate; without one only this machine is served.
    #[default]
    Auto,
    /// In a proxy in front of the server, which nobody reaches but by it.
    OffBehindProxy,
}

impl ServerConfig {
    /// The files of certificate and key, for a project in this folder; `None`: no TLS.
    ///
    /// # Errors
    /// One without the other, or files where TLS is said to be elsewhere.
    pub(crate) fn certificate_files(&self, project: &Path) -> anyhow::Result<Option<(PathBuf, PathBuf)>> {
        match (&self.tls_certificate, &self.tls_key, self.tls) {
            (None, None, _) => Ok(None),
            (Some(certificate), Some(key), TlsMode::Auto) => Ok(Some((project.join(certificate), project.join(key)))),
            (Some(_), Some(_), TlsMode::OffBehindProxy) => {
                bail!("server.tls is off_behind_proxy, and there is a certificate: leave out one of the two")
            }
            (Some(_), None, _) => bail!("server.tls_certificate needs server.tls_key"),
            (None, Some(_), _) => bail!("server.tls_key needs server.tls_certificate"),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoreConfig {
    /// Registry, stores, artefacts and datasets of this project; relative to its folder.
    pub(crate) data_dir: PathBuf,
    /// The registry: `postgres://user@host:5432/database`. Default: the file `registry.sqlite` in `data_dir`.
    pub(crate) registry: Option<String>,
    /// The schema of the PostgreSQL database that the registry's tables are in.
    pub(crate) registry_schema: String,
    /// The offline store: a folder, relative to the project's, or `s3://bucket/prefix`. Default: `offline` in `data_dir`.
    pub(crate) offline: Option<String>,
    /// The online store: `scylla://host,host2/keyspace`. Default: the embedded one, in `online` in `data_dir`.
    pub(crate) online: Option<String>,
    /// Bytes of rows of the online store that are kept in memory; 0: none.
    pub(crate) online_cache_bytes_max: u64,
    /// Seconds that one request to an object store may take, its body included.
    pub(crate) request_timeout_s: u64,
    /// Seconds that making a connection to an object store may take.
    pub(crate) connect_timeout_s: u64,
    /// How often a request to an object store is tried again after a failure that may pass.
    pub(crate) retries_max: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct JobsConfig {
    /// Chunks of one backfill that are worked on at once.
    pub(crate) workers: usize,
    /// Rows that a chunk of a backfill aims at.
    pub(crate) chunk_rows: usize,
    /// Memory that the rows of a backfill, or a training set, may take in one process.
    pub(crate) memory_bytes_max: usize,
    /// Rows a second that a load of the online store takes at most, where the job does not say; 0: as fast as it goes.
    pub(crate) materialize_rows_per_s_max: u64,
    /// How long a process that works on a job is believed to live without a sign of life.
    pub(crate) lease_ms: u64,
    /// Whether the jobs of a server step back behind its requests.
    pub(crate) low_priority: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7878".to_owned(),
            tls: TlsMode::Auto,
            tls_certificate: None,
            tls_key: None,
            drain_s: 20,
            request_log_share: 0.0,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        let limits = StoreLimits::default();
        Self {
            data_dir: PathBuf::from(".eadem"),
            registry: None,
            registry_schema: "eadem".to_owned(),
            offline: None,
            online: None,
            online_cache_bytes_max: 256 << 20,
            request_timeout_s: limits.request_timeout.as_secs(),
            connect_timeout_s: limits.connect_timeout.as_secs(),
            retries_max: limits.retries_max,
        }
    }
}

/// The password of the registry's database.
const REGISTRY_PASSWORD_VARIABLE: &str = "EADEM_REGISTRY_PASSWORD";

impl StoreConfig {
    /// Where the registry of a project is.
    ///
    /// # Errors
    /// A URL that is none, or that holds a password: settings are shown, and files of a project are shared.
    pub(crate) fn registry_address(&self, data_dir: &Path, project: &str) -> anyhow::Result<RegistryAddress> {
        let Some(url) = &self.registry else { return Ok(RegistryAddress::File(data_dir.join("registry.sqlite"))) };
        let address = PostgresAddress::parse(url).context("store.registry")?;
        if address.has_password() {
            bail!(
                "store.registry holds a password; take it out and set {REGISTRY_PASSWORD_VARIABLE} in the environment, or \
                 write it into the file of passwords that PGPASSFILE names"
            );
        }
        let address =
            address.in_schema(&of_project(&self.registry_schema, project)).context("store.registry_schema")?;
        let password = std::env::var(REGISTRY_PASSWORD_VARIABLE).ok();
        Ok(RegistryAddress::Postgres(password.iter().fold(address, |address, word| address.with_password(word))))
    }

    /// Where the offline store of a project is, whose data are in `data_dir` if nothing else is said in this directory.
    pub(crate) fn offline_root(&self, directory: &Path, data_dir: &Path, project: &str) -> String {
        let root = match &self.offline {
            Some(url) if url.contains("://") => url.clone(),
            Some(folder) => directory.join(folder).display().to_string(),
            None => return data_dir.join("offline").display().to_string(),
        };
        if project == DEFAULT_PROJECT { root } else { format!("{}/projects/{project}", root.trim_end_matches('/')) }
    }

    /// How the database of a project's online store is reached; `None`: the store is the embedded one.
    ///
    /// # Errors
    /// A URL that is none, or that holds a password: settings are shown, and files of a project are shared.
    pub(crate) fn online_database(&self, project: &str) -> anyhow::Result<Option<ScyllaConfig>> {
        let Some(url) = &self.online else { return Ok(None) };
        let config = ScyllaConfig::parse(url).context("store.online")?;
        if config.credentials.is_some() {
            bail!(
                "store.online holds a password; take it out and set {USER_VARIABLE} and {PASSWORD_VARIABLE} in the environment"
            );
        }
        let keyspace = of_project(&config.keyspace, project);
        let config = config.in_keyspace(&keyspace).context("store.online")?;
        Ok(Some(config.with_credentials_of_environment()?))
    }

    /// How long requests to object stores may take.
    pub(crate) fn limits(&self) -> StoreLimits {
        StoreLimits {
            request_timeout: Duration::from_secs(self.request_timeout_s),
            connect_timeout: Duration::from_secs(self.connect_timeout_s),
            retries_max: self.retries_max,
        }
    }
}

/// What a schema or a keyspace is called for a project. No project's name begins with `_`, so that no two of them meet.
fn of_project(name: &str, project: &str) -> String {
    if project == DEFAULT_PROJECT { name.to_owned() } else { format!("{name}__{project}") }
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            workers: 2,
            chunk_rows: 1 << 20,
            memory_bytes_max: 1 << 30,
            materialize_rows_per_s_max: 0,
            lease_ms: 15_000,
            low_priority: true,
        }
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
    let environment = environment(std::env::vars_os())?;
    let file_text = match std::fs::read_to_string(project_file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", project_file.display())),
    };
    layer(project_file, file_text.as_deref(), &environment, flags)
}

/// The variables that may be settings: they begin with `EADEM_`, and are not known to be something else.
fn environment(variables: impl Iterator<Item = (OsString, OsString)>) -> anyhow::Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    for (name, text) in variables {
        let name = name.to_string_lossy().into_owned();
        if !name.starts_with("EADEM_") || OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let text = text.into_string().map_err(|_| anyhow!("environment variable {name} is not UTF-8"))?;
        settings.push((name, text));
    }
    Ok(settings)
}

fn layer(
    project_file: &Path,
    file_text: Option<&str>,
    environment: &[(String, String)],
    flags: &[String],
) -> anyhow::Result<Layered> {
    let mut values = BTreeMap::new();
    flatten("", &serde_json::to_value(Config::default())?, &Origin::Default, &mut values);
    let defaults = values.clone();
    let known: Vec<String> = values.keys().cloned().collect();

    if let Some(text) = file_text {
        let table: toml::Table = toml::from_str(text).with_context(|| format!("{}", project_file.display()))?;
        check_tables(project_file, text)?;
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
            let names: Vec<String> = known.iter().map(|key| environment_name(key)).collect();
            let names = names.iter().map(String::as_str).chain(OTHER_VARIABLES.iter().copied());
            let hint = did_you_mean(name, names);
            bail!("environment variable {name} sets nothing that exists{hint}; `eadem config` lists every setting");
        };
        values.insert(key.clone(), (value_of(text, &defaults[key].0), Origin::Environment(name.clone())));
    }
    for flag in flags {
        let (key, text) = flag.split_once('=').with_context(|| format!("--set takes key=value, found `{flag}`"))?;
        check_known(key, &known, "--set")?;
        values.insert(key.to_owned(), (value_of(text, &defaults[key].0), Origin::Flag));
    }
    for (key, (value, origin)) in values.iter().filter(|(_, (_, origin))| *origin != Origin::Default) {
        let alone = BTreeMap::from([(key.clone(), (value.clone(), origin.clone()))]);
        if let Err(error) = serde_json::from_value::<Config>(nest(&alone)) {
            bail!("{origin}: setting `{key}` cannot be {value}: {error}");
        }
    }
    let config: Config = serde_json::from_value(nest(&values)).context("configuration")?;
    for (key, share) in [
        ("server.request_log_share", config.server.request_log_share),
        ("policy.effect_rows_changed_share_max", config.policy.effect_rows_changed_share_max),
    ] {
        if !(0.0..=1.0).contains(&share) {
            let origin = &values[key].1;
            bail!("{origin}: setting `{key}` is {share}; a share lies between 0 and 1");
        }
    }
    let effect_rows = config.policy.effect_rows;
    if !(1..=EFFECT_ROWS_MAX).contains(&effect_rows) {
        let origin = &values["policy.effect_rows"].1;
        bail!("{origin}: setting `policy.effect_rows` is {effect_rows}; it lies between 1 and {EFFECT_ROWS_MAX}");
    }
    if let Some(offline) = &config.store.offline {
        let origin = &values["store.offline"].1;
        Location::check(offline).map_err(|error| anyhow!("{origin}: setting `store.offline`: {error}"))?;
    }
    Ok(Layered { config, values })
}

/// Every table of the project's file is configuration or definitions.
fn check_tables(project_file: &Path, text: &str) -> anyhow::Result<()> {
    // What is no TOML has been refused with its place.
    let Ok(tables) = DeTable::parse(text) else { return Ok(()) };
    for name in tables.get_ref().keys() {
        let known = || CONFIGURATION_TABLES.iter().chain(DEFINITION_KINDS.iter()).copied();
        let table = name.get_ref().as_ref();
        if known().all(|known| known != table) {
            let line = 1 + text.bytes().take(name.span().start).filter(|byte| *byte == b'\n').count();
            let hint = did_you_mean(table, known());
            let all: Vec<&str> = known().collect();
            bail!("{}:{line}: unknown table `{table}`{hint} (known: {})", project_file.display(), all.join(", "));
        }
    }
    Ok(())
}

fn environment_name(key: &str) -> String {
    format!("EADEM_{}", key.replace('.', "_").to_uppercase())
}

fn check_known(key: &str, known: &[String], origin: &str) -> anyhow::Result<()> {
    if known.iter().any(|name| name == key) {
        return Ok(());
    }
    let hint = did_you_mean(key, known.iter().map(String::as_str));
    bail!("{origin}: unknown setting `{key}`{hint}; `eadem config` lists every setting");
}

fn flatten(prefix: &str, value: &Json, origin: &Origin, into: &mut BTreeMap<String, (Json, Origin)>) {
    match value {
        Json::Object(map) => {
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

/// A setting's value from text. Where the built-in value is text or nothing, it is the text as it stands; else `12`,
/// `true` and `[…]` are what they are.
fn value_of(text: &str, default: &Json) -> Json {
    match default {
        Json::String(_) | Json::Null => Json::from(text),
        _ => serde_json::from_str(text).unwrap_or_else(|_| Json::from(text)),
    }
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
    fn a_share_lies_between_none_and_all() {
        for share in ["0", "0.25", "1"] {
            assert!(layered("", &[], &[&format!("server.request_log_share={share}")]).is_ok(), "{share}");
        }
        for share in ["-0.1", "1.5"] {
            let refused = layered("", &[], &[&format!("server.request_log_share={share}")]).unwrap_err().to_string();
            assert!(
                refused.contains("--set: setting `server.request_log_share` is") && refused.contains(share),
                "{refused}"
            );
        }
    }

    #[test]
    fn unknown_settings_are_refused_with_the_nearest_name() {
        let file = layered("[server]\nlissten = \"x\"", &[], &[]).unwrap_err().to_string();
        assert!(file.contains("eadem.toml: unknown setting `server.lissten`; did you mean `server.listen`?"), "{file}");
        let variable = layered("", &[("EADEM_JOBS_WORKER", "1")], &[]).unwrap_err().to_string();
        assert!(variable.contains("did you mean `EADEM_JOBS_WORKERS`?"), "{variable}");
        let seed = layered("", &[("EADEM_SERVR_LISTEN", "1")], &[]).unwrap_err().to_string();
        assert!(seed.contains("did you mean `EADEM_SERVER_LISTEN`?"), "{seed}");
        let table = layered("[server]\n\n[enity.x]\n", &[], &[]).unwrap_err().to_string();
        assert!(table.contains("eadem.toml:3: unknown table `enity`; did you mean `entity`?"), "{table}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_origin() {
        let variable = layered("", &[("EADEM_JOBS_WORKERS", "many")], &[]).unwrap_err().to_string();
        assert!(variable.starts_with("EADEM_JOBS_WORKERS: setting `jobs.workers` cannot be \"many\""), "{variable}");
        let file = layered("[jobs]\nworkers = -1", &[("EADEM_JOBS_CHUNK_ROWS", "5")], &[]).unwrap_err().to_string();
        assert!(file.starts_with("eadem.toml: setting `jobs.workers` cannot be -1"), "{file}");
        let flag = layered("", &[], &["server.drain_s=soon"]).unwrap_err().to_string();
        assert!(flag.starts_with("--set: setting `server.drain_s` cannot be \"soon\""), "{flag}");
    }

    #[test]
    fn settings_that_are_text_take_any_text() {
        let digits = "1".repeat(64);
        let key = format!("engine.artifact_key_hex={digits}");
        let all = layered("", &[("EADEM_STORE_DATA_DIR", "2024")], &["server.listen=7878", &key]).unwrap();
        assert_eq!(all.config.store.data_dir, PathBuf::from("2024"));
        assert_eq!(all.config.server.listen, "7878");
        assert_eq!(all.config.engine.artifact_key_hex, Some(digits));
    }

    #[test]
    fn the_offline_store_is_a_folder_or_a_url_without_credentials() {
        let root_of = |file: &str, data_dir: &str, project: &str| {
            let root = |all: Layered| all.config.store.offline_root(Path::new("/p"), Path::new(data_dir), project);
            layered(file, &[], &[]).map(root)
        };
        let root = |file: &str| root_of(file, "/p/.eadem", DEFAULT_PROJECT);
        assert_eq!(root("").unwrap(), "/p/.eadem/offline");
        assert_eq!(root("[store]\noffline = \"history\"").unwrap(), "/p/history");
        assert_eq!(root("[store]\noffline = \"s3://lake/eadem\"").unwrap(), "s3://lake/eadem");
        let other = |file: &str| root_of(file, "/p/.eadem/projects/fraud", "fraud");
        assert_eq!(other("").unwrap(), "/p/.eadem/projects/fraud/offline");
        assert_eq!(other("[store]\noffline = \"history\"").unwrap(), "/p/history/projects/fraud");
        assert_eq!(other("[store]\noffline = \"s3://lake/eadem/\"").unwrap(), "s3://lake/eadem/projects/fraud");
        let refused = root("[store]\noffline = \"s3://me:hush@lake/eadem\"").unwrap_err().to_string();
        assert!(refused.starts_with("eadem.toml: setting `store.offline`: s3://(not shown): "), "{refused}");
    }

    #[test]
    fn empty_tables_set_nothing() {
        let all = layered("[server]\n[engine.compiler]\n", &[], &[]).unwrap();
        assert_eq!(all.config.server.listen, ServerConfig::default().listen);
    }

    #[test]
    fn variables_of_others_are_no_settings() {
        let variables = [("EADEM_LOG", "info"), ("EADEM_JOBS_WORKERS", "3"), ("EADEM", "x"), ("PATH", "y")];
        let variables = variables.map(|(name, text)| (OsString::from(name), OsString::from(text)));
        let settings = environment(variables.into_iter()).unwrap();
        assert_eq!(settings, [("EADEM_JOBS_WORKERS".to_owned(), "3".to_owned())]);
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_utf_8_matters_only_if_it_is_a_setting() {
        use std::os::unix::ffi::OsStringExt as _;
        let variable = |name: &str| [(OsString::from(name), OsString::from_vec(vec![0xff]))].into_iter();
        assert!(environment(variable("LANG")).unwrap().is_empty());
        assert!(environment(variable("EADEM_HOME")).unwrap().is_empty());
        let refused = environment(variable("EADEM_SERVER_LISTEN")).unwrap_err().to_string();
        assert!(refused.contains("EADEM_SERVER_LISTEN is not UTF-8"), "{refused}");
    }
}
