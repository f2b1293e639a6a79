//! What an S3 client needs to know, and where it stands: in the environment or a profile. Nothing of it comes from a URL or
//! a definition, so that no credential gets into the registry.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider, S3ConditionalPut,
};
use object_store::{
    BackoffConfig, ClientConfigKey, ClientOptions, CredentialProvider, RetryConfig, StaticCredentialProvider,
};
use serde::Serialize;
use url::{Host, Url};

use super::profile::{Profile, ProfileFiles, Variables, variable};
use super::secret::{Secret, Secrets};

/// How long requests to object stores may take, and how often they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// For one request with its whole body.
    pub request_timeout: Duration,
    /// For making a connection.
    pub connect_timeout: Duration,
    /// How often a request is tried again after a failure that may pass.
    pub retries_max: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { request_timeout: Duration::from_secs(60), connect_timeout: Duration::from_secs(5), retries_max: 6 }
    }
}

/// No request is tried again after this long: by then its signature is about to expire.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);

/// A setting of an object store's client, as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreSetting {
    /// Such as `s3.endpoint`.
    pub key: &'static str,
    /// The value; for a secret only that there is one.
    pub value: Option<String>,
    /// The variable, or the profile and its file, or `default`.
    pub origin: String,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
struct Sourced<T> {
    value: T,
    origin: String,
}

impl<T> Sourced<T> {
    fn new(value: T, origin: impl Into<String>) -> Self {
        Self { value, origin: origin.into() }
    }
}

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addressing {
    /// `https://server/bucket/key`.
    Path,
    /// `https://bucket.server/key`.
    VirtualHost,
    /// By path where an endpoint is given or the bucket's name has dots, which certificates do not cover.
    Auto,
}

impl fmt::Display for Addressing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Path => "path",
            Self::VirtualHost => "virtual",
            Self::Auto => "auto",
        })
    }
}

/// Who signs.
#[derive(Debug, Clone)]
enum Credentials {
    /// These keys.
    Keys(Keys),
    /// The keys of a profile, which may be renewed while this process runs.
    Profile(Keys),
    /// Nobody: the bucket is open to all.
    Anonymous,
    /// The machine or container has a role; the client asks for its keys.
    Role(&'static str),
    /// Nobody, and that will not do.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    id: Secret,
    secret: Secret,
    token: Option<Secret>,
}

/// Everything that a client needs to know.
pub(crate) struct S3Settings {
    region: Sourced<String>,
    endpoint: Option<Sourced<Url>>,
    addressing: Sourced<Addressing>,
    allow_http: Sourced<bool>,
    credentials: Sourced<Credentials>,
    /// Settings that go to the client as they stand in the environment.
    others: Vec<(AmazonS3ConfigKey, Sourced<Secret>)>,
    variables: Variables,
}

/// What may be seen of them: the variables that they come from hold secrets.
impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shown()).finish()
    }
}

/// Variables that are looked at here, and so are not handed on to the client: those of the credentials, and these.
const OWN_KEYS: &[&str] = &[
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_token",
    "aws_region",
    "aws_default_region",
    "aws_endpoint",
    "aws_endpoint_url",
    "aws_endpoint_url_s3",
    "aws_virtual_hosted_style_request",
    "aws_allow_http",
    "aws_skip_signature",
    "aws_bucket",
    "aws_bucket_name",
    // Without it two writers could both win.
    "aws_conditional_put",
    "aws_timeout",
    "aws_connect_timeout",
];

/// Those among the others that nobody must see.
const SECRET_VARIABLES: &[&str] = &["AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_PROXY_URL"];

impl S3Settings {
    /// Reads the environment and the profile.
    ///
    /// # Errors
    /// A setting that cannot be; the message names its variable or file.
    pub(crate) fn resolve(variables: &Variables) -> Result<Self, String> {
        let profile = Profile::load(variables)?;
        let set = |name: &str| variable(variables, name).map(|value| Sourced::new(value.to_owned(), name));
        let profiled = |key: &str| profile.get(key).map(|value| Sourced::new(value.to_owned(), profile.origin(key)));
        let flag = |name: &str| match variable(variables, name) {
            None => Ok(None),
            Some(text) => parse_flag(text)
                .map(|value| Some(Sourced::new(value, name)))
                .ok_or_else(|| format!("{name} is neither true nor false")),
        };
        let region = set("AWS_REGION")
            .or_else(|| set("AWS_DEFAULT_REGION"))
            .or_else(|| profiled("region"))
            .unwrap_or_else(|| Sourced::new("us-east-1".to_owned(), "default"));
        let endpoint = set("AWS_ENDPOINT_URL_S3")
            .or_else(|| set("AWS_ENDPOINT_URL"))
            .or_else(|| set("AWS_ENDPOINT"))
            .or_else(|| profiled("s3.endpoint_url"))
            .or_else(|| profiled("endpoint_url"));
        let endpoint = endpoint.map(parse_endpoint).transpose()?;
        let addressing = match flag("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")? {
            Some(Sourced { value: true, origin }) => Sourced::new(Addressing::VirtualHost, origin),
            Some(Sourced { value: false, origin }) => Sourced::new(Addressing::Path, origin),
            None => match profiled("s3.addressing_style") {
                Some(style) => parse_addressing(style)?,
                None => Sourced::new(Addressing::Auto, "default"),
            },
        };
        let is_local = endpoint.as_ref().is_some_and(|endpoint| is_loopback(&endpoint.value));
        let allow_http = match flag("AWS_ALLOW_HTTP")? {
            Some(allowed) => allowed,
            None if is_local => Sourced::new(true, "default: the endpoint is this machine"),
            None => Sourced::new(false, "default"),
        };
        if let Some(endpoint) = &endpoint
            && endpoint.value.scheme() == "http"
            && !allow_http.value
        {
            return Err(format!(
                "{}: {} is not encrypted; use https, or set AWS_ALLOW_HTTP=true",
                endpoint.origin, endpoint.value
            ));
        }
        let anonymous = flag("AWS_SKIP_SIGNATURE")?.filter(|skip| skip.value);
        let credentials = match anonymous {
            Some(skip) => Sourced::new(Credentials::Anonymous, skip.origin),
            None => credentials(variables, &profile)?,
        };
        let others = variables.iter().filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
        let others = others.filter_map(|(name, value)| {
            let key = name.to_ascii_lowercase();
            let known = AmazonS3ConfigKey::from_str(&key).ok().filter(|_| !OWN_KEYS.contains(&key.as_str()))?;
            Some((known, Sourced::new(Secret::new(value), name)))
        });
        let others = others.collect();
        Ok(Self { region, endpoint, addressing, allow_http, credentials, others, variables: variables.clone() })
    }

    /// What is set, without secrets.
    pub(crate) fn shown(&self) -> Vec<StoreSetting> {
        let setting = |key: &'static str, value: Option<String>, origin: &str| StoreSetting {
            key,
            value,
            origin: origin.to_owned(),
        };
        let endpoint = self.endpoint.as_ref();
        let credentials = match &self.credentials.value {
            Credentials::Keys(_) | Credentials::Profile(_) => Some("(set, not shown)".to_owned()),
            Credentials::Anonymous => Some("none: requests are not signed".to_owned()),
            Credentials::Role(role) => Some(format!("those of {role}")),
            Credentials::None => None,
        };
        vec![
            setting("s3.region", Some(self.region.value.clone()), &self.region.origin),
            setting(
                "s3.endpoint",
                endpoint.map(|endpoint| endpoint.value.to_string()),
                endpoint.map_or("default", |endpoint| &endpoint.origin),
            ),
            setting("s3.addressing", Some(self.addressing.value.to_string()), &self.addressing.origin),
            setting("s3.allow_http", Some(self.allow_http.value.to_string()), &self.allow_http.origin),
            setting("s3.credentials", credentials, &self.credentials.origin),
        ]
    }

    /// Where the credentials are from, for people whose request was refused.
    pub(crate) fn credentials_origin(&self) -> &str {
        &self.credentials.origin
    }

    /// A client of one bucket. Secrets that it may come to know are added to `secrets`.
    ///
    /// # Errors
    /// Settings that do not fit together, or no credentials at all.
    pub(crate) fn client(&self, bucket: &str, limits: StoreLimits, secrets: &Secrets) -> Result<AmazonS3, String> {
        let client_options =
            ClientOptions::new().with_timeout(limits.request_timeout).with_connect_timeout(limits.connect_timeout);
        let user_agent = AmazonS3ConfigKey::Client(ClientConfigKey::UserAgent);
        let mut builder = AmazonS3Builder::new()
            .with_client_options(client_options)
            .with_config(user_agent, concat!("eadem/", env!("CARGO_PKG_VERSION")));
        for (key, value) in &self.others {
            if SECRET_VARIABLES.contains(&value.origin.as_str()) {
                secrets.add(&value.value);
            }
            builder = builder.with_config(*key, value.value.reveal());
        }
        let (endpoint, by_host) = self.bucket_endpoint(bucket)?;
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let backoff = BackoffConfig::default();
        builder = builder
            .with_bucket_name(bucket)
            .with_region(&self.region.value)
            .with_virtual_hosted_style_request(by_host)
            .with_allow_http(self.allow_http.value)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(RetryConfig { backoff, max_retries: limits.retries_max, retry_timeout: RETRY_TIMEOUT });
        builder = match &self.credentials.value {
            Credentials::Anonymous => builder.with_skip_signature(true),
            Credentials::Keys(keys) => {
                keys.add_to(secrets);
                builder.with_credentials(Arc::new(StaticCredentialProvider::new(keys.credential())))
            }
            Credentials::Profile(keys) => {
                let variables = self.variables.clone();
                builder.with_credentials(Arc::new(ProfileCredentials::new(variables, keys, secrets.clone())))
            }
            Credentials::Role(role) => {
                let inner = builder.clone().build().map_err(|error| secrets.hide(&error.to_string()))?;
                let inner = inner.credentials().clone();
                builder.with_credentials(Arc::new(RoleCredentials { role, inner }))
            }
            Credentials::None => return Err(format!("no credentials: {WAYS_TO_GIVE_CREDENTIALS}")),
        };
        builder.build().map_err(|error| secrets.hide(&error.to_string()))
    }

    /// The endpoint as the client wants it, and whether it names the bucket.
    fn bucket_endpoint(&self, bucket: &str) -> Result<(Option<String>, bool), String> {
        let by_host = match self.addressing.value {
            Addressing::Path => false,
            Addressing::VirtualHost => true,
            Addressing::Auto => self.endpoint.is_none() && !bucket.contains('.'),
        };
        let Some(endpoint) = &self.endpoint else { return Ok((None, by_host)) };
        let mut url = endpoint.value.clone();
        if by_host {
            let Some(Host::Domain(host)) = url.host() else {
                return Err(format!(
                    "{}: {url} is an address, in front of which no bucket can stand ({} says it should)",
                    endpoint.origin, self.addressing.origin
                ));
            };
            let host = format!("{bucket}.{host}");
            url.set_host(Some(&host)).map_err(|error| format!("{host}: {error}"))?;
        }
        Ok((Some(url.as_str().trim_end_matches('/').to_owned()), by_host))
    }
}

const WAYS_TO_GIVE_CREDENTIALS: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile in \
     ~/.aws/credentials; for a bucket that is open to all, AWS_SKIP_SIGNATURE=true";

fn parse_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn parse_endpoint(endpoint: Sourced<String>) -> Result<Sourced<Url>, String> {
    let Sourced { value: text, origin } = endpoint;
    // What cannot be parsed is not repeated: it may be a secret that got into the wrong place.
    let url = Url::parse(&text).map_err(|error| format!("{origin} is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("{origin} is no https:// URL with a host"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{origin} has credentials or parameters in the URL; {WAYS_TO_GIVE_CREDENTIALS}"));
    }
    Ok(Sourced::new(url, origin))
}

fn parse_addressing(style: Sourced<String>) -> Result<Sourced<Addressing>, String> {
    let addressing = match style.value.as_str() {
        "path" => Addressing::Path,
        "virtual" => Addressing::VirtualHost,
        "auto" => Addressing::Auto,
        _ => return Err(format!("addressing_style of {} is none of path, virtual, auto", style.origin)),
    };
    Ok(Sourced::new(addressing, style.origin))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

/// Whose keys sign, looked for where the command line of AWS looks, in its order.
fn credentials(variables: &Variables, profile: &Profile) -> Result<Sourced<Credentials>, String> {
    let set = |name: &str| variable(variables, name);
    match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => {
            let token = set("AWS_SESSION_TOKEN").map(Secret::new);
            let keys = Keys { id: Secret::new(id), secret: Secret::new(secret), token };
            return Ok(Sourced::new(Credentials::Keys(keys), "AWS_ACCESS_KEY_ID"));
        }
        (Some(_), None) => return Err("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not".to_owned()),
        (None, Some(_)) => return Err("AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not".to_owned()),
        (None, None) => {}
    }
    if set("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && set("AWS_ROLE_ARN").is_some() {
        return Ok(Sourced::new(Credentials::Role("the role of its web identity"), "AWS_WEB_IDENTITY_TOKEN_FILE"));
    }
    if let Some(keys) = profile_keys(profile)? {
        return Ok(Sourced::new(Credentials::Profile(keys), profile.origin(KEY_ID)));
    }
    if let Some(how) = OTHER_WAYS.iter().find(|how| profile.get(how).is_some()) {
        return Err(format!(
            "{} has `{how}`, which is not followed here; `aws configure export-credentials --profile {} --format env` \
             gives variables to set",
            profile.origin(how),
            profile.name
        ));
    }
    if profile.is_named {
        let files = ProfileFiles::of(variables);
        let file = files.credentials.map(|path| path.display().to_string()).unwrap_or_default();
        return Err(format!("AWS_PROFILE names `{}`, which has no aws_access_key_id in {file}", profile.name));
    }
    let container = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
    if let Some(name) = container.into_iter().find(|name| set(name).is_some()) {
        return Ok(Sourced::new(Credentials::Role("the container's role"), name));
    }
    let no_instance = set("AWS_EC2_METADATA_DISABLED").and_then(parse_flag) == Some(true);
    if no_instance {
        return Ok(Sourced::new(Credentials::None, "nowhere"));
    }
    Ok(Sourced::new(Credentials::Role("the machine's role, if it has one"), "the machine's metadata"))
}

const KEY_ID: &str = "aws_access_key_id";

/// Ways to credentials that a profile may name and that are not followed here.
const OTHER_WAYS: &[&str] =
    &["credential_process", "sso_session", "sso_start_url", "role_arn", "source_profile", "web_identity_token_file"];

fn profile_keys(profile: &Profile) -> Result<Option<Keys>, String> {
    let secret_key = "aws_secret_access_key";
    match (profile.get(KEY_ID), profile.get(secret_key)) {
        (Some(id), Some(secret)) => {
            let token = profile.get("aws_session_token").map(Secret::new);
            Ok(Some(Keys { id: Secret::new(id), secret: Secret::new(secret), token }))
        }
        (None, None) => Ok(None),
        (Some(_), None) => Err(format!("{} has {KEY_ID} and no {secret_key}", profile.origin(KEY_ID))),
        (None, Some(_)) => Err(format!("{} has {secret_key} and no {KEY_ID}", profile.origin(secret_key))),
    }
}

impl Keys {
    fn credential(&self) -> AwsCredential {
        AwsCredential {
            key_id: self.id.reveal().to_owned(),
            secret_key: self.secret.reveal().to_owned(),
            token: self.token.as_ref().map(|token| token.reveal().to_owned()),
        }
    }

    fn add_to(&self, secrets: &Secrets) {
        for secret in [Some(&self.id), Some(&self.secret), self.token.as_ref()].into_iter().flatten() {
            secrets.add(secret);
        }
    }
}

/// The keys of a profile. Tools renew them in the files: a process that runs for days must notice.
struct ProfileCredentials {
    variables: Variables,
    secrets: Secrets,
    latest: Mutex<(Stamp, Arc<AwsCredential>)>,
}

/// When each of the two files was last changed.
type Stamp = [Option<SystemTime>; 2];

impl ProfileCredentials {
    fn new(variables: Variables, keys: &Keys, secrets: Secrets) -> Self {
        keys.add_to(&secrets);
        let latest = Mutex::new((stamp(&variables), Arc::new(keys.credential())));
        Self { variables, secrets, latest }
    }

    fn latest(&self) -> Arc<AwsCredential> {
        let now = stamp(&self.variables);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.0 != now {
            // A file that is just being written may lack them: the old ones stay until it has them.
            let keys = Profile::load(&self.variables).and_then(|profile| profile_keys(&profile));
            if let Ok(Some(keys)) = keys {
                keys.add_to(&self.secrets);
                *latest = (now, Arc::new(keys.credential()));
            }
        }
        latest.1.clone()
    }
}

fn stamp(variables: &Variables) -> Stamp {
    let files = ProfileFiles::of(variables);
    [files.config, files.credentials].map(|path| std::fs::metadata(path?).ok()?.modified().ok())
}

impl fmt::Debug for ProfileCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProfileCredentials")
    }
}

#[async_trait]
impl CredentialProvider for ProfileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.latest())
    }
}

/// The credentials of a role, with a word about where else they could come from.
#[derive(Debug)]
struct RoleCredentials {
    role: &'static str,
    inner: AwsCredentialProvider,
}

#[async_trait]
impl CredentialProvider for RoleCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.inner.get_credential().await.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: format!("no credentials from {} ({error}); {WAYS_TO_GIVE_CREDENTIALS}", self.role).into(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use object_store::path::Path;
    use object_store::signer::Signer as _;

    use super::*;
    use crate::location::secret::HIDDEN;

    fn resolve(variables: &[(&str, &str)]) -> Result<S3Settings, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        S3Settings::resolve(&variables.collect())
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "the-key-id"), ("AWS_SECRET_ACCESS_KEY", "the-secret-key")];

    fn with_keys<'a>(variables: &[(&'a str, &'a str)]) -> Result<S3Settings, String> {
        resolve(&[variables, &KEYS].concat())
    }

    /// Where a request for `bucket` goes: what a signed URL says before its parameters.
    async fn target(settings: &S3Settings, bucket: &str) -> String {
        let client = settings.client(bucket, StoreLimits::default(), &Secrets::default()).unwrap();
        let path = Path::from("a/b");
        let mut url = client.signed_url("GET".parse().unwrap(), &path, Duration::from_secs(60)).await.unwrap();
        url.set_query(None);
        url.to_string()
    }

    fn shown(settings: &S3Settings, key: &str) -> (String, String) {
        let setting = settings.shown().into_iter().find(|setting| setting.key == key).unwrap();
        (setting.value.unwrap_or_default(), setting.origin)
    }

    #[tokio::test]
    async fn requests_go_where_the_settings_say() {
        for (variables, bucket, expected) in [
            (vec![], "lake", "https://lake.s3.us-east-1.amazonaws.com/a/b"),
            (vec![("AWS_REGION", "eu-west-1")], "lake.one", "https://s3.eu-west-1.amazonaws.com/lake.one/a/b"),
            (vec![("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")], "lake", "http://127.0.0.1:9000/lake/a/b"),
            (
                vec![("AWS_ENDPOINT_URL", "https://x"), ("AWS_ENDPOINT_URL_S3", "https://store.example:444")],
                "lake",
                "https://store.example:444/lake/a/b",
            ),
            (
                vec![("AWS_ENDPOINT_URL", "https://store.example"), ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")],
                "lake",
                "https://lake.store.example/a/b",
            ),
        ] {
            assert_eq!(target(&with_keys(&variables).unwrap(), bucket).await, expected);
        }
    }

    #[test]
    fn settings_show_where_they_stand_and_no_secret() {
        let settings = with_keys(&[("AWS_DEFAULT_REGION", "eu-west-1"), ("AWS_SESSION_TOKEN", "the-token")]).unwrap();
        assert_eq!(shown(&settings, "s3.region"), ("eu-west-1".to_owned(), "AWS_DEFAULT_REGION".to_owned()));
        let credentials = shown(&settings, "s3.credentials");
        assert_eq!(credentials, ("(set, not shown)".to_owned(), "AWS_ACCESS_KEY_ID".to_owned()));
        let everything = format!("{:?} {settings:?}", settings.shown());
        for secret in ["the-key-id", "the-secret-key", "the-token"] {
            assert!(!everything.contains(secret), "{everything}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        for (variables, reason) in [
            (vec![("AWS_ACCESS_KEY_ID", "the-key-id")], "AWS_SECRET_ACCESS_KEY is not"),
            (vec![("AWS_SKIP_SIGNATURE", "perhaps")], "AWS_SKIP_SIGNATURE is neither true nor false"),
            (vec![("AWS_ENDPOINT_URL", "http://store.example")], "is not encrypted; use https, or set AWS_ALLOW_HTTP"),
            (vec![("AWS_ENDPOINT_URL", "https://me:hush@x")], "AWS_ENDPOINT_URL has credentials"),
            (vec![("AWS_ENDPOINT_URL", "hush")], "AWS_ENDPOINT_URL is no URL"),
        ] {
            let refused = resolve(&variables).unwrap_err();
            assert!(refused.contains(reason) && !refused.contains("hush"), "{refused}");
        }
    }

    #[test]
    fn without_credentials_there_is_no_client() {
        let settings = resolve(&[("AWS_EC2_METADATA_DISABLED", "true")]).unwrap();
        let refused = settings.client("lake", StoreLimits::default(), &Secrets::default()).unwrap_err();
        assert!(refused.starts_with("no credentials: set AWS_ACCESS_KEY_ID"), "{refused}");
        assert_eq!(shown(&settings, "s3.credentials"), (String::new(), "nowhere".to_owned()));
    }

    fn home(credentials: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        home
    }

    #[test]
    fn variables_come_before_the_profile() {
        let home = home("[lake]\naws_access_key_id = of-profile\naws_secret_access_key = hush-hush\n");
        let at_home = [("HOME", home.path().to_str().unwrap()), ("AWS_PROFILE", "lake")];
        let of_profile = resolve(&at_home).unwrap();
        assert!(shown(&of_profile, "s3.credentials").1.starts_with("profile `lake` in "));
        let of_variables = with_keys(&at_home).unwrap();
        assert_eq!(shown(&of_variables, "s3.credentials").1, "AWS_ACCESS_KEY_ID");
    }

    #[test]
    fn a_profile_that_gets_its_keys_elsewhere_says_what_to_do() {
        let home = home("[lake]\ncredential_process = /bin/keys\n");
        let refused = resolve(&[("HOME", home.path().to_str().unwrap()), ("AWS_PROFILE", "lake")]).unwrap_err();
        assert!(refused.contains("`credential_process`") && refused.contains("--profile lake"), "{refused}");
    }

    #[tokio::test]
    async fn keys_that_are_renewed_in_the_file_are_used() {
        let home = home("[default]\naws_access_key_id = first-id\naws_secret_access_key = hush-hush\n");
        let variables = Variables::from([("HOME".to_owned(), home.path().display().to_string())]);
        let secrets = Secrets::default();
        let client = S3Settings::resolve(&variables).unwrap().client("lake", StoreLimits::default(), &secrets).unwrap();
        assert_eq!(client.credentials().get_credential().await.unwrap().key_id, "first-id");
        let file = home.path().join(".aws/credentials");
        std::fs::write(&file, "[default]\naws_access_key_id = second-id\naws_secret_access_key = and-another\n")
            .unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        assert_eq!(client.credentials().get_credential().await.unwrap().key_id, "second-id");
        assert_eq!(secrets.hide("hush-hush, and-another"), format!("{HIDDEN}, {HIDDEN}"));
    }
}
