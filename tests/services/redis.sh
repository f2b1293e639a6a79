#!/usr/bin/env bash
# A real Redis for measurements of peers that keep their features there. Installs the distribution's where there is none and
# that is possible.
#
#   tests/services/redis.sh run DIR PORT    serve on 127.0.0.1:PORT, with its log in DIR; says `ready` on standard output,
#                                           and ends when standard input does
#
# It keeps everything in memory and writes nothing to disk. Its log is DIR/log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../../scripts/packages.sh
source "$root/scripts/packages.sh"

readonly START_S=30

fail() {
  printf 'redis.sh: %s\n' "$@" >&2
  exit 1
}

need_redis() {
  command -v redis-server >/dev/null 2>&1 && return
  if can_install_packages; then
    install_packages redis-server >&2 || true
  fi
  command -v redis-server >/dev/null 2>&1 || fail 'there is no Redis: install the package `redis-server`'
}

answers() { # PORT
  local reply
  reply=$({
    exec 8<>"/dev/tcp/127.0.0.1/$1" &&
      printf 'PING\r\n' >&8 &&
      timeout 5 head -c 5 <&8
  } 2>/dev/null) || return 1
  [[ $reply == +PONG ]]
}

run() { # DIR PORT
  local dir=$1 port=$2
  [[ $port =~ ^[0-9]+$ ]] || fail "$port is no port"
  need_redis
  mkdir -p "$dir"
  redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --logfile "$dir/log" --save '' --appendonly no --daemonize no \
    </dev/null >/dev/null 2>&1 &
  process=$!
  trap 'kill "$process" 2>/dev/null; wait "$process" 2>/dev/null || true' EXIT
  local deadline=$((SECONDS + START_S))
  until answers "$port"; do
    if ! kill -0 "$process" 2>/dev/null || [[ $SECONDS -ge $deadline ]]; then
      tail -n 20 "$dir/log" >&2 || true
      fail "Redis did not start; its log is $dir/log"
    fi
    sleep 0.1
  done
  # Another server at this port would answer as well.
  kill -0 "$process" 2>/dev/null || fail "port $port is taken"
  printf 'ready\n'
  # The end of whoever started this ends it, however that comes.
  cat >/dev/null
}

case ${1:-} in
run) [[ $# -eq 3 ]] || fail 'run takes a folder and a port' && run "$2" "$3" ;;
*) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2 && exit 2 ;;
esac
