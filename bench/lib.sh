# What run.sh and matrix.sh share: starting servers, sending load, stopping. Measures nothing by itself.
#
# Everything can be set from outside:
#   SERVER_CPU, GENERATOR_CPU   processors of either side (1 and 0)
#   SCRATCH                     data and raw results, on a real disk: the journal syncs, and tmpfs would make that free
#   CONFIG                      configuration file of the appliance, for the parts that do not write their own
#   WARM_MEMORY                 mebibytes of memory touched before an appliance starts; 0 for none (see `bench memory`)
#   MEMORY_LIMIT                of the appliance. A quarter of a small machine, the default, is too little for the bodies that are
#                               undecided at full speed: those that it lets go of are read from the journal again
#   BUILD=no                    take the binaries that are there, or BENCH and APPLIANCE
# shellcheck shell=bash

SERVER_CPU=${SERVER_CPU:-1}
GENERATOR_CPU=${GENERATOR_CPU:-0}
SCRATCH=${SCRATCH:-target/bench-scratch}
WARM_MEMORY=${WARM_MEMORY:-6000}
MEMORY_LIMIT=${MEMORY_LIMIT:-10GiB}
SINK=127.0.0.1:14317

bench=${BENCH:-target/release/sluicebox-bench}
appliance=${APPLIANCE:-target/release/sluicebox}
stamp=$(date -u +%Y-%m-%d)-$(git rev-parse --short HEAD)
server=""
server_command=""

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# Every connection is a file. Who may not raise the limit meets it at 5,000 connections.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true

build() {
    [ "${BUILD:-yes}" = no ] || cargo build --release -p sluicebox -p sluicebox-bench
    mkdir -p "$SCRATCH" bench/results
}

stop_server() {
    [ -n "$server" ] || return 0
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=""
}

# wait_until <what> <command...>: at most 30 seconds.
wait_until() {
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return 0
        kill -0 "$server" 2>/dev/null || die "the server ended before $what: $SCRATCH/server.log"
        sleep 0.1
    done
    die "waited 30 s in vain for $what"
}

listens() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}"); }

# endpoint <name>: from the file the appliance writes once it listens.
endpoint() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$SCRATCH/data/endpoints.json" | head -n 1; }

# start <cpus> <command...>: in the background, on these processors.
start() {
    local cpus=$1
    shift
    server_command="taskset -c $cpus $*"
    taskset -c "$cpus" "$@" >"$SCRATCH/server.log" 2>&1 &
    server=$!
}

# start_appliance [cpus] [config]: on an empty data directory, with memory that the machine has.
start_appliance() {
    local cpus=${1:-$SERVER_CPU} config=${2:-${CONFIG:-}}
    [ "$WARM_MEMORY" = 0 ] || "$bench" memory --mebibytes "$WARM_MEMORY" >/dev/null
    rm -rf "$SCRATCH/data"
    mkdir -p "$SCRATCH/data"
    start "$cpus" "$appliance" serve ${config:+--config "$config"} --data-dir "$SCRATCH/data"
    wait_until "its endpoints" test -s "$SCRATCH/data/endpoints.json"
    wait_until "its port" listens "$(endpoint otlp_grpc)"
}

# start_sink [cpus] [options...]
start_sink() {
    local cpus=${1:-$SERVER_CPU}
    shift || true
    start "$cpus" "$bench" sink --listen "$SINK" --duration 1h "$@"
    wait_until "its port" listens "$SINK"
}

# certificates: one authority and one certificate for all runs.
certificates() {
    [ -s "$SCRATCH/tls/ca.pem" ] || "$bench" certificate --dir "$SCRATCH/tls" >/dev/null
}

# configuration <driver> <cores> <form>: writes a file for the appliance and says where.
configuration() {
    local driver=$1 cores=$2 form=$3 tls="" file="$SCRATCH/$1-$2-$3.yaml"
    [ "$form" != tls ] || tls="tls: { cert_file: $PWD/$SCRATCH/tls/cert.pem, key_file: $PWD/$SCRATCH/tls/key.pem }"
    cat >"$file" <<YAML
receivers:
  cores: $cores
  otlp:
    driver: $driver
    protocols: { grpc: { $tls } }
memory: { limit: $MEMORY_LIMIT }
YAML
    echo "$file"
}

# load <endpoint> <out> <options...>: one generator thread on its own processor; where options bring their own
# connections and requests in flight, those count.
load() {
    local to=$1 out=$2 usual=(--connections 8 --in-flight 8)
    shift 2
    case " $* " in *" --connections "*) usual=() ;; esac
    "$bench" load --endpoint "$to" "${usual[@]}" --generator-cpu "$GENERATOR_CPU" \
        --server-pid "$server" --server-cpu "$SERVER_CPU" --out "$out" "$@" >/dev/null
}
