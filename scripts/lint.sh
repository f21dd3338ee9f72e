#!/usr/bin/env bash
# Format and static checks over every source file that git tracks; changes nothing, fails on any
# finding. Man pages are checked too.
#
# usage: lint.sh BUILD_DIR [JOBS]
set -euo pipefail

build=${1:?usage: lint.sh BUILD_DIR [JOBS]}
jobs=${2:-$(nproc)}
cd "$(dirname "$0")/.."

mapfile -t sources < <(git ls-files '*.h' '*.cc')
clang-format --dry-run -Werror "${sources[@]}"

git ls-files 'docs/man/*' | xargs -r mandoc -T lint -W warning

mapfile -t units < <(git ls-files '*.cc' | grep -v '^tests/fuzz/')
printf '%s\n' "${units[@]}" | xargs -P "$jobs" -n 4 clang-tidy -p "$build" --quiet 2>/dev/null
