//! Where tables and files are.

mod clients;
mod disk;
mod guarded;
mod profile;
mod secret;
mod settings;

use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::StreamExt as _;
use object_store::ObjectStore;
use object_store::path::Path;
use url::Url;

use crate::cache::Caches;
use crate::erasure::ErasureLedger;
use crate::error::OfflineError;
use crate::extracts::EXTRACTS_FOLDER;
use crate::spec::ViewSpec;

use clients::{Scheme, client_of};
pub use clients::{limit_object_stores, s3_settings};
pub use settings::{StoreLimits, StoreSetting};

/// A file or folder: a URL, and a store whose root is the root of that URL's scheme and host.
#[derive(Debug, Clone)]
pub struct Location {
    /// Absolute. It holds no credentials.
    pub url: Url,
    /// Rooted at the file system or the bucket, and shared by all locations there.
    pub store: Arc<dyn ObjectStore>,
    /// The location within `store`.
    pub path: Path,
}

impl Location {
    /// Understands a local path (absolute, or relative to the working directory) or a URL: `file://` or `s3://`.
    ///
    /// # Errors
    /// Text that is neither, a scheme that this build cannot reach, a URL with credentials or parameters in it, or settings
    /// of the object store that do not fit. The message does not repeat what may be a secret.
    pub fn parse(text: &str) -> Result<Self, OfflineError> {
        let url = parse_url(text)?;
        let refuse = |reason: String| OfflineError::Location { location: Self::shown(text), reason };
        let scheme = Scheme::of(&url).ok_or_else(|| refuse(UNREACHABLE.to_owned()))?;
        let path = Path::from_url_path(url.path()).map_err(|error| refuse(error.to_string()))?;
        let store = client_of(scheme, &url).map_err(refuse)?;
        Ok(Self { url, store, path })
    }

    /// Checks the text of a location as far as nothing needs to be reached for it.
    ///
    /// # Errors
    /// See [`Location::parse`].
    pub fn check(text: &str) -> Result<(), OfflineError> {
        parse_url(text).map(|_| ())
    }

    /// The text of a location as it may be repeated to people: a URL without what may be credentials.
    pub fn shown(text: &str) -> String {
        secret::shown_location(text)
    }

    /// The local path, if it is one.
    pub(crate) fn local_path(&self) -> Option<PathBuf> {
        (self.url.scheme() == "file").then(|| self.url.to_file_path().ok()).flatten()
    }

    /// Whether what is written here outlives this process.
    pub fn is_persistent(&self) -> bool {
        !matches!(Scheme::of(&self.url), Some(Scheme::Memory) | None)
    }

    /// Whether this is `other`, or lies below it. Local paths are followed through links.
    pub fn is_within(&self, other: &Self) -> bool {
        if let (Some(ours), Some(theirs)) = (self.local_path(), other.local_path()) {
            return followed(&ours).starts_with(followed(&theirs));
        }
        let is_one_place = self.url.scheme() == other.url.scheme() && self.url.authority() == other.url.authority();
        is_one_place && self.path.prefix_matches(&other.path)
    }

    /// The path of an object of this store, as seen from here; `None`: it lies elsewhere.
    pub(crate) fn relative(&self, object: &Path) -> Option<String> {
        let parts: Vec<String> = object.prefix_match(&self.path)?.map(|part| part.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }

    /// A location below this one.
    pub(crate) fn below(&self, relative: &str) -> Result<Self, OfflineError> {
        let mut url = self.url.clone();
        {
            let mut segments = url.path_segments_mut().map_err(|()| OfflineError::Location {
                location: self.url.to_string(),
                reason: "cannot hold anything below it".to_owned(),
            })?;
            segments.pop_if_empty().extend(relative.split('/'));
        }
        let path = Path::from_url_path(url.path()).map_err(object_store::Error::from)?;
        Ok(Self { url, store: self.store.clone(), path })
    }
}

const UNREACHABLE: &str = "is neither a local path nor an s3:// URL; other stores are not reached";

/// The URL of a location. What could hold a secret is refused before anything is done with it.
fn parse_url(text: &str) -> Result<Url, OfflineError> {
    let refuse = |reason: &str| OfflineError::Location { location: Location::shown(text), reason: reason.to_owned() };
    if !text.contains("://") {
        return local_url(text);
    }
    let mut url = Url::parse(text).map_err(|error| refuse(&format!("is no URL ({error})")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(
            "a location holds no credentials: they come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or \
             a profile (AWS_PROFILE)",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("a location has no parameters; a `?` or `#` in a name is written %3F or %23"));
    }
    if url.scheme() == "s3a" {
        // Another name for the same: one place has one URL.
        url.set_scheme("s3").map_err(|()| refuse("is no URL"))?;
    }
    match Scheme::of(&url) {
        None => Err(refuse(UNREACHABLE)),
        Some(Scheme::S3) if url.host_str().is_none_or(str::is_empty) => {
            Err(refuse("names no bucket; it is s3://bucket/path"))
        }
        Some(Scheme::S3) if url.port().is_some() => {
            Err(refuse("names a server; it is s3://bucket/path, and AWS_ENDPOINT_URL names the server"))
        }
        Some(_) => Ok(url),
    }
}

fn local_url(text: &str) -> Result<Url, OfflineError> {
    let bad = |reason: String| OfflineError::Location { location: text.to_owned(), reason };
    let path = absolute(FilePath::new(text)).map_err(|error| bad(error.to_string()))?;
    Url::from_file_path(&path).map_err(|()| bad("cannot be written as a URL".to_owned()))
}

/// The path without links, as far as it exists.
fn followed(path: &FilePath) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => followed(folder).join(name),
        _ => path.to_owned(),
    }
}

/// Absolute and without `..`, which object stores do not know.
fn absolute(path: &FilePath) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if !path.components().any(|part| part == Component::ParentDir) {
        return Ok(path);
    }
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    Ok(plain)
}

/// The root of all offline tables. Clones share what readers keep of them.
#[derive(Debug, Clone)]
pub struct OfflineStore {
    pub(crate) root: Location,
    pub(crate) caches: Arc<Caches>,
    /// `None`: nothing is ever erased.
    pub(crate) erasures: Option<Arc<dyn ErasureLedger>>,
}

impl OfflineStore {
    /// A store at a local folder or URL. Nothing is touched yet; folders are made when something is written.
    ///
    /// # Errors
    /// See [`Location::parse`].
    pub fn open(root: &str) -> Result<Self, OfflineError> {
        Ok(Self { root: Location::parse(root)?, caches: Arc::default(), erasures: None })
    }

    /// Makes the store's folder, where it is one.
    ///
    /// # Errors
    /// A folder that cannot be made, or a store that would be forgotten with this process.
    pub fn prepare(&self) -> Result<(), OfflineError> {
        if !self.root.is_persistent() {
            let reason = "is the memory of this process; name a folder or an s3:// URL".to_owned();
            return Err(OfflineError::Location { location: self.root.url.to_string(), reason });
        }
        let Some(folder) = self.root.local_path() else { return Ok(()) };
        let path = folder.display().to_string();
        std::fs::create_dir_all(&folder).map_err(|source| OfflineError::Io { path, source })
    }

    /// Whether the store answers: the folder can be read, or the object store lists what is there (one request). Who asks bounds
    /// the time that it may take.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), OfflineError> {
        if let Some(folder) = self.root.local_path() {
            let path = folder.display().to_string();
            return match tokio::fs::read_dir(&folder).await {
                Ok(_) => Ok(()),
                Err(source) => Err(OfflineError::Io { path, source }),
            };
        }
        // The first page, whatever there is.
        self.root.store.list(Some(&self.root.path)).next().await.transpose()?;
        Ok(())
    }

    /// A store whose requests go through `store`, which must be rooted like the one [`Location::parse`] gives.
    ///
    /// # Errors
    /// See [`Location::parse`].
    pub fn with_object_store(root: &str, store: Arc<dyn ObjectStore>) -> Result<Self, OfflineError> {
        let root = Location::parse(root)?;
        Ok(Self { root: Location { store, ..root }, caches: Arc::default(), erasures: None })
    }

    /// Who knows what is erased; `None`: nothing ever is.
    pub fn erasures(&self) -> Option<Arc<dyn ErasureLedger>> {
        self.erasures.clone()
    }

    /// The same store, whose readers and writers leave out what this ledger says is erased.
    #[must_use]
    pub fn with_erasures(self, erasures: Arc<dyn ErasureLedger>) -> Self {
        Self { erasures: Some(erasures), ..self }
    }

    /// Where the store is.
    pub fn url(&self) -> &Url {
        &self.root.url
    }

    /// Where the table of a view version in its placement is, or would be.
    ///
    /// # Errors
    /// A name that no location can have.
    pub fn table_location(&self, view: &ViewSpec) -> Result<Location, OfflineError> {
        self.root.below(&format!("views/{}/{}", view.name, view.table_folder()))
    }

    pub(crate) fn quarantine_location(&self, view: &str, version: u32) -> Result<Location, OfflineError> {
        self.root.below(&format!("quarantine/{view}/v{version}"))
    }

    pub(crate) fn extracts_location(&self, view: &str, version: u32) -> Result<Location, OfflineError> {
        self.root.below(&format!("{EXTRACTS_FOLDER}/{view}/v{version}"))
    }

    pub(crate) fn spine_location(&self, file: &str) -> Result<Location, OfflineError> {
        self.root.below(&format!("spines/{file}"))
    }

    pub(crate) fn statistics_location(&self, digest_hex: &str) -> Result<Location, OfflineError> {
        self.root.below(&format!("statistics/{digest_hex}.json"))
    }

    pub(crate) fn recipe_location(&self, digest_hex: &str) -> Result<Location, OfflineError> {
        self.root.below(&format!("recipes/{digest_hex}.json"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse_url(text).unwrap_err().to_string()
    }

    #[test]
    fn a_location_with_credentials_is_refused_without_repeating_them() {
        for text in [
            "s3://AKIAEXAMPLE:hush@bucket/a",
            "s3://AKIAEXAMPLE:hu/sh@bucket/a",
            "s3://hush@bucket/a",
            "s3://bucket/a?X-Amz-Credential=hush",
            "s3://bucket/a#hush",
            "file:///tmp/a?hush",
            "gs://user:hush@bucket/a",
        ] {
            let message = refused(text);
            assert!(!message.contains("hush") && !message.contains("AKIA"), "{message}");
        }
        assert!(refused("s3://me:hush@bucket/a").contains("AWS_PROFILE"));
    }

    #[test]
    fn urls_that_name_no_place_here_say_what_is_wrong() {
        for (text, reason) in [
            ("gs://bucket/a", "gs://bucket/a: is neither a local path nor an s3:// URL"),
            ("https://bucket.s3.amazonaws.com/a", "is neither a local path nor an s3:// URL"),
            ("s3:///a", "names no bucket"),
            ("s3://127.0.0.1:9000/bucket", "AWS_ENDPOINT_URL names the server"),
        ] {
            let message = refused(text);
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn one_place_has_one_url_and_one_client() {
        assert_eq!(parse_url("s3a://bucket/a/b").unwrap().as_str(), "s3://bucket/a/b");
        let (one, other) = (Location::parse("/tmp/a").unwrap(), Location::parse("file:///tmp/b").unwrap());
        assert!(Arc::ptr_eq(&one.store, &other.store));
        assert!(!one.is_within(&other));
    }

    #[test]
    fn names_that_need_it_are_written_with_percent_signs_in_the_url_only() {
        let place = Location::parse("s3%3Aodd/ä b?.parquet").unwrap();
        assert!(place.url.as_str().ends_with("/s3%253Aodd/%C3%A4%20b%3F.parquet"), "{}", place.url);
        assert!(place.path.as_ref().ends_with("/s3%3Aodd/ä b?.parquet"), "{}", place.path);
    }
}
