#!/usr/bin/env bash
# Compiles every crate and every .wat text in transforms/ to a component in target/components, with the builder that
# `make build` left, or with another (EADEM_BUILD=…).
set -euo pipefail
cd "$(dirname "$0")/.."

target_dir=${CARGO_TARGET_DIR:-target}
mapfile -t crates < <(find transforms -mindepth 2 -maxdepth 2 -name Cargo.toml -printf '%h\n' | sort)
mapfile -t texts < <(find transforms -path '*/target' -prune -o -name '*.wat' -print | sort)
exec "${EADEM_BUILD:-$target_dir/debug/eadem-build}" --cargo-arg --locked --out target/components "${crates[@]}" "${texts[@]}"
