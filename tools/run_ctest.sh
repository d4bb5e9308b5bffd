#!/usr/bin/env bash
# Runs ctest in a build folder and counts: tools/run_ctest.sh FOLDER LOG [ctest arguments...]
# Prints the failures in full, then "passed failed skipped" as three numbers on the last line.
set -euo pipefail

folder=$1 log=$2
shift 2
# Tests start ranks of their own, each with one BLAS thread.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OPENBLAS_NUM_THREADS=1
ctest --test-dir "$folder" --output-on-failure --parallel "$(nproc)" "$@" >"$log" 2>&1 ||
  cat "$log" >&2

count() { grep -cE "$1" "$log" || true; }
echo "$(count '^ *[0-9]+/[0-9]+ Test .* Passed ')" \
  "$(count '^ *[0-9]+/[0-9]+ Test .*\*\*\*(Failed|Timeout|Exception|Not Run)')" \
  "$(count '^ *[0-9]+/[0-9]+ Test .*\*\*\*Skipped')"
