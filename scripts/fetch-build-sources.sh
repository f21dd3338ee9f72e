#!/bin/sh
# fetch-build-sources.sh DEST: puts the original source archives of a few Debian packages into DEST,
# which a benchmark's guest unpacks and compiles (vm_bench --scenario build). Nothing is installed
# on this machine, and its package lists stay as they are: Debian 12 has no deb-src lines by default,
# so lists of sources are kept in DEST, from the mirrors that apt uses already. Does nothing if DEST
# is complete.
set -eu

packages="tcc lua5.4 zlib"

die() {
  echo "fetch-build-sources.sh: $*" >&2
  exit 1
}

[ $# -eq 1 ] || die "usage: fetch-build-sources.sh DEST"
command -v apt-get >/dev/null || die "apt-get is missing; this script needs Debian's apt"
dest=$1
if [ -f "$dest/complete" ] && [ "$(cat "$dest/complete")" = "$packages" ]; then
  echo "build sources: $packages are in $dest already"
  exit 0
fi
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
work=$(mktemp -d "$dest/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work/lists/partial" "$work/parts"

# The mirrors that apt has the release itself from (not its updates, whose old versions go away);
# apt's own keys check what comes.
apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(CODENAME) $(COMPONENT)' \
  'Created-By: Packages' 2>/dev/null | sort -u |
  sed -n 's/^Debian \([^ ]* [^ -]* main\)$/deb-src [signed-by=\/usr\/share\/keyrings\/debian-archive-keyring.gpg] \1/p' \
    >"$work/sources.list"
[ -s "$work/sources.list" ] || die "apt has no Debian mirror in its lists; run apt-get update"

apt() {
  apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/parts" \
    -o "Dir::State::lists=$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    -o APT::Sandbox::User=root "$@"
}
echo "build sources: fetching $packages"
apt update >"$work/log" 2>&1 || die "apt-get update: $(tail -n 3 "$work/log")"
# shellcheck disable=SC2086  # a list of names
(cd "$work" && apt source --download-only $packages >"$work/log" 2>&1) ||
  die "apt-get source: $(tail -n 3 "$work/log")"
rm -f "$dest"/*.orig.tar.*
mv "$work"/*.orig.tar.* "$dest"
echo "$packages" >"$dest/complete"
echo "build sources: $(cd "$dest" && echo *.orig.tar.*)"
