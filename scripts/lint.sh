#!/usr/bin/env bash
# Format and static checks over every source file that git tracks; changes nothing, fails on any
# finding. Man pages are checked too.
#
# usage: lint.sh BUILD_DIR [JOBS [TIDY_FOLDER...]]    (clang-tidy over everything if none is named)
set -euo pipefail

build=${1:?usage: lint.sh BUILD_DIR [JOBS [TIDY_FOLDER...]]}
jobs=${2:-$(nproc)}
tidy=("${@:3}")
[ ${#tidy[@]} -gt 0 ] || tidy=(.)
cd "$(dirname "$0")/.."

mapfile -t sources < <(git ls-files '*.h' '*.cc')
clang-format --dry-run -Werror "${sources[@]}"

git ls-files 'docs/man/*' | xargs -r mandoc -T lint -W error

# Its standard error only counts the warnings in system headers that it does not show.
mapfile -t units < <(git ls-files "${tidy[@]}" | grep '\.cc$')
printf '%s\n' "${units[@]}" | xargs -P "$jobs" -n 4 clang-tidy -p "$build" --quiet 2>/dev/null
