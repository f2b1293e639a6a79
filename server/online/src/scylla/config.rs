//! Where the database is and how it is spoken to: the URL and its options.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::StoreError;

/// The variables of the environment that name the user and the password, so that neither has to stand in a URL.
pub const USER_VARIABLE: &str = "EADEM_SCYLLA_USER";
/// See [`USER_VARIABLE`].
pub const PASSWORD_VARIABLE: &str = "EADEM_SCYLLA_PASSWORD";

const SCHEME: &str = "scylla://";
const DEFAULT_PORT: u16 = 9042;
pub(super) const IN_FLIGHT_MAX: usize = 65_536;
const KEYSPACE_CHARS_MAX: usize = 48;
const KNOWN_OPTIONS: &str = "consistency, datacenter, timeout_ms, max_in_flight, speculative_ms, tls, ca";

/// How many replicas have to agree on a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadConsistency {
    /// A majority of the replicas in the data center: a read sees every write that was acknowledged before it. The default.
    LocalQuorum,
    /// One replica: faster, and it may not have seen the latest writes or erasures yet. A store opened like this does **not**
    /// keep the trait's promise to read its own writes.
    LocalOne,
}

/// Whether connections are encrypted, and who is believed to be the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Plain text.
    Off,
    /// A certificate signed by a public authority.
    PublicAuthorities,
    /// A certificate signed by (or equal to) one of those in this PEM file.
    Authority(PathBuf),
}

/// How to reach a ScyllaDB or Cassandra cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct ScyllaConfig {
    /// Nodes to ask for all the others, as `host:port`.
    pub nodes: Vec<String>,
    /// The keyspace: a small letter, then small letters, digits and `_`; 48 characters at most.
    pub keyspace: String,
    /// User and password, if the cluster asks for them.
    pub credentials: Option<Credentials>,
    /// For reads of rows. Writes, and reads of what decides about tables, always take a majority.
    pub consistency: ReadConsistency,
    /// The data center whose nodes are asked. Necessary where there are several.
    pub datacenter: Option<String>,
    /// How long one request to the database may take, retries included.
    pub timeout: Duration,
    /// How many requests may be under way at once. A request of more than 64 KiB counts as several.
    pub max_in_flight: usize,
    /// After which time without an answer a read is also sent to another node; `None`: never.
    pub speculative_after: Option<Duration>,
    /// Encryption.
    pub tls: Tls,
}

/// A user and a password. Printing shows the user only.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", self.user)
    }
}

impl fmt::Debug for ScyllaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScyllaConfig({self})")
    }
}

/// The URL without its password.
impl fmt::Display for ScyllaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        if let Some(credentials) = &self.credentials {
            write!(f, "{credentials:?}@")?;
        }
        write!(f, "{}/{}", self.nodes.join(","), self.keyspace)
    }
}

impl ScyllaConfig {
    /// Nodes and keyspace, with everything else as it is without options.
    pub fn new(nodes: Vec<String>, keyspace: impl Into<String>) -> Self {
        Self {
            nodes,
            keyspace: keyspace.into(),
            credentials: None,
            consistency: ReadConsistency::LocalQuorum,
            datacenter: None,
            timeout: Duration::from_millis(2_000),
            max_in_flight: 256,
            speculative_after: Some(Duration::from_millis(50)),
            tls: Tls::Off,
        }
    }

    /// The same with another keyspace.
    ///
    /// # Errors
    /// It has no usable name.
    pub fn in_keyspace(self, keyspace: &str) -> Result<Self, StoreError> {
        check_keyspace(keyspace)?;
        Ok(Self { keyspace: keyspace.to_owned(), ..self })
    }

    /// Reads `scylla://[user:password@]host[:port],host2/keyspace?option=value&…`. User and password may have
    /// percent-encoded characters. `docs/online-scylla.md` lists the options.
    ///
    /// # Errors
    /// [`StoreError::BadConfig`], which never repeats a password.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let rest = url.strip_prefix(SCHEME).ok_or_else(|| bad(format!("the URL does not begin with `{SCHEME}`")))?;
        let (location, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, keyspace) = location
            .rsplit_once('/')
            .ok_or_else(|| bad("the URL names no keyspace; it is `scylla://host,host2/keyspace`"))?;
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(parse_credentials(credentials)?), hosts),
            None => (None, authority),
        };
        check_keyspace(keyspace)?;
        let nodes = hosts.split(',').map(parse_node).collect::<Result<Vec<_>, _>>()?;
        let mut config = Self { credentials, ..Self::new(nodes, keyspace) };
        let mut tls = None;
        for option in options.split('&').filter(|option| !option.is_empty()) {
            config.set_option(option, &mut tls)?;
        }
        config.tls = match (tls, config.tls) {
            (Some(false), Tls::Authority(_)) => return Err(bad("`ca` names whom to trust, but `tls` is off")),
            (Some(true), Tls::Off) => Tls::PublicAuthorities,
            (_, from_ca) => from_ca,
        };
        Ok(config)
    }

    /// Takes user and password from [`USER_VARIABLE`] and [`PASSWORD_VARIABLE`] where the URL has none.
    ///
    /// # Errors
    /// [`StoreError::BadConfig`] if only one of them is set.
    pub fn with_credentials_of_environment(self) -> Result<Self, StoreError> {
        self.with_credentials_of(|name| std::env::var(name).ok())
    }

    fn with_credentials_of(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        if self.credentials.is_some() {
            return Ok(self);
        }
        self.credentials = match (variable(USER_VARIABLE), variable(PASSWORD_VARIABLE)) {
            (Some(user), Some(password)) => Some(Credentials { user, password }),
            (None, None) => None,
            _ => {
                return Err(bad(format!("one of {USER_VARIABLE} and {PASSWORD_VARIABLE} is set; set both or neither")));
            }
        };
        Ok(self)
    }

    fn set_option(&mut self, option: &str, tls: &mut Option<bool>) -> Result<(), StoreError> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = decode(name, value)?;
        match name {
            "consistency" => self.consistency = parse_consistency(&value)?,
            "datacenter" if value.is_empty() => return Err(bad("`datacenter` has no name")),
            "datacenter" => self.datacenter = Some(value),
            "timeout_ms" => self.timeout = Duration::from_millis(parse_number(name, &value, 1, 600_000)?),
            "max_in_flight" => self.max_in_flight = parse_number(name, &value, 1, IN_FLIGHT_MAX as u64)? as usize,
            "speculative_ms" => {
                let after_ms = parse_number(name, &value, 0, 600_000)?;
                self.speculative_after = (after_ms > 0).then(|| Duration::from_millis(after_ms));
            }
            "tls" => *tls = Some(parse_switch(name, &value)?),
            "ca" if value.is_empty() => return Err(bad("`ca` names no file")),
            "ca" => self.tls = Tls::Authority(PathBuf::from(value)),
            _ => return Err(bad(format!("there is no option `{name}`; the options are {KNOWN_OPTIONS}"))),
        }
        Ok(())
    }
}

fn bad(what: impl Into<String>) -> StoreError {
    StoreError::BadConfig { what: what.into() }
}

fn decode(name: &str, text: &str) -> Result<String, StoreError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| bad(format!("`{name}` is not UTF-8 once decoded")))
}

// Whatever is wrong here may be a part of the password, so messages repeat nothing.
fn parse_credentials(text: &str) -> Result<Credentials, StoreError> {
    let (user, password) = text.split_once(':').ok_or_else(|| {
        bad(format!("the URL names a user without a password; set {USER_VARIABLE} and {PASSWORD_VARIABLE} instead"))
    })?;
    let credentials = Credentials { user: decode("user", user)?, password: decode("password", password)? };
    if credentials.user.is_empty() {
        return Err(bad("the URL names an empty user"));
    }
    Ok(credentials)
}

fn parse_node(text: &str) -> Result<String, StoreError> {
    let address = text.rsplit_once(']').map_or(text, |(_, after)| after);
    let (host, port) = match address.rsplit_once(':') {
        Some((_, port)) => (&text[..text.len() - port.len() - 1], Some(port)),
        None => (text, None),
    };
    // An unencoded `/`, `:` or `@` of a password ends up here, so a message does not repeat the text.
    let is_host = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match inner {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
        }
    };
    if !is_host(host) {
        return Err(bad(
            "the hosts are not names or addresses, separated by commas; percent-encode special characters of \
                        user and password",
        ));
    }
    match port.map(str::parse::<u16>) {
        None => Ok(format!("{host}:{DEFAULT_PORT}")),
        Some(Ok(port)) if port > 0 => Ok(format!("{host}:{port}")),
        _ => Err(bad("a port is not a number from 1 to 65535")),
    }
}

/// Names that need no quotes anywhere.
pub(super) fn check_keyspace(name: &str) -> Result<(), StoreError> {
    let begins_well = name.chars().next().is_some_and(|first| first.is_ascii_lowercase());
    let is_plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if begins_well && is_plain && name.len() <= KEYSPACE_CHARS_MAX {
        return Ok(());
    }
    // Not repeated: where a password has a `/` that is not encoded, this is a part of it.
    Err(bad(format!(
        "the keyspace has no usable name; it is a small letter, then small letters, digits and `_`, {KEYSPACE_CHARS_MAX} \
         characters at most"
    )))
}

fn parse_consistency(value: &str) -> Result<ReadConsistency, StoreError> {
    match value {
        "local_quorum" => Ok(ReadConsistency::LocalQuorum),
        "local_one" => Ok(ReadConsistency::LocalOne),
        _ => Err(bad(format!("`consistency={value}`: it is local_quorum or local_one"))),
    }
}

fn parse_number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, StoreError> {
    let number = value.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| bad(format!("`{name}={value}`: it is a whole number from {least} to {most}")))
}

fn parse_switch(name: &str, value: &str) -> Result<bool, StoreError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(bad(format!("`{name}={value}`: it is true or false"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_with_everything() {
        let url = "scylla://reader:p%40ss%2Fword@h1,h2:9142,[::1]:9242/features_1?consistency=local_one&datacenter=eu%20west&\
                   timeout_ms=250&max_in_flight=16&speculative_ms=0&tls=true&ca=/etc/ca%20file.pem";
        let config = ScyllaConfig::parse(url).unwrap();
        assert_eq!(config.nodes, ["h1:9042", "h2:9142", "[::1]:9242"]);
        assert_eq!(config.keyspace, "features_1");
        let credentials = config.credentials.unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("reader", "p@ss/word"));
        assert_eq!(config.consistency, ReadConsistency::LocalOne);
        assert_eq!(config.datacenter.as_deref(), Some("eu west"));
        assert_eq!((config.timeout, config.max_in_flight), (Duration::from_millis(250), 16));
        assert_eq!(config.speculative_after, None);
        assert_eq!(config.tls, Tls::Authority("/etc/ca file.pem".into()));
    }

    #[test]
    fn a_url_without_options_keeps_what_the_trait_promises() {
        let config = ScyllaConfig::parse("scylla://127.0.0.1/k").unwrap();
        assert_eq!(config, ScyllaConfig::new(vec!["127.0.0.1:9042".to_owned()], "k"));
        assert_eq!(config.consistency, ReadConsistency::LocalQuorum);
        assert_eq!(ScyllaConfig::parse("scylla://h/k?tls=true").unwrap().tls, Tls::PublicAuthorities);
        assert_eq!(ScyllaConfig::parse("scylla://h/k?tls=false").unwrap().tls, Tls::Off);
        assert_eq!(ScyllaConfig::parse("scylla://h/k?ca=f").unwrap().tls, Tls::Authority("f".into()));
    }

    #[test]
    fn credentials_of_the_environment_fill_in_for_those_of_the_url() {
        let set = |names: &'static [&'static str]| move |name: &str| names.contains(&name).then(|| format!("{name}'s"));
        let nobody = || ScyllaConfig::parse("scylla://h/k").unwrap();
        assert_eq!(nobody().with_credentials_of(set(&[])).unwrap().credentials, None);
        let both = nobody().with_credentials_of(set(&[USER_VARIABLE, PASSWORD_VARIABLE])).unwrap().credentials.unwrap();
        assert_eq!((both.user, both.password), (format!("{USER_VARIABLE}'s"), format!("{PASSWORD_VARIABLE}'s")));
        for one in [&[USER_VARIABLE], &[PASSWORD_VARIABLE]] {
            let message = nobody().with_credentials_of(set(one)).unwrap_err().to_string();
            assert!(message.contains("both or neither") && !message.contains("'s"), "{message}");
        }
        let of_url = ScyllaConfig::parse("scylla://user:password@h/k").unwrap();
        let kept = of_url.with_credentials_of(set(&[USER_VARIABLE, PASSWORD_VARIABLE])).unwrap().credentials.unwrap();
        assert_eq!(kept.user, "user");
    }

    #[test]
    fn what_is_wrong_is_said_and_no_password_is() {
        let secret = "Hidden7";
        let refused = [
            ("http://h/k", "scylla://"),
            ("scylla://h", "keyspace"),
            ("scylla://h/", "keyspace"),
            ("scylla://h/Upper", "small letters"),
            ("scylla://h/k?nodes=3", "consistency, datacenter, timeout_ms, max_in_flight, speculative_ms, tls, ca"),
            ("scylla://h/k?consistency=quorum", "local_quorum or local_one"),
            ("scylla://h/k?timeout_ms=0", "from 1 to 600000"),
            ("scylla://h/k?timeout_ms=soon", "from 1 to 600000"),
            ("scylla://h/k?max_in_flight=-1", "from 1 to 65536"),
            ("scylla://h/k?tls=maybe", "true or false"),
            ("scylla://h/k?tls=false&ca=f", "`tls` is off"),
            ("scylla://h/k?ca=", "no file"),
            ("scylla://h/k?datacenter=", "no name"),
            ("scylla:///k", "hosts"),
            ("scylla://h,,i/k", "hosts"),
            ("scylla://h:0/k", "port"),
            ("scylla://h:99999/k", "port"),
            ("scylla://user@h/k", "EADEM_SCYLLA_PASSWORD"),
            ("scylla://:Hidden7@h/k", "empty user"),
            ("scylla://user:x/Hidden7!", "small letters"),
            ("scylla://user:Hidden7?x@h/k", "keyspace"),
            ("scylla://user:Hidden7%ff@h/k", "UTF-8"),
            ("scylla://user:Hidden7@h/k?other", "there is no option `other`"),
        ];
        for (url, words) in refused {
            let message = ScyllaConfig::parse(url).unwrap_err().to_string();
            assert!(message.contains(words), "{url}: {message}");
            assert!(!message.contains(secret), "{url}: {message}");
        }
        let config = ScyllaConfig::parse("scylla://user:Hidden7@h/k").unwrap();
        for shown in [format!("{config}"), format!("{config:?}"), format!("{:#?}", config.credentials)] {
            assert!(shown.contains("user") && !shown.contains(secret), "{shown}");
        }
        assert_eq!(config.to_string(), "scylla://user:***@h:9042/k");
    }
}
