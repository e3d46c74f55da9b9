#!/usr/bin/env bash
# Installs what the virtual machines need beyond tests/setup.sh and is not there,
# where that can be done (apt); otherwise names it in one line.
set -euo pipefail

missing=()
need() { # command package
  PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need qemu-system-x86_64 qemu-system-x86
[ -x /usr/lib/qemu/virtiofsd ] || [ -x /usr/libexec/virtiofsd ] || missing+=(qemu-system-common)
need busybox busybox-static
need modprobe kmod
need cpio cpio
need gzip gzip
need xz xz-utils
need nft nftables
need tc iproute2

[ "$(uname -m)" = x86_64 ] || {
  echo "the virtual machines need an x86_64 host: their kernel is one" >&2
  exit 1
}
[ "$(id -u)" -eq 0 ] || {
  # An overlay over them opens them in a way that only their owner may (O_NOATIME).
  echo "the virtual machines read the host's files as root: run this as root" >&2
  exit 1
}
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if command -v apt-get >/dev/null 2>&1; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "missing: ${missing[*]}; install with: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
