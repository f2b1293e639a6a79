#!/usr/bin/env bash
# Measures the bars of the project (all, or those named) and writes target/bench/results.json. A bar that cannot be
# prepared, or fails, does not keep the others from being measured; the exit code is 1 in the end.
#
# F2 to F5 are the engine's. F1, F6, F7, H1 to H9, R1 to R7 and S1 to S10 are of whole processes; each needs something
# of its own first.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=packages.sh
source scripts/packages.sh

cargo=${CARGO:-cargo}
target_dir=${CARGO_TARGET_DIR:-target}
readonly venv=target/bench/venv
# Feast asks for older packages than the other peers.
readonly feast_venv=target/bench/venv-feast
readonly generator_packages=('numpy>=2' 'pyarrow>=16')
readonly peer_packages=('duckdb>=1.4' 'polars>=1.35')
readonly feast_packages=('feast[duckdb,redis]==0.67.*')

engine_bars=()
system_bars=()
for bar in "$@"; do
  case "$bar" in
  --bar) ;;
  F[2-5] | F[2-5].*) engine_bars+=("$bar") ;;
  F1 | F1.* | F6 | F6.* | F7 | H[1-9] | H[1-9].* | R[1-7] | R[1-7].* | S[1-9] | S[1-9].* | S10) system_bars+=("${bar%%.*}") ;;
  *)
    printf 'error: there is no bar %s; the bars are F1 to F7, H1 to H9, R1 to R7 and S1 to S10\n' "$bar" >&2
    exit 1
    ;;
  esac
done
if [[ ${#engine_bars[@]} -eq 0 && ${#system_bars[@]} -eq 0 ]]; then
  engine_bars=(F2 F3 F4 F5)
  system_bars=(F1 F6 F7 H1 H2 H3 H4 H5 H6 H7 H8 H9 R1 R2 R3 R4 R5 R6 R7 S1 S2 S3 S4 S5 S6 S7 S8 S9 S10)
fi

make_venv() { # folder
  python3 -m venv --clear "$1" 2>/dev/null && return
  if can_install_packages; then
    install_packages python3 python3-venv && python3 -m venv --clear "$1" && return
  fi
  printf 'error: data and peers need Python; install python3 with venv (Debian, Ubuntu: apt-get install python3-venv)\n' >&2
  return 1
}

# Python packages, where these modules are not there yet.
need_python() { # folder, modules, then packages
  local folder=$1 modules=$2
  shift 2
  [[ -x $folder/bin/python ]] && "$folder/bin/python" -c "import $modules" 2>/dev/null && return
  { [[ -x $folder/bin/python ]] || make_venv "$folder"; } &&
    "$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: "$@"
}

# `meta.json` is written last, so it marks a whole data set.
make_payments() { # name, arguments of the generator
  local folder=target/bench/$1
  shift
  [[ -e $folder/meta.json ]] && return
  need_python "$venv" numpy,pyarrow "${generator_packages[@]}" || return 1
  rm -rf -- "$folder"
  "$venv/bin/python" benches/peers/gen.py --out "$folder" "$@"
}

prepare() { # what one bar of whole processes needs
  case "$1" in
  F6 | S[1-3]) make_payments payments ;;
  S4) tests/services/cassandra.sh fetch && make_payments payments ;;
  S5) need_python "$feast_venv" feast,duckdb,redis "${feast_packages[@]}" && make_payments payments ;;
  H1) need_python "$venv" duckdb,polars "${peer_packages[@]}" && make_payments payments &&
    make_payments payments-skew --skew 3 && make_payments payments-seed --seed 7 ;;
  H2) need_python "$venv" duckdb,polars "${peer_packages[@]}" && make_payments payments ;;
  H5) need_python "$feast_venv" feast,duckdb,redis "${feast_packages[@]}" && make_payments payments ;;
  # The demonstration's data, and components.
  R3 | R6) ;;
  # It makes its own data: 6 GB for a while, 4 GB that stay.
  S6 | R1) ;;
  # 50 M rows: 4 GB of Parquet, and a table of 3 GB that is filled once.
  H6) make_payments payments-50m --events 50000000 --spine 0 ;;
  H3 | H7) make_payments payments && make_payments payments-50m --events 50000000 --spine 0 ;;
  # Of this one only the spine is used.
  H4) make_payments payments && make_payments spine-20m --events 300000 --spine 20000000 ;;
  # The demonstration, and what the tests run or compile with: the product's own binary, as `make build` leaves it.
  F1 | F7 | H8 | R2 | R5 | R7 | S8) "$cargo" build --locked --workspace ;;
  H9 | S7) tests/services/cassandra.sh fetch && "$cargo" build --locked --workspace ;;
  S10) tests/services/cassandra.sh fetch && tests/services/schemathesis.sh fetch && "$cargo" build --locked --workspace ;;
  esac
}

# All at once: each selection of packages would compile DataFusion with features of its own.
CARGO=$cargo scripts/release.sh
EADEM_BUILD="$target_dir/release/eadem-build" scripts/components.sh
failed=()
if [[ ${#engine_bars[@]} -gt 0 ]]; then
  for bar in "${engine_bars[@]}"; do
    "$target_dir/release/eadem-benches" "$bar" || failed+=("$bar")
  done
fi
if [[ ${#system_bars[@]} -gt 0 ]]; then
  for bar in "${system_bars[@]}"; do
    prepare "$bar" && "$target_dir/release/eadem-benches-system" "$bar" || failed+=("$bar")
  done
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'error: failed: %s\n' "${failed[*]}" >&2
  exit 1
fi
