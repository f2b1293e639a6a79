#!/usr/bin/env bash
# Licences, bans and sources by cargo-deny, and advisories where the advisory database can be reached.
# Without cargo-deny (`cargo install cargo-deny --locked`) the tests still check licences, bans and sources by the same
# deny.toml (tests/it/dependencies.rs); with `--beside-tests` they are not run here, because they run anyway.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}

if ! "$cargo" deny --version >/dev/null 2>&1; then
  printf 'deny: cargo-deny is not installed; licences, bans and sources are checked by the tests instead\n'
  if [[ ${1:-} != --beside-tests ]]; then
    "$cargo" test --quiet --locked --workspace --test system dependencies
  fi
  printf 'deny: advisories NOT CHECKED, for want of cargo-deny: cargo install cargo-deny --locked\n'
  exit 0
fi
for manifest in Cargo.toml transforms/Cargo.toml; do
  "$cargo" deny --manifest-path "$manifest" check licenses bans sources
done
if ! timeout 120 "$cargo" deny fetch db >/dev/null 2>&1; then
  printf 'deny: advisories NOT CHECKED, the advisory database cannot be reached\n'
  exit 0
fi
for manifest in Cargo.toml transforms/Cargo.toml; do
  "$cargo" deny --manifest-path "$manifest" check advisories
done
