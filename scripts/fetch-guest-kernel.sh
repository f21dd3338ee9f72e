#!/bin/sh
# fetch-guest-kernel.sh DEST: puts Debian's current stock cloud kernel into DEST, for the guests
# that tests, benchmarks and the demo boot. Nothing is installed on this machine.
#
# DEST then holds: vmlinuz, config, version (the release, as uname -r says it) and modules/
# (decompressed *.ko). The concrete package is asked of apt, never pinned, since
# security updates replace it. Does nothing if DEST is complete and that package is still current.
set -eu

die() {
  echo "fetch-guest-kernel.sh: $*" >&2
  exit 1
}

[ $# -eq 1 ] || die "usage: fetch-guest-kernel.sh DEST"
dest=$1
for tool in apt-cache apt-get dpkg xz; do
  command -v "$tool" >/dev/null || die "$tool is missing; this script needs Debian's apt and xz-utils"
done

# The concrete package behind a meta package: its first linux-image-<version> dependency.
concrete() {
  apt-cache depends "$1" 2>/dev/null |
    sed -n 's/^ *|\{0,1\}Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

package=
for meta in linux-image-6.12-cloud-amd64 linux-image-cloud-amd64 \
  $(apt-cache search --names-only '^linux-image-.*cloud-amd64$' 2>/dev/null |
    sed -n 's/^\(linux-image-[^ ]*\) .*/\1/p' | grep -v '[0-9]+deb\|unsigned\|dbg' | sort -rV); do
  package=$(concrete "$meta")
  [ -z "$package" ] || break
done
[ -n "$package" ] ||
  die "apt knows no cloud kernel (linux-image-*-cloud-amd64); run apt-get update, or add bookworm-security to the sources"

if [ -f "$dest/package" ] && [ "$(cat "$dest/package")" = "$package" ] && [ -f "$dest/vmlinuz" ]; then
  echo "guest kernel: $package is in $dest already"
  exit 0
fi

mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
work=$(mktemp -d "$dest/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

echo "guest kernel: fetching $package"
# apt's own download sandbox user cannot write into our folder; root may say so aloud.
(cd "$work" && apt-get -o APT::Sandbox::User=root -q download "$package" >/dev/null) ||
  die "apt-get download $package failed; run apt-get update and try again"
dpkg -x "$work"/linux-image-*.deb "$work/x" || die "cannot unpack $package"

kernel=$(echo "$work"/x/boot/vmlinuz-*)
[ -f "$kernel" ] || die "$package holds no boot/vmlinuz-*"
release=${kernel##*/vmlinuz-}
modules=$work/x/lib/modules/$release
[ -d "$modules" ] || modules=$work/x/usr/lib/modules/$release
[ -d "$modules" ] || die "$package holds no modules for $release"

# The guest's init loads modules with finit_module(2) and no decompressor.
find "$modules" -name '*.ko.xz' -exec xz -d {} +

rm -rf "$dest/modules" "$dest/package"
mv "$modules" "$dest/modules"
mv "$kernel" "$dest/vmlinuz"
mv "$work/x/boot/config-$release" "$dest/config"
echo "$release" >"$dest/version"
echo "$package" >"$dest/package"
echo "guest kernel: $release is in $dest"
