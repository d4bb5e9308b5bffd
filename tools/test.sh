#!/usr/bin/env bash
# Installs what is missing, builds, and runs the whole suite:
#   tools/test.sh [--full] [--preset NAME] [ctest arguments...]
# --full also runs the long cases (label "full"). The last line is "N passed, N failed[, N skipped]".
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu
labels=(-LE full)
while [ $# -gt 0 ]; do
  case $1 in
    --full) labels=(); shift ;;
    --preset) preset=$2; shift 2 ;;
    *) break ;;
  esac
done

tools/build.sh "$preset"
log=build/$preset/tests.log
# Tests start ranks of their own, each with one BLAS thread.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OPENBLAS_NUM_THREADS=1
start=$SECONDS
status=0
ctest --test-dir "build/$preset" --output-on-failure --parallel "$(nproc)" "${labels[@]}" "$@" \
  >"$log" 2>&1 || status=$?
if [ "$status" -ne 0 ]; then cat "$log"; fi

count() { grep -cE "$1" "$log" || true; }
passed=$(count '^ *[0-9]+/[0-9]+ Test .* Passed ')
failed=$(count '^ *[0-9]+/[0-9]+ Test .*\*\*\*(Failed|Timeout|Exception|Not Run)')
skipped=$(count '^ *[0-9]+/[0-9]+ Test .*\*\*\*Skipped')
echo "tests took $((SECONDS - start)) s; details in $log"
line="$passed passed, $failed failed"
[ "$skipped" -eq 0 ] || line="$line, $skipped skipped"
# No test at all is a failure of the suite, not a success.
if [ "$passed" -eq 0 ] && [ "$failed" -eq 0 ]; then line="0 passed, 1 failed"; status=1; fi
echo "$line"
exit "$status"
