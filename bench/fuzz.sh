#!/usr/bin/env bash
# Runs every fuzz target of every fuzz folder for a time and says what was found.
#
#   bench/fuzz.sh [SECONDS] [TARGET...]     60 seconds each by default; all targets unless some are named
#
# Needs a nightly toolchain and cargo-fuzz. Seeds are read from <folder>/seeds/<target> and never written; what a run learns stays
# in target/fuzz-corpus and is used by the next one. Inputs that break something are left in <folder>/artifacts. Exit code: 0
# nothing found, 1 something found, 2 something could not be run.
set -uo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
wanted=("$@")
learned=$PWD/target/fuzz-corpus
logs=$PWD/target/fuzz-logs
worst=0
mkdir -p "$logs"

say() { printf '%s\n' "$*" >&2; }

is_wanted() {
    ((${#wanted[@]})) || return 0
    local name
    for name in "${wanted[@]}"; do [[ $name == "$1" ]] && return 0; done
    return 1
}

fuzz() {
    local folder=$1 target=$2 log corpus code
    corpus=$learned/$(basename "$(dirname "$folder")")/$target
    log=$logs/$(basename "$(dirname "$folder")")-$target.log
    local read=("$corpus")
    [[ -d $folder/seeds/$target ]] && read+=("$PWD/$folder/seeds/$target")
    mkdir -p "$corpus"
    if ! cargo +nightly fuzz build --fuzz-dir "$folder" "$target" >"$log" 2>&1; then
        say "$folder $target: does not build, see $log"
        worst=2
        return
    fi
    cargo +nightly fuzz run --fuzz-dir "$folder" "$target" "${read[@]}" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 >>"$log" 2>&1
    code=$?
    local runs covered
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
    if ((code == 0)); then
        printf '%-28s %-14s %10s runs, %s: nothing found\n' "$folder" "$target" "${runs:-?}" "${covered:-no cov}"
    else
        printf '%-28s %-14s FINDING, see %s\n' "$folder" "$target" "$log"
        grep -h 'Test unit written' "$log"
        ((worst == 2)) || worst=1
    fi
}

for manifest in */*/fuzz/Cargo.toml; do
    folder=$(dirname "$manifest")
    while read -r target; do
        is_wanted "$target" && fuzz "$folder" "$target"
    done < <(cargo +nightly fuzz list --fuzz-dir "$folder")
done
exit "$worst"
