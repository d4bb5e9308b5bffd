#!/usr/bin/env bash
# Runs the CUDA kernels under compute-sanitizer, on a machine with a GPU:
#   tools/sanitize_cuda.sh [--tools "memcheck racecheck initcheck synccheck"] [--tests GTEST_FILTER]
#                          [--seconds N] [--jobs N] [BUILD_FOLDER]
# Under every tool: all kernels at the odd shapes that `weft bench kernels` compares with the CPU twin,
# in bf16 and in f32, and the tests of cuda_kernel_tests that the filter names (none unless given), each
# in a process of its own, a few at a time. Only our own kernels are looked at, not those of libraries.
# What takes longer than N seconds (300) counts as cut short. The last line says how many each tool
# passed; logs are in BUILD_FOLDER/sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

checks="memcheck racecheck initcheck synccheck" tests= seconds=300 jobs=$(nproc) folder=build/cuda
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

# A line is what to run: "bench DTYPE KERNEL" or "test SUITE.CASE", those of several types together.
list() {
  "$folder/weft" bench kernels --repeats 0 --dtype f32 | awk 'NR > 2 { print $1 }' | sort -u |
    while read -r kernel; do
      for dtype in bf16 f32; do echo "bench $dtype $kernel"; done
    done
  [ -z "$tests" ] || "$folder/tests/cuda/cuda_kernel_tests" --gtest_list_tests --gtest_filter="$tests" |
    awk '/^[^ ]/ { suite = $1 } /^ / { name = $1; sub(/\/.*/, "", name); print "test " suite name }' |
    sort -u
}

check() {  # tool, what to run
  local tool=$1 status=0
  shift
  local log=$logs/$tool.$(echo "$*" | tr ' /' '__').log
  case $1 in
    bench) set -- "$folder/weft" bench kernels --device cuda --repeats 0 --dtype "$2" --kernels "$3" ;;
    test) set -- "$folder/tests/cuda/cuda_kernel_tests" --gtest_filter="$2:$2/*" ;;
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
export logs seconds sanitizer folder

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
