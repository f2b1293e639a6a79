#!/usr/bin/env bash
# Measures the bars of the project (all, or the one named) and writes target/bench/results.json.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target_dir=${CARGO_TARGET_DIR:-target}
"$cargo" build --locked --release --package eadem-benches --package eadem-build
mapfile -t crates < <(find transforms -mindepth 2 -maxdepth 2 -name Cargo.toml -printf '%h\n' | sort)
mapfile -t texts < <(find transforms -path '*/target' -prune -o -name '*.wat' -print | sort)
"$target_dir/release/eadem-build" --quiet --out target/components "${crates[@]}" "${texts[@]}"
exec "$target_dir/release/eadem-benches" "$@"
