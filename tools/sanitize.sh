#!/usr/bin/env bash
# Builds with a sanitizer and runs tests under it: tools/sanitize.sh address|thread [--short] [--counts]
#   address   AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer over the whole suite
#   thread    ThreadSanitizer over every test whose ranks are threads
#   --short   a part of it that takes about a minute; tools/test.sh runs that
#   --counts  end with "passed failed skipped" as numbers instead of the closing line
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:?usage: tools/sanitize.sh address|thread [--short] [--counts]}
shift
short=false counts=false
for argument in "$@"; do
  case $argument in
    --short) short=true ;;
    --counts) counts=true ;;
    *) echo "tools/sanitize.sh: unexpected '$argument'" >&2; exit 2 ;;
  esac
done

case $kind in
  address) preset=cpu-sanitize ;;
  thread) preset=cpu-tsan ;;
  *) echo "tools/sanitize.sh: expected address or thread, got '$kind'" >&2; exit 2 ;;
esac
targets=()
if $short; then
  targets=(core_tests data_tests parallel_tests)
  [ "$kind" = thread ] || targets+=(kernel_tests)
fi
tools/build.sh "$preset" "${targets[@]}" >&2

# Command tests start programs that use MPI, whose own leaks are known; everything else runs without
# a suppression.
log=build/$preset
run() { tools/run_ctest.sh "build/$preset" "$@"; }
export TSAN_OPTIONS=halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
if $short; then
  few='Stream|Event|Arena|Philox|Random|TokenFile|Loader|Collectives|Mismatch|Failure|Mesh|CriticalPath'
  few="$few|LateDelivery|StrategyBytes\.OfEven|Strategies\.[A-Za-z]*64/[0-3]|Halo|Projected"
  few="$few|StateScan\.|StateScans\.InFlight[A-Za-z]*/[0-2]|MixStates\.[A-Za-z]*Late/[23]"
  [ "$kind" = thread ] || few="$few|Kernels|Attention|Rope"
  results=$(run "$log/tests.log" -R "$few" -E 'Mpi|NOT_BUILT|Full|InRealTime' -LE 'full|commands')
else
  # Not what measures: a sanitizer multiplies seconds, and resident memory.
  results=$(run "$log/tests.log" -LE 'full|commands' -E 'InRealTime')
  if [ "$kind" = address ]; then
    export LSAN_OPTIONS=suppressions=$PWD/tools/sanitize/lsan.supp:print_suppressions=0
    export ASAN_OPTIONS=fast_unwind_on_malloc=0
    results+=$'\n'$(run "$log/commands.log" -L commands \
      -E 'ResidentMemory|CountsTheProducts|BenchKernels\.Measures')
  fi
fi
if $counts; then echo "$results"; else echo "$results" | tools/closing_line.sh; fi
