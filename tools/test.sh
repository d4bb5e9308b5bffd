#!/usr/bin/env bash
# Installs what is missing, builds, and runs the whole suite, then a short form of it under the
# sanitizers: tools/test.sh [--full] [--preset NAME] [ctest arguments...]
# --full also runs the long grids, and the sanitizers over everything. Where there is an nvcc the CUDA
# code is built too, and its tests run, which skip without a GPU. With a preset or ctest arguments only
# those tests run. The last line is "N passed, N failed[, N skipped]".
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu
sanitize=(--short)
labels=(-LE full)
all=true
while [ $# -gt 0 ]; do
  case $1 in
    --full) labels=() sanitize=(); shift ;;
    --preset) preset=$2 all=false; shift 2 ;;
    *) all=false; break ;;
  esac
done

tools/build.sh "$preset"
start=$SECONDS
results=$(tools/run_ctest.sh "build/$preset" "build/$preset/tests.log" "${labels[@]}" "$@")
# Tests that walk a grid say how many cells they ran.
cells=$(awk '/^[0-9]+ cells$/ { sum += $1 } END { print sum + 0 }' \
  "build/$preset/Testing/Temporary/LastTest.log")
echo "suite: $results (passed, failed, skipped) in $((SECONDS - start)) s, $cells cells of grids;" \
  "build/$preset/tests.log"
if $all; then
  for kind in address thread; do
    start=$SECONDS
    more=$(tools/sanitize.sh "$kind" "${sanitize[@]}" --counts)
    echo "under the $kind sanitizer: $(echo $more) in $((SECONDS - start)) s, build included"
    results+=$'\n'$more
  done
fi
if $all && command -v nvcc >/dev/null; then
  start=$SECONDS
  tools/build.sh cuda weft cuda_kernel_tests cuda_parallel_tests cuda_model_tests collectives_mpi
  built=$((SECONDS - start))
  more=$(tools/run_ctest.sh build/cuda/tests/cuda build/cuda/tests.log)
  echo "on GPUs: $more (passed, failed, skipped), built in $built s; build/cuda/tests.log"
  results+=$'\n'$more
fi
echo "$results" | tools/closing_line.sh
