#!/usr/bin/env bash
# Measures the bars of the project (all, or those named) and writes target/bench/results.json.
#
# F2 to F5 are the engine's. F1, F6 and F7 are of whole processes; each needs something of its own first.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target_dir=${CARGO_TARGET_DIR:-target}
readonly payments=target/bench/payments
readonly venv=target/bench/venv
readonly generator_packages=('numpy>=2' 'pyarrow>=16')

engine_bars=()
system_bars=()
for bar in "$@"; do
  case "$bar" in
  --bar) ;;
  F[2-5] | F[2-5].*) engine_bars+=("$bar") ;;
  F1 | F6 | F6.* | F7) system_bars+=("${bar%%.*}") ;;
  *)
    printf 'error: there is no bar %s; the bars are F1 to F7\n' "$bar" >&2
    exit 1
    ;;
  esac
done
if [[ ${#engine_bars[@]} -eq 0 && ${#system_bars[@]} -eq 0 ]]; then
  engine_bars=(F2 F3 F4 F5)
  system_bars=(F1 F6 F7)
fi

build_components() {
  local crates texts
  "$cargo" build --locked --release --package eadem-build
  mapfile -t crates < <(find transforms -mindepth 2 -maxdepth 2 -name Cargo.toml -printf '%h\n' | sort)
  mapfile -t texts < <(find transforms -path '*/target' -prune -o -name '*.wat' -print | sort)
  "$target_dir/release/eadem-build" --quiet --out target/components "${crates[@]}" "${texts[@]}"
}

# `meta.json` is written last, so it marks a whole data set.
make_payments() {
  [[ -e $payments/meta.json ]] && return
  if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c 'import numpy, pyarrow' 2>/dev/null; then
    if ! python3 -m venv "$venv"; then
      printf 'error: F6 makes its data with Python; install python3 with venv (Debian, Ubuntu: apt-get install python3-venv)\n' >&2
      exit 1
    fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${generator_packages[@]}"
  fi
  rm -rf -- "$payments"
  "$venv/bin/python" benches/peers/gen.py --out "$payments"
}

prepare() { # what one bar of whole processes needs
  case "$1" in
  F1) "$cargo" build --locked --package eadem ;;
  F6) make_payments ;;
  # The test's engine compiles with the product's own binary.
  F7) "$cargo" build --locked --package eadem ;;
  esac
}

build_components
if [[ ${#engine_bars[@]} -gt 0 ]]; then
  "$cargo" build --locked --release --package eadem-benches
  "$target_dir/release/eadem-benches" "${engine_bars[@]}"
fi
if [[ ${#system_bars[@]} -gt 0 ]]; then
  for bar in "${system_bars[@]}"; do prepare "$bar"; done
  "$cargo" build --locked --release --package eadem-benches-system
  "$target_dir/release/eadem-benches-system" "${system_bars[@]}"
fi
