#!/usr/bin/env bash
# Compiles the programs as they are run in production, into target/release.
#
# TARGET_CPU says for which processors. On x86-64 it is x86-64-v3, which all have that were made for servers since 2015;
# TARGET_CPU=x86-64 compiles for those of 2003 too. A machine that does not have it compiles for its own kind. Elsewhere, and
# with an empty TARGET_CPU, the compiler's choice holds.
set -euo pipefail
cd "$(dirname "$0")/.."

has_v3() {
  local flags
  flags=" $(sed -n '/^flags/{p;q}' /proc/cpuinfo 2>/dev/null) "
  [[ $flags == *' avx2 '* && $flags == *' bmi2 '* && $flags == *' fma '* && $flags == *' movbe '* ]]
}

if [[ -z ${TARGET_CPU+is-set} && $(uname -m) == x86_64 ]]; then
  # Programs that only the compilation runs are compiled alike.
  if has_v3; then TARGET_CPU=x86-64-v3; else TARGET_CPU=native; fi
fi
if [[ -n ${TARGET_CPU:-} ]]; then
  export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }-C target-cpu=$TARGET_CPU"
fi
exec "${CARGO:-cargo}" build --locked --release --workspace --bins
