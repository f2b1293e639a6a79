#!/usr/bin/env bash
# Compiles the programs as they run in production, into target/release.
#
# On x86-64 they use what nearly every processor since 2015 has (AVX2, BMI2, FMA: the level that is called x86-64-v3), where
# this machine has it, too. EADEM_TARGET_CPU names another processor, as rustc does: `x86-64` runs on any, `native` on this one.
# RUSTFLAGS, where they are set, decide instead. No flag changes a value: what is computed runs in components.
set -euo pipefail
cd "$(dirname "$0")/.."

has_v3() {
  local flag
  for flag in avx2 bmi1 bmi2 f16c fma abm movbe; do
    grep -qw "$flag" /proc/cpuinfo 2>/dev/null || return 1
  done
}

target_cpu=${EADEM_TARGET_CPU:-}
if [[ -z $target_cpu && $(uname -m) == x86_64 ]] && has_v3; then
  target_cpu=x86-64-v3
fi
if [[ -n $target_cpu && -z ${RUSTFLAGS:-} ]]; then
  export RUSTFLAGS="-C target-cpu=$target_cpu"
fi
# All at once: each selection of packages would compile DataFusion with features of its own.
exec "${CARGO:-cargo}" build --locked --release --workspace --bins
