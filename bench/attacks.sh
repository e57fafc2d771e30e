#!/usr/bin/env bash
# Runs the attacks of tests/attacks.rs on every driver and writes bench/results/<date>-<commit>-attacks.json.
#
#   bench/attacks.sh [SECONDS]     how long each attack and each quiet time before it lasts; 10 by default
#
# PROFILE=dev measures the build that the tests use. Nothing else should run: server, attacker and honest sender share two
# processors as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${PROFILE:-release}
commit=$(git rev-parse --short HEAD)
export SLUICEBOX_ATTACK_SECONDS=${1:-10}
export SLUICEBOX_ATTACK_DRIVERS=${SLUICEBOX_ATTACK_DRIVERS:-io_uring,epoll,portable}
export SLUICEBOX_ATTACK_COMMIT=$commit
export SLUICEBOX_ATTACK_RESULTS=$PWD/bench/results/$(date -u +%Y-%m-%d)-$commit-attacks.json

cargo test --profile "$profile" --locked -p sluicebox --test attacks -- --nocapture
echo "$SLUICEBOX_ATTACK_RESULTS"
