//! Ahead-of-time artefacts on this host's disk.
//!
//! An artefact is machine code that the engine will run, so loading one is trusting it. Each file carries a keyed BLAKE3
//! hash over what it claims to be and all its bytes; the key never leaves this host. A file that is missing, was made by
//! another engine, or does not match is no artefact, and the compiler makes it anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use eadem_values::Digest;

use crate::config::EngineConfig;
use crate::flavour::Flavour;

const MAGIC: &[u8; 8] = b"eademaot";
const FORMAT_VERSION: u32 = 1;
const MAC_BYTES: usize = 32;
const HEADER_BYTES: usize = MAGIC.len() + size_of::<u32>() + MAC_BYTES;
const UNFINISHED_PREFIX: &str = ".unfinished-";
/// Far longer than anybody writes.
const ABANDONED_AFTER: Duration = Duration::from_secs(3_600);
const KEY_FILE: &str = "artifact.key";
const KEY_VARIABLE: &str = "EADEM_AOT_KEY";

/// The key that authenticates this host's artefacts.
pub(crate) struct ArtifactKey([u8; 32]);

impl ArtifactKey {
    /// The configured key, else that of the environment, else the one beside the artefacts, made now if there is none.
    pub(crate) fn open(config: &EngineConfig) -> Result<Self, String> {
        if let Some(digits) = &config.artifact_key_hex {
            return Self::parse(digits).map_err(|error| format!("artifact_key_hex: {error}"));
        }
        if let Some(digits) = std::env::var_os(KEY_VARIABLE) {
            let digits = digits.into_string().map_err(|_| format!("{KEY_VARIABLE} is not text"))?;
            return Self::parse(&digits).map_err(|error| format!("{KEY_VARIABLE}: {error}"));
        }
        let path = config.artifacts_dir.join(KEY_FILE);
        Self::read_or_make(&path).map_err(|error| format!("artefact key {}: {error}", path.display()))
    }

    fn parse(digits: &str) -> Result<Self, String> {
        let wrong = || "a key is 64 hexadecimal digits".to_owned();
        let bytes = hex::decode(digits.trim()).map_err(|_| wrong())?;
        bytes.try_into().map(Self).map_err(|_| wrong())
    }

    fn read_or_make(path: &Path) -> io::Result<Self> {
        match Self::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(path),
            outcome => outcome,
        }
    }

    fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("others may read or write it (mode {mode:o}); run chmod 600, or remove it to get a new one"),
            ));
        }
        let mut bytes = Vec::new();
        file.take(33).read_to_end(&mut bytes)?;
        let damaged =
            |_| io::Error::new(io::ErrorKind::InvalidData, "it does not hold 32 bytes; remove it to get a new one");
        bytes.try_into().map(Self).map_err(damaged)
    }

    fn make(path: &Path) -> io::Result<Self> {
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file =
            tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o600)).tempfile_in(directory)?;
        file.write_all(&key)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(Self(key)),
            // Another process was faster; its key is the one.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Self::read(path),
            Err(error) => Err(error.error),
        }
    }
}

/// The directory of artefacts of one engine.
pub(crate) struct ArtifactStore {
    directory: PathBuf,
    key: ArtifactKey,
    fingerprint: String,
}

/// Why a file in the store was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    Missing,
    Foreign,
    Forged,
}

impl ArtifactStore {
    /// Opens the directory, which is made if there is none.
    pub(crate) fn open(config: &EngineConfig, fingerprint: String) -> Result<Self, String> {
        let directory = config.artifacts_dir.clone();
        fs::create_dir_all(&directory).map_err(|error| format!("artifacts_dir {}: {error}", directory.display()))?;
        let key = ArtifactKey::open(config)?;
        remove_abandoned(&directory);
        Ok(Self { directory, key, fingerprint })
    }

    /// Where the artefact of this component stands.
    pub(crate) fn path(&self, digest: &Digest, flavour: Flavour) -> PathBuf {
        let engine = blake3::hash(self.fingerprint.as_bytes()).to_hex();
        self.directory.join(format!("{}-{}-{}.aot", digest.hex(), &engine[..16], flavour.name()))
    }

    /// The machine code of this component, if a file that this host has written holds it.
    pub(crate) fn read(&self, digest: &Digest, flavour: Flavour) -> Result<Authentic, Rejected> {
        let bytes = read_whole(&self.path(digest, flavour)).map_err(|_| Rejected::Missing)?;
        let has_our_header = bytes.len() > HEADER_BYTES
            && bytes[..MAGIC.len()] == *MAGIC
            && bytes[MAGIC.len()..MAGIC.len() + 4] == FORMAT_VERSION.to_le_bytes();
        if !has_our_header {
            return Err(Rejected::Foreign);
        }
        let written_mac: [u8; MAC_BYTES] =
            bytes[HEADER_BYTES - MAC_BYTES..HEADER_BYTES].try_into().map_err(|_| Rejected::Foreign)?;
        let mac = self.mac(digest, flavour, &bytes[HEADER_BYTES..]);
        // `blake3::Hash` compares in constant time.
        if mac != blake3::Hash::from_bytes(written_mac) {
            return Err(Rejected::Forged);
        }
        Ok(Authentic { bytes })
    }

    /// Stores machine code that the compiling child has made, all of it or none.
    pub(crate) fn write(&self, digest: &Digest, flavour: Flavour, code: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.directory)?;
        file.write_all(MAGIC)?;
        file.write_all(&FORMAT_VERSION.to_le_bytes())?;
        file.write_all(self.mac(digest, flavour, code).as_bytes())?;
        file.write_all(code)?;
        file.as_file().sync_all()?;
        file.persist(self.path(digest, flavour)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Binds the code to the component, the engine and the flavour, so that no valid file can stand in for another.
    fn mac(&self, digest: &Digest, flavour: Flavour, code: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key.0);
        let fingerprint_bytes = self.fingerprint.len() as u64;
        hasher
            .update(digest.as_bytes())
            .update(flavour.name().as_bytes())
            .update(&[0])
            .update(&fingerprint_bytes.to_le_bytes())
            .update(self.fingerprint.as_bytes())
            .update(code);
        hasher.finalize()
    }
}

/// Removes what a process left behind that died while it wrote. Another one may be writing now, so only old files go;
/// what cannot be removed only takes space.
fn remove_abandoned(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let is_unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX);
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        if is_unfinished && age.is_some_and(|age| age > ABANDONED_AFTER) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    // Never through a symbolic link: the directory holds files that this engine wrote.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |metadata| metadata.len() as usize + 1));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Machine code that this host has authenticated, in memory, where nobody can exchange it any more.
pub(crate) struct Authentic {
    bytes: Vec<u8>,
}

impl Authentic {
    pub(crate) fn code(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}
