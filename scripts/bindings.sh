#!/usr/bin/env bash
# Makes the SDK's bindings from the contract in wit/ again: sdk/rust/src/bindings.rs. They are kept ready-made, so that no
# author compiles the generator. A test says when wit/ has changed and this is to be run.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
readonly bindings=sdk/rust/src/bindings.rs
contract=$(cat wit/*.wit | sha256sum | cut -d ' ' -f 1)
generated=$(CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/bindings \
  "$cargo" run --locked --quiet --manifest-path sdk/bindings/Cargo.toml -- wit)
printf '// The bindings of wit/ (sha256:%s), made by scripts/bindings.sh.\n%s\n' "$contract" "$generated" >"$bindings"
printf 'bindings: wrote %s\n' "$bindings"
