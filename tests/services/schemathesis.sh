#!/usr/bin/env bash
# Requests made up from the document of the interface, and checks of what is answered: Schemathesis, in an environment of its
# own in target/services. Nothing of it is linked into the store or handed on with it.
#
#   tests/services/schemathesis.sh fetch                    fetch it, unless it is there
#   tests/services/schemathesis.sh run URL OUT SEED COUNT   ask the server at URL, about COUNT times for each operation, from
#                                                           100 on also with every case of its own that Schemathesis knows;
#                                                           what came of it is in OUT/report.json and OUT/log. The working
#                                                           folder is the project that is served.
#
# Checked: no 5xx (503 is overload); status, content type, headers and body as declared. Not checked, because it is a matter of
# taste or not ours: whether every request that the schema forbids is refused (readers are lenient where nothing is lost), whether
# every one that it allows is accepted (that a name is known, no schema can say), headers of methods that are not allowed, and
# credentials, which do not exist yet. The stream of a job's events is left out: it lasts as long as the job.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../../scripts/packages.sh
source "$root/scripts/packages.sh"

readonly VERSION=4.32.5
readonly CHECKS=not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance
readonly services=${CARGO_TARGET_DIR:-$root/target}/services
readonly venv=$services/schemathesis-$VERSION

fail() {
  printf 'schemathesis.sh: %s\n' "$@" >&2
  exit 1
}

make_venv() {
  python3 -m venv --clear "$venv" 2>/dev/null && return
  if can_install_packages; then
    install_packages python3 python3-venv >&2 && python3 -m venv --clear "$venv" && return
  fi
  fail 'tests of the interface need Python; install python3 with venv (Debian, Ubuntu: apt-get install python3-venv)'
}

fetch() {
  [[ -f $venv/.complete ]] && return
  mkdir -p "$services"
  # Tests that start at the same time wait for one of them to fetch it.
  exec 9>"$services/schemathesis.lock"
  flock 9
  [[ -f $venv/.complete ]] && return
  printf 'services: fetching Schemathesis, once\n' >&2
  make_venv
  "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: "schemathesis==$VERSION" >&2 ||
    fail 'Schemathesis could not be fetched'
  touch "$venv/.complete"
  exec 9>&-
}

run() { # URL OUT SEED COUNT
  local url=$1 out=$2 seed=$3 count=$4 phases=fuzzing
  [[ $count -lt 100 ]] || phases=examples,coverage,fuzzing
  fetch
  mkdir -p "$out" scratch
  # Its exit code says whether something was found; the report says what.
  EADEM_URL=$url SCHEMATHESIS_HOOKS=$root/tests/services/schemathesis.py PYTHONDONTWRITEBYTECODE=1 \
    "$venv/bin/schemathesis" --config-file "$root/tests/services/schemathesis.toml" run "$url/openapi.json" \
    --checks "$CHECKS" --phases "$phases" --max-examples "$count" --seed "$seed" --continue-on-failure \
    --exclude-path '/jobs/{id}/events' --generation-database none --request-timeout 120 --suppress-health-check all \
    --header "Authorization: Bearer $EADEM_TOKEN" --no-color --report json --report-json-path "$out/report.json" >"$out/log" 2>&1 || [[ -s $out/report.json ]] ||
    { tail -n 30 "$out/log" >&2; fail 'it did not run'; }
}

case ${1:-} in
fetch) fetch ;;
run) [[ $# -eq 5 ]] || fail 'run takes an address, a folder, a seed and a number' && run "$2" "$3" "$4" "$5" ;;
*) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2 && exit 2 ;;
esac
