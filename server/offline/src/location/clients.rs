//! One client for each bucket in a process, shared by all that read and write there.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::memory::InMemory;
use url::Url;

use super::disk::Disk;
use super::guarded::GuardedS3;
use super::profile::Variables;
use super::secret::Secrets;
use super::settings::{S3Settings, StoreLimits, StoreSetting};

/// What a scheme stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// The local disk.
    File,
    /// A bucket of a server that speaks S3.
    S3,
    /// This process's memory.
    Memory,
}

impl Scheme {
    pub(crate) fn of(url: &Url) -> Option<Self> {
        match url.scheme() {
            "file" => Some(Self::File),
            "s3" => Some(Self::S3),
            "memory" => Some(Self::Memory),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Clients {
    limits: StoreLimits,
    by_root: HashMap<String, Arc<dyn ObjectStore>>,
}

static CLIENTS: LazyLock<Mutex<Clients>> = LazyLock::new(Mutex::default);

/// Sets how long requests to object stores may take in this process. Clients that are already in use keep theirs.
pub fn limit_object_stores(limits: StoreLimits) {
    CLIENTS.lock().unwrap_or_else(PoisonError::into_inner).limits = limits;
}

/// The settings of S3 clients as this process has them, with their origins and without secrets.
///
/// # Errors
/// A setting that cannot be, in words.
pub fn s3_settings() -> Result<Vec<StoreSetting>, String> {
    Ok(S3Settings::resolve(&environment())?.shown())
}

/// The variables of this process, as far as they are text.
fn environment() -> Variables {
    let variables = std::env::vars_os();
    variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// The client for the root of this URL: the same one whenever it is asked for.
///
/// # Errors
/// Settings that do not fit, in words.
pub(crate) fn client_of(scheme: Scheme, url: &Url) -> Result<Arc<dyn ObjectStore>, String> {
    let root = format!("{}://{}", url.scheme(), url.authority());
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = clients.by_root.get(&root) {
        return Ok(client.clone());
    }
    let client: Arc<dyn ObjectStore> = match scheme {
        Scheme::File => Arc::new(Disk::default()),
        Scheme::Memory => Arc::new(InMemory::new()),
        Scheme::S3 => {
            let settings = S3Settings::resolve(&environment())?;
            let secrets = Secrets::default();
            let bucket = url.host_str().unwrap_or_default();
            let client = settings.client(bucket, clients.limits, &secrets)?;
            Arc::new(GuardedS3::new(client, bucket, settings.credentials_origin(), secrets))
        }
    };
    clients.by_root.insert(root, client.clone());
    Ok(client)
}
