use std::path::{Path, PathBuf};

use crate::BuildError;

/// Where a new crate finds the SDK.
#[derive(Debug, Clone)]
pub enum SdkLocation {
    /// A folder that holds the package `eadem-sdk`.
    Path(PathBuf),
}

/// Not yet.
pub fn new_crate(_dir: &Path, _name: &str, _sdk: &SdkLocation) -> Result<(), BuildError> {
    Ok(())
}
