#!/usr/bin/env bash
# Counts what the steady path costs: calls of the kernel a request (strace -c on every thread) and allocations a span (the
# feature count-allocations), and writes bench/results/<date>-<commit>-steady[-<driver>].json. Exit code 1 when a bound is missed:
#
#   500 spans a request over 8 connections      fewer than one call a request, fewer than 0.1 allocations a span
#   100 spans a request over 200 connections    fewer than one call a request
#
# All threads and all calls count, whatever they are for. strace slows every call down, so nothing here is timed; a slow
# server finds more to do at each wake, and `seconds` and `requests` in the result say how slow it was.
#
# DRIVER (auto) is the receiver's driver. The server gets one processor (SERVER_CPU), the generator another (GENERATOR_CPU).
set -euo pipefail
cd "$(dirname "$0")/.."

DRIVER=${DRIVER:-auto}
SERVER_CPU=${SERVER_CPU:-1}
GENERATOR_CPU=${GENERATOR_CPU:-0}
WARM_UP=${WARM_UP:-10}
SECONDS_EACH=${SECONDS_EACH:-10}
# On a real disk: the journal syncs, and tmpfs would make that free.
SCRATCH=${SCRATCH:-target/bench-scratch}

CALLS_MAX=1
ALLOCATIONS_MAX=0.1

bench=target/release/sluicebox-bench
appliance=$SCRATCH/sluicebox-counting
stamp=$(date -u +%Y-%m-%d)-$(git rev-parse --short HEAD)
out=bench/results/$stamp-steady$([[ $DRIVER == auto ]] || echo "-$DRIVER").json
server="" loader="" missed=no
tracers=()

say() { printf '%s\n' "$*" >&2; }
die() { say "steady.sh: $*"; exit 2; }

stop() {
    for pid in "${tracers[@]}" $loader $server; do
        kill "$pid" 2>/dev/null || continue
        wait "$pid" 2>/dev/null || true
    done
    tracers=() loader="" server=""
}
trap stop EXIT

# wait_until <what> <command...>: at most 30 seconds.
wait_until() {
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return 0
        kill -0 "$server" 2>/dev/null || die "the server ended before $what: $(tail -n 1 "$SCRATCH/appliance.log")"
        sleep 0.1
    done
    die "waited 30 s in vain for $what"
}

# endpoint <name>: from the file the appliance writes once it listens.
endpoint() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$SCRATCH/data/endpoints.json" | head -n 1; }

start_appliance() {
    local free='{ endpoint: "127.0.0.1:0" }'
    cat >"$SCRATCH/steady.yaml" <<YAML
receivers:
  otlp: { driver: $DRIVER, protocols: { grpc: $free, http: $free } }
  zipkin: $free
  jaeger: { protocols: { grpc: $free, thrift_http: $free } }
query: $free
admin: $free
YAML
    rm -rf "$SCRATCH/data"
    taskset -c "$SERVER_CPU" "$appliance" serve --config "$SCRATCH/steady.yaml" --data-dir "$SCRATCH/data" \
        >"$SCRATCH/appliance.log" 2>&1 &
    server=$!
    wait_until "its endpoints" test -s "$SCRATCH/data/endpoints.json"
    wait_until "its metrics" scrape "$SCRATCH/metrics"
}

scrape() { curl -fsS --max-time 10 "http://$(endpoint admin)/metrics" >"$1"; }

# grown <metric> <before> <after>: by how much the sum of a metric's lines has grown.
grown() {
    awk -v name="$1" 'index($0, name) == 1 { sum += FNR == NR ? -$NF : $NF } END { printf "%.0f\n", sum }' "$2" "$3"
}

# Of two scrapes: {"thread": allocations, ...}
allocations_by_thread() {
    awk -F'"' 'index($0, "sluicebox_allocations_total{") == 1 {
            split($3, value, " ")
            grown[$2] += FNR == NR ? -value[2] : value[2]
        }
        END {
            for (thread in grown) { printf "%s\"%s\": %.0f", comma, thread, grown[thread]; comma = ", " }
        }' "$1" "$2"
}

# trace: attaches to every thread of the server, each with its own strace, so that calls can be told apart by thread.
trace() {
    local task thread
    rm -rf "$SCRATCH/calls"
    mkdir -p "$SCRATCH/calls"
    for task in "/proc/$server/task/"*; do
        thread=$(cat "$task/comm")
        strace -c -U calls,name -p "${task##*/}" -o "$SCRATCH/calls/$thread.${task##*/}" 2>"$SCRATCH/calls/said.${task##*/}" &
        tracers+=($!)
    done
    wait_until "strace is there" all_attached
}

all_attached() {
    local attached
    attached=$(cat "$SCRATCH/calls/said."* | grep -c ' attached$') || true
    ((attached == ${#tracers[@]}))
}

untrace() {
    kill -INT "${tracers[@]}"
    wait "${tracers[@]}" || true
    tracers=()
}

# Lines of: calls, name of the call, thread.
calls() {
    local file
    for file in "$SCRATCH/calls/"*; do
        case ${file##*/} in said.*) continue ;; esac
        awk -v thread="$(basename "${file%.*}")" '$1 ~ /^[0-9]+$/ && $2 != "total" { print $1, $2, thread }' "$file"
    done | sort -k1,1nr
}

# by <column>: {"name": calls, ...} of the lines of `calls`.
by() {
    awk -v column="$1" '{ sum[column == 2 ? $2 : $3 " " $2] += $1 }
        END { for (name in sum) print sum[name], name }' | sort -k1,1nr |
        awk '{ count = $1; sub(/^[0-9]+ /, ""); printf "%s\"%s\": %d", comma, $0, count; comma = ", " }'
}

per() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.4f", a / b }'; }
# is_less <a> <b>: numbers, and nothing else, can be less.
is_less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a ~ /^[0-9.]+$/ && a + 0 < b + 0) }'; }

# measure <spans a request> <connections> <in flight each> <bound of allocations a span, or none>
measure() {
    local spans_each=$1 connections=$2 in_flight=$3 allocations_max=$4
    local requests spans kept allocations a_span calls a_request threads
    say "== $spans_each spans a request over $connections connections, driver $DRIVER"
    start_appliance
    "$bench" load --endpoint "$(endpoint otlp_grpc)" --spans-per-request "$spans_each" --connections "$connections" \
        --in-flight "$in_flight" --generator-cpu "$GENERATOR_CPU" --duration "$((WARM_UP + 2 * SECONDS_EACH + 30))s" \
        >/dev/null 2>"$SCRATCH/load.log" &
    loader=$!
    sleep "$WARM_UP"
    scrape "$SCRATCH/first"
    sleep "$SECONDS_EACH"
    scrape "$SCRATCH/second"
    requests=$(grown sluicebox_receiver_requests_total "$SCRATCH/first" "$SCRATCH/second")
    ((requests > 0)) || die "nothing was acknowledged: $(cat "$SCRATCH/load.log")"
    spans=$((requests * spans_each))
    kept=$(grown sluicebox_spans_kept_total "$SCRATCH/first" "$SCRATCH/second")
    allocations=$(grown sluicebox_allocations_total "$SCRATCH/first" "$SCRATCH/second")
    threads=$(allocations_by_thread "$SCRATCH/first" "$SCRATCH/second")
    a_span=$(per "$allocations" "$spans")
    say "   $requests requests, $spans spans, $kept of them kept; $allocations allocations: $a_span a span"
    if [[ $allocations_max != none ]] && ! is_less "$a_span" "$allocations_max"; then
        missed=yes
        say "   MISSED: $a_span allocations a span, fewer than $allocations_max are allowed; by thread:"
        say "   $threads"
    fi
    {
        printf '  {"spans_a_request": %d, "connections": %d, "in_flight_each": %d, "seconds_each": %d,\n' \
            "$spans_each" "$connections" "$in_flight" "$SECONDS_EACH"
        printf '   "allocations": {"requests": %d, "spans": %d, "kept": %d, "allocations": %d, "a_span": %s,\n' \
            "$requests" "$spans" "$kept" "$allocations" "$a_span"
        printf '    "by_thread": {%s}},\n' "$threads"
    } >>"$out.runs"

    trace
    scrape "$SCRATCH/first"
    sleep "$SECONDS_EACH"
    scrape "$SCRATCH/second"
    untrace
    kill -0 "$loader" 2>/dev/null || die "the load ended too early: $(cat "$SCRATCH/load.log")"
    # Calls between attaching and the first scrape count, requests of that moment do not: rather too many than too few.
    requests=$(grown sluicebox_receiver_requests_total "$SCRATCH/first" "$SCRATCH/second")
    calls=$(calls | awk '{ sum += $1 } END { printf "%d", sum }')
    ((requests > 0)) || die "nothing was acknowledged under strace: $(cat "$SCRATCH/load.log")"
    a_request=$(per "$calls" "$requests")
    say "   $requests requests under strace, $calls calls: $a_request a request"
    if ! is_less "$a_request" "$CALLS_MAX"; then
        missed=yes
        say "   MISSED: $a_request calls a request, fewer than $CALLS_MAX are allowed; most of them (calls, name, thread):"
        calls | awk 'NR <= 8' >&2
    fi
    {
        printf '   "calls": {"requests": %d, "calls": %d, "a_request": %s,\n' "$requests" "$calls" "$a_request"
        printf '    "by_name": {%s},\n    "by_thread": {%s}}},\n' "$(calls | by 2)" "$(calls | by 3)"
    } >>"$out.runs"
    stop
}

for tool in strace curl taskset; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
mkdir -p "$SCRATCH" bench/results
# Kept aside: no other bench must find a binary that counts.
cargo build --release --locked -p sluicebox -p sluicebox-bench --features sluicebox/count-allocations
cp target/release/sluicebox "$appliance"
rm -f target/release/sluicebox "$out.runs"

measure 500 8 8 "$ALLOCATIONS_MAX"
measure 100 200 4 none

driver=$("$appliance" doctor --config "$SCRATCH/steady.yaml" --data-dir "$SCRATCH/data" --json |
    sed -n 's/.*"driver":"\([a-z_]*\)".*/\1/p')
dirty=$([ -z "$(git status --porcelain --untracked-files=no)" ] && echo false || echo true)
{
    printf '{"commit": "%s", "dirty": %s, "date": "%s", "command": "DRIVER=%s bench/steady.sh",\n' \
        "$(git rev-parse HEAD)" "$dirty" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$DRIVER"
    printf ' "machine": {"kernel": "%s", "cores": %d}, "driver": "%s", "missed": %s, "runs": [\n' \
        "$(uname -r)" "$(nproc)" "$driver" "$([[ $missed == yes ]] && echo true || echo false)"
    sed '$ s/,$//' "$out.runs"
    printf ']}\n'
} >"$out"
rm -f "$out.runs"
say "-> $out"
[[ $missed == no ]]
