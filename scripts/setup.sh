#!/usr/bin/env bash
# Makes sure that the store and its transforms can be compiled here. Installs what is missing where that is possible
# (rustup's target, or packages with apt-get as root or by sudo), and says what to install where it is not.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=packages.sh
source scripts/packages.sh

readonly RUSTC_MIN_MINOR=95
readonly GUEST_TARGET=wasm32-unknown-unknown
readonly GUEST_PACKAGES=(rustc-web cargo-web rust-web-src)

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

minor_version() { # of `1.95.0-nightly`: 95
  local version=${1#1.}
  printf '%s' "${version%%.*}"
}
release_of() { "$1" -vV 2>/dev/null | sed -n 's/^release: //p'; }
is_new_enough() {
  local release
  release=$(release_of "$1")
  [[ $release == 1.* && $(minor_version "$release") -ge $RUSTC_MIN_MINOR ]]
}

check_host_toolchain() {
  if ! has cargo || ! has rustc; then
    fail "no Rust toolchain found; install Rust 1.$RUSTC_MIN_MINOR or newer from https://rustup.rs and run this again"
  fi
  if ! is_new_enough rustc; then
    fail "rustc $(release_of rustc) is too old; Rust 1.$RUSTC_MIN_MINOR or newer is needed: rustup update stable"
  fi
}

check_c_compiler() {
  { has cc || has gcc || has clang; } && return
  if can_install_packages; then
    install_packages gcc libc6-dev
    return
  fi
  fail "no C compiler found (SQLite and zstd are compiled from C); install gcc or clang and run this again"
}

# Whether this compiler can make WebAssembly: with its own library for the target, or with the sources to build one.
serves_guests() {
  local rustc=$1 sysroot
  has "$rustc" && is_new_enough "$rustc" || return 1
  sysroot=$("$rustc" --print sysroot)
  compgen -G "$sysroot/lib/rustlib/$GUEST_TARGET/lib/libstd-*.rlib" >/dev/null && return
  [[ -e $sysroot/lib/rustlib/src/rust/library/std/Cargo.toml ]] && has_wasm_linker
}
has_wasm_linker() {
  local host sysroot
  host=$(rustc -vV | sed -n 's/^host: //p')
  sysroot=$(rustc --print sysroot)
  [[ -x $sysroot/lib/rustlib/$host/bin/rust-lld ]] || has rust-lld || has wasm-ld ||
    [[ -n $(compgen -c wasm-ld-) ]]
}
has_guest_toolchain() {
  if [[ -n ${EADEM_GUEST_RUSTC:-} ]]; then
    serves_guests "$EADEM_GUEST_RUSTC"
  else
    serves_guests rustc || serves_guests /usr/bin/rustc
  fi
}

check_guest_toolchain() {
  has_guest_toolchain && return
  if [[ -n ${EADEM_GUEST_RUSTC:-} ]]; then
    fail "EADEM_GUEST_RUSTC names $EADEM_GUEST_RUSTC, which cannot compile for $GUEST_TARGET:" \
      "it needs Rust 1.$RUSTC_MIN_MINOR or newer with that target, or with the library sources and a linker (rust-lld or wasm-ld)"
  fi
  if has rustup; then
    say "adding $GUEST_TARGET with rustup"
    timeout 300 rustup target add "$GUEST_TARGET" >/dev/null 2>&1 || say "rustup cannot reach its server"
    has_guest_toolchain && return
  fi
  if can_install_packages; then
    install_packages "${GUEST_PACKAGES[@]}" || say "apt-get has no ${GUEST_PACKAGES[*]}"
    has_guest_toolchain && return
    has_wasm_linker || install_packages lld || true
    has_guest_toolchain && return
  fi
  fail "no toolchain here compiles for $GUEST_TARGET, which transforms are built for. Any one of these gives you one:" \
    "  rustup target add $GUEST_TARGET" \
    "  rustup component add rust-src" \
    "  apt-get install --no-install-recommends ${GUEST_PACKAGES[*]} lld    (Debian, Ubuntu; as root)" \
    "EADEM_GUEST_RUSTC=/path/to/rustc picks one compiler."
}

check_host_toolchain
check_c_compiler
check_guest_toolchain
say "everything is here"
