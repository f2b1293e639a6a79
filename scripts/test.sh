#!/usr/bin/env bash
# The whole test suite: formatting, the workspace, the transforms' own tests, dependencies. `make test` builds the
# components first. clippy needs every dependency a second time, so only `make lint` runs it.
# Ends with the number of tests that passed; exit code 0 only if none failed.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
mkdir -p target
readonly log=target/test.log
: >"$log"
failures=0

step() {
  printf '\n== %s\n' "$1" | tee -a "$log"
  shift
  "$@" 2>&1 | tee -a "$log" || failures=$((failures + 1))
}

if "$cargo" fmt --version >/dev/null 2>&1; then
  step "format" "$cargo" fmt --all --check
  step "format of the transforms" "$cargo" fmt --all --check --manifest-path transforms/Cargo.toml
else
  printf 'format: NOT CHECKED, rustfmt is not installed\n' | tee -a "$log"
fi
step "workspace" "$cargo" test --locked --workspace --no-fail-fast
step "transforms" "$cargo" test --locked --workspace --lib --no-fail-fast --manifest-path transforms/Cargo.toml
step "licences, bans, sources, advisories" scripts/deny.sh --beside-tests

sum_of() { # of the numbers before this word in cargo's summaries
  awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" word) total += $(i - 1) } END { print total + 0 }' "$log"
}
grep 'NOT CHECKED' "$log" || true
printf '\n%s passed, %s failed, %s ignored\n' "$(sum_of passed)" "$(sum_of failed)" "$(sum_of ignored)"
if [[ $failures -gt 0 ]]; then
  printf '%s of the steps above failed\n' "$failures" >&2
  grep -E '^test .* FAILED$|^error(\[|:)' "$log" | sort -u >&2 || true
  exit 1
fi
