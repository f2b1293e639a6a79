use std::path::PathBuf;

/// Why a crate did not become a component. Every message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No toolchain on this machine compiles for `wasm32-unknown-unknown`.
    #[error("{0}")]
    NoToolchain(String),

    /// The folder holds no crate that cargo can read.
    #[error("{} is not a crate that cargo can build: {reason}", path.display())]
    NotACrate {
        /// The folder as given.
        path: PathBuf,
        /// What cargo said.
        reason: String,
    },

    /// The crate has no library of type `cdylib`.
    #[error(
        "package `{package}` makes no component: add to its Cargo.toml\n\n    [lib]\n    crate-type = [\"cdylib\", \"rlib\"]\n"
    )]
    NoCdylib {
        /// The package's name.
        package: String,
    },

    /// One component was asked for, and the crate makes a family of them.
    #[error(
        "{package} makes {} components; name one of their files: {}",
        components.len(),
        components.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    SeveralComponents {
        /// The crate's folder as given.
        package: String,
        /// Where each component was written.
        components: Vec<PathBuf>,
    },

    /// The compiler refused the crate.
    #[error("the crate does not compile for {target}{}", said(.diagnostics), target = crate::TARGET)]
    Compile {
        /// What cargo and the compiler printed; empty where it went to standard error as progress.
        diagnostics: String,
    },

    /// The compiled module is not a transform.
    #[error("`{name}` compiled, but is not a transform: {reason}")]
    NotATransform {
        /// The component's name.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },

    /// `eadem new` was asked for a name that cannot name a crate.
    #[error("`{name}` cannot name a transform: {reason}")]
    BadName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A folder does not hold the SDK.
    #[error("{} is not the SDK for Rust: {reason}; it is `sdk/rust` of an eadem checkout", path.display())]
    NoSdk {
        /// The folder as given.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },

    /// A file or process could not be used.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
}

fn said(diagnostics: &str) -> String {
    if diagnostics.is_empty() {
        "; the compiler's messages stand above".to_owned()
    } else {
        format!(":\n{diagnostics}")
    }
}

impl BuildError {
    /// Adapter for `map_err`: keeps what was being done beside the system's error.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
