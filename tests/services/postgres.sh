#!/usr/bin/env bash
# A real PostgreSQL server for tests. Installs the distribution's where there is none and that is possible.
#
#   tests/services/postgres.sh run DIR PORT    serve the database `test` on 127.0.0.1:PORT with its files in DIR, which is
#                                              empty; says `ready` on standard output, and ends when standard input does
#
# Its user is `test`, with the password `test-password`. Its log is DIR/log. PG_BIN names the folder of another
# installation's programs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../../scripts/packages.sh
source "$root/scripts/packages.sh"

readonly START_S=60
readonly PASSWORD=test-password

fail() {
  printf 'postgres.sh: %s\n' "$@" >&2
  exit 1
}

find_programs() {
  local folder
  for folder in "${PG_BIN:-}" $(compgen -G '/usr/lib/postgresql/*/bin' | sort -rV) "$(dirname "$(command -v initdb || echo /none/x)")"; do
    [[ -n $folder && -x $folder/initdb && -x $folder/postgres ]] || continue
    programs=$folder
    return
  done
  return 1
}

need_programs() {
  find_programs && return
  # Tests that start at the same time wait for one of them to install it.
  mkdir -p "$root/target"
  exec 9>"$root/target/postgres.lock"
  flock 9
  if ! find_programs && can_install_packages; then
    install_packages postgresql >&2 || true
  fi
  exec 9>&-
  find_programs && return
  fail 'tests of database sources need the server of PostgreSQL: install the package `postgresql`, or name its folder in PG_BIN'
}

# The server refuses to run as root: there it runs as the user that its package has made.
as_server() {
  if [[ $(id -u) -eq 0 ]]; then
    setpriv --reuid postgres --regid "$(id -g postgres)" --clear-groups env HOME=/tmp LC_ALL=C.UTF-8 "$@"
  else
    env LC_ALL=C.UTF-8 "$@"
  fi
}

# SIGINT cuts open connections and ends the server.
stop() {
  local postmaster
  postmaster=$(head -n 1 data/postmaster.pid 2>/dev/null) || postmaster=$server
  kill -INT "$postmaster" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
}

run() { # DIR PORT
  local dir=$1 port=$2
  need_programs
  cd "$dir"
  chmod 755 .
  mkdir data
  printf '%s\n' "$PASSWORD" >password
  if [[ $(id -u) -eq 0 ]]; then
    id postgres >/dev/null 2>&1 || fail 'there is no user `postgres` to run the server as'
    chown postgres data password
  fi
  as_server "$programs/initdb" -D data -U test --pwfile password -A scram-sha-256 -E UTF8 --locale C.UTF-8 --no-sync >log 2>&1 ||
    { cat log >&2; fail 'initdb failed'; }
  cat >>data/postgresql.conf <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
shared_buffers = 32MB
fsync = off
CONF
  as_server "$programs/postgres" -D data >>log 2>&1 </dev/null &
  server=$!
  trap stop EXIT
  local tries=0
  until PGPASSWORD=$PASSWORD "$programs/psql" -h 127.0.0.1 -p "$port" -U test -d postgres -qc 'create database test' >>log 2>&1; do
    kill -0 "$server" 2>/dev/null || { tail -n 20 log >&2; fail 'the server ended'; }
    tries=$((tries + 1))
    [[ $tries -lt $((START_S * 5)) ]] || { tail -n 20 log >&2; fail "the server did not answer within $START_S s"; }
    sleep 0.2
  done
  echo ready
  cat >/dev/null
}

case ${1:-} in
  run) [[ $# -eq 3 ]] || fail 'usage: postgres.sh run DIR PORT'; run "$2" "$3" ;;
  *) fail 'usage: postgres.sh run DIR PORT' ;;
esac
