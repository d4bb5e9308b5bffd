#!/usr/bin/env bash
# Adds up lines of "passed failed skipped" from standard input, prints the closing line of a suite,
# and fails when a test failed or none ran.
awk '
  { passed += $1; failed += $2; skipped += $3 }
  END {
    if (passed + failed == 0) failed = 1   # no test at all is a failure of the suite
    line = passed + 0 " passed, " failed + 0 " failed"
    if (skipped > 0) line = line ", " skipped " skipped"
    print line
    exit failed > 0
  }'
