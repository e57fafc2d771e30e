#!/usr/bin/env bash
# Measures the numbers of the issues in one go and writes bench/results/<date>-<commit>-<name>.json.
#
#   bench/run.sh              stages, ingest and query
#   bench/run.sh ingest       appliance beside sink, S and L, plain and gzip, 500 spans a request
#   bench/run.sh query        trace by id and search over a million kept traces, then verified
#   bench/run.sh stages       walk and journal
#   bench/run.sh latency [cell...]   acknowledgements in an open loop at 70 % of what was taken just before
#   bench/run.sh overload     ten times of what the server takes: memory, refusals, and whether all is there afterwards
#   bench/run.sh flame [cell] where the appliance's time goes, by perf
#   bench/matrix.sh           all drivers and the sink over the cells of the matrix
#
# The server gets one processor (SERVER_CPU), the generator another (GENERATOR_CPU). Nothing else should run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=bench/lib.sh
. bench/lib.sh

PAIRS=${PAIRS:-3}
SECONDS_EACH=${SECONDS_EACH:-24}
WARM_UP=${WARM_UP:-12}
KEPT_TRACES=${KEPT_TRACES:-1000000}
# Of latency, overload and flame.
DRIVER=${DRIVER:-auto}
LOAD_SHARE=${LOAD_SHARE:-0.7}
OVERLOAD_TIMES=${OVERLOAD_TIMES:-10}
# What the server is short of under overload, so short that one generator can offer ten times of what it takes: percent of
# one core, and bytes a second that its disk writes.
OVERLOAD_BY=${OVERLOAD_BY:-disk cpu}
OVERLOAD_CPU_PERCENT=${OVERLOAD_CPU_PERCENT:-10}
OVERLOAD_DISK_BYTES=${OVERLOAD_DISK_BYTES:-20000000}
# So little that all budgets are full within seconds: flat is then a plateau and not a slow rise.
OVERLOAD_MEMORY=${OVERLOAD_MEMORY:-256MiB}
# 1: every trace is kept, so everything that was acknowledged can be asked for.
OVERLOAD_ERRORS=${OVERLOAD_ERRORS:-1}
FREQUENCY=${FREQUENCY:-499}
group=""

clean_up() {
    stop_server
    [ -z "$group" ] || rmdir "$group" 2>/dev/null || true
}
trap clean_up EXIT

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
    # Nothing is measured any more, so the server may have both processors.
    taskset -apc "$SERVER_CPU,$GENERATOR_CPU" "$server" >/dev/null
    "$bench" verify --query "$(endpoint query)" --ledger "$SCRATCH/keep-all.ledger" --identity --wait 120s \
        --out "bench/results/$stamp-keep-all-verify.json" >/dev/null
    stop_server
}

stages() {
    say "== stages"
    taskset -c "$SERVER_CPU" "$bench" walk --out "bench/results/$stamp-walk.json" >/dev/null
    "$bench" journal --dir "$SCRATCH" --out "bench/results/$stamp-journal.json" >/dev/null
}

# of_cell <name>: cores, form and options of one cell; those of TLS and of pools of compressed bodies included.
of_cell() {
    local name
    IFS=$'\t' read -r name cores form options < <("$bench" cells --seconds "$SECONDS_EACH" "$1") ||
        die "no cell is called '$1': $bench cells"
    [ "$cores" = 1 ] || die "$name needs the generator's processor: not here"
    certificates
    [ "$form" != tls ] || options+=" --tls-ca $SCRATCH/tls/ca.pem"
    options+=" --seed $(printf '%s' "$name" | cksum | cut -d' ' -f1)"
    case $form in gzip | zstd) options+=" --pool-file $SCRATCH/pool-of-$name" ;; esac
}

# spans_per_second <file>
spans_per_second() { sed -n 's/^ *"spans_per_second": \([0-9.e+]*\),*$/\1/p' "$1" | head -n 1; }

times() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.0f", a * b }'; }

# latency [cell...]: closed loop, then on a fresh appliance an open loop at a share of that rate.
latency() {
    local cells=("$@") parts=() cell rate cores form options config
    [ $# -gt 0 ] || cells=(s-plain-500x8 s-plain-100x200 s-plain-10x32)
    for cell in "${cells[@]}"; do
        of_cell "$cell"
        config=$(configuration "$DRIVER" "$cores" "$form")
        say "== $cell, closed loop"
        start_appliance "$SERVER_CPU" "$config"
        # shellcheck disable=SC2086 # several words
        load "$(endpoint otlp_grpc)" "$SCRATCH/latency-$cell-closed.json" --duration "${SECONDS_EACH}s" \
            --warm-up "${WARM_UP}s" $options
        stop_server
        rate=$(times "$(spans_per_second "$SCRATCH/latency-$cell-closed.json")" "$LOAD_SHARE")
        say "== $cell, open loop at $rate spans/s"
        start_appliance "$SERVER_CPU" "$config"
        # shellcheck disable=SC2086 # several words
        load "$(endpoint otlp_grpc)" "$SCRATCH/latency-$cell-open.json" --duration "${SECONDS_EACH}s" \
            --warm-up "${WARM_UP}s" --rate "$rate" $options
        stop_server
        parts+=(--part "$cell-closed=$SCRATCH/latency-$cell-closed.json")
        parts+=(--part "$cell-open=$SCRATCH/latency-$cell-open.json")
    done
    "$bench" gather --name latency --note "driver=$DRIVER" --note "share=$LOAD_SHARE" \
        --note "server=$server_command" "${parts[@]}" --out "bench/results/$stamp-latency.json" >/dev/null
    "$bench" table "bench/results/$stamp-latency.json"
    say "-> bench/results/$stamp-latency.json"
}

# control_group <controller>: one of our own with the server in it.
control_group() {
    local v1=/sys/fs/cgroup/$1 v2=/sys/fs/cgroup
    if [ -e "$v1/cgroup.procs" ]; then group=$v1/sluicebox-bench-$$; else group=$v2/sluicebox-bench-$$; fi
    mkdir "$group" || die "overload slows the server down by a control group, and $group cannot be made"
    echo "$server" >"$group/cgroup.procs"
}

# slow_down <cpu|disk> [lift]
slow_down() {
    local quota=$((OVERLOAD_CPU_PERCENT * 100)) bytes=$OVERLOAD_DISK_BYTES device
    device=$(findmnt -nro MAJ:MIN -T "$SCRATCH")
    case "$1 ${2:-}" in
    "cpu ") control_group cpu ;;
    "disk ") control_group blkio ;;
    *) quota=-1 bytes=0 ;;
    esac
    if [ -e "$group/cpu.cfs_quota_us" ]; then
        echo 10000 >"$group/cpu.cfs_period_us"
        echo "$quota" >"$group/cpu.cfs_quota_us"
    elif [ -e "$group/blkio.throttle.write_bps_device" ]; then
        echo "$device $bytes" >"$group/blkio.throttle.write_bps_device"
    elif [ "$1" = cpu ]; then
        echo "${quota/#-1/max} 10000" >"$group/cpu.max"
    else
        echo "$device wbps=${bytes/#0/max}" >"$group/io.max"
    fi
}

# overload: a server with a tenth of a core, then one whose disk takes little, takes what it takes; then ten times of that
# is offered on a schedule that waits for nobody. Nothing is sent again, so every refusal is counted once.
overload() {
    local by taken rate config parts=()
    local usual=(--shape s --spans-per-request 100 --connections 200 --errors "$OVERLOAD_ERRORS")
    config=$(MEMORY_LIMIT=$OVERLOAD_MEMORY configuration "$DRIVER" 1 plain)
    mv "$config" "$SCRATCH/overload.yaml"
    config=$SCRATCH/overload.yaml
    for by in $OVERLOAD_BY; do
        start_appliance "$SERVER_CPU" "$config"
        slow_down "$by"
        say "== what the server takes with little of its $by"
        load "$(endpoint otlp_grpc)" "$SCRATCH/overload-$by-closed.json" "${usual[@]}" --in-flight 1 \
            --duration "${OVERLOAD_CLOSED:-15}s" --settle 5s --ledger "$SCRATCH/overload-closed.ledger"
        taken=$(spans_per_second "$SCRATCH/overload-$by-closed.json")
        rate=$(times "$taken" "$OVERLOAD_TIMES")
        say "== $rate spans/s are offered"
        load "$(endpoint otlp_grpc)" "$SCRATCH/overload-$by-open.json" "${usual[@]}" --in-flight 32 --rate "$rate" \
            --duration "${OVERLOAD_SECONDS:-20}s" --settle 10s --ledger "$SCRATCH/overload-open.ledger"
        slow_down "$by" lift
        taskset -apc "$SERVER_CPU,$GENERATOR_CPU" "$server" >/dev/null
        "$bench" verify --query "$(endpoint query)" --identity --wait 120s \
            --ledger "$SCRATCH/overload-closed.ledger" "$SCRATCH/overload-open.ledger" \
            --out "$SCRATCH/overload-$by-verify.json" >/dev/null || say "!! verify found something missing"
        stop_server
        rmdir "$group" && group=""
        parts+=(--part "$by-closed=$SCRATCH/overload-$by-closed.json")
        parts+=(--part "$by-overload=$SCRATCH/overload-$by-open.json")
        parts+=(--part "$by-verify=$SCRATCH/overload-$by-verify.json")
    done
    "$bench" gather --name overload --note "driver=$DRIVER" --note "server=$server_command" \
        --note "cpu_percent=$OVERLOAD_CPU_PERCENT" --note "disk_bytes_per_second=$OVERLOAD_DISK_BYTES" \
        --note "memory_limit=$OVERLOAD_MEMORY" --note "times=$OVERLOAD_TIMES" "${parts[@]}" \
        --out "bench/results/$stamp-overload.json" >/dev/null
    "$bench" table "bench/results/$stamp-overload.json"
    say "-> bench/results/$stamp-overload.json"
}

# flame [cell]: perf looks at the appliance from the end of the warm-up on. Stacks by DWARF: releases have no frame pointers.
flame() {
    local cell=${1:-s-plain-500x8} cores form options event=cycles name="bench/results/$stamp-flame"
    command -v perf >/dev/null || die "flame needs perf"
    of_cell "$cell"
    start_appliance "$SERVER_CPU" "$(configuration "$DRIVER" "$cores" "$form")"
    # A virtual machine may have no counters; the clock samples as well, but not where interrupts are off.
    perf stat -e cycles:u true 2>&1 | grep -q "not supported" && event=cpu-clock
    say "== $cell under perf ($event)"
    # shellcheck disable=SC2086 # several words
    load "$(endpoint otlp_grpc)" "$SCRATCH/flame-load.json" --duration "${SECONDS_EACH}s" --warm-up "${WARM_UP}s" \
        $options &
    local loading=$!
    sleep "$WARM_UP"
    taskset -c "$GENERATOR_CPU" perf record -q -e "$event" -F "$FREQUENCY" --call-graph dwarf,16384 -p "$server" \
        -o "$SCRATCH/perf.data" -- sleep "${FLAME_SECONDS:-$(((SECONDS_EACH - WARM_UP) / 2 + 1))}" 2>"$SCRATCH/perf.log" ||
        die "perf did not record: $SCRATCH/perf.log"
    wait "$loading"
    stop_server
    perf script -i "$SCRATCH/perf.data" --no-inline -F comm,tid,ip,sym,dso >"$SCRATCH/stacks.txt" 2>>"$SCRATCH/perf.log"
    "$bench" flame --stacks "$SCRATCH/stacks.txt" --folded "$name.folded" --out "$SCRATCH/flame.json" >/dev/null
    "$bench" gather --name flame --note "cell=$cell" --note "driver=$DRIVER" --note "event=$event" \
        --note "server=$server_command" --part load="$SCRATCH/flame-load.json" --part costs="$SCRATCH/flame.json" \
        --out "$name.json" >/dev/null
    "$bench" table "$SCRATCH/flame.json"
    rm -f "$SCRATCH/perf.data" "$SCRATCH/stacks.txt"
    say "-> $name.json, $name.folded"
}

part=${1:-all}
shift || true
case $part in
all)
    build
    stages
    ingest
    query
    ;;
ingest | query | stages | overload)
    build
    "$part"
    ;;
latency | flame)
    build
    "$part" "$@"
    ;;
*) die "unknown part '$part': ingest, query, stages, latency, overload, flame, or nothing for the first three" ;;
esac
