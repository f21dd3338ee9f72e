#!/usr/bin/env bash
# Fails, naming them, when tests were skipped that the list does not expect. Silent otherwise.
#
# usage: check-skips.sh CTEST_JUNIT_XML EXPECTED
# EXPECTED: one extended regular expression a line, matched against whole test names; '#' comments.
set -euo pipefail

xml=${1:?usage: check-skips.sh CTEST_JUNIT_XML EXPECTED}
expected=${2:?usage: check-skips.sh CTEST_JUNIT_XML EXPECTED}

skipped=$(grep -E '<testcase .*status="(notrun|disabled)"' "$xml" |
  sed -E 's/.*<testcase name="([^"]*)".*/\1/' || true)
[ -n "$skipped" ] || exit 0
patterns=$(grep -vE '^[[:space:]]*(#|$)' "$expected" || true)
unexpected=$skipped
if [ -n "$patterns" ]; then
  unexpected=$(grep -vxE -f <(printf '%s\n' "$patterns") <<<"$skipped" || true)
fi
if [ -n "$unexpected" ]; then
  echo "skipped, and not named in $expected:" >&2
  printf '  %s\n' $unexpected >&2
  exit 1
fi
