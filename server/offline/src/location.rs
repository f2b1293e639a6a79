//! Where tables and files are.

use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

use crate::cache::Caches;
use crate::error::OfflineError;

/// A file or folder: a URL, and a store whose root is the root of that URL's scheme and host.
#[derive(Debug, Clone)]
pub struct Location {
    /// Absolute.
    pub url: Url,
    /// Rooted at the file system or the bucket.
    pub store: Arc<dyn ObjectStore>,
    /// The location within `store`.
    pub path: Path,
}

impl Location {
    /// Understands a local path (absolute, or relative to the working directory) or a URL.
    ///
    /// # Errors
    /// Text that is neither, or a scheme that this build cannot reach.
    pub fn parse(text: &str) -> Result<Self, OfflineError> {
        let bad = |reason: String| OfflineError::Location { location: text.to_owned(), reason };
        // A single letter before the colon is a drive, not a scheme.
        let url = match Url::parse(text) {
            Ok(url) if url.scheme().len() > 1 => url,
            _ => {
                let path = absolute(FilePath::new(text)).map_err(|error| bad(error.to_string()))?;
                Url::from_file_path(&path).map_err(|()| bad("cannot be written as a URL".to_owned()))?
            }
        };
        let (scheme, path) = ObjectStoreScheme::parse(&url).map_err(|error| bad(error.to_string()))?;
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::Local => Arc::new(LocalFileSystem::new()),
            _ => {
                let (store, _) = object_store::parse_url(&url).map_err(|error| bad(error.to_string()))?;
                Arc::from(store)
            }
        };
        Ok(Self { url, store, path })
    }

    /// The local path, if it is one.
    pub(crate) fn local_path(&self) -> Option<PathBuf> {
        (self.url.scheme() == "file").then(|| self.url.to_file_path().ok()).flatten()
    }

    /// Whether what is written here outlives this process.
    pub fn is_persistent(&self) -> bool {
        !matches!(ObjectStoreScheme::parse(&self.url), Ok((ObjectStoreScheme::Memory, _)) | Err(_))
    }

    /// Whether this is `other`, or lies below it. Local paths are followed through links.
    pub fn is_within(&self, other: &Self) -> bool {
        if let (Some(ours), Some(theirs)) = (self.local_path(), other.local_path()) {
            return followed(&ours).starts_with(followed(&theirs));
        }
        let is_one_place = self.url.scheme() == other.url.scheme() && self.url.authority() == other.url.authority();
        is_one_place && self.path.prefix_matches(&other.path)
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
}

impl OfflineStore {
    /// A store at a local folder or URL. Nothing is touched yet; folders are made when something is written.
    ///
    /// # Errors
    /// See [`Location::parse`].
    pub fn open(root: &str) -> Result<Self, OfflineError> {
        Ok(Self { root: Location::parse(root)?, caches: Arc::default() })
    }

    /// A store whose requests go through `store`, which must be rooted like the one [`Location::parse`] gives.
    ///
    /// # Errors
    /// See [`Location::parse`].
    pub fn with_object_store(root: &str, store: Arc<dyn ObjectStore>) -> Result<Self, OfflineError> {
        let root = Location::parse(root)?;
        Ok(Self { root: Location { store, ..root }, caches: Arc::default() })
    }

    /// Where the store is.
    pub fn url(&self) -> &Url {
        &self.root.url
    }

    /// Where the table of a view version is, or would be.
    ///
    /// # Errors
    /// A name that no location can have.
    pub fn table_location(&self, view: &str, version: u32) -> Result<Location, OfflineError> {
        self.root.below(&format!("views/{view}/v{version}"))
    }

    pub(crate) fn quarantine_location(&self, view: &str, version: u32) -> Result<Location, OfflineError> {
        self.root.below(&format!("quarantine/{view}/v{version}"))
    }

    pub(crate) fn extracts_location(&self, view: &str, version: u32) -> Result<Location, OfflineError> {
        self.root.below(&format!("extracts/{view}/v{version}"))
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
