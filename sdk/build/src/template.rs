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

/// Names that the template, the SDK's prelude or the language's own crates use already.
const TAKEN: [&str; 8] = ["std", "core", "alloc", "proc_macro", "eadem", "eadem_sdk", "tests", "math"];

/// Types of the language: one of the function's name would hide them.
const TYPES: [&str; 17] = [
    "bool", "char", "str", "i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize",
    "f32", "f64",
];

/// The longest name that a store takes.
const NAME_BYTES_MAX: usize = 63;

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
    /// The SDK in `sdk`, as the crate that [`new_crate`] makes in `dir` finds it: by a relative path where one checkout
    /// holds both, so that the crate also builds in another clone, else by an absolute one.
    ///
    /// # Errors
    /// [`BuildError::NoSdk`] where the folder does not hold the package `eadem-sdk`.
    pub fn folder(sdk: &Path, dir: &Path) -> Result<Self, BuildError> {
        let no_sdk = |reason: &str| BuildError::NoSdk { path: sdk.to_owned(), reason: reason.to_owned() };
        let manifest = fs::read_to_string(sdk.join("Cargo.toml")).map_err(|_| no_sdk("it holds no Cargo.toml"))?;
        if !manifest.lines().any(|line| line.replace(' ', "") == "name=\"eadem-sdk\"") {
            return Err(no_sdk("its Cargo.toml is of another package than eadem-sdk"));
        }
        let sdk = sdk.canonicalize().map_err(|error| no_sdk(&error.to_string()))?;
        let Some(dir) = resolved(dir) else { return Ok(Self::Path(sdk)) };
        match (repository_of(&sdk), repository_of(&dir)) {
            // The crate is a folder in `dir`.
            (Some(one), Some(other)) if one == other => Ok(Self::Path(Path::new("..").join(relative(&dir, &sdk)))),
            _ => Ok(Self::Path(sdk)),
        }
    }

    /// As in a dependency's braces.
    fn in_toml(&self) -> String {
        match self {
            Self::Path(path) => format!("path = {}", toml_string(&path.to_string_lossy())),
            Self::Git { url, rev: None } => format!("git = {}", toml_string(url)),
            Self::Git { url, rev: Some(rev) } => format!("git = {}, rev = {}", toml_string(url), toml_string(rev)),
        }
    }
}

/// The folder without links and dots, also where its last parts are not made yet.
fn resolved(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists())?;
    let missing = absolute.strip_prefix(existing).ok()?;
    Some(existing.canonicalize().ok()?.join(missing))
}

/// The checkout that a folder lies in.
fn repository_of(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|ancestor| ancestor.join(".git").exists())
}

/// The way from one folder to another; both are resolved.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let shared = from.ancestors().find(|ancestor| to.starts_with(ancestor)).unwrap_or(Path::new(""));
    let up = from.strip_prefix(shared).unwrap_or(from).components().map(|_| Path::new(".."));
    up.chain([to.strip_prefix(shared).unwrap_or(to)]).collect()
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
    if name.len() > NAME_BYTES_MAX {
        return refuse("use at most 63 characters");
    }
    if TYPES.contains(&name) {
        return refuse("it is a type of the language, which a function of that name would hide");
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
        let too_long = "x".repeat(64);
        for name in ["", "Weather", "2fast", "my-weather", "fn", "std", "bool", "math", "../up", "wetter_ü", &too_long]
        {
            let refused = new_crate(dir.path(), name, &SdkLocation::Path("sdk".into()));
            assert!(matches!(refused, Err(BuildError::BadName { .. })), "{name}: {refused:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_longest_name_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        new_crate(dir.path(), &"x".repeat(63), &SdkLocation::Path("sdk".into())).unwrap();
    }

    fn fake_sdk(folder: &Path, package: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("Cargo.toml"), format!("[package]\nname = \"{package}\"\n")).unwrap();
    }

    #[test]
    fn the_sdk_of_the_same_checkout_is_found_by_a_relative_path() {
        let dir = tempfile::tempdir().unwrap();
        let checkout = dir.path().canonicalize().unwrap().join("checkout");
        fs::create_dir_all(checkout.join(".git")).unwrap();
        let sdk = checkout.join("sdk/rust");
        fake_sdk(&sdk, "eadem-sdk");

        // The crate's own folder is one more, and neither is made yet.
        let inside = SdkLocation::folder(&sdk, &checkout.join("my/transforms")).unwrap();
        assert_eq!(inside, SdkLocation::Path("../../../sdk/rust".into()));
        let crate_dir = new_crate(&checkout.join("my/transforms"), "weather", &inside).unwrap();
        assert_eq!(crate_dir.join("../../../sdk/rust").canonicalize().unwrap(), sdk);

        let outside = SdkLocation::folder(&sdk, dir.path()).unwrap();
        assert_eq!(outside, SdkLocation::Path(sdk));
    }

    #[test]
    fn a_folder_without_the_sdk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fake_sdk(&dir.path().join("other"), "eadem-sdk-macros");
        for (folder, reason) in [("nowhere", "holds no Cargo.toml"), ("other", "of another package")] {
            let refused = SdkLocation::folder(&dir.path().join(folder), dir.path()).unwrap_err().to_string();
            assert!(refused.contains(reason) && refused.contains("sdk/rust"), "{refused}");
        }
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
