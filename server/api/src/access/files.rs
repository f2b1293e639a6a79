//! Which files of the server's machine somebody may name who is let in over a network.

use std::path::{Component, Path, PathBuf};

/// The folder of a project, and what in it is not the project's: the server's own files, and other projects'.
#[derive(Debug, Clone)]
pub struct ProjectFiles {
    folder: PathBuf,
    others: Vec<PathBuf>,
}

impl ProjectFiles {
    /// Files in `folder`, but not in `others`.
    pub fn new(folder: &Path, others: &[&Path]) -> Self {
        Self { folder: real(folder), others: others.iter().map(|other| real(other)).collect() }
    }

    /// Whether this file, or one of this name, may be read and written. What is in an object store has guards of its own.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) fn check(&self, file: &str) -> Result<(), String> {
        if file.contains("://") && !file.starts_with("file:") {
            return Ok(());
        }
        let path = Path::new(file);
        let leads_back = path.components().any(|part| part == Component::ParentDir);
        let path = real(&self.folder.join(path));
        if leads_back || file.starts_with("file:") || !path.starts_with(&self.folder) {
            return Err(format!("`{file}` is not in the project's folder"));
        }
        if self.others.iter().any(|other| path.starts_with(other)) {
            return Err(format!("`{file}` is where the server keeps its own files, or those of other projects"));
        }
        Ok(())
    }
}

/// The path without links, as far as there is something; what is not there yet cannot be a link.
fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) else { continue };
        return real.join(rest);
    }
    path.to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_in_the_project_or_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let own = folder.path().join(".eadem");
        std::fs::create_dir_all(&own).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("link")).unwrap();
        let files = ProjectFiles::new(folder.path(), &[&own, &folder.path().join("projects")]);
        let inside = folder.path().join("sets/may.parquet");
        for fit in ["may.parquet", "sets/may.parquet", inside.to_str().unwrap(), "s3://lake/may.parquet"] {
            assert_eq!(files.check(fit), Ok(()), "{fit}");
        }
        let outside = elsewhere.path().join("x.parquet");
        for unfit in [
            outside.to_str().unwrap(),
            "/etc/passwd",
            "../x.parquet",
            "sets/../../x.parquet",
            "link/x.parquet",
            ".eadem/registry.sqlite",
            "projects/fraud/x.parquet",
            "file:///etc/passwd",
        ] {
            assert!(files.check(unfit).is_err(), "{unfit}");
        }
    }
}
