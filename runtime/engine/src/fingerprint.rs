//! Which engine computed a value: its version, its flags, its processor's features, the contract.

use std::hash::{Hash, Hasher};

use wasmtime::Engine;

use crate::call::CONTRACT_VERSION;

/// Changes when the host's side of a call changes what a component sees or what becomes of its answer.
const HOST_VERSION: u32 = 1;

/// One line that is equal on two hosts exactly if artefacts of one could run on the other and give the same bits.
pub(crate) fn of(engine: &Engine) -> String {
    let mut flags = FlagHasher(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut flags);
    let flags = flags.0.finalize().to_hex();
    let (architecture, system) = (std::env::consts::ARCH, std::env::consts::OS);
    let features = processor_features().join("+");
    format!(
        "eadem-engine/{HOST_VERSION} wasmtime/{} contract/{CONTRACT_VERSION} {architecture}-{system} cpu/{features} \
         flags/{}",
        wasmtime_version(),
        &flags[..16]
    )
}

/// The version that this build is locked to; the flags' hash carries the one that is linked.
fn wasmtime_version() -> &'static str {
    env!("EADEM_WASMTIME_VERSION")
}

/// Feeds whatever is hashed to BLAKE3, which, unlike the standard hasher, means the same in every build.
struct FlagHasher(blake3::Hasher);

impl Hasher for FlagHasher {
    fn finish(&self) -> u64 {
        let hash = self.0.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(first)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

#[cfg(target_arch = "x86_64")]
fn processor_features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let known = detected!(
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "avx",
        "avx2",
        "fma",
        "bmi1",
        "bmi2",
        "lzcnt",
        "avx512f",
        "avx512dq",
        "avx512vl",
        "avx512bitalg",
        "avx512vbmi"
    );
    known.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_features() -> Vec<&'static str> {
    vec!["base"]
}
