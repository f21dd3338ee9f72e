#!/usr/bin/env bash
# Installs every package that building, testing, benchmarking and the demo need, and fetches the
# stock guest kernel. Debian 12; runs apt-get as root or through sudo, and only where a package is
# missing, so a second run needs neither root nor the network.
#
# usage: install-deps.sh [KERNEL_DIR]    (default: build/guest-kernel; "-" fetches no kernel)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
kernel_dir=${1:-$here/../build/guest-kernel}

packages=(
  # compiler and build
  g++ cmake make ninja-build ccache pkg-config lld
  # libraries
  libfuse3-dev fuse3 liburing-dev libboost1.81-dev libboost-json1.81-dev libspdlog-dev libfmt-dev
  libtomlplusplus-dev libcli11-dev libzstd-dev liblz4-dev libxxhash-dev libgtest-dev libgmock-dev
  libbenchmark-dev
  # formatting and linting
  clang-format clang-tidy mandoc
  # a real guest for tests, benchmarks and the demo
  qemu-system-x86 busybox-static cpio xz-utils e2fsprogs tcc
  # pictures of benchmarks
  gnuplot-nox
)

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
    missing+=("$package")
  fi
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ]; then
    sudo=()
  elif command -v sudo >/dev/null; then
    sudo=(sudo)
  else
    echo "install-deps: missing packages: ${missing[*]}" >&2
    echo "install-deps: run this as root, or install sudo" >&2
    exit 1
  fi
  echo "installing: ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ "$kernel_dir" != "-" ]; then
  "$here/fetch-guest-kernel.sh" "$kernel_dir"
fi
