#!/usr/bin/env bash
# Measures the numbers of the issue in one go and writes bench/results/<date>-<commit>-<name>.json.
#
#   bench/run.sh              everything below
#   bench/run.sh ingest       appliance beside sink, S and L, plain and gzip, 500 spans a request
#   bench/run.sh query        trace by id and search over a million kept traces
#   bench/run.sh stages       walk and journal
#
# The server gets one processor (SERVER_CPU), the generator another (GENERATOR_CPU). Nothing else should run.
set -euo pipefail
cd "$(dirname "$0")/.."

SERVER_CPU=${SERVER_CPU:-1}
GENERATOR_CPU=${GENERATOR_CPU:-0}
PAIRS=${PAIRS:-3}
SECONDS_EACH=${SECONDS_EACH:-24}
WARM_UP=${WARM_UP:-12}
KEPT_TRACES=${KEPT_TRACES:-1000000}
# On a real disk: the journal syncs, and tmpfs would make that free.
SCRATCH=${SCRATCH:-target/bench-scratch}
SINK=127.0.0.1:14317

bench=target/release/sluicebox-bench
appliance=target/release/sluicebox
stamp=$(date -u +%Y-%m-%d)-$(git rev-parse --short HEAD)
server=""

say() { printf '%s\n' "$*" >&2; }
die() { say "run.sh: $*"; exit 1; }

stop_server() {
    [ -n "$server" ] || return 0
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=""
}
trap stop_server EXIT

# wait_until <what> <command...>: at most 30 seconds.
wait_until() {
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return 0
        kill -0 "$server" 2>/dev/null || die "the server ended before $what"
        sleep 0.1
    done
    die "waited 30 s in vain for $what"
}

listens() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}"); }

# endpoint <name>: from the file the appliance writes once it listens.
endpoint() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$SCRATCH/data/endpoints.json" | head -n 1; }

start_appliance() {
    rm -rf "$SCRATCH/data"
    mkdir -p "$SCRATCH/data"
    taskset -c "$SERVER_CPU" "$appliance" serve ${CONFIG:+--config "$CONFIG"} --data-dir "$SCRATCH/data" \
        >"$SCRATCH/appliance.log" 2>&1 &
    server=$!
    wait_until "its endpoints" test -s "$SCRATCH/data/endpoints.json"
    wait_until "its port" listens "$(endpoint otlp_grpc)"
}

start_sink() {
    taskset -c "$SERVER_CPU" "$bench" sink --listen "$SINK" --duration 10m >/dev/null 2>&1 &
    server=$!
    wait_until "its port" listens "$SINK"
}

# load <endpoint> <out> <options...>
load() {
    local to=$1 out=$2
    shift 2
    "$bench" load --endpoint "$to" --connections 8 --in-flight 8 --generator-cpu "$GENERATOR_CPU" \
        --server-pid "$server" --server-cpu "$SERVER_CPU" --out "$out" "$@" >/dev/null
}

# pairs <name> <options...>
pairs() {
    local name=$1 ours=() theirs=() again=""
    shift
    # The sink drops bodies, so it may see a pool of compressed ones again; the appliance must not.
    case " $* " in *" gzip "* | *" zstd "*) again="--wrap --pool-requests 2000" ;; esac
    for pair in $(seq "$PAIRS"); do
        say "== $name, pair $pair of $PAIRS"
        start_appliance
        load "$(endpoint otlp_grpc)" "$SCRATCH/$name-appliance-$pair.json" \
            --duration "${SECONDS_EACH}s" --warm-up "${WARM_UP}s" --settle 6s "$@"
        stop_server
        start_sink
        # shellcheck disable=SC2086 # several words or none
        load "$SINK" "$SCRATCH/$name-sink-$pair.json" --duration "${SECONDS_EACH}s" $again "$@"
        stop_server
        ours+=("$SCRATCH/$name-appliance-$pair.json")
        theirs+=("$SCRATCH/$name-sink-$pair.json")
    done
    "$bench" pairs --name "$name" --appliance "${ours[@]}" --sink "${theirs[@]}" \
        --out "bench/results/$stamp-$name.json" >/dev/null
    say "-> bench/results/$stamp-$name.json"
}

ingest() {
    pairs s-plain --shape s
    pairs s-gzip --shape s --compression gzip
    pairs l-plain --shape l
    pairs l-gzip --shape l --compression gzip
}

# Every trace has an error, so every trace is kept; a rate below the limit keeps all of them decided in time.
query() {
    say "== query over $KEPT_TRACES kept traces"
    start_appliance
    load "$(endpoint otlp_grpc)" "bench/results/$stamp-keep-all.json" --traces "$KEPT_TRACES" --errors 1 \
        --rate "${KEEP_RATE:-300000}" --retry --settle 6s --ledger "$SCRATCH/keep-all.ledger"
    "$bench" query --query "$(endpoint query)" --ledger "$SCRATCH/keep-all.ledger" --tag-key enduser.id \
        --requests 5000 --out "bench/results/$stamp-query-selective.json" >/dev/null
    "$bench" query --query "$(endpoint query)" --ledger "$SCRATCH/keep-all.ledger" \
        --requests 5000 --out "bench/results/$stamp-query-any.json" >/dev/null
    "$bench" verify --query "$(endpoint query)" --ledger "$SCRATCH/keep-all.ledger" --identity --wait 120s \
        --out "bench/results/$stamp-keep-all-verify.json" >/dev/null
    stop_server
}

stages() {
    say "== stages"
    taskset -c "$SERVER_CPU" "$bench" walk --out "bench/results/$stamp-walk.json" >/dev/null
    "$bench" journal --dir "$SCRATCH" --out "bench/results/$stamp-journal.json" >/dev/null
}

cargo build --release -p sluicebox -p sluicebox-bench
mkdir -p "$SCRATCH" bench/results
case "${1:-all}" in
all)
    stages
    ingest
    query
    ;;
ingest | query | stages) "$1" ;;
*) die "unknown part '$1': ingest, query, stages or nothing for all" ;;
esac
