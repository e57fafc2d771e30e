#!/usr/bin/env bash
# The matrix: every cell of `sluicebox-bench cells`, each measured in turns on the appliance with io_uring, with epoll and
# with the portable driver, and on the sink. Writes bench/results/<date>-<commit>-matrix.json and prints it as a table.
#
#   bench/matrix.sh                                all 27 cells: 108 runs a pass, 20 s of load and settling each
#   bench/matrix.sh s-plain-500x8 s-gzip-500x8     these
#   PASSES=3 bench/matrix.sh                       medians of three
#   SERVERS="io_uring sink" bench/matrix.sh        without the others
#   DRY=yes bench/matrix.sh                        what would be measured
#
# What was measured with the same binaries, options and seconds is not measured again: after an interruption the same
# command goes on. AGAIN=yes begins anew. Everything of lib.sh can be set, too.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=bench/lib.sh
. bench/lib.sh

PASSES=${PASSES:-1}
SECONDS_EACH=${SECONDS_EACH:-17}
WARM_UP=${WARM_UP:-12}
SETTLE=${SETTLE:-3}
SERVERS=${SERVERS:-io_uring epoll portable sink}
OUT=${OUT:-bench/results/$stamp-matrix.json}
trap stop_server EXIT

[ "${DRY:-no}" = yes ] || build
cells=$("$bench" cells --seconds "$SECONDS_EACH" "$@")
if [ "${DRY:-no}" = yes ]; then
    printf '%s\n' "$cells"
    exit 0
fi
certificates
# The binaries' own sums: a commit says too little of a tree with changes.
sums=$(cat "$appliance" "$bench" | sha256sum | cut -c1-12)
work="$SCRATCH/matrix/$sums-${SECONDS_EACH}s-${WARM_UP}s"
[ "${AGAIN:-no}" = no ] || rm -rf "$work"
mkdir -p "$work"
[ ! -e "$OUT" ] || say "$OUT is there and will be written over"

# processors <cores>: of the server. With more than one it has all, and the generator shares them.
processors() { if [ "$1" = 1 ]; then echo "$SERVER_CPU"; else echo "$SERVER_CPU,$GENERATOR_CPU"; fi; }

# measure <cell> <cores> <form> <options> <server> <pass>
measure() {
    local cell=$1 cores=$2 form=$3 options=$4 name=$5 pass=$6
    local dir="$work/$cell" cpus to extra=()
    cpus=$(processors "$cores")
    if [ "$name" = sink ]; then
        [ "$form" != tls ] || extra=(--tls-cert "$SCRATCH/tls/cert.pem" --tls-key "$SCRATCH/tls/key.pem")
        start_sink "$cpus" --threads "$cores" "${extra[@]}"
        to=$SINK
    else
        start_appliance "$cpus" "$(configuration "$name" "$cores" "$form")"
        to=$(endpoint otlp_grpc)
    fi
    printf '%s\n' "$server_command" >"$dir/$name.command"
    # Every cell has its own seed: its pool of compressed bodies is made once for all of its servers.
    extra=(--seed "$(printf '%s' "$cell" | cksum | cut -d' ' -f1)")
    [ "$form" != tls ] || extra+=(--tls-ca "$SCRATCH/tls/ca.pem")
    case $form in gzip | zstd) extra+=(--pool-file "$SCRATCH/matrix/pool") ;; esac
    # The sink drops bodies, so it may see a pool of compressed ones again; the appliance must not.
    case "$name $form" in "sink gzip" | "sink zstd") extra+=(--wrap) ;; esac
    if [ "$cores" = 1 ]; then
        extra+=(--generator-cpu "$GENERATOR_CPU")
    else
        extra+=(--threads 2)
    fi
    # shellcheck disable=SC2086 # several words
    "$bench" load --endpoint "$to" $options "${extra[@]}" --server-pid "$server" --server-cpu "$cpus" \
        --duration "${SECONDS_EACH}s" --warm-up "${WARM_UP}s" --settle "${SETTLE}s" \
        --out "$dir/$name-$pass.json.part" >/dev/null || return 1
    stop_server
    mv "$dir/$name-$pass.json.part" "$dir/$name-$pass.json"
}

# By cell first: its pool is in use for all passes, and its ratios come from minutes that lie beside each other.
# Whoever comes first in a cell meets a machine that has cooled down, so that is another one from cell to cell and pass to pass.
read -ra servers <<<"$SERVERS"
turn=0
while IFS=$'\t' read -r cell cores form options; do
    mkdir -p "$work/$cell"
    for pass in $(seq "$PASSES"); do
        first=$((turn++ % ${#servers[@]}))
        for name in "${servers[@]:first}" "${servers[@]:0:first}"; do
            [ ! -s "$work/$cell/$name-$pass.json" ] || continue
            say "== $cell, $name, pass $pass of $PASSES"
            if ! (trap stop_server EXIT && measure "$cell" "$cores" "$form" "$options" "$name" "$pass"); then
                say "!! $cell, $name: no result; the next run of this command tries again"
            fi
        done
    done
done <<<"$cells"

"$bench" matrix --dir "$work" --out "$OUT" "$@" >/dev/null
"$bench" table "$OUT"
say "-> $OUT"
