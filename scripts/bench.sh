#!/usr/bin/env bash
# Runs every benchmark with its default settings, one after the other: tables on the terminal, one
# JSON file each in the results folder. Takes about an hour on two cores.
#
# usage: bench.sh BUILD_DIR RESULTS_DIR
set -euo pipefail

build=${1:?usage: bench.sh BUILD_DIR RESULTS_DIR}
results=${2:?usage: bench.sh BUILD_DIR RESULTS_DIR}
mkdir -p "$results"

run() {  # NAME PROGRAM ARGUMENT...
  local name=$1
  shift
  echo
  echo "== $*"
  "$@" --json "$results/$name.json"
}

run fault_latency "$build/bench/fault_latency"
run discard_rate "$build/bench/discard_rate"
run pager "$build/bench/pager"
run pager_access "$build/bench/pager_access"
run pager_takeover "$build/bench/pager_takeover"
run arbiter_sim "$build/bench/arbiter_sim" --vms 10000 --hours 24
run guest_fill "$build/bench/guest_fill_vm"
"$(dirname "$0")/fetch-build-sources.sh" "$build/build-sources"
for scenario in inflate pressure interference rest build overcommit; do
  run "vm_bench-$scenario" "$build/bench/vm_bench" --scenario "$scenario"
done
# Two minutes a mode: one run.
run vm_bench-tracking "$build/bench/vm_bench" --scenario tracking --runs 1 \
  --plot "$results/tracking"
echo
echo "JSON: $results"
