#!/usr/bin/env bash
# Prints the directory of a kernel for the virtual machines: Debian's cloud kernel,
# unpacked (never installed) into a cache outside the repository, keyed by its
# version: vmlinuz and lib/modules/<release>. What is there already is used as it
# is, without asking apt; remove the cache to have the newest again.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/viaduct/vm
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9 # two runs at the same time fetch it once

# A version's directory appears whole or not at all.
newest() { find "$cache" -mindepth 1 -maxdepth 1 -type d -name 'linux-*' | sort -V | tail -n 1; }

found=$(newest)
if [ -z "$found" ]; then
  command -v apt-get >/dev/null 2>&1 || {
    echo "no kernel for the virtual machines: unpack Debian's linux-image-cloud-amd64 as $cache/linux-<version>/{vmlinuz,lib/modules/<release>}" >&2
    exit 1
  }
  package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)$/\1/p' | head -n 1; }
  name=$(package)
  if [ -z "$name" ] && [ "$(id -u)" -eq 0 ]; then
    apt-get update -qq >&2
    name=$(package)
  fi
  [ -n "$name" ] || {
    echo "apt knows no linux-image-cloud-amd64: try apt-get update; it is in Debian's main" >&2
    exit 1
  }
  work=$(mktemp -d "$cache/.fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  chmod 0755 "$work"
  # An index that has grown old names files that are gone from the mirror.
  (cd "$work" && { apt-get download -qq "$name" >&2 || { apt-get update -qq && apt-get download -qq "$name"; } >&2; }) 2> >(grep -v 'unsandboxed' >&2)
  dpkg -x "$work/$name"_*.deb "$work/x"
  mv "$work"/x/boot/vmlinuz-* "$work/x/vmlinuz"
  rm -rf "$work/x/boot" "$work/x/usr"
  release=$(ls "$work/x/lib/modules")
  depmod -b "$work/x" "$release"
  version=$(basename "$work/$name"_*.deb | cut -d_ -f2)
  found=$cache/linux-${version//[^A-Za-z0-9.+~-]/_}
  mv "$work/x" "$found"
  echo "kernel $release ($version) is in $found" >&2
fi
echo "$found"
