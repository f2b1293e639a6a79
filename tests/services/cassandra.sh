#!/usr/bin/env bash
# Real Apache Cassandra for tests, one node or several, run from its published libraries. These are fetched once into
# target/services; nothing of them is linked into the store or handed on with it. Installs the distribution's Java and Maven
# where there are none and that is possible.
#
#   tests/services/cassandra.sh fetch                      fetch the libraries, unless they are there
#   tests/services/cassandra.sh run DIR PORT [NODES]       run NODES nodes (1 to 9; 1 if not given) on 127.0.0.1, 127.0.0.2, …,
#                                                          all of them at PORT and PORT + 1000, with their files in DIR; says
#                                                          `ready` on standard output when all answer, and ends when standard
#                                                          input does
#
# While it runs, a line `start N` on its standard input starts node N again, unless it answers, and is answered by `ready`.
# A node's process is named in DIR/nodeN/pid, and its log is DIR/nodeN/log.
#
# CASSANDRA_SECURED=1 asks clients for a password (user cassandra, password cassandra) and offers TLS beside plain text: the
# certificate to trust is DIR/certificate.pem. CASSANDRA_HEAP is the memory of a node's heap (512M). CASSANDRA_BRIEF=1 spares
# the compiler's second stage: less work for a server that lives for a minute, and no server to measure.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../../scripts/packages.sh
source "$root/scripts/packages.sh"

readonly VERSION=5.0.9
readonly DEPENDENCY_PLUGIN=org.apache.maven.plugins:maven-dependency-plugin:3.6.1
readonly START_S=180
readonly HEAP=${CASSANDRA_HEAP:-512M}
readonly SECURED=${CASSANDRA_SECURED:-0}
readonly BRIEF=${CASSANDRA_BRIEF:-0}
readonly KEYSTORE_PASSWORD=test-password
readonly services=${CARGO_TARGET_DIR:-$root/target}/services
readonly libraries=$services/cassandra-$VERSION/lib

fail() {
  printf 'cassandra.sh: %s\n' "$@" >&2
  exit 1
}

find_java() {
  local candidate
  for candidate in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(command -v java || true)" $(compgen -G '/usr/lib/jvm/*-17-*/bin/java' || true); do
    [[ -n $candidate && -x $candidate ]] || continue
    # This version of the server runs on Java 17 (11 lacks what it is compiled for, 21 what it was tested with).
    "$candidate" -version 2>&1 | grep -q 'version "17\.' || continue
    java=$candidate
    return
  done
  return 1
}

need_java() {
  find_java && return
  mkdir -p "$services"
  # Tests that start at the same time wait for one of them to install it.
  exec 9>"$services/java.lock"
  flock 9
  if ! find_java && can_install_packages; then
    install_packages openjdk-17-jre-headless >&2 || true
  fi
  exec 9>&-
  find_java && return
  fail 'tests of the store on Cassandra need Java 17: install the package `openjdk-17-jre-headless`, or name it in JAVA_HOME'
}

fetch() {
  [[ -f $libraries/.complete ]] && return
  need_java
  mkdir -p "$services"
  exec 9>"$services/cassandra.lock"
  flock 9
  [[ -f $libraries/.complete ]] && return
  if ! command -v mvn >/dev/null 2>&1 && can_install_packages; then
    install_packages maven >&2 || true
  fi
  command -v mvn >/dev/null 2>&1 || fail 'fetching Cassandra needs Maven: install the package `maven`'
  printf 'services: fetching Cassandra, once\n' >&2
  local scratch
  scratch=$(mktemp -d "$services/fetch.XXXXXX")
  cat >"$scratch/pom.xml" <<POM
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>eadem</groupId><artifactId>cassandra-for-tests</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.cassandra</groupId><artifactId>cassandra-all</artifactId><version>$VERSION</version></dependency>
  </dependencies>
</project>
POM
  if ! mvn -B -q -f "$scratch/pom.xml" "$DEPENDENCY_PLUGIN:copy-dependencies" -DincludeScope=runtime \
    -DexcludeClassifiers=windows-x86_64,linux-riscv64 -DoutputDirectory="$scratch/lib" >"$scratch/log" 2>&1; then
    tail -n 20 "$scratch/log" >&2
    fail "Cassandra could not be fetched; all that was said is in $scratch/log"
  fi
  touch "$scratch/lib/.complete"
  mkdir -p "$(dirname "$libraries")"
  rm -rf -- "$libraries"
  mv "$scratch/lib" "$libraries"
  rm -rf -- "$scratch"
  exec 9>&-
}

is_running() { # N
  local pid
  pid=$(cat "node$1/pid" 2>/dev/null) || return 1
  [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null
}

# Sends the protocol's question for options, and looks for the answer to it.
answers() { # N
  local reply
  reply=$({
    exec 8<>"/dev/tcp/127.0.0.$1/$port" &&
      printf '\004\000\000\001\005\000\000\000\000' >&8 &&
      timeout 5 head -c 5 <&8 | od -An -tx1 | tr -d ' \n'
  } 2>/dev/null) || return 1
  [[ ${reply:0:2}${reply:8:2} == 8406 ]]
}

make_certificate() {
  local keytool
  keytool=$(dirname "$(readlink -f "$java")")/keytool
  "$keytool" -genkeypair -alias node -keyalg RSA -keysize 2048 -validity 30 -storetype PKCS12 -keystore keystore.p12 \
    -storepass "$KEYSTORE_PASSWORD" -dname CN=test -ext 'SAN=ip:127.0.0.1,dns:localhost' >keytool.log 2>&1 &&
    "$keytool" -exportcert -rfc -alias node -keystore keystore.p12 -storepass "$KEYSTORE_PASSWORD" >certificate.pem 2>>keytool.log ||
    { cat keytool.log >&2; fail 'no certificate could be made'; }
}

configure() { # N
  local dir=$PWD/node$1 ip=127.0.0.$1 token authenticator=AllowAllAuthenticator
  mkdir -p "$dir/tmp" "$dir/data"
  # Evenly spread and known beforehand, so that all nodes can start at once.
  token=$(awk -v i="$(($1 - 1))" -v n="$nodes" 'BEGIN {
    if (i * 2 == n) print "0"
    else printf "%.0f", -9223372036854775808 + i * (18446744073709551616 / n) + (i == 0 ? 2048 : 0)
  }')
  [[ $SECURED != 1 ]] || authenticator=PasswordAuthenticator
  cat >"$dir/cassandra.yaml" <<YAML
cluster_name: eadem-tests
num_tokens: 1
initial_token: "$token"
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "$(seq -s, -f '127.0.0.%g' 1 "$nodes")"
listen_address: $ip
rpc_address: $ip
storage_port: $((port + 1000))
native_transport_port: $port
data_file_directories: ["$dir/data/data"]
commitlog_directory: $dir/data/commitlog
saved_caches_directory: $dir/data/saved_caches
hints_directory: $dir/data/hints
cdc_raw_directory: $dir/data/cdc_raw
commitlog_sync: periodic
commitlog_sync_period: 1000ms
commitlog_segment_size: 32MiB
commitlog_total_space: 256MiB
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
memtable_allocation_type: offheap_buffers
memtable_flush_writers: 1
file_cache_size: 32MiB
key_cache_size: 8MiB
row_cache_size: 0MiB
concurrent_reads: 16
concurrent_writes: 16
concurrent_counter_writes: 4
concurrent_compactors: 1
auto_snapshot: false
authenticator: $authenticator
authorizer: AllowAllAuthorizer
phi_convict_threshold: 6
storage_compatibility_mode: NONE
sstable:
  selected_format: bti
YAML
  if [[ $SECURED == 1 ]]; then
    cat >>"$dir/cassandra.yaml" <<YAML
client_encryption_options:
  enabled: true
  optional: true
  keystore: $PWD/keystore.p12
  keystore_password: $KEYSTORE_PASSWORD
  store_type: PKCS12
YAML
  fi
  cat >"$dir/logback.xml" <<'XML'
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level [%thread] %date{ISO8601} %F:%L - %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="OUT"/></root>
</configuration>
XML
}

launch() { # N
  local dir=$PWD/node$1 module
  local options=(
    -Xms"$HEAP" -Xmx"$HEAP" -Xss512k -XX:+UseG1GC -XX:MaxGCPauseMillis=100 -XX:MaxDirectMemorySize=256M
    -XX:ReservedCodeCacheSize=96M -XX:-UsePerfData -XX:+ExitOnOutOfMemoryError
    "-Djava.io.tmpdir=$dir/tmp" "-Djna.tmpdir=$dir/tmp" -Djava.net.preferIPv4Stack=true
    "-Dcassandra.config=file://$dir/cassandra.yaml" "-Dlogback.configurationFile=$dir/logback.xml"
    "-Dcassandra.storagedir=$dir/data" -Dcassandra-foreground=yes
    # A ring whose members and tokens are known needs no time to settle.
    -Dcassandra.ring_delay_ms=2000 -Dcassandra.skip_wait_for_gossip_to_settle=0
    -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra.consistent.rangemovement=false
    -Djdk.attach.allowAttachSelf=true -Dio.netty.tryReflectionSetAccessible=true
    -Dio.netty.allocator.useCacheForAllThreads=true -Dio.netty.allocator.maxOrder=11
    "-javaagent:$(compgen -G "$libraries/jamm-*.jar" | head -n 1)"
  )
  [[ $BRIEF != 1 ]] || options+=(-XX:TieredStopAtLevel=1)
  # What the server reaches into, on Java 17.
  for module in java.base/jdk.internal.misc java.management.rmi/com.sun.jmx.remote.internal.rmi \
    java.rmi/sun.rmi.registry java.rmi/sun.rmi.server java.sql/java.sql java.base/java.lang.ref \
    jdk.unsupported/sun.misc jdk.compiler/com.sun.tools.javac.file jdk.attach/sun.tools.attach; do
    options+=(--add-exports "$module=ALL-UNNAMED")
  done
  for module in java.base/java.lang.module java.base/jdk.internal.loader java.base/jdk.internal.ref \
    java.base/jdk.internal.reflect java.base/jdk.internal.math java.base/jdk.internal.module \
    java.base/jdk.internal.util.jar jdk.management/com.sun.management.internal java.base/sun.nio.ch \
    java.base/java.io java.base/java.nio java.base/java.lang.reflect jdk.compiler/com.sun.tools.javac \
    java.base/java.lang java.base/java.util java.base/java.util.concurrent java.base/java.util.concurrent.atomic; do
    options+=(--add-opens "$module=ALL-UNNAMED")
  done
  MALLOC_ARENA_MAX=2 "$java" "${options[@]}" -cp "$libraries/*" org.apache.cassandra.service.CassandraDaemon \
    </dev/null >>"$dir/log" 2>&1 &
  echo $! >"$dir/pid"
}

wait_for() { # N
  local deadline=$((SECONDS + START_S))
  until answers "$1"; do
    if ! is_running "$1" || [[ $SECONDS -ge $deadline ]]; then
      tail -n 25 "node$1/log" | cut -c 1-300 >&2
      fail "node $1 did not start"
    fi
    sleep 0.2
  done
}

# A node answers before the user that tests log in as is there.
wait_for_superuser() {
  local deadline=$((SECONDS + START_S))
  until grep -qs 'Created default superuser role' node*/log; do
    [[ $SECONDS -lt $deadline ]] || fail 'the first user was not made in time'
    sleep 0.2
  done
}

# Nothing of what the nodes hold is worth the time of an orderly end.
stop() {
  local n
  for n in $(seq 1 "$nodes"); do
    is_running "$n" && kill -KILL "$(cat "node$n/pid")" 2>/dev/null || true
  done
  wait 2>/dev/null || true
}

start_again() { # N
  [[ $1 =~ ^[1-9]$ && $1 -le $nodes ]] || fail "there is no node $1"
  if ! answers "$1"; then
    local pid
    pid=$(cat "node$1/pid")
    kill -KILL "$pid" 2>/dev/null || true
    # Whoever was killed a moment ago is there until it was waited for.
    wait "$pid" 2>/dev/null || true
    launch "$1"
  fi
  wait_for "$1"
}

run() { # DIR PORT NODES
  local n verb argument
  port=$2
  nodes=$3
  [[ $port =~ ^[0-9]+$ && $port -ge 1024 && $port -le 64535 ]] || fail 'PORT is 1024 to 64535'
  [[ $nodes =~ ^[1-9]$ ]] || fail 'NODES is 1 to 9'
  need_java
  fetch
  mkdir -p "$1"
  cd "$1"
  [[ $PWD != *[[:space:]]* ]] || fail 'DIR must have no white space in it'
  [[ $SECURED != 1 ]] || make_certificate
  trap stop EXIT
  for n in $(seq 1 "$nodes"); do
    configure "$n"
    launch "$n"
  done
  for n in $(seq 1 "$nodes"); do wait_for "$n"; done
  [[ $SECURED != 1 ]] || wait_for_superuser
  echo ready
  while read -r verb argument; do
    [[ $verb == start ]] || fail "$verb: only \`start N\` is understood"
    start_again "$argument"
    echo ready
  done
}

case ${1:-} in
fetch) fetch ;;
run) [[ $# -eq 3 || $# -eq 4 ]] || fail 'run takes a folder, a port and the number of nodes' && run "$2" "$3" "${4:-1}" ;;
*) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2 && exit 2 ;;
esac
