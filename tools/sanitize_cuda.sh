#!/usr/bin/env bash
# Runs the CUDA kernels under compute-sanitizer, on a machine with a GPU:
#   tools/sanitize_cuda.sh [--tools "memcheck racecheck initcheck synccheck"] [--tests GTEST_FILTER]
#                          [--seconds N] [--jobs N] [BUILD_FOLDER]
# Under every tool: all kernels at the odd shapes that `weft bench kernels` compares with the CPU twin,
# in bf16 and in f32, and the tests of cuda_kernel_tests that the filter names (none unless given), in
# four parts. Only our own kernels are looked at, not those of libraries. A run that takes longer than N
# seconds (300) counts as cut short. The last line says how many runs each tool passed; logs are in
# BUILD_FOLDER/sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

checks="memcheck racecheck initcheck synccheck" tests= seconds=300 jobs=4 folder=build/cuda
while [ $# -gt 0 ]; do
  case $1 in
    --tools) checks=$2; shift 2 ;;
    --tests) tests=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    -*) echo "tools/sanitize_cuda.sh: unexpected '$1'" >&2; exit 2 ;;
    *) folder=$1; shift ;;
  esac
done

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
logs=$folder/sanitizer
rm -rf "$logs"
mkdir -p "$logs"

# A line is what to run: "bench DTYPE" or "tests PART".
list() {
  printf 'bench bf16\nbench f32\n'
  [ -z "$tests" ] || printf 'tests %d\n' 0 1 2 3
}

check() {  # tool, what to run
  local tool=$1 status=0 log=$logs/$1.$2.$3.log
  case $2 in
    bench) set -- "$folder/weft" bench kernels --device cuda --repeats 0 --dtype "$3" ;;
    tests)
      export GTEST_TOTAL_SHARDS=4 GTEST_SHARD_INDEX=$3
      set -- "$folder/tests/cuda/cuda_kernel_tests" --gtest_filter="$tests"
      ;;
  esac
  timeout "$seconds" "$sanitizer" --tool "$tool" --kernel-name kernel_substring=weft \
    --error-exitcode 9 "$@" >"$log" 2>&1 || status=$?
  case $status in
    0) echo "$tool passed" ;;
    124) echo "$tool cut ${log##*/}" ;;
    *) echo "$tool failed ${log##*/} ($status)" ;;
  esac
}
export -f check
export logs seconds sanitizer folder tests

list >"$logs/list"
for tool in $checks; do sed "s/^/$tool /" "$logs/list"; done |
  xargs -P "$jobs" -L 1 bash -c 'check "$@"' - >"$logs/summary"
grep -v passed "$logs/summary" || true
awk '
  { count[$1 " " $2]++; tools[$1] }
  END {
    for (tool in tools) {
      line = line (line == "" ? "" : "; ") tool ": " count[tool " passed"] + 0 " passed, " \
        count[tool " failed"] + 0 " failed, " count[tool " cut"] + 0 " cut short"
      failed += count[tool " failed"]
    }
    print line
    exit failed > 0
  }' "$logs/summary"
