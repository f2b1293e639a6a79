#!/usr/bin/env bash
# A real S3 server for tests: MinIO, which decides conditional writes under a lock. It is built once from its Go module into
# target/services (minutes); nothing of it is linked into the store or handed on with it.
#
#   tests/services/s3.sh build           build the server, unless it is there
#   tests/services/s3.sh run DIR PORT    serve the bucket `test` from DIR on 127.0.0.1:PORT; says `ready` on standard output,
#                                        and ends when standard input does
#
# Its credentials are test-access and test-secret-key. Its log is DIR/log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../../scripts/packages.sh
source "$root/scripts/packages.sh"

readonly VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
readonly START_S=60
readonly services=${CARGO_TARGET_DIR:-$root/target}/services
readonly server=$services/minio-$VERSION

fail() {
  printf 's3.sh: %s\n' "$@" >&2
  exit 1
}

need_go() {
  command -v go >/dev/null 2>&1 && return
  if can_install_packages; then
    install_packages golang-go || true
    command -v go >/dev/null 2>&1 && return
  fi
  fail 'tests on object stores need Go 1.24 or newer, to build the server that they run against: https://go.dev/dl'
}

build() {
  [[ -x $server ]] && return
  need_go
  mkdir -p "$services"
  # Tests that start at the same time wait for one of them to build.
  exec 9>"$services/minio.lock"
  flock 9
  [[ -x $server ]] && return
  printf 'services: building an S3 server, once; this takes minutes\n' >&2
  local scratch
  scratch=$(mktemp -d "$services/build.XXXXXX")
  if ! GOBIN=$scratch go install -ldflags '-s -w' "github.com/minio/minio@$VERSION" >"$scratch/log" 2>&1; then
    tail -n 20 "$scratch/log" >&2
    fail "the S3 server could not be built; all that was said is in $scratch/log"
  fi
  mv "$scratch/minio" "$server"
  rm -rf -- "$scratch"
  exec 9>&-
}

is_ready() { # PORT
  local reply
  reply=$({
    exec 8<>"/dev/tcp/127.0.0.1/$1" &&
      printf 'GET /minio/health/ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&8 &&
      head -c 12 <&8
  } 2>/dev/null) || return 1
  [[ $reply == HTTP/1.?' 200' ]]
}

run() { # DIR PORT
  local dir=$1 port=$2
  [[ $port =~ ^[0-9]+$ ]] || fail "$port is no port"
  build
  # A folder of the server's is a bucket.
  mkdir -p "$dir/data/test"
  MINIO_ROOT_USER=test-access MINIO_ROOT_PASSWORD=test-secret-key MINIO_BROWSER=off MINIO_UPDATE=off GOMEMLIMIT=512MiB \
    "$server" server --quiet --address "127.0.0.1:$port" "$dir/data" </dev/null >"$dir/log" 2>&1 &
  process=$!
  trap 'kill "$process" 2>/dev/null; wait "$process" 2>/dev/null || true' EXIT
  local deadline=$((SECONDS + START_S))
  until is_ready "$port"; do
    if ! kill -0 "$process" 2>/dev/null || [[ $SECONDS -ge $deadline ]]; then
      tail -n 20 "$dir/log" >&2
      fail "the S3 server did not start; its log is $dir/log"
    fi
    sleep 0.1
  done
  printf 'ready\n'
  # The end of whoever started this ends it, however that comes.
  cat >/dev/null
}

case ${1:-} in
build) build ;;
run) [[ $# -eq 3 ]] || fail 'run takes a folder and a port' && run "$2" "$3" ;;
*) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2 && exit 2 ;;
esac
