//! Which files of the server's machine somebody may name who is let in over a network.

use std::path::{Component, Path, PathBuf};

/// The folder of a project, and what in it or anywhere else is not the project's: the server's own files, and other projects'.
pub struct ProjectFiles {
    folder: PathBuf,
    others: Vec<PathBuf>,
    touches_stores: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl ProjectFiles {
    /// Files in `folder`, but not in `others`, and no place, path or URL, that `touches_stores` says is in the server's stores or
    /// has them in it.
    pub fn new(folder: &Path, others: &[&Path], touches_stores: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let others = others.iter().map(|other| real(other)).collect();
        Self { folder: real(folder), others, touches_stores: Box::new(touches_stores) }
    }

    /// Whether this file, or one of this name, may be read and written, with all that is in it if it is a folder. Buckets have
    /// guards of their own.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) fn check(&self, file: &str) -> Result<(), String> {
        let not_yours = || Err(format!("`{file}` is where the server keeps its own files, or those of other projects"));
        if OBJECT_STORES.iter().any(|scheme| file.starts_with(scheme)) {
            return if (self.touches_stores)(file) { not_yours() } else { Ok(()) };
        }
        let elsewhere = || format!("`{file}` is not in the project's folder");
        // A URL of any other kind, however it is written: what reads it later may see a file in it where nothing here does.
        if file.contains("://") {
            return Err(elsewhere());
        }
        let path = Path::new(file);
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(elsewhere());
        }
        let path = real(&self.folder.join(path));
        if !path.starts_with(&self.folder) || is_link(&path) {
            return Err(elsewhere());
        }
        // Who reads a folder reads what is in it.
        let touches = |other: &PathBuf| path.starts_with(other) || other.starts_with(&path);
        if self.others.iter().any(touches) || (self.touches_stores)(&path.to_string_lossy()) {
            return not_yours();
        }
        Ok(())
    }
}

/// How places in object stores are written. Capitals or spaces before them are another text, and refused.
const OBJECT_STORES: [&str; 2] = ["s3://", "s3a://"];

/// The path without links, as far as they lead somewhere.
fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) else { continue };
        return real.join(rest);
    }
    path.to_owned()
}

/// Whether the path, or a folder on its way, is a link still: one that leads nowhere yet.
fn is_link(real: &Path) -> bool {
    real.ancestors().any(Path::is_symlink)
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
        std::os::unix::fs::symlink(elsewhere.path().join("none"), folder.path().join("dangling")).unwrap();
        let files = ProjectFiles::new(folder.path(), &[&own, &folder.path().join("projects")], |place| {
            place.starts_with("s3://lake/eadem") || place.ends_with("history")
        });
        let inside = folder.path().join("sets/may.parquet");
        let in_store = ["s3://lake/may.parquet", "s3a://lake/may.parquet"];
        for fit in ["may.parquet", "sets/may.parquet", inside.to_str().unwrap()].into_iter().chain(in_store) {
            assert_eq!(files.check(fit), Ok(()), "{fit}");
        }
        let outside = elsewhere.path().join("x.parquet");
        let inside_url = format!("file://{}", inside.display());
        for unfit in [
            outside.to_str().unwrap(),
            "/etc/passwd",
            "../x.parquet",
            "sets/../../x.parquet",
            "link/x.parquet",
            ".",
            folder.path().to_str().unwrap(),
            "history",
            "s3://lake/eadem/views/v/v1/x.parquet",
            ".eadem/registry.sqlite",
            "projects/fraud/x.parquet",
            "dangling/x.parquet",
            "file:///etc/passwd",
            "FILE:///etc/passwd",
            " file:///etc/passwd",
            "fi\tle:///etc/passwd",
            "\u{1}file:///etc/passwd",
            "file://localhost/etc/passwd",
            "memory:///x.parquet",
            "http://elsewhere/x.parquet",
            "S3://lake/may.parquet",
            " s3://lake/may.parquet",
            inside_url.as_str(),
        ] {
            assert!(files.check(unfit).is_err(), "{unfit}");
        }
    }
}
