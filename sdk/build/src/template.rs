use std::fs;
use std::path::{Path, PathBuf};

use crate::BuildError;

/// The files of a new crate: where they go, and what is in them. `{{name}}` and `{{sdk}}` are filled in.
const FILES: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("../template/Cargo.toml.template")),
    ("src/lib.rs", include_str!("../template/src/lib.rs")),
    ("clippy.toml", include_str!("../template/clippy.toml")),
    ("README.md", include_str!("../template/README.md")),
    (".gitignore", include_str!("../template/gitignore")),
];

/// Words of the language cannot name a function.
const KEYWORDS: [&str; 52] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
    "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct", "super", "test", "trait",
    "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// Names that the template or the language's own crates use already.
const TAKEN: [&str; 7] = ["std", "core", "alloc", "proc_macro", "eadem", "eadem_sdk", "tests"];

/// Where a new crate finds the SDK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SdkLocation {
    /// A folder that holds the package `eadem-sdk`; absolute, or relative to the new crate.
    Path(PathBuf),
    /// A git repository that holds it.
    Git {
        /// The repository.
        url: String,
        /// A commit, if not the newest.
        rev: Option<String>,
    },
}

impl SdkLocation {
    /// As in a dependency's braces.
    fn in_toml(&self) -> String {
        match self {
            Self::Path(path) => format!("path = {}", toml_string(&path.to_string_lossy())),
            Self::Git { url, rev: None } => format!("git = {}", toml_string(url)),
            Self::Git { url, rev: Some(rev) } => format!("git = {}, rev = {}", toml_string(url), toml_string(rev)),
        }
    }
}

/// A basic string of TOML.
fn toml_string(text: &str) -> String {
    let escape = |character: char| match character {
        '"' | '\\' => format!("\\{character}"),
        control if control.is_control() => format!("\\u{:04X}", u32::from(control)),
        other => other.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

/// Writes a crate that builds and tests at once into the new folder `dir/name`, and returns that folder.
///
/// # Errors
/// [`BuildError::BadName`] where the name is not lower-case letters, digits and `_`, or is taken;
/// [`BuildError::Io`] where the folder is there already or cannot be written. Nothing is left half-written.
pub fn new_crate(dir: &Path, name: &str, sdk: &SdkLocation) -> Result<PathBuf, BuildError> {
    check_name(name)?;
    let crate_dir = dir.join(name);
    if crate_dir.exists() {
        let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(BuildError::Io { doing: format!("making {}", crate_dir.display()), source: exists });
    }
    fs::create_dir_all(dir).map_err(BuildError::io(format!("making {}", dir.display())))?;
    let scratch = tempfile::Builder::new()
        .prefix(".eadem-new-")
        .tempdir_in(dir)
        .map_err(BuildError::io(format!("writing in {}", dir.display())))?;
    // A folder inside, because the temporary one is for its owner's eyes only.
    let finished = scratch.path().join(name);
    for (place, text) in FILES {
        let path = finished.join(place);
        let doing = format!("writing {}", crate_dir.join(place).display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(BuildError::io(&*doing))?;
        }
        let filled = text.replace("{{name}}", name).replace("{{sdk}}", &sdk.in_toml());
        fs::write(&path, filled).map_err(BuildError::io(&*doing))?;
    }
    fs::rename(&finished, &crate_dir).map_err(BuildError::io(format!("making {}", crate_dir.display())))?;
    Ok(crate_dir)
}

fn check_name(name: &str) -> Result<(), BuildError> {
    let refuse = |reason: &str| Err(BuildError::BadName { name: name.to_owned(), reason: reason.to_owned() });
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase());
    let goes_on_well = name.chars().all(|each| each.is_ascii_lowercase() || each.is_ascii_digit() || each == '_');
    if !starts_well || !goes_on_well {
        return refuse("use lower-case letters, digits and _, starting with a letter");
    }
    if name.len() > 64 {
        return refuse("use at most 64 characters");
    }
    if KEYWORDS.contains(&name) || TAKEN.contains(&name) {
        return refuse("the word means something else already");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_that_cannot_be_are_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "Weather", "2fast", "my-weather", "fn", "std", "../up", "wetter_ü", &"x".repeat(65)] {
            let refused = new_crate(dir.path(), name, &SdkLocation::Path("sdk".into()));
            assert!(matches!(refused, Err(BuildError::BadName { .. })), "{name}: {refused:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("weather")).unwrap();
        let refused = new_crate(dir.path(), "weather", &SdkLocation::Path("sdk".into()));
        assert!(matches!(refused, Err(BuildError::Io { .. })), "{refused:?}");
        assert_eq!(fs::read_dir(dir.path().join("weather")).unwrap().count(), 0);
    }

    #[test]
    fn every_file_is_filled_in() {
        let dir = tempfile::tempdir().unwrap();
        let git = SdkLocation::Git { url: "https://example.org/eadem.git".to_owned(), rev: Some("abc\"d".to_owned()) };
        let crate_dir = new_crate(dir.path(), "weather", &git).unwrap();
        for (place, _) in FILES {
            let text = fs::read_to_string(crate_dir.join(place)).unwrap();
            assert!(!text.contains("{{"), "{place}: {text}");
        }
        let manifest = fs::read_to_string(crate_dir.join("Cargo.toml")).unwrap();
        assert!(manifest.contains(r#"{ git = "https://example.org/eadem.git", rev = "abc\"d" }"#), "{manifest}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
