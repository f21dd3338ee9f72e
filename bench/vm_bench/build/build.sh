#!/bin/sh
# Runs in the guest of vm_bench --scenario build, with its disk as root: unpacks Debian's sources of
# tcc, Lua and zlib, compiles them with a tcc that has compiled itself, and uses what came out. It
# fails at the first thing that is not as it should be.
set -eu
work=/work
export PATH=/usr/bin:/bin

unpack() {  # NAME ARCHIVE
  mkdir -p "$work/$1"
  case $2 in
    *.gz) gunzip -c "$2" ;;
    *.bz2) bunzip2 -c "$2" ;;
    *.xz) unxz -c "$2" ;;
  esac | tar x -C "$work/$1"
  cd "$work/$1"
  set -- */
  [ $# -gt 1 ] || cd "$1"  # an archive that holds one folder
}

unpack tcc /src/tcc_*.orig.tar.*
cat >config.h <<END
#define TCC_VERSION "self-made"
#define CONFIG_TCC_CRTPREFIX "/usr/lib/x86_64-linux-gnu"
#define CONFIG_TCC_LIBPATHS "{B}:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu:/lib64"
#define CONFIG_TCC_SYSINCLUDEPATHS "{B}/include:/usr/include/x86_64-linux-gnu:/usr/include"
#define CONFIG_TCCDIR "/usr/lib/x86_64-linux-gnu/tcc"
#define CONFIG_TCC_ELFINTERP "/lib64/ld-linux-x86-64.so.2"
END
cc=tcc
for stage in 1 2 3; do
  $cc -w -DONE_SOURCE=1 -DTCC_TARGET_X86_64 -o tcc$stage tcc.c -lm -ldl -lpthread
  cc=$PWD/tcc$stage
done
cmp tcc2 tcc3  # a compiler that compiles itself reproduces itself

unpack lua /src/lua*.orig.tar.*
for file in src/*.c; do
  [ "$file" = src/luac.c ] || $cc -w -DLUA_COMPAT_5_3 -DLUA_USE_POSIX -c -o "${file%.c}.o" "$file"
done
$cc -w -o lua src/*.o -lm -ldl
# About 100 MiB of strings.
./lua -e 'local t = {}
  for i = 1, 400000 do t[i] = tostring(i) .. ("x"):rep(200) end
  local n = 0
  for i = 1, #t do n = n + #t[i] end
  assert(n == 82288895, n)'

unpack zlib /src/zlib_*.orig.tar.*
for file in *.c; do $cc -w -DHAVE_UNISTD_H -I. -c "$file"; done
$cc -w -DHAVE_UNISTD_H -I. -o minigzip test/minigzip.c ./*.o
tar cf /all.tar -C "$work" .
./minigzip </all.tar >/all.tar.gz
gunzip -c /all.tar.gz | cmp - /all.tar

cd /
rm -rf "$work" /all.tar /all.tar.gz
