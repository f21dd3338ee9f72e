#!/usr/bin/env bash
# Builds with sanitizers and runs the tests that suit each: unit and integration tests under
# AddressSanitizer and UndefinedBehaviorSanitizer, the tests where threads meet (label "threads")
# under ThreadSanitizer. VM tests are left out: the guest runs the static release agent.
#
# usage: sanitize.sh DIR [JOBS [TEST_JOBS]]
set -euo pipefail

dir=${1:?usage: sanitize.sh DIR [JOBS [TEST_JOBS]]}
jobs=${2:-$(nproc)}
test_jobs=${3:-$jobs}
top=$(cd "$(dirname "$0")/.." && pwd)

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:${UBSAN_OPTIONS:-}
export LSAN_OPTIONS=suppressions=$top/tests/lsan.supp:print_suppressions=0:${LSAN_OPTIONS:-}
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:${TSAN_OPTIONS:-}

run() {  # PRESET TARGET CTEST-ARGUMENT...
  local preset=$1 target=$2
  shift 2
  echo "== $preset"
  cmake -S "$top" -B "$dir/$preset" --preset "$preset" >/dev/null
  # File-local names of two sources may collide where several are compiled at a time (the presets'
  # FILEBALLOON_QUICK_BUILD); then one by one.
  ninja -C "$dir/$preset" -j "$jobs" --quiet "$target" || {
    cmake -S "$top" -B "$dir/$preset" -DFILEBALLOON_QUICK_BUILD=OFF >/dev/null
    ninja -C "$dir/$preset" -j "$jobs" --quiet "$target"
  }
  # Without address randomisation: GCC 12's runtimes now and then cannot place their shadow memory
  # where a kernel randomises much of the address space, and hang before main().
  (cd "$dir/$preset" && setarch "$(uname -m)" -R ctest -j "$test_jobs" --output-on-failure ${CTEST_FLAGS:-} "$@")
}

# Left out, for the time they take: the same tests of balloonfs with small pages. By hand:
#   (cd DIR/asan && setarch -R ctest -R '^Balloonfs')
run asan sanitizer_tests -L 'unit|integration' -E '^Balloonfs.*/small'
# Left out: tests whose time goes into QEMU or into waiting for a keeper's death, and those that fork a
# process which then starts threads, which TSan cannot follow.
run tsan thread_tests -L threads -E '^(QemuAttach|PagedVm|Faultd\.(A|Where))' --no-tests=error
