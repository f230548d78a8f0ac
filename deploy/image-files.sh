#!/usr/bin/env bash
# Lays out what the image is made of: in root/, the two programs and the shared libraries that they name; in data/, what
# belongs to the user that runs them.
#
# usage: image-files.sh <directory with skein-node and skein> <directory to make>
set -euo pipefail

if (($# != 2)); then
  sed -n 's/^# \(usage: .*\)/\1/p' "$0" >&2
  exit 2
fi
programs=$1
target=$2
root=$target/root

if [ -e "$target" ]; then
  echo "$target is there already; remove it, or name another directory" >&2
  exit 1
fi
for program in skein-node skein; do
  if [ ! -x "$programs/$program" ]; then
    echo "$programs has no $program; run cargo build --release and name target/release" >&2
    exit 1
  fi
done

mkdir -p "$root/bin" "$root/tmp" "$target/data/skein"
chmod 1777 "$root/tmp"
for program in skein-node skein; do
  # Names of functions stay for backtraces; what a debugger would want is most of the file.
  strip --strip-debug -o "$root/bin/$program" "$programs/$program"
  # A static program names no libraries, and ldd fails on it.
  libraries=$(ldd "$programs/$program" 2>/dev/null | grep -o '/[^ ]*') || true
  for library in $libraries; do
    cp --dereference --parents "$library" "$root"
  done
done
