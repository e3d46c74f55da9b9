#!/usr/bin/env bash
# rootfs.sh BINARIES ROOT: puts the image's root file system together in the directory ROOT,
# from our binaries (target/release) and this system's nft. The Dockerfile runs it in a
# pinned base, build.sh where there is no container engine.
#
# Our programs are static, and nothing else is in it: no shell, no package manager. But for nft:
# no distribution has a static one, so that it brings the libraries that it is linked to.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
binaries=$1 root=$2
uid=64870 # the agent's and the controller's; deploy/ names it too

mkdir -p "$root"/{etc,run/viaduct,tmp,usr/bin,usr/sbin,usr/lib/viaduct}
chmod 1777 "$root/tmp"
install -m 0755 "$binaries"/viaduct-{agent,controller} "$binaries/viaductctl" "$root/usr/bin/"
install -m 0755 "$binaries/viaduct" "$root/usr/lib/viaduct/viaduct"
install -m 0755 "$(readlink -f "$(command -v nft)")" "$root/usr/sbin/nft"

# ldd prints "libx.so => /lib/…/libx.so (0x…)", and the loader alone as "/lib64/ld-… (0x…)".
ldd "$root/usr/sbin/nft" | grep -o '/[^ ]*' | sort -u | while read -r library; do
  [ -e "$root$library" ] || install -D -m 0755 "$(readlink -f "$library")" "$root$library"
done
for program in "$root"/usr/bin/* "$root/usr/lib/viaduct/viaduct"; do
  if ldd "$program" 2>&1 | grep -q '=>'; then
    echo "$binaries/${program##*/} is not static: build it by make build" >&2
    exit 1
  fi
done

printf 'root:x:0:0::/:/\nviaduct:x:%s:%s::/:/\n' $uid $uid >"$root/etc/passwd"
printf 'root:x:0:\nviaduct:x:%s:\n' $uid >"$root/etc/group"
# Names of datastores: the pod's /etc/hosts, then its DNS.
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
